use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::Value as Json;

use super::words::Word;
use super::*;
use crate::event::*;
use crate::ids::{EventId, SpanId, TraceId};

pub(super) fn line(event: &Event) -> String {
    let mut out = Vec::new();
    to_json_line(event, &mut out);
    String::from_utf8(out).unwrap()
}

fn parsed(event: &Event) -> Json {
    serde_json::from_str(&line(event)).unwrap()
}

/// Has a value for every key but those of the typed data.
pub(super) fn full(data: EventData) -> Event {
    let process = Process {
        pid: Some(4_242),
        name: Some(Comm::new(b"curl")),
        uid: Some(0),
        parent_pid: Some(1),
        start_ns: Some(1_700_000_000_000_000_000),
    };
    Event {
        id: EventId(0x018b_cfe5_6800_u128 << 80 | 7),
        time_ns: 1_700_000_000_000_000_001,
        observed_ns: 1_700_000_000_000_500_000,
        trace_id: TraceId(0xabc),
        span_id: Some(SpanId::from_hash(1)),
        parent_span_id: Some(SpanId::from_hash(2)),
        links: vec![Link {
            kind: LinkKind::PossibleCause,
            trace_id: TraceId(5),
            span_id: SpanId::from_hash(6),
            rule: "same_peer",
            age_ns: 2_500,
        }],
        duration_ns: Some(1_999),
        outcome: Outcome::Failure,
        error: Some(ErrorInfo {
            code: "ECONNREFUSED".into(),
            message: "Nobody listens on 127.0.0.1:9".into(),
            cause: Some("the container ended".into()),
        }),
        process: Some(process),
        cgroup: Some(Arc::new(Cgroup { id: 77, path: b"/docker/4f".to_vec().into(), version: 2 })),
        container: Some(Arc::new(Container { id: "4f".into(), runtime: Some("docker") })),
        data,
        count: 20_000,
        first_ns: 1_700_000_000_000_000_001,
        last_ns: 1_700_000_000_900_000_000,
        weight: 4.0,
        sampling_threshold: 0xc0_0000_0000_0000,
        unresolved: Some(Unresolved { reason: "owner_unknown" }),
        ..Event::new(&CONNECTION_REFUSED, Severity::Error)
    }
}

pub(super) fn every_kind_of_data() -> Vec<EventData> {
    let somebody = Some(ProcessRef { pid: 9, name: Comm::new(b"killer") });
    let endpoint =
        |port| Endpoint { address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), port: Some(port) };
    vec![
        EventData::Network(Network {
            transport: Transport::Tcp,
            network_type: NetworkType::Ipv4,
            local: endpoint(40_000),
            peer: endpoint(9),
        }),
        EventData::OomKill(OomKill {
            scope: OomScope::Container,
            usage_bytes: Some(64 << 20),
            limit_bytes: Some(64 << 20),
            victim_rss_bytes: Some(60 << 20),
            score_adj: Some(-500),
            trigger: somebody,
        }),
        EventData::Exit(Exit {
            code: Some(2),
            signal: Some(Signal(11)),
            class: ExitClass::Crash,
            sender: somebody,
        }),
        EventData::Gap(Gap {
            from_ns: 1_700_000_000_000_000_000,
            to_ns: 1_700_000_012_000_000_000,
        }),
        EventData::Custom(Box::new(Custom {
            schema: "urn:example:1".into(),
            attributes: vec![("answer".into(), Value::Int(42))],
        })),
    ]
}

/// The path of every key, such as `process.pid`; what is below a custom
/// event's attributes is not ours to say.
fn paths(value: &Json, prefix: &str, out: &mut BTreeSet<String>) {
    match value {
        Json::Object(members) => {
            for (key, member) in members {
                let path = format!("{prefix}{key}");
                if path != "custom.attributes" {
                    paths(member, &format!("{path}."), out);
                }
                out.insert(path);
            }
        }
        Json::Array(items) => items.iter().for_each(|item| paths(item, prefix, out)),
        _ => {}
    }
}

fn described_paths(schema: &Json, prefix: &str, out: &mut BTreeSet<String>) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    for (key, property) in properties {
        assert!(
            property["description"].is_string() || property["const"].is_string(),
            "{prefix}{key} has no description"
        );
        described_paths(property, &format!("{prefix}{key}."), out);
        described_paths(&property["items"], &format!("{prefix}{key}."), out);
        out.insert(format!("{prefix}{key}"));
    }
}

fn validator() -> jsonschema::Validator {
    let schema: Json = serde_json::from_str(JSON_SCHEMA).unwrap();
    jsonschema::draft202012::options().should_validate_formats(true).build(&schema).unwrap()
}

#[test]
fn the_schema_describes_exactly_the_keys_that_are_written() {
    let mut written = BTreeSet::new();
    for data in every_kind_of_data() {
        paths(&parsed(&full(data)), "", &mut written);
    }
    let mut described = BTreeSet::new();
    let schema = serde_json::from_str(JSON_SCHEMA).unwrap();
    described_paths(&schema, "", &mut described);
    assert_eq!(written, described);
}

#[test]
fn a_refused_connection_is_written_as_the_contract_says() {
    let data = every_kind_of_data().swap_remove(0);
    let expected = concat!(
        r#"{"schema":"vahti.event/1","id":"01HF7YAT000000000000000007","#,
        r#""time":"2023-11-14T22:13:20.000000001Z","#,
        r#""observed_time":"2023-11-14T22:13:20.000500000Z","#,
        r#""name":"vahti.network.connection.refused","type":"network","#,
        r#""subtype":"connection_refused","priority":"normal","source":"","node":"","#,
        r#""severity":"error","outcome":"failure","error":{"code":"ECONNREFUSED","#,
        r#""message":"Nobody listens on 127.0.0.1:9","cause":"the container ended"},"#,
        r#""trace_id":"00000000000000000000000000000abc","span_id":"0000000000000001","#,
        r#""parent_span_id":"0000000000000002","links":[{"kind":"possible_cause","#,
        r#""trace_id":"00000000000000000000000000000005","span_id":"0000000000000006","#,
        r#""rule":"same_peer","age_us":2}],"duration_us":1,"#,
        r#""process":{"pid":4242,"name":"curl","uid":0,"parent_pid":1,"#,
        r#""start_time":"2023-11-14T22:13:20.000000000Z"},"#,
        r#""cgroup":{"id":77,"path":"/docker/4f","version":2},"#,
        r#""container":{"id":"4f","runtime":"docker"},"#,
        r#""network":{"transport":"tcp","type":"ipv4","#,
        r#""local":{"address":"127.0.0.1","port":40000},"#,
        r#""peer":{"address":"127.0.0.1","port":9}},"#,
        r#""count":20000,"first_time":"2023-11-14T22:13:20.000000001Z","#,
        r#""last_time":"2023-11-14T22:13:20.900000000Z","weight":4.0,"#,
        r#""sampling":{"threshold":"c"},"unresolved":{"reason":"owner_unknown"}}"#,
        "\n"
    );
    assert_eq!(line(&full(data)), expected);
}

#[test]
fn keys_without_a_value_are_absent() {
    let json = parsed(&Event::new(&OOM_KILL, Severity::Fatal));
    let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = "schema id time observed_time name type subtype priority source node \
                    severity outcome count weight";
    assert_eq!(keys, expected.split_whitespace().collect::<Vec<_>>());
}

#[test]
fn numbers_that_readers_could_not_hold_are_text() {
    let mut event = full(EventData::None);
    let cgroup = |id| Some(Arc::new(Cgroup { id, path: Box::default(), version: 1 }));
    event.cgroup = cgroup((1 << 53) - 1);
    assert_eq!(parsed(&event)["cgroup"]["id"], (1_u64 << 53) - 1);
    event.cgroup = cgroup(u64::MAX);
    assert_eq!(parsed(&event)["cgroup"]["id"], "18446744073709551615");
}

#[test]
fn a_sampling_threshold_is_written_as_opentelemetry_does() {
    for (threshold, text) in [
        (1, "00000000000001"),
        (0x80_0000_0000_0000, "8"),
        (0xfd_70a4_0000_0000, "fd70a4"),
        (0x00_0010_0000_0000, "00001"),
    ] {
        let event =
            Event { sampling_threshold: threshold, ..Event::new(&OOM_KILL, Severity::Fatal) };
        assert_eq!(parsed(&event)["sampling"]["threshold"], text);
    }
}

#[test]
fn no_name_smuggles_a_control_character_in() {
    let mut event = full(EventData::None);
    event.process = Some(Process {
        pid: None,
        name: Some(Comm::new(b"\x1b[2J\"\n\xff\xc2\x9b")),
        uid: None,
        parent_pid: None,
        start_ns: None,
    });
    event.error = Some(ErrorInfo {
        code: "EIO".into(),
        message: "\u{202e}gnp.exe\u{85}".into(),
        cause: None,
    });
    let json = parsed(&event);
    assert_eq!(json["process"]["name"], r#"\x1b[2J"\x0a\xff\xc2\x9b"#);
    assert_eq!(json["error"]["message"], r"\xe2\x80\xaegnp.exe\xc2\x85");
}

#[test]
fn custom_attributes_arrive_exactly_and_a_repeated_key_once() {
    let text = "two\nlines \u{1b}[0m \u{9b} \u{e0041} ünï\u{7f}";
    let event = full(EventData::Custom(Box::new(Custom {
        schema: "urn:example:1".into(),
        attributes: vec![
            ("twice".into(), Value::Int(1)),
            ("text".into(), Value::Text(text.into())),
            ("twice".into(), Value::Int(2)),
            ("nan".into(), Value::Double(f64::NAN)),
            ("low".into(), Value::Double(f64::NEG_INFINITY)),
            ("big".into(), Value::Int(i64::MIN)),
        ],
    })));
    assert!(!line(&event).trim_end().chars().any(is_unsafe));
    let attributes = &parsed(&event)["custom"]["attributes"];
    assert_eq!(attributes["text"], text);
    assert_eq!(attributes["twice"], 2);
    assert_eq!(attributes["nan"], "NaN");
    assert_eq!(attributes["low"], "-Infinity");
    assert_eq!(attributes["big"], "-9223372036854775808");
    assert_eq!(line(&event).matches("twice").count(), 1);
}

fn any_text() -> impl Strategy<Value = Cow<'static, str>> {
    prop_oneof!["\\PC{0,20}", any::<String>()].prop_map(Cow::Owned)
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        any::<u64>().prop_map(Value::Uint),
        any::<f64>().prop_map(Value::Double),
        any_text().prop_map(Value::Text),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| prop::collection::vec(inner, 0..4).prop_map(Value::List))
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    any::<(Option<IpAddr>, Option<u16>)>().prop_map(|(address, port)| Endpoint { address, port })
}

fn any_somebody() -> impl Strategy<Value = Option<ProcessRef>> {
    any::<Option<(u32, Vec<u8>)>>()
        .prop_map(|somebody| somebody.map(|(pid, name)| ProcessRef { pid, name: Comm::new(&name) }))
}

fn any_data() -> impl Strategy<Value = EventData> {
    let network = (any::<(bool, bool)>(), any_endpoint(), any_endpoint()).prop_map(
        |((tcp, ipv4), local, peer)| {
            EventData::Network(Network {
                transport: if tcp { Transport::Tcp } else { Transport::Udp },
                network_type: if ipv4 { NetworkType::Ipv4 } else { NetworkType::Ipv6 },
                local,
                peer,
            })
        },
    );
    let scopes = [OomScope::Container, OomScope::Cgroup, OomScope::System];
    let oom = (
        prop::sample::select(scopes.to_vec()),
        any::<[Option<u64>; 3]>(),
        any::<Option<i16>>(),
        any_somebody(),
    )
        .prop_map(
            |(scope, [usage_bytes, limit_bytes, victim_rss_bytes], score_adj, trigger)| {
                EventData::OomKill(OomKill {
                    scope,
                    usage_bytes,
                    limit_bytes,
                    victim_rss_bytes,
                    score_adj,
                    trigger,
                })
            },
        );
    let classes =
        [ExitClass::Normal, ExitClass::Error, ExitClass::Killed, ExitClass::Oom, ExitClass::Crash];
    let exit =
        (any::<(Option<u8>, Option<u8>)>(), prop::sample::select(classes.to_vec()), any_somebody())
            .prop_map(|((code, signal), class, sender)| {
                EventData::Exit(Exit { code, signal: signal.map(Signal), class, sender })
            });
    let custom = (any_text(), prop::collection::vec((any_text(), any_value()), 0..4)).prop_map(
        |(schema, attributes)| EventData::Custom(Box::new(Custom { schema, attributes })),
    );
    let gap =
        any::<(u64, u64)>().prop_map(|(from_ns, to_ns)| EventData::Gap(Gap { from_ns, to_ns }));
    prop_oneof![Just(EventData::None), network, oom, exit, gap, custom]
}

type Identity = (Option<u32>, Option<Vec<u8>>, Option<u32>, Option<u32>, Option<u64>);

fn any_plain_event() -> impl Strategy<Value = Event> {
    let error = prop::option::of((any_text(), any_text(), prop::option::of(any_text())));
    let place = any::<Option<(u64, Vec<u8>, bool, String)>>();
    let numbers = any::<([u64; 7], [u128; 2], Option<u64>, f64)>();
    (error, any::<Option<Identity>>(), place, any_data(), numbers).prop_map(
        |(error, process, place, data, (n, ids, optional, weight))| Event {
            id: EventId(ids[0]),
            time_ns: n[0],
            observed_ns: n[1],
            trace_id: TraceId(ids[1]),
            span_id: optional.map(|id| SpanId::from_hash(u128::from(id))),
            duration_ns: optional,
            error: error.map(|(code, message, cause)| ErrorInfo { code, message, cause }),
            process: process.map(|(pid, name, uid, parent_pid, start_ns)| Process {
                pid,
                name: name.map(|name| Comm::new(&name)),
                uid,
                parent_pid,
                start_ns,
            }),
            container: place
                .as_ref()
                .map(|(_, _, _, id)| Arc::new(Container { id: id.as_str().into(), runtime: None })),
            cgroup: place.map(|(id, path, first, _)| {
                Arc::new(Cgroup { id, path: path.into(), version: if first { 1 } else { 2 } })
            }),
            data,
            count: n[2],
            first_ns: n[3],
            last_ns: n[4],
            sampling_threshold: n[5],
            weight,
            ..Event::new(EventKind::ALL[n[6] as usize % EventKind::ALL.len()], Severity::Error)
        },
    )
}

/// Leaks what it makes, as kinds and words live for good.
fn any_word() -> impl Strategy<Value = &'static str> {
    any_text().prop_map(|text| &*Box::leak(text.into_owned().into_boxed_str()))
}

fn any_kind() -> impl Strategy<Value = &'static EventKind> {
    let by_others = (any_word(), any_word(), any_word(), any::<(bool, bool)>()).prop_map(
        |(name, event_type, subtype, (critical, folds))| -> &'static EventKind {
            let priority = if critical { Priority::Critical } else { Priority::Normal };
            let kind = EventKind::custom(name, event_type, subtype, priority);
            Box::leak(Box::new(if folds { kind.folding() } else { kind }))
        },
    );
    prop_oneof![prop::sample::select(EventKind::ALL), by_others]
}

fn any_link() -> impl Strategy<Value = Link> {
    (any::<(u128, u128, u64)>(), any_word()).prop_map(|((trace, span, age_ns), rule)| Link {
        kind: LinkKind::PossibleCause,
        trace_id: TraceId(trace),
        span_id: SpanId::from_hash(span),
        rule,
        age_ns,
    })
}

/// An event in which every field may be anything.
pub(super) fn any_event() -> impl Strategy<Value = Event> {
    let origin = (any_text(), any_text()).prop_map(|(source, node)| -> &'static Origin {
        Box::leak(Box::new(Origin { source: source.into(), node: node.into() }))
    });
    let weight = prop_oneof![
        (1_u64..1 << 56).prop_map(|n| (1_u64 << 56) as f64 / n as f64),
        any::<f64>(),
        Just(f64::INFINITY),
        Just(f64::NAN),
    ];
    let words = (prop::option::of(any_word()), prop::option::of(any_word()));
    let rest = (
        prop::sample::select(Severity::ALL),
        prop::sample::select(Outcome::ALL),
        any::<(Option<u128>, u8, u8)>(),
        prop::collection::vec(any_link(), 0..3),
    );
    (any_plain_event(), any_kind(), origin, weight, words, rest).prop_map(
        |(event, kind, origin, weight, (reason, runtime), rest)| {
            let (severity, outcome, (parent, version, few), links) = rest;
            Event {
                kind,
                origin,
                weight,
                severity,
                outcome,
                links,
                parent_span_id: parent.map(SpanId::from_hash),
                unresolved: reason.map(|reason| Unresolved { reason }),
                cgroup: event.cgroup.map(|cgroup| {
                    // Ids of every length, as from some length on they are text.
                    let id = cgroup.id >> (few % 64);
                    let version = if few % 2 == 0 { cgroup.version } else { 1 + version % 2 };
                    Arc::new(Cgroup { id, version, path: cgroup.path.clone() })
                }),
                container: event
                    .container
                    .map(|container| Arc::new(Container { id: container.id.clone(), runtime })),
                sampling_threshold: event.sampling_threshold >> (few % 64) << (few % 57),
                ..event
            }
        },
    )
}

fn assert_no_control_character(value: &Json, path: &str) {
    match value {
        Json::String(text) => assert!(!text.chars().any(is_unsafe), "{path}: {text:?}"),
        Json::Array(items) => items.iter().for_each(|item| assert_no_control_character(item, path)),
        Json::Object(members) => {
            for (key, member) in members.iter().filter(|(key, _)| *key != "attributes") {
                assert_no_control_character(member, key);
            }
        }
        _ => {}
    }
}

#[test]
fn any_event_is_one_harmless_line_that_fits_the_schema() {
    let validator = validator();
    let mut runner = proptest::test_runner::TestRunner::default();
    let result = runner.run(&any_event(), |event| {
        let line = line(&event);
        let body = line.strip_suffix('\n').expect("a line ends");
        prop_assert!(!body.chars().any(is_unsafe), "{body:?}");
        let json: Json = serde_json::from_str(body).expect("it parses");
        assert_no_control_character(&json, "");
        if let Err(error) = validator.validate(&json) {
            return Err(TestCaseError::fail(format!("{} at {}", error, error.instance_path())));
        }
        Ok(())
    });
    result.unwrap();
}
