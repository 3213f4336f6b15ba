//! A durable emitter is served from a log: what it fails to take is tried
//! again, and one event that can't be sent blocks no other.
#![cfg(not(shuttle))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "stage/misbehaving.rs"]
mod misbehaving;

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use misbehaving::until;
use tokio::sync::watch;
use vahti_runtime::delivery::{EmitterConfig, EmitterHandle, EmitterState};
use vahti_runtime::durable::{DurableCursor, DurableLog, LogError, Owed, Settled};
use vahti_runtime::emitter::{Emission, EmitOutcome, EventEmitter};
use vahti_runtime::event::{CONNECTION_REFUSED, Event, PROCESS_CRASH, Severity};
use vahti_runtime::ledger::LaneLine;

/// A log in memory; every tenth of its events is critical.
#[derive(Clone)]
struct Log {
    events: Arc<Mutex<Vec<Entry>>>,
    committed: watch::Sender<u64>,
}

struct Entry {
    event: Arc<Event>,
    settled: Option<Settled>,
}

impl Log {
    fn of(n: u64) -> Self {
        let entry = |count| {
            let kind = if count % 10 == 0 { &PROCESS_CRASH } else { &CONNECTION_REFUSED };
            let event = Arc::new(Event { count, ..Event::new(kind, Severity::Error) });
            Entry { event, settled: None }
        };
        let events = (1..=n).map(entry).collect();
        Log { events: Arc::new(Mutex::new(events)), committed: watch::Sender::new(n) }
    }

    /// Waits until all is settled; which were set aside, and why.
    async fn set_aside(&self) -> BTreeMap<u64, String> {
        until(|| self.events.lock().unwrap().iter().all(|entry| entry.settled.is_some())).await;
        let events = self.events.lock().unwrap();
        let settled = events.iter().filter_map(|entry| entry.settled.clone());
        settled.filter_map(|s| Some((s.seq, s.rejected?))).collect()
    }
}

impl DurableLog for Log {
    fn cursor(&self, _: &str) -> Result<Box<dyn DurableCursor>, LogError> {
        Ok(Box::new(self.clone()))
    }

    fn line(&self, emitter: &str) -> LaneLine {
        LaneLine::durable("store", emitter, &Default::default())
    }

    fn committed(&self) -> watch::Receiver<u64> {
        self.committed.subscribe()
    }
}

impl DurableCursor for Log {
    fn read(&mut self, limit: usize) -> Result<Vec<Owed>, LogError> {
        let events = self.events.lock().unwrap();
        let open = events.iter().filter(|entry| entry.settled.is_none());
        let owed = open.map(|e| Owed { seq: e.event.count, event: Arc::clone(&e.event) });
        let mut owed: Vec<Owed> = owed.collect();
        owed.sort_by_key(|owed| owed.event.kind != &PROCESS_CRASH);
        owed.truncate(limit);
        Ok(owed)
    }

    fn settle(&mut self, settled: Vec<Settled>) -> Result<(), LogError> {
        let mut events = self.events.lock().unwrap();
        for settled in settled {
            let entry = &mut events[settled.seq as usize - 1];
            assert!(entry.settled.is_none(), "{settled:?} comes twice");
            entry.settled = Some(settled);
        }
        Ok(())
    }
}

/// What the other side does not take.
#[derive(Clone, Default)]
struct Picky {
    /// Refuses any batch with one of these in it.
    refuses: &'static [u64],
    /// Panics at any batch with one of these in it.
    panics_at: &'static [u64],
    /// Takes as many at once.
    most: Option<usize>,
    /// Is away for so many calls.
    away: Arc<Mutex<u32>>,
    arrived: Arc<Mutex<Vec<u64>>>,
}

impl EventEmitter for Picky {
    fn name(&self) -> &str {
        "picky"
    }

    fn emit<'a>(&'a mut self, batch: &'a [Arc<Event>]) -> Emission<'a, EmitOutcome> {
        let has = |some: &[u64]| batch.iter().any(|event| some.contains(&event.count));
        let mut away = self.away.lock().unwrap();
        let outcome = if *away > 0 {
            *away -= 1;
            EmitOutcome::Retryable { reason: "it is away".to_owned(), retry_after: None }
        } else if self.most.is_some_and(|most| batch.len() > most) {
            EmitOutcome::TooLarge { reason: "that is too much".to_owned() }
        } else if has(self.panics_at) {
            drop(away);
            panic!("not that one")
        } else if has(self.refuses) {
            EmitOutcome::Rejected { reason: "no such thing".to_owned() }
        } else {
            self.arrived.lock().unwrap().extend(batch.iter().map(|event| event.count));
            EmitOutcome::Delivered
        };
        Box::pin(ready(outcome))
    }
}

/// Serves all of a log; what was set aside.
async fn serve(emitter: &Picky, log: &Log) -> BTreeMap<u64, String> {
    let made = emitter.clone();
    let config = EmitterConfig { emit_timeout: Duration::from_secs(10), ..Default::default() };
    let handle =
        EmitterHandle::start_durable(move || Box::new(made.clone()), config, Arc::new(log.clone()));
    let handle = handle.unwrap();
    let set_aside = log.set_aside().await;
    until(|| handle.state() == EmitterState::Working).await;
    set_aside
}

fn sorted(emitter: &Picky) -> Vec<u64> {
    let mut arrived = emitter.arrived.lock().unwrap().clone();
    arrived.sort_unstable();
    arrived
}

fn all_but(n: u64, poison: &[u64]) -> Vec<u64> {
    (1..=n).filter(|count| !poison.contains(count)).collect()
}

#[tokio::test]
async fn what_the_other_side_refuses_is_found_and_blocks_nothing() {
    let poison = &[1, 70, 511, 512, 1_000];
    let emitter = Picky { refuses: poison, ..Picky::default() };
    let set_aside = serve(&emitter, &Log::of(1_000)).await;
    assert_eq!(set_aside.keys().copied().collect::<Vec<_>>(), poison);
    assert!(set_aside.values().all(|reason| reason == "no such thing"), "{set_aside:?}");
    assert_eq!(sorted(&emitter), all_but(1_000, poison));
}

#[tokio::test]
async fn one_that_is_refused_takes_no_other_with_it_where_batches_are_cut() {
    let poison = &[3, 40];
    let emitter = Picky { refuses: poison, most: Some(16), ..Picky::default() };
    let set_aside = serve(&emitter, &Log::of(300)).await;
    assert_eq!(set_aside.keys().copied().collect::<Vec<_>>(), poison);
    assert_eq!(sorted(&emitter), all_but(300, poison));
}

#[tokio::test]
async fn what_the_emitter_panics_at_twice_is_set_aside() {
    let poison = &[20];
    let emitter = Picky { panics_at: poison, ..Picky::default() };
    let set_aside = serve(&emitter, &Log::of(60)).await;
    assert_eq!(set_aside.keys().copied().collect::<Vec<_>>(), poison);
    assert!(set_aside[&20].contains("panics"), "{set_aside:?}");
    assert_eq!(sorted(&emitter), all_but(60, poison));
}

#[tokio::test]
async fn after_an_outage_all_of_it_comes_once_critical_first_each_in_order() {
    let emitter = Picky { away: Arc::new(Mutex::new(4)), ..Picky::default() };
    assert_eq!(serve(&emitter, &Log::of(100)).await, BTreeMap::new());
    let (mut critical, mut normal) = (Vec::new(), Vec::new());
    (1..=100).for_each(|n| if n % 10 == 0 { critical.push(n) } else { normal.push(n) });
    assert_eq!(*emitter.arrived.lock().unwrap(), [critical, normal].concat());
}
