//! A setting that is replaced as a whole while others go by it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The setting, and how often it was replaced: whoever goes by it looks at that
/// first, so that one that stays costs one load.
#[derive(Debug)]
pub(crate) struct Current<T> {
    version: AtomicU64,
    value: Mutex<Arc<T>>,
}

/// A setting as somebody saw it last.
#[derive(Debug)]
pub(crate) struct Seen<T> {
    version: u64,
    value: Option<Arc<T>>,
}

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Seen { version: 0, value: None }
    }
}

impl<T> Current<T> {
    pub(crate) fn new(value: T) -> Self {
        Current { version: AtomicU64::new(1), value: Mutex::new(Arc::new(value)) }
    }

    pub(crate) fn set(&self, value: T) {
        let mut current = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(value);
        // Under the lock: nobody takes up a value with another one's version.
        self.version.fetch_add(1, Ordering::Release);
    }

    /// What it is now.
    #[inline]
    pub(crate) fn see<'a>(&self, seen: &'a mut Seen<T>) -> &'a T {
        if seen.version != self.version.load(Ordering::Acquire) {
            seen.value = None;
        }
        seen.value.get_or_insert_with(|| {
            let current = self.value.lock().unwrap_or_else(PoisonError::into_inner);
            seen.version = self.version.load(Ordering::Relaxed);
            Arc::clone(&current)
        })
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_replaced_is_seen_at_the_next_look_and_never_in_halves() {
        let current = Arc::new(Current::new((0_u64, 0_u64)));
        let writer = Arc::clone(&current);
        let writes = std::thread::spawn(move || (1..=10_000).for_each(|n| writer.set((n, 2 * n))));
        let mut seen = Seen::default();
        let mut last = 0;
        while last < 10_000 {
            let (one, two) = *current.see(&mut seen);
            assert!(two == 2 * one && one >= last, "{one} {two} after {last}");
            last = one;
        }
        writes.join().unwrap();
    }
}
