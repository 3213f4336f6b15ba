//! What values may be: said once a field, for whoever checks a configuration
//! and for its JSON Schema alike.

use std::fmt;
use std::path::Path;

use schemars::Schema;
use serde_json::{Map, Value, json};

use super::InvalidField;
use crate::event::escape_text;
use crate::units::{ByteSize, HumanDuration};

/// A part of a configuration whose values have bounds.
///
/// ```
/// use vahti_runtime::config::bounds::{Bounded, Checked};
///
/// struct Door {
///     width_mm: u32,
/// }
///
/// impl Bounded for Door {
///     fn sample() -> Self {
///         Door { width_mm: 900 }
///     }
///
///     fn check(&self, checked: &mut Checked) {
///         checked.whole("width_mm", u64::from(self.width_mm), 600, 1_200);
///     }
/// }
///
/// let wrong = Checked::of(&Door { width_mm: 9 }).wrong;
/// assert_eq!(
///     wrong[0].to_string(),
///     "width_mm is 9, but must be a whole number from 600 to 1,200"
/// );
/// ```
pub trait Bounded {
    /// One that is good, for what bounds there are where there is no value.
    fn sample() -> Self;

    /// Shows every value that has a bound, whatever the other values are.
    fn check(&self, checked: &mut Checked);
}

/// What a value may be.
#[derive(Debug, Clone, PartialEq)]
pub enum Bound {
    /// A whole number, from and to.
    Whole(u64, u64),
    /// A number, from and to.
    Number(f64, f64),
    /// A duration, from and to.
    Duration(HumanDuration, HumanDuration),
    /// A size, from and to.
    Size(ByteSize, ByteSize),
    /// A list's length, from and to.
    Items(usize, usize),
    /// A name.
    Text(TextBound),
    /// Any text but none; what it is.
    Filled(&'static str),
    /// A path that ends with a name.
    File,
}

/// What a name may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextBound {
    /// What it may begin with, as in the brackets of a pattern: `a-z_`; a
    /// hyphen of its own stands last.
    pub first: &'static str,
    /// What may follow.
    pub rest: &'static str,
    /// Its greatest length, in bytes; the least is 1.
    pub max_len: usize,
    /// What both are, in words.
    pub words: &'static str,
}

impl TextBound {
    /// Whether a text is such a name.
    #[must_use]
    pub fn allows(&self, text: &str) -> bool {
        let mut bytes = text.bytes();
        text.len() <= self.max_len
            && bytes.next().is_some_and(|first| is_among(first, self.first))
            && bytes.all(|byte| is_among(byte, self.rest))
    }
}

/// Whether the brackets of a pattern match a byte.
fn is_among(byte: u8, mut brackets: &str) -> bool {
    loop {
        let (low, high, taken) = match *brackets.as_bytes() {
            [] => return false,
            [low, b'-', high, ..] => (low, high, 3),
            [one, ..] => (one, one, 1),
        };
        if (low..=high).contains(&byte) {
            return true;
        }
        brackets = brackets.get(taken..).unwrap_or_default();
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::Whole(low, high) => {
                write!(f, "a whole number from {} to {}", grouped(*low), grouped(*high))
            }
            Bound::Number(low, high) => write!(f, "a number from {low:.1} to {high:.1}"),
            Bound::Duration(low, high) => write!(f, "{low} to {high}"),
            Bound::Size(low, high) => write!(f, "{low} to {high}"),
            Bound::Items(low, high) => write!(f, "a list of {low} to {high}"),
            Bound::Text(text) if text.max_len == usize::MAX => f.write_str(text.words),
            Bound::Text(text) => write!(f, "1 to {} {}", text.max_len, text.words),
            Bound::Filled(what) => f.write_str(what),
            Bound::File => f.write_str("the path of a file"),
        }
    }
}

/// `10000000` as `10,000,000`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl Bound {
    /// The words of JSON Schema that say the same.
    #[must_use]
    pub fn keywords(&self) -> Map<String, Value> {
        let said = match self {
            Bound::Whole(low, high) => json!({"minimum": low, "maximum": high}),
            Bound::Number(low, high) => json!({"minimum": low, "maximum": high}),
            Bound::Duration(low, high) => json!({"pattern": HumanDuration::pattern(*low, *high)}),
            Bound::Size(low, high) => json!({"pattern": ByteSize::pattern(*low, *high)}),
            Bound::Items(low, high) => json!({"minItems": low, "maxItems": high}),
            Bound::Text(TextBound { first, rest, max_len: usize::MAX, .. }) => {
                json!({"minLength": 1, "pattern": format!("^[{first}][{rest}]*$")})
            }
            Bound::Text(TextBound { first, rest, max_len, .. }) => json!({
                "minLength": 1,
                "maxLength": max_len,
                "pattern": format!("^[{first}][{rest}]*$"),
            }),
            Bound::Filled(_) => json!({"minLength": 1}),
            // The last part is neither `.` nor `..`.
            Bound::File => json!({
                "minLength": 1,
                "pattern": r"(^|/)([^/.][^/]*|\.[^/.][^/]*|\.\.[^/]+)(/+\.)*/*$",
            }),
        };
        match said {
            Value::Object(words) => words,
            _ => Map::new(),
        }
    }
}

/// Puts the bounds of a type into its JSON Schema:
/// `#[schemars(transform = describe::<Door>)]`. Parts of it that are types of
/// their own say their bounds themselves.
pub fn describe<T: Bounded>(schema: &mut Schema) {
    for (path, bound) in Checked::of(&T::sample()).rows {
        let (key, rest) = path.split_once("[]").unwrap_or((&path, ""));
        let pointer = if path.contains("[]") {
            format!("/properties/{key}/items")
        } else {
            format!("/properties/{key}")
        };
        if let Some(Value::Object(property)) = schema.pointer_mut(&pointer)
            && rest.is_empty()
        {
            property.extend(bound.keywords());
        }
    }
}

/// What came of showing values with their bounds.
#[derive(Debug, Default)]
pub struct Checked {
    /// Every bound, with its field: `rules[].rate`.
    pub rows: Vec<(String, Bound)>,
    /// Every value that is out of its bound, with its field: `rules[2].rate`.
    pub wrong: Vec<InvalidField>,
}

impl Checked {
    /// Of all values of a part.
    #[must_use]
    pub fn of(part: &impl Bounded) -> Self {
        let mut checked = Checked::default();
        part.check(&mut checked);
        checked
    }

    /// A whole number that may be left out.
    pub fn whole(&mut self, key: &str, value: impl Into<Option<u64>>, low: u64, high: u64) {
        let is_good = |value: &u64| (low..=high).contains(value);
        self.row(key, Bound::Whole(low, high), value.into(), is_good, u64::to_string);
    }

    /// A number. What is none (NaN) is in no bound.
    pub fn number(&mut self, key: &str, value: f64, low: f64, high: f64) {
        let is_good = |value: &f64| (low..=high).contains(value);
        self.row(key, Bound::Number(low, high), Some(value), is_good, f64::to_string);
    }

    /// A duration that may be left out; its bounds in milliseconds.
    pub fn duration(
        &mut self,
        key: &str,
        value: impl Into<Option<HumanDuration>>,
        low_ms: u64,
        high_ms: u64,
    ) {
        let (low, high) = (HumanDuration::from_ms(low_ms), HumanDuration::from_ms(high_ms));
        let is_good = |value: &HumanDuration| (low..=high).contains(value);
        self.row(key, Bound::Duration(low, high), value.into(), is_good, HumanDuration::to_string);
    }

    /// A size that may be left out; its bounds in bytes.
    pub fn size(&mut self, key: &str, value: impl Into<Option<ByteSize>>, low: u64, high: u64) {
        let (low, high) = (ByteSize(low), ByteSize(high));
        let is_good = |value: &ByteSize| (low..=high).contains(value);
        self.row(key, Bound::Size(low, high), value.into(), is_good, ByteSize::to_string);
    }

    /// A list's length.
    pub fn items(&mut self, key: &str, len: usize, low: usize, high: usize) {
        let is_good = |len: &usize| (low..=high).contains(len);
        let shown = |len: &usize| format!("a list of {len}");
        self.row(key, Bound::Items(low, high), Some(len), is_good, shown);
    }

    /// A name that may be left out.
    pub fn text<'a>(&mut self, key: &str, value: impl Into<Option<&'a str>>, bound: TextBound) {
        let is_good = |value: &&str| bound.allows(value);
        self.row(key, Bound::Text(bound), value.into(), is_good, |value| quoted(value));
    }

    /// A list of names.
    pub fn texts(&mut self, key: &str, values: &[String], bound: TextBound) {
        self.rows.push((format!("{key}[]"), Bound::Text(bound)));
        for (i, value) in values.iter().enumerate() {
            let shown = || (quoted(value), Bound::Text(bound).to_string());
            self.that(bound.allows(value), &format!("{key}[{i}]"), shown);
        }
    }

    /// A text that must not be empty, and what it is.
    pub fn filled(&mut self, key: &str, value: &str, what: &'static str) {
        let is_good = |value: &&str| !value.is_empty();
        self.row(key, Bound::Filled(what), Some(value), is_good, |value| quoted(value));
    }

    /// A file's path.
    pub fn file(&mut self, key: &str, value: &Path) {
        let is_good = |value: &&Path| value.file_name().is_some();
        let shown = |value: &&Path| {
            format!("\"{}\"", crate::event::escape(value.as_os_str().as_encoded_bytes()))
        };
        self.row(key, Bound::File, Some(value), is_good, shown);
    }

    /// Something between values, which no JSON Schema says: `told` gives the
    /// value and what it must be.
    pub fn that(&mut self, is_good: bool, path: &str, told: impl FnOnce() -> (String, String)) {
        if !is_good {
            let (value, bound) = told();
            self.wrong.push(InvalidField { path: path.to_owned(), value, bound });
        }
    }

    /// A part with bounds of its own.
    pub fn inside(&mut self, key: &str, part: &impl Bounded) {
        let Checked { rows, wrong } = Checked::of(part);
        self.rows.extend(rows.into_iter().map(|(path, bound)| (format!("{key}.{path}"), bound)));
        self.wrong.extend(below(key, wrong));
    }

    /// A list of parts with bounds of their own.
    pub fn each<T: Bounded>(&mut self, key: &str, parts: &[T]) {
        let rows = Checked::of(&T::sample()).rows.into_iter();
        self.rows.extend(rows.map(|(path, bound)| (format!("{key}[].{path}"), bound)));
        for (i, part) in parts.iter().enumerate() {
            self.wrong.extend(below(&format!("{key}[{i}]"), Checked::of(part).wrong));
        }
    }

    fn row<T>(
        &mut self,
        key: &str,
        bound: Bound,
        value: Option<T>,
        is_good: impl FnOnce(&T) -> bool,
        shown: impl FnOnce(&T) -> String,
    ) {
        if let Some(value) = value {
            self.that(is_good(&value), key, || (shown(&value), bound.to_string()));
        }
        self.rows.push((key.to_owned(), bound));
    }
}

fn below(prefix: &str, fields: Vec<InvalidField>) -> impl Iterator<Item = InvalidField> {
    fields
        .into_iter()
        .map(move |field| InvalidField { path: format!("{prefix}.{}", field.path), ..field })
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", escape_text(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_mean_what_they_mean_in_a_pattern() {
        for byte in 0..=255_u8 {
            let expected = byte.is_ascii_lowercase() || byte == b'_' || byte == b'-';
            assert_eq!(is_among(byte, "a-z_-"), expected, "{byte}");
        }
    }

    #[test]
    fn large_numbers_can_be_read() {
        for (number, told) in [(0, "0"), (999, "999"), (1_000, "1,000"), (10_000_000, "10,000,000")]
        {
            assert_eq!(grouped(number), told);
        }
    }

    #[test]
    fn the_pattern_of_a_file_takes_the_paths_that_the_check_takes() {
        let schema = json!(Bound::File.keywords());
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        for path in [
            "",
            ".",
            "..",
            "/",
            "//",
            "a",
            "/a",
            "a/",
            "a/.",
            "a/./",
            "a/..",
            "a//b",
            ".a",
            "..a",
            "...",
            "a/.b",
            "a/..b",
            "a/.../",
            "./.",
            "a.b",
            "/var/log/vahti/events.jsonl",
            "a/../b",
        ] {
            let is_good = Path::new(path).file_name().is_some();
            assert_eq!(validator.is_valid(&json!(path)), is_good, "{path:?}");
        }
    }
}
