//! A page after a storm of labels, for observers of others whose labels come
//! from what they watch.

use std::collections::BTreeMap;

use vahti_runtime::config::MetricsConfig;
use vahti_runtime::metrics::{MetricKind, OTHER, OVERFLOW, Registry};

use super::*;

const STORM: usize = 1_000_000;
const NAME: &str = "vahti_events_seen_total";

/// The values of a metric's series, by what stands between the braces.
fn series<'a>(page: &'a str, name: &str) -> BTreeMap<&'a str, f64> {
    let of = page.lines().filter_map(|line| line.strip_prefix(name));
    let parts = of.map(|rest| rest.rsplit_once(' ').unwrap());
    parts.map(|(labels, value)| (labels, value.parse().unwrap())).collect()
}

#[test]
fn a_million_values_of_a_label_are_a_page_of_so_many_series_that_add_up() {
    for max_series in [1, 100, 1_000] {
        let config = MetricsConfig {
            allowed_labels: vec!["subtype".into()],
            max_series,
            ..MetricsConfig::default()
        };
        let registry = Registry::new(&config);
        for n in 0..STORM {
            // As hostile as a name on a node may be.
            let value = format!("{n}\"}} 5\n# TYPE \\ \u{1b}[2J");
            registry.series(NAME, MetricKind::Counter, &[("subtype", &value)]).add(1);
        }
        let mut metrics = Metrics::default();
        metrics.samples(registry.snapshot());
        for format in [Format::Prometheus, Format::OpenMetrics] {
            let page = String::from_utf8(metrics.write(format)).unwrap();
            let seen = series(&page, NAME);
            assert!(seen.len() <= max_series + 1, "{}", seen.len());
            assert_eq!(seen.values().sum::<f64>(), STORM as f64);
            let other = format!("{{subtype=\"{OTHER}\"}}");
            assert_eq!(seen[&*other], (STORM - max_series) as f64);
            assert_eq!(series(&page, OVERFLOW)[""], (STORM - max_series) as f64);
            assert!(page.len() < 20_000 + 100 * max_series, "{}", page.len());
            let families = page.lines().filter(|line| line.starts_with("# TYPE ")).count();
            assert_eq!(families, TABLE.len(), "no value ends its line");
        }
    }
}
