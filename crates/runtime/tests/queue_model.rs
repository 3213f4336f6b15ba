//! The queue does what a naive one does, under every policy.
//!
//! The model keeps everything in one list, in the order of arrival, and looks
//! through all of it each time. Where the policy is random it checks that each
//! victim was one that could be chosen, and that nothing was given up that
//! need not be.
#![cfg(not(shuttle))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::collections::VecDeque;

use proptest::prelude::*;
use vahti_runtime::config::DropPolicy;
use vahti_runtime::event::Priority;
use vahti_runtime::queue::{BoundedQueue, Enqueued, QueueConfig, QueueDrop};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Item {
    id: u32,
    priority: Priority,
    bytes: usize,
}

struct Model {
    waiting: VecDeque<Item>,
    config: QueueConfig,
}

impl Model {
    fn bytes(&self) -> usize {
        self.waiting.iter().map(|item| item.bytes).sum()
    }

    fn lacks(&self, bytes: usize) -> Option<QueueDrop> {
        if bytes > self.config.max_bytes {
            Some(QueueDrop::TooLarge)
        } else if self.waiting.len() >= self.config.capacity {
            Some(QueueDrop::Items)
        } else if self.bytes() + bytes > self.config.max_bytes {
            Some(QueueDrop::Bytes)
        } else {
            None
        }
    }

    /// Whether a waiting item may be given up for an incoming one.
    fn may_go(&self, waiting: Priority, incoming: Priority) -> bool {
        match (waiting, incoming, self.config.policy) {
            (Priority::Normal, Priority::Critical, _) => true,
            (Priority::Critical, Priority::Normal, _) => false,
            // Within a priority, the newest is the one that comes in.
            (_, _, DropPolicy::Newest) => false,
            (_, _, DropPolicy::Oldest | DropPolicy::Random) => true,
        }
    }

    /// Whether the item fits once all that may go has gone.
    fn could_fit(&self, item: Item) -> bool {
        let stays: Vec<_> =
            self.waiting.iter().filter(|w| !self.may_go(w.priority, item.priority)).collect();
        let bytes: usize = stays.iter().map(|w| w.bytes).sum();
        stays.len() < self.config.capacity && bytes + item.bytes <= self.config.max_bytes
    }

    /// Takes a victim out; `chosen` says which, where the policy is random.
    fn evict(&mut self, incoming: Priority, chosen: Option<u32>) -> Result<Item, TestCaseError> {
        let normal_waits = self.waiting.iter().any(|w| w.priority == Priority::Normal);
        let from = if normal_waits { Priority::Normal } else { incoming };
        let mut of_it = (0..self.waiting.len()).filter(|i| self.waiting[*i].priority == from);
        let index = match self.config.policy {
            DropPolicy::Oldest => of_it.next(),
            DropPolicy::Newest => of_it.next_back(),
            DropPolicy::Random => of_it.find(|i| Some(self.waiting[*i].id) == chosen),
        };
        let victim = index.and_then(|index| self.waiting.remove(index));
        victim.ok_or_else(|| TestCaseError::fail(format!("{chosen:?} may not go")))
    }

    /// What enqueueing must come to, given what it came to.
    fn enqueue(&mut self, item: Item, real: &Enqueued<u32>) -> Result<(), TestCaseError> {
        let Some(why) = self.lacks(item.bytes) else {
            prop_assert_eq!(real, &Enqueued::Queued);
            self.waiting.push_back(item);
            return Ok(());
        };
        if why == QueueDrop::TooLarge || !self.could_fit(item) {
            prop_assert_eq!(real, &Enqueued::Refused(item.id, why));
            return Ok(());
        }
        let Enqueued::Displaced(victims) = real else {
            return Err(TestCaseError::fail(format!("{real:?} where something had to go")));
        };
        let mut left = victims.iter();
        while self.lacks(item.bytes).is_some() {
            let chosen = left.next().copied();
            prop_assert_eq!(Some(self.evict(item.priority, chosen)?.id), chosen);
        }
        prop_assert_eq!(left.next(), None, "given up without need");
        self.waiting.push_back(item);
        Ok(())
    }

    fn dequeue(&mut self) -> Option<u32> {
        let critical = self.waiting.iter().position(|w| w.priority == Priority::Critical);
        self.waiting.remove(critical.unwrap_or(0)).map(|item| item.id)
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Enqueue { critical: bool, bytes: usize },
    Dequeue,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (prop::bool::weighted(0.3), 0usize..40)
            .prop_map(|(critical, bytes)| Step::Enqueue { critical, bytes }),
        1 => Just(Step::Dequeue),
    ];
    prop::collection::vec(step, 0..200)
}

fn policy() -> impl Strategy<Value = DropPolicy> {
    prop_oneof![Just(DropPolicy::Oldest), Just(DropPolicy::Newest), Just(DropPolicy::Random)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_queue_and_the_model_agree_at_every_step(
        steps in steps(), policy in policy(), capacity in 1usize..20, max_bytes in 0usize..200,
    ) {
        let config = QueueConfig { capacity, max_bytes, policy };
        let queue = BoundedQueue::new(config);
        let mut model = Model { waiting: VecDeque::new(), config };
        for (id, step) in (0u32..).zip(steps) {
            match step {
                Step::Enqueue { critical, bytes } => {
                    let priority = if critical { Priority::Critical } else { Priority::Normal };
                    let before = model.waiting.clone();
                    let real = queue.enqueue(id, priority, bytes);
                    model.enqueue(Item { id, priority, bytes }, &real)?;
                    // Said a second time, apart from the model: the promise.
                    let normal_waits =
                        model.waiting.iter().any(|w| w.priority == Priority::Normal);
                    let critical_gone = before
                        .iter()
                        .any(|w| w.priority == Priority::Critical && !model.waiting.contains(w));
                    prop_assert!(!(critical_gone && normal_waits));
                    let criticals: usize = before
                        .iter()
                        .filter(|w| w.priority == Priority::Critical)
                        .map(|w| w.bytes)
                        .sum();
                    let helps = criticals + bytes <= max_bytes;
                    if critical && normal_waits && helps {
                        prop_assert!(!matches!(real, Enqueued::Refused(..)));
                    }
                }
                Step::Dequeue => prop_assert_eq!(queue.dequeue(), model.dequeue()),
            }
            prop_assert_eq!(queue.len(), model.waiting.len());
            prop_assert_eq!(queue.is_full(), model.waiting.len() == capacity);
            prop_assert!(model.bytes() <= max_bytes);
        }
        while let Some(id) = queue.dequeue() {
            prop_assert_eq!(Some(id), model.dequeue());
        }
        prop_assert_eq!(model.dequeue(), None);
    }

    #[test]
    fn dropping_what_is_given_up_and_handing_it_back_leave_the_same_queue(
        steps in steps(), capacity in 1usize..20, max_bytes in 0usize..200, newest: bool,
    ) {
        let policy = if newest { DropPolicy::Newest } else { DropPolicy::Oldest };
        let config = QueueConfig { capacity, max_bytes, policy };
        let (back, gone) = (BoundedQueue::new(config), BoundedQueue::new(config));
        for (id, step) in (0u32..).zip(steps) {
            match step {
                Step::Enqueue { critical, bytes } => {
                    let priority = if critical { Priority::Critical } else { Priority::Normal };
                    let refused = matches!(back.enqueue(id, priority, bytes), Enqueued::Refused(..));
                    prop_assert_eq!(gone.enqueue_or_drop(id, priority, bytes), !refused);
                }
                Step::Dequeue => prop_assert_eq!(back.dequeue(), gone.dequeue()),
            }
        }
        while let Some(id) = back.dequeue() {
            prop_assert_eq!(Some(id), gone.dequeue());
        }
        prop_assert!(gone.is_empty());
    }
}
