//! An event read back from its JSON line.
//!
//! What a durable store keeps must reach any emitter after a restart, so a
//! line makes an event that is written as the very same line. The input is a
//! file that may have been torn or edited: every part is checked, every size
//! is bounded, and what lives for as long as the program does is bounded, too.

mod line;
mod locate;
mod names;

#[cfg(test)]
mod tests;

use std::sync::{Arc, LazyLock};

use serde::Deserialize;

use self::line::{ContainerLine, Line, LinkLine, ProcessLine, Read, Text};
use self::names::Names;
use super::SCHEMA;
use crate::event::{
    Cgroup, Comm, Container, Custom, ErrorInfo, Event, EventData, Exit, Gap, Link, Network,
    OomKill, Process, ProcessRef, Unresolved, escape_text,
};
use crate::ids::TraceId;

/// How long a line may be that [`from_json_line`] reads, in bytes, newline
/// included. Events of built-in kinds take one or two thousand.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// How much of what a file said is repeated in an error, in bytes.
const MAX_SHOWN_BYTES: usize = 200;

/// Why a line could not be read as an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// It is longer than [`MAX_LINE_BYTES`].
    #[error("a line of {size_bytes} bytes; at most {MAX_LINE_BYTES} are read")]
    TooLong {
        /// Its size in bytes.
        size_bytes: usize,
    },
    /// It is no text.
    #[error("byte {at} is not UTF-8")]
    NotUtf8 {
        /// The first byte that is not, counted from 0.
        at: usize,
    },
    /// Something follows the newline.
    #[error("a second line begins at byte {at}")]
    SecondLine {
        /// Where, counted from 0.
        at: usize,
    },
    /// Another format wrote it, or a newer version of this one.
    #[error("schema: {found} cannot be read; {SCHEMA} can")]
    Schema {
        /// What the line says it is, its beginning if that is long.
        found: Box<str>,
    },
    /// It is no JSON, or not what the JSON Schema describes.
    #[error("{key}: {problem}")]
    Invalid {
        /// Where, such as `process.pid` or `links.0.rule`; `line` where it
        /// is the line as a whole.
        key: Box<str>,
        /// What is wrong there. Holds no control character.
        problem: Box<str>,
    },
    /// So many different names came from lines already that no further one
    /// is kept; those that are known can still be read.
    #[error(
        "{key}: lines have brought {} different ones already, or {} KiB of them",
        names::LIMIT,
        names::ALL_BYTES >> 10
    )]
    TooManyNames {
        /// Which of the names.
        key: &'static str,
    },
}

impl DecodeError {
    fn invalid(key: impl Into<Box<str>>, problem: impl Into<Box<str>>) -> Self {
        DecodeError::Invalid { key: key.into(), problem: problem.into() }
    }
}

/// Reads an event from the line that [`to_json_line`](super::to_json_line)
/// wrote of it; the newline may be missing.
///
/// Writing the event again gives the same line, byte for byte. It is not in
/// all the event that was written, as the line does not carry everything:
///
/// * Durations are whole microseconds; `entity` and `cause` are absent.
/// * A text other than a kernel's name stays as it was shown, escapes included.
/// * Integers of custom attributes that were written as text stay text.
/// * A kind outside the built-in table never folds.
///
/// Keys that it does not know are left out: a newer version wrote them.
///
/// Kinds, origins and a few words live until the program ends. Of each, lines
/// can bring 1,024 different ones of at most 1,024 bytes.
///
/// # Errors
///
/// [`DecodeError`] says what is wrong and at which key. Whatever the bytes
/// are, it never panics. Beyond what the JSON Schema asks, a line must not be
/// longer than [`MAX_LINE_BYTES`], and a custom event must not have more than
/// 4,096 attributes, nor lists in lists beyond 120 levels.
///
/// ```
/// use vahti_runtime::event::{
///     DecodeError, Event, OOM_KILL, Severity, from_json_line, to_json_line,
/// };
/// let mut line = Vec::new();
/// to_json_line(&Event { count: 3, ..Event::new(&OOM_KILL, Severity::Fatal) }, &mut line);
/// let event = from_json_line(&line)?;
/// assert_eq!((event.kind, event.count), (&OOM_KILL, 3));
///
/// let error = from_json_line(&line[..90]).unwrap_err();
/// assert_eq!(error.to_string(), "time: EOF while parsing a string (byte 90)");
/// # Ok::<(), DecodeError>(())
/// ```
pub fn from_json_line(line: &[u8]) -> Result<Event, DecodeError> {
    static NAMES: LazyLock<Names> = LazyLock::new(Names::default);
    decode(line, &NAMES)
}

fn decode(line: &[u8], names: &Names) -> Result<Event, DecodeError> {
    if line.len() > MAX_LINE_BYTES {
        return Err(DecodeError::TooLong { size_bytes: line.len() });
    }
    let text = str::from_utf8(line).map_err(|e| DecodeError::NotUtf8 { at: e.valid_up_to() })?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    if let Some(newline) = text.find('\n') {
        return Err(DecodeError::SecondLine { at: newline + 1 });
    }
    let parts: Line<'_> = serde_json::from_str(text).map_err(|e| refused(text, &e))?;
    check_schema(&parts.schema.0)?;
    event_of(parts, names)
}

/// What is wrong with a line, for people. A newer format may differ in
/// anything, so that it is one comes first.
#[cold]
fn refused(text: &str, error: &serde_json::Error) -> DecodeError {
    #[derive(Deserialize)]
    struct SchemaOnly<'a> {
        #[serde(borrow)]
        schema: Text<'a>,
    }

    if let Ok(SchemaOnly { schema }) = serde_json::from_str(text)
        && let Err(error) = check_schema(&schema.0)
    {
        return error;
    }
    // The text is one line, so the column is the place.
    let at = error.column();
    let problem = error.to_string();
    let place = format!(" at line {} column {at}", error.line());
    let problem = beginning(problem.strip_suffix(&place).unwrap_or(&problem));
    DecodeError::invalid(locate::key_at(text, at), format!("{problem} (byte {at})"))
}

/// As much of a text from a file as an error repeats, made harmless.
fn beginning(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_SHOWN_BYTES);
    let more = if end < text.len() { "..." } else { "" };
    format!("{}{more}", escape_text(&text[..end]))
}

fn check_schema(schema: &str) -> Result<(), DecodeError> {
    if schema == SCHEMA {
        return Ok(());
    }
    // A minor version would only add keys.
    match schema.strip_prefix(SCHEMA) {
        Some(minor) if minor.starts_with('.') => Ok(()),
        _ => Err(DecodeError::Schema { found: beginning(schema).into() }),
    }
}

fn event_of(mut line: Line<'_>, names: &Names) -> Result<Event, DecodeError> {
    let data = data_of(&mut line)?;
    let kind = names.kind(&line.name.0, &line.event_type.0, &line.subtype.0, line.priority.0)?;
    let links = line.links.unwrap_or_default();
    let links = links.iter().enumerate().map(|(i, link)| link_of(i, link, names));
    let container = line.container.map(|container| container_of(container, names));
    let duration = line.duration_us.map(|us| nanos(us).ok_or_else(|| too_long("duration_us")));
    let unresolved = line.unresolved.map(|unresolved| {
        let reason = names.word("unresolved.reason", &unresolved.reason.0)?;
        Ok(Unresolved { reason })
    });
    Ok(Event {
        id: line.id.0,
        kind,
        origin: names.origin(&line.source.0, &line.node.0)?,
        time_ns: line.time.0.0,
        observed_ns: line.observed_time.0.0,
        trace_id: line.trace_id.map_or(TraceId::UNSET, |id| id.0),
        span_id: line.span_id.map(|id| id.0),
        parent_span_id: line.parent_span_id.map(|id| id.0),
        links: links.collect::<Result<_, _>>()?,
        duration_ns: duration.transpose()?,
        severity: line.severity.0,
        outcome: line.outcome.0,
        error: line.error.map(|error| ErrorInfo {
            code: error.code.0.0,
            message: error.message.0,
            cause: error.cause.map(|cause| cause.0),
        }),
        entity: None,
        cause: None,
        process: line.process.map(process_of),
        cgroup: line.cgroup.map(|cgroup| {
            Arc::new(Cgroup { id: cgroup.id.0, path: cgroup.path.0, version: cgroup.version })
        }),
        container: container.transpose()?,
        data,
        count: line.count,
        first_ns: line.first_time.map_or(0, |time| time.0.0),
        last_ns: line.last_time.map_or(0, |time| time.0.0),
        weight: line.weight,
        sampling_threshold: line.sampling.map_or(0, |sampling| sampling.threshold.0.0),
        unresolved: unresolved.transpose()?,
    })
}

fn process_of(process: ProcessLine) -> Process {
    Process {
        pid: process.pid,
        name: process.name.map(|name| name.0),
        uid: process.uid,
        parent_pid: process.parent_pid,
        start_ns: process.start_time.map(|time| time.0.0),
    }
}

fn container_of(
    container: ContainerLine<'_>,
    names: &Names,
) -> Result<Arc<Container>, DecodeError> {
    let runtime = container.runtime.map(|runtime| names.word("container.runtime", &runtime.0));
    Ok(Arc::new(Container { id: container.id.0, runtime: runtime.transpose()? }))
}

fn link_of(i: usize, link: &LinkLine<'_>, names: &Names) -> Result<Link, DecodeError> {
    Ok(Link {
        kind: link.kind.0,
        trace_id: link.trace_id.0,
        span_id: link.span_id.0,
        rule: names.word("links.rule", &link.rule.0)?,
        age_ns: nanos(link.age_us).ok_or_else(|| too_long(&format!("links.{i}.age_us")))?,
    })
}

fn nanos(us: u64) -> Option<u64> {
    us.checked_mul(1_000)
}

fn too_long(key: &str) -> DecodeError {
    DecodeError::invalid(key, "more than 584 years")
}

/// The one part that says what the event says.
fn data_of(line: &mut Line<'_>) -> Result<EventData, DecodeError> {
    let (usage_bytes, limit_bytes) =
        line.memory.take().map_or((None, None), |memory| (memory.usage_bytes, memory.limit_bytes));
    let mut data = EventData::None;
    let mut add = |key: &str, part: EventData| match std::mem::replace(&mut data, part) {
        EventData::None => Ok(()),
        _ => Err(DecodeError::invalid(key, "says something else than another part of the event")),
    };
    if let Some(network) = line.network.take() {
        let part = Network {
            transport: network.transport.0,
            network_type: network.network_type.0,
            local: network.local.into(),
            peer: network.peer.into(),
        };
        add("network", EventData::Network(part))?;
    }
    if let Some(oom) = line.oom.take() {
        let part = OomKill {
            scope: oom.scope.0,
            usage_bytes,
            limit_bytes,
            victim_rss_bytes: oom.victim_rss_bytes,
            score_adj: oom.score_adj,
            trigger: somebody("oom.trigger_pid", oom.trigger_pid, oom.trigger_name)?,
        };
        add("oom", EventData::OomKill(part))?;
    }
    if let Some(exit) = line.exit.take() {
        let part = Exit {
            code: exit.code,
            signal: exit.signal.map(|signal| signal.0),
            class: exit.class.0,
            sender: somebody("exit.sender_pid", exit.sender_pid, exit.sender_name)?,
        };
        add("exit", EventData::Exit(part))?;
    }
    if let Some(gap) = line.gap.take() {
        add("gap", EventData::Gap(Gap { from_ns: gap.from.0.0, to_ns: gap.to.0.0 }))?;
    }
    if let Some(custom) = line.custom.take() {
        let part = Custom { schema: custom.schema.0, attributes: custom.attributes.0 };
        add("custom", EventData::Custom(Box::new(part)))?;
    }
    Ok(data)
}

/// A process named in passing: its id and its name come together.
fn somebody(
    key: &str,
    pid: Option<u32>,
    name: Option<Read<Comm>>,
) -> Result<Option<ProcessRef>, DecodeError> {
    match (pid, name) {
        (Some(pid), Some(name)) => Ok(Some(ProcessRef { pid, name: name.0 })),
        (None, None) => Ok(None),
        _ => Err(DecodeError::invalid(key, "a process's id without its name, or the reverse")),
    }
}
