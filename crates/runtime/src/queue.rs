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

    fn capacity(&self) -> usize {
        match self {
            List::Line(line) => line.capacity(),
            List::Random(list) => list.capacity(),
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
        let is_other = std::mem::replace(&mut self.policy, config.policy) != config.policy;
        if is_other || (self.room == self.bound && self.has_memory_to_spare()) {
            self.move_lists();
        }
    }

    /// Whether a list takes memory for more than may ever wait.
    fn has_memory_to_spare(&self) -> bool {
        self.lists.iter().any(|list| list.capacity() > self.bound.items)
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
        let lacked = self.lacks(bytes);
        if let Some(why) = lacked {
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
        if lacked.is_some() {
            self.sink_to_what_stays();
        }
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
        self.sink_to_what_stays();
        Some((item, bytes))
    }

    /// Has the room sink with what has left, where that was more than may wait.
    #[inline]
    fn sink_to_what_stays(&mut self) {
        if self.room != self.bound {
            self.sink();
            if self.room == self.bound {
                // The memory of a list that was longer is given back.
                self.move_lists();
            }
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests;
