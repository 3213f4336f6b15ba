//! A lane: the queue between one observer and one emitter, and its accounts.
//!
//! Queue and accounts share one lock, so the lane line adds up at any moment.

use std::sync::Arc as StdArc;

use tokio::sync::Notify;

use crate::event::{Event, Priority};
use crate::ledger::{DropReason, LaneCounts, LaneLine, Tally};
use crate::pool::EventPool;
use crate::queue::{QueueConfig, QueueCore, QueueDrop};
use crate::sync::{Mutex, lock};

/// What waits of one event: the event with its count, so that accounting for
/// it does not touch it.
type Slot = (StdArc<Event>, u64);

/// What an event that waits takes beside itself: the counts of its `Arc`, what
/// the allocator keeps of a block, and its slot in the queue with its bytes,
/// twice, as queues grow by doubling.
const BESIDE_AN_EVENT: usize =
    2 * size_of::<usize>() + 16 + 2 * (size_of::<Slot>() + size_of::<usize>());

/// What an event that waits takes of a lane's bytes.
#[inline]
pub(crate) fn bytes_of(event: &Event) -> usize {
    event.size_bytes() + BESIDE_AN_EVENT
}

/// The queue between one observer and one emitter.
#[derive(Debug)]
pub(crate) struct Lane {
    observer: String,
    emitter: String,
    inner: Mutex<Inner>,
    /// Told when the lane is closed and nothing of it is left.
    settled: Notify,
    /// Told when the lane is closed.
    closed: Notify,
    /// Where the memory of delivered events goes.
    pub(crate) pool: StdArc<EventPool>,
}

#[derive(Debug)]
struct Inner {
    queue: QueueCore<Slot>,
    counts: LaneCounts,
    state: State,
    /// Goes up when what is in flight is given up, so that the worker's late
    /// answer for it is not counted a second time.
    epoch: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// No more events are taken; what waits is still delivered.
    Closed,
}

/// What became of the part of a batch that came from one lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Settlement {
    // Each by priority.
    pub(crate) delivered: [Tally; 2],
    pub(crate) rejected: [Tally; 2],
    pub(crate) dropped: [Tally; 2],
}

/// What may still be taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) items: usize,
    pub(crate) bytes: usize,
}

/// How full a lane is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fill {
    pub(crate) items: usize,
    pub(crate) bytes: usize,
}

impl Lane {
    pub(crate) fn new(
        observer: &str,
        emitter: &str,
        config: QueueConfig,
        pool: StdArc<EventPool>,
    ) -> Self {
        Lane {
            observer: observer.to_owned(),
            emitter: emitter.to_owned(),
            inner: Mutex::new(Inner {
                queue: QueueCore::new(config),
                counts: LaneCounts::default(),
                state: State::Open,
                epoch: 0,
            }),
            settled: Notify::new(),
            closed: Notify::new(),
            pool,
        }
    }

    /// Goes by other bounds from now on; nothing is given up for it.
    pub(crate) fn reconfigure(&self, config: QueueConfig) {
        lock(&self.inner).queue.reconfigure(config);
    }

    /// Puts events in, in order. What is given up for them is moved to
    /// `given_up`, to be dropped outside the lock.
    pub(crate) fn push(
        &self,
        events: impl Iterator<Item = StdArc<Event>>,
        given_up: &mut Vec<StdArc<Event>>,
    ) {
        let mut inner = lock(&self.inner);
        let Inner { queue, counts, state, .. } = &mut *inner;
        for event in events {
            let tally = Tally::one(event.count);
            counts.routed += tally;
            let priority = event.kind.priority();
            if *state == State::Closed {
                counts.drop_one(DropReason::Closed, priority, event.count);
                given_up.push(event);
                continue;
            }
            let (bytes, count) = (bytes_of(&event), event.count);
            let mut give_up = |(victim, count), priority, why: QueueDrop| {
                counts.queued -= Tally::one(count);
                counts.drop_one(why.into(), priority, count);
                given_up.push(victim);
            };
            match queue.push((event, count), priority, bytes, &mut give_up) {
                None => counts.queued += tally,
                Some(((victim, count), why)) => {
                    counts.drop_one(why.into(), priority, count);
                    given_up.push(victim);
                }
            }
        }
    }

    /// Takes events of one priority, as many as `room` has; they are in flight
    /// then. One at least where `into` is empty, whatever its size. Returns the
    /// epoch to settle them with, and their bytes.
    pub(crate) fn take(
        &self,
        priority: Priority,
        room: Room,
        into: &mut Vec<StdArc<Event>>,
    ) -> (u64, usize) {
        let mut inner = lock(&self.inner);
        let mut taken = Tally::default();
        let mut taken_bytes = 0;
        for _ in 0..room.items {
            let left = if into.is_empty() { usize::MAX } else { room.bytes - taken_bytes };
            let Some(((event, count), bytes)) = inner.queue.pop_within(priority, left) else {
                break;
            };
            taken += Tally::one(count);
            taken_bytes = (taken_bytes + bytes).min(room.bytes);
            into.push(event);
        }
        inner.counts.queued -= taken;
        inner.counts.in_flight[priority as usize] += taken;
        (inner.epoch, taken_bytes)
    }

    /// Whether an event waits.
    pub(crate) fn has_work(&self) -> bool {
        lock(&self.inner).queue.len() > 0
    }

    /// How much waits, and whether that is half of what may.
    pub(crate) fn waiting(&self) -> (Fill, bool) {
        let inner = lock(&self.inner);
        let fill = Fill { items: inner.queue.len(), bytes: inner.queue.bytes() };
        (fill, inner.queue.is_half_full())
    }

    /// Accounts for events that were taken, unless they were given up since.
    pub(crate) fn settle(&self, epoch: u64, settlement: &Settlement, reason: DropReason) {
        let mut inner = lock(&self.inner);
        if inner.epoch != epoch {
            return;
        }
        let counts = &mut inner.counts;
        for p in Priority::ALL.map(|priority| priority as usize) {
            let parts = [settlement.delivered[p], settlement.rejected[p], settlement.dropped[p]];
            counts.in_flight[p] -= parts.into_iter().sum();
            counts.delivered += settlement.delivered[p];
            counts.rejected += settlement.rejected[p];
            counts.dropped[reason as usize][p] += settlement.dropped[p];
        }
        let settled = inner.is_settled();
        drop(inner);
        if settled {
            self.settled.notify_waiters();
        }
    }

    /// Takes no more events; what waits is still delivered.
    pub(crate) fn close(&self) {
        let mut inner = lock(&self.inner);
        inner.state = State::Closed;
        let settled = inner.is_settled();
        drop(inner);
        self.closed.notify_waiters();
        if settled {
            self.settled.notify_waiters();
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.inner).state == State::Closed
    }

    /// Waits until it is closed.
    pub(crate) async fn closed(&self) {
        loop {
            let notified = self.closed.notified();
            if self.is_closed() {
                return;
            }
            notified.await;
        }
    }

    /// Whether it is closed and nothing of it is left.
    pub(crate) fn is_settled(&self) -> bool {
        lock(&self.inner).is_settled()
    }

    /// Waits until it is closed and nothing of it is left.
    pub(crate) async fn settled(&self) {
        loop {
            let notified = self.settled.notified();
            if self.is_settled() {
                return;
            }
            notified.await;
        }
    }

    /// The time to drain is over: gives up what waits and what is in flight.
    pub(crate) fn give_up(&self) {
        let mut given_up = Vec::new();
        let mut inner = lock(&self.inner);
        inner.state = State::Closed;
        for priority in Priority::ALL {
            while let Some((event, count)) = inner.queue.pop(priority) {
                inner.counts.queued -= Tally::one(count);
                inner.counts.drop_one(DropReason::Deadline, priority, count);
                given_up.push(event);
            }
        }
        inner.give_up_in_flight(DropReason::Unacknowledged);
        drop(inner);
        self.closed.notify_waiters();
        self.settled.notify_waiters();
    }

    /// Whoever had what is in flight was left behind: counts it as dropped. What
    /// waits goes on with somebody else.
    pub(crate) fn give_up_in_flight(&self) {
        let mut inner = lock(&self.inner);
        inner.give_up_in_flight(DropReason::Unanswered);
        let settled = inner.is_settled();
        drop(inner);
        if settled {
            self.settled.notify_waiters();
        }
    }

    pub(crate) fn fill(&self) -> Fill {
        let inner = lock(&self.inner);
        Fill { items: inner.queue.len(), bytes: inner.queue.bytes() }
    }

    pub(crate) fn line(&self) -> LaneLine {
        let inner = lock(&self.inner);
        LaneLine::new(&self.observer, &self.emitter, &inner.counts)
    }
}

impl Inner {
    fn give_up_in_flight(&mut self, reason: DropReason) {
        self.epoch += 1;
        let in_flight = std::mem::take(&mut self.counts.in_flight);
        let dropped = &mut self.counts.dropped[reason as usize];
        for priority in Priority::ALL.map(|priority| priority as usize) {
            dropped[priority] += in_flight[priority];
        }
    }

    fn is_settled(&self) -> bool {
        self.state == State::Closed
            && self.queue.len() == 0
            && self.counts.in_flight == <[Tally; 2]>::default()
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::config::DropPolicy;
    use crate::event::{CONNECTION_REFUSED, ErrorInfo, Severity};

    fn event(message_len: usize) -> StdArc<Event> {
        let mut event = Event::new(&CONNECTION_REFUSED, Severity::Error);
        let message = "x".repeat(message_len).into();
        event.error = Some(ErrorInfo { code: "E".into(), message, cause: None });
        StdArc::new(event)
    }

    #[test]
    fn what_is_taken_at_once_fits_the_room_and_one_event_is_always_taken() {
        let policy = DropPolicy::Oldest;
        let config = QueueConfig { capacity: 10, max_bytes: 1 << 20, policy };
        let lane = Lane::new("o", "e", config, StdArc::default());
        let small = bytes_of(&event(100));
        lane.push([100, 100, 100, 50_000, 100].map(event).into_iter(), &mut Vec::new());
        let mut taken = Vec::new();
        let mut take = |bytes| {
            taken.clear();
            let room = Room { items: 10, bytes };
            let (_, bytes) = lane.take(Priority::Normal, room, &mut taken);
            (taken.len(), bytes)
        };
        assert_eq!(take(2 * small), (2, 2 * small));
        assert_eq!(take(49_000), (1, small), "the large one does not fit behind the small one");
        assert_eq!(take(49_000), (1, 49_000), "alone it goes, and fills the room");
        assert_eq!(take(49_000), (1, small));
        assert_eq!(take(49_000), (0, 0));
        assert_eq!(lane.line().in_flight.envelopes, 5);
    }

    #[test]
    fn half_full_is_by_items_or_by_bytes() {
        let policy = DropPolicy::Oldest;
        let bytes = bytes_of(&event(100));
        for (capacity, max_bytes, half) in [(4, 1 << 20, 2), (100, 6 * bytes, 3)] {
            let lane =
                Lane::new("o", "e", QueueConfig { capacity, max_bytes, policy }, StdArc::default());
            for n in 1..=half {
                assert!(!lane.waiting().1, "{n} of {half}");
                lane.push([event(100)].into_iter(), &mut Vec::new());
            }
            assert!(lane.waiting().1);
        }
    }
}
