//! A moment as people give it: so long ago, or by the calendar.

use std::str::FromStr;
use std::time::Duration;

use vahti_runtime::clock::Rfc3339;
use vahti_runtime::units::HumanDuration;

/// A moment in the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// So long ago.
    Ago(Duration),
    /// Nanoseconds since 1970.
    At(u64),
}

impl Moment {
    /// The moment, seen from `now_ns`; both in nanoseconds since 1970.
    pub(crate) fn before(self, now_ns: u64) -> u64 {
        match self {
            Moment::Ago(ago) => {
                now_ns.saturating_sub(u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX))
            }
            Moment::At(ns) => ns,
        }
    }
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(HumanDuration(ago)) = text.parse() {
            return Ok(Moment::Ago(ago));
        }
        calendar(text).map(Moment::At).ok_or_else(|| {
            "must be how long ago, such as 5m, or a moment in UTC, such as 2026-11-22 or \
             2026-11-22T14:00:00Z"
                .to_owned()
        })
    }
}

/// A day, or a moment as any of our outputs writes it, in UTC: what is left out
/// at its end is zero.
fn calendar(text: &str) -> Option<u64> {
    const WHOLE: &str = "0000-00-00T00:00:00.000000000Z";
    let text = text.strip_suffix(['Z', 'z']).unwrap_or(text).replacen([' ', 't'], "T", 1);
    let fraction = text.len() > "0000-00-00T00:00:00.".len();
    let at_a_seam = fraction || matches!(text.len(), 10 | 16 | 19);
    let rest = WHOLE.get(text.len()..).filter(|_| at_a_seam && text.len() < WHOLE.len())?;
    Rfc3339::parse(&(text + rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_so_long_ago_or_by_the_calendar() {
        let now = 1_000_000_000_000;
        let at = |text: &str| text.parse().map(|moment: Moment| moment.before(now));
        assert_eq!(at("5m"), Ok(700_000_000_000));
        assert_eq!(at("1000d"), Ok(0));
        assert_eq!(at("1970-01-01T00:00:01.5Z"), Ok(1_500_000_000));
        for (text, ns) in [
            ("1970-01-01", 0),
            ("1970-01-02Z", 86_400_000_000_000),
            ("1970-01-01T00:01", 60_000_000_000),
            ("1970-01-01 00:00:01", 1_000_000_000),
            ("1970-01-01T00:00:01Z", 1_000_000_000),
            ("1970-01-01T00:00:00.123456789Z", 123_456_789),
        ] {
            assert_eq!(at(text), Ok(ns), "{text}");
        }
        for wrong in [
            "",
            "5",
            "yesterday",
            "1970-13-01T00:00:00Z",
            "1970-01",
            "1970-01-01T00",
            "1970-01-01T00:00:00.",
            "1970-01-01T00:00:00.1234567890Z",
            "1970-01-01T00:00:00+02:00",
            "1970-01-01T1ö:00",
            "-5m",
        ] {
            assert!(at(wrong).is_err(), "{wrong}");
        }
    }
}
