//! Durations and sizes as people write them: with a unit.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error as _, Unexpected};
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

/// A text that is no duration or size, or one that can't be counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is {}", if *too_large { "too large" } else { expected })]
pub struct UnitError {
    text: String,
    expected: &'static str,
    too_large: bool,
}

const DURATION: &str = "not a duration: a whole number and one of ms, s, m, h, d (such as 500ms)";
const SIZE: &str = "not a size: a whole number and one of B, KiB, MiB, GiB (such as 4MiB)";

const DURATION_UNITS: &[(&str, u64)] =
    &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
const SIZE_UNITS: &[(&str, u64)] =
    &[("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

fn parse(text: &str, units: &[(&str, u64)], expected: &'static str) -> Result<u64, UnitError> {
    let error =
        |too_large| UnitError { text: text.chars().take(40).collect(), expected, too_large };
    let trimmed = text.trim();
    let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = trimmed.split_at(digits);
    let unit = unit.trim_start();
    let scale = units.iter().find(|(name, _)| *name == unit).map(|(_, scale)| scale);
    let (Some(scale), false) = (scale, number.is_empty()) else {
        return Err(error(false));
    };
    let number: Option<u64> = number.parse().ok();
    number.and_then(|number| number.checked_mul(*scale)).ok_or_else(|| error(true))
}

/// A pattern for the texts that mean `low` to `high`.
fn pattern(low: u64, high: u64, units: &[(&str, u64)]) -> String {
    let of_unit = |(name, scale): &(&str, u64)| {
        let (low, high) = (low.div_ceil(*scale), high / scale);
        (low <= high).then(|| format!(r"({})\s*{name}", numbers(low, high)))
    };
    let all: Vec<String> = units.iter().rev().filter_map(of_unit).collect();
    format!(r"^\s*0*({})\s*$", all.join("|"))
}

/// A pattern for the whole numbers from `low` to `high`, behind any zeros.
fn numbers(low: u64, high: u64) -> String {
    let mut parts = Vec::new();
    let mut from = low;
    while from <= high {
        // So many digits at the end may be any.
        let (mut any, mut size) = (0, 1_u64);
        while from.is_multiple_of(size * 10) && from + (size * 10 - 1) <= high {
            (any, size) = (any + 1, size * 10);
        }
        let is_whole = |size: u64| size * 10 - 1 <= high;
        if from == 0 && any > 0 {
            parts.push(any_digits(1, any));
            from = size;
        } else if from == size && is_whole(size) {
            // From 1, 10, 100, ... on: all numbers of so many digits, or more.
            let least = any;
            while is_whole(size * 10) {
                (any, size) = (any + 1, size * 10);
            }
            parts.push(format!("[1-9]{}", any_digits(least, any)));
            from = size * 10;
        } else {
            // And the one before them up to this.
            let (digit, front) = (from / size % 10, from / size / 10);
            let mut last = digit;
            while last < 9 && from + (last - digit + 2) * size - 1 <= high {
                last += 1;
            }
            let front = if front == 0 { String::new() } else { front.to_string() };
            let digits =
                if last == digit { digit.to_string() } else { format!("[{digit}-{last}]") };
            parts.push(format!("{front}{digits}{}", any_digits(any, any)));
            from += (last - digit + 1) * size;
        }
    }
    parts.join("|")
}

/// A pattern for so many digits.
fn any_digits(least: u32, most: u32) -> String {
    match (least, most) {
        (0, 0) => String::new(),
        (1, 1) => "[0-9]".to_owned(),
        _ if least == most => format!("[0-9]{{{least}}}"),
        _ => format!("[0-9]{{{least},{most}}}"),
    }
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

impl HumanDuration {
    /// That many milliseconds.
    #[must_use]
    pub const fn from_ms(count: u64) -> Self {
        HumanDuration(Duration::from_millis(count))
    }

    fn as_ms(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    /// A pattern, in a JSON Schema's dialect, for the texts that mean a
    /// duration from `low` to `high`.
    #[must_use]
    pub fn pattern(low: Self, high: Self) -> String {
        pattern(low.as_ms(), high.as_ms(), DURATION_UNITS)
    }
}

impl ByteSize {
    /// A pattern, in a JSON Schema's dialect, for the texts that mean a size
    /// from `low` to `high`.
    #[must_use]
    pub fn pattern(low: Self, high: Self) -> String {
        pattern(low.0, high.0, SIZE_UNITS)
    }

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
        match self.as_ms() {
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
                text.parse().map_err(|error: UnitError| match error.too_large {
                    true => D::Error::invalid_value(Unexpected::Str(&text), &error.expected),
                    false => D::Error::custom(error),
                })
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
            "213503982335d".parse::<HumanDuration>().unwrap_err().to_string(),
            "\"213503982335d\" is too large"
        );
        assert_eq!(
            "4MB".parse::<ByteSize>().unwrap_err().to_string(),
            "\"4MB\" is not a size: a whole number and one of B, KiB, MiB, GiB (such as 4MiB)"
        );
    }

    #[test]
    fn a_pattern_takes_what_is_in_its_bounds_and_nothing_else() {
        let day = 86_400_000;
        for (low, high) in
            [(0, 0), (0, 600_000), (1, 3_600_000), (100, 3_600_000), (1_000, 366 * day)]
        {
            let (low, high) = (HumanDuration::from_ms(low), HumanDuration::from_ms(high));
            let schema = serde_json::json!({ "pattern": HumanDuration::pattern(low, high) });
            let validator = jsonschema::draft202012::new(&schema).unwrap();
            let edges = [low.as_ms(), high.as_ms(), 1, 999, 1_000];
            let around = |edge: u64| [edge.saturating_sub(1), edge, edge + 1];
            for (unit, scale) in DURATION_UNITS {
                let edges = edges.map(|edge| edge / scale);
                for number in edges.into_iter().flat_map(around).chain(0..1_300) {
                    for text in [format!("{number}{unit}"), format!(" 00{number} {unit} ")] {
                        let is_good = (low..=high).contains(&text.parse().unwrap());
                        let is_taken = validator.is_valid(&serde_json::json!(text));
                        assert_eq!(is_taken, is_good, "{text:?} in {low} to {high}: {schema}");
                    }
                }
            }
        }
    }
}
