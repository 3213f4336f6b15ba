//! `ObserverRuntime`: one processor and all that it needs, from start to drain.

mod build;
mod change;
mod checks;
mod incarnation;
mod run;
mod work;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, TryLockError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

pub use build::{BuildError, ObserverRuntimeBuilder};
pub use run::RunError;

use crate::causality::CausalityTracker;
use crate::config::Config;
use crate::delivery::EmitterHandle;
use crate::health::{HealthChecker, HealthStatus};
use crate::ids::SpanId;
use crate::lane::Lane;
use crate::ledger::{FailReason, ObserverLedger, add};
use crate::metrics::{self, OTHER, Sample};
use crate::panic::Panicked;
use crate::pipeline::{Failure, Pipeline, Scratch};
use crate::processor::{ProcessorFactory, RawRecord};
use crate::source::{Interrupt, ProgramCost, Source, SourceLedger};
use incarnation::Incarnation;
use work::Seat;
pub(crate) use work::{BATCH_BYTES, BATCH_RECORDS};

/// The source, which one thread uses at a time, and what ends its reads.
#[derive(Clone)]
struct SharedSource {
    source: Arc<Mutex<Box<dyn Source>>>,
    interrupter: Arc<dyn Interrupt>,
}

impl SharedSource {
    fn lock(&self) -> std::sync::MutexGuard<'_, Box<dyn Source>> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interrupt(&self) {
        self.interrupter.interrupt();
    }

    /// Whether foreign code panicked while it had the lock.
    fn has_panicked(&self) -> bool {
        self.source.is_poisoned()
    }

    fn is_in_use(&self) -> bool {
        matches!(self.source.try_lock(), Err(TryLockError::WouldBlock))
    }
}

/// Everything an observer needs around its processor.
///
/// ```
/// use std::sync::Arc;
/// use vahti_runtime::event::{Event, EventKind, Priority, Severity};
/// use vahti_runtime::observer::ObserverRuntime;
/// use vahti_runtime::processor::{EventProcessor, Output, ProcessError, RawRecord};
/// use vahti_runtime::testing::{self, CapturingEmitter};
///
/// static PING: EventKind =
///     EventKind::custom("example.ping", "ping", "ping", Priority::Normal);
///
/// struct Ping;
///
/// impl EventProcessor for Ping {
///     fn name(&self) -> &str {
///         "ping"
///     }
///
///     fn process(&self, _: RawRecord<'_>) -> Result<Output, ProcessError> {
///         Ok(Event::new(&PING, Severity::Info).into())
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let (emitter, captured) = CapturingEmitter::new("capture");
/// let runtime = ObserverRuntime::builder(|| Ping).emitter(emitter).build()?;
/// let (trigger, shutdown) = vahti_runtime::shutdown::channel();
/// let run = tokio::spawn(Arc::clone(&runtime).run(shutdown));
/// runtime.started().await;
/// runtime.process_event(testing::record(b"ping"))?;
/// trigger.begin();
/// run.await??;
/// assert_eq!(captured.events().len(), 1);
/// assert!(runtime.ledger().is_exact());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ObserverRuntime {
    name: String,
    /// What it goes by; whoever waits for what it says hears of a change.
    config: watch::Sender<Arc<Config>>,
    /// Held while it changes, so that a change is whole.
    changing: Mutex<()>,
    sampling_disabled: bool,
    factory: Box<dyn ProcessorFactory>,
    concurrency: usize,
    drain_deadline: Duration,
    pipeline: Pipeline,
    emitters: Vec<EmitterHandle>,
    /// Those of `emitters` that end with this runtime.
    owned: Vec<EmitterHandle>,
    source: Mutex<Option<Box<dyn Source>>>,
    source_ledger: OnceLock<Arc<dyn SourceLedger>>,
    stage: Mutex<Stage>,
    stage_changed: Notify,
    incarnation: RwLock<Option<Arc<Incarnation>>>,
    seat: Arc<Seat>,
    /// Told when `process_event` may have opened a storm's window.
    fold_bell: Notify,
    restarts: AtomicU64,
    /// Since when the processor that is there is there.
    up_since: Mutex<Option<Instant>>,
    scratches: Mutex<Vec<Scratch>>,
    health: Arc<HealthChecker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    New,
    Starting,
    Running,
    Ended,
}

/// How full a lane is, and how full it may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneFill {
    /// The emitter that it leads to.
    pub emitter: String,
    /// Events that wait.
    pub items: usize,
    /// What they take.
    pub bytes: usize,
    /// How many may wait.
    pub max_items: usize,
    /// How much they may take.
    pub max_bytes: usize,
}

/// Why a record could not be processed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessEventError {
    /// `run` has not set it up yet, or has ended.
    #[error("observer {observer} is not running: call run first, and not after it ended")]
    NotRunning {
        /// The observer.
        observer: String,
    },
    /// The processor failed and was not replaced yet, or won't be.
    #[error("observer {observer} is down")]
    Down {
        /// The observer.
        observer: String,
    },
    /// The processor said that it can't go on; the failure policy decides.
    #[error("observer {observer}: fatal: {why}")]
    Fatal {
        /// The observer.
        observer: String,
        /// What the processor said.
        why: String,
    },
    /// The processor panicked; the failure policy decides.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

impl std::fmt::Debug for ObserverRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObserverRuntime").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ObserverRuntime {
    /// Begins to build a runtime around the processors that `factory` makes:
    /// one at the start, a fresh one after each failure.
    pub fn builder(factory: impl ProcessorFactory + 'static) -> ObserverRuntimeBuilder {
        ObserverRuntimeBuilder::new(Box::new(factory))
    }

    /// The observer's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it goes by now.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.borrow())
    }

    /// Processes one record, on the caller's thread.
    ///
    /// Malformed records are counted, not errors. At most `concurrency`
    /// threads are inside the processor at once. The caller's thread is not
    /// watched: a processor that hangs, hangs its caller.
    ///
    /// # Errors
    /// It is not running, or the processor failed.
    pub fn process_event(&self, record: RawRecord<'_>) -> Result<(), ProcessEventError> {
        self.process_batch(std::slice::from_ref(&record))
    }

    /// Processes several records in order; what is per call costs once. If the
    /// processor fails, the records after the one that it failed at count as
    /// failed{reason=down}.
    ///
    /// # Errors
    /// It is not running, or the processor failed.
    pub fn process_batch(&self, records: &[RawRecord<'_>]) -> Result<(), ProcessEventError> {
        let incarnation = self.incarnation()?;
        let Some(inside) = incarnation.enter() else {
            return Err(ProcessEventError::Down { observer: self.name.clone() });
        };
        let counts = &self.pipeline.counts;
        let received = records.len() as u64;
        add(&counts.received, received);
        add(&counts.processing, received);
        let mut scratch = self.borrow_scratch();
        let at = AtomicUsize::new(0);
        let processor = &**incarnation.processor;
        let mut done = self.pipeline.process(processor, records.iter().copied(), &at, &mut scratch);
        let first_to_fail = done.failure.is_some() && incarnation.go_down();
        drop(inside);
        self.pipeline.commit(&done, &mut scratch);
        self.pipeline.fail(FailReason::Down, received - done.records());
        counts.processing.fetch_sub(received, Ordering::Relaxed);
        self.return_scratch(scratch);
        if self.pipeline.next_fold_ns().is_some() {
            self.fold_bell.notify_one();
        }
        match done.failure.take() {
            None => Ok(()),
            Some(failure) => Err(self.report(&incarnation, failure, first_to_fail)),
        }
    }

    fn incarnation(&self) -> Result<Arc<Incarnation>, ProcessEventError> {
        let observer = || self.name.clone();
        if *self.stage.lock().unwrap_or_else(PoisonError::into_inner) != Stage::Running {
            return Err(ProcessEventError::NotRunning { observer: observer() });
        }
        let incarnation = self.incarnation.read().unwrap_or_else(PoisonError::into_inner);
        match &*incarnation {
            Some(incarnation) if !incarnation.is_down() => Ok(Arc::clone(incarnation)),
            _ => Err(ProcessEventError::Down { observer: observer() }),
        }
    }

    /// Tells `run` of a failure, once per incarnation.
    fn report(
        &self,
        incarnation: &Incarnation,
        failure: Failure,
        first: bool,
    ) -> ProcessEventError {
        let (error, told) = match failure {
            Failure::Fatal(why) => (
                ProcessEventError::Fatal { observer: self.name.clone(), why: why.clone() },
                Failure::Fatal(why),
            ),
            Failure::Panicked(panicked) => {
                let told = Failure::Fatal(panicked.to_string());
                (ProcessEventError::Panicked(panicked), told)
            }
        };
        if first && incarnation.failures.send(told).is_err() {
            tracing::debug!(observer = %self.name, "failed after its run had ended");
        }
        error
    }

    fn borrow_scratch(&self) -> Scratch {
        self.scratches.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn return_scratch(&self, scratch: Scratch) {
        self.scratches.lock().unwrap_or_else(PoisonError::into_inner).push(scratch);
    }

    /// Waits until the processor is set up and the source started, or until
    /// that failed.
    pub async fn started(&self) {
        loop {
            let changed = self.stage_changed.notified();
            let stage = *self.stage.lock().unwrap_or_else(PoisonError::into_inner);
            if matches!(stage, Stage::Running | Stage::Ended) {
                return;
            }
            changed.await;
        }
    }

    fn set_stage(&self, stage: Stage) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
        self.stage_changed.notify_waiters();
    }

    /// Whether it runs and its health is not worse than degraded.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        let running = *self.stage.lock().unwrap_or_else(PoisonError::into_inner) == Stage::Running;
        let alive = self
            .incarnation
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .is_some_and(|incarnation| !incarnation.is_down());
        running && alive && self.health.is_healthy()
    }

    /// How it does, and why not better.
    #[must_use]
    pub fn health(&self) -> HealthStatus {
        self.health.status()
    }

    /// Its health checker, to add checks or to check now.
    #[must_use]
    pub fn health_checker(&self) -> &Arc<HealthChecker> {
        &self.health
    }

    /// How often it was started again after it had failed.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// How long it has been up; `None` while it is not.
    #[must_use]
    pub fn uptime(&self) -> Option<Duration> {
        let since = *self.up_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.filter(|_| self.incarnation().is_ok()).map(|since| since.elapsed())
    }

    /// What of its source can't work here or was not proven lately.
    #[must_use]
    pub fn unproven(&self) -> Vec<String> {
        self.source_ledger.get().map(|ledger| ledger.degraded()).unwrap_or_default()
    }

    /// What its source's programs cost.
    #[must_use]
    pub fn costs(&self) -> Vec<ProgramCost> {
        self.source_ledger.get().map(|ledger| ledger.costs()).unwrap_or_default()
    }

    /// How full each of its lanes is.
    #[must_use]
    pub fn lane_fills(&self) -> Vec<LaneFill> {
        let config = self.config();
        let bounds = &config.backpressure;
        let lanes = self.pipeline.lanes.iter().zip(&self.emitters);
        let fill = |((lane, _), emitter): (&(Arc<Lane>, _), &EmitterHandle)| {
            let fill = lane.fill();
            LaneFill {
                emitter: emitter.name().to_owned(),
                items: fill.items,
                bytes: fill.bytes,
                max_items: bounds.queue_size,
                max_bytes: bounds.max_bytes().as_usize(),
            }
        };
        lanes.map(fill).collect()
    }

    /// Latest spans of entities, and parents of spans.
    #[must_use]
    pub fn causality(&self) -> &CausalityTracker {
        &self.pipeline.causality
    }

    /// The latest span of an entity by its text name: a uid, `namespace/name`
    /// or `ip:port`.
    #[must_use]
    pub fn parent_span_for_entity(&self, id: &str) -> Option<SpanId> {
        self.pipeline.causality.latest_by_name(id).map(|span| span.span_id)
    }

    /// The ledger of this observer, now.
    #[must_use]
    pub fn ledger(&self) -> ObserverLedger {
        let counts = &self.pipeline.counts;
        let lines = self.source_ledger.get().map(|l| counts.source_lines(l.counts()));
        ObserverLedger {
            observer: self.name.clone(),
            kernel: lines.map(|(kernel, _)| kernel),
            ring: lines.map(|(_, ring)| ring),
            records: counts.records_line(),
            events: counts.events_line(),
            lanes: self.pipeline.lanes.iter().map(|(lane, _)| lane.line()).collect(),
        }
    }

    /// The observer's metrics and its ledger in the metrics' words, now;
    /// nothing where the configuration has turned metrics off.
    #[must_use]
    pub fn metrics(&self) -> Vec<Sample> {
        if !self.config.borrow().metrics.enabled {
            return Vec::new();
        }
        let mut samples = self.pipeline.metrics.snapshot();
        // Whatever labels are allowed: another observer has the same names.
        for sample in &mut samples {
            match sample.labels.iter_mut().find(|(key, _)| key == "observer") {
                Some((_, value)) if value == OTHER => value.clone_from(&self.name),
                Some(_) => {}
                None => sample.labels.insert(0, ("observer".to_owned(), self.name.clone())),
            }
        }
        let mut samples = metrics::summed(samples);
        samples.extend(self.ledger().samples());
        samples
    }
}
