//! An emitter whose call never returns is left behind, and a fresh one goes on.
#![cfg(not(shuttle))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "stage/misbehaving.rs"]
mod misbehaving;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use misbehaving::{Gate, Handles, assert_exact, until};
use vahti_runtime::delivery::{EmitterConfig, EmitterHandle, EmitterState};
use vahti_runtime::emitter::{Emission, EmitOutcome, EventEmitter};
use vahti_runtime::event::Event;
use vahti_runtime::ledger::{DropReason, LaneLine};
use vahti_runtime::observer::ObserverRuntime;
use vahti_runtime::shutdown::{ShutdownTrigger, channel};
use vahti_runtime::supervisor::{Report, Supervisor};
use vahti_runtime::testing::{Captured, CapturingEmitter, FakeFeed, FakeSource};

const LIMIT: Duration = Duration::from_millis(100);

/// What blocks, and what it was asked for.
#[derive(Clone, Default)]
struct Blocks {
    gate: Arc<Gate>,
    /// How many of those that are made block.
    first: u64,
    /// How many calls of such a one go through before.
    passes: u64,
    in_factory: bool,
    critical: bool,
    waits_for_reader: bool,
    made: Arc<AtomicU64>,
    arrived: Arc<AtomicU64>,
    closed: Arc<AtomicU64>,
    gone: Arc<AtomicU64>,
}

struct Blocking {
    this: Blocks,
    blocks: bool,
    calls: u64,
}

impl Blocks {
    fn factory(&self) -> impl Fn() -> Box<dyn EventEmitter> + Send + 'static {
        let this = self.clone();
        move || {
            let turn = this.made.fetch_add(1, Ordering::SeqCst);
            if this.in_factory && turn == 1 {
                this.gate.wait();
            }
            Box::new(Blocking { this: this.clone(), blocks: turn < this.first, calls: 0 })
        }
    }
}

impl EventEmitter for Blocking {
    fn name(&self) -> &str {
        "blocking"
    }

    fn is_critical(&self) -> bool {
        self.this.critical
    }

    fn waits_for_reader(&self) -> bool {
        self.this.waits_for_reader
    }

    fn emit<'a>(&'a mut self, batch: &'a [Arc<Event>]) -> Emission<'a, EmitOutcome> {
        self.calls += 1;
        if self.blocks && self.calls > self.this.passes {
            self.this.gate.wait();
        } else {
            let count: u64 = batch.iter().map(|event| event.count).sum();
            self.this.arrived.fetch_add(count, Ordering::SeqCst);
        }
        Box::pin(std::future::ready(EmitOutcome::Delivered))
    }

    fn close(&mut self) -> Emission<'_, Result<(), String>> {
        self.this.closed.fetch_add(1, Ordering::SeqCst);
        Box::pin(std::future::ready(Ok(())))
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        self.this.gone.fetch_add(1, Ordering::SeqCst);
    }
}

/// One observer with an emitter that blocks and one that does not.
struct Stage {
    observer: Arc<ObserverRuntime>,
    feed: FakeFeed,
    blocking: EmitterHandle,
    captured: Captured,
    trigger: ShutdownTrigger,
    run: tokio::task::JoinHandle<Report>,
}

async fn stage(blocks: &Blocks) -> Stage {
    stage_of(blocks, LIMIT).await
}

async fn stage_of(blocks: &Blocks, emit_timeout: Duration) -> Stage {
    let config = EmitterConfig { emit_timeout, ..EmitterConfig::default() };
    let blocking = EmitterHandle::start(blocks.factory(), config).unwrap();
    let (make, captured) = CapturingEmitter::new("good");
    let good = EmitterHandle::start(move || Box::new(make()), EmitterConfig::default()).unwrap();
    let (source, feed) = FakeSource::new();
    let deadline = Duration::from_millis(500);
    let observer = ObserverRuntime::builder(Handles::default().factory("test"))
        .source(source)
        .shared_emitter(&blocking)
        .shared_emitter(&good)
        .drain_deadline(deadline)
        .build()
        .unwrap();
    let (trigger, shutdown) = channel();
    let supervisor =
        Supervisor::new(vec![blocking.clone(), good], deadline).observer(Arc::clone(&observer));
    let run = tokio::spawn(supervisor.run(shutdown));
    observer.started().await;
    Stage { observer, feed, blocking, captured, trigger, run }
}

impl Stage {
    fn push(&self, records: usize) {
        (0..records).for_each(|_| self.feed.push(b"normal"));
    }

    fn line(&self) -> LaneLine {
        self.observer.ledger().lanes.remove(0)
    }

    async fn end(self, pushed: usize) -> (LaneLine, Report) {
        until(|| self.captured.events().len() == pushed).await;
        self.trigger.begin();
        let report = self.run.await.unwrap();
        assert_exact(&self.observer);
        (self.observer.ledger().lanes.remove(0), report)
    }
}

#[tokio::test]
async fn an_emitter_that_blocks_is_left_behind_and_a_fresh_one_goes_on() {
    let blocks = Blocks { first: 1, ..Blocks::default() };
    let stage = stage(&blocks).await;
    stage.push(1);
    until(|| stage.captured.events().len() == 1).await;
    let begun = Instant::now();
    until(|| stage.blocking.taken_over() == 1).await;
    assert!(begun.elapsed() >= LIMIT / 2, "not before its time");
    assert!(matches!(stage.blocking.state(), EmitterState::Failing(_)));
    let line = stage.line();
    assert_eq!(line.dropped_for(DropReason::Unanswered).occurrences, 1, "{line:#?}");
    stage.push(500);
    until(|| blocks.arrived.load(Ordering::SeqCst) == 500).await;
    until(|| stage.blocking.state() == EmitterState::Working).await;
    // It comes back, and nothing changes.
    let before = stage.line();
    blocks.gate.open();
    until(|| blocks.gone.load(Ordering::SeqCst) == 1).await;
    assert_eq!(stage.line(), before, "its late answer is not counted");
    assert_eq!(blocks.closed.load(Ordering::SeqCst), 0, "the fresh one is not done yet");
    let (line, report) = stage.end(501).await;
    assert_eq!(report, Report::default());
    assert_eq!(line.delivered.occurrences, 500, "{line:#?}");
    assert_eq!(blocks.closed.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_a_critical_emitter_blocks_at_is_tried_again_and_counted_once() {
    let blocks = Blocks { first: 2, critical: true, ..Blocks::default() };
    let stage = stage(&blocks).await;
    stage.push(300);
    until(|| blocks.arrived.load(Ordering::SeqCst) == 300).await;
    assert_eq!(stage.blocking.taken_over(), 2);
    blocks.gate.open();
    until(|| blocks.gone.load(Ordering::SeqCst) == 2).await;
    let (line, report) = stage.end(300).await;
    assert_eq!(report, Report::default());
    assert_eq!(line.delivered.occurrences, 300, "{line:#?}");
}

#[tokio::test]
async fn an_emitter_that_always_blocks_is_stuck_until_a_thread_comes_back() {
    let blocks = Blocks { first: 5, ..Blocks::default() };
    let stage = stage(&blocks).await;
    for n in 0..5 {
        stage.push(1);
        until(|| stage.line().in_flight.occurrences == 1 || stage.blocking.taken_over() > n).await;
        until(|| stage.blocking.taken_over() > n || stage.blocking.is_stuck()).await;
    }
    assert!(stage.blocking.is_stuck());
    assert_eq!(stage.blocking.taken_over(), 4, "no more threads than that");
    assert_exact(&stage.observer);
    blocks.gate.open();
    until(|| !stage.blocking.is_stuck()).await;
    stage.push(10);
    let (line, _) = stage.end(15).await;
    assert_eq!(line.dropped_for(DropReason::Unanswered).occurrences, 4, "{line:#?}");
    assert_eq!(line.delivered.occurrences, 11, "the last one's call returned in the end");
}

#[tokio::test]
async fn a_factory_that_blocks_is_left_behind_as_well() {
    let blocks = Blocks { first: 1, in_factory: true, ..Blocks::default() };
    let stage = stage(&blocks).await;
    stage.push(1);
    until(|| stage.blocking.taken_over() == 1).await;
    stage.push(1);
    until(|| stage.blocking.taken_over() == 2).await;
    blocks.gate.open();
    stage.push(10);
    until(|| blocks.arrived.load(Ordering::SeqCst) >= 10).await;
    stage.end(12).await;
}

#[tokio::test]
async fn an_emitter_that_waits_for_its_reader_is_waited_for() {
    let blocks = Blocks { first: 1, waits_for_reader: true, ..Blocks::default() };
    let stage = stage(&blocks).await;
    stage.push(10);
    until(|| stage.captured.events().len() == 10).await;
    tokio::time::sleep(LIMIT * 3).await;
    assert_eq!((stage.blocking.taken_over(), stage.blocking.is_stuck()), (0, false));
    let (line, report) = stage.end(10).await;
    assert_eq!(report.stuck_emitters, ["blocking"]);
    assert_eq!(line.delivered.occurrences, 0);
    blocks.gate.open();
}

#[tokio::test]
async fn whoever_started_an_emitter_can_supervise_it() {
    let blocks = Blocks { first: 1, ..Blocks::default() };
    let config = EmitterConfig { emit_timeout: LIMIT, ..EmitterConfig::default() };
    let emitter = EmitterHandle::start(blocks.factory(), config).unwrap();
    let watcher = tokio::spawn(emitter.supervise());
    let (source, feed) = FakeSource::new();
    let observer = ObserverRuntime::builder(Handles::default().factory("test"))
        .source(source)
        .shared_emitter(&emitter)
        .build()
        .unwrap();
    feed.push(b"normal");
    let (trigger, shutdown) = channel();
    let run = tokio::spawn(Arc::clone(&observer).run(shutdown));
    until(|| emitter.taken_over() == 1).await;
    trigger.begin();
    run.await.unwrap().unwrap();
    assert_exact(&observer);
    drop((observer, emitter));
    // The watcher holds no handle: the last one ends the emitter, and that ends it.
    tokio::time::timeout(Duration::from_secs(20), watcher).await.unwrap().unwrap();
    blocks.gate.open();
}

const HOUR: Duration = Duration::from_secs(3_600);

fn give_it(emitter: &EmitterHandle, emit_timeout: Duration) {
    emitter.reconfigure(EmitterConfig { emit_timeout, ..emitter.config() });
}

#[tokio::test]
async fn another_time_for_a_call_holds_from_the_next_call_on() {
    let blocks = Blocks { first: 1, passes: 1, ..Blocks::default() };
    let stage = stage_of(&blocks, HOUR).await;
    stage.push(1);
    // Whoever watches has seen a call that had an hour.
    until(|| blocks.arrived.load(Ordering::SeqCst) == 1).await;
    give_it(&stage.blocking, LIMIT);
    stage.push(1);
    until(|| stage.blocking.taken_over() == 1).await;
    stage.push(3);
    until(|| blocks.arrived.load(Ordering::SeqCst) == 4).await;
    let (line, _) = stage.end(5).await;
    assert_eq!(line.dropped_for(DropReason::Unanswered).occurrences, 1, "{line:#?}");
    blocks.gate.open();
}

#[tokio::test]
async fn a_call_under_way_keeps_its_time_and_the_one_behind_it_has_its_own() {
    let blocks = Blocks { first: 1, ..Blocks::default() };
    let stage = stage_of(&blocks, HOUR).await;
    stage.push(1);
    until(|| stage.line().in_flight.occurrences == 1).await;
    give_it(&stage.blocking, LIMIT);
    tokio::time::sleep(LIMIT * 3).await;
    assert_eq!(stage.blocking.taken_over(), 0, "it may take an hour");
    blocks.gate.open();
    until(|| stage.line().delivered.occurrences == 1).await;
    blocks.gate.close();
    stage.push(1);
    until(|| stage.blocking.taken_over() == 1).await;
    stage.end(2).await;
    blocks.gate.open();
}
