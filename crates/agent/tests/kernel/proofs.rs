//! Proofs of life beside a running agent: they are made by real faults, which
//! it sees, and which are none of its events.

use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::agent::{Agent, BINARY, adds_up, members};
use crate::namespace::Namespace;
use crate::network::{ClosedPort, of};
use crate::role::Role;
use vahti_ebpf::abi::TICK_NS;
use vahti_runtime::testing::not_run;

const NOBODY: u32 = 65_534;

/// Whether an event is of a process or of a child of it.
fn is_made_by(pid: u32) -> impl Fn(&Value) -> bool {
    move |event| {
        let process = &event["process"];
        process["pid"] == pid || process["parent_pid"] == pid
    }
}

/// How many records each observer took and found of no interest.
fn ignored(ledger: &Value) -> Vec<u64> {
    members(&ledger["observers"]).map(|o| o["records"]["ignored"].as_u64().unwrap()).collect()
}

/// Runs `vahti doctor` beside an agent; its pid.
#[track_caller]
fn consult(arguments: &[&str]) -> u32 {
    let mut command = Command::new(BINARY);
    command.arg("doctor").args(arguments).stdout(Stdio::null()).stderr(Stdio::piped());
    let doctor = command.spawn().unwrap();
    let pid = doctor.id();
    let output = doctor.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{told}");
    pid
}

#[test]
fn what_a_doctor_or_another_agent_proves_itself_with_is_no_event() {
    let Some(agent) = Agent::start() else { return };
    let before = ignored(&agent.settles());
    let socket = agent.socket();
    // It finds the agent by itself, and where it is told to look.
    let mut makers = vec![consult(&[]), consult(&["--socket", socket.to_str().unwrap()])];
    let Some(other) = Agent::start() else { return };
    makers.push(other.pid());
    let ledger = agent.settles();
    assert!(adds_up(&ledger), "{ledger:#}");
    let after = ignored(&ledger);
    let pairs = before.iter().zip(after);
    assert!({ pairs }.all(|(before, after)| *before < after), "they were seen: {ledger:#}");
    // A fault that is none of these is still told.
    let port = ClosedPort::on(Ipv4Addr::LOCALHOST.into());
    let client = Role::start(
        "connect",
        &json!({"peers": [port.address], "count": 1, "at_once": 1, "how": "block"}),
    );
    let pid = client.pid();
    client.outcomes();
    agent.tells(1, of(pid));
    drop(other.ends());
    let told = agent.ends();
    for maker in makers {
        let wrong: Vec<_> = told.events.iter().filter(|e| is_made_by(maker)(e)).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

/// Two ports where nobody listens.
fn ports() -> [ClosedPort; 2] {
    [(); 2].map(|()| ClosedPort::on(Ipv4Addr::LOCALHOST.into()))
}

fn refused_at(pid: u32, port: &ClosedPort) -> impl Fn(&Value) -> bool {
    let port = port.address.port();
    move |event| event["process"]["pid"] == pid && event["network"]["peer"]["port"] == port
}

#[test]
fn a_promise_hides_what_fails_for_its_own_process_while_it_holds() {
    let Some(agent) = Agent::start() else { return };
    let [during, after] = ports();
    let mut role = Role::start(
        "promise",
        &json!({"uid": 0, "socket": agent.socket(),
                "during": during.address, "after": after.address}),
    );
    let pid = role.pid();
    assert_eq!(role.tells(), json!({"proving": pid}));
    assert!(role.ends().success());
    agent.tells(1, refused_at(pid, &after));
    let told = agent.ends();
    assert!(!told.events.iter().any(refused_at(pid, &during)), "it was announced");
}

#[test]
fn a_promise_hides_where_no_route_leads_as_well_while_it_holds() {
    let Some(agent) = Agent::start() else { return };
    let Some(lonely) = Namespace::new() else { return };
    for [during, after] in
        [["203.0.113.4:4711", "203.0.113.4:4712"], ["[2001:db8:2::4]:4711", "[2001:db8:2::4]:4712"]]
    {
        let arguments =
            json!({"uid": 0, "socket": agent.socket(), "during": during, "after": after});
        let mut role = Role::start_in(&lonely, "promise", &arguments);
        let pid = role.pid();
        assert_eq!(role.tells(), json!({"proving": pid}));
        assert!(role.ends().success());
        agent.tells(1, of(pid));
        let events = agent.events(of(pid));
        assert_eq!(events.len(), 1, "the other was announced: {events:#?}");
        assert_eq!(events[0]["subtype"], "connection_unreachable", "{events:#?}");
        assert_eq!(events[0]["network"]["peer"]["port"], 4712, "{events:#?}");
    }
    drop(agent.ends());
}

#[test]
fn neither_another_user_nor_another_process_can_hide_what_fails() {
    let Some(agent) = Agent::start() else { return };
    let promise = |uid: u32, tgid: Option<u32>| {
        let [during, after] = ports();
        let mut role = Role::start(
            "promise",
            &json!({"uid": uid, "tgid": tgid, "socket": agent.socket(),
                    "during": during.address, "after": after.address}),
        );
        let pid = role.pid();
        let why = role.tells()["error"].as_str().unwrap_or("nothing").to_owned();
        assert!(role.ends().success());
        agent.tells(1, refused_at(pid, &during));
        agent.tells(1, refused_at(pid, &after));
        why
    };
    let refused = promise(NOBODY, None);
    assert!(refused.contains("Permission denied"), "{refused}");
    // Nor where files' rights would let it.
    fs::set_permissions(agent.folder(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(agent.socket(), Permissions::from_mode(0o666)).unwrap();
    assert_eq!(promise(NOBODY, None), "only root and the agent's user may make proofs");
    let another = std::process::id();
    let refused = promise(0, Some(another));
    assert_eq!(refused, "only a process itself may say that it makes proofs");
    drop(agent.ends());
}

#[test]
fn who_has_the_id_of_a_process_that_died_while_it_made_proofs_hides_nothing() {
    let Some(agent) = Agent::start() else { return };
    let [_, after] = ports();
    let mut role = Role::start("promise and end", &json!({"socket": agent.socket()}));
    let pid = role.pid();
    assert_eq!(role.tells(), json!({"proving": pid}));
    assert!(role.dies().success());
    // Within one tick of the first's start the two can't be told apart: too
    // short for the kernel to come around to an id, but not for `set_tid`.
    thread::sleep(2 * Duration::from_nanos(TICK_NS));
    // A child of it holds the connection still, so its id alone is marked.
    let arguments = json!({"pid": pid, "after": after.address});
    let mut role = Role::start("take over", &arguments);
    let outcome = role.tells();
    assert!(role.ends().success());
    if let Some(why) = outcome["error"].as_str() {
        not_run(format!("no process can be given an id: {why}"));
        return;
    }
    agent.tells(1, refused_at(pid, &after));
    drop(agent.ends());
}
