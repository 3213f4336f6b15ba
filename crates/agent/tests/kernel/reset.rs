//! Connections that were reset, over either family: told to whom it happened,
//! and nobody else.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::{Value, json};

use crate::agent::{Agent, occurrences};
use crate::network::{name, of, pick};
use crate::role::Role;

const COUNT: u64 = 1000;

const FAMILIES: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// A server that does `how` with every connection, and where it listens.
fn server(how: &str, address: IpAddr) -> (Role, SocketAddr) {
    let arguments = json!({"name": name(b"server"), "how": how, "address": address});
    let mut server = Role::start("serve", &arguments);
    let listens = serde_json::from_value(server.tells()["listens"].clone()).unwrap();
    (server, listens)
}

fn client(role: &str, peer: SocketAddr, count: u64) -> Role {
    Role::start(role, &json!({"name": name(b"client"), "peer": peer, "count": count}))
}

/// About connections to this server, from either side.
fn on(server: SocketAddr) -> impl Fn(&Value) -> bool {
    let port = server.port();
    move |event| {
        let network = &event["network"];
        network["peer"]["port"] == port || network["local"]["port"] == port
    }
}

#[track_caller]
fn assert_resets(events: &[&Value], process: &str, address: IpAddr) {
    for event in events {
        assert_eq!(event["subtype"], "connection_reset", "{event:#}");
        assert_eq!(event["error"]["code"], "ECONNRESET", "{event:#}");
        assert_eq!(event["process"]["name"], process, "{event:#}");
        let peer = &event["network"]["peer"]["address"];
        assert_eq!(*peer, address.to_string(), "{event:#}");
        let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
        assert_eq!(event["network"]["type"], family, "{event:#}");
    }
}

/// The server resets, or the client does, a thousand times a family; it is told
/// of the other alone.
fn reset_a_thousand(how: &str, role: &str, is_reset: &str) {
    let Some(agent) = Agent::start() else { return };
    let servers_end = if is_reset == "client" { "peer" } else { "local" };
    let made = FAMILIES.map(|address| {
        let (server, listens) = server(how, address);
        let mut client = client(role, listens, COUNT);
        client.tells();
        let pids = [client.pid(), server.pid()];
        let pid = if is_reset == "client" { pids[0] } else { pids[1] };
        assert!(client.ends().success());
        agent.tells(COUNT, of(pid));
        (listens, pids, pid)
    });
    let told = agent.ends();
    for (listens, pids, pid) in made {
        let events = pick(&told, |e| on(listens)(e) || pids.iter().any(|pid| of(*pid)(e)));
        assert_eq!(occurrences(events.iter().copied()), COUNT);
        assert_resets(&events, is_reset, listens.ip());
        for event in &events {
            assert!(of(pid)(event), "{event:#}");
            assert_eq!(event["network"][servers_end]["port"], listens.port(), "{event:#}");
            assert!(event.get("unresolved").is_none(), "{event:#}");
            assert!(event.get("duration_us").is_none(), "how long it stood: {event:#}");
        }
    }
}

#[test]
fn a_thousand_connections_that_the_server_resets_are_told_of_the_client_alone() {
    reset_a_thousand("reset", "be reset", "client");
}

#[test]
fn a_thousand_connections_that_the_client_resets_are_told_of_the_server_that_read_from_them() {
    reset_a_thousand("read", "reset", "server");
}

#[test]
fn a_reset_of_a_forking_servers_connection_is_told_of_the_child_that_serves_it() {
    let Some(agent) = Agent::start() else { return };
    let made = FAMILIES.map(|address| {
        let (mut server, listens) = server("fork", address);
        let client = client("reset", listens, 20);
        let served: BTreeSet<u64> =
            (0..20).map(|_| server.tells()["pid"].as_u64().unwrap()).collect();
        let pids = [server.pid(), client.pid()];
        assert!(client.ends().success());
        agent.tells(20, on(listens));
        (listens, pids, served)
    });
    let told = agent.ends();
    for (listens, pids, served) in made {
        let events = pick(&told, |e| on(listens)(e) || pids.iter().any(|pid| of(*pid)(e)));
        assert_eq!(occurrences(events.iter().copied()), 20);
        assert_resets(&events, "server's child", listens.ip());
        let found: BTreeSet<u64> =
            events.iter().map(|e| e["process"]["pid"].as_u64().unwrap()).collect();
        assert_eq!(found, served);
    }
}

#[test]
fn a_reset_of_a_connection_that_nobody_read_from_is_told_of_its_listener_and_says_so() {
    let Some(agent) = Agent::start() else { return };
    let made = FAMILIES.map(|address| {
        let (server, listens) = server("hold", address);
        let mut client = client("reset", listens, 100);
        client.tells();
        let pids = [server.pid(), client.pid()];
        assert!(client.ends().success());
        agent.tells(100, on(listens));
        (listens, pids)
    });
    let told = agent.ends();
    for (listens, pids) in made {
        let events = pick(&told, |e| on(listens)(e) || pids.iter().any(|pid| of(*pid)(e)));
        assert_eq!(occurrences(events.iter().copied()), 100);
        assert_resets(&events, "server", listens.ip());
        for event in &events {
            assert!(of(pids[0])(event), "{event:#}");
            assert_eq!(event["unresolved"]["reason"], "owner_is_listener", "{event:#}");
        }
    }
}
