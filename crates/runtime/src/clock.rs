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
        ClockPair { boot_ns: read(libc::CLOCK_BOOTTIME), wall_ns: read(libc::CLOCK_REALTIME) }
    }

    /// The wall clock at a moment given by the boot clock.
    #[must_use]
    pub fn wall_of(&self, boot_ns: u64) -> u64 {
        self.wall_ns.saturating_add(boot_ns).saturating_sub(self.boot_ns)
    }
}

/// The boot clock now, in nanoseconds.
#[must_use]
pub fn boot_now_ns() -> u64 {
    read(libc::CLOCK_BOOTTIME)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
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
    Rfc3339::new(wall_ns).as_str().to_owned()
}

/// A moment as RFC 3339 in UTC with nine decimals, on the stack: every event
/// carries two or more of them, so writing one must cost nothing.
///
/// ```
/// use vahti_runtime::clock::Rfc3339;
/// assert_eq!(Rfc3339::new(5).as_str(), "1970-01-01T00:00:00.000000005Z");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Rfc3339 {
    text: [u8; 30],
}

impl Rfc3339 {
    /// The moment `wall_ns` nanoseconds after 1970 began. All of `u64` fits:
    /// it ends in 2554.
    #[must_use]
    pub fn new(wall_ns: u64) -> Self {
        let (secs, nanos) = (wall_ns / 1_000_000_000, wall_ns % 1_000_000_000);
        let (year, month, day) = civil_date(secs / 86_400);
        let second = secs % 86_400;
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        digits(&mut text[0..4], year);
        digits(&mut text[5..7], month);
        digits(&mut text[8..10], day);
        digits(&mut text[11..13], second / 3_600);
        digits(&mut text[14..16], second / 60 % 60);
        digits(&mut text[17..19], second % 60);
        digits(&mut text[20..29], nanos);
        Rfc3339 { text }
    }

    /// The nanoseconds since 1970 of a moment written as [`Rfc3339::new`] does:
    /// in UTC, with nine decimals, up to the end of `u64` in 2554. `None` for
    /// any other text, such as a day that its month does not have.
    ///
    /// ```
    /// use vahti_runtime::clock::Rfc3339;
    /// assert_eq!(Rfc3339::parse("1970-01-01T00:00:00.000000005Z"), Some(5));
    /// assert_eq!(Rfc3339::parse("1970-02-30T00:00:00.000000000Z"), None);
    /// ```
    #[must_use]
    pub fn parse(text: &str) -> Option<u64> {
        let bytes: &[u8; 30] = text.as_bytes().try_into().ok()?;
        let days = days_to(number(&bytes[0..4])?, number(&bytes[5..7])?, number(&bytes[8..10])?)?;
        let hours = days * 24 + number(&bytes[11..13])?;
        let minutes = hours * 60 + number(&bytes[14..16])?;
        let seconds = minutes * 60 + number(&bytes[17..19])?;
        let ns = seconds.checked_mul(1_000_000_000)?.checked_add(number(&bytes[20..29])?)?;
        // Whatever was out of its bounds comes out as another text.
        (Rfc3339::new(ns).text == *bytes).then_some(ns)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Digits and punctuation only, so this never falls back.
        std::str::from_utf8(&self.text).unwrap_or("")
    }
}

fn digits(out: &mut [u8], mut value: u64) {
    for digit in out.iter_mut().rev() {
        // A remainder by 10 fits.
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |number, digit| {
        digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0'))
    })
}

/// Days from 1970-01-01 to a day: what [`civil_date`] does, undone. `None`
/// before 1970.
fn days_to(year: u64, month: u64, day: u64) -> Option<u64> {
    let (year, month_from_march) =
        if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let day_of_year = (153 * month_from_march + 2) / 5 + day;
    let days = 365 * year + year / 4 - year / 100 + year / 400 + day_of_year;
    // One more, as the first day of a month is 1.
    days.checked_sub(DAYS_TO_1970 + 1)
}

/// Days from 0000-03-01 to 1970-01-01.
const DAYS_TO_1970: u64 = 719_468;

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian
/// calendar. Years are taken from March on, so that the leap day comes last
/// and months before it have fixed lengths of 153 days in five.
fn civil_date(days: u64) -> (u64, u64, u64) {
    const DAYS_IN_400_YEARS: u64 = 146_097;
    let days = days + DAYS_TO_1970;
    let (era, day_of_era) = (days / DAYS_IN_400_YEARS, days % DAYS_IN_400_YEARS);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let (month, carry) =
        if month_from_march < 10 { (month_from_march + 3, 0) } else { (month_from_march - 9, 1) };
    (era * 400 + year_of_era + carry, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_follows_the_boot_clock_within_a_pair() {
        let pair = ClockPair { boot_ns: 100, wall_ns: 5_000 };
        assert_eq!(pair.wall_of(90), 4_990);
        assert_eq!(pair.wall_of(110), 5_010);
    }

    #[test]
    fn times_are_written_with_nanoseconds() {
        assert_eq!(rfc3339(1_700_000_000_000_000_005), "2023-11-14T22:13:20.000000005Z");
    }

    #[test]
    fn every_day_until_the_last_is_written_as_a_calendar_has_it() {
        const DAY_NS: u64 = 86_400_000_000_000;
        for day in 0..=u64::MAX / DAY_NS {
            let ns = day * DAY_NS + day % DAY_NS;
            let expected = jiff::Timestamp::from_nanosecond(i128::from(ns)).unwrap();
            assert_eq!(rfc3339(ns), format!("{expected:.9}"));
            assert_eq!(Rfc3339::parse(&rfc3339(ns)), Some(ns));
        }
        assert_eq!(rfc3339(u64::MAX), "2554-07-21T23:34:33.709551615Z");
        assert_eq!(Rfc3339::parse("2554-07-21T23:34:33.709551615Z"), Some(u64::MAX));
    }

    #[test]
    fn what_is_no_moment_of_the_calendar_is_not_read() {
        for text in [
            "",
            "2023-11-14T22:13:20Z",
            "2023-11-14T22:13:20.000000000+",
            "2023-11-14 22:13:20.000000000Z",
            "2023-02-29T00:00:00.000000000Z",
            "2023-00-01T00:00:00.000000000Z",
            "2023-13-01T00:00:00.000000000Z",
            "2023-01-00T00:00:00.000000000Z",
            "2023-01-01T24:00:00.000000000Z",
            "2023-01-01T23:60:00.000000000Z",
            "2016-12-31T23:59:60.000000000Z",
            "1969-12-31T23:59:59.999999999Z",
            "0000-01-01T00:00:00.000000000Z",
            "2554-07-21T23:34:33.709551616Z",
            "9999-99-99T99:99:99.999999999Z",
            "2023-01-01T00:00:00.00000000\u{e9}",
        ] {
            assert_eq!(Rfc3339::parse(text), None, "{text}");
        }
    }
}
