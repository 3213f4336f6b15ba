//! What is printed and written when much happens at once, and nobody reads.

use std::collections::BTreeSet;
use std::io::BufRead;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};

use crate::agent::{Agent, Start, adds_up, members, occurrences, within};
use crate::network::{ClosedPort, name, of, pick};
use crate::role::Role;

/// What was given up before it was delivered, of all observers. Not what was
/// `missed`: an end that the kernel skipped a program for is told all the same,
/// or counted as lost.
fn given_up(ledger: &Value) -> u64 {
    members(&ledger["observers"])
        .map(|o| {
            let dropped = members(&o["lanes"]).flat_map(|lane| members(&lane["dropped"]));
            let dropped: u64 = dropped.map(|d| d["occurrences"].as_u64().unwrap()).sum();
            let number = |line: &str, key: &str| o[line][key].as_u64().unwrap();
            number("kernel", "lost") + dropped
        })
        .sum()
}

#[test]
fn a_storm_is_counted_exactly_or_the_ledger_says_what_is_missing() {
    const EACH: u64 = 10_000;
    let Some(agent) = Agent::start() else { return };
    let port = ClosedPort::on(Ipv4Addr::LOCALHOST.into());
    let client = json!({"name": name(b"storm"), "peers": [port.address], "count": EACH,
                        "at_once": 1, "how": "block"});
    let clients = [Role::start("connect", &client), Role::start("connect", &client)];
    let pids = clients.each_ref().map(Role::pid);
    for client in clients {
        assert_eq!(client.outcomes(), [("ECONNREFUSED".to_owned(), EACH)].into());
    }
    let ledger = agent.settles();
    let told = agent.stops();
    let events = pick(&told, |event| pids.iter().any(|pid| of(*pid)(event)));
    let counted = occurrences(events.iter().copied());
    let missing = 2 * EACH - counted;
    assert!(missing <= given_up(&ledger), "{counted} were told: {ledger:#}");
    assert!(missing < EACH / 500, "less than one in a thousand is missing: {ledger:#}");
    for event in &events {
        assert_eq!(event["subtype"], "connection_refused", "{event:#}");
        assert_eq!(event["process"]["name"], "storm", "{event:#}");
        assert_eq!(event["network"]["peer"]["port"], port.address.port(), "{event:#}");
    }
    assert!(events.len() < 1000, "a storm is folded, and not {} lines", events.len());
}

/// So many peers that refuse, each another.
fn peers(port: u16, count: usize) -> Vec<SocketAddr> {
    let addresses = (1..=250_u8).flat_map(|a| (1..=250).map(move |b| Ipv4Addr::new(127, 1, a, b)));
    addresses.take(count).map(|address| (address, port).into()).collect()
}

/// Has connections to so many different peers refused; the process.
fn refuse_each(count: usize) -> u32 {
    let port = ClosedPort::on(Ipv4Addr::UNSPECIFIED.into());
    refuse_all(&peers(port.address.port(), count))
}

/// Has connections to these peers refused; the process.
fn refuse_all(peers: &[SocketAddr]) -> u32 {
    let count = peers.len();
    let client = json!({"name": name(b"various"), "peers": peers, "count": count,
                        "at_once": 1, "how": "block"});
    let client = Role::start("connect", &client);
    let pid = client.pid();
    client.outcomes();
    pid
}

#[test]
fn the_file_has_what_was_printed() {
    const COUNT: usize = 2000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.jsonl");
    let emit = format!("file={}", path.display());
    let start = Start { arguments: &["--emit", "stdout", "--emit", &emit], ..Start::default() };
    let Some(agent) = Agent::start_with(&start) else { return };
    let pid = refuse_each(COUNT);
    agent.tells(COUNT as u64, of(pid));
    let told = agent.ends();
    let written = std::fs::read(&path).unwrap();
    // The order holds within an observer; those two may take turns differently.
    let sorted = |text: &[u8]| text.lines().map(Result::unwrap).collect::<BTreeSet<_>>();
    assert_eq!(sorted(&told.raw), sorted(&written));
    assert_eq!(pick(&told, of(pid)).len(), COUNT);
}

#[test]
fn a_reader_that_stalls_keeps_nothing_from_the_file_nor_the_agent_from_ending() {
    // Far more than a pipe holds, and less than a lane does.
    const COUNT: usize = 3000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.jsonl");
    let emit = format!("file={}", path.display());
    let start = Start {
        config: "limits: {drain_deadline: 500ms}\n",
        arguments: &["--emit", "stdout", "--emit", &emit],
        unread: true,
        ..Start::default()
    };
    let Some(agent) = Agent::start_with(&start) else { return };
    let pid = refuse_each(COUNT);
    let written = || {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let events = whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        occurrences(&events.filter(of(pid)).collect::<Vec<_>>())
    };
    assert!(within(Duration::from_secs(60), || written() == COUNT as u64), "{}", written());
    let mut ledger = Value::Null;
    let is_exact = within(Duration::from_secs(30), || {
        ledger = agent.ledger();
        adds_up(&ledger) && waiting(&ledger, "file") == 0
    });
    assert!(is_exact, "{ledger:#}");
    assert!(waiting(&ledger, "stdout") > 0, "the pipe is full: {ledger:#}");
    agent.stops();
}

#[test]
fn a_storm_of_distinct_events_that_nobody_reads_stays_within_the_memory_that_was_set() {
    // In memory all of them would be more than there may be.
    const COUNT: usize = 60_000;
    const BUDGET: u64 = 25 << 20;
    let start = Start {
        config: "limits: {memory: 25MiB, drain_deadline: 500ms}\n",
        unread: true,
        ..Start::default()
    };
    let Some(agent) = Agent::start_with(&start) else { return };
    // What it made itself, and what its maps take in the kernel; its code, which
    // is read from a file and given back whenever others need the room, is not in.
    let taken = || {
        let memory = agent.ledger()["memory"].clone();
        let maps = members(&memory["parts"]).filter(|p| p["used_for"] == "maps in the kernel");
        let maps: u64 = maps.map(|part| part["bytes"].as_u64().unwrap()).sum();
        let resident = |key: &str| memory["resident"][key].as_u64().unwrap();
        assert_eq!(memory["budget_bytes"], BUDGET);
        maps + resident("anonymous_bytes") + resident("shared_bytes")
    };
    let at_rest = taken();
    let port = ClosedPort::on(Ipv4Addr::UNSPECIFIED.into());
    let peers = peers(port.address.port(), COUNT);
    // As many as a process can be told of.
    let storm = std::thread::spawn(move || {
        for some in peers.chunks(2_000) {
            refuse_all(some);
        }
    });
    let mut most = at_rest;
    while !storm.is_finished() {
        most = most.max(taken());
        std::thread::sleep(Duration::from_millis(50));
    }
    storm.join().unwrap();
    let mut ledger = Value::Null;
    let is_exact = within(Duration::from_secs(30), || {
        ledger = agent.ledger();
        adds_up(&ledger)
    });
    assert!(is_exact, "{ledger:#}");
    most = most.max(taken());
    println!("of {BUDGET} bytes: {at_rest} at rest, {most} at the most");
    assert!(most <= BUDGET / 5 * 6, "{most}");
    let dropped = |d: &Value| d["occurrences"].as_u64().unwrap();
    let of_stdout = members(&ledger["observers"]).flat_map(|o| members(&o["lanes"]));
    let of_stdout = of_stdout.filter(|lane| lane["emitter"] == "stdout");
    let dropped: u64 = of_stdout.flat_map(|lane| members(&lane["dropped"])).map(dropped).sum();
    assert!(dropped > COUNT as u64 / 2, "its lane was full: {ledger:#}");
    agent.stops();
}

/// What a kind of emitter has not taken yet, or dropped.
fn waiting(ledger: &Value, emitter: &str) -> u64 {
    let amount = |lane: &Value, key: &str| lane[key]["occurrences"].as_u64().unwrap();
    members(&ledger["observers"])
        .flat_map(|o| members(&o["lanes"]))
        .filter(|lane| lane["emitter"].as_str().unwrap().starts_with(emitter))
        .map(|lane| amount(lane, "routed") - amount(lane, "delivered"))
        .sum()
}
