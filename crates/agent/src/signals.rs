//! Signals that ask the agent to stop, or to read its configuration.
//!
//! They are blocked in all threads and taken by one thread that sleeps in
//! `sigwait`: no handler runs, so nothing has to be safe inside one, and
//! nothing wakes up while none comes.

use std::io;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use vahti_runtime::event::Signal;

use crate::log;

/// The signals that are waited for.
const TAKEN: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Signals this close together are one request: timeout(1), for one, sends its
/// signal to the process and then to the group that it is in.
const ONE_REQUEST: Duration = Duration::from_millis(100);

/// The signals, blocked in this thread and those that it starts.
pub(crate) struct Signals {
    set: libc::sigset_t,
}

impl Signals {
    /// Blocks them. To be called before any thread is started.
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `sigemptyset` initialises the set that it is given.
        let mut set: libc::sigset_t = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        };
        for signal in TAKEN {
            // SAFETY: the set is initialised and the signal exists.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: the set is initialised; the old mask is not asked for.
        let result =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        match result {
            0 => Ok(Signals { set }),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    /// Calls `stop` at the first SIGTERM or SIGINT; a second one, not just the
    /// echo of the first, ends the process at once, with 128 plus its number.
    /// Calls `reload` at every SIGHUP. Neither may wait for anything.
    ///
    /// # Errors
    /// The thread could not be started.
    pub(crate) fn watch(
        self,
        stop: impl FnOnce() + Send + 'static,
        reload: impl Fn() + Send + 'static,
    ) -> io::Result<()> {
        std::thread::Builder::new()
            .name("signals".to_owned())
            .stack_size(64 << 10)
            .spawn(move || self.take(stop, reload))
            .map(drop)
    }

    fn take(&self, stop: impl FnOnce(), reload: impl Fn()) {
        let mut stop = Some(stop);
        let mut stopped_at = None;
        loop {
            let signal = self.next();
            let name = Signal(u8::try_from(signal).unwrap_or(0));
            match (signal, stop.take()) {
                (libc::SIGHUP, not_yet) => {
                    tracing::info!("{name}: reading the configuration");
                    reload();
                    stop = not_yet;
                }
                (_, Some(stop)) => {
                    stop();
                    stopped_at = Some(Instant::now());
                    tracing::info!("{name}: delivering what was accepted, then ending");
                }
                (_, None) if stopped_at.is_some_and(|at| at.elapsed() < ONE_REQUEST) => {}
                (signal, None) => {
                    // The log never waits, whatever becomes of its reader.
                    tracing::warn!("{name} again: ending at once");
                    log::lift_limit();
                    // SAFETY: ends the process without running anything more.
                    unsafe { libc::_exit(128 + signal) };
                }
            }
        }
    }

    fn next(&self) -> libc::c_int {
        let mut signal = 0;
        loop {
            // SAFETY: the set is initialised and `signal` is writable.
            if unsafe { libc::sigwait(&raw const self.set, &raw mut signal) } == 0 {
                return signal;
            }
        }
    }
}
