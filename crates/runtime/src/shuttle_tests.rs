//! Queue, lane, doorbell and drain under thousands of schedules.
//!
//! ```text
//! RUSTFLAGS="--cfg shuttle" cargo test -p vahti-runtime --lib shuttle --target-dir target/shuttle
//! ```
//!
//! Shuttle runs threads one at a time and chooses who is next at each lock,
//! atomic and wake-up; a wake-up that is lost leaves everybody asleep, which it
//! reports as a deadlock. It knows no weak memory: that `Doorbell`'s fences are
//! there is not proven here, only that its steps are in the right order.
//!
//! That these tests can fail was seen by breaking the code: `ring` looking
//! whether the bell is armed before the work is put down, and `wait` not looking
//! again after it armed the bell, both end in a deadlock (kept as tests below);
//! so do `wait` arming the bell after it looked, `ring` disarming without waking,
//! and `close` or `settle` not telling `settled`. `give_up` that leaves the epoch alone fails
//! the counts.

#![allow(clippy::unwrap_used)] // The module as a whole is a test.

use std::sync::Arc;

use shuttle::future::block_on;
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::thread;

use crate::config::DropPolicy;
use crate::doorbell::Doorbell;
use crate::event::{Event, EventKind, Priority, Severity};
use crate::lane::{Lane, Room, Settlement};
use crate::ledger::{DropReason, LaneLine, Tally};
use crate::queue::{BoundedQueue, Enqueued, QueueConfig};

const SCHEDULES: usize = 2_000;

static NORMAL: EventKind = EventKind::custom("test.n", "test", "n", Priority::Normal);
static CRITICAL: EventKind = EventKind::custom("test.c", "test", "c", Priority::Critical);

/// Random schedules, and those that need few switches at just the wrong moment.
fn check(model: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(model.clone(), SCHEDULES);
    for depth in 1..=3 {
        shuttle::check_pct(model.clone(), SCHEDULES, depth);
    }
}

/// Two lanes to one emitter.
struct Stage {
    lanes: [Lane; 2],
    bell: Doorbell,
    ending: AtomicBool,
}

impl Stage {
    fn new(capacity: usize) -> Arc<Self> {
        let config = QueueConfig { capacity, max_bytes: usize::MAX, policy: DropPolicy::Oldest };
        Arc::new(Stage {
            lanes: ["a", "b"]
                .map(|observer| Lane::new(observer, "emitter", config, Arc::default())),
            bell: Doorbell::new(),
            ending: AtomicBool::new(false),
        })
    }

    /// What a pipeline does with a batch.
    fn produce(&self, lane: usize, count: u64) {
        for kind in [&NORMAL, &CRITICAL, &NORMAL] {
            let event = Event { count, ..Event::new(kind, Severity::Info) };
            self.lanes[lane].push(std::iter::once(Arc::new(event)), &mut Vec::new());
            self.bell.ring();
        }
    }

    /// What an emitter's worker does; returns what it saw of each lane.
    fn work(&self) -> [Tally; 2] {
        let mut seen = [Tally::default(); 2];
        loop {
            let mut any = false;
            for (lane, seen) in self.lanes.iter().zip(&mut seen) {
                any |= take_and_settle(lane, seen);
            }
            if any {
                continue;
            }
            let ending = || self.ending.load(Ordering::Acquire);
            if ending() && self.lanes.iter().all(Lane::is_settled) {
                return seen;
            }
            let news = || self.lanes.iter().any(Lane::has_work) || ending();
            block_on(self.bell.wait(news));
        }
    }

    /// What ends an emitter.
    fn end(&self) {
        self.lanes.iter().for_each(Lane::close);
        self.ending.store(true, Ordering::Release);
        self.bell.ring();
    }
}

fn take_and_settle(lane: &Lane, seen: &mut Tally) -> bool {
    let mut events = Vec::new();
    let mut epoch = 0;
    for priority in Priority::ALL {
        let before = events.len();
        let room = Room { items: 2, bytes: usize::MAX };
        let (taken_in, _) = lane.take(priority, room, &mut events);
        // The epoch belongs to the events: a deadline may come between.
        if events.len() > before {
            epoch = taken_in;
        }
    }
    let mut settlement = Settlement::default();
    for event in &events {
        let tally = Tally::one(event.count);
        settlement.delivered[event.kind.priority() as usize] += tally;
        *seen += tally;
    }
    // An emitter takes its time: others get their turn here.
    thread::yield_now();
    if !events.is_empty() {
        lane.settle(epoch, &settlement, DropReason::RetriesExhausted);
    }
    !events.is_empty()
}

fn assert_exact(line: &LaneLine) {
    assert_eq!(line.difference, 0, "{line:?}");
    let parts = line.delivered.envelopes + line.dropped_total().envelopes;
    let waiting = line.queued.envelopes + line.in_flight.envelopes;
    assert_eq!(line.routed.envelopes, parts + waiting, "{line:?}");
}

#[test]
fn shuttle_what_is_pushed_before_the_end_is_delivered_or_counted() {
    for capacity in [1, 100] {
        check(move || {
            let stage = Stage::new(capacity);
            let producers = [0, 1].map(|lane| {
                let stage = Arc::clone(&stage);
                thread::spawn(move || stage.produce(lane, 3))
            });
            let worker = Arc::clone(&stage);
            let worker = thread::spawn(move || worker.work());
            producers.into_iter().for_each(|producer| producer.join().unwrap());
            stage.end();
            stage.lanes.iter().for_each(|lane| block_on(lane.settled()));
            let seen = worker.join().unwrap();
            for (lane, seen) in stage.lanes.iter().zip(seen) {
                let line = lane.line();
                assert_exact(&line);
                assert_eq!((line.routed.occurrences, line.delivered), (9, seen));
                if capacity == 100 {
                    assert_eq!(line.delivered.occurrences, 9, "nothing had to go");
                }
            }
        });
    }
}

#[test]
fn shuttle_what_comes_while_it_closes_is_counted_and_the_drain_ends() {
    check(|| {
        let stage = Stage::new(2);
        let producer = Arc::clone(&stage);
        let producer = thread::spawn(move || producer.produce(0, 1));
        let worker = Arc::clone(&stage);
        let worker = thread::spawn(move || worker.work());
        // Waits before the lanes are closed, too.
        let waiter = Arc::clone(&stage);
        let waiter = thread::spawn(move || waiter.lanes.iter().for_each(|l| block_on(l.settled())));
        stage.end();
        waiter.join().unwrap();
        producer.join().unwrap();
        let [seen, _] = worker.join().unwrap();
        let line = stage.lanes[0].line();
        assert_exact(&line);
        assert_eq!((line.routed.envelopes, line.delivered), (3, seen));
        assert_eq!((line.queued.envelopes, line.in_flight.envelopes), (0, 0));
    });
}

#[test]
fn shuttle_a_deadline_at_any_moment_leaves_exact_counts() {
    check(|| {
        let stage = Stage::new(2);
        let producer = Arc::clone(&stage);
        let producer = thread::spawn(move || producer.produce(0, 1));
        let worker = Arc::clone(&stage);
        let worker = thread::spawn(move || worker.work());
        let waiter = Arc::clone(&stage);
        let waiter = thread::spawn(move || block_on(waiter.lanes[0].settled()));
        stage.lanes[0].give_up();
        stage.end();
        waiter.join().unwrap();
        producer.join().unwrap();
        let [seen, _] = worker.join().unwrap();
        let line = stage.lanes[0].line();
        assert_exact(&line);
        assert_eq!((line.queued.envelopes, line.in_flight.envelopes), (0, 0));
        let unsure = line.dropped_for(DropReason::Unacknowledged).envelopes;
        assert_eq!(line.delivered.envelopes + unsure, seen.envelopes, "{line:?}");
    });
}

#[test]
fn shuttle_a_lane_adds_up_at_any_moment() {
    check(|| {
        let stage = Stage::new(1);
        let producer = Arc::clone(&stage);
        let producer = thread::spawn(move || producer.produce(0, 2));
        let worker = Arc::clone(&stage);
        let worker = thread::spawn(move || worker.work());
        let mut before = stage.lanes[0].line();
        for _ in 0..4 {
            let now = stage.lanes[0].line();
            assert_exact(&now);
            assert!(before.routed.occurrences <= now.routed.occurrences);
            assert!(before.delivered.occurrences <= now.delivered.occurrences);
            before = now;
            thread::yield_now();
        }
        producer.join().unwrap();
        stage.end();
        worker.join().unwrap();
    });
}

#[test]
fn shuttle_a_queue_loses_and_doubles_nothing() {
    check(|| {
        let config = QueueConfig { capacity: 2, max_bytes: usize::MAX, policy: DropPolicy::Oldest };
        let queue = Arc::new(BoundedQueue::new(config));
        let producers = [0u32, 10].map(|first| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let mut given_up = Vec::new();
                for item in first..first + 3 {
                    match queue.enqueue(item, Priority::Normal, 1) {
                        Enqueued::Queued => {}
                        Enqueued::Displaced(items) => given_up.extend(items),
                        Enqueued::Refused(item, _) => given_up.push(item),
                    }
                }
                given_up
            })
        });
        let consumer = Arc::clone(&queue);
        let consumer =
            thread::spawn(move || (0..3).filter_map(|_| consumer.dequeue()).collect::<Vec<_>>());
        let mut all = consumer.join().unwrap();
        assert!(is_in_order(&all), "{all:?}");
        for producer in producers {
            all.extend(producer.join().unwrap());
        }
        all.extend(std::iter::from_fn(|| queue.dequeue()));
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 10, 11, 12]);
    });
}

/// Each producer's items in their order.
fn is_in_order(items: &[u32]) -> bool {
    [0..10u32, 10..20].into_iter().all(|of| items.iter().filter(|i| of.contains(*i)).is_sorted())
}

/// One item is put down for one who waits.
fn hand_over(ring_first: bool, look_again: bool) {
    let work = Arc::new((AtomicBool::new(false), Doorbell::new()));
    let other = Arc::clone(&work);
    let producer = thread::spawn(move || {
        if ring_first {
            other.1.ring();
        }
        other.0.store(true, Ordering::Release);
        if !ring_first {
            other.1.ring();
        }
    });
    while !work.0.load(Ordering::Acquire) {
        block_on(work.1.wait(|| look_again && work.0.load(Ordering::Acquire)));
    }
    producer.join().unwrap();
}

#[test]
fn shuttle_a_doorbell_loses_no_wake_up() {
    check(|| hand_over(false, true));
}

#[test]
#[should_panic(expected = "deadlock")]
fn shuttle_finds_the_wake_up_that_is_lost_where_one_rings_before_the_work_is_there() {
    check(|| hand_over(true, true));
}

#[test]
#[should_panic(expected = "deadlock")]
fn shuttle_finds_the_wake_up_that_is_lost_where_one_does_not_look_again() {
    check(|| hand_over(false, false));
}
