//! A registry of counters and gauges with bounded cardinality.
//!
//! A label that is not allowed is never exported; what would be one series too
//! many for a metric, or too many bytes for all, goes to a series whose labels
//! are all `_other`, and how often that happened is counted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    /// What all series may take; those that take what is over the caps, one a
    /// metric, stand beside it.
    max_bytes: usize,
    metrics: Mutex<Metrics>,
    overflow: AtomicU64,
}

#[derive(Debug)]
struct Metrics {
    config: MetricsConfig,
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
            max_bytes: CacheLimits::default().metrics_bytes,
            metrics: Mutex::new(Metrics {
                config: config.clone(),
                by_name: BTreeMap::new(),
                bytes: 0,
            }),
            overflow: AtomicU64::new(0),
        }
    }

    /// The same with this many bytes of series.
    pub(crate) fn within(self, max_bytes: usize) -> Self {
        Registry { max_bytes, ..self }
    }

    /// The series of these labels: the allowed ones of them.
    pub fn series(&self, name: &str, kind: MetricKind, labels: &[(&str, &str)]) -> Series {
        let mut metrics = self.lock();
        let Metrics { config, by_name, bytes } = &mut *metrics;
        if !config.enabled {
            return Series { value: None };
        }
        let mut labels: Labels = config
            .allowed_labels
            .iter()
            .filter_map(|allowed| labels.iter().find(|(key, _)| key == allowed))
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        // A list is begun with more room than most need.
        labels.shrink_to_fit();
        let metric = by_name
            .entry(name.to_owned())
            .or_insert_with(|| Metric { kind, series: BTreeMap::new() });
        let (known, more) = (metric.series.len(), size_of_series(&labels));
        let labels = if metric.series.contains_key(&labels) {
            labels
        } else if known < config.max_series.max(1) && *bytes + more <= self.max_bytes {
            *bytes += more;
            labels
        } else {
            self.overflow.fetch_add(1, Ordering::Relaxed);
            labels.into_iter().map(|(key, _)| (key, OTHER.to_owned())).collect()
        };
        let value = Arc::clone(metric.series.entry(labels).or_default());
        Series { value: Some(value) }
    }

    /// Goes by other labels and another cap from now on.
    ///
    /// A label that is not allowed any more leaves the series that there are:
    /// those that are alike then become one, with their sum. One that is newly
    /// allowed comes with new series; those from before stay without it, or with
    /// the value that `known` has of it. A lower cap takes in no more until there
    /// is room, and folds nothing: `_other` would rise at once by what happened
    /// long ago. So the sum over all series is the same as before.
    ///
    /// Series that were handed out before must not be added to any more.
    pub(crate) fn reconfigure(&self, config: &MetricsConfig, known: &[(&str, &str)]) {
        let mut metrics = self.lock();
        let metrics = &mut *metrics;
        let relabels = metrics.config.allowed_labels != config.allowed_labels;
        metrics.config = config.clone();
        if !relabels {
            return;
        }
        metrics.bytes = 0;
        for metric in metrics.by_name.values_mut() {
            let before = std::mem::take(&mut metric.series);
            for (labels, value) in before {
                let labels = relabelled(&labels, &config.allowed_labels, known);
                match metric.series.get(&labels) {
                    Some(sum) => {
                        sum.fetch_add(value.load(Ordering::Relaxed), Ordering::Relaxed);
                    }
                    None => {
                        metrics.bytes += size_of_series(&labels);
                        metric.series.insert(labels, value);
                    }
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Metrics> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All series, by name and labels, with [`OVERFLOW`] last; nothing where
    /// metrics are turned off.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Sample> {
        let metrics = self.lock();
        if !metrics.config.enabled {
            return Vec::new();
        }
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

/// The labels of a series that are allowed now.
fn relabelled(labels: &Labels, allowed: &[String], known: &[(&str, &str)]) -> Labels {
    let takes_the_rest = !labels.is_empty() && labels.iter().all(|(_, value)| value == OTHER);
    let value = |key: &String| {
        let own = labels.iter().find(|(own, _)| own == key).map(|(_, value)| value.as_str());
        let known = known.iter().find(|(known, _)| known == key).map(|(_, value)| *value);
        own.or(known.map(|value| if takes_the_rest { OTHER } else { value }))
    };
    allowed.iter().filter_map(|key| Some((key.clone(), value(key)?.to_owned()))).collect()
}

/// Those that are alike as one, with their sum.
pub(crate) fn summed(samples: Vec<Sample>) -> Vec<Sample> {
    let mut sums: BTreeMap<(String, Labels), (MetricKind, i64)> = BTreeMap::new();
    for Sample { name, kind, labels, value } in samples {
        let (_, sum) = sums.entry((name, labels)).or_insert((kind, 0));
        *sum = sum.saturating_add(value);
    }
    let sample = |((name, labels), (kind, value))| Sample { name, kind, labels, value };
    sums.into_iter().map(sample).collect()
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

    fn with_labels(labels: &[&str], max_series: usize) -> MetricsConfig {
        let allowed_labels = labels.iter().map(|label| (*label).to_owned()).collect();
        MetricsConfig { allowed_labels, max_series, ..MetricsConfig::default() }
    }

    /// What is told of `m`, and the sum of it.
    fn told(registry: &Registry) -> (Vec<String>, i64) {
        let samples: Vec<_> = registry.snapshot().into_iter().filter(|s| s.name == "m").collect();
        let shown = |s: &Sample| {
            let labels: Vec<_> =
                s.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("{} {}", labels.join(","), s.value)
        };
        (samples.iter().map(shown).collect(), samples.iter().map(|s| s.value).sum())
    }

    #[test]
    fn a_label_that_goes_leaves_sums_and_one_that_comes_begins_anew() {
        let registry = Registry::new(&with_labels(&["pod", "kind"], 10));
        let add = |pod: &str, kind: &str, n| {
            let labels = [("pod", pod), ("kind", kind), ("node", "a")];
            registry.series("m", MetricKind::Counter, &labels).add(n);
        };
        add("p", "x", 1);
        add("q", "x", 2);
        add("q", "y", 4);
        registry.reconfigure(&with_labels(&["kind"], 10), &[]);
        assert_eq!(told(&registry), (vec!["kind=x 3".to_owned(), "kind=y 4".to_owned()], 7));
        add("r", "x", 8);
        assert_eq!(told(&registry).1, 15);
        // The node is one and the same for all; of the pod nobody knows.
        registry.reconfigure(&with_labels(&["node", "kind", "pod"], 10), &[("node", "a")]);
        add("p", "y", 16);
        let expected = ["node=a,kind=x 11", "node=a,kind=y 4", "node=a,kind=y,pod=p 16"];
        assert_eq!(told(&registry), (expected.map(str::to_owned).to_vec(), 31));
        registry.reconfigure(&with_labels(&[], 10), &[]);
        assert_eq!(told(&registry), (vec![" 31".to_owned()], 31));
    }

    #[test]
    fn a_lower_cap_takes_in_no_more_and_puts_nothing_out() {
        let registry = Registry::new(&with_labels(&["pod"], 3));
        let add = |pod: &str| registry.series("m", MetricKind::Counter, &[("pod", pod)]).add(1);
        ["a", "b", "c", "d"].iter().for_each(|pod| add(pod));
        let before = told(&registry);
        assert_eq!(before.0, ["pod=_other 1", "pod=a 1", "pod=b 1", "pod=c 1"]);
        registry.reconfigure(&with_labels(&["pod"], 1), &[]);
        assert_eq!(told(&registry), before);
        ["a", "e"].iter().for_each(|pod| add(pod));
        assert_eq!(told(&registry).0, ["pod=_other 2", "pod=a 2", "pod=b 1", "pod=c 1"]);
        registry.reconfigure(&with_labels(&["pod"], 6), &[]);
        add("e");
        assert_eq!(told(&registry).1, 7);
        assert!(told(&registry).0.contains(&"pod=e 1".to_owned()));
    }

    #[test]
    fn what_is_turned_off_counts_nothing() {
        let registry = Registry::new(&MetricsConfig { enabled: false, ..MetricsConfig::default() });
        registry.series("m", MetricKind::Counter, &[]).add(1);
        assert_eq!(registry.snapshot(), []);
    }
}
