//! Signals by name.

use std::fmt;

use super::Signal;

/// Names by number, as on every architecture that this runs on.
const NAMES: [&str; 32] = [
    "",
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

/// What user space calls the first real-time signal: the C libraries keep 32
/// and 33 to themselves.
const REAL_TIME_FIRST: u8 = 34;
const REAL_TIME_LAST: u8 = 64;

impl Signal {
    /// The name of one of the 31 standard signals.
    ///
    /// ```
    /// use vahti_runtime::event::Signal;
    /// assert_eq!(Signal(11).standard_name(), Some("SIGSEGV"));
    /// assert_eq!(Signal(40).standard_name(), None);
    /// ```
    #[must_use]
    pub fn standard_name(self) -> Option<&'static str> {
        NAMES.get(usize::from(self.0)).copied().filter(|name| !name.is_empty())
    }

    /// The signal of a name that `Display` shows.
    ///
    /// ```
    /// use vahti_runtime::event::Signal;
    /// assert_eq!(Signal::from_name("SIGRTMIN+6"), Some(Signal(40)));
    /// assert_eq!(Signal::from_name("SIGNAL"), None);
    /// ```
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let after = name.strip_prefix("SIG")?;
        if let Some(number) = NAMES.iter().position(|known| known.get(3..) == Some(after)) {
            return u8::try_from(number).ok().map(Signal);
        }
        let (first, number) = match after.strip_prefix("RTMIN") {
            Some("") => return Some(Signal(REAL_TIME_FIRST)),
            Some(distance) => (REAL_TIME_FIRST, distance.strip_prefix('+')?),
            None => (0, after),
        };
        // `parse` would take a sign.
        let number: u8 =
            number.bytes().all(|b| b.is_ascii_digit()).then_some(number)?.parse().ok()?;
        first.checked_add(number).map(Signal)
    }
}

/// `SIGSEGV`, `SIGRTMIN+6`, and for a number without a name `SIG33`.
impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.standard_name(), self.0) {
            (Some(name), _) => f.write_str(name),
            (None, REAL_TIME_FIRST) => f.write_str("SIGRTMIN"),
            (None, number @ REAL_TIME_FIRST..=REAL_TIME_LAST) => {
                write!(f, "SIGRTMIN+{}", number - REAL_TIME_FIRST)
            }
            (None, number) => write!(f, "SIG{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_called_as_the_c_library_numbers_them() {
        for (number, name) in [
            (libc::SIGSEGV, "SIGSEGV"),
            (libc::SIGABRT, "SIGABRT"),
            (libc::SIGBUS, "SIGBUS"),
            (libc::SIGILL, "SIGILL"),
            (libc::SIGFPE, "SIGFPE"),
            (libc::SIGSYS, "SIGSYS"),
            (libc::SIGKILL, "SIGKILL"),
            (libc::SIGTERM, "SIGTERM"),
            (libc::SIGXFSZ, "SIGXFSZ"),
            (libc::SIGRTMIN(), "SIGRTMIN"),
            (libc::SIGRTMIN() + 6, "SIGRTMIN+6"),
            (libc::SIGRTMAX(), "SIGRTMIN+30"),
        ] {
            let signal = Signal(u8::try_from(number).unwrap());
            assert_eq!(signal.to_string(), name);
        }
    }

    #[test]
    fn every_name_that_is_shown_is_read_back() {
        for number in 0..=u8::MAX {
            assert_eq!(Signal::from_name(&Signal(number).to_string()), Some(Signal(number)));
        }
        for name in ["", "SEGV", "SIG", "SIG+5", "SIG256", "SIGRTMIN-1", "SIGRTMIN+250", "sigsegv"]
        {
            assert_eq!(Signal::from_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_number_without_a_name_is_still_shown() {
        for (number, name) in [(0, "SIG0"), (33, "SIG33"), (65, "SIG65"), (255, "SIG255")] {
            assert_eq!(Signal(number).to_string(), name);
        }
    }
}
