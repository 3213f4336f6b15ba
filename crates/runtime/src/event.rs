//! The event: what every observer produces and every emitter takes.

mod data;
mod json;
mod kind;
mod signal;

pub use data::{
    Cgroup, Comm, Container, Custom, Endpoint, ErrorInfo, EventData, Exit, ExitClass, Gap, Link,
    LinkKind, Network, NetworkType, OomKill, OomScope, Process, ProcessRef, Signal, Transport,
    Unresolved, Value, escape, escape_text, unescape,
};
pub use json::{DecodeError, JSON_SCHEMA, MAX_LINE_BYTES, SCHEMA, from_json_line, to_json_line};
pub use kind::{
    AGENT_GAP, CONNECTION_ABANDONED, CONNECTION_REFUSED, CONNECTION_RESET, CONNECTION_TIMEOUT,
    CONNECTION_UNREACHABLE, CONTAINER_EXIT, EventKind, OOM_KILL, PROCESS_CRASH, Priority,
};

use std::sync::Arc;

use crate::ids::{EntityId, EventId, SpanId, TraceId};
use crate::memory::BLOCK;

/// How bad it is, in OpenTelemetry's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// For developers.
    Debug,
    /// Worth knowing.
    Info,
    /// Worth a look.
    Warning,
    /// Something failed.
    Error,
    /// Something that must not fail failed.
    Fatal,
}

impl Severity {
    /// The JSON word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Severity::Debug => "debug",
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
            Severity::Fatal => "fatal",
        }
    }

    /// Whether this is a failure, which sampling keeps unless a rule names it.
    #[must_use]
    pub fn is_failure(self) -> bool {
        self >= Severity::Error
    }
}

/// How what the event tells of ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It succeeded.
    Success,
    /// It failed.
    Failure,
    /// It took too long.
    Timeout,
    /// Not known.
    Unknown,
}

impl Outcome {
    /// The JSON word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Success => "success",
            Outcome::Failure => "failure",
            Outcome::Timeout => "timeout",
            Outcome::Unknown => "unknown",
        }
    }
}

/// Which observer on which node an event comes from.
///
/// All events of an observer share one, for as long as the program runs:
/// counting references to it would make producers on several cores contend.
#[derive(Debug, PartialEq, Eq)]
pub struct Origin {
    /// The observer's name.
    pub source: Box<str>,
    /// The node's name.
    pub node: Box<str>,
}

impl Origin {
    /// The one origin of this observer on this node.
    ///
    /// It lives until the program ends; asking again for the same pair gives
    /// the same one, so what is kept is bounded by how many are configured.
    #[must_use]
    pub fn shared(source: &str, node: &str) -> &'static Origin {
        use std::sync::{Mutex, PoisonError};
        static ALL: Mutex<Vec<&'static Origin>> = Mutex::new(Vec::new());
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.iter().find(|o| &*o.source == source && &*o.node == node) {
            return known;
        }
        let origin: &'static Origin =
            Box::leak(Box::new(Origin { source: source.into(), node: node.into() }));
        all.push(origin);
        origin
    }

    /// What an event carries until the pipeline stamps it.
    pub(crate) fn unset() -> &'static Origin {
        static UNSET: std::sync::OnceLock<Origin> = std::sync::OnceLock::new();
        UNSET.get_or_init(|| Origin { source: "".into(), node: "".into() })
    }
}

/// One thing that happened.
///
/// A processor fills in what it knows; the pipeline stamps the rest (id,
/// origin, observed time, a trace and a span where the processor set none,
/// parent, weight).
///
/// ```
/// use vahti_runtime::event::{Event, EventKind, Priority, Severity};
///
/// static GREETING: EventKind =
///     EventKind::custom("example.hello.greeting", "hello", "greeting", Priority::Normal);
/// let event = Event::new(&GREETING, Severity::Info);
/// assert_eq!(event.count, 1);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// ULID; stamped by the pipeline.
    pub id: EventId,
    /// Name, type, subtype and priority.
    pub kind: &'static EventKind,
    /// Observer and node; stamped by the pipeline.
    pub origin: &'static Origin,
    /// When it happened, nanoseconds since 1970; the record's time if 0.
    pub time_ns: u64,
    /// When the agent saw it, nanoseconds since 1970; stamped by the pipeline.
    pub observed_ns: u64,
    /// The incident that it belongs to; derived from the id if unset.
    pub trace_id: TraceId,
    /// Its own span; derived from the id if unset.
    pub span_id: Option<SpanId>,
    /// The span that caused it.
    pub parent_span_id: Option<SpanId>,
    /// What else it is connected to.
    pub links: Vec<Link>,
    /// How long what it tells of took, in nanoseconds.
    pub duration_ns: Option<u64>,
    /// How bad it is.
    pub severity: Severity,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it failed.
    pub error: Option<ErrorInfo>,
    /// What it is about: the causality tracker remembers its span under this.
    pub entity: Option<EntityId>,
    /// What may have caused it: the tracker makes that entity's latest span
    /// the parent, where the processor set none.
    pub cause: Option<EntityId>,
    /// The process that it is about.
    pub process: Option<Process>,
    /// That process's control group.
    pub cgroup: Option<Arc<Cgroup>>,
    /// That process's container.
    pub container: Option<Arc<Container>>,
    /// What it says beyond that.
    pub data: EventData,
    /// How many occurrences it stands for.
    pub count: u64,
    /// When the first of them happened; 0 unless it is a summary.
    pub first_ns: u64,
    /// When the last of them happened; 0 unless it is a summary.
    pub last_ns: u64,
    /// How many events it stands for after sampling: 1 / probability.
    pub weight: f64,
    /// The threshold T that it passed, 56 bits; 0 means not sampled.
    pub sampling_threshold: u64,
    /// What could not be found out.
    pub unresolved: Option<Unresolved>,
}

impl Event {
    /// An event with everything else absent.
    #[must_use]
    pub fn new(kind: &'static EventKind, severity: Severity) -> Self {
        Event {
            id: EventId::UNSET,
            kind,
            origin: Origin::unset(),
            time_ns: 0,
            observed_ns: 0,
            trace_id: TraceId::UNSET,
            span_id: None,
            parent_span_id: None,
            links: Vec::new(),
            duration_ns: None,
            severity,
            outcome: Outcome::Unknown,
            error: None,
            entity: None,
            cause: None,
            process: None,
            cgroup: None,
            container: None,
            data: EventData::None,
            count: 1,
            first_ns: 0,
            last_ns: 0,
            weight: 1.0,
            sampling_threshold: 0,
            unresolved: None,
        }
    }

    /// Drops all that it owns or shares, so that its memory can be used again.
    pub(crate) fn let_go(&mut self) {
        self.links = Vec::new();
        self.error = None;
        self.cgroup = None;
        self.container = None;
        self.data = EventData::None;
    }

    /// What it keeps in memory, in bytes: itself, what it owns, and what it
    /// shares with others, which it may be the last to hold.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let error = self.error.as_ref().map_or(0, |e| {
            owned_len(&e.code) + owned_len(&e.message) + e.cause.as_ref().map_or(0, owned_len)
        });
        let custom = match &self.data {
            EventData::Custom(custom) => custom_size(custom),
            _ => 0,
        };
        let shared = 2 * size_of::<usize>() + 2 * BLOCK;
        let cgroup = self.cgroup.as_ref();
        let cgroup = cgroup.map_or(0, |c| shared + size_of::<Cgroup>() + c.path.len());
        let container = self.container.as_ref();
        let container = container.map_or(0, |c| shared + size_of::<Container>() + c.id.len());
        let links = match self.links.capacity() {
            0 => 0,
            links => links * size_of::<Link>() + BLOCK,
        };
        size_of::<Self>() + links + error + custom + cgroup + container
    }
}

#[allow(clippy::ptr_arg, reason = "whether it is owned is the question")]
fn owned_len(text: &std::borrow::Cow<'static, str>) -> usize {
    match text {
        std::borrow::Cow::Borrowed(_) => 0,
        std::borrow::Cow::Owned(text) => text.capacity() + BLOCK,
    }
}

fn custom_size(custom: &Custom) -> usize {
    let attributes = &custom.attributes;
    let list = attributes.capacity() * size_of::<(std::borrow::Cow<'static, str>, Value)>();
    let owned: usize =
        attributes.iter().map(|(key, value)| owned_len(key) + value_size(value)).sum();
    size_of::<Custom>() + BLOCK + owned_len(&custom.schema) + list + BLOCK + owned
}

/// What a value owns beside itself.
fn value_size(value: &Value) -> usize {
    match value {
        Value::Text(text) => owned_len(text),
        Value::List(values) => {
            let owned: usize = values.iter().map(value_size).sum();
            values.capacity() * size_of::<Value>() + BLOCK + owned
        }
        _ => 0,
    }
}
