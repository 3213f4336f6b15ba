//! A registry of counters and gauges with bounded cardinality.
//!
//! A label that is not allowed is never exported; what would be one series too
//! many for a metric, or too many bytes for all, goes to a series whose labels
//! are all `_other`, and how often that happened is counted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::config::MetricsConfig;
use crate::memory::{BLOCK, CacheLimits};

/// The value of every label of the series that takes what is over the cap.
pub const OTHER: &str = "_other";

/// Counts how often a new series was refused for the cap.
pub const OVERFLOW: &str = "vahti_metrics_series_overflow_total";

/// What a metric's values do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricKind {
    /// They only rise.
    Counter,
    /// They go up and down.
    Gauge,
}

/// One series; cheap to clone and to add to.
#[derive(Debug, Clone)]
pub struct Series {
    /// `None` where metrics are turned off.
    value: Option<Arc<AtomicU64>>,
}

impl Series {
    /// Adds to a counter.
    pub fn add(&self, n: u64) {
        if let Some(value) = &self.value {
            value.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Sets a gauge.
    pub fn set(&self, n: u64) {
        if let Some(value) = &self.value {
            value.store(n, Ordering::Relaxed);
        }
    }

    /// The value now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.value.as_ref().map_or(0, |value| value.load(Ordering::Relaxed))
    }
}

type Labels = Vec<(String, String)>;

#[derive(Debug)]
struct Metric {
    kind: MetricKind,
    series: BTreeMap<Labels, Arc<AtomicU64>>,
}

/// All metrics of one observer.
///
/// ```
/// use vahti_runtime::config::MetricsConfig;
/// use vahti_runtime::metrics::{MetricKind, Registry};
///
/// let config = MetricsConfig { allowed_labels: vec!["subtype".into()], ..Default::default() };
/// let registry = Registry::new(&config);
/// let labels = [("subtype", "connection_refused"), ("pod", "web-0")];
/// registry.series("vahti_events_seen_total", MetricKind::Counter, &labels).add(3);
/// let samples = registry.snapshot();
/// assert_eq!(samples[0].labels, [("subtype".to_owned(), "connection_refused".to_owned())]);
/// ```
#[derive(Debug)]
pub struct Registry {
    enabled: bool,
    allowed: Vec<String>,
    max_series: usize,
    /// What all series may take; those that take what is over the caps, one a
    /// metric, stand beside it.
    max_bytes: usize,
    metrics: Mutex<Metrics>,
    overflow: AtomicU64,
}

#[derive(Debug, Default)]
struct Metrics {
    by_name: BTreeMap<String, Metric>,
    /// What the series take.
    bytes: usize,
}

/// One series' value at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// The metric's name.
    pub name: String,
    /// What its values do.
    pub kind: MetricKind,
    /// The labels that are allowed, in the order of the allow-list.
    pub labels: Vec<(String, String)>,
    /// The value.
    pub value: i64,
}

impl Registry {
    /// An empty registry.
    #[must_use]
    pub fn new(config: &MetricsConfig) -> Self {
        Registry {
            enabled: config.enabled,
            allowed: config.allowed_labels.clone(),
            max_series: config.max_series.max(1),
            max_bytes: CacheLimits::default().metrics_bytes,
            metrics: Mutex::default(),
            overflow: AtomicU64::new(0),
        }
    }

    /// The same with this many bytes of series.
    pub(crate) fn within(self, max_bytes: usize) -> Self {
        Registry { max_bytes, ..self }
    }

    /// The series of these labels: the allowed ones of them.
    pub fn series(&self, name: &str, kind: MetricKind, labels: &[(&str, &str)]) -> Series {
        if !self.enabled {
            return Series { value: None };
        }
        let mut labels: Labels = self
            .allowed
            .iter()
            .filter_map(|allowed| labels.iter().find(|(key, _)| key == allowed))
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        // A list is begun with more room than most need.
        labels.shrink_to_fit();
        let mut metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        let Metrics { by_name, bytes } = &mut *metrics;
        let metric = by_name
            .entry(name.to_owned())
            .or_insert_with(|| Metric { kind, series: BTreeMap::new() });
        let (known, more) = (metric.series.len(), size_of_series(&labels));
        let labels = if metric.series.contains_key(&labels) {
            labels
        } else if known < self.max_series && *bytes + more <= self.max_bytes {
            *bytes += more;
            labels
        } else {
            self.overflow.fetch_add(1, Ordering::Relaxed);
            labels.into_iter().map(|(key, _)| (key, OTHER.to_owned())).collect()
        };
        let value = Arc::clone(metric.series.entry(labels).or_default());
        Series { value: Some(value) }
    }

    /// All series, by name and labels, with [`OVERFLOW`] last; nothing where
    /// metrics are turned off.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Sample> {
        if !self.enabled {
            return Vec::new();
        }
        let metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        let mut samples: Vec<Sample> = metrics
            .by_name
            .iter()
            .flat_map(|(name, metric)| {
                metric.series.iter().map(|(labels, value)| Sample {
                    name: name.clone(),
                    kind: metric.kind,
                    labels: labels.clone(),
                    value: signed(value.load(Ordering::Relaxed)),
                })
            })
            .collect();
        samples.push(Sample {
            name: OVERFLOW.to_owned(),
            kind: MetricKind::Counter,
            labels: Vec::new(),
            value: signed(self.overflow.load(Ordering::Relaxed)),
        });
        samples
    }
}

/// With its value, and its place in a tree whose nodes may be half empty.
fn size_of_series(labels: &Labels) -> usize {
    let texts: usize = labels.iter().map(|(key, value)| key.len() + value.len() + 2 * BLOCK).sum();
    let lists = labels.len() * size_of::<(String, String)>() + BLOCK;
    let place = 2 * (size_of::<Labels>() + size_of::<Arc<AtomicU64>>());
    texts + lists + place + size_of::<[u64; 3]>() + BLOCK
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_storm_of_labels_stays_under_the_cap_and_loses_no_count() {
        let config = MetricsConfig {
            allowed_labels: vec!["pod".into()],
            max_series: 10,
            ..MetricsConfig::default()
        };
        let registry = Registry::new(&config);
        for n in 0..1_000_000 {
            let pod = format!("pod-{n}");
            registry.series("m", MetricKind::Counter, &[("pod", pod.as_str())]).add(1);
        }
        let samples: Vec<_> = registry.snapshot().into_iter().filter(|s| s.name == "m").collect();
        assert_eq!(samples.len(), 11, "ten and the other");
        assert_eq!(samples.iter().map(|s| s.value).sum::<i64>(), 1_000_000);
        let other = samples.iter().find(|s| s.labels[0].1 == OTHER);
        assert_eq!(other.map(|s| s.value), Some(999_990));
        assert_eq!(registry.snapshot().last().map(|s| s.value), Some(999_990));
    }

    #[test]
    fn labels_of_any_length_stay_under_the_bytes_and_lose_no_count() {
        let config = MetricsConfig {
            allowed_labels: vec!["pod".into()],
            max_series: 100_000,
            ..MetricsConfig::default()
        };
        let registry = Registry::new(&config).within(512 << 10);
        for n in 0..200 {
            let pod = format!("{n}{}", "x".repeat(10_000));
            registry.series("m", MetricKind::Counter, &[("pod", pod.as_str())]).add(1);
        }
        let samples: Vec<_> = registry.snapshot().into_iter().filter(|s| s.name == "m").collect();
        let kept: usize = samples.iter().map(|s| s.labels[0].1.len()).sum();
        assert!((400_000..=512 << 10).contains(&kept), "{kept}");
        assert_eq!(samples.iter().map(|s| s.value).sum::<i64>(), 200);
    }

    #[test]
    fn what_is_turned_off_counts_nothing() {
        let registry = Registry::new(&MetricsConfig { enabled: false, ..MetricsConfig::default() });
        registry.series("m", MetricKind::Counter, &[]).add(1);
        assert_eq!(registry.snapshot(), []);
    }
}
