//! Peers that do not answer: SYNs dropped between two network namespaces.

use serde_json::{Value, json};

use crate::agent::{Agent, occurrences};
use crate::namespace::{Cabled, FIREWALL};
use crate::network::{name, of, pick};
use crate::role::Role;

/// Of each family.
const COUNT: u64 = 1000;

const PEERS: [&str; 2] = ["192.0.2.2:4711", "[2001:db8::2]:4711"];

/// A cable behind which nobody answers.
fn silence(syn_retries: u32) -> Option<Cabled> {
    let cabled = Cabled::with_firewalls()?;
    cabled.far.sh(&format!("{FIREWALL} nft add rule inet test in tcp dport 4711 drop"));
    cabled.near.sh(&format!("echo {syn_retries} > /proc/sys/net/ipv4/tcp_syn_retries"));
    Some(cabled)
}

fn connect(cabled: &Cabled, peer: &str, count: u64, how: &str) -> Role {
    let arguments = json!({"name": name(b"patient"), "peers": [peer], "count": count,
                           "at_once": count, "how": how});
    Role::start_in(&cabled.near, "connect", &arguments)
}

#[test]
fn a_thousand_connections_of_each_family_that_nobody_answers_are_a_thousand_timeouts() {
    let Some(agent) = Agent::start() else { return };
    let Some(cabled) = silence(1) else { return };
    let clients = PEERS.map(|peer| (peer, connect(&cabled, peer, COUNT, "poll")));
    let clients = clients.map(|(peer, client)| {
        let pid = client.pid();
        assert_eq!(client.outcomes(), [("ETIMEDOUT".to_owned(), COUNT)].into());
        agent.tells(COUNT, of(pid));
        (peer, pid)
    });
    let told = agent.ends();
    for (peer, pid) in clients {
        let events = pick(&told, of(pid));
        assert_eq!(occurrences(events.iter().copied()), COUNT);
        for event in &events {
            assert_timeout(event, peer);
        }
    }
}

#[track_caller]
fn assert_timeout(event: &Value, peer: &str) {
    let peer: std::net::SocketAddr = peer.parse().unwrap();
    let network = &event["network"];
    assert_eq!(event["subtype"], "connection_timeout", "{event:#}");
    assert_eq!(event["outcome"], "timeout", "{event:#}");
    assert_eq!(event["error"]["code"], "ETIMEDOUT", "{event:#}");
    assert_eq!(event["process"]["name"], "patient", "{event:#}");
    assert_eq!(network["peer"]["address"], peer.ip().to_string(), "{event:#}");
    assert_eq!(network["peer"]["port"], peer.port(), "{event:#}");
    let late = event["unresolved"]["reason"].as_str().is_some_and(|r| r.starts_with("told_late"));
    if event["count"] == 1 && !late {
        // The kernel waits a second before it sends a SYN again.
        assert!(event["duration_us"].as_u64().unwrap() > 1_000_000, "{event:#}");
    }
}

#[test]
fn a_client_that_gives_up_at_once_is_no_event() {
    let Some(agent) = Agent::start() else { return };
    let Some(cabled) = silence(6) else { return };
    let impatient = PEERS.map(|peer| {
        let client = connect(&cabled, peer, COUNT, "give up");
        let pid = client.pid();
        assert_eq!(client.outcomes(), [("gave up".to_owned(), COUNT)].into());
        pid
    });
    // One more, which is told: those before it would have been by then.
    let last = connect(&cabled, PEERS[0], 1, "give up later");
    let pid = last.pid();
    last.outcomes();
    agent.tells(1, of(pid));
    let told = agent.ends();
    let events = pick(&told, |event| impatient.iter().any(|pid| of(*pid)(event)));
    assert_eq!(events, Vec::<&Value>::new());
}

#[test]
fn a_client_that_gives_up_after_a_syn_was_sent_again_has_abandoned_its_connection() {
    let Some(agent) = Agent::start() else { return };
    let Some(cabled) = silence(6) else { return };
    let clients = PEERS.map(|peer| (peer, connect(&cabled, peer, 100, "give up later")));
    let clients = clients.map(|(peer, client)| {
        let pid = client.pid();
        assert_eq!(client.outcomes(), [("gave up".to_owned(), 100)].into());
        agent.tells(100, of(pid));
        (peer, pid)
    });
    let told = agent.ends();
    for (peer, pid) in clients {
        let events = pick(&told, of(pid));
        assert_eq!(occurrences(events.iter().copied()), 100);
        for event in events {
            assert_eq!(event["subtype"], "connection_abandoned", "{event:#}");
            assert_eq!(event["severity"], "warning", "{event:#}");
            let network = &event["network"]["peer"];
            let shown: std::net::SocketAddr = peer.parse().unwrap();
            assert_eq!(network["address"], shown.ip().to_string(), "{event:#}");
            assert_eq!(network["port"], 4711, "{event:#}");
        }
    }
}
