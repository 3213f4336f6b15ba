//! A record as one line, as text or as JSON.
//!
//! A line has a bound, whatever names and messages hold: a pipe that can be
//! written to at all takes that much at once, and lines of two threads then
//! never mix. What does not fit is cut, and says so.

use std::borrow::Cow;
use std::fmt::{self, Debug, Display, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Metadata};
use vahti_runtime::clock::Rfc3339;
use vahti_runtime::event::escape_text;

use crate::config::LogFormat;

/// The longest line, in bytes, its end included.
pub(super) const MAX_LINE: usize = libc::PIPE_BUF;

/// What a line says after its fields.
const RESERVED: usize = 128;
/// The longest message and the longest field of a line of JSON.
const MAX_MESSAGE: usize = 2_000;
const MAX_FIELD: usize = 1_000;
/// How much is remembered of a record that is held back.
const MAX_SHORT: usize = 240;

/// Integers from here on are not the same in every reader of JSON.
const EXACT: u64 = 1 << 53;

/// A line that is being made.
pub(super) enum Line {
    Text { head: String, said: String },
    Json(Json),
}

/// A line of JSON that is being made.
pub(super) struct Json {
    line: String,
    names: Vec<&'static str>,
    left_out: usize,
    untold: u64,
}

impl Line {
    /// One that begins with the moment and the level. `untold` is how many
    /// lines before it could not be written.
    pub(super) fn begin(format: LogFormat, wall_ns: u64, what: &Metadata<'_>, untold: u64) -> Self {
        let moment = Rfc3339::new(wall_ns);
        // To the microsecond.
        let moment = moment.as_str().get(..26).unwrap_or_default();
        if format == LogFormat::Text {
            let not_written = match untold {
                0 => String::new(),
                count => format!("({count} lines before this one were not written) "),
            };
            let head = format!("{not_written}{moment}Z {:>5} ", what.level());
            return Line::Text { head, said: String::new() };
        }
        let level = what.level().as_str().to_ascii_lowercase();
        let mut line = format!(r#"{{"timestamp":"{moment}Z","level":"{level}","target":"#);
        text(&mut line, what.target(), 200);
        Line::Json(Json { line, names: Vec::new(), left_out: 0, untold })
    }

    /// Says what a record says.
    pub(super) fn event(&mut self, event: &Event<'_>) {
        match self {
            Line::Text { said, .. } => event.record(&mut Text::within(said, MAX_LINE)),
            Line::Json(json) => {
                // The message stands first, wherever the record has it.
                event.record(&mut Message(json));
                event.record(json);
            }
        }
    }

    /// Says what was held back.
    pub(super) fn held_back(&mut self, like: &str) {
        match self {
            Line::Text { said, .. } => push(said, &format_args!("held back: {like}")),
            Line::Json(json) => {
                json.say("message", MAX_MESSAGE, &format_args!("held back: {like}"));
            }
        }
    }

    /// All of it. `held` is how many like it were held back before it.
    pub(super) fn end(self, held: u64) -> String {
        match self {
            Line::Text { head, said } => {
                let held = match held {
                    0 => String::new(),
                    1 => " (1 like this was held back)".to_owned(),
                    count => format!(" ({count} like this were held back)"),
                };
                let mut line = head + &escape_text(&said);
                let room = MAX_LINE - "\n".len() - held.len();
                if line.len() > room {
                    line.truncate(line.floor_char_boundary(room - "…".len()));
                    line.push('…');
                }
                line + &held + "\n"
            }
            Line::Json(json) => json.end(held),
        }
    }
}

impl Json {
    fn say(&mut self, name: &'static str, max: usize, value: &dyn Display) {
        let room = (MAX_LINE - RESERVED).saturating_sub(self.line.len() + name.len() + 8);
        if room < 16 {
            self.left_out += 1;
            return;
        }
        self.name(name);
        text(&mut self.line, value, max.min(room));
    }

    /// A number, true or false.
    fn plain(&mut self, name: &'static str, value: &dyn Display) {
        let room = (MAX_LINE - RESERVED).saturating_sub(self.line.len() + name.len() + 8);
        if room < 40 {
            self.left_out += 1;
            return;
        }
        self.name(name);
        push(&mut self.line, value);
    }

    /// No name stands twice in an object.
    fn name(&mut self, name: &'static str) {
        let ours = ["timestamp", "level", "target", "held_back", "not_written", "left_out"];
        let is_taken = ours.contains(&name) || self.names.contains(&name);
        let again = if is_taken { format!("_{}", self.names.len()) } else { String::new() };
        self.names.push(name);
        self.line.push(',');
        text(&mut self.line, format_args!("{}{again}", name.trim_start_matches("r#")), 200);
        self.line.push(':');
    }

    fn end(mut self, held: u64) -> String {
        let left_out = self.left_out as u64;
        for (name, count) in
            [("held_back", held), ("not_written", self.untold), ("left_out", left_out)]
        {
            if count > 0 {
                push(&mut self.line, &format_args!(",\"{name}\":{count}"));
            }
        }
        self.line.push_str("}\n");
        self.line
    }
}

/// Writing to memory does not fail.
fn push(line: &mut String, value: &dyn Display) {
    write!(line, "{value}").unwrap_or_default();
}

/// Puts a text into a line of JSON, within so many bytes; what is cut has a
/// mark at its end.
fn text(line: &mut String, value: impl Display, max: usize) {
    line.push('"');
    let mut inside = Inside { line, left: max };
    if write!(inside, "{value}").is_err() {
        line.push('…');
    }
    line.push('"');
}

/// Within quotes. What would harm a terminal has its number.
struct Inside<'a> {
    line: &'a mut String,
    left: usize,
}

impl Write for Inside<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            let before = self.line.len();
            match c {
                '"' => self.line.push_str("\\\""),
                '\\' => self.line.push_str("\\\\"),
                '\n' => self.line.push_str("\\n"),
                '\r' => self.line.push_str("\\r"),
                '\t' => self.line.push_str("\\t"),
                c if is_harmful(c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        push(self.line, &format_args!("\\u{unit:04x}"));
                    }
                }
                c => self.line.push(c),
            }
            let Some(left) = self.left.checked_sub(self.line.len() - before) else {
                self.line.truncate(before);
                self.left = 0;
                return Err(fmt::Error);
            };
            self.left = left;
        }
        Ok(())
    }
}

fn is_harmful(c: char) -> bool {
    !c.is_ascii_graphic() && c != ' ' && {
        matches!(escape_text(c.encode_utf8(&mut [0; 4])), Cow::Owned(_))
    }
}

/// The message of a record.
struct Message<'a>(&'a mut Json);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" && !self.0.names.contains(&"message") {
            self.0.say("message", MAX_MESSAGE, &format_args!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

/// Its fields.
impl Visit for Json {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() != "message" {
            self.say(field.name(), MAX_FIELD, &format_args!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() != "message" {
            self.say(field.name(), MAX_FIELD, &value);
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        if value.unsigned_abs() < EXACT {
            self.plain(field.name(), &value);
        } else {
            self.say(field.name(), MAX_FIELD, &value);
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if value < EXACT {
            self.plain(field.name(), &value);
        } else {
            self.say(field.name(), MAX_FIELD, &value);
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field.name(), &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        match serde_json::Number::from_f64(value) {
            Some(number) => self.plain(field.name(), &number),
            None => self.say(field.name(), MAX_FIELD, &value),
        }
    }
}

/// A record in short.
pub(super) fn in_short(event: &Event<'_>) -> String {
    let mut said = String::new();
    event.record(&mut Text::within(&mut said, MAX_SHORT));
    said
}

/// The message as it is, fields as `name=value`.
struct Text<'a> {
    out: &'a mut String,
    max: usize,
}

impl<'a> Text<'a> {
    fn within(out: &'a mut String, max: usize) -> Self {
        Text { out, max }
    }
}

impl Visit for Text<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let blank = if self.out.is_empty() { "" } else { " " };
        let said = match field.name() {
            "message" => write!(self, "{blank}{value:?}"),
            name => write!(self, "{blank}{}={value:?}", name.trim_start_matches("r#")),
        };
        // What does not fit is cut.
        said.unwrap_or_default();
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.record_debug(field, &format_args!("{value}"));
        } else {
            self.record_debug(field, &value);
        }
    }
}

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.max.saturating_sub(self.out.len());
        let fits = text.floor_char_boundary(room);
        self.out.push_str(text.get(..fits).unwrap_or_default());
        if fits < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}
