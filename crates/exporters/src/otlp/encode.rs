//! Batches as requests, none larger than a receiver takes.

use std::sync::Arc;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use prost::bytes::Bytes;
use vahti_runtime::event::{Event, Origin};

use super::record::{CONVENTIONS_URL, resource, scope, span, write_record};
use super::transport::Signal;

/// What a resource, a scope and the lengths in front of them take, at most, but
/// for the node's name.
const ENVELOPE: usize = 1 << 10;
/// What stands in front of a record: a tag and its length.
const PREFIX: usize = 6;

/// Up to which size of a request its memory is kept for the next one.
const KEPT_BYTES: usize = 2 << 20;

/// A request, and how many of the events that were asked for are in it.
pub(super) struct Portion {
    pub(super) request: Bytes,
    pub(super) count: usize,
}

/// Keeps the memory of a request for the next one.
#[derive(Default)]
pub(super) struct Encoder {
    records: Vec<LogRecord>,
}

impl Encoder {
    /// Encodes as many of these events of a batch as fit, one at least: from
    /// one node, whose resource they share.
    pub(super) fn encode(
        &mut self,
        signal: Signal,
        batch: &[Arc<Event>],
        which: &[usize],
        max_bytes: usize,
    ) -> Portion {
        let Some(origin) = which.first().and_then(|i| batch.get(*i)).map(|event| event.origin)
        else {
            return Portion { request: Bytes::new(), count: 0 };
        };
        let node = &*origin.node;
        let events = which.iter().filter_map(|i| batch.get(*i));
        let events = events.take_while(|event| same_node(event.origin, origin));
        match signal {
            Signal::Logs => self.logs(node, events, max_bytes),
            Signal::Traces => traces(node, events, max_bytes),
        }
    }

    fn logs<'a>(
        &mut self,
        node: &str,
        events: impl Iterator<Item = &'a Arc<Event>>,
        max_bytes: usize,
    ) -> Portion {
        let mut log_records = std::mem::take(&mut self.records);
        let mut count = 0;
        for event in events {
            if count == log_records.len() {
                log_records.push(LogRecord::default());
            }
            write_record(event, &mut log_records[count]);
            count += 1;
        }
        let mut spare = log_records.split_off(count);
        let mut encoded = logs_request(node, &mut log_records);
        if encoded.len() > max_bytes && count > 1 {
            let room = max_bytes.saturating_sub(ENVELOPE + node.len());
            count = fitting(&log_records, room);
            spare.extend(log_records.drain(count..));
            encoded = logs_request(node, &mut log_records);
        }
        // Events of unusual size leave no lasting mark.
        if encoded.len() <= KEPT_BYTES {
            self.records = log_records;
            self.records.append(&mut spare);
        }
        Portion { request: encoded, count }
    }
}

/// Encodes records, and leaves them as they are.
fn logs_request(node: &str, records: &mut Vec<LogRecord>) -> Bytes {
    let log_records = std::mem::take(records);
    let scope_logs = ScopeLogs { scope: Some(scope()), log_records, schema_url: schema_url() };
    let resource_logs = ResourceLogs {
        resource: Some(resource(node)),
        scope_logs: vec![scope_logs],
        schema_url: schema_url(),
    };
    let request = ExportLogsServiceRequest { resource_logs: vec![resource_logs] };
    // Not `encode()`, which would go through all of it once more.
    let encoded = request.encode_to_vec();
    let scopes = request.resource_logs.into_iter().flat_map(|logs| logs.scope_logs);
    *records = scopes.flat_map(|scope| scope.log_records).collect();
    encoded.into()
}

fn traces<'a>(node: &str, events: impl Iterator<Item = &'a Arc<Event>>, room: usize) -> Portion {
    let mut spans: Vec<Span> = events.filter_map(|event| span(event)).collect();
    let count = fitting(&spans, room);
    spans.truncate(count);
    let scope_spans = ScopeSpans { scope: Some(scope()), spans, schema_url: schema_url() };
    let resource_spans = ResourceSpans {
        resource: Some(resource(node)),
        scope_spans: vec![scope_spans],
        schema_url: schema_url(),
    };
    let request = ExportTraceServiceRequest { resource_spans: vec![resource_spans] };
    Portion { request: request.encode_to_vec().into(), count }
}

fn schema_url() -> String {
    CONVENTIONS_URL.to_owned()
}

/// All observers of an agent have one node, most often.
fn same_node(one: &'static Origin, other: &'static Origin) -> bool {
    std::ptr::eq(one, other) || one.node == other.node
}

/// How many there is room for, one at least.
fn fitting(all: &[impl Message], room: usize) -> usize {
    let mut bytes = 0;
    let fits = all.iter().take_while(|one| {
        bytes += one.encoded_len() + PREFIX;
        bytes <= room
    });
    fits.count().max(1).min(all.len())
}
