//! Whether the thread that supervises still runs.
//!
//! Looked at only when somebody asks, so that nothing wakes up otherwise: each
//! question leaves one of its own for that thread, and hears whether the one
//! before was answered. Nobody waits for it.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// A thread that has not run for so long hangs.
const LIMIT: Duration = Duration::from_secs(10);

/// The supervising thread's.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    thread: OnceLock<Handle>,
    asked: Mutex<Option<(Instant, JoinHandle<()>)>>,
}

impl Pulse {
    /// That is the thread.
    pub(crate) fn beats_on(&self, thread: Handle) {
        self.thread.get_or_init(|| thread);
    }

    /// How long it has not run, where that is too long.
    pub(crate) fn late(&self) -> Option<Duration> {
        let thread = self.thread.get()?;
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        match &*asked {
            Some((at, answer)) if !answer.is_finished() => {
                Some(at.elapsed()).filter(|waits| *waits >= LIMIT)
            }
            _ => {
                *asked = Some((Instant::now(), thread.spawn(async {})));
                None
            }
        }
    }

    #[cfg(test)]
    fn asked_before(&self, ago: Duration) {
        if let Some((at, _)) = &mut *self.asked.lock().unwrap() {
            *at -= ago;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_hangs_is_found_and_one_that_goes_on_is_well_again() {
        let pulse = Pulse::default();
        assert_eq!(pulse.late(), None, "it has not begun");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        pulse.beats_on(runtime.handle().clone());
        assert_eq!(pulse.late(), None);
        pulse.asked_before(LIMIT / 2);
        assert_eq!(pulse.late(), None, "it may be busy");
        pulse.asked_before(LIMIT);
        assert!(pulse.late() >= Some(LIMIT));
        runtime.block_on(tokio::task::yield_now());
        assert_eq!(pulse.late(), None);
    }
}
