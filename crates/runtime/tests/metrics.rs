//! What an observer tells of itself: metrics, sampling, spans of entities.
#![cfg(not(shuttle))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::sync::Arc;

use vahti_runtime::config::{Config, MetricsConfig};
use vahti_runtime::event::{Event, EventKind, Priority, Severity};
use vahti_runtime::ids::EntityId;
use vahti_runtime::ledger::{DropReason, FailReason};
use vahti_runtime::metrics::{MetricKind, Sample};
use vahti_runtime::observer::{ObserverRuntime, ObserverRuntimeBuilder};
use vahti_runtime::processor::{EventProcessor, Output, ProcessError, RawRecord};
use vahti_runtime::shutdown::channel;
use vahti_runtime::testing::{Captured, CapturingEmitter, FakeSource, record};

static PING: EventKind = EventKind::custom("test.ping", "test", "ping", Priority::Normal);

/// One event a record, about the entity that the record names.
struct Ping;

impl EventProcessor for Ping {
    fn name(&self) -> &str {
        "ping"
    }

    fn process(&self, record: RawRecord<'_>) -> Result<Output, ProcessError> {
        let mut event = Event::new(&PING, Severity::Info);
        event.entity = Some(EntityId::named(&String::from_utf8_lossy(record.bytes)));
        Ok(event.into())
    }
}

/// Samples out all that is no failure.
fn config() -> Config {
    let mut config = Config::for_observer("ping");
    config.sampling.enabled = true;
    config.sampling.default_rate = 0.0;
    config
}

/// Five records through an observer, from its source.
async fn observed(
    config: Config,
    more: fn(ObserverRuntimeBuilder) -> ObserverRuntimeBuilder,
) -> (Arc<ObserverRuntime>, Captured) {
    let (source, feed) = FakeSource::new();
    for _ in 0..5 {
        feed.push(b"web-0");
    }
    feed.end();
    let (emitter, captured) = CapturingEmitter::new("capture");
    let builder = ObserverRuntime::builder(|| Ping).config(config).source(source).emitter(emitter);
    let observer = more(builder).build().unwrap();
    let (_trigger, shutdown) = channel();
    Arc::clone(&observer).run(shutdown).await.unwrap();
    (observer, captured)
}

/// The one sample of this name that has these labels, others beside them or not.
fn sample<'a>(samples: &'a [Sample], name: &str, labels: &[(&str, &str)]) -> &'a Sample {
    let has = |s: &Sample, (key, value): &(&str, &str)| {
        s.labels.iter().any(|(k, v)| k == key && v == value)
    };
    let mut found =
        samples.iter().filter(|s| s.name == name && labels.iter().all(|label| has(s, label)));
    let first = found.next().unwrap_or_else(|| panic!("no {name} {labels:?}"));
    assert_eq!(found.next(), None, "a second {name} {labels:?}");
    first
}

#[tokio::test]
async fn metrics_count_before_sampling_and_have_every_reason_as_zero() {
    let (observer, captured) = observed(config(), |builder| builder).await;
    assert_eq!(captured.occurrences(), 0, "all was sampled out");
    let samples = observer.metrics();
    let value = |name: &str, labels: &[(&str, &str)]| sample(&samples, name, labels).value;
    let seen = [("observer", "ping"), ("type", "test"), ("subtype", "ping"), ("severity", "info")];
    assert_eq!(value("vahti_events_seen_total", &seen), 5);
    for (name, outcome, expected) in [
        ("vahti_kernel_total", "submitted", 5),
        ("vahti_ring_total", "received", 5),
        ("vahti_records_total", "processed", 5),
        ("vahti_events_total", "produced", 5),
        ("vahti_events_total", "sampled_out", 5),
        ("vahti_events_total", "routed", 0),
        ("vahti_lane_total", "delivered", 0),
    ] {
        assert_eq!(value(name, &[("observer", "ping"), ("outcome", outcome)]), expected, "{name}");
    }
    for reason in FailReason::ALL {
        let labels = [("outcome", "failed"), ("reason", reason.as_str())];
        assert_eq!(value("vahti_records_total", &labels), 0);
    }
    for (reason, priority) in
        DropReason::ALL.iter().flat_map(|r| Priority::ALL.map(|priority| (r, priority)))
    {
        let labels = [
            ("emitter", "capture"),
            ("outcome", "dropped"),
            ("stage", reason.stage()),
            ("reason", reason.as_str()),
            ("priority", priority.as_str()),
        ];
        assert_eq!(value("vahti_lane_total", &labels), 0);
    }
    for line in ["kernel", "ring", "records", "events", "lane capture", "routed to capture"] {
        assert_eq!(value("vahti_ledger_difference", &[("line", line)]), 0);
    }
}

#[tokio::test]
async fn levels_are_gauges_under_names_of_their_own() {
    let (observer, _) = observed(config(), |builder| builder).await;
    let samples = observer.metrics();
    for (name, state) in [
        ("vahti_ring_records", "in_ring"),
        ("vahti_observer_records", "processing"),
        ("vahti_observer_events", "waiting"),
        ("vahti_observer_events", "folding"),
        ("vahti_lane_events", "stored"),
        ("vahti_lane_events", "queued"),
        ("vahti_lane_events", "in_flight"),
    ] {
        let level = sample(&samples, name, &[("state", state)]);
        assert_eq!((level.kind, level.value), (MetricKind::Gauge, 0), "{name} {state}");
    }
    // Nobody says both that it only rises and that it is a level.
    let family = |s: &Sample| s.name.trim_end_matches("_total").to_owned();
    let of =
        |kind| -> BTreeSet<_> { samples.iter().filter(|s| s.kind == kind).map(family).collect() };
    assert!(of(MetricKind::Counter).is_disjoint(&of(MetricKind::Gauge)));
    assert!(samples.iter().all(|s| (s.kind == MetricKind::Counter) == s.name.ends_with("_total")));
    // No two series are the same one.
    let series: BTreeSet<_> = samples.iter().map(|s| (&s.name, &s.labels)).collect();
    assert_eq!(series.len(), samples.len());
}

#[tokio::test]
async fn a_label_that_is_not_allowed_is_not_exported_and_cuts_no_line_of_the_ledger() {
    let mut config = config();
    config.metrics.allowed_labels = vec!["subtype".into()];
    let (observer, _) = observed(config, |builder| builder).await;
    let samples = observer.metrics();
    let seen = sample(&samples, "vahti_events_seen_total", &[]);
    // Another observer has the same names, so its own is always there.
    let labels = [("observer".into(), "ping".into()), ("subtype".into(), "ping".into())];
    assert_eq!((&*seen.labels, seen.value), (&labels[..], 5));
    let dropped = [("observer", "ping"), ("emitter", "capture"), ("reason", "deadline")];
    sample(&samples, "vahti_lane_total", &[&dropped[..], &[("priority", "normal")]].concat());
}

#[tokio::test]
async fn metrics_that_are_turned_off_are_silent_and_the_ledger_counts_on() {
    let metrics = MetricsConfig { enabled: false, ..MetricsConfig::default() };
    let (observer, _) = observed(Config { metrics, ..config() }, |builder| builder).await;
    assert_eq!(observer.metrics(), []);
    assert_eq!(observer.ledger().records.processed, 5);
}

#[tokio::test]
async fn sampling_that_is_disabled_keeps_all_whatever_the_configuration_says() {
    let (observer, captured) =
        observed(config(), |builder| builder.sampling_disabled().folding_disabled()).await;
    assert_eq!(captured.occurrences(), 5);
    assert_eq!(observer.ledger().events.sampled_out.occurrences, 0);
}

#[tokio::test]
async fn the_span_of_an_entity_is_found_by_its_name_and_its_aliases() {
    let (emitter, captured) = CapturingEmitter::new("capture");
    let observer = ObserverRuntime::builder(|| Ping).emitter(emitter).build().unwrap();
    let (trigger, shutdown) = channel();
    let run = tokio::spawn(Arc::clone(&observer).run(shutdown));
    observer.started().await;
    observer.causality().alias("10.0.0.7:80", EntityId::named("web-0"));
    assert_eq!(observer.parent_span_for_entity("web-0"), None);
    for (seq, name) in (1..).zip([&b"web-0"[..], b"web-1", b"web-0"]) {
        observer.process_event(RawRecord { seq, ..record(name) }).unwrap();
    }
    trigger.begin();
    run.await.unwrap().unwrap();
    let spans: Vec<_> = captured.events().iter().map(|e| e.span_id).collect();
    assert_eq!(observer.parent_span_for_entity("web-1"), spans[1]);
    assert_eq!(observer.parent_span_for_entity("web-0"), spans[2], "the latest");
    assert_eq!(observer.parent_span_for_entity("10.0.0.7:80"), spans[2]);
    assert_eq!(observer.parent_span_for_entity("web-2"), None);
}
