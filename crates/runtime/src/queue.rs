//! A bounded queue with two priorities and three drop policies.
//!
//! Bounded in items and in bytes. Every operation takes constant time whatever
//! the policy (an item larger than what it displaces may displace several).
//! It allocates as it fills, up to its capacity, and never again. What it
//! gives up is handed back, so that nothing is dropped inside the lock.

mod random;

use std::collections::VecDeque;

use crate::config::{BackpressureConfig, DropPolicy};
use crate::event::Priority;
use crate::sync::{Mutex, lock};
use random::RandomList;

/// Why an item was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QueueDrop {
    /// The queue held as many items as it may.
    Items,
    /// The queue held as many bytes as it may.
    Bytes,
    /// The item alone is larger than the queue may be.
    TooLarge,
}

/// Bounds and policy of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueConfig {
    /// Items at most; 0 is taken as 1.
    pub capacity: usize,
    /// Bytes at most.
    pub max_bytes: usize,
    /// What is given up when it is full.
    pub policy: DropPolicy,
}

impl QueueConfig {
    /// Those of an observer's lanes.
    pub(crate) fn of(backpressure: &BackpressureConfig) -> Self {
        QueueConfig {
            capacity: backpressure.queue_size,
            max_bytes: backpressure.max_bytes().as_usize(),
            policy: backpressure.drop_policy,
        }
    }
}

/// What became of an item that was put in.
#[derive(Debug, PartialEq, Eq)]
pub enum Enqueued<T> {
    /// It waits; nothing was given up.
    Queued,
    /// It waits; these were given up for it, at least one.
    Displaced(Vec<T>),
    /// It was given up itself.
    Refused(T, QueueDrop),
}

/// The queue, safe to share between threads.
///
/// ```
/// use vahti_runtime::config::DropPolicy;
/// use vahti_runtime::event::Priority;
/// use vahti_runtime::queue::{BoundedQueue, QueueConfig};
///
/// let config = QueueConfig { capacity: 2, max_bytes: 1024, policy: DropPolicy::Oldest };
/// let queue = BoundedQueue::new(config);
/// for n in 0..3 {
///     queue.enqueue(n, Priority::Normal, 8);
/// }
/// assert_eq!(queue.dequeue(), Some(1), "0 was the oldest");
/// ```
#[derive(Debug)]
pub struct BoundedQueue<T> {
    core: Mutex<QueueCore<T>>,
}

impl<T> BoundedQueue<T> {
    /// An empty queue.
    #[must_use]
    pub fn new(config: QueueConfig) -> Self {
        BoundedQueue { core: Mutex::new(QueueCore::new(config)) }
    }

    /// Puts an item in; what is given up for it is handed back.
    pub fn enqueue(&self, item: T, priority: Priority, bytes: usize) -> Enqueued<T> {
        let mut displaced = Vec::new();
        let refused =
            lock(&self.core).push(item, priority, bytes, &mut |item, _, _| displaced.push(item));
        match refused {
            Some((item, why)) => Enqueued::Refused(item, why),
            None if displaced.is_empty() => Enqueued::Queued,
            None => Enqueued::Displaced(displaced),
        }
    }

    /// Puts an item in and drops what is given up, outside the lock. Returns
    /// whether the item waits now.
    pub fn enqueue_or_drop(&self, item: T, priority: Priority, bytes: usize) -> bool {
        let mut first = None;
        let mut rest = Vec::new();
        let refused = lock(&self.core).push(item, priority, bytes, &mut |item, _, _| {
            if let Some(item) = first.replace(item) {
                rest.push(item);
            }
        });
        refused.is_none()
    }

    /// Takes the oldest item: of the critical ones, else of the normal ones.
    pub fn dequeue(&self) -> Option<T> {
        let mut core = lock(&self.core);
        core.pop(Priority::Critical).or_else(|| core.pop(Priority::Normal))
    }

    /// Goes by other bounds and another policy from now on. Nothing that waits
    /// is given up for it: a queue that holds more than it may now is full, and
    /// its room sinks with what leaves.
    ///
    /// ```
    /// use vahti_runtime::config::DropPolicy;
    /// use vahti_runtime::event::Priority;
    /// use vahti_runtime::queue::{BoundedQueue, Enqueued, QueueConfig};
    ///
    /// let config = QueueConfig { capacity: 3, max_bytes: 1024, policy: DropPolicy::Newest };
    /// let queue = BoundedQueue::new(config);
    /// for n in 0..3 {
    ///     queue.enqueue(n, Priority::Normal, 8);
    /// }
    /// queue.reconfigure(QueueConfig { capacity: 1, ..config });
    /// assert_eq!(queue.len(), 3, "they wait still");
    /// assert!(matches!(queue.enqueue(3, Priority::Normal, 8), Enqueued::Refused(3, _)));
    /// ```
    pub fn reconfigure(&self, config: QueueConfig) {
        lock(&self.core).reconfigure(config);
    }

    /// How many items wait.
    pub fn len(&self) -> usize {
        lock(&self.core).len()
    }

    /// How many items may wait.
    pub fn capacity(&self) -> usize {
        lock(&self.core).bound.items
    }

    /// Whether no item waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether as many items wait as may.
    pub fn is_full(&self) -> bool {
        let core = lock(&self.core);
        core.len() >= core.room.items
    }
}

/// What waits of one priority, oldest first.
#[derive(Debug)]
enum List<T> {
    /// Leaves at either end: oldest and newest need no more.
    Line(VecDeque<(T, usize)>),
    /// Leaves anywhere.
    Random(RandomList<T>),
}

impl<T> List<T> {
    fn new(policy: DropPolicy) -> Self {
        match policy {
            DropPolicy::Oldest | DropPolicy::Newest => List::Line(VecDeque::new()),
            DropPolicy::Random => List::Random(RandomList::new()),
        }
    }

    fn len(&self) -> usize {
        match self {
            List::Line(line) => line.len(),
            List::Random(list) => list.len(),
        }
    }

    #[inline]
    fn push_back(&mut self, item: T, bytes: usize, capacity: usize) {
        match self {
            List::Line(line) => {
                if line.len() == line.capacity() {
                    line.reserve_exact(growth(line.len(), capacity));
                }
                line.push_back((item, bytes));
            }
            List::Random(list) => list.push_back(item, bytes, capacity),
        }
    }

    #[inline]
    fn pop_front(&mut self) -> Option<(T, usize)> {
        match self {
            List::Line(line) => line.pop_front(),
            List::Random(list) => list.pop_front(),
        }
    }

    #[inline]
    fn front_bytes(&self) -> Option<usize> {
        match self {
            List::Line(line) => line.front().map(|(_, bytes)| *bytes),
            List::Random(list) => list.front_bytes(),
        }
    }
}

/// How much memory to ask for: twice what there is, on the way to the capacity
/// and never beyond it.
fn growth(len: usize, capacity: usize) -> usize {
    len.max(64).min(capacity.saturating_sub(len)).max(1)
}

/// The queue without its lock; lanes keep their accounts under the same one.
#[derive(Debug)]
pub(crate) struct QueueCore<T> {
    /// By priority.
    lists: [List<T>; 2],
    /// By priority.
    bytes: [usize; 2],
    len: usize,
    /// What it may hold.
    bound: Bound,
    /// What it may hold now: where the bound was lowered below what waits, that,
    /// and less with all that leaves.
    room: Bound,
    policy: DropPolicy,
    random: u64,
}

/// Items, and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bound {
    items: usize,
    bytes: usize,
}

impl Bound {
    fn of(config: &QueueConfig) -> Self {
        Bound { items: config.capacity.clamp(1, random::MAX_LEN), bytes: config.max_bytes }
    }
}

impl<T> QueueCore<T> {
    pub(crate) fn new(config: QueueConfig) -> Self {
        QueueCore {
            lists: [List::new(config.policy), List::new(config.policy)],
            bytes: [0; 2],
            len: 0,
            bound: Bound::of(&config),
            room: Bound::of(&config),
            policy: config.policy,
            random: 0x9E37_79B9_7F4A_7C15 ^ crate::clock::boot_now_ns(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn len_of(&self, priority: Priority) -> usize {
        self.lists[priority as usize].len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes[0] + self.bytes[1]
    }

    /// Whether half of what may wait does.
    pub(crate) fn is_half_full(&self) -> bool {
        let Bound { items, bytes } = self.bound;
        self.len >= items.div_ceil(2) || self.bytes() >= bytes.div_ceil(2)
    }

    /// Goes by other bounds and another policy from now on. Nothing that waits is
    /// given up for it: a queue that holds more than it may now is full, gives up
    /// one item for another as its policy says, and its room sinks with what
    /// leaves.
    pub(crate) fn reconfigure(&mut self, config: QueueConfig) {
        self.bound = Bound::of(&config);
        self.sink();
        if std::mem::replace(&mut self.policy, config.policy) != config.policy {
            self.move_lists();
        }
    }

    /// Moves what waits to lists of the policy that are as long as they must be.
    fn move_lists(&mut self) {
        for list in &mut self.lists {
            let mut before = std::mem::replace(list, List::new(self.policy));
            while let Some((item, bytes)) = before.pop_front() {
                list.push_back(item, bytes, self.room.items);
            }
        }
    }

    /// Has the room be what waits, where that is more than may.
    fn sink(&mut self) {
        let Bound { items, bytes } = self.bound;
        self.room = Bound { items: items.max(self.len), bytes: bytes.max(self.bytes()) };
    }

    /// Puts an item in. What is displaced goes to `give_up`; an item that is
    /// refused comes back.
    #[inline]
    pub(crate) fn push(
        &mut self,
        item: T,
        priority: Priority,
        bytes: usize,
        give_up: &mut impl FnMut(T, Priority, QueueDrop),
    ) -> Option<(T, QueueDrop)> {
        if let Some(why) = self.lacks(bytes) {
            if bytes > self.room.bytes {
                return Some((item, QueueDrop::TooLarge));
            }
            if !self.can_make_room(priority, bytes, why) {
                return Some((item, why));
            }
            self.make_room(priority, bytes, why, give_up);
        }
        self.lists[priority as usize].push_back(item, bytes, self.room.items);
        self.bytes[priority as usize] += bytes;
        self.len += 1;
        None
    }

    #[inline]
    fn lacks(&self, bytes: usize) -> Option<QueueDrop> {
        if self.len >= self.room.items {
            Some(QueueDrop::Items)
        } else if self.bytes().saturating_add(bytes) > self.room.bytes {
            Some(QueueDrop::Bytes)
        } else {
            None
        }
    }

    /// Whether displacing what may be displaced for such an item is enough.
    fn can_make_room(&self, priority: Priority, bytes: usize, why: QueueDrop) -> bool {
        match (priority, self.policy) {
            (Priority::Normal, DropPolicy::Newest) => false,
            (Priority::Critical, DropPolicy::Oldest | DropPolicy::Random) => true,
            // Only normal events may go.
            (Priority::Normal, _) | (Priority::Critical, DropPolicy::Newest) => {
                (why != QueueDrop::Items || self.len_of(Priority::Normal) > 0)
                    && self.bytes[Priority::Critical as usize].saturating_add(bytes)
                        <= self.room.bytes
            }
        }
    }

    #[inline]
    fn make_room(
        &mut self,
        priority: Priority,
        bytes: usize,
        mut why: QueueDrop,
        give_up: &mut impl FnMut(T, Priority, QueueDrop),
    ) {
        loop {
            let normals = self.len_of(Priority::Normal);
            let from = if normals > 0 { Priority::Normal } else { priority };
            match self.displace(from) {
                Some(item) => give_up(item, from, why),
                None => return,
            }
            match self.lacks(bytes) {
                Some(still) => why = still,
                None => return,
            }
        }
    }

    /// Removes one item, as the policy says.
    #[inline]
    fn displace(&mut self, from: Priority) -> Option<T> {
        let random = match self.policy {
            DropPolicy::Random => self.next_random(),
            DropPolicy::Oldest | DropPolicy::Newest => 0,
        };
        let (item, bytes) = match (&mut self.lists[from as usize], self.policy) {
            (List::Random(list), _) => list.pop_random(random)?,
            (List::Line(line), DropPolicy::Newest) => line.pop_back()?,
            (List::Line(line), _) => line.pop_front()?,
        };
        self.bytes[from as usize] -= bytes;
        self.len -= 1;
        Some(item)
    }

    /// xorshift64*: fast, and uniform enough for a choice of victims.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Takes the oldest item of one priority.
    #[inline]
    pub(crate) fn pop(&mut self, priority: Priority) -> Option<T> {
        self.pop_within(priority, usize::MAX).map(|(item, _)| item)
    }

    /// Takes the oldest item of one priority, and its bytes, if those are no
    /// more than this.
    #[inline]
    pub(crate) fn pop_within(&mut self, priority: Priority, room: usize) -> Option<(T, usize)> {
        let list = &mut self.lists[priority as usize];
        if list.front_bytes()? > room {
            return None;
        }
        let (item, bytes) = list.pop_front()?;
        self.bytes[priority as usize] -= bytes;
        self.len -= 1;
        if self.room != self.bound {
            self.sink();
            if self.room == self.bound {
                // The memory of a list that was longer is given back.
                self.move_lists();
            }
        }
        Some((item, bytes))
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use Priority::{Critical, Normal};

    fn queue(capacity: usize, max_bytes: usize, policy: DropPolicy) -> BoundedQueue<u32> {
        BoundedQueue::new(QueueConfig { capacity, max_bytes, policy })
    }

    fn drain(queue: &BoundedQueue<u32>) -> Vec<u32> {
        std::iter::from_fn(|| queue.dequeue()).collect()
    }

    #[test]
    fn each_policy_gives_up_what_it_says() {
        let oldest = queue(3, 100, DropPolicy::Oldest);
        let newest = queue(3, 100, DropPolicy::Newest);
        for n in 0..5 {
            oldest.enqueue(n, Normal, 1);
            newest.enqueue(n, Normal, 1);
        }
        assert_eq!(drain(&oldest), [2, 3, 4]);
        assert_eq!(drain(&newest), [0, 1, 2]);
    }

    #[test]
    fn random_picks_every_victim_about_as_often() {
        let mut dropped = [0u32; 8];
        for _ in 0..8_000 {
            let queue = queue(8, 100, DropPolicy::Random);
            for n in 0..8 {
                queue.enqueue(n, Normal, 1);
            }
            match queue.enqueue(99, Normal, 1) {
                Enqueued::Displaced(victims) => dropped[victims[0] as usize] += 1,
                other => panic!("{other:?}"),
            }
            assert_eq!(queue.len(), 8);
        }
        // 1,000 expected each; six standard deviations are about 180.
        assert!(dropped.iter().all(|n| (820..1180).contains(n)), "{dropped:?}");
    }

    #[test]
    fn random_keeps_the_order_of_what_stays() {
        let queue = queue(50, 1_000, DropPolicy::Random);
        for n in 0..500 {
            queue.enqueue(n, Normal, 1);
        }
        let left = drain(&queue);
        assert_eq!(left.len(), 50);
        assert!(left.is_sorted());
    }

    #[test]
    fn normal_events_go_before_critical_ones_whatever_the_policy() {
        for policy in [DropPolicy::Oldest, DropPolicy::Newest, DropPolicy::Random] {
            let queue = queue(4, 100, policy);
            for n in 0..4 {
                queue.enqueue(n, Normal, 1);
            }
            for n in 10..14 {
                assert!(matches!(queue.enqueue(n, Critical, 1), Enqueued::Displaced(_)));
            }
            let refused = queue.enqueue(5, Normal, 1);
            assert_eq!(refused, Enqueued::Refused(5, QueueDrop::Items), "{policy:?}");
            assert_eq!(drain(&queue), [10, 11, 12, 13], "{policy:?}");
        }
    }

    #[test]
    fn critical_ones_leave_first() {
        let queue = queue(4, 100, DropPolicy::Oldest);
        queue.enqueue(1, Normal, 1);
        queue.enqueue(2, Critical, 1);
        assert_eq!(drain(&queue), [2, 1]);
    }

    #[test]
    fn bytes_bound_it_too_and_an_item_that_never_fits_displaces_nothing() {
        let queue = queue(100, 10, DropPolicy::Oldest);
        for n in 0..5 {
            queue.enqueue(n, Normal, 2);
        }
        assert_eq!(queue.enqueue(6, Normal, 11), Enqueued::Refused(6, QueueDrop::TooLarge));
        assert_eq!(queue.enqueue(7, Normal, 5), Enqueued::Displaced(vec![0, 1, 2]));
        assert_eq!(queue.enqueue(8, Critical, 4), Enqueued::Displaced(vec![3, 4]));
        let refused = queue.enqueue(9, Normal, 7);
        assert_eq!(refused, Enqueued::Refused(9, QueueDrop::Bytes), "the critical one may not go");
        assert_eq!(drain(&queue), [8, 7]);
    }

    #[test]
    fn what_is_too_large_for_the_room_stays_in_front() {
        for policy in [DropPolicy::Oldest, DropPolicy::Random] {
            let mut core = QueueCore::new(QueueConfig { capacity: 9, max_bytes: 100, policy });
            core.push(1, Normal, 30, &mut |_, _, _| {});
            core.push(2, Normal, 10, &mut |_, _, _| {});
            assert_eq!(core.pop_within(Normal, 29), None, "{policy:?}");
            assert_eq!(core.pop_within(Normal, 30), Some((1, 30)), "{policy:?}");
            assert_eq!((core.len(), core.bytes()), (1, 10), "{policy:?}");
            assert_eq!(core.pop_within(Critical, 30), None, "{policy:?}");
        }
    }

    #[test]
    fn a_queue_that_becomes_smaller_keeps_what_waits_and_is_full_until_that_has_left() {
        for (policy, kept) in [
            (DropPolicy::Oldest, [3, 4, 5, 6, 7, 8, 9, 10]),
            (DropPolicy::Newest, [2, 3, 4, 5, 6, 7, 8, 9]),
        ] {
            let queue = queue(100, 1_000, DropPolicy::Random);
            for n in 0..10 {
                queue.enqueue(n, Normal, 1);
            }
            queue.reconfigure(QueueConfig { capacity: 4, max_bytes: 1_000, policy });
            assert_eq!((queue.len(), queue.capacity(), queue.is_full()), (10, 4, true));
            assert_eq!((queue.dequeue(), queue.dequeue()), (Some(0), Some(1)));
            // Two have left, and nobody takes their places.
            let displaced = queue.enqueue(10, Normal, 1);
            match policy {
                DropPolicy::Oldest => assert_eq!(displaced, Enqueued::Displaced(vec![2])),
                _ => assert_eq!(displaced, Enqueued::Refused(10, QueueDrop::Items)),
            }
            assert_eq!(drain(&queue), kept);
            for n in 20..26 {
                queue.enqueue(n, Normal, 1);
            }
            assert_eq!(queue.len(), 4, "{policy:?}");
            queue.reconfigure(QueueConfig { capacity: 5, max_bytes: 1_000, policy });
            assert_eq!(queue.enqueue(30, Normal, 1), Enqueued::Queued);
        }
    }

    #[test]
    fn a_queue_of_fewer_bytes_gives_up_one_for_another_until_it_has_sunk() {
        let queue = queue(100, 100, DropPolicy::Oldest);
        for n in 0..10 {
            queue.enqueue(n, Normal, 10);
        }
        let config = QueueConfig { capacity: 100, max_bytes: 20, policy: DropPolicy::Oldest };
        queue.reconfigure(config);
        assert_eq!(queue.enqueue(10, Normal, 10), Enqueued::Displaced(vec![0]));
        assert_eq!(drain(&queue), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(queue.enqueue(11, Normal, 21), Enqueued::Refused(11, QueueDrop::TooLarge));
        let core = lock(&queue.core);
        assert!(core.room == core.bound);
    }

    #[test]
    fn places_are_used_again() {
        let queue = queue(1_000, 1 << 20, DropPolicy::Random);
        for round in 0..10u32 {
            for n in 0..1_000 {
                queue.enqueue(round * 1_000 + n, if n % 3 == 0 { Critical } else { Normal }, 1);
            }
            assert_eq!(drain(&queue).len(), 1_000);
        }
        let core = lock(&queue.core);
        assert!(core.lists.iter().all(|list| match list {
            List::Line(line) => line.capacity() <= 1_000,
            List::Random(list) => list.capacity() <= 1_000,
        }));
    }
}
