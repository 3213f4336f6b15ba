//! A runtime that goes by one configuration after the other while events come.

// Helpers outside test functions fail as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use vahti_runtime::config::{Config, DropPolicy, SamplingConfig, SamplingRule};
use vahti_runtime::emitter::{Emission, EmitOutcome, EventEmitter};
use vahti_runtime::event::{Event, EventKind, Priority, Severity};
use vahti_runtime::observer::ObserverRuntime;
use vahti_runtime::processor::{EventProcessor, Output, ProcessError, RawRecord};
use vahti_runtime::testing::{CapturingEmitter, record};

static TICK: EventKind = EventKind::custom("test.tick", "test", "tick", Priority::Normal);
static TOCK: EventKind = EventKind::custom("test.tock", "test", "tock", Priority::Critical);

/// One event a record, of the kind that its first byte says.
struct Clock;

impl EventProcessor for Clock {
    fn name(&self) -> &str {
        "clock"
    }

    fn process(&self, record: RawRecord<'_>) -> Result<Output, ProcessError> {
        let kind = if record.bytes.first() == Some(&b't') { &TICK } else { &TOCK };
        Ok(Event::new(kind, Severity::Warning).into())
    }
}

/// The record of this number: ids and traces come from it.
fn numbered(seq: u64, bytes: &[u8]) -> RawRecord<'_> {
    RawRecord { seq, ..record(bytes) }
}

/// A configuration by its number; the queue is never smaller than what comes.
fn config(n: u64, rates: &[f64]) -> Config {
    let rate = rates[n as usize % rates.len()];
    let mut config = Config::for_observer("clock");
    let rule = SamplingRule {
        event_type: "test".into(),
        subtype: "tock".into(),
        rate: 1.0 - rate,
        keep_all: n.is_multiple_of(5),
    };
    config.sampling = SamplingConfig { enabled: true, default_rate: rate, rules: vec![rule] };
    config.backpressure.queue_size = 1_000_000 + n as usize;
    config.backpressure.max_bytes = Some("1GiB".parse().unwrap());
    config.backpressure.drop_policy =
        [DropPolicy::Oldest, DropPolicy::Newest, DropPolicy::Random][n as usize % 3];
    let labels: &[&str] =
        [&["type", "subtype"][..], &["subtype"], &[], &["observer", "outcome", "subtype"]]
            [n as usize % 4];
    config.metrics.allowed_labels = labels.iter().map(|label| (*label).to_owned()).collect();
    config.metrics.max_series = 1 + n as usize % 7;
    config
}

fn seen(runtime: &ObserverRuntime) -> i64 {
    let samples = runtime.metrics();
    samples.iter().filter(|s| s.name == "vahti_events_seen_total").map(|s| s.value).sum()
}

#[tokio::test]
async fn configurations_change_while_threads_process_and_every_event_is_accounted_for() {
    const THREADS: u64 = 3;
    const EACH: u64 = 20_000;
    let rates = [1.0, 0.5, 0.25, 0.0];
    let (emitter, captured) = CapturingEmitter::new("capture");
    let runtime = ObserverRuntime::builder(|| Clock)
        .config(config(0, &rates))
        .concurrency(THREADS as usize)
        .emitter(emitter)
        .drain_deadline(Duration::from_secs(60))
        .folding_disabled()
        .build()
        .unwrap();
    let (trigger, shutdown) = vahti_runtime::shutdown::channel();
    let run = tokio::spawn(Arc::clone(&runtime).run(shutdown));
    runtime.started().await;
    let over = AtomicBool::new(false);
    let changes = std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            let (mut n, mut last) = (0, 0);
            while !over.load(Ordering::Acquire) {
                n += 1;
                runtime.reconfigure(config(n, &rates)).unwrap();
                if n % 10 == 0 {
                    let mut wrong = config(n + 1, &rates);
                    wrong.sampling.default_rate = 2.0;
                    assert!(runtime.reconfigure(wrong).is_err());
                    assert_eq!(*runtime.config(), config(n, &rates));
                }
                // What is told never goes back, whatever the labels.
                let now = seen(&runtime);
                assert!(now >= last, "{now} after {last}");
                last = now;
                assert!(runtime.ledger().lanes[0].difference == 0);
            }
            n
        });
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let runtime = &runtime;
                scope.spawn(move || {
                    for n in thread * EACH..(thread + 1) * EACH {
                        let bytes: &[u8] = if n % 2 == 0 { b"tick" } else { b"-tock" };
                        runtime.process_event(numbered(n, bytes)).unwrap();
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        over.store(true, Ordering::Release);
        changes.join().unwrap()
    });
    assert!(changes > 10, "{changes}");
    trigger.begin();
    run.await.unwrap().unwrap();
    let ledger = runtime.ledger();
    assert!(ledger.is_exact(), "{ledger:?}");
    let made = THREADS * EACH;
    let (out, routed) = (ledger.events.sampled_out.envelopes, ledger.events.routed.envelopes);
    assert_eq!((ledger.events.produced.envelopes, out + routed), (made, made));
    assert!(out > 0 && routed > 0, "{out} {routed}");
    assert_eq!(ledger.lanes[0].delivered.envelopes, routed);
    assert_eq!(captured.events().len() as u64, routed);
    assert_eq!(seen(&runtime), i64::try_from(made).unwrap());
    each_carries_what_decided(&captured.events(), &rates);
}

/// Threshold and weight are those of one rate, and the trace is above it.
fn each_carries_what_decided(events: &[Arc<Event>], rates: &[f64]) {
    let mut by_rate: BTreeMap<u64, f64> = BTreeMap::new();
    for rate in rates.iter().flat_map(|rate| [*rate, 1.0 - rate]).chain([1.0]).filter(|r| *r > 0.0)
    {
        let all = (1_u64 << 56) as f64;
        by_rate.insert(((1.0 - rate) * all) as u64, 1.0 / rate);
    }
    for event in events {
        assert_eq!(by_rate.get(&event.sampling_threshold), Some(&event.weight));
        assert!(event.trace_id.randomness() >= event.sampling_threshold);
    }
}

#[tokio::test]
async fn what_went_over_the_cap_is_told_with_the_observer_s_own_when_labels_go() {
    let labelled = |labels: &[&str]| {
        let mut config = Config::for_observer("clock");
        config.metrics.allowed_labels = labels.iter().map(|label| (*label).to_owned()).collect();
        config.metrics.max_series = 1;
        config
    };
    let runtime = ObserverRuntime::builder(|| Clock)
        .config(labelled(&["observer", "subtype"]))
        .folding_disabled()
        .build()
        .unwrap();
    let (trigger, shutdown) = vahti_runtime::shutdown::channel();
    let run = tokio::spawn(Arc::clone(&runtime).run(shutdown));
    runtime.started().await;
    let mut records = vec![record(b"tick"); 5];
    records.push(record(b"-tock"));
    runtime.process_batch(&records).unwrap();
    for labels in [&["observer"][..], &["subtype", "observer"], &["observer", "outcome"], &[]] {
        runtime.reconfigure(labelled(labels)).unwrap();
        let samples = runtime.metrics();
        let series: BTreeMap<_, _> =
            samples.iter().map(|s| ((&s.name, &s.labels), s.value)).collect();
        assert_eq!(series.len(), samples.len(), "{labels:?}: {samples:?}");
        assert_eq!(seen(&runtime), 6, "{labels:?}");
    }
    trigger.begin();
    run.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_changes_is_named_and_another_name_stays_a_wish() {
    let runtime = ObserverRuntime::builder(|| Clock).build().unwrap();
    assert_eq!(runtime.reconfigure(Config::for_observer("clock")), Ok(vec![]));
    let mut other = Config::for_observer("sundial");
    other.health.hang_timeout = "1m".parse().unwrap();
    let told = runtime.reconfigure(other).unwrap();
    let lines: Vec<_> = told.iter().map(|change| (change.to_string(), change.applied)).collect();
    let expected = [
        ("name: \"clock\" → \"sundial\"".to_owned(), false),
        ("health.hang_timeout: \"10s\" → \"1m\"".to_owned(), true),
    ];
    assert_eq!(lines, expected);
    assert_eq!((runtime.name(), &*runtime.config().name), ("clock", "clock"));
}

/// Takes nothing while it is held.
struct Held<E> {
    is_held: Arc<AtomicBool>,
    inner: E,
}

impl<E: EventEmitter> EventEmitter for Held<E> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn emit<'a>(&'a mut self, batch: &'a [Arc<Event>]) -> Emission<'a, EmitOutcome> {
        while self.is_held.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.inner.emit(batch)
    }
}

#[tokio::test]
async fn a_lane_that_becomes_smaller_gives_nothing_up_by_itself() {
    let (capture, captured) = CapturingEmitter::new("capture");
    let is_held = Arc::new(AtomicBool::new(true));
    let theirs = Arc::clone(&is_held);
    let make = move || Held { is_held: Arc::clone(&theirs), inner: capture() };
    let runtime = ObserverRuntime::builder(|| Clock).emitter(make).folding_disabled();
    let runtime = runtime.build().unwrap();
    let (trigger, shutdown) = vahti_runtime::shutdown::channel();
    let run = tokio::spawn(Arc::clone(&runtime).run(shutdown));
    runtime.started().await;
    let records: Vec<_> = (0..1_000).map(|_| record(b"tick")).collect();
    runtime.process_batch(&records).unwrap();
    let mut smaller = (*runtime.config()).clone();
    smaller.backpressure.queue_size = 1;
    runtime.reconfigure(smaller).unwrap();
    let fill = &runtime.lane_fills()[0];
    assert!(fill.max_items == 1 && fill.items > 1, "{fill:?}");
    is_held.store(false, Ordering::Release);
    trigger.begin();
    run.await.unwrap().unwrap();
    let ledger = runtime.ledger();
    assert!(ledger.is_exact(), "{ledger:?}");
    assert_eq!(ledger.lanes[0].delivered.envelopes, 1_000);
    assert_eq!(captured.events().len(), 1_000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_comes_between_changes_is_counted_once_and_carries_what_decided(
        stretches in prop::collection::vec((0_u64..60, 1_usize..200), 1..12),
    ) {
        let rates = [1.0, 0.5, 0.125, 0.75];
        let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        executor.block_on(async {
            let (emitter, captured) = CapturingEmitter::new("capture");
            let runtime = ObserverRuntime::builder(|| Clock).emitter(emitter).folding_disabled();
            let runtime = runtime.build().unwrap();
            let (trigger, shutdown) = vahti_runtime::shutdown::channel();
            let run = tokio::spawn(Arc::clone(&runtime).run(shutdown));
            runtime.started().await;
            let mut made = 0_u64;
            for (n, len) in &stretches {
                runtime.reconfigure(config(*n, &rates)).unwrap();
                let records: Vec<_> = (0..*len)
                    .map(|i| {
                        let bytes = if i % 3 == 0 { b"-tock" } else { b"tick-" };
                        numbered(made + i as u64, bytes)
                    })
                    .collect();
                runtime.process_batch(&records).unwrap();
                made += *len as u64;
                prop_assert_eq!(seen(&runtime), made as i64);
            }
            trigger.begin();
            run.await.unwrap().unwrap();
            let ledger = runtime.ledger();
            prop_assert!(ledger.is_exact());
            prop_assert_eq!(ledger.events.produced.envelopes, made);
            let mut ids = HashMap::new();
            for event in captured.events() {
                *ids.entry(event.id).or_insert(0) += 1;
            }
            prop_assert!(ids.values().all(|times| *times == 1));
            each_carries_what_decided(&captured.events(), &rates);
            Ok(())
        })?;
    }
}
