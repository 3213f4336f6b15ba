//! Events as log records, and those that chains are made of as spans.

use opentelemetry_proto::tonic::common::v1::any_value::Value as Wire;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, SeverityNumber};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Link as SpanLink, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use vahti_runtime::event::{Event, EventData, Gap, Outcome, Priority, Severity, escape_text};

use super::attributes::{Attributes, evidence, pair, threshold};

/// Names the conventions of the resource's attributes.
pub(super) const CONVENTIONS_URL: &str = "https://opentelemetry.io/schemas/1.38.0";

/// Sampled, in the words of W3C's trace flags: what is exported was kept.
const SAMPLED: u32 = 1;

/// The node, and the agent on it.
pub(super) fn resource(node: &str) -> Resource {
    let text = |key, value: &str| pair(key, Wire::StringValue(escape_text(value).into_owned()));
    let attributes = vec![
        text("service.name", "vahti"),
        text("service.version", env!("CARGO_PKG_VERSION")),
        text("host.name", node),
        text("os.type", "linux"),
    ];
    Resource { attributes, ..Resource::default() }
}

/// Who says it.
pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "vahti".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

/// Makes `record` what an event says, with the memory that it has.
pub(super) fn write_record(event: &Event, record: &mut LogRecord) {
    record.time_unix_nano = event.time_ns;
    record.observed_time_unix_nano = event.observed_ns;
    record.severity_number = severity(event.severity) as i32;
    replace(&mut record.severity_text, event.severity.as_str());
    write_body(event, &mut record.body);
    Attributes::write(event, &mut record.attributes);
    record.flags = SAMPLED;
    record.trace_id.clear();
    if event.trace_id.is_set() {
        record.trace_id.extend_from_slice(&event.trace_id.0.to_be_bytes());
    }
    record.span_id.clear();
    if let Some(span) = event.span_id {
        record.span_id.extend_from_slice(&span.get().to_be_bytes());
    }
    replace(&mut record.event_name, event.kind.name());
}

fn replace(text: &mut String, new: &str) {
    text.clear();
    text.push_str(new);
}

fn severity(severity: Severity) -> SeverityNumber {
    match severity {
        Severity::Debug => SeverityNumber::Debug,
        Severity::Info => SeverityNumber::Info,
        Severity::Warning => SeverityNumber::Warn,
        Severity::Error => SeverityNumber::Error,
        Severity::Fatal => SeverityNumber::Fatal,
    }
}

/// A sentence for whoever reads; programs read the attributes.
fn write_body(event: &Event, body: &mut Option<AnyValue>) {
    let mut text = match body.take() {
        Some(AnyValue { value: Some(Wire::StringValue(text)) }) => text,
        _ => String::new(),
    };
    text.clear();
    let subtype = escape_text(event.kind.subtype());
    text.extend(subtype.chars().map(|c| if c == '_' { ' ' } else { c }));
    if let Some(error) = &event.error {
        text.push_str(": ");
        text.push_str(&escape_text(&error.message));
    }
    *body = Some(AnyValue { value: Some(Wire::StringValue(text)) });
}

/// Whether an event may belong to a chain of causes: it has a cause, or is of a
/// kind that has effects. Failed connections that nothing is known to have
/// caused are records only: every one would be a trace of its own.
pub(super) fn is_span(event: &Event) -> bool {
    let may_cause = event.kind.priority() == Priority::Critical || event.kind.row().is_none();
    event.trace_id.is_set()
        && event.span_id.is_some()
        && (may_cause || event.parent_span_id.is_some())
}

/// The event as a span, if it may belong to a chain of causes.
pub(super) fn span(event: &Event) -> Option<Span> {
    let span_id = event.span_id.filter(|_| is_span(event))?;
    let kind = event.kind;
    let (start, end) = extent(event);
    let bytes = |id: u64| id.to_be_bytes().to_vec();
    let links = event.links.iter().map(|link| SpanLink {
        trace_id: link.trace_id.0.to_be_bytes().into(),
        span_id: bytes(link.span_id.get()),
        attributes: evidence(link),
        flags: SAMPLED,
        ..SpanLink::default()
    });
    let mut attributes = Vec::with_capacity(32);
    Attributes::write(event, &mut attributes);
    Some(Span {
        trace_id: event.trace_id.0.to_be_bytes().into(),
        span_id: bytes(span_id.get()),
        parent_span_id: event.parent_span_id.map_or_else(Vec::new, |id| bytes(id.get())),
        trace_state: threshold(event).map_or_else(String::new, |th| format!("ot=th:{th}")),
        flags: SAMPLED,
        name: kind.name().to_owned(),
        kind: SpanKind::Internal as i32,
        start_time_unix_nano: start,
        end_time_unix_nano: end,
        attributes,
        links: links.collect(),
        status: Some(status(event)),
        ..Span::default()
    })
}

/// From when to when what an event tells of lasted.
fn extent(event: &Event) -> (u64, u64) {
    match &event.data {
        EventData::Gap(Gap { from_ns, to_ns }) => (*from_ns, *to_ns),
        _ if event.first_ns != 0 && event.last_ns != 0 => (event.first_ns, event.last_ns),
        _ => (event.time_ns.saturating_sub(event.duration_ns.unwrap_or(0)), event.time_ns),
    }
}

fn status(event: &Event) -> Status {
    let code = match event.outcome {
        Outcome::Failure | Outcome::Timeout => StatusCode::Error,
        Outcome::Success => StatusCode::Ok,
        Outcome::Unknown => StatusCode::Unset,
    };
    let failed = code == StatusCode::Error;
    let error = event.error.as_ref().filter(|_| failed);
    let message = error.map_or_else(String::new, |e| escape_text(&e.message).into_owned());
    Status { code: code as i32, message }
}
