//! Events' memory, used again.
//!
//! Events are allocated on the observer's thread and let go of on an emitter's.
//! A general allocator makes the two contend for one arena; handing the memory
//! back in batches does not. Bounded, and what is handed back is empty: only
//! the event's own bytes are kept, nothing that it owned.

use std::sync::{Arc, Mutex, PoisonError};

use crate::event::Event;

/// Events kept at most: two of the largest batches that emitters take.
pub(crate) const KEPT: usize = 1_024;

#[derive(Debug, Default)]
pub(crate) struct EventPool {
    spare: Mutex<Vec<Arc<Event>>>,
}

impl EventPool {
    /// Moves up to `count` spare events to `into`.
    pub(crate) fn take(&self, count: usize, into: &mut Vec<Arc<Event>>) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let from = spare.len().saturating_sub(count);
        into.extend(spare.drain(from..));
    }

    /// Empties `events` and keeps those that nobody else holds, as far as
    /// there is room.
    pub(crate) fn give_back(&self, events: &mut Vec<Arc<Event>>) {
        events.retain_mut(|event| match Arc::get_mut(event) {
            Some(event) => {
                event.let_go();
                true
            }
            None => false,
        });
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let room = KEPT.saturating_sub(spare.len()).min(events.len());
        spare.extend(events.drain(events.len() - room..));
        drop(spare);
        events.clear();
    }
}

/// Makes a shared event, in spare memory where there is some.
#[inline]
pub(crate) fn share(event: Event, spare: &mut Vec<Arc<Event>>) -> Arc<Event> {
    if let Some(mut shared) = spare.pop()
        && let Some(place) = Arc::get_mut(&mut shared)
    {
        *place = event;
        return shared;
    }
    Arc::new(event)
}
