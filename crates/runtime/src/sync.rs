//! The primitives that the queue, the lanes and their doorbell stand on: std's,
//! or shuttle's when the crate is built with `--cfg shuttle` to try schedules.

#[cfg(not(shuttle))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering, fence},
};

#[cfg(shuttle)]
pub(crate) use shuttle::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering, fence},
};

/// Locks, also where a thread panicked while it held the lock: what is guarded
/// here is kept consistent at every step, and no foreign code runs inside.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
