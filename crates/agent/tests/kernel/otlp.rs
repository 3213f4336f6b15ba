//! What the agent sends over OTLP, as decoders that are not ours read it.

#[path = "../../../exporters/tests/receivers/decoder.rs"]
#[allow(dead_code, reason = "the gateway is for other tests")]
mod decoder;

use std::time::Duration;

use serde_json::{Value, json};

use self::decoder::{Decoder, Rotel, Sent, free_port, hex};
use crate::agent::{Agent, Start, members, within};
use crate::container::Container;
use crate::durable::crash;
use crate::network::of;
use crate::oom::{LIMIT, starve};

/// Those of a process and of a kind, of which there must be one each.
fn pick<'a>(all: &'a [Sent], is_span: bool, pid: u32, subtype: &str) -> &'a Sent {
    let fits = |sent: &&Sent| {
        sent.is_span == is_span
            && sent.attributes["vahti.subtype"] == subtype
            && sent.attributes.get("process.pid") == Some(&json!(pid))
    };
    let found: Vec<&Sent> = all.iter().filter(fits).collect();
    assert_eq!(found.len(), 1, "{subtype} of {pid}, is_span: {is_span}");
    found[0]
}

#[test]
fn a_kill_for_memory_and_the_exit_it_caused_are_one_trace_over_both_protocols() {
    let Some(decoder) = Decoder::start() else { return };
    let rotel = Rotel::before(&decoder);
    for protocol in ["grpc", "http"] {
        let url = rotel.url(protocol);
        let config = format!(
            "emitters:\n- type: stdout\n- {{type: otlp, protocol: {protocol}, endpoint: \"{url}\"}}\n"
        );
        let start = Start { config: &config, ..Start::default() };
        let Some(agent) = Agent::start_with(&start) else { return };
        let Some(container) = Container::docker() else { return };
        container.limit_memory(LIMIT);
        let pid = starve(&container, 0);
        agent.tells(2, of(pid));
        let printed = agent.events(of(pid));
        let mut sent: Vec<Sent> = Vec::new();
        let is_its = |sent: &Sent| sent.attributes.get("process.pid") == Some(&json!(pid));
        while sent.iter().filter(|sent| is_its(sent)).count() < 4 {
            sent.extend(decoder.receives());
        }
        for is_span in [false, true] {
            let kill = pick(&sent, is_span, pid, "oom_kill");
            let exit = pick(&sent, is_span, pid, "container_exit");
            for (sent, printed) in [kill, exit].into_iter().zip(&printed) {
                assert_eq!(sent.attributes["log.record.uid"], printed["id"]);
                assert_eq!(hex(&sent.fields["traceId"]), printed["trace_id"].as_str().unwrap());
                assert_eq!(hex(&sent.fields["spanId"]), printed["span_id"].as_str().unwrap());
                assert_eq!(sent.attributes["container.id"], container.id);
            }
            assert_eq!(kill.fields["traceId"], exit.fields["traceId"]);
            if is_span {
                assert_eq!(exit.fields["parentSpanId"], kill.fields["spanId"]);
                assert_eq!(kill.fields.get("parentSpanId"), None::<&Value>);
            }
        }
        drop(agent.ends());
    }
}

#[test]
fn a_receiver_that_comes_late_gets_everything_and_others_are_not_held_up() {
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let config = format!(
        "emitters:\n- type: stdout\n- {{type: otlp, durable: true, endpoint: \"{url}\"}}\n- {{type: otlp, name: lossy, endpoint: \"{url}\"}}\n"
    );
    let start = Start { config: &config, ..Start::default() };
    let Some(agent) = Agent::start_with(&start) else { return };
    let pids: Vec<u64> = (0..5).map(|_| crash()).collect();
    let is_its =
        |event: &Value| event["process"]["pid"].as_u64().is_some_and(|pid| pids.contains(&pid));
    agent.tells(5, is_its);
    let refused = || {
        let ledger = agent.ledger();
        let state = |name: &str| {
            members(&ledger["emitters"]).find(|e| e["name"] == name).map(|e| e["why"].clone())
        };
        state("otlp").is_some_and(|why| why.to_string().contains("refused"))
    };
    assert!(within(Duration::from_secs(30), refused), "{:#}", agent.ledger());
    let Some(decoder) = Decoder::start_at(port) else { return };
    let mut left = pids.clone();
    while !left.is_empty() {
        for sent in decoder.receives().iter().filter(|sent| !sent.is_span) {
            let pid = sent.attributes["process.pid"].as_u64().unwrap_or_default();
            left.retain(|other| *other != pid);
        }
    }
    drop(agent.ends());
}
