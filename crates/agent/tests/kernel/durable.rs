//! What is committed arrives: through outages, restarts and overload, once or
//! more, and in order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vahti_exporters::store::{Filter, Reader, Row};
use vahti_runtime::testing::not_run;

use crate::agent::{Agent, BINARY, Start, adds_up, members, within};
use crate::network::{ClosedPort, name};
use crate::role::Role;

/// A store, and the folder that a durable emitter writes to.
struct Place {
    folder: tempfile::TempDir,
    config: String,
    store: String,
}

impl Place {
    fn new(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("out")).unwrap();
        let file = folder.path().join("out/events.jsonl");
        let config = format!(
            "emitters: [{{type: stdout}}, {{type: file, path: {}, durable: true}}]\n{more}\n",
            file.display()
        );
        let store = folder.path().join("store").to_str().unwrap().to_owned();
        Place { folder, config, store }
    }

    fn agent(&self, unread: bool) -> Option<Agent> {
        let arguments = ["--store", &self.store];
        let start = Start { config: &self.config, arguments: &arguments, unread, text: false };
        Agent::start_with(&start)
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    /// What is in the store, in the order of commits.
    fn rows(&self) -> Vec<Row> {
        let filter = Filter { after_seq: Some(0), ..Filter::default() };
        Reader::open(Path::new(&self.store)).unwrap().events(&filter).unwrap()
    }

    /// The lines of the durable file.
    fn lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.out().join("events.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The durable file has what the store has, each priority in the order of
    /// commits, and no event twice.
    #[track_caller]
    fn assert_complete(&self) -> Vec<Value> {
        let (rows, lines) = (self.rows(), self.lines());
        let seqs: BTreeMap<&str, u64> = rows.iter().map(|row| (row.id.as_str(), row.seq)).collect();
        assert_eq!(seqs.len(), rows.len(), "an event was committed twice");
        for priority in ["critical", "normal"] {
            let of_it = lines.iter().filter(|line| line["priority"] == priority);
            let sent: Vec<u64> = of_it.map(|line| seqs[line["id"].as_str().unwrap()]).collect();
            assert!(sent.is_sorted_by(|a, b| a < b), "{priority}: out of order, or twice");
        }
        assert_eq!(lines.len(), rows.len());
        lines
    }
}

/// A part of the store's account of somebody, in envelopes.
fn store_part(ledger: &Value, emitter: &str, part: &str) -> u64 {
    let mut lanes = members(&ledger["store"]["lanes"]);
    let lane = lanes.find(|lane| lane["emitter"] == emitter);
    lane.map_or(u64::MAX, |lane| lane[part]["envelopes"].as_u64().unwrap())
}

/// Waits until everything was delivered that was committed.
#[track_caller]
fn settles(agent: &Agent) {
    let open = |ledger: &Value| {
        let of_file = ["stored", "in_flight"].map(|part| store_part(ledger, "file", part));
        let lanes = || members(&ledger["observers"]).flat_map(|o| members(&o["lanes"]));
        let waits = lanes()
            .filter(|lane| lane["emitter"] == "store")
            .any(|lane| lane["queued"]["envelopes"] != 0 || lane["in_flight"]["envelopes"] != 0);
        waits || of_file != [0, 0]
    };
    assert!(within(Duration::from_secs(60), || !open(&agent.ledger())), "{:#}", agent.ledger());
}

/// Has `count` connections refused, each by another peer.
fn refuse(count: usize) {
    // As many peers as fit into a role's arguments.
    let port = ClosedPort::on(Ipv4Addr::UNSPECIFIED.into());
    let addresses = (1..=250_u8).flat_map(|a| (1..=20).map(move |b| Ipv4Addr::new(127, 2, a, b)));
    let peers: Vec<SocketAddr> =
        addresses.take(count).map(|address| (address, port.address.port()).into()).collect();
    assert_eq!(peers.len(), count);
    let client = json!({"name": name(b"various"), "peers": peers, "count": count,
                        "at_once": 1, "how": "block"});
    Role::start("connect", &client).outcomes();
}

/// Has a process crash; its pid.
pub(crate) fn crash() -> u64 {
    let mut role = Role::start("end", &json!({"name": name(b"mortal"), "how": "abort"}));
    let pid = role.tells()["pid"].as_u64().unwrap();
    role.tells();
    pid
}

fn crashed(lines: &[Value]) -> BTreeSet<u64> {
    let crashes = lines.iter().filter(|line| line["subtype"] == "process_crash");
    crashes.map(|line| line["process"]["pid"].as_u64().unwrap()).collect()
}

#[test]
fn what_is_committed_while_a_durable_file_is_away_arrives_when_it_is_back() {
    let place = Place::new("");
    let Some(agent) = place.agent(false) else { return };
    let mut mortal = vec![crash()];
    settles(&agent);
    let away = place.folder.path().join("away");
    fs::rename(place.out(), &away).unwrap();
    fs::write(place.out(), "in the way").unwrap();
    let committed = |agent: &Agent| store_part(&agent.ledger(), "(store)", "routed");
    while committed(&agent) < 20_000 {
        refuse(5_000);
        mortal.push(crash());
    }
    let ledger = agent.ledger();
    assert!(store_part(&ledger, "file", "stored") > 19_000, "{ledger:#}");
    let file = members(&ledger["emitters"]).find(|e| e["name"] == "file").unwrap();
    assert_eq!(file["state"], "failing", "{ledger:#}");
    fs::remove_file(place.out()).unwrap();
    fs::rename(&away, place.out()).unwrap();
    settles(&agent);
    agent.stops();
    let crashed = crashed(&place.assert_complete());
    assert!(mortal.iter().all(|pid| crashed.contains(pid)), "{mortal:?} {crashed:?}");
}

#[test]
fn a_restart_tells_of_no_gap_and_sends_nothing_twice() {
    let place = Place::new("");
    for round in 1..=3 {
        let Some(agent) = place.agent(false) else { return };
        refuse(300);
        crash();
        // The last ones may go out after the start of the next agent.
        if round == 3 {
            settles(&agent);
        }
        agent.stops();
        // Nor does a start that fails, as nobody has watched since: without the
        // kernel's types no program can be loaded.
        let script = "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"";
        let config = place.folder.path().join("same.yaml");
        fs::write(&config, &place.config).unwrap();
        let failed = Command::new("unshare")
            .args(["-m", "sh", "-c", script, "sh", BINARY, "run", "--store", &place.store])
            .arg("--socket")
            .arg(place.folder.path().join("s"))
            .arg("--config")
            .arg(config)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&failed.stderr);
        assert_eq!(failed.status.code(), Some(1), "{said}");
        assert!(!said.contains("unshare: "), "{said}");
    }
    let lines = place.assert_complete();
    assert!(lines.len() >= 900, "{}", lines.len());
    assert!(!lines.iter().any(|line| line["subtype"] == "gap"));
}

#[test]
fn a_kill_tells_of_a_gap_that_covers_it() {
    let place = Place::new("");
    let Some(agent) = place.agent(false) else { return };
    let mortal = crash();
    // Nothing waits either before its record was read.
    agent.tells(1, |event| event["process"]["pid"] == mortal);
    settles(&agent);
    let pid = i32::try_from(agent.pid()).unwrap();
    // SAFETY: signals our own child, which was not waited for yet.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
    drop(agent);
    let Some(agent) = place.agent(false) else { return };
    agent.tells(1, |event| event["subtype"] == "gap");
    settles(&agent);
    agent.stops();
    let lines = place.assert_complete();
    assert!(crashed(&lines).contains(&mortal));
    let gaps: Vec<&Value> = lines.iter().filter(|line| line["subtype"] == "gap").collect();
    assert_eq!(gaps.len(), 1, "{gaps:#?}");
}

#[test]
fn a_second_agent_names_the_first_or_takes_over_when_that_one_ends() {
    let place = Place::new("limits: {drain_deadline: 500ms}");
    let Some(first) = place.agent(false) else { return };
    let socket = place.folder.path().join("second");
    let begun = Instant::now();
    let second = Command::new(BINARY)
        .args(["run", "--store", &place.store, "--emit", "none", "--socket"])
        .arg(&socket)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("(pid {})", first.pid())), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    // One that is there before the first has ended takes over.
    let pid = i32::try_from(first.pid()).unwrap();
    let ends = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        // SAFETY: signals our own child, which was not waited for yet.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    });
    let second = place.agent(false).unwrap();
    ends.join().unwrap();
    crash();
    settles(&second);
    second.stops();
    assert!(!place.assert_complete().iter().any(|line| line["subtype"] == "gap"));
}

#[test]
fn a_reader_that_stalls_costs_no_critical_event_and_the_store_nothing() {
    // A tenth of what comes fits into the lane.
    let place = Place::new(
        "limits: {drain_deadline: 500ms}\n\
         observers: {network: {backpressure: {queue_size: 1000}}}",
    );
    let Some(agent) = place.agent(true) else { return };
    let begun = Instant::now();
    let mut mortal = Vec::new();
    for _ in 0..4 {
        refuse(3_000);
        mortal.push(crash());
    }
    settles(&agent);
    let mut ledger = Value::Null;
    let is_exact = within(Duration::from_secs(30), || {
        ledger = agent.ledger();
        adds_up(&ledger)
    });
    assert!(is_exact, "{:?}: {ledger:#}", begun.elapsed());
    let dropped = |emitter: &str, priority: &str| -> u64 {
        members(&ledger["observers"])
            .flat_map(|o| members(&o["lanes"]))
            .filter(|lane| lane["emitter"] == emitter)
            .flat_map(|lane| members(&lane["dropped"]))
            .filter(|dropped| dropped["priority"] == priority)
            .map(|dropped| dropped["occurrences"].as_u64().unwrap())
            .sum()
    };
    assert!(dropped("stdout", "normal") > 5_000, "{ledger:#}");
    assert_eq!((dropped("stdout", "critical"), dropped("store", "critical")), (0, 0), "{ledger:#}");
    agent.stops();
    let crashed = crashed(&place.assert_complete());
    assert!(mortal.iter().all(|pid| crashed.contains(pid)), "{mortal:?} {crashed:?}");
}

#[test]
fn another_program_reads_the_store_while_the_agent_writes() {
    let python = Command::new("python3").args(["-c", "import sqlite3"]).status();
    if !python.is_ok_and(|status| status.success()) {
        return not_run("python3 with sqlite3 is missing");
    }
    let place = Place::new("");
    let Some(agent) = place.agent(false) else { return };
    let script = "import sqlite3, sys\n\
        c = sqlite3.connect(sys.argv[1])\n\
        last = 0\n\
        for _ in range(300):\n\
        \x20   n, = c.execute('SELECT count(*) FROM events').fetchone()\n\
        \x20   assert n >= last, (n, last)\n\
        \x20   last = n\n\
        print(c.execute('PRAGMA integrity_check').fetchone()[0], last)";
    let reader = Command::new("python3")
        .args(["-c", script])
        .arg(Path::new(&place.store).join("events.db"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    for _ in 0..3 {
        refuse(2_000);
    }
    let said = reader.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.starts_with("ok "), "{said}");
    settles(&agent);
    agent.stops();
    place.assert_complete();
}
