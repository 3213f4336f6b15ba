//! Against a gateway whose messages gRPC's own tools compiled.

mod gateway;
mod ledger;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vahti_runtime::emitter::{Delivery, EmitOutcome, EventEmitter};
use vahti_runtime::event::{
    Comm, Container, Custom, ErrorInfo, Event, EventData, EventKind, Outcome, Priority, Process,
    Severity, Value as Attribute, to_json_line,
};
use vahti_runtime::ids::{EventId, SpanId, TraceId};

use super::{PolkuEmitter, PolkuTarget};
use crate::receivers::Gateway;
use crate::testing::proxy::Proxy;
use crate::tls::TlsConfig;

struct Sending {
    runtime: tokio::runtime::Runtime,
    emitter: PolkuEmitter,
}

impl Sending {
    fn to(url: &str, timeout: Duration) -> Self {
        let target = PolkuTarget::new(url, "prod", TlsConfig::default(), timeout).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Sending { runtime, emitter: PolkuEmitter::new("polku", target) }
    }

    fn send(&mut self, batch: &[Arc<Event>]) -> EmitOutcome {
        self.runtime.block_on(self.emitter.emit(batch))
    }
}

const LONG: Duration = Duration::from_secs(30);

/// One of each kind, with all that a gateway is told beside the payload.
fn events() -> Vec<Arc<Event>> {
    let kinds = EventKind::ALL.iter().zip(1_u128..);
    kinds
        .map(|(kind, n)| {
            Arc::new(Event {
                id: EventId(n << 80 | n),
                time_ns: 1_700_000_000_000_000_000 + n as u64,
                trace_id: TraceId(n),
                span_id: Some(SpanId::from_hash(n)),
                parent_span_id: Some(SpanId::from_hash(n + 100)),
                outcome: Outcome::Timeout,
                error: Some(ErrorInfo {
                    code: "ETIMEDOUT".into(),
                    message: "nobody answered".into(),
                    cause: Some("oom_kill".into()),
                }),
                process: Some(Process {
                    pid: Some(42),
                    name: Some(Comm::new(b"shop")),
                    uid: None,
                    parent_pid: None,
                    start_ns: None,
                }),
                container: (n % 2 == 0)
                    .then(|| Arc::new(Container { id: "4f1c".into(), runtime: None })),
                count: 7,
                ..Event::new(kind, Severity::Fatal)
            })
        })
        .collect()
}

fn json_of(event: &Event) -> Value {
    let mut line = Vec::new();
    to_json_line(event, &mut line);
    serde_json::from_slice(&line).unwrap()
}

#[test]
fn every_type_of_event_arrives_as_it_is_once() {
    let Some(gateway) = Gateway::start(&["ack"]) else { return };
    let mut sending = Sending::to(&gateway.url(), LONG);
    let events = events();
    assert_eq!(sending.send(&events), EmitOutcome::Delivered);
    // Over the same stream.
    assert_eq!(sending.send(&events[..1]), EmitOutcome::Delivered);
    for event in events.iter().chain(&events[..1]) {
        let (got, json) = (gateway.receives(), json_of(event));
        assert_eq!(got["payload"], json);
        assert_eq!(got["id"], json["id"]);
        assert_eq!(got["time"], event.time_ns);
        assert_eq!((&got["source"], &got["cluster"]), (&json!("vahti"), &json!("prod")));
        assert_eq!(got["event_source"], json["source"]);
        assert_eq!(got["event_type"], json["name"]);
        assert_eq!((&got["severity"], &got["outcome"]), (&json!(5), &json!(3)));
        let entity = if event.container.is_some() { "container/4f1c" } else { "process/42/shop" };
        let expected = json!({
            "node": json["node"], "type": json["type"], "subtype": json["subtype"],
            "priority": json["priority"], "count": "7", "trace_id": json["trace_id"],
            "span_id": json["span_id"], "parent_span_id": json["parent_span_id"],
            "error_code": "ETIMEDOUT", "error_message": "nobody answered",
            "error_cause": "oom_kill", "entity": entity,
        });
        assert_eq!(got["metadata"], expected);
    }
}

#[test]
fn a_stream_that_is_cut_just_as_it_is_used_costs_one_that_tries_once_nothing() {
    let Some(gateway) = Gateway::start(&["ack"]) else { return };
    let proxy = Proxy::before(&gateway.url());
    let mut sending = Sending::to(&proxy.url, LONG);
    let events = events();
    for n in 1..=5 {
        assert_eq!(sending.send(&events), EmitOutcome::Delivered);
        assert_eq!(proxy.connections(), n);
        proxy.cuts_what_is_open();
    }
    proxy.cuts_all();
    let outcome = sending.send(&events);
    let EmitOutcome::Retryable { reason, .. } = outcome else { panic!("{outcome:?}") };
    assert!(reason.starts_with(&proxy.url), "{reason}");
    assert_eq!(proxy.connections(), 6);
}

#[test]
fn batches_stay_below_what_the_gateway_takes() {
    static LARGE: EventKind =
        EventKind::custom("example.large", "large", "large", Priority::Normal);
    let Some(gateway) = Gateway::start(&["ack"]) else { return };
    let large = |n: u128, bytes: usize| {
        let attributes = vec![("x".into(), Attribute::Text("y".repeat(bytes).into()))];
        let custom = Custom { schema: "s".into(), attributes };
        let data = EventData::Custom(Box::new(custom));
        Arc::new(Event { id: EventId(n), data, ..Event::new(&LARGE, Severity::Info) })
    };
    let mut batch: Vec<_> = (1..=10).map(|n| large(n, 1 << 20)).collect();
    batch.insert(3, large(99, 5 << 20));
    let outcome = Sending::to(&gateway.url(), LONG).send(&batch);
    let EmitOutcome::Each { deliveries, reason, .. } = outcome else { panic!("{outcome:?}") };
    assert!(reason.contains("more than"), "{reason}");
    for (i, delivery) in deliveries.iter().enumerate() {
        let expected = if i == 3 { Delivery::Rejected } else { Delivery::Delivered };
        assert_eq!(*delivery, expected, "event {i}");
    }
    let ids: Vec<Value> = (0..10).map(|_| gateway.receives()["id"].clone()).collect();
    assert_eq!(ids[0], EventId(1).to_string());
    assert_eq!(ids[9], EventId(10).to_string());
}

#[test]
fn what_is_not_acknowledged_has_not_arrived() {
    let Some(gateway) = Gateway::start(&["silent"]) else { return };
    let begun = Instant::now();
    let url = gateway.url();
    let outcome = Sending::to(&url, Duration::from_millis(500)).send(&events());
    let EmitOutcome::Retryable { reason, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(reason, format!("{url}: no acknowledgement within 500 ms"));
    assert!(begun.elapsed() >= Duration::from_millis(500));
    let Some(gateway) = Gateway::start(&["ends"]) else { return };
    let mut sending = Sending::to(&gateway.url(), LONG);
    let outcome = sending.send(&events());
    let EmitOutcome::Retryable { reason, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(reason, "the gateway ended the stream");
    assert_eq!(sending.send(&events()), EmitOutcome::Delivered, "over a new stream");
}

#[test]
fn an_event_that_is_refused_is_told_apart_from_the_others() {
    let arguments = ["errors", "oom_kill=INVALID_EVENT", "process_crash=BUFFER_FULL"];
    let Some(gateway) = Gateway::start(&arguments) else { return };
    let events = events();
    let outcome = Sending::to(&gateway.url(), LONG).send(&events);
    let EmitOutcome::Each { deliveries, .. } = outcome else { panic!("{outcome:?}") };
    for (event, delivery) in events.iter().zip(deliveries) {
        let expected = match event.kind.subtype() {
            "oom_kill" => Delivery::Rejected,
            "process_crash" => Delivery::Retryable,
            _ => Delivery::Delivered,
        };
        assert_eq!(delivery, expected, "{}", event.kind.subtype());
    }
}

#[test]
fn a_gateway_that_is_not_there_is_tried_again() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let outcome = Sending::to(&format!("http://{closed}"), LONG).send(&events());
    let EmitOutcome::Retryable { reason, .. } = outcome else { panic!("{outcome:?}") };
    assert!(reason.contains("refused"), "{reason}");
    let bad = PolkuTarget::new("localhost:1", "", TlsConfig::default(), LONG).unwrap_err();
    assert!(bad.to_string().contains("endpoint is localhost:1"), "{bad}");
}
