//! Sources that fail, panic or hang: the policy decides, the ledger adds up,
//! and the others lose nothing.
#![cfg(not(shuttle))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "stage/misbehaving.rs"]
mod misbehaving;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use misbehaving::{Gate, Handles, assert_exact, until};
use vahti_runtime::config::{Config, FailurePolicy};
use vahti_runtime::observer::{ObserverRuntime, RunError};
use vahti_runtime::processor::LifecycleError;
use vahti_runtime::shutdown::channel;
use vahti_runtime::source::{
    Interrupt, ReadOutcome, RecordBatch, Source, SourceError, SourceLedger,
};
use vahti_runtime::supervisor::{Report, Supervisor};
use vahti_runtime::testing::{FakeFeed, FakeSource};
use vahti_runtime::units::HumanDuration;

const POLICIES: [FailurePolicy; 3] =
    [FailurePolicy::Isolate, FailurePolicy::Restart, FailurePolicy::FailFast];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Error,
    Panic,
    /// Does not return, whatever comes.
    Hang,
    /// Does not see that there are records, until it is interrupted.
    Deaf,
}

/// A source that works but for its second read; fails this often, then works.
struct Faulty {
    inner: FakeSource,
    fault: Fault,
    reads: u64,
    faults: u64,
    gate: Arc<Gate>,
    entered: Arc<AtomicU64>,
}

impl Source for Faulty {
    fn name(&self) -> &str {
        "faulty"
    }

    fn start(&mut self) -> Result<(), LifecycleError> {
        self.inner.start()
    }

    fn read(
        &mut self,
        batch: &mut RecordBatch,
        timeout: Option<Duration>,
    ) -> Result<ReadOutcome, SourceError> {
        self.reads += 1;
        if self.reads > 1 && self.faults > 0 {
            self.faults -= 1;
            self.entered.fetch_add(1, Ordering::SeqCst);
            match self.fault {
                Fault::Error => {
                    let what = "reading on purpose".to_owned();
                    return Err(SourceError { source_name: "faulty".into(), what, error: None });
                }
                Fault::Panic => panic!("the source panics on purpose"),
                Fault::Hang | Fault::Deaf => self.gate.wait(),
            }
        }
        self.inner.read(batch, timeout)
    }

    fn stop(&mut self) {
        self.inner.stop();
    }

    fn interrupter(&self) -> Arc<dyn Interrupt> {
        let gate = (self.fault == Fault::Deaf).then(|| Arc::clone(&self.gate));
        Arc::new(Wakes { gate, inner: self.inner.interrupter() })
    }

    fn ledger(&self) -> Option<Arc<dyn SourceLedger>> {
        self.inner.ledger()
    }
}

struct Wakes {
    gate: Option<Arc<Gate>>,
    inner: Arc<dyn Interrupt>,
}

impl Interrupt for Wakes {
    fn interrupt(&self) {
        if let Some(gate) = &self.gate {
            gate.open();
        }
        self.inner.interrupt();
    }
}

struct Pair {
    good: Arc<ObserverRuntime>,
    bad: Arc<ObserverRuntime>,
    good_feed: FakeFeed,
    bad_feed: FakeFeed,
    gate: Arc<Gate>,
    entered: Arc<AtomicU64>,
}

fn config(name: &str, policy: FailurePolicy) -> Config {
    let mut config = Config::for_observer(name);
    config.failure.policy = policy;
    config.failure.retry.initial_delay = HumanDuration(Duration::from_millis(1));
    config.failure.retry.max_delay = HumanDuration(Duration::from_millis(5));
    config.health.hang_timeout = HumanDuration(Duration::from_millis(100));
    config
}

fn pair(policy: FailurePolicy, fault: Fault, faults: u64) -> Pair {
    let (good_source, good_feed) = FakeSource::new();
    let (inner, bad_feed) = FakeSource::new();
    let (gate, entered) = (Arc::new(Gate::default()), Arc::new(AtomicU64::new(0)));
    let bad_source = Faulty {
        inner,
        fault,
        reads: 0,
        faults,
        gate: Arc::clone(&gate),
        entered: Arc::clone(&entered),
    };
    let build = |name, policy| {
        ObserverRuntime::builder(Handles::default().factory(name))
            .config(config(name, policy))
            .drain_deadline(Duration::from_millis(500))
    };
    let good = build("good", FailurePolicy::Isolate).source(good_source).build().unwrap();
    let bad = build("bad", policy).source(bad_source).build().unwrap();
    bad_feed.push(b"normal");
    Pair { good, bad, good_feed, bad_feed, gate, entered }
}

impl Pair {
    /// Feeds both once the fault was met; the good one ends by itself only if
    /// nobody ends it.
    async fn run(&self, until_ended: bool) -> Report {
        let (trigger, shutdown) = channel();
        let supervisor = Supervisor::new(Vec::new(), Duration::from_secs(5))
            .observer(Arc::clone(&self.good))
            .observer(Arc::clone(&self.bad));
        let run = tokio::spawn(supervisor.run(shutdown));
        until(|| self.entered.load(Ordering::SeqCst) > 0).await;
        for _ in 0..100 {
            self.good_feed.push(b"normal");
            self.bad_feed.push(b"normal");
        }
        // One that fails fast may end the good one before it has read them.
        let ends_all = self.bad.config().failure.policy == FailurePolicy::FailFast;
        until(|| self.good.ledger().records.processed == 100 || ends_all).await;
        if until_ended {
            self.good_feed.end();
            self.bad_feed.end();
        } else {
            until(|| !self.bad.is_healthy()).await;
            trigger.begin();
        }
        let report = run.await.unwrap();
        drop(trigger);
        assert_exact(&self.good);
        assert_exact(&self.bad);
        report
    }
}

fn is_failure_of_bad(report: &Report, told: &str) {
    let [error @ RunError::Failed { observer, .. }] = &report.failed[..] else {
        panic!("{report:?}");
    };
    assert_eq!(observer, "bad");
    assert!(error.to_string().contains(told), "{error}");
}

#[tokio::test]
async fn a_source_that_fails_once_follows_the_policy() {
    for policy in POLICIES {
        let pair = pair(policy, Fault::Error, 1);
        let report = pair.run(true).await;
        match policy {
            FailurePolicy::Restart => {
                assert_eq!(report, Report::default());
                assert_eq!(pair.bad.ledger().records.processed, 101, "it is read again");
            }
            _ => {
                is_failure_of_bad(&report, "reading on purpose");
                assert_eq!(report.failed_fast, policy == FailurePolicy::FailFast);
            }
        }
    }
}

#[tokio::test]
async fn a_source_that_always_fails_is_degraded_and_tried_rarely() {
    let pair = pair(FailurePolicy::Restart, Fault::Error, u64::MAX);
    let (trigger, shutdown) = channel();
    let run = tokio::spawn(Arc::clone(&pair.bad).run(shutdown));
    until(|| pair.bad.health().reason.contains("failed too often")).await;
    let attempts = u64::from(pair.bad.config().failure.retry.max_attempts);
    assert_eq!(pair.entered.load(Ordering::SeqCst), attempts + 1);
    trigger.begin();
    run.await.unwrap().unwrap();
    assert_exact(&pair.bad);
}

#[tokio::test]
async fn a_source_that_panicked_is_never_used_again() {
    for policy in POLICIES {
        let pair = pair(policy, Fault::Panic, 1);
        let report = pair.run(true).await;
        is_failure_of_bad(&report, "the source panics on purpose");
        assert_eq!(report.failed_fast, policy == FailurePolicy::FailFast);
        assert_eq!(pair.bad.ledger().records.processed, 1, "{policy:?}");
    }
}

#[tokio::test]
async fn a_source_that_hangs_while_records_wait_follows_the_policy() {
    for policy in POLICIES {
        let pair = pair(policy, Fault::Hang, 1);
        let report = pair.run(policy != FailurePolicy::Restart).await;
        match policy {
            // No other thread gets at it, so it is down until the end.
            FailurePolicy::Restart => assert_eq!(report, Report::default()),
            _ => {
                is_failure_of_bad(&report, "read does not return");
                assert_eq!(report.failed_fast, policy == FailurePolicy::FailFast);
            }
        }
        // The thread that was left behind comes back: what it still reads counts
        // as failed, and nothing is processed.
        pair.gate.open();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(pair.bad.ledger().records.processed, 1);
        assert_exact(&pair.bad);
    }
}

#[tokio::test]
async fn a_source_whose_read_returns_at_last_is_read_again_when_restarted() {
    let pair = pair(FailurePolicy::Restart, Fault::Hang, 1);
    let (trigger, shutdown) = channel();
    let run = tokio::spawn(Arc::clone(&pair.bad).run(shutdown));
    until(|| pair.entered.load(Ordering::SeqCst) == 1).await;
    pair.bad_feed.push(b"normal");
    until(|| pair.bad.health().reason.contains("read does not return")).await;
    pair.gate.open();
    until(|| pair.bad.is_healthy()).await;
    for _ in 0..100 {
        pair.bad_feed.push(b"normal");
    }
    until(|| pair.bad_feed.unread() == 0).await;
    trigger.begin();
    run.await.unwrap().unwrap();
    assert!(pair.bad.ledger().records.processed >= 100);
    assert_exact(&pair.bad);
}

#[tokio::test]
async fn a_source_that_missed_its_records_is_woken_and_has_not_failed() {
    let pair = pair(FailurePolicy::Isolate, Fault::Deaf, 1);
    let report = pair.run(true).await;
    assert_eq!(report, Report::default());
    assert_eq!(pair.bad.ledger().records.processed, 101);
}
