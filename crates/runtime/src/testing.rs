//! For tests of observers: a source that plays what it is given, and an
//! emitter that keeps what it gets.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::emitter::{Emission, EmitOutcome, EventEmitter};
use crate::event::Event;
use crate::processor::{LifecycleError, RawRecord, RecordKind};
use crate::source::{
    Interrupt, ReadOutcome, RecordBatch, Source, SourceCounts, SourceError, SourceLedger,
};

/// A record of these bytes, at the first moment of the boot clock.
#[must_use]
pub fn record(bytes: &[u8]) -> RawRecord<'_> {
    RawRecord {
        kind: RecordKind::Kernel,
        boot_ns: 1,
        wall_ns: 1_700_000_000_000_000_001,
        cpu: 0,
        seq: 0,
        bytes,
    }
}

#[derive(Debug, Default)]
struct Feed {
    records: VecDeque<(u64, Vec<u8>)>,
    fed: u64,
    read: u64,
    lost: u64,
    degraded: Vec<String>,
    interrupted: bool,
    ended: bool,
}

#[derive(Debug, Default)]
struct SharedFeed {
    feed: Mutex<Feed>,
    changed: Condvar,
}

impl SharedFeed {
    fn lock(&self) -> std::sync::MutexGuard<'_, Feed> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Plays the records that its [`FakeFeed`] is given.
#[derive(Debug)]
pub struct FakeSource {
    shared: Arc<SharedFeed>,
}

/// Gives a [`FakeSource`] its records. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FakeFeed {
    shared: Arc<SharedFeed>,
}

impl FakeSource {
    /// A source without records yet, and what feeds it.
    #[must_use]
    pub fn new() -> (FakeSource, FakeFeed) {
        let shared = Arc::new(SharedFeed::default());
        (FakeSource { shared: Arc::clone(&shared) }, FakeFeed { shared })
    }
}

impl FakeFeed {
    /// Adds a record.
    pub fn push(&self, bytes: &[u8]) {
        let mut feed = self.shared.lock();
        feed.fed += 1;
        let seq = feed.fed;
        feed.records.push_back((seq, bytes.to_vec()));
        self.shared.changed.notify_all();
    }

    /// No more records will come: the source ends when all were read.
    pub fn end(&self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
    }

    /// As many records more were lost before they could be written.
    pub fn lose(&self, records: u64) {
        self.shared.lock().lost += records;
    }

    /// What of the source does not work, from now on.
    pub fn degrade(&self, reasons: &[&str]) {
        self.shared.lock().degraded = reasons.iter().map(|&reason| reason.to_owned()).collect();
    }

    /// How many were not read yet.
    #[must_use]
    pub fn unread(&self) -> usize {
        self.shared.lock().records.len()
    }
}

impl Source for FakeSource {
    fn name(&self) -> &str {
        "fake"
    }

    fn start(&mut self) -> Result<(), LifecycleError> {
        Ok(())
    }

    fn read(
        &mut self,
        batch: &mut RecordBatch,
        timeout: Option<Duration>,
    ) -> Result<ReadOutcome, SourceError> {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        let mut feed = self.shared.lock();
        loop {
            while let Some((seq, bytes)) = feed.records.pop_front() {
                let stamped = RawRecord { boot_ns: seq, seq, ..record(&bytes) };
                if !batch.push(stamped) {
                    feed.records.push_front((seq, bytes));
                    break;
                }
                feed.read += 1;
            }
            let interrupted = std::mem::take(&mut feed.interrupted);
            if !batch.is_empty() {
                return Ok(ReadOutcome::Read);
            }
            if feed.ended {
                return Ok(ReadOutcome::Ended);
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if interrupted || left == Some(Duration::ZERO) {
                return Ok(ReadOutcome::Idle);
            }
            let changed = &self.shared.changed;
            feed = changed
                .wait_timeout(feed, left.unwrap_or(Duration::from_secs(3_600)))
                .map_or_else(|poisoned| poisoned.into_inner().0, |(feed, _)| feed);
        }
    }

    fn stop(&mut self) {
        self.shared.lock().ended = true;
    }

    fn interrupter(&self) -> Arc<dyn Interrupt> {
        Arc::new(FakeFeed { shared: Arc::clone(&self.shared) })
    }

    fn ledger(&self) -> Option<Arc<dyn SourceLedger>> {
        Some(Arc::new(FakeFeed { shared: Arc::clone(&self.shared) }))
    }
}

impl Interrupt for FakeFeed {
    fn interrupt(&self) {
        self.shared.lock().interrupted = true;
        self.shared.changed.notify_all();
    }
}

impl SourceLedger for FakeFeed {
    fn counts(&self) -> SourceCounts {
        let feed = self.shared.lock();
        SourceCounts {
            attempted: feed.fed + feed.lost,
            submitted: feed.fed,
            lost: feed.lost,
            in_ring: feed.fed - feed.read,
            ..SourceCounts::default()
        }
    }

    fn degraded(&self) -> Vec<String> {
        self.shared.lock().degraded.clone()
    }
}

/// What a [`CapturingEmitter`] got.
#[derive(Debug, Clone, Default)]
pub struct Captured {
    events: Arc<Mutex<Vec<Arc<Event>>>>,
}

impl Captured {
    /// All events so far, in order.
    #[must_use]
    pub fn events(&self) -> Vec<Arc<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Σ count of all events so far.
    #[must_use]
    pub fn occurrences(&self) -> u64 {
        self.events().iter().map(|event| event.count).sum()
    }
}

/// Keeps the events that it gets.
#[derive(Debug)]
pub struct CapturingEmitter {
    name: String,
    captured: Captured,
}

impl CapturingEmitter {
    /// What makes the emitter, for `ObserverRuntimeBuilder::emitter`, and what
    /// it will have got.
    pub fn new(name: &str) -> (impl Fn() -> CapturingEmitter + Send + 'static, Captured) {
        let captured = Captured::default();
        let (name, kept) = (name.to_owned(), captured.clone());
        let make = move || CapturingEmitter { name: name.clone(), captured: kept.clone() };
        (make, captured)
    }
}

impl EventEmitter for CapturingEmitter {
    fn name(&self) -> &str {
        &self.name
    }

    fn emit<'a>(&'a mut self, batch: &'a [Arc<Event>]) -> Emission<'a, EmitOutcome> {
        let mut events = self.captured.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.extend(batch.iter().cloned());
        Box::pin(std::future::ready(EmitOutcome::Delivered))
    }
}

/// Says that a test was not run, and why, past the harness, which keeps what a
/// test that passes prints.
///
/// ```
/// vahti_runtime::testing::not_run("needs the rights to load eBPF programs");
/// ```
pub fn not_run(why: impl std::fmt::Display) {
    use std::io::Write as _;
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("not run: {test}: {why}\n");
    // Nobody to tell where standard error is closed.
    if std::io::stderr().write_all(line.as_bytes()).is_err() {}
}
