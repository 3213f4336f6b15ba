//! What waits behind a processor that hangs or failed: callers are let go, and
//! records are not forgotten.
#![cfg(not(shuttle))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "stage/misbehaving.rs"]
mod misbehaving;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use misbehaving::{Gate, assert_exact, until};
use vahti_runtime::config::{Config, FailurePolicy};
use vahti_runtime::event::{Event, Severity};
use vahti_runtime::observer::{ObserverRuntime, ProcessEventError};
use vahti_runtime::processor::{EventProcessor, Output, ProcessError, RawRecord};
use vahti_runtime::shutdown::channel;
use vahti_runtime::testing::{FakeSource, record};
use vahti_runtime::units::HumanDuration;

/// Blocks at the records that its turn names, then panics if it is told to.
struct Sticky {
    /// Which processor of its factory it is, from 0; one more is made for its
    /// name.
    turn: u64,
    stuck_at: fn(u64, &[u8]) -> bool,
    gate: Arc<Gate>,
    stuck: Arc<AtomicU64>,
    calls: Arc<AtomicU64>,
    panics: bool,
}

impl EventProcessor for Sticky {
    fn name(&self) -> &str {
        "sticky"
    }

    fn process(&self, record: RawRecord<'_>) -> Result<Output, ProcessError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if (self.stuck_at)(self.turn, record.bytes) {
            self.stuck.fetch_add(1, Ordering::SeqCst);
            self.gate.wait();
            assert!(!self.panics, "panics on purpose");
        }
        Ok(Event::new(&misbehaving::NORMAL, Severity::Info).into())
    }
}

#[derive(Default, Clone)]
struct Stuck {
    gate: Arc<Gate>,
    stuck: Arc<AtomicU64>,
    calls: Arc<AtomicU64>,
    made: Arc<AtomicU64>,
}

impl Stuck {
    fn factory(
        &self,
        panics: bool,
        stuck_at: fn(u64, &[u8]) -> bool,
    ) -> impl Fn() -> Sticky + Send + Sync + 'static {
        let this = self.clone();
        move || Sticky {
            // The first is made to ask for its name.
            turn: this.made.fetch_add(1, Ordering::SeqCst).saturating_sub(1),
            stuck_at,
            gate: Arc::clone(&this.gate),
            stuck: Arc::clone(&this.stuck),
            calls: Arc::clone(&this.calls),
            panics,
        }
    }
}

fn config() -> Config {
    let mut config = Config::for_observer("sticky");
    config.failure.policy = FailurePolicy::Restart;
    config.failure.retry.initial_delay = HumanDuration(Duration::from_millis(1));
    config.failure.retry.max_delay = HumanDuration(Duration::from_millis(1));
    config.health.hang_timeout = HumanDuration(Duration::from_millis(100));
    config
}

#[tokio::test]
async fn records_behind_two_hangs_in_a_row_are_not_forgotten() {
    let stuck = Stuck::default();
    // The second one hangs at a record that the first one had done already.
    let factory = stuck
        .factory(false, |turn, bytes| (turn == 0 && bytes == b"5") || (turn == 1 && bytes == b"2"));
    let (source, feed) = FakeSource::new();
    (0..10).for_each(|n: u8| feed.push(n.to_string().as_bytes()));
    feed.end();
    let observer =
        ObserverRuntime::builder(factory).config(config()).source(source).build().unwrap();
    let (_trigger, shutdown) = channel();
    Arc::clone(&observer).run(shutdown).await.unwrap();
    let records = observer.ledger().records;
    assert_eq!((records.processed, records.processing), (8, 0), "{records:?}");
    assert_exact(&observer);
    stuck.gate.open();
}

#[tokio::test]
async fn a_caller_that_waits_behind_a_processor_that_hangs_is_let_go() {
    let stuck = Stuck::default();
    let factory = stuck.factory(false, |_, bytes| bytes == b"hang");
    let (source, feed) = FakeSource::new();
    let observer =
        ObserverRuntime::builder(factory).config(config()).source(source).build().unwrap();
    let (trigger, shutdown) = channel();
    let run = tokio::spawn(Arc::clone(&observer).run(shutdown));
    observer.started().await;
    feed.push(b"hang");
    until(|| stuck.stuck.load(Ordering::SeqCst) == 1).await;
    let waits = Arc::clone(&observer);
    let caller = std::thread::spawn(move || waits.process_event(record(b"behind")));
    until(|| caller.is_finished()).await;
    assert!(matches!(caller.join().unwrap(), Err(ProcessEventError::Down { .. })));
    until(|| observer.process_event(record(b"after")).is_ok()).await;
    trigger.begin();
    run.await.unwrap().unwrap();
    assert_exact(&observer);
    stuck.gate.open();
}

#[tokio::test]
async fn a_processor_that_panicked_is_not_called_by_those_who_waited_for_it() {
    let stuck = Stuck::default();
    let factory = stuck.factory(true, |turn, bytes| turn == 0 && bytes == b"panic");
    // An hour, so that no other processor is made.
    let mut config = config();
    config.failure.retry.initial_delay = HumanDuration(Duration::from_secs(3_600));
    config.failure.retry.max_delay = HumanDuration(Duration::from_secs(3_600));
    let (source, feed) = FakeSource::new();
    let observer = ObserverRuntime::builder(factory).config(config).source(source).build().unwrap();
    let (trigger, shutdown) = channel();
    let run = tokio::spawn(Arc::clone(&observer).run(shutdown));
    observer.started().await;
    let call = |bytes: &'static [u8]| {
        let observer = Arc::clone(&observer);
        std::thread::spawn(move || observer.process_event(record(bytes)))
    };
    let first = call(b"panic");
    until(|| stuck.stuck.load(Ordering::SeqCst) == 1).await;
    let behind: Vec<_> = (0..8).map(|_| call(b"behind")).collect();
    feed.push(b"from the source");
    // Its read is what brings it to the gate.
    until(|| feed.unread() == 0).await;
    stuck.gate.open();
    assert!(matches!(first.join().unwrap(), Err(ProcessEventError::Panicked(_))));
    for caller in behind {
        assert!(matches!(caller.join().unwrap(), Err(ProcessEventError::Down { .. })));
    }
    trigger.begin();
    run.await.unwrap().unwrap();
    assert_eq!(stuck.calls.load(Ordering::SeqCst), 1, "state is never used again after a panic");
    let records = observer.ledger().records;
    assert_eq!(records.processing, 0, "{records:?}");
    assert_exact(&observer);
}

/// Hands in storms without a pause until it is told that nothing runs.
fn storm_on(observer: &Arc<ObserverRuntime>) -> std::thread::JoinHandle<()> {
    let observer = Arc::clone(observer);
    std::thread::spawn(move || while observer.process_batch(&[record(b"storm"); 16]).is_ok() {})
}

#[tokio::test]
async fn a_storm_that_is_handed_in_at_the_very_end_leaves_nothing_in_folding() {
    for _ in 0..200 {
        let factory = misbehaving::Handles::default().factory("storm");
        let observer = ObserverRuntime::builder(factory).concurrency(2).build().unwrap();
        let (trigger, shutdown) = channel();
        let run = tokio::spawn(Arc::clone(&observer).run(shutdown));
        observer.started().await;
        let callers = [storm_on(&observer), storm_on(&observer)];
        until(|| observer.ledger().events.produced.envelopes > 100).await;
        trigger.begin();
        run.await.unwrap().unwrap();
        callers.into_iter().for_each(|caller| caller.join().unwrap());
        assert_eq!(observer.ledger().events.folding.occurrences, 0);
        assert_exact(&observer);
    }
}
