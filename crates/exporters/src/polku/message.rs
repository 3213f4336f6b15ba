//! The gateway's messages, as in `proto/polku`: a test compiles those and
//! compares.

use std::collections::HashMap;

use prost::{Enumeration, Message, Oneof};
use vahti_runtime::event::{Event, Outcome, Severity, escape_text, to_json_line};

#[derive(Clone, PartialEq, Message)]
pub(super) struct IngestBatch {
    #[prost(string, tag = "1")]
    pub(super) source: String,
    #[prost(string, tag = "2")]
    pub(super) cluster: String,
    #[prost(oneof = "Payload", tags = "4")]
    pub(super) payload: Option<Payload>,
}

/// The other kind, raw bytes, ends the stream where the gateway does not know
/// their format; it is not used.
#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Payload {
    #[prost(message, tag = "4")]
    Events(EventPayload),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct EventPayload {
    #[prost(message, repeated, tag = "1")]
    pub(super) events: Vec<PolkuEvent>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PolkuEvent {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(int64, tag = "2")]
    pub(super) timestamp_unix_ns: i64,
    #[prost(string, tag = "3")]
    pub(super) source: String,
    #[prost(string, tag = "4")]
    pub(super) event_type: String,
    #[prost(map = "string, string", tag = "5")]
    pub(super) metadata: HashMap<String, String>,
    #[prost(bytes = "vec", tag = "6")]
    pub(super) payload: Vec<u8>,
    #[prost(string, repeated, tag = "7")]
    pub(super) route_to: Vec<String>,
    #[prost(enumeration = "PolkuSeverity", tag = "10")]
    pub(super) severity: i32,
    #[prost(enumeration = "PolkuOutcome", tag = "11")]
    pub(super) outcome: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub(super) enum PolkuSeverity {
    Unspecified = 0,
    Debug = 1,
    Info = 2,
    Warning = 3,
    Error = 4,
    Critical = 5,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
#[repr(i32)]
pub(super) enum PolkuOutcome {
    Unspecified = 0,
    Success = 1,
    Failure = 2,
    Timeout = 3,
    Unknown = 4,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Ack {
    #[prost(string, repeated, tag = "1")]
    pub(super) event_ids: Vec<String>,
    #[prost(message, repeated, tag = "2")]
    pub(super) errors: Vec<AckError>,
    #[prost(int64, tag = "3")]
    pub(super) buffer_size: i64,
    #[prost(int64, tag = "4")]
    pub(super) buffer_capacity: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AckError {
    #[prost(string, tag = "1")]
    pub(super) event_id: String,
    #[prost(string, tag = "2")]
    pub(super) code: String,
    #[prost(string, tag = "3")]
    pub(super) message: String,
}

/// An event in the gateway's words; all of it is in the payload.
pub(super) fn event(event: &Event) -> PolkuEvent {
    let mut payload = Vec::with_capacity(1 << 10);
    to_json_line(event, &mut payload);
    payload.truncate(payload.trim_ascii_end().len());
    PolkuEvent {
        id: event.id.to_string(),
        timestamp_unix_ns: i64::try_from(event.time_ns).unwrap_or(i64::MAX),
        source: escape_text(&event.origin.source).into_owned(),
        event_type: event.kind.name().to_owned(),
        metadata: metadata(event),
        payload,
        route_to: Vec::new(),
        severity: severity(event.severity) as i32,
        outcome: outcome(event.outcome) as i32,
    }
}

fn severity(severity: Severity) -> PolkuSeverity {
    match severity {
        Severity::Debug => PolkuSeverity::Debug,
        Severity::Info => PolkuSeverity::Info,
        Severity::Warning => PolkuSeverity::Warning,
        Severity::Error => PolkuSeverity::Error,
        Severity::Fatal => PolkuSeverity::Critical,
    }
}

fn outcome(outcome: Outcome) -> PolkuOutcome {
    match outcome {
        Outcome::Success => PolkuOutcome::Success,
        Outcome::Failure => PolkuOutcome::Failure,
        Outcome::Timeout => PolkuOutcome::Timeout,
        Outcome::Unknown => PolkuOutcome::Unknown,
    }
}

/// What a gateway routes by, without reading the payload.
fn metadata(event: &Event) -> HashMap<String, String> {
    let mut all = HashMap::with_capacity(16);
    let mut put = |key: &str, value: String| drop(all.insert(key.to_owned(), value));
    put("node", escape_text(&event.origin.node).into_owned());
    put("type", event.kind.event_type().to_owned());
    put("subtype", event.kind.subtype().to_owned());
    put("priority", event.kind.priority().as_str().to_owned());
    put("count", event.count.to_string());
    if event.trace_id.is_set() {
        put("trace_id", event.trace_id.to_string());
    }
    if let Some(span) = event.span_id {
        put("span_id", span.to_string());
    }
    if let Some(parent) = event.parent_span_id {
        put("parent_span_id", parent.to_string());
    }
    if let Some(error) = &event.error {
        put("error_code", escape_text(&error.code).into_owned());
        put("error_message", escape_text(&error.message).into_owned());
        if let Some(cause) = &error.cause {
            put("error_cause", escape_text(cause).into_owned());
        }
    }
    if let Some(entity) = entity(event) {
        put("entity", entity);
    }
    all
}

/// What an event is about: its container, else its process.
fn entity(event: &Event) -> Option<String> {
    if let Some(container) = &event.container {
        return Some(format!("container/{}", escape_text(&container.id)));
    }
    let process = event.process.as_ref()?;
    let name = process.name.as_ref().map(|name| format!("/{}", name.display()));
    Some(format!("process/{}{}", process.pid?, name.unwrap_or_default()))
}
