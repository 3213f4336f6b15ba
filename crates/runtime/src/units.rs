//! Durations and sizes as people write them: with a unit.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration written as a number and one of `ms`, `s`, `m`, `h`, `d`.
///
/// ```
/// use vahti_runtime::units::HumanDuration;
/// assert_eq!("90s".parse::<HumanDuration>()?.to_string(), "90s");
/// assert!("90".parse::<HumanDuration>().is_err());
/// # Ok::<(), vahti_runtime::units::UnitError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanDuration(pub Duration);

/// A size written as a number and one of `B`, `KiB`, `MiB`, `GiB`.
///
/// ```
/// use vahti_runtime::units::ByteSize;
/// assert_eq!("4MiB".parse::<ByteSize>()?, ByteSize::mib(4));
/// # Ok::<(), vahti_runtime::units::UnitError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A text that is no duration or size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct UnitError {
    text: String,
    expected: &'static str,
}

const DURATION: &str = "a duration: a whole number and one of ms, s, m, h, d (such as 500ms)";
const SIZE: &str = "a size: a whole number and one of B, KiB, MiB, GiB (such as 4MiB)";

const DURATION_UNITS: &[(&str, u64)] =
    &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
const SIZE_UNITS: &[(&str, u64)] =
    &[("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

fn parse(text: &str, units: &[(&str, u64)], expected: &'static str) -> Result<u64, UnitError> {
    let error = || UnitError { text: text.chars().take(40).collect(), expected };
    let trimmed = text.trim();
    let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = trimmed.split_at(digits);
    let number: u64 = number.parse().map_err(|_| error())?;
    let unit = unit.trim_start();
    let (_, scale) = units.iter().find(|(name, _)| *name == unit).ok_or_else(error)?;
    number.checked_mul(*scale).ok_or_else(error)
}

/// The largest unit that leaves a whole number below 1,000, else the largest
/// that leaves a whole number.
fn show(value: u64, units: &[(&str, u64)], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let unit = units.iter().find(|(_, scale)| value >= *scale && value.is_multiple_of(*scale));
    let (name, scale) = unit.copied().unwrap_or(("", 1));
    write!(f, "{}{name}", value / scale)
}

impl FromStr for HumanDuration {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, DURATION_UNITS, DURATION).map(|ms| HumanDuration(Duration::from_millis(ms)))
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, SIZE_UNITS, SIZE).map(ByteSize)
    }
}

impl ByteSize {
    /// That many mebibytes.
    #[must_use]
    pub const fn mib(count: u64) -> Self {
        ByteSize(count << 20)
    }

    /// As a number of bytes that memory can hold.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX) {
            0 => f.write_str("0s"),
            // 90s reads better than 90000ms, and 90s than 1.5m.
            ms => show(ms, DURATION_UNITS, f),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { f.write_str("0B") } else { show(self.0, SIZE_UNITS, f) }
    }
}

macro_rules! as_text {
    ($type:ident, $pattern:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<str>::deserialize(deserializer)?;
                text.parse().map_err(D::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern })
            }
        }
    };
}

as_text!(HumanDuration, r"^\d+\s*(ms|s|m|h|d)$");
as_text!(ByteSize, r"^\d+\s*(B|KiB|MiB|GiB)$");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_parsed_to_the_same_value() {
        for ms in [0, 1, 999, 1_000, 1_500, 90_000, 60_000, 3_600_000, 86_400_000] {
            let duration = HumanDuration(Duration::from_millis(ms));
            assert_eq!(duration.to_string().parse(), Ok(duration));
        }
        for bytes in [0, 1, 1_023, 1 << 10, 4 << 20, 3 << 30] {
            assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }
    }

    #[test]
    fn a_number_needs_its_unit_and_must_fit() {
        for text in ["5", "s", "-1s", "1.5s", "5 sec", "", "99999999999999999999s", "213503982335d"]
        {
            assert!(text.parse::<HumanDuration>().is_err(), "{text}");
        }
        assert_eq!(
            "4MB".parse::<ByteSize>().unwrap_err().to_string(),
            "\"4MB\" is not a size: a whole number and one of B, KiB, MiB, GiB (such as 4MiB)"
        );
    }
}
