//! A boot clock's wall time that does not tremble.
//!
//! The two clocks are read one after the other, some tens of nanoseconds
//! apart, and further if the thread is preempted between. Were each read to
//! count, a process would have started at another nanosecond in each event. So
//! their difference is held until it has really changed: the wall clock was
//! set, or the machine's clock is being corrected.

use vahti_runtime::clock::{ClockPair, boot_now_ns};

/// A change below this is the reading's own.
const TREMBLE_NS: u64 = 100_000;
/// A pair that took longer to read is read again.
const READING_NS: u64 = 5_000;
const READINGS: usize = 8;

/// Both clocks, with a difference that is held.
#[derive(Debug)]
pub(crate) struct WallClock {
    held: ClockPair,
}

impl WallClock {
    pub(crate) fn new() -> Self {
        WallClock { held: steady() }
    }

    /// A pair for now, by the difference that is held.
    pub(crate) fn now(&mut self) -> ClockPair {
        let mut fresh = ClockPair::now();
        if !self.agrees(fresh) {
            fresh = steady();
            if !self.agrees(fresh) {
                self.held = fresh;
            }
        }
        let boot_ns = fresh.boot_ns;
        let wall_ns = self.held.wall_of(boot_ns);
        ClockPair { boot_ns, wall_ns }
    }

    fn agrees(&self, fresh: ClockPair) -> bool {
        self.held.wall_of(fresh.boot_ns).abs_diff(fresh.wall_ns) < TREMBLE_NS
    }
}

/// A pair whose two halves were read close together, or the last of several.
fn steady() -> ClockPair {
    let mut pair = ClockPair::now();
    for _ in 1..READINGS {
        if boot_now_ns().saturating_sub(pair.boot_ns) < READING_NS {
            break;
        }
        pair = ClockPair::now();
    }
    pair
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_has_one_wall_time_however_often_it_is_asked_for() {
        let mut clock = WallClock::new();
        let first = clock.now().wall_of(1_000);
        for _ in 0..1_000 {
            assert_eq!(clock.now().wall_of(1_000), first);
        }
    }

    #[test]
    fn a_step_of_the_wall_clock_is_followed() {
        let mut clock = WallClock::new();
        clock.held.wall_ns -= 3_600_000_000_000;
        let now = clock.now();
        assert!(now.wall_ns.abs_diff(ClockPair::now().wall_ns) < 1_000_000_000);
    }
}
