//! Batches as requests, none larger than a receiver takes.
//!
//! A request is not built as a tree of messages and then encoded: every message
//! around a record would go through all records once more for its length, and
//! a tree of a thousand records fits no cache. One record is, over and over; a
//! message's fields may come in any order and in pieces, so what is encoded
//! stands behind each other, and what is around it is put in front at the end.

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

/// The longest that a length is when it is encoded.
const LENGTH: usize = 10;

/// Up to which size of a record its memory is kept for the next one.
const KEPT_BYTES: usize = 64 << 10;

/// A request, and how many of the events that were asked for are in it.
pub(super) struct Portion {
    pub(super) request: Bytes,
    pub(super) count: usize,
}

/// Keeps the memory of a record for the next one.
#[derive(Default)]
pub(super) struct Encoder {
    record: LogRecord,
    /// How large the last request was: most often, the next one is as large.
    usual: usize,
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
        let events = which.iter().filter_map(|i| batch.get(*i));
        let events = events.take_while(|event| same_node(event.origin, origin));
        match signal {
            Signal::Logs => self.logs(&Frame::of_logs(&origin.node), events, max_bytes),
            Signal::Traces => traces(&Frame::of_spans(&origin.node), events, max_bytes),
        }
    }

    fn logs<'a>(
        &mut self,
        frame: &Frame,
        events: impl Iterator<Item = &'a Arc<Event>>,
        max_bytes: usize,
    ) -> Portion {
        let mut growing = Growing::new(frame, max_bytes, self.usual);
        for event in events {
            write_record(event, &mut self.record);
            let added = growing.add(&self.record);
            // Events of unusual size leave no lasting mark.
            if added.is_none_or(|bytes| bytes > KEPT_BYTES) {
                self.record = LogRecord::default();
            }
            if added.is_none() {
                break;
            }
        }
        self.usual = growing.bytes.len();
        growing.end()
    }
}

fn traces<'a>(
    frame: &Frame,
    events: impl Iterator<Item = &'a Arc<Event>>,
    max_bytes: usize,
) -> Portion {
    let mut growing = Growing::new(frame, max_bytes, 0);
    for span in events.filter_map(|event| span(event)) {
        if growing.add(&span).is_none() {
            break;
        }
    }
    growing.end()
}

/// What stands around the records or spans of a request, encoded: the tags of
/// the messages that hold each other, and what else is in those.
struct Frame {
    in_request: Vec<u8>,
    resource: Vec<u8>,
    in_resource: Vec<u8>,
    scope: Vec<u8>,
    in_scope: Vec<u8>,
}

impl Frame {
    fn of_logs(node: &str) -> Self {
        let resource = Some(resource(node));
        Frame {
            in_request: tag(&ExportLogsServiceRequest {
                resource_logs: vec![ResourceLogs::default()],
            }),
            resource: ResourceLogs { resource, scope_logs: Vec::new(), schema_url: schema_url() }
                .encode_to_vec(),
            in_resource: tag(&ResourceLogs {
                scope_logs: vec![ScopeLogs::default()],
                ..ResourceLogs::default()
            }),
            scope: ScopeLogs {
                scope: Some(scope()),
                log_records: Vec::new(),
                schema_url: schema_url(),
            }
            .encode_to_vec(),
            in_scope: tag(&ScopeLogs {
                log_records: vec![LogRecord::default()],
                ..ScopeLogs::default()
            }),
        }
    }

    fn of_spans(node: &str) -> Self {
        let resource = Some(resource(node));
        Frame {
            in_request: tag(&ExportTraceServiceRequest {
                resource_spans: vec![ResourceSpans::default()],
            }),
            resource: ResourceSpans { resource, scope_spans: Vec::new(), schema_url: schema_url() }
                .encode_to_vec(),
            in_resource: tag(&ResourceSpans {
                scope_spans: vec![ScopeSpans::default()],
                ..ResourceSpans::default()
            }),
            scope: ScopeSpans { scope: Some(scope()), spans: Vec::new(), schema_url: schema_url() }
                .encode_to_vec(),
            in_scope: tag(&ScopeSpans { spans: vec![Span::default()], ..ScopeSpans::default() }),
        }
    }

    /// What comes in front of records or spans that take this many bytes.
    fn head(&self, bytes: usize) -> Vec<u8> {
        let scope_len = self.scope.len() + bytes;
        let mut scopes = self.in_resource.clone();
        put_length(&mut scopes, scope_len);
        let mut head = self.in_request.clone();
        put_length(&mut head, self.resource.len() + scopes.len() + scope_len);
        for part in [&self.resource, &scopes, &self.scope] {
            head.extend_from_slice(part);
        }
        head
    }

    /// How long that is at the most.
    fn room(&self) -> usize {
        let parts =
            [&self.in_request, &self.resource, &self.in_resource, &self.scope].map(Vec::len);
        parts.iter().sum::<usize>() + 2 * LENGTH
    }
}

/// The tag of a field, of a message in which it is the only one, and empty: its
/// length, 0, is all that follows.
fn tag(message: &impl Message) -> Vec<u8> {
    let mut encoded = message.encode_to_vec();
    encoded.pop();
    encoded
}

fn put_length(bytes: &mut Vec<u8>, length: usize) {
    // Memory is never full.
    prost::encode_length_delimiter(length, bytes).unwrap_or_default();
}

/// A request to which records or spans are added, behind room for its head.
struct Growing<'a> {
    frame: &'a Frame,
    room: usize,
    bytes: Vec<u8>,
    count: usize,
    max_bytes: usize,
}

impl<'a> Growing<'a> {
    fn new(frame: &'a Frame, max_bytes: usize, usual: usize) -> Self {
        let room = frame.room();
        let mut bytes = Vec::with_capacity(usual.max(room));
        bytes.resize(room, 0);
        Growing { frame, room, bytes, count: 0, max_bytes }
    }

    /// How many bytes it took; `None` if there was no room for it. There is
    /// for the first one, whatever its size.
    fn add(&mut self, one: &impl Message) -> Option<usize> {
        let before = self.bytes.len();
        self.bytes.extend_from_slice(&self.frame.in_scope);
        one.encode_length_delimited(&mut self.bytes).unwrap_or_default();
        if self.count > 0 && self.bytes.len() > self.max_bytes {
            self.bytes.truncate(before);
            return None;
        }
        self.count += 1;
        Some(self.bytes.len() - before)
    }

    fn end(mut self) -> Portion {
        let head = self.frame.head(self.bytes.len() - self.room);
        let start = self.room - head.len();
        self.bytes[start..self.room].copy_from_slice(&head);
        Portion { request: Bytes::from(self.bytes).slice(start..), count: self.count }
    }
}

fn schema_url() -> String {
    CONVENTIONS_URL.to_owned()
}

/// All observers of an agent have one node, most often.
fn same_node(one: &'static Origin, other: &'static Origin) -> bool {
    std::ptr::eq(one, other) || one.node == other.node
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::common::v1::KeyValue;

    /// Of every size whose lengths take one byte more, and of many records.
    #[test]
    fn what_is_put_together_is_what_the_types_encode() {
        let frame = Frame::of_logs("node-1");
        for (key, count) in [(0, 0), (0, 1), (90, 1), (16_200, 1), (2_100_000, 1), (300, 1_000)] {
            let attributes = vec![KeyValue { key: "k".repeat(key), ..KeyValue::default() }];
            let record = LogRecord { attributes, ..LogRecord::default() };
            let mut growing = Growing::new(&frame, usize::MAX, 0);
            for _ in 0..count {
                assert!(growing.add(&record).is_some());
            }
            let Portion { request, count: told } = growing.end();
            let log_records = vec![record; count];
            let scope_logs =
                ScopeLogs { scope: Some(scope()), log_records, schema_url: schema_url() };
            let resource_logs = ResourceLogs {
                resource: Some(resource("node-1")),
                scope_logs: vec![scope_logs],
                schema_url: schema_url(),
            };
            let whole = ExportLogsServiceRequest { resource_logs: vec![resource_logs] };
            assert_eq!(ExportLogsServiceRequest::decode(request).unwrap(), whole);
            assert_eq!(told, count);
        }
    }

    #[test]
    fn a_request_is_no_larger_than_allowed_but_for_one_that_is_larger_alone() {
        let frame = Frame::of_spans("node-1");
        let span = Span { name: "n".repeat(100), ..Span::default() };
        for max_bytes in 0..2_000 {
            let mut growing = Growing::new(&frame, max_bytes, 0);
            let fits = (0..30).take_while(|_| growing.add(&span).is_some()).count();
            let Portion { request, count } = growing.end();
            assert_eq!(count, fits.max(1));
            assert!(request.len() <= max_bytes || count == 1, "{} {max_bytes}", request.len());
            let whole = ExportTraceServiceRequest::decode(request).unwrap();
            assert_eq!(whole.resource_spans[0].scope_spans[0].spans, vec![span.clone(); count]);
        }
    }
}
