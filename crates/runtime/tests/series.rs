//! A storm of labels: what it takes, counted block by block, and that no count
//! of it is lost.
#![cfg(not(shuttle))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::sync::atomic::Ordering;

use vahti_runtime::config::MetricsConfig;
use vahti_runtime::memory::CacheLimits;
use vahti_runtime::metrics::{MetricKind, OTHER, OVERFLOW, Registry, Sample};

#[path = "stage/counting.rs"]
mod counting;
use counting::{MOST, NOW};

const STORM: usize = 1_000_000;
const THREADS: usize = 4;

/// What beside the series takes memory here: threads, and the labels that they
/// ask with.
const BESIDE: usize = 64 << 10;

fn storm(registry: &Registry, length: usize) {
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                for n in 0..STORM / THREADS {
                    let pod = format!("{thread}-{n}-{}", "x".repeat(length));
                    registry.series("m_total", MetricKind::Counter, &[("pod", &*pod)]).add(1);
                }
            });
        }
    });
}

fn of_m(samples: &[Sample]) -> Vec<&Sample> {
    samples.iter().filter(|sample| sample.name == "m_total").collect()
}

#[test]
fn a_million_values_of_a_label_take_what_was_said_and_each_is_counted() {
    let limit = CacheLimits::default().metrics_bytes;
    // Short ones meet the cap on series, long ones that on memory.
    for (max_series, length) in [(1_000, 0), (100_000, 0), (100_000, 200)] {
        let config = MetricsConfig {
            allowed_labels: vec!["pod".into()],
            max_series,
            ..MetricsConfig::default()
        };
        let before = NOW.load(Ordering::SeqCst);
        MOST.store(before, Ordering::SeqCst);
        let registry = Registry::new(&config);
        storm(&registry, length);
        let most = MOST.load(Ordering::SeqCst) - before;
        assert!(most <= limit + BESIDE, "{most} bytes for {max_series} series, {limit} were said");
        let samples = registry.snapshot();
        let series = of_m(&samples);
        assert!(series.len() <= max_series + 1, "{}", series.len());
        assert!(series.len() > 500, "{} are hardly any", series.len());
        assert_eq!(series.iter().map(|sample| sample.value).sum::<i64>(), STORM as i64);
        let other: Vec<_> = series.iter().filter(|sample| sample.labels[0].1 == OTHER).collect();
        let kept = series.len() - 1;
        assert_eq!(other.len(), 1);
        assert_eq!(other[0].value, (STORM - kept) as i64);
        let overflow = samples.last().unwrap();
        assert_eq!((&*overflow.name, overflow.value), (OVERFLOW, (STORM - kept) as i64));
    }
}
