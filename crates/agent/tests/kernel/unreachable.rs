//! Peers that can't be reached, for every reason that the kernel tells: no
//! neighbour, no route, a route that refuses, a firewall here or there.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::agent::{Agent, occurrences};
use crate::namespace::{Cabled, FIREWALL, Namespace};
use crate::network::{name, of, pick};
use crate::role::Role;

/// What is to be reached, and what the kernel says to that.
struct Case<'a> {
    peers: Vec<String>,
    error: &'static str,
    /// How often, without blocking, and blocking.
    counts: [u64; 2],
    namespace: &'a Namespace,
}

impl<'a> Case<'a> {
    fn new(namespace: &'a Namespace, peer: &str, error: &'static str) -> Self {
        let peers = vec![peer.to_owned()];
        Case { peers, error, counts: [50, 50], namespace }
    }
}

fn made(case: &Case<'_>, how: &str, count: u64, arguments: &Value) -> u32 {
    let client = Role::start_in(case.namespace, "connect", arguments);
    let pid = client.pid();
    let wanted = [(case.error.to_owned(), count)].into();
    assert_eq!(client.outcomes(), wanted, "{how} {:?}", case.peers);
    pid
}

/// Has each case happen, blocking and not, and finds exactly that told.
fn find_told(agent: Agent, cases: Vec<Case<'_>>) {
    let mut expected: BTreeMap<u32, (u64, &Case<'_>)> = BTreeMap::new();
    for case in &cases {
        for (how, count) in ["poll", "block"].into_iter().zip(case.counts) {
            let arguments = json!({"name": name(b"seeker"), "peers": case.peers, "how": how,
                                   "count": count, "at_once": 10});
            expected.insert(made(case, how, count, &arguments), (count, case));
        }
    }
    // All at the end: each summary takes a second to come.
    for (pid, (count, _)) in &expected {
        agent.tells(*count, of(*pid));
    }
    let told = agent.ends();
    for (pid, (count, case)) in expected {
        let events = pick(&told, of(pid));
        assert_eq!(occurrences(events.iter().copied()), count, "{:?}", case.peers);
        for event in events {
            assert_unreachable(event, case);
        }
    }
}

#[track_caller]
fn assert_unreachable(event: &Value, case: &Case<'_>) {
    assert_eq!(event["subtype"], "connection_unreachable", "{event:#}");
    // The kernel may show the end of one to no program (docs/events.md). Then it
    // is told of the socket, which no longer says which ICMP message there was.
    let inferred = event["unresolved"]["reason"] == "told_late_error_inferred";
    let error = if inferred { "EHOSTUNREACH" } else { case.error };
    assert_eq!(event["error"]["code"], error, "{event:#}");
    assert_eq!(event["process"]["name"], "seeker", "{event:#}");
    let peer = &event["network"]["peer"];
    let is_peer = |shown: &String| {
        let shown: std::net::SocketAddr = shown.parse().unwrap();
        peer["address"] == shown.ip().to_string() && peer["port"] == shown.port()
    };
    assert!(case.peers.iter().any(is_peer), "{event:#}");
}

#[test]
fn neighbours_that_do_not_exist_are_unreachable() {
    let Some(agent) = Agent::start() else { return };
    let Some(cabled) = Cabled::new() else { return };
    // Ask once, and not for long.
    cabled.near.sh("for family in ipv4 ipv6; do
             echo 50 > /proc/sys/net/$family/neigh/cable/retrans_time_ms
             echo 1 > /proc/sys/net/$family/neigh/cable/mcast_solicit
         done");
    // Each asked for at its own time: a kernel answers only so many failures
    // a second.
    let nobody = |prefix: &str| (100..110).map(|n| format!("{prefix}{n}")).collect::<Vec<_>>();
    let v4 = nobody("192.0.2.").into_iter().map(|a| format!("{a}:4711")).collect();
    let v6 = nobody("2001:db8::").into_iter().map(|a| format!("[{a}]:4711")).collect();
    let namespace = &cabled.near;
    let case = |peers| Case { peers, error: "EHOSTUNREACH", counts: [50, 50], namespace };
    find_told(agent, vec![case(v4), case(v6)]);
}

#[test]
fn what_the_routing_table_refuses_is_unreachable() {
    let Some(agent) = Agent::start() else { return };
    let Some(lonely) = Namespace::new() else { return };
    lonely.sh("ip link add dummy type veth peer name other
         ip link set other up
         ip link set dummy up
         ip address add 198.51.100.1/24 dev dummy
         ip address add 2001:db8:1::1/64 dev dummy nodad
         for kind in unreachable prohibit blackhole; do
             n=$((n + 1))
             ip route add $kind 203.0.113.$n
             ip -6 route add $kind 2001:db8:2::$n
         done");
    let to = |peer: &str, error| Case::new(&lonely, peer, error);
    let thousand = |peer: &str, error| Case { counts: [500, 500], ..to(peer, error) };
    let cases = vec![
        thousand("203.0.113.1:4711", "EHOSTUNREACH"),
        to("203.0.113.2:4711", "EACCES"),
        to("203.0.113.3:4711", "EINVAL"),
        to("203.0.113.4:4711", "ENETUNREACH"),
        thousand("[2001:db8:2::1]:4711", "EHOSTUNREACH"),
        to("[2001:db8:2::2]:4711", "EACCES"),
        to("[2001:db8:2::3]:4711", "EINVAL"),
        to("[2001:db8:2::4]:4711", "ENETUNREACH"),
    ];
    find_told(agent, cases);
}

/// Rules that reject, by port, and what they have the kernel say.
const REJECT: [(&str, &str, u16, &str); 6] = [
    ("ip", "icmp type host-unreachable", 1, "EHOSTUNREACH"),
    ("ip", "icmp type net-unreachable", 2, "ENETUNREACH"),
    ("ip", "icmp type admin-prohibited", 3, "EHOSTUNREACH"),
    ("ip6", "icmpv6 type no-route", 4, "ENETUNREACH"),
    ("ip6", "icmpv6 type addr-unreachable", 5, "EHOSTUNREACH"),
    ("ip6", "icmpv6 type admin-prohibited", 6, "EACCES"),
];

fn rejecting(chain: &str) -> String {
    let rule = |(protocol, with, port, _): &(&str, &str, u16, &str)| {
        format!(
            "nft add rule inet test {chain} meta nfproto {} tcp dport {port} reject with {with}\n",
            if *protocol == "ip" { "ipv4" } else { "ipv6" }
        )
    };
    format!("{FIREWALL}{}", REJECT.iter().map(rule).collect::<String>())
}

fn rejected(near: &Namespace) -> Vec<Case<'_>> {
    REJECT
        .iter()
        .map(|(protocol, _, port, error)| {
            let host = if *protocol == "ip" { "192.0.2.2" } else { "[2001:db8::2]" };
            // The answer to the first SYN comes while its socket is locked, so
            // that a blocking connect() hears of it with the second, after a
            // second.
            Case { counts: [10, 2], ..Case::new(near, &format!("{host}:{port}"), error) }
        })
        .collect()
}

#[test]
fn what_a_distant_firewall_rejects_is_unreachable() {
    let Some(agent) = Agent::start() else { return };
    let Some(cabled) = Cabled::with_firewalls() else { return };
    cabled.far.sh(&rejecting("in"));
    find_told(agent, rejected(&cabled.near));
}

#[test]
fn what_a_firewall_of_this_machine_rejects_is_unreachable() {
    let Some(agent) = Agent::start() else { return };
    let Some(cabled) = Cabled::with_firewalls() else { return };
    cabled.near.sh(&rejecting("out"));
    find_told(agent, rejected(&cabled.near));
}

#[test]
fn a_datagram_without_a_route_is_no_failed_connection() {
    let Some(agent) = Agent::start() else { return };
    let Some(lonely) = Namespace::new() else { return };
    let arguments = json!({"name": name(b"speaker"), "peer": "203.0.113.4:4711", "count": 50});
    let mut speaker = Role::start_in(&lonely, "speak", &arguments);
    speaker.tells();
    let pid = speaker.pid();
    assert!(speaker.ends().success());
    // Told after it, so that what it did would have been told by now.
    let arguments = json!({"name": name(b"seeker"), "peers": ["203.0.113.4:4711"], "how": "block",
                           "count": 1, "at_once": 1});
    let seeker = Role::start_in(&lonely, "connect", &arguments);
    let seeker_pid = seeker.pid();
    seeker.outcomes();
    agent.tells(1, of(seeker_pid));
    let told = agent.ends();
    assert_eq!(pick(&told, of(pid)), Vec::<&Value>::new());
}
