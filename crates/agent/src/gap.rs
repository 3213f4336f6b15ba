//! An unclean end of the agent before this one, told as an event.
//!
//! The time in which nobody watched is known from the store; the event goes the
//! way of every other event, so that the ledger has it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
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

/// What tells of one gap, once the agent watches again.
#[derive(Clone)]
pub(crate) struct GapObserver {
    pub(crate) runtime: Arc<ObserverRuntime>,
    signal: Arc<Signal>,
}

#[derive(Default)]
struct Signal {
    /// When the gap ended, nanoseconds since 1970.
    ended_ns: Mutex<Option<u64>>,
    changed: Condvar,
    stopped: AtomicBool,
}

impl GapObserver {
    /// An observer that tells of a gap since `from_ns`.
    ///
    /// # Errors
    /// It can't be built.
    pub(crate) fn new(
        from_ns: u64,
        config: &Config,
        emitters: &[EmitterHandle],
    ) -> Result<Self, Failed> {
        let signal = Arc::new(Signal::default());
        let source = GapSource { from_ns, signal: Arc::clone(&signal), told: false };
        // It tells one event.
        let mut settings = ObserverConfig::for_observer("agent");
        settings.backpressure.max_bytes = Some(ByteSize(64 << 10));
        let caches = CacheLimits {
            entities: 16,
            fold_keys: 16,
            fold_bytes: 16 << 10,
            metrics_bytes: 16 << 10,
        };
        let mut builder = ObserverRuntime::builder(|| GapProcessor)
            .config(settings)
            .caches(caches)
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

    /// The agent watches again.
    pub(crate) fn is_over(&self) {
        let mut ended = self.signal.ended_ns.lock().unwrap_or_else(PoisonError::into_inner);
        *ended = Some(ClockPair::now().wall_ns);
        self.signal.changed.notify_all();
    }
}

/// Has one record, once it is told that the gap is over.
struct GapSource {
    from_ns: u64,
    signal: Arc<Signal>,
    told: bool,
}

impl Source for GapSource {
    fn name(&self) -> &str {
        "agent"
    }

    fn read(
        &mut self,
        batch: &mut RecordBatch,
        timeout: Option<Duration>,
    ) -> Result<ReadOutcome, SourceError> {
        if self.told || self.signal.stopped.load(Ordering::Acquire) {
            return Ok(ReadOutcome::Ended);
        }
        let ended = self.signal.ended_ns.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = timeout.unwrap_or(Duration::from_secs(3_600));
        let ended = if ended.is_some() {
            *ended
        } else {
            let waited = self.signal.changed.wait_timeout(ended, wait);
            *waited.unwrap_or_else(PoisonError::into_inner).0
        };
        let Some(to_ns) = ended else { return Ok(ReadOutcome::Idle) };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.from_ns.to_le_bytes());
        bytes[8..].copy_from_slice(&to_ns.to_le_bytes());
        let now = ClockPair::now();
        let (boot_ns, wall_ns) = (now.boot_ns, now.wall_ns);
        let kind = RecordKind::Fact;
        self.told = batch.push(RawRecord { kind, boot_ns, wall_ns, cpu: 0, seq: 0, bytes: &bytes });
        Ok(ReadOutcome::Read)
    }

    fn stop(&mut self) {
        self.signal.stopped.store(true, Ordering::Release);
    }

    fn interrupter(&self) -> Arc<dyn Interrupt> {
        Arc::new(Interrupter(Arc::clone(&self.signal)))
    }
}

struct Interrupter(Arc<Signal>);

impl Interrupt for Interrupter {
    fn interrupt(&self) {
        // Under the lock, or a reader about to wait would miss it.
        let _guard = self.0.ended_ns.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.changed.notify_all();
    }
}

struct GapProcessor;

impl EventProcessor for GapProcessor {
    fn name(&self) -> &str {
        "agent"
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
}
