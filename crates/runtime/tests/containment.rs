//! What misbehaves is contained: the other observers and emitters lose nothing.
#![cfg(not(shuttle))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "stage/misbehaving.rs"]
mod misbehaving;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use misbehaving::{Gate, Handles, Mood, Moody, assert_exact, until};
use vahti_runtime::config::{Config, FailurePolicy};
use vahti_runtime::delivery::{EmitterConfig, EmitterHandle};
use vahti_runtime::ledger::DropReason;
use vahti_runtime::observer::{ObserverRuntime, RunError};
use vahti_runtime::shutdown::channel;
use vahti_runtime::supervisor::{Report, Supervisor};
use vahti_runtime::testing::{CapturingEmitter, FakeFeed, FakeSource};
use vahti_runtime::units::HumanDuration;

fn config(name: &str, policy: FailurePolicy) -> Config {
    let mut config = Config::for_observer(name);
    config.failure.policy = policy;
    config.failure.retry.initial_delay = HumanDuration(Duration::from_millis(1));
    config.failure.retry.max_delay = HumanDuration(Duration::from_millis(5));
    config.health.hang_timeout = HumanDuration(Duration::from_millis(100));
    config
}

/// A healthy observer and one that is fed `poison` among 1,000 records, on
/// shared emitters.
struct Pair {
    good: Arc<ObserverRuntime>,
    bad: Arc<ObserverRuntime>,
    good_feed: FakeFeed,
    bad_feed: FakeFeed,
    handles: Handles,
    captured: vahti_runtime::testing::Captured,
    emitters: Vec<EmitterHandle>,
}

fn pair(policy: FailurePolicy) -> Pair {
    let (make, captured) = CapturingEmitter::new("capture");
    let emitter = EmitterHandle::start(move || Box::new(make()), EmitterConfig::default()).unwrap();
    let handles = Handles::default();
    let (good_source, good_feed) = FakeSource::new();
    let (bad_source, bad_feed) = FakeSource::new();
    let good = ObserverRuntime::builder(Handles::default().factory("good"))
        .config(config("good", FailurePolicy::Isolate))
        .source(good_source)
        .shared_emitter(&emitter)
        .build()
        .unwrap();
    let bad = ObserverRuntime::builder(handles.factory("bad"))
        .config(config("bad", policy))
        .source(bad_source)
        .shared_emitter(&emitter)
        .drain_deadline(Duration::from_millis(500))
        .build()
        .unwrap();
    Pair { good, bad, good_feed, bad_feed, handles, captured, emitters: vec![emitter] }
}

impl Pair {
    fn feed(&self, poison: &[u8]) {
        for n in 0..1_000 {
            self.good_feed.push(b"normal");
            self.bad_feed.push(if n == 500 { poison } else { b"normal" });
        }
        self.good_feed.end();
        self.bad_feed.end();
    }

    async fn run(&self) -> Report {
        let (_trigger, shutdown) = channel();
        Supervisor::new(self.emitters.clone(), Duration::from_secs(5))
            .observer(Arc::clone(&self.good))
            .observer(Arc::clone(&self.bad))
            .run(shutdown)
            .await
    }

    fn arrived(&self, observer: &str) -> usize {
        self.captured.events().iter().filter(|e| &*e.origin.source == observer).count()
    }

    fn failed(&self, reason: &str) -> u64 {
        let records = self.bad.ledger().records;
        records.failed.iter().filter(|f| f.reason == reason).map(|f| f.records).sum()
    }
}

#[tokio::test]
async fn a_processor_that_panics_takes_down_itself_and_nobody_else_when_isolated() {
    let pair = pair(FailurePolicy::Isolate);
    pair.feed(b"panic");
    let report = pair.run().await;
    assert!(report.is_success(), "{report:?}");
    assert!(matches!(&report.failed[..], [RunError::Failed { observer, .. }] if observer == "bad"));
    assert_eq!(pair.arrived("good"), 1_000);
    assert_eq!(pair.failed("panic"), 1);
    assert_eq!(pair.arrived("bad"), 500, "what came before the panic was delivered");
    assert!(!pair.bad.is_healthy() && pair.bad.health().reason.contains("panics on purpose"));
    assert_eq!(pair.handles.torn_down.load(Ordering::SeqCst), 1);
    assert_exact(&pair.good);
    assert_exact(&pair.bad);
}

#[tokio::test]
async fn a_processor_that_panics_or_gives_up_is_replaced_when_restarted() {
    for (poison, reason) in [(b"panic", "panic"), (b"fatal", "fatal")] {
        let pair = pair(FailurePolicy::Restart);
        pair.feed(poison);
        let report = pair.run().await;
        assert_eq!(report, Report::default());
        assert_eq!(pair.arrived("good"), 1_000);
        assert_eq!(pair.arrived("bad"), 999, "all but the record that it failed at");
        assert_eq!(pair.failed(reason), 1);
        // One for its name, one at the start, one after the failure.
        assert_eq!(pair.handles.made.load(Ordering::SeqCst), 3);
        assert_eq!(pair.handles.torn_down.load(Ordering::SeqCst), 2);
        assert_exact(&pair.good);
        assert_exact(&pair.bad);
    }
}

#[tokio::test]
async fn a_processor_that_panics_ends_the_program_when_it_is_to_fail_fast() {
    let pair = pair(FailurePolicy::FailFast);
    // The good one would run on for ever.
    for _ in 0..1_000 {
        pair.good_feed.push(b"normal");
    }
    pair.bad_feed.push(b"panic");
    let report = pair.run().await;
    assert!(report.failed_fast && !report.is_success());
    assert_eq!(pair.arrived("good"), 1_000, "it drained");
    assert_exact(&pair.good);
    assert_exact(&pair.bad);
}

#[tokio::test]
async fn a_processor_that_hangs_loses_the_one_record_and_its_thread() {
    for policy in [FailurePolicy::Isolate, FailurePolicy::Restart, FailurePolicy::FailFast] {
        let pair = pair(policy);
        pair.feed(b"hang");
        let report = pair.run().await;
        assert_eq!(pair.failed("hang"), 1, "{policy:?}");
        assert_eq!(pair.arrived("good"), 1_000, "{policy:?}");
        assert_exact(&pair.good);
        assert_exact(&pair.bad);
        let before = pair.bad.ledger();
        let arrived = pair.arrived("bad") as u64;
        assert_eq!(arrived, before.records.processed, "{policy:?}");
        match policy {
            FailurePolicy::Restart => {
                assert_eq!(report, Report::default());
                assert_eq!(arrived, 999);
            }
            FailurePolicy::Isolate | FailurePolicy::FailFast => {
                assert_eq!(report.failed.len(), 1);
                assert_eq!(report.failed_fast, policy == FailurePolicy::FailFast);
                // Whole batches before the one that it hangs in; nobody is left
                // to process that one again.
                let left = before.records.received - arrived - 1;
                assert_eq!(pair.failed("down"), left, "{policy:?}");
                assert!((1..=500).contains(&arrived), "{policy:?}: {arrived}");
            }
        }
        // The thread that was left behind wakes up: nothing changes any more.
        pair.handles.hang.open();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(pair.bad.ledger(), before);
    }
}

#[tokio::test]
async fn an_observer_that_fails_again_and_again_is_degraded_and_ends_at_shutdown() {
    let pair = pair(FailurePolicy::Restart);
    for _ in 0..100 {
        pair.bad_feed.push(b"panic");
    }
    let (trigger, shutdown) = channel();
    let run = tokio::spawn(Arc::clone(&pair.bad).run(shutdown));
    until(|| pair.bad.health().reason.contains("failed too often")).await;
    let attempts = u64::from(pair.bad.config().failure.retry.max_attempts);
    assert_eq!(pair.failed("panic"), attempts + 1, "the first failure and each attempt's");
    trigger.begin();
    assert_eq!(run.await.unwrap(), Ok(()));
    assert_exact(&pair.bad);
}

struct Stage {
    observer: Arc<ObserverRuntime>,
    feed: FakeFeed,
    captured: vahti_runtime::testing::Captured,
    arrived: Arc<AtomicU64>,
    closed: Arc<AtomicBool>,
}

/// One observer, a good emitter and one with these moods.
fn stage(critical: bool, moods: &[Mood], stalled: Option<Arc<Gate>>) -> Stage {
    let (source, feed) = FakeSource::new();
    let (capture, captured) = CapturingEmitter::new("good");
    let arrived = Arc::new(AtomicU64::new(0));
    let closed = Arc::new(AtomicBool::new(false));
    let (count, close) = (Arc::clone(&arrived), Arc::clone(&closed));
    // A stalled one never drains; the others take some delays between tries.
    let deadline = Duration::from_millis(if stalled.is_some() { 400 } else { 20_000 });
    let moods = Arc::new(std::sync::Mutex::new(moods.iter().copied().collect()));
    let make = move || Moody {
        name: "moody".into(),
        critical,
        moods: Arc::clone(&moods),
        stalled: stalled.clone(),
        arrived: Arc::clone(&count),
        closed: Arc::clone(&close),
    };
    let observer = ObserverRuntime::builder(Handles::default().factory("test"))
        .config(config("test", FailurePolicy::Isolate))
        .source(source)
        .emitter(capture)
        .emitter(make)
        .drain_deadline(deadline)
        .build()
        .unwrap();
    Stage { observer, feed, captured, arrived, closed }
}

impl Stage {
    async fn run(&self, records: usize) {
        for n in 0..records {
            self.feed.push(if n % 10 == 0 { b"critical" } else { b"normal" });
        }
        self.feed.end();
        let (_trigger, shutdown) = channel();
        Arc::clone(&self.observer).run(shutdown).await.unwrap();
        assert_eq!(self.captured.events().len(), records, "the other emitter loses nothing");
        assert_exact(&self.observer);
    }

    fn line(&self) -> vahti_runtime::ledger::LaneLine {
        self.observer.ledger().lanes.remove(1)
    }
}

#[tokio::test]
async fn a_critical_emitter_that_fails_is_tried_again() {
    let moods = [Mood::Retry, Mood::Panic, Mood::Half, Mood::Deliver, Mood::TooShort];
    let stage = stage(true, &moods, None);
    stage.run(500).await;
    assert_eq!(stage.line().delivered.occurrences, 500, "{:#?}", stage.line());
    assert_eq!(stage.arrived.load(Ordering::SeqCst), 500, "each of them once");
    assert!(stage.closed.load(Ordering::SeqCst));
}

#[tokio::test]
async fn an_emitter_that_is_not_critical_tries_once() {
    for mood in [Mood::Retry, Mood::Panic] {
        let stage = stage(false, &[mood], None);
        stage.run(10).await;
        let line = stage.line();
        assert!(line.dropped_for(DropReason::TriedOnce).occurrences >= 1, "{line:#?}");
        assert_eq!(line.delivered.occurrences, stage.arrived.load(Ordering::SeqCst));
    }
}

#[tokio::test]
async fn a_critical_emitter_gives_up_after_its_retries() {
    let stage = stage(true, &[Mood::Retry; 4], None);
    stage.run(64).await;
    let line = stage.line();
    assert!(line.dropped_for(DropReason::RetriesExhausted).occurrences >= 1, "{line:#?}");
    assert_eq!(line.delivered.occurrences, stage.arrived.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_critical_emitter_that_was_asked_for_patience_has_none_before_the_end() {
    let stage = stage(true, &[Mood::Patience], None);
    stage.run(300).await;
    let line = stage.line();
    assert_eq!(line.delivered.occurrences, 300, "{line:#?}");
    assert_eq!(line.delivered.occurrences, stage.arrived.load(Ordering::SeqCst));
}

#[tokio::test]
async fn what_is_rejected_is_counted_and_not_tried_again() {
    let stage = stage(true, &[Mood::Reject, Mood::Unidentified], None);
    stage.run(300).await;
    let line = stage.line();
    assert_eq!(line.delivered.occurrences, stage.arrived.load(Ordering::SeqCst));
    assert!(line.rejected.occurrences >= 2);
}

#[tokio::test]
async fn an_emitter_that_stalls_is_left_behind_at_the_deadline_and_counted() {
    let gate = Arc::new(Gate::default());
    let stage = stage(true, &[], Some(Arc::clone(&gate)));
    stage.run(1_000).await;
    let line = stage.line();
    assert_eq!(line.delivered.occurrences, 0);
    let in_flight = line.dropped_for(DropReason::Unacknowledged).occurrences;
    let waiting = line.dropped_for(DropReason::Deadline).occurrences;
    assert_eq!(in_flight + waiting, 1_000, "{line:#?}");
    gate.open();
    until(|| stage.closed.load(Ordering::SeqCst)).await;
    assert_eq!(stage.line(), line, "its late answer is not counted a second time");
}

#[tokio::test]
async fn running_twice_and_processing_outside_of_a_run_are_errors() {
    let (source, feed) = FakeSource::new();
    feed.end();
    let observer = ObserverRuntime::builder(Handles::default().factory("once"))
        .source(source)
        .build()
        .unwrap();
    let record = vahti_runtime::testing::record(b"x");
    assert!(observer.process_event(record).unwrap_err().to_string().contains("not running"));
    let (_trigger, shutdown) = channel();
    Arc::clone(&observer).run(shutdown.clone()).await.unwrap();
    assert!(observer.process_event(record).is_err());
    let again = Arc::clone(&observer).run(shutdown).await;
    assert_eq!(again, Err(RunError::AlreadyRan { observer: "once".into() }));
}

#[tokio::test]
async fn a_failure_through_process_event_follows_the_policy_too() {
    let observer = ObserverRuntime::builder(Handles::default().factory("direct"))
        .config(config("direct", FailurePolicy::Restart))
        .build()
        .unwrap();
    let (trigger, shutdown) = channel();
    let run = tokio::spawn(Arc::clone(&observer).run(shutdown));
    observer.started().await;
    let record = |bytes| vahti_runtime::testing::record(bytes);
    let batch = [record(b"normal"), record(b"panic"), record(b"normal")];
    assert!(observer.process_batch(&batch).is_err());
    until(|| observer.process_event(record(b"normal")).is_ok()).await;
    trigger.begin();
    run.await.unwrap().unwrap();
    let records = observer.ledger().records;
    assert_eq!((records.received, records.processed), (4, 2));
    assert_exact(&observer);
}

/// Two observers on two emitters: a good one, and one that misbehaves.
struct Shared {
    observers: [Arc<ObserverRuntime>; 2],
    emitters: Vec<EmitterHandle>,
    captured: vahti_runtime::testing::Captured,
    arrived: Arc<AtomicU64>,
    drain: Duration,
}

fn shared(policy: FailurePolicy, moods: &[Mood], stalled: Option<Arc<Gate>>) -> Shared {
    let (capture, captured) = CapturingEmitter::new("good");
    let arrived = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&arrived);
    // A stalled one never drains; the others take some delays between tries.
    let drain = Duration::from_millis(if stalled.is_some() { 400 } else { 20_000 });
    let moods = Arc::new(std::sync::Mutex::new(moods.iter().copied().collect()));
    let make = move || -> Box<dyn vahti_runtime::emitter::EventEmitter> {
        Box::new(Moody {
            name: "moody".into(),
            critical: true,
            moods: Arc::clone(&moods),
            stalled: stalled.clone(),
            arrived: Arc::clone(&count),
            closed: Arc::new(AtomicBool::new(false)),
        })
    };
    let good = EmitterHandle::start(move || Box::new(capture()), EmitterConfig::default());
    let moody = EmitterHandle::start(make, EmitterConfig { max_retries: 2, ..Default::default() });
    let emitters = vec![moody.unwrap(), good.unwrap()];
    let observers = ["first", "second"].map(|name| {
        let (source, feed) = FakeSource::new();
        for n in 0..500 {
            feed.push(if n % 10 == 0 { b"critical" } else { b"normal" });
        }
        feed.end();
        ObserverRuntime::builder(Handles::default().factory(name))
            .config(config(name, policy))
            .source(source)
            .shared_emitter(&emitters[0])
            .shared_emitter(&emitters[1])
            .drain_deadline(drain)
            .build()
            .unwrap()
    });
    Shared { observers, emitters, captured, arrived, drain }
}

impl Shared {
    async fn run(&self) -> Report {
        let (_trigger, shutdown) = channel();
        let [first, second] = self.observers.clone();
        Supervisor::new(self.emitters.clone(), self.drain)
            .observer(first)
            .observer(second)
            .run(shutdown)
            .await
    }

    /// The good emitter has all of both observers; the lines to the other one.
    fn assert_others_lost_nothing(&self) -> [vahti_runtime::ledger::LaneLine; 2] {
        self.observers.each_ref().map(|observer| {
            let all = self.captured.events();
            let of_it = all.iter().filter(|e| &*e.origin.source == observer.name()).count();
            assert_eq!(of_it, 500, "{}", observer.name());
            assert_exact(observer);
            let mut lanes = observer.ledger().lanes;
            assert_eq!(lanes[1].delivered.occurrences, 500);
            lanes.remove(0)
        })
    }
}

const POLICIES: [FailurePolicy; 3] =
    [FailurePolicy::Isolate, FailurePolicy::Restart, FailurePolicy::FailFast];

#[tokio::test]
async fn an_emitter_that_panics_or_fails_costs_no_other_emitter_and_no_observer_anything() {
    for policy in POLICIES {
        for mood in [Mood::Panic, Mood::Retry, Mood::Half, Mood::Reject] {
            let shared = shared(policy, &[mood; 2], None);
            let report = shared.run().await;
            assert_eq!(report, Report::default(), "{policy:?} {mood:?}");
            let lines = shared.assert_others_lost_nothing();
            // What it did not reject came to it in a later try.
            let rejected: u64 = lines.iter().map(|line| line.rejected.occurrences).sum();
            assert_eq!(rejected > 0, mood == Mood::Reject, "{policy:?} {mood:?}");
            assert_eq!(shared.arrived.load(Ordering::SeqCst), 1_000 - rejected);
        }
    }
}

#[tokio::test]
async fn an_emitter_that_stalls_costs_no_other_emitter_and_no_observer_anything() {
    for policy in POLICIES {
        let gate = Arc::new(Gate::default());
        let shared = shared(policy, &[], Some(Arc::clone(&gate)));
        let report = shared.run().await;
        let stuck = Report { stuck_emitters: vec!["moody".into()], ..Report::default() };
        assert_eq!(report, stuck, "{policy:?}");
        for line in shared.assert_others_lost_nothing() {
            assert_eq!(line.dropped_total().occurrences, 500, "{policy:?}: {line:#?}");
        }
        gate.open();
    }
}

/// Its setup fails, or never ends.
struct Unready {
    hangs: bool,
    torn_down: Arc<AtomicU64>,
}

impl vahti_runtime::processor::EventProcessor for Unready {
    fn name(&self) -> &str {
        "unready"
    }

    fn process(
        &self,
        _: vahti_runtime::processor::RawRecord<'_>,
    ) -> Result<vahti_runtime::processor::Output, vahti_runtime::processor::ProcessError> {
        Ok(vahti_runtime::processor::Output::Nothing)
    }

    fn setup<'a>(&'a self, _: &'a Config) -> vahti_runtime::processor::Lifecycle<'a> {
        if self.hangs {
            return Box::pin(std::future::pending());
        }
        let cause = std::io::Error::other("it was unplugged");
        let error = vahti_runtime::processor::LifecycleError::with_source("no such device", cause);
        Box::pin(std::future::ready(Err(error)))
    }

    fn teardown(&self) -> vahti_runtime::processor::Lifecycle<'_> {
        self.torn_down.fetch_add(1, Ordering::SeqCst);
        Box::pin(std::future::ready(Ok(())))
    }
}

/// And how often it was torn down.
fn unready(policy: FailurePolicy, hangs: bool) -> (Arc<ObserverRuntime>, Arc<AtomicU64>) {
    let torn_down = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&torn_down);
    let observer =
        ObserverRuntime::builder(move || Unready { hangs, torn_down: Arc::clone(&count) })
            .config(config("unready", policy))
            .drain_deadline(Duration::from_millis(200))
            .build()
            .unwrap();
    (observer, torn_down)
}

#[tokio::test]
async fn a_start_that_fails_follows_the_policy() {
    for (policy, ends_all) in [(FailurePolicy::FailFast, true), (FailurePolicy::Isolate, false)] {
        let (source, feed) = FakeSource::new();
        let other = ObserverRuntime::builder(Handles::default().factory("other"))
            .source(source)
            .build()
            .unwrap();
        if !ends_all {
            feed.end();
        }
        let (_trigger, shutdown) = channel();
        let (unready, torn_down) = unready(policy, false);
        let report = Supervisor::new(Vec::new(), Duration::from_secs(5))
            .observer(unready)
            .observer(other)
            .run(shutdown)
            .await;
        assert_eq!((report.failed_fast, report.failed.len()), (ends_all, 1), "{report:?}");
        let told = report.failed[0].to_string();
        assert!(told.contains("no such device: it was unplugged"), "{told}");
        assert_eq!(torn_down.load(Ordering::SeqCst), 1, "what it had set up till then");
    }
}

#[tokio::test]
async fn a_setup_that_never_ends_does_not_hold_up_the_shutdown() {
    let (trigger, shutdown) = channel();
    let (unready, torn_down) = unready(FailurePolicy::Restart, true);
    let run = tokio::spawn(unready.run(shutdown));
    trigger.begin();
    let ended = tokio::time::timeout(Duration::from_secs(20), run).await.unwrap().unwrap();
    assert!(ended.unwrap_err().to_string().contains("before the shutdown"));
    assert_eq!(torn_down.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn who_watches_nothing_does_not_keep_the_program_from_having_failed() {
    let pair = pair(FailurePolicy::Isolate);
    pair.feed(b"panic");
    let (_trigger, shutdown) = channel();
    let report = Supervisor::new(pair.emitters.clone(), Duration::from_secs(5))
        .observer(Arc::clone(&pair.bad))
        .beside(Arc::clone(&pair.good))
        .run(shutdown)
        .await;
    assert!(report.all_failed, "{report:?}");
    assert_eq!(pair.arrived("good"), 1_000);
}
