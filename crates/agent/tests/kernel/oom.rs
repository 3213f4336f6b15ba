//! Processes killed for memory, and the exits that follow.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use serde_json::{Value, json};

use crate::agent::Agent;
use crate::container::Container;
use crate::network::{name, of, pick};
use crate::role::Role;
use vahti_runtime::testing::not_run;

pub(crate) const LIMIT: u64 = 64 << 20;
const MIB: u64 = 1 << 20;

/// The kernel's log from now on.
struct KernelLog(File);

impl KernelLog {
    fn open() -> Option<Self> {
        let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
        match opened {
            Ok(mut file) => {
                file.seek(SeekFrom::End(0)).unwrap();
                Some(KernelLog(file))
            }
            Err(error) => {
                not_run(format!("its comparison with the kernel's log: {error}"));
                None
            }
        }
    }

    /// Usage and limit in bytes as it has them of this victim's cgroup.
    fn memory_of(mut self, victim: u32) -> (u64, u64) {
        let killed = format!("Killed process {victim} ");
        let mut memory = None;
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(n) => {
                    let text = String::from_utf8_lossy(&record[..n]).into_owned();
                    memory = usage_and_limit(&text).or(memory);
                    if text.contains(&killed) {
                        return memory.expect("usage and limit stand before the kill");
                    }
                }
                // Records that were overwritten meanwhile.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) => panic!("no line about {victim}: {error}"),
            }
        }
    }
}

/// From `memory: usage 65536kB, limit 65536kB, failcnt 7`.
fn usage_and_limit(line: &str) -> Option<(u64, u64)> {
    let (_, rest) = line.split_once("memory: usage ")?;
    let (usage, rest) = rest.split_once("kB, limit ")?;
    let (limit, _) = rest.split_once("kB")?;
    Some((usage.parse::<u64>().ok()? * 1024, limit.parse::<u64>().ok()? * 1024))
}

/// Has a process called `hungry` killed in a container; its pid.
#[track_caller]
pub(crate) fn starve(container: &Container, threads: u64) -> u32 {
    let mut role = Role::start(
        "end",
        &json!({"name": name(b"hungry"), "how": "hunger", "cgroup": container.folder(),
                "threads": threads}),
    );
    let pid = role.tells()["pid"].as_u64().unwrap() as u32;
    assert_eq!(role.tells()["status"], libc::SIGKILL);
    pid
}

#[track_caller]
fn assert_killed(event: &Value, container: &Container, pid: u32, scope: &str) {
    assert_eq!(event["subtype"], "oom_kill", "{event:#}");
    assert_eq!(event["priority"], "critical", "{event:#}");
    assert_eq!(event["process"]["pid"], pid, "{event:#}");
    assert_eq!(event["process"]["name"], "hungry", "{event:#}");
    assert_eq!(event["container"]["id"], container.id, "{event:#}");
    assert_eq!(event["oom"]["scope"], scope, "{event:#}");
    assert_eq!(event["oom"]["trigger_pid"], pid, "nobody else was hungry: {event:#}");
    assert_eq!(event["oom"]["trigger_name"], "hungry", "{event:#}");
    assert_eq!(event["memory"]["limit_bytes"], LIMIT, "{event:#}");
    let usage = event["memory"]["usage_bytes"].as_u64().unwrap();
    assert!(usage.abs_diff(LIMIT) <= MIB, "{event:#}");
    let resident = event["oom"]["victim_rss_bytes"].as_u64().unwrap();
    assert!(resident > LIMIT / 2 && resident < LIMIT + 16 * MIB, "{event:#}");
}

#[track_caller]
fn assert_logged(event: &Value, log: Option<KernelLog>, pid: u32) {
    let Some((usage, limit)) = log.map(|log| log.memory_of(pid)) else { return };
    let told = |key: &str| event["memory"][key].as_u64().unwrap();
    assert!(told("usage_bytes").abs_diff(usage) <= MIB, "logged {usage}: {event:#}");
    assert!(told("limit_bytes").abs_diff(limit) <= MIB, "logged {limit}: {event:#}");
}

#[track_caller]
fn assert_caused(kill: &Value, exit: &Value) {
    assert_eq!(exit["subtype"], "container_exit", "{exit:#}");
    assert_eq!(exit["exit"]["class"], "oom", "{exit:#}");
    assert_eq!(exit["exit"]["signal"], "SIGKILL", "{exit:#}");
    assert_eq!(exit["trace_id"], kill["trace_id"]);
    assert!(kill["span_id"].is_string(), "{kill:#}");
    assert_eq!(exit["parent_span_id"], kill["span_id"]);
    assert!(kill.get("parent_span_id").is_none(), "{kill:#}");
}

#[test]
fn a_container_out_of_memory_is_one_kill_with_the_kernel_logs_figures_and_the_exit_it_caused() {
    let Some(agent) = Agent::start() else { return };
    for threads in [0, 8] {
        let Some(container) = Container::docker() else { return };
        container.limit_memory(LIMIT);
        let log = KernelLog::open();
        let pid = starve(&container, threads);
        agent.tells(2, of(pid));
        let events = agent.events(|event| container.has()(event) || of(pid)(event));
        let [kill, exit] = events.as_slice() else { panic!("{events:#?}") };
        assert_killed(kill, &container, pid, "container");
        assert_logged(kill, log, pid);
        assert_caused(kill, exit);
        assert_eq!(exit["process"]["pid"], pid);
        let why = agent.why(&exit["id"]);
        let lines: Vec<&str> = why.lines().collect();
        let [cause, cause_id, effect, effect_id] = lines.as_slice() else { panic!("{why}") };
        assert!(cause.contains(" oom kill: hungry["), "{why}");
        assert!(effect.starts_with("└─ > ") && effect.contains(" container exit: "), "{why}");
        let ids = [&kill["id"], &exit["id"]].map(|id| format!("id {}", id.as_str().unwrap()));
        assert_eq!([cause_id.trim(), effect_id.trim()], ids, "{why}");
    }
    agent.ends();
}

#[test]
fn a_process_beside_the_first_that_is_killed_for_memory_is_no_container_that_exits() {
    let Some(agent) = Agent::start() else { return };
    let Some(container) = Container::docker() else { return };
    container.limit_memory(LIMIT);
    let first = json!({"name": name(b"first"), "cgroup": container.folder()});
    let mut first = Role::start("wait", &first);
    first.tells();
    let pid = starve(&container, 0);
    agent.tells(1, of(pid));
    assert!(first.ends().success());
    let told = agent.ends();
    let events = pick(&told, |event| container.has()(event) || of(pid)(event));
    let [kill] = events.as_slice() else { panic!("{events:#?}") };
    assert_killed(kill, &container, pid, "container");
}

#[test]
fn a_pod_out_of_memory_is_told_with_the_pods_limit_and_as_wider_than_the_container() {
    let Some(agent) = Agent::start() else { return };
    let Some(container) = Container::of_a_pod() else { return };
    container.limit_memory_of_pod(LIMIT);
    let log = KernelLog::open();
    let pid = starve(&container, 0);
    agent.tells(2, of(pid));
    let told = agent.ends();
    let events = pick(&told, |event| container.has()(event) || of(pid)(event));
    let [kill, exit] = events.as_slice() else { panic!("{events:#?}") };
    assert_killed(kill, &container, pid, "cgroup");
    assert_logged(kill, log, pid);
    assert_caused(kill, exit);
}

#[test]
fn whose_limit_it_was_is_told_also_while_others_give_memory_back() {
    let Some(agent) = Agent::start() else { return };
    let Some(container) = Container::with_services() else { return };
    container.limit_memory_above(2, LIMIT);
    let hungry = json!({"name": name(b"hungry"), "how": "hunger", "cgroup": container.folder(),
                        "threads": 0});
    // Many at once: each that is killed frees what the next is told of.
    let mut crowd: Vec<Role> = (0..24).map(|_| Role::start("end", &hungry)).collect();
    let mut pids = Vec::new();
    for role in &mut crowd {
        pids.push(role.tells()["pid"].as_u64().unwrap());
        assert_eq!(role.tells()["status"], libc::SIGKILL);
    }
    let of_the_crowd = |event: &Value| {
        event["subtype"] == "oom_kill" && pids.iter().any(|pid| event["process"]["pid"] == *pid)
    };
    agent.tells(24, of_the_crowd);
    let told = agent.ends();
    let kills = pick(&told, of_the_crowd);
    assert_eq!(kills.len(), 24);
    for kill in kills {
        assert_eq!(kill["oom"]["scope"], "container", "{kill:#}");
        assert_eq!(kill["memory"]["limit_bytes"], LIMIT, "{kill:#}");
        assert_eq!(kill["container"]["id"], container.id, "{kill:#}");
    }
}
