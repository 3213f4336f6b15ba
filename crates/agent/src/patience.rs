//! How long a start waits for the agent before it.
//!
//! Where one agent takes over from another, the new one often starts before
//! the old one has delivered what it holds.

use std::time::{Duration, Instant};

use vahti_runtime::shutdown::Shutdown;

/// How often it is looked at whether the other has ended.
const POLL: Duration = Duration::from_millis(20);

/// How long to wait for all that another agent may still have. It runs from
/// when it is made, so that waiting for one thing leaves less for the next.
pub(crate) struct Patience {
    until: Instant,
    /// What ends the wait before its time.
    shutdown: Option<Shutdown>,
}

impl Patience {
    /// As long as the end of another agent may take.
    pub(crate) fn of(drain_deadline: Duration, shutdown: Shutdown) -> Self {
        let until = Instant::now() + drain_deadline + Duration::from_secs(1);
        Patience { until, shutdown: Some(shutdown) }
    }

    /// Waits for nobody.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Patience { until: Instant::now(), shutdown: None }
    }

    /// Tries to get something until another agent has it no more; `None` if
    /// this one is told to stop before. `in_use` tells whether it is another
    /// agent that is in the way, and which, where that is known.
    ///
    /// # Errors
    /// The other one keeps it for too long, or something else is wrong.
    pub(crate) fn wait_for<T, E>(
        &self,
        what: &str,
        mut attempt: impl FnMut() -> Result<T, E>,
        in_use: impl Fn(&E) -> Option<Option<u32>>,
    ) -> Result<Option<T>, E> {
        let mut told = false;
        loop {
            let error = match attempt() {
                Ok(got) => return Ok(Some(got)),
                Err(error) => error,
            };
            let Some(pid) = in_use(&error) else { return Err(error) };
            if self.shutdown.as_ref().is_some_and(Shutdown::has_begun) {
                return Ok(None);
            }
            if Instant::now() >= self.until {
                return Err(error);
            }
            if !told {
                told = true;
                tracing::info!(pid, "another vahti has {what}; waiting for it to end");
            }
            std::thread::sleep(POLL);
        }
    }
}

#[cfg(test)]
mod tests {
    use vahti_runtime::shutdown;

    use super::*;

    /// Waits for what another one has for so many more attempts.
    fn wait(patience: &Patience, attempts: u32) -> Result<Option<u32>, &'static str> {
        let mut tried = 0;
        let attempt = || {
            tried += 1;
            if tried > attempts { Ok(tried) } else { Err("taken") }
        };
        patience.wait_for("it", attempt, |error| (*error == "taken").then_some(Some(1)))
    }

    #[test]
    fn it_ends_with_what_is_wanted_with_its_time_or_when_told_to_stop() {
        let (trigger, shutdown) = shutdown::channel();
        let mut patience = Patience::of(Duration::from_secs(60), shutdown);
        assert_eq!(wait(&patience, 3), Ok(Some(4)));
        let other = patience.wait_for("it", || Err::<(), _>("broken"), |_| None);
        assert_eq!(other, Err("broken"), "another one's end does not mend this");
        patience.until = Instant::now() + Duration::from_millis(50);
        assert_eq!(wait(&patience, u32::MAX), Err("taken"));
        patience.until = Instant::now() + Duration::from_secs(60);
        trigger.begin();
        assert_eq!(wait(&patience, u32::MAX), Ok(None));
        assert_eq!(wait(&Patience::none(), 0), Ok(Some(1)));
        assert_eq!(wait(&Patience::none(), 1), Err("taken"));
    }
}
