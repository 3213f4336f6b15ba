//! One processor, from its making to its failure or the end, and its gate.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use crate::panic::Foreign;
use crate::pipeline::Failure;
use crate::processor::EventProcessor;

pub(super) struct Incarnation {
    pub(super) processor: Foreign<Box<dyn EventProcessor>>,
    /// Held around calls where only one thread may call at a time.
    gate: Option<Gate>,
    down: AtomicBool,
    pub(super) failures: mpsc::UnboundedSender<Failure>,
}

/// A lock that those who wait for it give up when the processor is down: one
/// that hangs holds it for ever.
#[derive(Default)]
struct Gate {
    busy: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to call the processor, until it is dropped.
pub(super) struct Inside<'a> {
    gate: Option<&'a Gate>,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if let Some(gate) = self.gate {
            *gate.lock() = false;
            gate.changed.notify_one();
        }
    }
}

impl Incarnation {
    pub(super) fn new(
        processor: Box<dyn EventProcessor>,
        one_at_a_time: bool,
        failures: mpsc::UnboundedSender<Failure>,
    ) -> Self {
        let gate = one_at_a_time.then(Gate::default);
        let processor = Foreign::new(processor);
        Incarnation { processor, gate, down: AtomicBool::new(false), failures }
    }

    pub(super) fn is_down(&self) -> bool {
        self.down.load(Ordering::Acquire)
    }

    /// Waits for its turn; `None` once the processor is down: it is never
    /// called again.
    pub(super) fn enter(&self) -> Option<Inside<'_>> {
        let Some(gate) = &self.gate else {
            return (!self.is_down()).then_some(Inside { gate: None });
        };
        let mut busy = gate.lock();
        loop {
            if self.is_down() {
                return None;
            }
            if !*busy {
                *busy = true;
                return Some(Inside { gate: Some(gate) });
            }
            busy = gate.changed.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The processor failed, hangs or has had its time. Returns whether this
    /// is the first to say so.
    pub(super) fn go_down(&self) -> bool {
        let first = !self.down.swap(true, Ordering::AcqRel);
        if let Some(gate) = &self.gate {
            // Under the lock, so that nobody is between looking and waiting.
            let _busy = gate.lock();
            gate.changed.notify_all();
        }
        first
    }
}
