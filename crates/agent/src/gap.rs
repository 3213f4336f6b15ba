//! An unclean end of the agent before this one, told as an event.
//!
//! The time in which nobody watched is known from the store, at once or, where
//! its file can't be opened at the start, later; the event goes the way of every
//! other event, so that the ledger has it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vahti_runtime::clock::ClockPair;
use vahti_runtime::config::Config as ObserverConfig;
use vahti_runtime::delivery::EmitterHandle;
use vahti_runtime::error::describe;
use vahti_runtime::event::{AGENT_GAP, Event, EventData, Gap, Outcome, Severity};
use vahti_runtime::memory::CacheLimits;
use vahti_runtime::observer::ObserverRuntime;
use vahti_runtime::processor::{EventProcessor, Output, ProcessError, RawRecord, RecordKind};
use vahti_runtime::source::{Interrupt, ReadOutcome, RecordBatch, Source, SourceError};
use vahti_runtime::units::ByteSize;

use crate::config::Config;
use crate::output::Failed;

/// What the observer is called.
pub(crate) const NAME: &str = "agent";

/// What each of its lanes may hold: it tells one event.
pub(crate) const LANE_BYTES: u64 = 64 << 10;

/// What it remembers.
pub(crate) const CACHES: CacheLimits =
    CacheLimits { entities: 16, fold_keys: 16, fold_bytes: 16 << 10, metrics_bytes: 16 << 10 };

/// What tells of one gap, once it is known and the agent watches again.
#[derive(Clone)]
pub(crate) struct GapObserver {
    pub(crate) runtime: Arc<ObserverRuntime>,
    signal: Arc<Signal>,
}

#[derive(Default)]
struct Signal {
    known: Mutex<Known>,
    changed: Condvar,
}

#[derive(Debug, Default, Clone, Copy)]
struct Known {
    /// Since when nobody watched, nanoseconds since 1970; `Some(None)` if
    /// somebody did all the time. The store tells, as soon as it is open.
    from_ns: Option<Option<u64>>,
    /// When this agent began to watch, nanoseconds since 1970.
    to_ns: Option<u64>,
    stopped: bool,
}

impl Known {
    /// What there is to tell; `None` if that is not known yet, `Some(None)` if
    /// it is nothing.
    fn gap(self) -> Option<Option<(u64, u64)>> {
        match (self.from_ns, self.to_ns) {
            (Some(Some(from_ns)), Some(to_ns)) => Some(Some((from_ns, to_ns))),
            (Some(None), _) => Some(None),
            _ => None,
        }
    }
}

impl Signal {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known());
        self.changed.notify_all();
    }
}

impl GapObserver {
    /// An observer that tells of a gap, once it is known that there was one.
    ///
    /// # Errors
    /// It can't be built.
    pub(crate) fn new(config: &Config, emitters: &[EmitterHandle]) -> Result<Self, Failed> {
        let signal = Arc::new(Signal::default());
        let source = GapSource { signal: Arc::clone(&signal), told: false };
        let mut settings = ObserverConfig::for_observer(NAME);
        settings.backpressure.max_bytes = Some(ByteSize(LANE_BYTES));
        let mut builder = ObserverRuntime::builder(|| GapProcessor)
            .config(settings)
            .caches(CACHES)
            .source(source)
            .drain_deadline(config.limits.drain_deadline.0);
        if let Some(node) = &config.node_name {
            builder = builder.node(node);
        }
        for emitter in emitters {
            builder = builder.shared_emitter(emitter);
        }
        let built = builder.build().map_err(|error| Failed::failure(describe(&error)));
        Ok(GapObserver { runtime: built?, signal })
    }

    /// Nobody watched since `from_ns`; `None` if somebody did all the time.
    pub(crate) fn was_since(&self, from_ns: Option<u64>) {
        self.signal.change(|known| known.from_ns = Some(from_ns));
    }

    /// The agent watches again.
    pub(crate) fn is_over(&self) {
        let now = ClockPair::now().wall_ns;
        self.signal.change(|known| known.to_ns = Some(now));
    }

    /// Whether it is known if there was one.
    pub(crate) fn is_known(&self) -> bool {
        self.signal.known().from_ns.is_some()
    }

    /// Whether there was one, as far as is known.
    pub(crate) fn was_there(&self) -> bool {
        self.signal.known().from_ns.flatten().is_some()
    }
}

/// Has one record, once there is a gap to tell of.
struct GapSource {
    signal: Arc<Signal>,
    told: bool,
}

impl Source for GapSource {
    fn name(&self) -> &str {
        NAME
    }

    fn read(
        &mut self,
        batch: &mut RecordBatch,
        timeout: Option<Duration>,
    ) -> Result<ReadOutcome, SourceError> {
        let mut known = self.signal.known();
        if !self.told && !known.stopped && known.gap().is_none() {
            let wait = timeout.unwrap_or(Duration::from_secs(3_600));
            let waited = self.signal.changed.wait_timeout(known, wait);
            known = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if self.told || known.stopped {
            return Ok(ReadOutcome::Ended);
        }
        let (from_ns, to_ns) = match known.gap() {
            None => return Ok(ReadOutcome::Idle),
            Some(None) => return Ok(ReadOutcome::Ended),
            Some(Some(gap)) => gap,
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&from_ns.to_le_bytes());
        bytes[8..].copy_from_slice(&to_ns.to_le_bytes());
        let now = ClockPair::now();
        let (boot_ns, wall_ns) = (now.boot_ns, now.wall_ns);
        let kind = RecordKind::Fact;
        self.told = batch.push(RawRecord { kind, boot_ns, wall_ns, cpu: 0, seq: 0, bytes: &bytes });
        Ok(ReadOutcome::Read)
    }

    fn stop(&mut self) {
        self.signal.change(|known| known.stopped = true);
    }

    fn interrupter(&self) -> Arc<dyn Interrupt> {
        Arc::new(Interrupter(Arc::clone(&self.signal)))
    }
}

struct Interrupter(Arc<Signal>);

impl Interrupt for Interrupter {
    fn interrupt(&self) {
        // Under the lock, or a reader about to wait would miss it.
        let _guard = self.0.known();
        self.0.changed.notify_all();
    }
}

struct GapProcessor;

impl EventProcessor for GapProcessor {
    fn name(&self) -> &str {
        NAME
    }

    fn process(&self, record: RawRecord<'_>) -> Result<Output, ProcessError> {
        let malformed = ProcessError::Malformed { what: "gap", len: record.bytes.len() };
        let Some((from, to)) = record.bytes.split_at_checked(8) else { return Err(malformed) };
        let (Ok(from), Ok(to)) = (from.try_into(), to.try_into()) else { return Err(malformed) };
        let (from_ns, to_ns) = (u64::from_le_bytes(from), u64::from_le_bytes(to));
        Ok(Event {
            time_ns: from_ns,
            outcome: Outcome::Failure,
            data: EventData::Gap(Gap { from_ns, to_ns: to_ns.max(from_ns) }),
            ..Event::new(&AGENT_GAP, Severity::Error)
        }
        .into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_what_its_record_says_and_nothing_else_is_one() {
        let record = |bytes| RawRecord {
            kind: RecordKind::Fact,
            boot_ns: 0,
            wall_ns: 0,
            cpu: 0,
            seq: 0,
            bytes,
        };
        let mut bytes = [0; 16];
        bytes[0] = 5;
        bytes[8] = 9;
        let Ok(Output::One(event)) = GapProcessor.process(record(&bytes)) else {
            panic!("no event");
        };
        assert_eq!(event.data, EventData::Gap(Gap { from_ns: 5, to_ns: 9 }));
        for len in [0, 7, 15] {
            assert!(GapProcessor.process(record(&bytes[..len])).is_err());
        }
    }

    #[test]
    fn a_gap_is_told_once_it_is_known_and_over_in_whichever_order() {
        let source = || {
            let signal = Arc::new(Signal::default());
            (GapSource { signal: Arc::clone(&signal), told: false }, signal)
        };
        let read = |source: &mut GapSource| {
            let mut batch = RecordBatch::new(4, 1 << 10);
            let outcome = source.read(&mut batch, Some(Duration::from_millis(1))).unwrap();
            (outcome, batch.get(0).map(|record| record.bytes.to_vec()))
        };
        let expected = [5_u64.to_le_bytes(), 9_u64.to_le_bytes()].concat();
        for from_first in [true, false] {
            let (mut source, signal) = source();
            let from = || signal.change(|known| known.from_ns = Some(Some(5)));
            let to = || signal.change(|known| known.to_ns = Some(9));
            if from_first {
                from()
            } else {
                to()
            }
            assert_eq!(read(&mut source), (ReadOutcome::Idle, None));
            if from_first {
                to()
            } else {
                from()
            }
            assert_eq!(read(&mut source), (ReadOutcome::Read, Some(expected.clone())));
            assert_eq!(read(&mut source), (ReadOutcome::Ended, None), "it is told once");
        }
        let (mut without, signal) = source();
        signal.change(|known| known.from_ns = Some(None));
        assert_eq!(read(&mut without), (ReadOutcome::Ended, None), "somebody watched");
        let (mut stopped, _) = source();
        stopped.stop();
        assert_eq!(read(&mut stopped), (ReadOutcome::Ended, None));
    }
}
