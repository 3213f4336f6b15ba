//! Connections that were reset: told to whom it happened, and nobody else.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::agent::{Agent, occurrences};
use crate::network::{name, of, pick};
use crate::role::Role;

const COUNT: u64 = 1000;

/// A server that does `how` with every connection, and its port.
fn server(how: &str) -> (Role, u16) {
    let mut server = Role::start("serve", &json!({"name": name(b"server"), "how": how}));
    let port = server.tells()["port"].as_u64().unwrap();
    (server, port as u16)
}

fn client(role: &str, port: u16, count: u64) -> Role {
    Role::start(role, &json!({"name": name(b"client"), "port": port, "count": count}))
}

/// About connections to this port, from either side.
fn on(port: u16) -> impl Fn(&Value) -> bool {
    move |event| {
        let network = &event["network"];
        network["peer"]["port"] == port || network["local"]["port"] == port
    }
}

#[track_caller]
fn assert_resets(events: &[&Value], process: &str) {
    for event in events {
        assert_eq!(event["subtype"], "connection_reset", "{event:#}");
        assert_eq!(event["error"]["code"], "ECONNRESET", "{event:#}");
        assert_eq!(event["process"]["name"], process, "{event:#}");
        let peer = &event["network"]["peer"]["address"];
        assert_eq!(*peer, Ipv4Addr::LOCALHOST.to_string(), "{event:#}");
    }
}

#[test]
fn a_thousand_connections_that_the_server_resets_are_told_of_the_client_alone() {
    let Some(agent) = Agent::start() else { return };
    let (server, port) = server("reset");
    let mut client = client("be reset", port, COUNT);
    client.tells();
    let pids = [client.pid(), server.pid()];
    assert!(client.ends().success());
    agent.tells(COUNT, of(pids[0]));
    drop(server);
    let told = agent.ends();
    let events = pick(&told, |e| on(port)(e) || pids.iter().any(|pid| of(*pid)(e)));
    assert_eq!(occurrences(events.iter().copied()), COUNT);
    assert_resets(&events, "client");
    for event in &events {
        assert!(of(pids[0])(event), "{event:#}");
        assert_eq!(event["network"]["peer"]["port"], port, "{event:#}");
        assert!(event.get("unresolved").is_none(), "{event:#}");
        assert!(event.get("duration_us").is_none(), "how long it stood is no failure's: {event:#}");
    }
}

#[test]
fn a_thousand_connections_that_the_client_resets_are_told_of_the_server_that_read_from_them() {
    let Some(agent) = Agent::start() else { return };
    let (server, port) = server("read");
    let mut client = client("reset", port, COUNT);
    client.tells();
    let pids = [client.pid(), server.pid()];
    assert!(client.ends().success());
    agent.tells(COUNT, of(pids[1]));
    drop(server);
    let told = agent.ends();
    let events = pick(&told, |e| on(port)(e) || pids.iter().any(|pid| of(*pid)(e)));
    assert_eq!(occurrences(events.iter().copied()), COUNT);
    assert_resets(&events, "server");
    for event in &events {
        assert!(of(pids[1])(event), "{event:#}");
        assert_eq!(event["network"]["local"]["port"], port, "{event:#}");
        assert!(event.get("unresolved").is_none(), "{event:#}");
    }
}

#[test]
fn a_reset_of_a_forking_servers_connection_is_told_of_the_child_that_serves_it() {
    let Some(agent) = Agent::start() else { return };
    let (mut server, port) = server("fork");
    let client = client("reset", port, 20);
    let served: BTreeSet<u64> = (0..20).map(|_| server.tells()["pid"].as_u64().unwrap()).collect();
    let client_pid = client.pid();
    assert!(client.ends().success());
    agent.tells(20, on(port));
    let parent = server.pid();
    drop(server);
    let told = agent.ends();
    let events = pick(&told, |e| on(port)(e) || of(parent)(e) || of(client_pid)(e));
    assert_eq!(occurrences(events.iter().copied()), 20);
    assert_resets(&events, "server's child");
    let found: BTreeSet<u64> =
        events.iter().map(|e| e["process"]["pid"].as_u64().unwrap()).collect();
    assert_eq!(found, served);
}

#[test]
fn a_reset_of_a_connection_that_nobody_read_from_is_told_of_its_listener_and_says_so() {
    let Some(agent) = Agent::start() else { return };
    let (server, port) = server("hold");
    let mut client = client("reset", port, 100);
    client.tells();
    let client_pid = client.pid();
    assert!(client.ends().success());
    agent.tells(100, on(port));
    let server_pid = server.pid();
    drop(server);
    let told = agent.ends();
    let events = pick(&told, |e| on(port)(e) || of(server_pid)(e) || of(client_pid)(e));
    assert_eq!(occurrences(events.iter().copied()), 100);
    assert_resets(&events, "server");
    for event in &events {
        assert!(of(server_pid)(event), "{event:#}");
        assert_eq!(event["unresolved"]["reason"], "owner_is_listener", "{event:#}");
    }
}
