//! What decoders that are not ours make of it: the Python packages of
//! OpenTelemetry and gRPC, alone and behind rotel, a collector in Rust that
//! decodes and encodes everything again.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use vahti_runtime::config::Config;
use vahti_runtime::emitter::{EmitOutcome, EventEmitter};
use vahti_runtime::event::{Event, EventKind, Priority, Severity};
use vahti_runtime::ids::{EntityId, EventId, SpanId, TraceId};
use vahti_runtime::observer::ObserverRuntime;
use vahti_runtime::processor::{EventProcessor, Output, ProcessError, RawRecord};
use vahti_runtime::shutdown;
use vahti_runtime::testing::record;

use super::mapping::{attributes_match, everything, json_of};
use crate::otlp::OtlpEmitter;
use crate::otlp::config::{Compression, OtlpConfig, Protocol};
use crate::receivers::{Decoder, Rotel, Sent, hex};

/// Events with ids of their own, all in one trace.
fn events() -> Vec<Arc<Event>> {
    let all = everything().into_iter().zip(1_u64..);
    all.map(|(event, n)| {
        Arc::new(Event {
            id: EventId(u128::from(n)),
            trace_id: TraceId(77),
            span_id: Some(SpanId::from_hash(u128::from(n))),
            time_ns: event.time_ns.max(1_000_000),
            observed_ns: event.observed_ns.max(1_000_000),
            ..event
        })
    })
    .collect()
}

/// Sends all of it, and looks at every record and span that comes out.
fn arrives(url: &str, protocol: Protocol, gzip: bool, decoder: &Decoder) {
    let compression = if gzip { Compression::Gzip } else { Compression::None };
    let config = OtlpConfig {
        protocol: Some(protocol),
        compression: Some(compression),
        ..OtlpConfig::to(url)
    };
    let events = events();
    let mut emitter = OtlpEmitter::new("otlp", config.target().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(runtime.block_on(emitter.emit(&events)), EmitOutcome::Delivered);
    let spans = events.iter().filter(|event| crate::otlp::record::is_span(event)).count();
    let mut left = [events.len(), spans];
    while left != [0, 0] {
        for sent in decoder.receives() {
            left[usize::from(sent.is_span)] -= 1;
            if sent.is_span { check_span(&events, sent) } else { check_record(&events, sent) }
        }
    }
}

fn of(events: &[Arc<Event>], attributes: &BTreeMap<String, Value>) -> Arc<Event> {
    let id = EventId::parse(attributes["log.record.uid"].as_str().unwrap()).unwrap();
    Arc::clone(events.iter().find(|event| event.id == id).unwrap())
}

fn check_record(events: &[Arc<Event>], sent: Sent) {
    let Sent { fields: record, attributes, .. } = sent;
    let event = of(events, &attributes);
    let json = json_of(&event);
    assert_eq!(record["eventName"], json["name"]);
    assert_eq!(record["timeUnixNano"], event.time_ns.to_string());
    assert_eq!(record["observedTimeUnixNano"], event.observed_ns.to_string());
    assert_eq!(record["severityText"], json["severity"]);
    assert_eq!(hex(&record["traceId"]), json["trace_id"].as_str().unwrap());
    assert_eq!(hex(&record["spanId"]), json["span_id"].as_str().unwrap());
    attributes_match(&event, attributes);
}

fn check_span(events: &[Arc<Event>], sent: Sent) {
    let Sent { fields: span, attributes, .. } = sent;
    let event = of(events, &attributes);
    let json = json_of(&event);
    assert_eq!(span["name"], json["name"]);
    assert_eq!(hex(&span["traceId"]), json["trace_id"].as_str().unwrap());
    assert_eq!(hex(&span["spanId"]), json["span_id"].as_str().unwrap());
    let parent = json["parent_span_id"].as_str().unwrap_or_default();
    assert_eq!(hex(&span["parentSpanId"]), parent);
    assert_eq!(span["links"].as_array().map_or(0, Vec::len), event.links.len());
    attributes_match(&event, attributes);
}

#[test]
fn every_type_of_event_is_read_by_pythons_decoder_as_its_json_line_has_it() {
    let Some(decoder) = Decoder::start() else { return };
    for gzip in [false, true] {
        arrives(&decoder.url("grpc"), Protocol::Grpc, gzip, &decoder);
        arrives(&decoder.url("http"), Protocol::Http, gzip, &decoder);
    }
}

#[test]
fn every_type_of_event_passes_through_a_collector_unchanged() {
    let Some(decoder) = Decoder::start() else { return };
    let rotel = Rotel::before(&decoder);
    for gzip in [false, true] {
        arrives(&rotel.url("grpc"), Protocol::Grpc, gzip, &decoder);
        arrives(&rotel.url("http"), Protocol::Http, gzip, &decoder);
    }
}

static LINK: EventKind = EventKind::custom("example.chain.link", "chain", "link", Priority::Normal);

/// Each record is caused by the one before it.
struct Chains;

impl EventProcessor for Chains {
    fn name(&self) -> &str {
        "chain"
    }

    fn process(&self, record: RawRecord<'_>) -> Result<Output, ProcessError> {
        let name = |n: u8| EntityId::named(&format!("link-{n}"));
        let n = record.bytes.first().copied().unwrap_or_default();
        let event = Event {
            trace_id: TraceId(0x77),
            entity: Some(name(n)),
            cause: n.checked_sub(1).map(name),
            ..Event::new(&LINK, Severity::Error)
        };
        Ok(event.into())
    }
}

#[test]
fn a_chain_of_three_by_an_observer_of_others_is_one_trace() {
    let Some(decoder) = Decoder::start() else { return };
    let target = OtlpConfig::to(decoder.url("grpc")).target().unwrap();
    let observer = ObserverRuntime::builder(|| Chains)
        .config(Config::for_observer("chain"))
        .emitter(move || OtlpEmitter::new("otlp", target.clone()))
        .build()
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (trigger, shutdown) = shutdown::channel();
        let run = tokio::spawn(Arc::clone(&observer).run(shutdown));
        observer.started().await;
        for n in 0..3_u8 {
            let bytes = [n];
            let record = RawRecord { seq: n.into(), ..record(&bytes) };
            observer.process_event(record).unwrap();
        }
        trigger.begin();
        run.await.unwrap().unwrap();
    });
    let mut spans = Vec::new();
    while spans.len() < 3 {
        spans.extend(decoder.receives().into_iter().filter(|sent| sent.is_span));
    }
    let field = |n: usize, name: &str| hex(&spans[n].fields[name]);
    for n in 0..3 {
        assert_eq!(field(n, "traceId"), format!("{:032x}", 0x77));
        let parent = if n == 0 { String::new() } else { field(n - 1, "spanId") };
        assert_eq!(field(n, "parentSpanId"), parent, "of link {n}");
    }
}
