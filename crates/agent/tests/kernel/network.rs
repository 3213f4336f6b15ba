//! Refused connections: how many, whose, and to whom.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use serde_json::{Value, json};

use crate::agent::{Agent, Told, occurrences};
use crate::role::Role;

/// A name as roles take it.
pub(crate) fn name(text: &[u8]) -> Value {
    json!(text)
}

/// What this process did, by its events.
pub(crate) fn of(pid: u32) -> impl Fn(&Value) -> bool {
    move |event| event["process"]["pid"] == pid
}

/// The events that are wanted, of all that were told.
pub(crate) fn pick(told: &Told, wanted: impl Fn(&Value) -> bool) -> Vec<&Value> {
    told.events.iter().filter(|event| wanted(event)).collect()
}

/// A bound port on which nobody listens, nor can.
pub(crate) struct ClosedPort {
    _holder: OwnedFd,
    /// Where it is.
    pub(crate) address: SocketAddr,
}

impl ClosedPort {
    pub(crate) fn on(address: IpAddr) -> Self {
        let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        // SAFETY: takes no pointers; the descriptor is owned by nobody else.
        let holder = unsafe {
            let fd = libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd)
        };
        let mut storage = any_port(address);
        let mut size = size_of_val(&storage) as libc::socklen_t;
        // SAFETY: `storage` holds an address of the socket's family, and has
        // room for any.
        unsafe {
            let address = (&raw mut storage).cast();
            let result = libc::bind(holder.as_raw_fd(), address, size);
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
            assert_eq!(libc::getsockname(holder.as_raw_fd(), address, &raw mut size), 0);
        }
        // The port stands at the same place in the addresses of both families.
        let port = u16::from_be(storage.sin6_port);
        ClosedPort { _holder: holder, address: SocketAddr::new(address, port) }
    }
}

/// The address, port 0, as an IPv6 or, in its first bytes, an IPv4 address.
fn any_port(address: IpAddr) -> libc::sockaddr_in6 {
    // SAFETY: plain data.
    let mut storage: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    match address {
        IpAddr::V4(v4) => {
            storage.sin6_family = libc::AF_INET as libc::sa_family_t;
            storage.sin6_flowinfo = u32::from_ne_bytes(v4.octets());
        }
        IpAddr::V6(v6) => {
            storage.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            storage.sin6_addr.s6_addr = v6.octets();
        }
    }
    storage
}

/// All of them are this, of this process and with this peer.
#[track_caller]
pub(crate) fn assert_all(events: &[&Value], subtype: &str, process: &str, peer: SocketAddr) {
    for event in events {
        assert_eq!(event["subtype"], subtype, "{event:#}");
        assert_eq!(event["process"]["name"], process, "{event:#}");
        assert_eq!(event["network"]["peer"]["address"], peer.ip().to_string(), "{event:#}");
        assert_eq!(event["network"]["peer"]["port"], peer.port(), "{event:#}");
        assert_eq!(event["network"]["transport"], "tcp", "{event:#}");
        let family = if peer.is_ipv4() { "ipv4" } else { "ipv6" };
        assert_eq!(event["network"]["type"], family, "{event:#}");
        assert!(event["cgroup"]["path"].is_string(), "{event:#}");
        assert!(event.get("unresolved").is_none(), "{event:#}");
        if event["count"] == 1 {
            assert!(event["duration_us"].is_u64(), "{event:#}");
            assert_eq!(event["network"]["local"]["address"], peer.ip().to_string(), "{event:#}");
            assert!(event["network"]["local"]["port"].is_u64(), "{event:#}");
        }
    }
}

/// Has connections to `connected` refused, and finds them told as to `shown`.
fn refuse_a_thousand(connected: IpAddr, shown: IpAddr) {
    let Some(agent) = Agent::start() else { return };
    let port = ClosedPort::on(shown);
    let peer = SocketAddr::new(connected, port.address.port());
    for how in ["block", "poll"] {
        let client = Role::start(
            "connect",
            &json!({"name": name(b"refused"), "peers": [peer], "count": 500, "at_once": 50, "how": how}),
        );
        let pid = client.pid();
        let outcomes = client.outcomes();
        assert_eq!(outcomes, [("ECONNREFUSED".to_owned(), 500)].into());
        agent.tells(500, of(pid));
    }
    let told = agent.ends();
    let to_peer = |event: &Value| event["network"]["peer"]["port"] == port.address.port();
    let events = pick(&told, to_peer);
    assert_eq!(occurrences(events.iter().copied()), 1000);
    assert_all(&events, "connection_refused", "refused", port.address);
    let pids: BTreeSet<u64> =
        events.iter().map(|e| e["process"]["pid"].as_u64().unwrap()).collect();
    assert_eq!(pids.len(), 2);
    let of_both = |e: &Value| e["process"]["pid"].as_u64().is_some_and(|pid| pids.contains(&pid));
    assert_eq!(pick(&told, of_both).len(), events.len(), "and nothing else of them");
    for event in events {
        assert_eq!(event["error"]["code"], "ECONNREFUSED", "{event:#}");
        assert_eq!(event["severity"], "error", "{event:#}");
        assert_eq!(event["priority"], "normal", "{event:#}");
    }
}

#[test]
fn a_thousand_refused_connections_over_ipv4_are_told_as_exactly_a_thousand() {
    let address = Ipv4Addr::LOCALHOST.into();
    refuse_a_thousand(address, address);
}

#[test]
fn a_thousand_refused_connections_over_ipv6_are_told_as_exactly_a_thousand() {
    let address = Ipv6Addr::LOCALHOST.into();
    refuse_a_thousand(address, address);
}

#[test]
fn a_thousand_refused_connections_to_a_mapped_address_are_told_as_ipv4() {
    let shown = Ipv4Addr::LOCALHOST;
    let connected = shown.to_ipv6_mapped().into();
    refuse_a_thousand(connected, shown.into());
}

#[test]
fn processes_that_live_for_one_refused_connection_are_told_each_by_its_own_pid_and_name() {
    let Some(agent) = Agent::start() else {
        return;
    };
    let port = ClosedPort::on(Ipv4Addr::LOCALHOST.into());
    let mut lived = BTreeSet::new();
    for number in 0..60 {
        let called = format!("shortlived-{number}");
        let client = Role::start(
            "connect",
            &json!({"name": name(called.as_bytes()), "peers": [port.address],
                    "count": 1, "at_once": 1, "how": "block"}),
        );
        lived.insert((client.pid(), called));
        client.outcomes();
    }
    let to_peer = |event: &Value| event["network"]["peer"]["port"] == port.address.port();
    agent.tells(60, to_peer);
    let told = agent.ends();
    let events = pick(&told, |event| {
        to_peer(event) || lived.iter().any(|(pid, _)| event["process"]["pid"] == *pid)
    });
    assert_eq!(events.len(), 60);
    let found: BTreeSet<(u32, String)> = events
        .iter()
        .map(|event| {
            assert_eq!(event["subtype"], "connection_refused", "{event:#}");
            assert_eq!(event["process"]["parent_pid"], std::process::id(), "{event:#}");
            let pid = event["process"]["pid"].as_u64().unwrap() as u32;
            (pid, event["process"]["name"].as_str().unwrap().to_owned())
        })
        .collect();
    assert_eq!(found, lived);
}
