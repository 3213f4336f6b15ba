//! Processes that ended: crashes, containers, and ends that are no failures.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::agent::{Agent, Start, Told};
use crate::container::Container;
use crate::network::{name, of, pick};
use crate::role::Role;

/// A process that has ended.
struct Ended {
    pid: u32,
    status: i32,
}

/// Has a process called `mortal` end as the arguments say.
fn end(mut arguments: Value) -> Ended {
    arguments["name"] = name(b"mortal");
    let mut role = Role::start("end", &arguments);
    let pid = role.tells()["pid"].as_u64().unwrap() as u32;
    let status = role.tells()["status"].as_i64().unwrap() as i32;
    Ended { pid, status }
}

/// Has something happen that is told, after which whatever happened before it
/// has been told, too.
#[track_caller]
fn wait_for_mark(agent: &Agent) {
    let mark = end(json!({"how": "abort"}));
    agent.tells(1, of(mark.pid));
}

fn send(pid: u32, signal: i32) {
    // SAFETY: signals a process of our own that was not waited for yet.
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
}

#[track_caller]
fn assert_crash(told: &Told, pid: u32, process: &str, signal: &str) -> Value {
    let events = pick(told, of(pid));
    assert_eq!(events.len(), 1, "{events:#?}");
    let event = events[0];
    assert_eq!(event["subtype"], "process_crash", "{event:#}");
    assert_eq!(event["priority"], "critical", "{event:#}");
    assert_eq!(event["process"]["name"], process, "{event:#}");
    assert_eq!(event["exit"]["signal"], signal, "{event:#}");
    assert_eq!(event["exit"]["class"], "crash", "{event:#}");
    assert!(event["exit"].get("code").is_none(), "{event:#}");
    assert_eq!(event["count"], 1, "{event:#}");
    event.clone()
}

#[test]
fn a_process_that_crashes_is_told_once_however_many_threads_it_has() {
    let Some(agent) = Agent::start() else { return };
    let cases = [
        (json!({"how": "fault"}), libc::SIGSEGV, "SIGSEGV"),
        (json!({"how": "fault", "threads": 8}), libc::SIGSEGV, "SIGSEGV"),
        (json!({"how": "faults", "threads": 8}), libc::SIGSEGV, "SIGSEGV"),
        (json!({"how": "abort"}), libc::SIGABRT, "SIGABRT"),
        (json!({"how": "abort", "threads": 8}), libc::SIGABRT, "SIGABRT"),
    ];
    let ended = cases.map(|(arguments, number, signal)| {
        let ended = end(arguments);
        assert_eq!(ended.status & 0x7f, number);
        (ended.pid, signal)
    });
    wait_for_mark(&agent);
    let told = agent.ends();
    for (pid, signal) in ended {
        let event = assert_crash(&told, pid, "mortal", signal);
        assert!(event["exit"].get("sender_pid").is_none(), "nobody else sent it: {event:#}");
    }
}

#[test]
fn a_process_that_another_crashes_is_told_with_its_sender() {
    let Some(agent) = Agent::start() else { return };
    let signals = [
        (libc::SIGSEGV, "SIGSEGV"),
        (libc::SIGABRT, "SIGABRT"),
        (libc::SIGBUS, "SIGBUS"),
        (libc::SIGILL, "SIGILL"),
        (libc::SIGFPE, "SIGFPE"),
        (libc::SIGSYS, "SIGSYS"),
    ];
    let ended = signals.map(|(number, signal)| {
        let mut victim = Role::start("wait", &json!({"name": name(b"victim"), "no_core": true}));
        victim.tells();
        let pid = victim.pid();
        send(pid, number);
        assert_eq!(victim.dies().signal(), Some(number));
        (pid, signal)
    });
    wait_for_mark(&agent);
    let told = agent.ends();
    let own_name = std::fs::read_to_string("/proc/self/comm").unwrap();
    for (pid, signal) in ended {
        let event = assert_crash(&told, pid, "victim", signal);
        assert_eq!(event["exit"]["sender_pid"], std::process::id(), "{event:#}");
        assert_eq!(event["exit"]["sender_name"], own_name.trim_end(), "{event:#}");
    }
}

#[test]
fn ends_that_are_no_failures_are_no_events() {
    let Some(agent) = Agent::start() else { return };
    let mut pids = Vec::new();
    let mut run = |command: &mut Command| {
        // Whoever runs the tests may ignore some of these, and shells keep that.
        // SAFETY: signal(2) may be called between fork and exec.
        unsafe {
            command.pre_exec(|| {
                for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                Ok(())
            });
        }
        let mut child = command.stdin(Stdio::null()).spawn().unwrap();
        pids.push(child.id());
        assert!(!child.wait().unwrap().success());
    };
    run(Command::new("grep").args(["needle", "/dev/null"]));
    for script in ["exit 1", "exit 127", "exit 137", "exit 143"] {
        run(Command::new("sh").args(["-c", script]));
    }
    for signal in ["TERM", "INT", "PIPE", "HUP", "KILL", "QUIT"] {
        run(Command::new("sh").args(["-c", &format!("ulimit -c 0; kill -{signal} $$")]));
    }
    wait_for_mark(&agent);
    let told = agent.ends();
    let events = pick(&told, |event| pids.iter().any(|pid| of(*pid)(event)));
    assert_eq!(events, Vec::<&Value>::new());
}

/// A container whose first process, with eight more threads, ended by code 2.
#[track_caller]
fn assert_exit(told: &Told, container: &Container, pid: u32) {
    let events = pick(told, |event| container.has()(event) || of(pid)(event));
    assert_eq!(events.len(), 1, "{events:#?}");
    let event = events[0];
    assert_eq!(event["subtype"], "container_exit", "{event:#}");
    assert_eq!(event["priority"], "critical", "{event:#}");
    assert_eq!(event["process"]["pid"], pid, "{event:#}");
    assert_eq!(event["process"]["name"], "mortal", "{event:#}");
    assert_eq!(event["container"]["id"], container.id, "{event:#}");
    assert_eq!(event["container"]["runtime"], "docker", "{event:#}");
    assert_eq!(event["exit"]["code"], 2, "{event:#}");
    assert_eq!(event["exit"]["class"], "error", "{event:#}");
    assert!(event["exit"].get("signal").is_none(), "{event:#}");
}

#[test]
fn a_container_whose_first_process_has_eight_threads_exits_once() {
    let Some(agent) = Agent::start() else { return };
    let mut exited = Vec::new();
    for how in ["exit", "exit each"] {
        for (pid_namespace, helped) in [(false, false), (true, false), (false, true), (true, true)]
        {
            let Some(container) = Container::docker() else { return };
            let ended = end(json!({
                "cgroup": container.folder(), "how": how, "threads": 8, "code": 2,
                "pid_namespace": pid_namespace, "helped": helped,
            }));
            assert_eq!(ended.status, 2 << 8);
            exited.push((container, ended.pid));
        }
    }
    wait_for_mark(&agent);
    let told = agent.ends();
    for (container, pid) in exited {
        assert_exit(&told, &container, pid);
    }
}

#[test]
fn a_container_that_crashes_exits_once_and_is_no_crash_beside_it() {
    let Some(agent) = Agent::start() else { return };
    let Some(container) = Container::docker() else { return };
    let ended = end(json!({"cgroup": container.folder(), "how": "faults", "threads": 8}));
    wait_for_mark(&agent);
    let told = agent.ends();
    let events = pick(&told, |event| container.has()(event) || of(ended.pid)(event));
    assert_eq!(events.len(), 1, "{events:#?}");
    assert_eq!(events[0]["subtype"], "container_exit");
    assert_eq!(events[0]["exit"]["signal"], "SIGSEGV");
    assert_eq!(events[0]["exit"]["class"], "crash");
}

#[test]
fn another_process_that_ends_in_a_container_is_no_container_that_exits() {
    let Some(agent) = Agent::start() else { return };
    let Some(container) = Container::docker() else { return };
    let first = json!({"name": name(b"first"), "cgroup": container.folder(), "code": 0});
    let mut first = Role::start("wait", &first);
    first.tells();
    let failed = end(json!({"cgroup": container.folder(), "how": "exit", "code": 3}));
    let crashed = end(json!({"cgroup": container.folder(), "how": "fault"}));
    assert!(first.ends().success());
    wait_for_mark(&agent);
    let told = agent.ends();
    let events = pick(&told, |event| container.has()(event) || of(failed.pid)(event));
    assert_eq!(events.len(), 1, "{events:#?}");
    let crash = assert_crash(&told, crashed.pid, "mortal", "SIGSEGV");
    assert_eq!(crash["container"]["id"], container.id, "{crash:#}");
}

/// The ends of containers that ended in order.
fn normal_ends(config: &str) -> Option<Vec<Value>> {
    let agent = Agent::start_with(&Start { config, ..Start::default() })?;
    let containers = [Container::docker()?, Container::docker()?];
    end(json!({"cgroup": containers[0].folder(), "how": "exit", "code": 0, "threads": 8}));
    let terminated = json!({"name": name(b"mortal"), "cgroup": containers[1].folder()});
    let mut terminated = Role::start("wait", &terminated);
    terminated.tells();
    send(terminated.pid(), libc::SIGTERM);
    terminated.dies();
    wait_for_mark(&agent);
    let told = agent.ends();
    let events = pick(&told, |event| containers.iter().any(|container| container.has()(event)));
    Some(events.into_iter().cloned().collect())
}

#[test]
fn containers_that_end_in_order_are_told_only_if_that_is_asked_for() {
    let Some(events) = normal_ends("") else { return };
    assert_eq!(events, Vec::<Value>::new());
    let config = "observers: {container: {export_normal_exits: true}}\n";
    let Some(events) = normal_ends(config) else { return };
    assert_eq!(events.len(), 2, "{events:#?}");
    for event in &events {
        assert_eq!(event["subtype"], "container_exit", "{event:#}");
        assert_eq!(event["exit"]["class"], "normal", "{event:#}");
        assert_eq!(event["severity"], "info", "{event:#}");
        assert_eq!(event["outcome"], "success", "{event:#}");
        assert!(event.get("error").is_none(), "{event:#}");
    }
    assert_eq!(events[0]["exit"]["code"], 0);
    assert_eq!(events[1]["exit"]["signal"], "SIGTERM");
    assert_eq!(events[1]["exit"]["sender_pid"], std::process::id());
}
