//! Boot clock and wall clock, sampled in pairs.
//!
//! The kernel stamps records with `CLOCK_BOOTTIME`, which counts through
//! suspend and never steps. Wall time is derived from pairs of samples taken
//! again and again, so that a step of the wall clock shows in what comes after
//! it and nowhere else.

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockPair {
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub boot_ns: u64,
    /// `CLOCK_REALTIME`, nanoseconds since 1970.
    pub wall_ns: u64,
}

impl ClockPair {
    /// Samples both clocks.
    #[must_use]
    pub fn now() -> Self {
        ClockPair {
            boot_ns: read(libc::CLOCK_BOOTTIME),
            wall_ns: read(libc::CLOCK_REALTIME),
        }
    }

    /// The wall clock at a moment given by the boot clock.
    #[must_use]
    pub fn wall_of(&self, boot_ns: u64) -> u64 {
        self.wall_ns
            .saturating_add(boot_ns)
            .saturating_sub(self.boot_ns)
    }
}

/// The boot clock now, in nanoseconds.
#[must_use]
pub fn boot_now_ns() -> u64 {
    read(libc::CLOCK_BOOTTIME)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid, writable timespec for the length of the call.
    let result = unsafe { libc::clock_gettime(clock, &mut time) };
    if result != 0 {
        // Both clocks exist on every kernel that this runs on (2.6.39).
        return 0;
    }
    let secs = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    secs.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// Writes nanoseconds since 1970 as RFC 3339 in UTC with nine decimals.
#[must_use]
pub fn rfc3339(wall_ns: u64) -> String {
    use jiff::fmt::temporal::DateTimePrinter;
    static PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(9));
    let mut out = String::with_capacity(32);
    match jiff::Timestamp::from_nanosecond(i128::from(wall_ns)) {
        Ok(time) if PRINTER.print_timestamp(&time, &mut out).is_ok() => out,
        _ => "1970-01-01T00:00:00.000000000Z".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_follows_the_boot_clock_within_a_pair() {
        let pair = ClockPair {
            boot_ns: 100,
            wall_ns: 5_000,
        };
        assert_eq!(pair.wall_of(90), 4_990);
        assert_eq!(pair.wall_of(110), 5_010);
    }

    #[test]
    fn times_are_written_with_nanoseconds() {
        assert_eq!(
            rfc3339(1_700_000_000_000_000_005),
            "2023-11-14T22:13:20.000000005Z"
        );
    }
}
