//! The record of an event, its JSON line and docs/otlp.md say the same.

use std::collections::{BTreeMap, BTreeSet};

use opentelemetry_proto::tonic::common::v1::any_value::Value as Wire;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use serde_json::{Value, json};
use vahti_runtime::event::{
    AGENT_GAP, Cgroup, Comm, Container, Custom, Endpoint, ErrorInfo, Event, EventData, EventKind,
    Exit, ExitClass, Gap, Link, LinkKind, Network, NetworkType, OOM_KILL, OomKill, OomScope,
    Outcome, Priority, Process, ProcessRef, Severity, Signal, Transport, Unresolved, to_json_line,
};
use vahti_runtime::ids::{EventId, SpanId, TraceId};

use crate::otlp::attributes::CONVENTIONAL;
use crate::otlp::record::{span, write_record};

static KINDS: [EventKind; 2] = [
    EventKind::custom("example.cause", "example", "cause", Priority::Normal),
    EventKind::custom("example.effect", "example", "effect", Priority::Critical),
];

/// Events of every type, with every field that there is in one of them.
pub(super) fn everything() -> Vec<Event> {
    let data: Vec<(&'static EventKind, EventData)> = EventKind::ALL
        .iter()
        .map(|kind| (*kind, data_of(kind)))
        .chain([(&KINDS[0], custom()), (&KINDS[1], EventData::None)])
        .collect();
    let full = data.iter().map(|(kind, data)| full(kind, data.clone()));
    let bare = data.iter().map(|(kind, data)| Event {
        id: EventId(7),
        time_ns: 5,
        data: data.clone(),
        ..Event::new(kind, Severity::Info)
    });
    full.chain(bare).collect()
}

fn full(kind: &'static EventKind, data: EventData) -> Event {
    Event {
        id: EventId(0x0191_0000_0000_0000_0000_0000_0000_0042),
        time_ns: 1_700_000_000_123_456_789,
        observed_ns: 1_700_000_000_223_456_789,
        trace_id: TraceId(0xabcd_ef00_0000_0000_0000_0000_0000_0001),
        span_id: Some(SpanId::from_hash(0x1234)),
        parent_span_id: Some(SpanId::from_hash(0x5678)),
        links: vec![Link {
            kind: LinkKind::PossibleCause,
            trace_id: TraceId(9),
            span_id: SpanId::from_hash(10),
            rule: "same_peer",
            age_ns: 7_000_000,
        }],
        duration_ns: Some(91_999),
        outcome: Outcome::Timeout,
        error: Some(ErrorInfo {
            code: "ETIMEDOUT".into(),
            message: "nobody \u{1b}[31manswered".into(),
            cause: Some("oom_kill".into()),
        }),
        process: Some(Process {
            pid: Some(42),
            name: Some(Comm::new(b"sh\xffop\x1b\\")),
            uid: Some(u32::MAX),
            parent_pid: Some(7),
            start_ns: Some(1_700_000_000_000_000_001),
        }),
        cgroup: Some(Cgroup { id: u64::MAX, path: b"/a\nb".as_slice().into(), version: 2 }.into()),
        container: Some(Container { id: "4f1c2ab39d01".into(), runtime: Some("docker") }.into()),
        data,
        count: 20_000,
        first_ns: 1_700_000_000_000_000_002,
        last_ns: 1_700_000_000_000_000_003,
        weight: 2.5,
        sampling_threshold: 0x0099_9990_0000_0000,
        unresolved: Some(Unresolved { reason: "owner_unknown" }),
        ..Event::new(kind, Severity::Error)
    }
}

fn data_of(kind: &'static EventKind) -> EventData {
    let somebody = ProcessRef { pid: 99, name: Comm::new(b"stress") };
    if kind.event_type() == "network" {
        return EventData::Network(Network {
            transport: Transport::Tcp,
            network_type: NetworkType::Ipv6,
            local: Endpoint { address: "::1".parse().ok(), port: Some(65_535) },
            peer: Endpoint { address: "2001:db8::1".parse().ok(), port: Some(443) },
        });
    }
    if kind == &OOM_KILL {
        return EventData::OomKill(OomKill {
            scope: OomScope::Container,
            usage_bytes: Some(1 << 40),
            limit_bytes: Some(u64::MAX),
            victim_rss_bytes: Some(3),
            score_adj: Some(-1_000),
            trigger: Some(somebody),
        });
    }
    if kind == &AGENT_GAP {
        return EventData::Gap(Gap { from_ns: 5_000_000_000, to_ns: 9_000_000_000 });
    }
    EventData::Exit(Exit {
        code: Some(137),
        signal: Some(Signal(11)),
        class: ExitClass::Crash,
        sender: Some(somebody),
    })
}

fn custom() -> EventData {
    use vahti_runtime::event::Value;
    let list = Value::List(vec![Value::Int(-1), Value::Text("two".into()), Value::List(vec![])]);
    EventData::Custom(Box::new(Custom {
        schema: "https://example.org/1".into(),
        attributes: vec![
            ("example.bool".into(), Value::Bool(true)),
            ("example.twice".into(), Value::Int(1)),
            ("example.twice".into(), Value::Int(i64::MIN)),
            ("example.large".into(), Value::Uint(u64::MAX)),
            ("example.double".into(), Value::Double(0.25)),
            ("example.list".into(), list),
            ("process.pid".into(), Value::Text("taken".into())),
            ("vahti.count".into(), Value::Int(5)),
            ("sampling.threshold".into(), Value::Int(6)),
            ("".into(), Value::Int(7)),
        ],
    }))
}

pub(super) fn record_of(event: &Event) -> LogRecord {
    let mut record = LogRecord::default();
    write_record(event, &mut record);
    record
}

pub(super) fn json_of(event: &Event) -> Value {
    let mut line = Vec::new();
    to_json_line(event, &mut line);
    serde_json::from_slice(&line).unwrap()
}

/// The page's tables: from JSON key to what it is called here.
fn tables() -> [BTreeMap<String, String>; 2] {
    let page = include_str!("../../../../../docs/otlp.md");
    ["| JSON key | field of the record |", "| JSON key | attribute |"].map(|head| {
        let rows = page.lines().skip_while(|line| *line != head).skip(2);
        let rows = rows.take_while(|line| line.starts_with("| `"));
        let cells = rows.map(|row| {
            let mut cells = row.split('|').map(|cell| cell.trim().replace('`', ""));
            (cells.nth(1).unwrap(), cells.next().unwrap())
        });
        cells.collect()
    })
}

/// Every value of a document by its path, lists as one.
fn leaves(value: &Value, path: &str, out: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(members) if !path.starts_with("custom.attributes.") => {
            for (key, value) in members {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                leaves(value, &path, out);
            }
        }
        leaf => drop(out.insert(path.to_owned(), leaf.clone())),
    }
}

fn plain(value: &AnyValue) -> Value {
    match value.value.as_ref().unwrap() {
        Wire::StringValue(text) => json!(text),
        Wire::BoolValue(is) => json!(is),
        Wire::IntValue(number) => json!(number),
        Wire::DoubleValue(number) => json!(number),
        Wire::ArrayValue(list) => list.values.iter().map(plain).collect(),
        Wire::KvlistValue(list) => Value::Object(object(&list.values).into_iter().collect()),
        other => panic!("{other:?}"),
    }
}

fn object(attributes: &[KeyValue]) -> BTreeMap<String, Value> {
    let map: BTreeMap<String, Value> =
        attributes.iter().map(|a| (a.key.clone(), plain(a.value.as_ref().unwrap()))).collect();
    assert_eq!(map.len(), attributes.len(), "a key twice: {attributes:#?}");
    map
}

/// Integers that JSON shows as text are the same numbers.
fn same(json: &Value, wire: &Value) -> bool {
    json == wire
        || json.as_str().is_some_and(|text| wire.as_i64().is_some_and(|n| n.to_string() == text))
        || json.as_f64().is_some_and(|n| wire.as_f64() == Some(n))
        || json.as_u64().is_some_and(|n| wire.as_str() == Some(&n.to_string()))
}

/// Holds attributes to the JSON line and to the page; the keys that were met.
pub(super) fn attributes_match(
    event: &Event,
    mut there: BTreeMap<String, Value>,
) -> BTreeSet<String> {
    let [fields, attributes] = tables();
    let mut json = BTreeMap::new();
    leaves(&json_of(event), "", &mut json);
    json.retain(|key, _| key != "schema" && !fields.contains_key(key));
    for (key, value) in &json {
        let name = match key.strip_prefix("custom.attributes.") {
            Some("process.pid") => "vahti.custom.process.pid",
            Some("vahti.count") => "vahti.custom.vahti.count",
            Some("sampling.threshold") => "vahti.custom.sampling.threshold",
            Some("") => "vahti.custom.",
            Some(own) => own,
            None => attributes.get(key).unwrap_or_else(|| panic!("{key} is not on the page")),
        };
        let wire = there.remove(name).unwrap_or_else(|| panic!("{name} is missing"));
        assert!(same(value, &wire), "{key}: {value} is {wire}");
    }
    assert!(there.is_empty(), "not in the JSON line: {there:?}");
    json.into_keys().collect()
}

#[test]
fn every_key_of_the_json_line_is_where_the_page_says_and_nothing_else_is() {
    let [fields, attributes] = tables();
    assert!(fields.len() >= 7 && attributes.len() >= 45, "{fields:?} {attributes:?}");
    let met: BTreeSet<String> = everything()
        .iter()
        .flat_map(|event| attributes_match(event, object(&record_of(event).attributes)))
        .collect();
    let conventional = attributes.values().filter(|name| !name.starts_with("vahti."));
    let conventional: BTreeSet<&str> = conventional.map(String::as_str).collect();
    assert_eq!(conventional, CONVENTIONAL.into());
    let never: Vec<_> = attributes.keys().filter(|key| !met.contains(*key)).collect();
    assert!(never.is_empty(), "on the page, in no event: {never:?}");
}

#[test]
fn the_fields_of_a_record_are_those_of_the_event() {
    for event in everything() {
        let (record, json) = (record_of(&event), json_of(&event));
        assert_eq!(record.event_name, json["name"].as_str().unwrap());
        assert_eq!(record.time_unix_nano, event.time_ns);
        assert_eq!(record.observed_time_unix_nano, event.observed_ns);
        assert_eq!(record.severity_text, json["severity"].as_str().unwrap());
        assert_eq!(record.severity_number, if event.severity == Severity::Info { 9 } else { 17 });
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(&record.trace_id), json["trace_id"].as_str().unwrap_or_default());
        assert_eq!(hex(&record.span_id), json["span_id"].as_str().unwrap_or_default());
        let Some(AnyValue { value: Some(Wire::StringValue(body)) }) = &record.body else {
            panic!("{record:?}");
        };
        assert!(!body.is_empty() && !body.chars().any(char::is_control), "{body:?}");
    }
}

#[test]
fn a_record_that_is_written_over_another_is_as_if_it_were_new() {
    let all = everything();
    for before in &all {
        for event in &all {
            let mut record = record_of(before);
            write_record(event, &mut record);
            assert_eq!(record, record_of(event));
        }
    }
}

#[test]
fn what_may_be_part_of_a_chain_is_a_span_and_the_rest_is_none() {
    for event in everything() {
        let whole = event.trace_id.is_set() && event.span_id.is_some();
        assert_eq!(span(&event).is_some(), whole, "{:?}", event.kind);
        let lonely = Event { parent_span_id: None, ..event };
        let may_cause = lonely.kind.event_type() != "network";
        assert_eq!(span(&lonely).is_some(), whole && may_cause, "{:?}", lonely.kind);
    }
}

#[test]
fn a_span_has_its_place_its_extent_and_its_evidence() {
    let gap = span(&full(&AGENT_GAP, data_of(&AGENT_GAP))).unwrap();
    assert_eq!((gap.start_time_unix_nano, gap.end_time_unix_nano), (5_000_000_000, 9_000_000_000));
    let summary = full(&KINDS[0], custom());
    let of = |event: &Event| {
        let span = span(event).unwrap();
        (span.start_time_unix_nano, span.end_time_unix_nano)
    };
    assert_eq!(of(&summary), (summary.first_ns, summary.last_ns));
    let one = Event { first_ns: 0, last_ns: 0, ..summary };
    assert_eq!(of(&one), (one.time_ns - 91_999, one.time_ns));
    let span = span(&one).unwrap();
    assert_eq!(span.parent_span_id, 0x5678_u64.to_be_bytes());
    assert_eq!(span.span_id, 0x1234_u64.to_be_bytes());
    assert_eq!(span.trace_state, "ot=th:99999");
    assert_eq!(span.status.unwrap().code, 2, "a timeout is an error");
    assert_eq!(span.links[0].span_id, 10_u64.to_be_bytes());
    let evidence = object(&span.links[0].attributes);
    assert_eq!(evidence["vahti.link.rule"], "same_peer");
    assert_eq!(evidence["vahti.link.age_us"], 7_000);
    assert_eq!(object(&span.attributes), object(&record_of(&one).attributes));
}
