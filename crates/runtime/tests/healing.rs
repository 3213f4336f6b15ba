//! Each of panic, hang and error, in source, processor and emitter: back within
//! its policy's time, the others untouched, seen in health and in the ledger.
//! The store's row is in the exporters' tests, beside the store.
#![cfg(not(shuttle))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "stage/misbehaving.rs"]
mod misbehaving;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use misbehaving::{Gate, Handles, assert_exact, until};
use vahti_runtime::config::{Config, FailurePolicy};
use vahti_runtime::delivery::{EmitterConfig, EmitterHandle, EmitterState};
use vahti_runtime::emitter::{Emission, EmitOutcome, EventEmitter};
use vahti_runtime::event::Event;
use vahti_runtime::observer::ObserverRuntime;
use vahti_runtime::processor::LifecycleError;
use vahti_runtime::shutdown::{ShutdownTrigger, channel};
use vahti_runtime::source::{
    Interrupt, ReadOutcome, RecordBatch, Source, SourceError, SourceLedger,
};
use vahti_runtime::supervisor::{Report, Supervisor};
use vahti_runtime::testing::{Captured, CapturingEmitter, FakeFeed, FakeSource};
use vahti_runtime::units::HumanDuration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Source,
    Processor,
    Emitter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Panic,
    Hang,
    Error,
}

/// How often in a row, so that it is there for long enough to be seen.
const TIMES: u64 = 3;
const HANG: Duration = Duration::from_millis(100);
/// The longest wait before a start again.
const DELAY: Duration = Duration::from_millis(300);
/// What a busy machine may take beside.
const SLACK: Duration = Duration::from_secs(5);

/// What one part does wrong; asked at each call.
#[derive(Clone, Default)]
struct Ill {
    faults: Arc<Mutex<VecDeque<Fault>>>,
    gate: Arc<Gate>,
    met: Arc<AtomicU64>,
}

impl Ill {
    /// Whether to fail with an error.
    fn meet(&self) -> bool {
        let Some(fault) = self.faults.lock().unwrap().pop_front() else { return false };
        self.met.fetch_add(1, Ordering::SeqCst);
        match fault {
            Fault::Panic => panic!("panics on purpose"),
            Fault::Hang => self.gate.wait(),
            Fault::Error => return true,
        }
        false
    }
}

struct IllSource(FakeSource, Ill);

impl Source for IllSource {
    fn name(&self) -> &str {
        "ill"
    }

    fn start(&mut self) -> Result<(), LifecycleError> {
        self.0.start()
    }

    fn read(
        &mut self,
        batch: &mut RecordBatch,
        timeout: Option<Duration>,
    ) -> Result<ReadOutcome, SourceError> {
        if self.1.meet() {
            let what = "reading on purpose".to_owned();
            return Err(SourceError { source_name: "ill".into(), what, error: None });
        }
        self.0.read(batch, timeout)
    }

    fn stop(&mut self) {
        self.0.stop();
    }

    fn interrupter(&self) -> Arc<dyn Interrupt> {
        self.0.interrupter()
    }

    fn ledger(&self) -> Option<Arc<dyn SourceLedger>> {
        self.0.ledger()
    }
}

struct IllEmitter(Ill, Arc<AtomicU64>);

impl EventEmitter for IllEmitter {
    fn name(&self) -> &str {
        "ill"
    }

    fn is_critical(&self) -> bool {
        true
    }

    fn emit<'a>(&'a mut self, batch: &'a [Arc<Event>]) -> Emission<'a, EmitOutcome> {
        let outcome = if self.0.meet() {
            EmitOutcome::Retryable { reason: "not now".to_owned(), retry_after: None }
        } else {
            self.1.fetch_add(batch.len() as u64, Ordering::SeqCst);
            EmitOutcome::Delivered
        };
        Box::pin(std::future::ready(outcome))
    }
}

/// Two observers that share two emitters; one of each may be ill.
struct Stage {
    good: Arc<ObserverRuntime>,
    bad: Arc<ObserverRuntime>,
    good_feed: FakeFeed,
    bad_feed: FakeFeed,
    handles: Handles,
    source: Ill,
    emitter: Ill,
    ill: EmitterHandle,
    arrived: Arc<AtomicU64>,
    captured: Captured,
    trigger: ShutdownTrigger,
    run: tokio::task::JoinHandle<Report>,
}

fn config(name: &str) -> Config {
    let mut config = Config::for_observer(name);
    config.failure.policy = FailurePolicy::Restart;
    config.failure.retry.initial_delay = HumanDuration(DELAY);
    config.failure.retry.max_delay = HumanDuration(DELAY);
    config.health.hang_timeout = HumanDuration(HANG);
    config
}

async fn stage() -> Stage {
    let (source, emitter, arrived) = (Ill::default(), Ill::default(), Arc::<AtomicU64>::default());
    let (ill, count) = (emitter.clone(), Arc::clone(&arrived));
    let make = move || Box::new(IllEmitter(ill.clone(), Arc::clone(&count))) as Box<_>;
    let limits = EmitterConfig { emit_timeout: HANG, max_retries: 10, ..EmitterConfig::default() };
    let ill = EmitterHandle::start(make, limits).unwrap();
    let (make, captured) = CapturingEmitter::new("well");
    let well = EmitterHandle::start(move || Box::new(make()), EmitterConfig::default()).unwrap();
    let (inner, bad_feed) = FakeSource::new();
    let (good_source, good_feed) = FakeSource::new();
    let handles = Handles::default();
    let build = |name: &'static str, handles: &Handles| {
        ObserverRuntime::builder(handles.factory(name))
            .config(config(name))
            .shared_emitter(&ill)
            .shared_emitter(&well)
    };
    let good = build("good", &Handles::default()).source(good_source).build().unwrap();
    let bad = build("bad", &handles).source(IllSource(inner, source.clone())).build().unwrap();
    let (trigger, shutdown) = channel();
    let supervisor = Supervisor::new(vec![ill.clone(), well], Duration::from_secs(5))
        .observer(Arc::clone(&good))
        .observer(Arc::clone(&bad));
    let run = tokio::spawn(supervisor.run(shutdown));
    good.started().await;
    bad.started().await;
    Stage {
        good,
        bad,
        good_feed,
        bad_feed,
        handles,
        source,
        emitter,
        ill,
        arrived,
        captured,
        trigger,
        run,
    }
}

impl Stage {
    fn push(&self, records: usize) {
        for _ in 0..records {
            self.good_feed.push(b"normal");
            self.bad_feed.push(b"normal");
        }
    }

    fn of(&self, observer: &str) -> usize {
        let all = self.captured.events();
        all.iter().filter(|event| &*event.origin.source == observer).count()
    }

    fn failed(&self, reason: &str) -> u64 {
        let records = self.bad.ledger().records;
        records.failed.iter().find(|failed| failed.reason == reason).unwrap().records
    }

    /// Has it fail, until that is seen.
    async fn fall_ill(&self, part: Part, fault: Fault) {
        let faults = VecDeque::from([fault; TIMES as usize]);
        match part {
            // One that hangs has one thread, and one that panicked is not used again.
            Part::Source if fault != Fault::Error => {
                *self.source.faults.lock().unwrap() = VecDeque::from([fault]);
            }
            Part::Source => *self.source.faults.lock().unwrap() = faults,
            Part::Emitter => *self.emitter.faults.lock().unwrap() = faults,
            Part::Processor => {
                let record: &[u8] = match fault {
                    Fault::Panic => b"panic",
                    Fault::Hang => b"hang",
                    Fault::Error => b"fatal",
                };
                (0..TIMES).for_each(|_| self.bad_feed.push(record));
            }
        }
        self.push(1);
        if part == Part::Source {
            // Records that wait while it hangs, or it would be idle, not failing.
            until(|| self.source.met.load(Ordering::SeqCst) > 0).await;
        }
        self.push(99);
        match part {
            Part::Emitter => {
                until(|| matches!(self.ill.state(), EmitterState::Failing(_))).await;
                until(|| self.emitter.met.load(Ordering::SeqCst) == TIMES).await;
            }
            _ => until(|| !self.bad.is_healthy() && !self.bad.health().reason.is_empty()).await,
        }
    }

    /// Each failure has its policy's wait, and a hang its time to be found.
    async fn is_back_in_time(&self, part: Part, fault: Fault) {
        let begun = Instant::now();
        if part == Part::Source {
            self.source.gate.open();
        }
        until(|| self.bad.is_healthy() && self.ill.state() == EmitterState::Working).await;
        until(|| self.bad_feed.unread() == 0).await;
        // Of an emitter: 100 ms, doubled each time, up to that.
        let policy = match part {
            Part::Emitter => HANG * 2u32.pow(TIMES as u32 + 1) + 2 * HANG,
            _ => (DELAY + 3 * HANG) * TIMES as u32,
        };
        let took = begun.elapsed();
        assert!(took <= policy + SLACK, "{part:?} {fault:?}: {took:?}, not {policy:?}");
    }

    /// All that the faults cost, by name.
    fn is_accounted_for(&self, part: Part, fault: Fault) {
        let lost = if part == Part::Processor { TIMES } else { 0 };
        let reason = match fault {
            Fault::Panic => "panic",
            Fault::Hang => "hang",
            Fault::Error => "fatal",
        };
        assert_eq!(self.failed(reason), lost, "{part:?} {fault:?}");
        let is_panicked = (part, fault) == (Part::Emitter, Fault::Panic);
        assert_eq!(self.ill.panics(), if is_panicked { TIMES } else { 0 });
        let is_left = (part, fault) == (Part::Emitter, Fault::Hang);
        assert_eq!(self.ill.taken_over(), if is_left { TIMES } else { 0 });
        for observer in [&self.good, &self.bad] {
            assert_exact(observer);
            for lane in observer.ledger().lanes {
                assert_eq!(lane.dropped_total().envelopes, 0, "{part:?} {fault:?}: {lane:#?}");
            }
        }
    }

    async fn end(self) {
        self.trigger.begin();
        assert_eq!(self.run.await.unwrap(), Report::default());
        assert_exact(&self.good);
        assert_exact(&self.bad);
        // Whoever was left behind comes back, and changes nothing.
        self.handles.hang.open();
        self.emitter.gate.open();
    }
}

async fn heals(part: Part, fault: Fault) {
    let stage = stage().await;
    stage.push(10);
    until(|| stage.of("bad") == 10 && stage.of("good") == 10).await;
    stage.fall_ill(part, fault).await;
    // Nobody else waits for it.
    until(|| stage.of("good") == 110).await;
    assert!(stage.good.is_healthy() || part == Part::Emitter, "{part:?} {fault:?}");
    stage.is_back_in_time(part, fault).await;
    stage.push(10);
    // What a read brings after it was given up counts as failed.
    let late = || if part == Part::Source { stage.failed("down") as usize } else { 0 };
    until(|| stage.of("bad") + late() == 120 && stage.of("good") == 120).await;
    let (good, bad) = (120, 120 - late() as u64);
    until(|| stage.arrived.load(Ordering::SeqCst) == good + bad).await;
    let settled = |observer: &ObserverRuntime, records| {
        observer.ledger().lanes.iter().all(|lane| lane.delivered.envelopes == records)
    };
    until(|| settled(&stage.good, good) && settled(&stage.bad, bad)).await;
    stage.is_accounted_for(part, fault);
    stage.end().await;
}

#[tokio::test]
async fn a_processor_that_panics_is_back_in_time_and_nobody_else_notices() {
    heals(Part::Processor, Fault::Panic).await;
}

#[tokio::test]
async fn a_processor_that_hangs_is_back_in_time_and_nobody_else_notices() {
    heals(Part::Processor, Fault::Hang).await;
}

#[tokio::test]
async fn a_processor_that_gives_up_is_back_in_time_and_nobody_else_notices() {
    heals(Part::Processor, Fault::Error).await;
}

#[tokio::test]
async fn an_emitter_that_panics_is_back_in_time_and_nobody_else_notices() {
    heals(Part::Emitter, Fault::Panic).await;
}

#[tokio::test]
async fn an_emitter_that_hangs_is_back_in_time_and_nobody_else_notices() {
    heals(Part::Emitter, Fault::Hang).await;
}

#[tokio::test]
async fn an_emitter_that_fails_is_back_in_time_and_nobody_else_notices() {
    heals(Part::Emitter, Fault::Error).await;
}

#[tokio::test]
async fn a_source_that_fails_is_back_in_time_and_nobody_else_notices() {
    heals(Part::Source, Fault::Error).await;
}

#[tokio::test]
async fn a_source_that_hangs_is_back_once_its_read_returns_and_nobody_else_notices() {
    heals(Part::Source, Fault::Hang).await;
}

/// State is never used again after a panic, and nobody can make a source anew:
/// its policy's time is never, and that is told.
#[tokio::test]
async fn a_source_that_panics_stays_down_and_nobody_else_notices() {
    let stage = stage().await;
    stage.push(10);
    until(|| stage.of("bad") == 10 && stage.of("good") == 10).await;
    stage.fall_ill(Part::Source, Fault::Panic).await;
    assert!(stage.bad.health().reason.contains("panics on purpose"), "{:?}", stage.bad.health());
    stage.push(10);
    until(|| stage.of("good") == 120).await;
    assert!(stage.good.is_healthy() && !stage.bad.is_healthy());
    let ring = stage.bad.ledger().ring.unwrap();
    assert_eq!(ring.submitted - ring.received, stage.bad_feed.unread() as u64, "counted, unread");
    assert_exact(&stage.bad);
    stage.trigger.begin();
    let report = stage.run.await.unwrap();
    assert_eq!(report.failed.len(), 1, "{report:?}");
    assert!(!report.all_failed && !report.failed_fast, "{report:?}");
    assert_exact(&stage.good);
}
