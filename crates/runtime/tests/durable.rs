//! Durable emitters: served from a log until they have all of it, whatever
//! fails meanwhile.
#![cfg(not(shuttle))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "stage/misbehaving.rs"]
mod misbehaving;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use misbehaving::{CRITICAL, Gate, NORMAL, until};
use tokio::sync::watch;
use vahti_runtime::delivery::{EmitterConfig, EmitterHandle, EmitterState};
use vahti_runtime::durable::{DurableCursor, DurableLog, LogError, Owed, Settled};
use vahti_runtime::emitter::{Delivery, Emission, EmitOutcome, EventEmitter};
use vahti_runtime::event::{Event, Priority, Severity};
use vahti_runtime::ledger::{DurableCounts, LaneLine, Tally};

/// What a log does when it is asked for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Fails,
    Panics,
    /// Until the log's gate is opened.
    Hangs,
}

#[derive(Default)]
struct Entries {
    events: BTreeMap<u64, Arc<Event>>,
    settled: BTreeMap<u64, Option<String>>,
    /// Settled when it was settled already.
    twice: u64,
    in_flight: BTreeSet<u64>,
    open: VecDeque<Trouble>,
    read: VecDeque<Trouble>,
    settle: VecDeque<Trouble>,
    cursors: u64,
}

/// A log in memory; what it was told outlives every cursor.
#[derive(Clone, Default)]
struct Log {
    entries: Arc<Mutex<Entries>>,
    gate: Arc<Gate>,
    committed: Arc<watch::Sender<u64>>,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        // A log that panicked on purpose did so before it changed anything.
        self.entries.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Commits events whose counts tell them apart; critical ones end in 0.
    fn commit(&self, counts: impl IntoIterator<Item = u64>) {
        let mut entries = self.lock();
        for count in counts {
            let kind = if count % 10 == 0 { &CRITICAL } else { &NORMAL };
            let seq = entries.events.len() as u64 + 1;
            let event = Event { count, ..Event::new(kind, Severity::Error) };
            entries.events.insert(seq, Arc::new(event));
        }
        let seq = entries.events.len() as u64;
        drop(entries);
        self.committed.send_replace(seq);
    }

    fn is_settled(&self) -> bool {
        let entries = self.lock();
        entries.settled.len() == entries.events.len()
    }

    /// The counts of those that were set aside, in order.
    fn rejected(&self) -> Vec<u64> {
        let entries = self.lock();
        let rejected = entries.settled.iter().filter(|(_, reason)| reason.is_some());
        rejected.map(|(seq, _)| entries.events[seq].count).collect()
    }
}

type Troubles = VecDeque<Trouble>;

impl Log {
    /// Its accounts can be read while it hangs.
    fn meet(&self, of: fn(&mut Entries) -> &mut Troubles) -> Result<(), LogError> {
        let trouble = of(&mut self.lock()).pop_front();
        match trouble {
            None => {}
            Some(Trouble::Fails) => return Err(LogError("the log fails on purpose".to_owned())),
            Some(Trouble::Panics) => panic!("the log panics on purpose"),
            Some(Trouble::Hangs) => self.gate.wait(),
        }
        Ok(())
    }
}

impl DurableLog for Log {
    fn cursor(&self, _: &str) -> Result<Box<dyn DurableCursor>, LogError> {
        self.lock().cursors += 1;
        self.meet(|entries| &mut entries.open)?;
        Ok(Box::new(self.clone()))
    }

    fn line(&self, emitter: &str) -> LaneLine {
        let mut counts = [DurableCounts::default(); 2];
        let entries = self.lock();
        for (seq, event) in &entries.events {
            let counts = &mut counts[event.kind.priority() as usize];
            let one = Tally::one(event.count);
            counts.routed += one;
            match entries.settled.get(seq) {
                Some(None) => counts.delivered += one,
                Some(Some(_)) => counts.rejected += one,
                None if entries.in_flight.contains(seq) => counts.in_flight += one,
                None => counts.stored += one,
            }
        }
        LaneLine::durable("store", emitter, &counts)
    }

    fn committed(&self) -> watch::Receiver<u64> {
        self.committed.subscribe()
    }
}

impl DurableCursor for Log {
    fn read(&mut self, limit: usize) -> Result<Vec<Owed>, LogError> {
        self.meet(|entries| &mut entries.read)?;
        let mut entries = self.lock();
        let open = |priority| {
            let entries = &entries;
            let all = entries.events.iter();
            all.filter(move |(seq, event)| {
                event.kind.priority() == priority && !entries.settled.contains_key(seq)
            })
        };
        let owed: Vec<Owed> = open(Priority::Critical)
            .chain(open(Priority::Normal))
            .take(limit)
            .map(|(seq, event)| Owed { seq: *seq, event: Arc::clone(event) })
            .collect();
        entries.in_flight = owed.iter().map(|owed| owed.seq).collect();
        Ok(owed)
    }

    fn settle(&mut self, settled: Vec<Settled>) -> Result<(), LogError> {
        self.meet(|entries| &mut entries.settle)?;
        let mut entries = self.lock();
        entries.in_flight.clear();
        for Settled { seq, rejected } in settled {
            if entries.settled.insert(seq, rejected).is_some() {
                entries.twice += 1;
            }
        }
        Ok(())
    }
}

/// What the other side answers to a batch of these counts; `None` once it is
/// to be delivered.
type Answer = dyn Fn(&[u64]) -> Option<EmitOutcome> + Send + Sync;

type Try = (Instant, Vec<u64>);

/// What an emitter was given, and when.
#[derive(Clone)]
struct Wire {
    answer: Arc<Answer>,
    tried: Arc<Mutex<Vec<Try>>>,
    delivered: Arc<Mutex<Vec<u64>>>,
    made: Arc<AtomicU64>,
    closed: Arc<AtomicU64>,
    max_batch: usize,
}

impl Wire {
    fn new(answer: impl Fn(&[u64]) -> Option<EmitOutcome> + Send + Sync + 'static) -> Self {
        Wire {
            answer: Arc::new(answer),
            tried: Arc::default(),
            delivered: Arc::default(),
            made: Arc::default(),
            closed: Arc::default(),
            max_batch: 16,
        }
    }

    fn start(&self, log: &Log) -> EmitterHandle {
        self.start_with(log, EmitterConfig::default())
    }

    fn start_with(&self, log: &Log, config: EmitterConfig) -> EmitterHandle {
        let this = self.clone();
        let make = move || -> Box<dyn EventEmitter> {
            this.made.fetch_add(1, Ordering::SeqCst);
            Box::new(this.clone())
        };
        EmitterHandle::start_durable(make, config, Arc::new(log.clone())).unwrap()
    }

    fn tries(&self) -> usize {
        self.tried.lock().unwrap().len()
    }

    fn delivered(&self) -> Vec<u64> {
        self.delivered.lock().unwrap().clone()
    }

    fn made(&self) -> u64 {
        self.made.load(Ordering::SeqCst)
    }
}

impl EventEmitter for Wire {
    fn name(&self) -> &str {
        "wire"
    }

    fn max_batch(&self) -> usize {
        self.max_batch
    }

    fn emit<'a>(&'a mut self, batch: &'a [Arc<Event>]) -> Emission<'a, EmitOutcome> {
        let counts: Vec<u64> = batch.iter().map(|event| event.count).collect();
        self.tried.lock().unwrap().push((Instant::now(), counts.clone()));
        let outcome = (self.answer)(&counts).unwrap_or(EmitOutcome::Delivered);
        let mut delivered = self.delivered.lock().unwrap();
        match &outcome {
            EmitOutcome::Delivered => delivered.extend(counts),
            EmitOutcome::Each { deliveries, .. } => {
                let all = counts.iter().zip(deliveries);
                let there = all.filter(|(_, delivery)| **delivery == Delivery::Delivered);
                delivered.extend(there.map(|(count, _)| *count));
            }
            _ => {}
        }
        drop(delivered);
        Box::pin(std::future::ready(outcome))
    }

    fn close(&mut self) -> Emission<'_, Result<(), String>> {
        self.closed.fetch_add(1, Ordering::SeqCst);
        Box::pin(std::future::ready(Ok(())))
    }
}

fn later() -> EmitOutcome {
    EmitOutcome::Retryable { reason: "not now".to_owned(), retry_after: None }
}

fn never() -> EmitOutcome {
    EmitOutcome::Rejected { reason: "never".to_owned() }
}

async fn end_within(emitter: &EmitterHandle, limit: Duration) -> bool {
    emitter.end(tokio::time::Instant::now() + limit).await
}

fn assert_exact(emitter: &EmitterHandle) -> LaneLine {
    let line = emitter.lane_lines().remove(0);
    assert_eq!(line.difference, 0, "{line:#?}");
    line
}

#[tokio::test]
async fn all_that_is_committed_arrives_critical_first_and_each_priority_in_order() {
    let log = Log::default();
    log.commit(1..=100);
    let wire = Wire::new(|_| None);
    let emitter = wire.start(&log);
    assert!(emitter.is_durable());
    until(|| log.is_settled()).await;
    let wanted: Vec<u64> =
        (1..=10).map(|n| n * 10).chain((1..=100).filter(|n| n % 10 != 0)).collect();
    assert_eq!(wire.delivered(), wanted);
    // And what is committed later wakes it.
    log.commit([101, 110]);
    until(|| log.is_settled()).await;
    assert!(wire.delivered()[100..] == [110, 101] || wire.delivered()[100..] == [101, 110]);
    let line = assert_exact(&emitter);
    assert_eq!((line.delivered.envelopes, line.stored.envelopes), (102, 0));
    assert!(end_within(&emitter, Duration::from_secs(5)).await);
    assert_eq!(wire.closed.load(Ordering::SeqCst), 1);
    assert_eq!(log.lock().twice, 0);
}

#[tokio::test]
async fn of_a_batch_that_arrived_in_part_only_the_rest_is_sent_again() {
    let log = Log::default();
    log.commit((1..=9).chain(11..=15));
    let first = AtomicBool::new(true);
    let wire = Wire::new(move |counts| {
        first.swap(false, Ordering::SeqCst).then(|| EmitOutcome::Each {
            deliveries: counts
                .iter()
                .map(|count| match count % 3 {
                    0 => Delivery::Delivered,
                    1 => Delivery::Retryable,
                    _ => Delivery::Rejected,
                })
                .collect(),
            reason: "some".to_owned(),
            retry_after: None,
        })
    });
    let emitter = wire.start(&log);
    until(|| log.is_settled()).await;
    assert_eq!(wire.tried.lock().unwrap()[1].1, [1, 4, 7, 13]);
    assert_eq!(wire.delivered(), [3, 6, 9, 12, 15, 1, 4, 7, 13]);
    assert_eq!(log.rejected(), [2, 5, 8, 11, 14]);
    assert_eq!(assert_exact(&emitter).rejected.envelopes, 5);
}

#[tokio::test]
async fn what_was_answered_for_too_few_is_sent_again() {
    let log = Log::default();
    log.commit(1..=5);
    let first = AtomicBool::new(true);
    let wire = Wire::new(move |_| {
        first.swap(false, Ordering::SeqCst).then(|| EmitOutcome::Each {
            deliveries: vec![Delivery::Delivered; 2],
            reason: "short".to_owned(),
            retry_after: None,
        })
    });
    let emitter = wire.start(&log);
    until(|| log.is_settled()).await;
    assert_eq!(wire.delivered(), [1, 2, 3, 4, 5]);
    assert_exact(&emitter);
}

#[tokio::test]
async fn those_that_are_refused_for_good_are_found_and_all_others_arrive() {
    let bad = [3, 17, 18, 40, 99];
    let log = Log::default();
    log.commit(1..=100);
    let wire = Wire::new(move |counts| counts.iter().any(|c| bad.contains(c)).then(never));
    let emitter = wire.start(&log);
    until(|| log.is_settled()).await;
    assert_eq!(log.rejected(), bad);
    let mut delivered = wire.delivered();
    delivered.sort_unstable();
    assert_eq!(delivered, (1..=100).filter(|c| !bad.contains(c)).collect::<Vec<_>>());
    assert_exact(&emitter);
    // Halving, not one by one.
    assert!(wire.tries() < 100, "{}", wire.tries());
    until(|| emitter.state() == EmitterState::Working).await;
}

#[tokio::test]
async fn one_that_the_emitter_panics_at_is_set_aside_the_second_time() {
    let log = Log::default();
    log.commit(1..=20);
    let wire = Wire::new(|counts| {
        assert!(!counts.contains(&7), "panics on purpose");
        None
    });
    let emitter = wire.start(&log);
    until(|| log.is_settled()).await;
    assert_eq!(log.rejected(), [7]);
    let mut delivered = wire.delivered();
    delivered.sort_unstable();
    assert_eq!(delivered, (1..=20).filter(|c| *c != 7).collect::<Vec<_>>());
    // The first of its factory is made at the start; then one for each panic.
    assert_eq!(wire.made(), 1 + emitter.panics());
    let alone = wire.tried.lock().unwrap().iter().filter(|(_, counts)| *counts == [7]).count();
    assert_eq!(alone, 2);
    assert_exact(&emitter);
}

#[tokio::test]
async fn critical_ones_that_come_in_between_give_a_poisonous_one_no_further_chance() {
    let log = Log::default();
    log.commit(1..=9);
    let (more, next) = (log.clone(), AtomicU64::new(10));
    let wire = Wire::new(move |counts| {
        if counts == [7] && next.load(Ordering::SeqCst) < 200 {
            more.commit([next.fetch_add(10, Ordering::SeqCst)]);
        }
        assert!(!counts.contains(&7), "panics on purpose");
        None
    });
    let emitter = wire.start(&log);
    until(|| log.is_settled()).await;
    assert_eq!(log.rejected(), [7]);
    let alone = wire.tried.lock().unwrap().iter().filter(|(_, counts)| *counts == [7]).count();
    assert_eq!(alone, 2);
    assert_exact(&emitter);
}

#[tokio::test]
async fn a_panic_that_was_chance_costs_no_event() {
    let log = Log::default();
    log.commit([1]);
    let panics = AtomicU64::new(1);
    let wire = Wire::new(move |_| {
        let left = panics.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        assert!(left.is_err(), "panics on purpose");
        None
    });
    let emitter = wire.start(&log);
    until(|| log.is_settled()).await;
    assert_eq!((wire.delivered(), log.rejected()), (vec![1], vec![]));
    assert_eq!(emitter.panics(), 1);
}

/// A side that takes so many at once, and refuses some of them for good.
fn narrow(most: usize, bad: &'static [u64]) -> Wire {
    let too_large = || EmitOutcome::TooLarge { reason: "too large".to_owned() };
    Wire::new(move |counts| {
        if counts.len() > most {
            return Some(too_large());
        }
        counts.iter().any(|count| bad.contains(count)).then(never)
    })
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_sent_in_parts() {
    let log = Log::default();
    log.commit(1..=99);
    let wire = narrow(3, &[]);
    let emitter = wire.start(&log);
    until(|| log.is_settled()).await;
    let mut delivered = wire.delivered();
    delivered.sort_unstable();
    assert_eq!(delivered, (1..=99).collect::<Vec<_>>());
    assert!(wire.tries() < 120, "{}", wire.tries());
    assert_exact(&emitter);
}

#[tokio::test]
async fn a_refused_one_in_a_batch_that_is_too_large_takes_no_other_with_it() {
    let log = Log::default();
    log.commit(1..=60);
    let wire = narrow(6, &[20, 33, 34]);
    let emitter = wire.start(&log);
    until(|| log.is_settled()).await;
    assert_eq!(log.rejected(), [20, 33, 34]);
    assert_eq!(wire.delivered().len(), 57);
    assert_exact(&emitter);
}

#[tokio::test]
async fn a_single_one_that_is_too_large_is_set_aside() {
    let log = Log::default();
    log.commit(1..=20);
    let wire = Wire::new(|counts| {
        counts.contains(&5).then(|| EmitOutcome::TooLarge { reason: "a giant".to_owned() })
    });
    let emitter = wire.start(&log);
    until(|| log.is_settled()).await;
    assert_eq!(log.rejected(), [5]);
    assert_eq!(assert_exact(&emitter).delivered.envelopes, 19);
}

#[tokio::test]
async fn a_hint_of_the_other_side_is_followed() {
    let hint = Duration::from_millis(400);
    let log = Log::default();
    log.commit([1]);
    let first = AtomicBool::new(true);
    let wire = Wire::new(move |_| {
        let reason = "busy".to_owned();
        let busy = EmitOutcome::Retryable { reason, retry_after: Some(hint) };
        first.swap(false, Ordering::SeqCst).then_some(busy)
    });
    let emitter = wire.start(&log);
    until(|| matches!(emitter.state(), EmitterState::Failing(why) if why == "busy")).await;
    until(|| log.is_settled()).await;
    let tried = wire.tried.lock().unwrap();
    assert!(tried[1].0 - tried[0].0 >= hint);
}

#[tokio::test]
async fn an_outage_is_tried_less_and_less_often_and_loses_nothing() {
    let log = Log::default();
    log.commit(1..=30);
    let up = Arc::new(AtomicBool::new(false));
    let is_up = Arc::clone(&up);
    let wire = Wire::new(move |_| (!is_up.load(Ordering::SeqCst)).then(later));
    let emitter = wire.start(&log);
    until(|| wire.tries() >= 1).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let tries = wire.tries();
    assert!((2..=15).contains(&tries), "{tries} tries in 1.5 s");
    assert!(matches!(emitter.state(), EmitterState::Failing(_)));
    // What is committed meanwhile does not have it tried any sooner.
    log.commit(31..=60);
    let line = assert_exact(&emitter);
    assert_eq!((line.delivered.envelopes, line.dropped_total().envelopes), (0, 0));
    up.store(true, Ordering::SeqCst);
    until(|| log.is_settled()).await;
    until(|| emitter.state() == EmitterState::Working).await;
    assert_eq!(wire.delivered().len(), 60);
    assert_exact(&emitter);
}

/// Ten minutes on the clock of the emitter's own thread, which is stopped and
/// goes on whenever that thread has nothing to do.
#[tokio::test]
async fn an_outage_of_ten_minutes_costs_few_tries_and_no_event() {
    const OUTAGE: Duration = Duration::from_secs(600);
    let log = Log::default();
    log.commit(1..=500);
    let began: Mutex<Option<tokio::time::Instant>> = Mutex::default();
    let wire = Wire::new(move |_| {
        let mut began = began.lock().unwrap();
        let began = began.get_or_insert_with(|| {
            tokio::time::pause();
            tokio::time::Instant::now()
        });
        (began.elapsed() < OUTAGE).then(later)
    });
    let emitter = wire.start(&log);
    until(|| log.is_settled()).await;
    let sent = wire.delivered().len();
    let tries = wire.tries() - sent.div_ceil(wire.max_batch);
    assert_eq!(sent, 500, "each once");
    // Fifteen seconds apart on the average, thirty at most.
    assert!((20..=120).contains(&tries), "{tries}");
    assert_exact(&emitter);
    until(|| emitter.state() == EmitterState::Working).await;
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_an_emitter_that_fails() {
    let log = Log::default();
    log.commit(1..=5);
    let hint = Some(Duration::from_secs(300));
    let wire = Wire::new(move |_| {
        Some(EmitOutcome::Retryable { reason: "down".to_owned(), retry_after: hint })
    });
    let emitter = wire.start(&log);
    until(|| wire.tries() == 1).await;
    let begun = Instant::now();
    assert!(end_within(&emitter, Duration::from_secs(20)).await);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(wire.tries(), 2, "it is tried once more");
    let line = assert_exact(&emitter);
    assert_eq!(
        (line.stored.envelopes + line.in_flight.envelopes, emitter.state()),
        (5, EmitterState::Ended)
    );
    assert_eq!(wire.closed.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_shutdown_delivers_what_is_owed_to_an_emitter_that_works() {
    let log = Log::default();
    log.commit(1..=1_000);
    let wire = Wire::new(|_| {
        std::thread::sleep(Duration::from_millis(1));
        None
    });
    let emitter = wire.start(&log);
    assert!(end_within(&emitter, Duration::from_secs(20)).await);
    assert_eq!(wire.delivered().len(), 1_000);
    assert_eq!(assert_exact(&emitter).stored.envelopes, 0);
}

#[tokio::test]
async fn a_log_that_fails_or_panics_is_asked_again() {
    for trouble in [Trouble::Fails, Trouble::Panics] {
        let log = Log::default();
        log.lock().open.extend([trouble; 2]);
        log.lock().read.extend([trouble; 2]);
        log.commit(1..=20);
        let wire = Wire::new(|_| None);
        let emitter = wire.start(&log);
        until(|| matches!(emitter.state(), EmitterState::Failing(_))).await;
        until(|| log.is_settled()).await;
        assert_eq!(wire.delivered().len(), 20, "nothing was sent before it could be read");
        until(|| emitter.state() == EmitterState::Working).await;
        assert_eq!((emitter.panics(), wire.made()), (0, 1), "it is not the emitter's fault");
        assert_exact(&emitter);
    }
}

#[tokio::test]
async fn a_log_that_failed_while_nothing_was_owed_has_the_emitter_fail_no_longer_than_that() {
    let log = Log::default();
    log.lock().read.extend([Trouble::Fails; 2]);
    let wire = Wire::new(|_| None);
    let emitter = wire.start(&log);
    until(|| matches!(emitter.state(), EmitterState::Failing(_))).await;
    until(|| emitter.state() == EmitterState::Working).await;
    assert!(log.lock().read.is_empty(), "not before it could be read");
    assert_eq!(wire.tries(), 0);
}

#[tokio::test]
async fn a_log_that_does_not_answer_is_told_and_in_the_end_the_emitter_is_stuck() {
    for while_settling in [false, true] {
        let log = Log::default();
        let hangs = VecDeque::from([Trouble::Hangs]);
        if while_settling {
            log.lock().settle = hangs;
        } else {
            log.lock().read = hangs;
        }
        log.commit(1..=20);
        let wire = Wire::new(|_| None);
        let limit = Duration::from_millis(100);
        let config = EmitterConfig { emit_timeout: limit, ..EmitterConfig::default() };
        let begun = Instant::now();
        let emitter = wire.start_with(&log, config);
        let watcher = tokio::spawn(emitter.supervise());
        let told = |state| matches!(state, EmitterState::Failing(why) if why.contains("the store"));
        until(|| told(emitter.state())).await;
        // In this order: a test that is held up here must not tell of it.
        let is_stuck = emitter.is_stuck();
        assert!(!is_stuck || begun.elapsed() >= 5 * limit, "not at once");
        until(|| emitter.is_stuck()).await;
        assert!(begun.elapsed() >= 5 * limit, "not before calls that never return would be");
        assert_eq!(emitter.taken_over(), 0, "a fresh one would wait for the same log");
        assert_exact(&emitter);
        log.gate.open();
        until(|| log.is_settled()).await;
        until(|| !emitter.is_stuck() && emitter.state() == EmitterState::Working).await;
        assert_eq!(wire.delivered().len(), 20, "once");
        assert_exact(&emitter);
        assert!(end_within(&emitter, Duration::from_secs(5)).await);
        watcher.await.unwrap();
    }
}

#[tokio::test]
async fn a_log_that_does_not_answer_does_not_hold_up_a_shutdown() {
    let log = Log::default();
    log.lock().read.push_back(Trouble::Hangs);
    log.commit([1]);
    let emitter = Wire::new(|_| None).start(&log);
    until(|| log.lock().read.is_empty()).await;
    let begun = Instant::now();
    assert!(!end_within(&emitter, Duration::from_millis(100)).await, "it is left behind");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(assert_exact(&emitter).stored.envelopes, 1);
    log.gate.open();
}

#[tokio::test]
async fn what_could_not_be_settled_is_sent_again() {
    for trouble in [Trouble::Fails, Trouble::Panics] {
        let log = Log::default();
        log.lock().settle.extend([trouble; 2]);
        log.commit(1..=8);
        let wire = Wire::new(|_| None);
        let emitter = wire.start(&log);
        until(|| log.is_settled()).await;
        assert_eq!(wire.delivered(), [1, 2, 3, 4, 5, 6, 7, 8].repeat(3), "at least once");
        assert_eq!(log.lock().cursors, 3, "a cursor that failed is not used again");
        let line = assert_exact(&emitter);
        assert_eq!(line.delivered.envelopes, 8, "and counted once");
    }
}

#[tokio::test]
async fn a_log_that_is_down_at_a_shutdown_does_not_hold_it_up() {
    let log = Log::default();
    log.lock().read.extend([Trouble::Fails; 1_000]);
    log.commit([1]);
    let wire = Wire::new(|_| None);
    let emitter = wire.start(&log);
    until(|| matches!(emitter.state(), EmitterState::Failing(_))).await;
    let begun = Instant::now();
    assert!(end_within(&emitter, Duration::from_secs(20)).await);
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(assert_exact(&emitter).stored.envelopes, 1);
}

#[tokio::test]
async fn one_whose_call_never_returns_is_left_behind_and_settles_nothing() {
    let log = Log::default();
    log.commit(1..=40);
    let gate = Arc::new(Gate::default());
    let (blocks, came_back) = (AtomicU64::new(2), Arc::new(AtomicU64::new(0)));
    let (wait, back) = (Arc::clone(&gate), Arc::clone(&came_back));
    let wire = Wire::new(move |_| {
        let first = blocks.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if first.is_ok() {
            wait.wait();
            back.fetch_add(1, Ordering::SeqCst);
        }
        None
    });
    let limit = Duration::from_millis(100);
    let config = EmitterConfig { emit_timeout: limit, ..EmitterConfig::default() };
    let emitter = wire.start_with(&log, config);
    let watcher = tokio::spawn(emitter.supervise());
    until(|| emitter.taken_over() == 1).await;
    assert!(matches!(emitter.state(), EmitterState::Failing(_)));
    assert_exact(&emitter);
    until(|| log.is_settled()).await;
    assert_eq!(emitter.taken_over(), 2);
    until(|| emitter.state() == EmitterState::Working).await;
    let before = assert_exact(&emitter);
    assert_eq!(before.delivered.envelopes, 40);
    // They come back, late, with what has been settled long ago.
    gate.open();
    until(|| came_back.load(Ordering::SeqCst) == 2).await;
    log.commit([41]);
    until(|| log.is_settled()).await;
    assert!(end_within(&emitter, Duration::from_secs(5)).await);
    assert_eq!(log.lock().twice, 0);
    assert_eq!(wire.closed.load(Ordering::SeqCst), 1, "those left behind are not closed");
    watcher.await.unwrap();
}

#[tokio::test]
async fn refused_ones_that_nobody_names_are_counted_and_never_sent_again() {
    let log = Log::default();
    log.commit(1..=10);
    let wire = Wire::new(|_| {
        Some(EmitOutcome::RejectedUnidentified { rejected: 3, reason: "three".to_owned() })
    });
    let emitter = wire.start(&log);
    until(|| log.is_settled()).await;
    assert_eq!(wire.tries(), 1);
    let line = assert_exact(&emitter);
    assert_eq!((line.rejected.envelopes, line.delivered.envelopes), (3, 7));
}
