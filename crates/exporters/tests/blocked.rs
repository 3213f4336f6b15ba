//! A store whose disk does not answer: who is served from it says so.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "../../runtime/tests/stage/misbehaving.rs"]
mod misbehaving;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use misbehaving::{CRITICAL, Gate, until};
use vahti_exporters::store::{Store, StoreConfig};
use vahti_runtime::clock::ClockPair;
use vahti_runtime::delivery::{EmitterConfig, EmitterHandle, EmitterState};
use vahti_runtime::emitter::{EmitOutcome, EventEmitter};
use vahti_runtime::event::{Event, Severity};
use vahti_runtime::testing::CapturingEmitter;

fn commit(store: &Store, events: usize) -> EmitOutcome {
    let now = ClockPair::now().wall_ns;
    let event = || Event { observed_ns: now, ..Event::new(&CRITICAL, Severity::Error) };
    let batch: Vec<Arc<Event>> = (0..events).map(|_| Arc::new(event())).collect();
    let mut emitter = store.emitter();
    match pin!(emitter.emit(&batch)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("it blocks instead of waiting"),
    }
}

/// Has a commit hang: the ledger is asked for in the middle of it.
fn hang(store: &Store, gate: &Arc<Gate>, hung: &Arc<AtomicU64>) -> std::thread::JoinHandle<()> {
    let (gate, met) = (Arc::clone(gate), Arc::clone(hung));
    store.set_ledger(move || {
        met.fetch_add(1, Ordering::SeqCst);
        gate.wait();
        b"{}".to_vec()
    });
    let store = store.clone();
    std::thread::spawn(move || assert_eq!(commit(&store, 5), EmitOutcome::Delivered))
}

#[tokio::test]
async fn a_durable_emitter_says_that_it_waits_for_the_store_and_goes_on_once_that_does() {
    let folder = tempfile::tempdir().unwrap();
    let config = StoreConfig::at(folder.path());
    let store = Store::open(config, vec!["durable".to_owned()], Duration::ZERO).unwrap();
    assert_eq!(commit(&store, 20), EmitOutcome::Delivered);
    let (gate, hung) = (Arc::new(Gate::default()), Arc::new(AtomicU64::new(0)));
    let committing = hang(&store, &gate, &hung);
    until(|| hung.load(Ordering::SeqCst) == 1).await;

    let (make, served) = CapturingEmitter::new("durable");
    let limits =
        EmitterConfig { emit_timeout: Duration::from_millis(100), ..EmitterConfig::default() };
    let log = Arc::new(store.clone());
    let emitter = EmitterHandle::start_durable(move || Box::new(make()), limits, log).unwrap();
    let watcher = tokio::spawn(emitter.supervise());
    let waits = |state| matches!(state, EmitterState::Failing(why) if why.contains("the store"));
    until(|| waits(emitter.state())).await;
    until(|| emitter.is_stuck()).await;
    let line = emitter.lane_lines().remove(0);
    assert_eq!((line.difference, line.delivered.envelopes), (0, 0), "{line:#?}");

    gate.open();
    until(|| emitter.lane_lines()[0].delivered.envelopes == 25).await;
    until(|| !emitter.is_stuck() && emitter.state() == EmitterState::Working).await;
    committing.join().unwrap();
    assert_eq!(served.events().len(), 25, "each of them once");
    assert_eq!(emitter.taken_over(), 0);
    assert!(emitter.end(tokio::time::Instant::now() + Duration::from_secs(5)).await);
    watcher.await.unwrap();
}

#[tokio::test]
async fn one_that_could_note_its_last_events_only_later_works_again_once_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let config = StoreConfig::at(folder.path());
    let store = Store::open(config, vec!["durable".to_owned()], Duration::ZERO).unwrap();
    assert_eq!(commit(&store, 20), EmitOutcome::Delivered);
    let other = rusqlite::Connection::open(folder.path().join("events.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (make, served) = CapturingEmitter::new("durable");
    let log = Arc::new(store.clone());
    let emitter =
        EmitterHandle::start_durable(move || Box::new(make()), EmitterConfig::default(), log)
            .unwrap();
    until(|| matches!(emitter.state(), EmitterState::Failing(why) if why.contains("lock"))).await;
    other.execute_batch("ROLLBACK").unwrap();
    // Nothing comes after it.
    until(|| emitter.lane_lines()[0].delivered.envelopes == 20).await;
    until(|| emitter.state() == EmitterState::Working).await;
    assert_eq!(served.events().len(), 20, "each of them once");
}
