//! What is kept and told where a store or a file comes later, or never.

use std::io::BufReader;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::agent::{Agent, BINARY, line_about, refuse, until};

/// The accounts of the observer that tells of gaps, if there is one.
fn gap_observer(ledger: &serde_json::Value) -> Option<&serde_json::Value> {
    ledger["observers"].as_array()?.iter().find(|observer| observer["observer"] == "agent")
}

fn now_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_nanos()).unwrap()
}

#[test]
fn a_gap_is_told_once_the_store_opens_and_ends_where_this_agent_began_to_watch() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let arguments =
        ["--observers", "network", "--emit", "none", "--store", store.to_str().unwrap()];
    let Some(mut killed) = Agent::start(&arguments, Stdio::null()) else { return };
    refuse();
    killed.signal(libc::SIGKILL);
    killed.ends_within(Duration::from_secs(5));
    let ended = now_ns();
    let other = rusqlite::Connection::open(store.join("events.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    // One that never had the store tells nobody of the gap, and leaves it.
    let Some(mut also_killed) = Agent::start(&arguments, Stdio::null()) else { return };
    assert!(gap_observer(&also_killed.ledger()).is_none());
    also_killed.signal(libc::SIGKILL);
    also_killed.ends_within(Duration::from_secs(5));
    let Some(mut agent) = Agent::start(&arguments, Stdio::null()) else { return };
    let watches = now_ns();
    refuse();
    assert!(gap_observer(&agent.ledger()).is_none(), "it is not known yet");
    std::thread::sleep(Duration::from_secs(2));
    other.execute_batch("ROLLBACK").unwrap();
    drop(other);
    let gaps = || -> Vec<vahti_runtime::event::Gap> {
        let Ok(reader) = vahti_exporters::store::Reader::open(&store) else { return Vec::new() };
        let rows = reader.events(&vahti_exporters::store::Filter::default()).unwrap();
        let told = rows
            .iter()
            .map(|row| vahti_runtime::event::from_json_line(row.json.as_bytes()).unwrap().data);
        let gap = |data| match data {
            vahti_runtime::event::EventData::Gap(gap) => Some(gap),
            _ => None,
        };
        told.filter_map(gap).collect()
    };
    until("no gap is told", || !gaps().is_empty());
    let told = gaps();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].from_ns <= ended, "{told:?} {ended}");
    assert!(told[0].to_ns > ended, "{told:?} {ended}");
    assert!(told[0].to_ns < watches + 500_000_000, "{told:?} {watches}");
    let ledger = agent.ledger();
    let observer = gap_observer(&ledger).expect("it is in the ledger");
    assert_eq!(observer["events"]["produced"]["envelopes"], 1, "{ledger:#}");
    agent.adds_up();
    agent.signal(libc::SIGTERM);
    assert_eq!(agent.ends_within(Duration::from_secs(5)).0, Some(0));
    let Some(agent) = Agent::start(&arguments, Stdio::null()) else { return };
    assert!(gap_observer(&agent.ledger()).is_none(), "it was told");
}

#[test]
fn following_shows_the_first_event_that_is_ever_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (store, lock) = (folder.path().join("store"), folder.path().join("store/lock"));
    std::fs::create_dir_all(&lock).unwrap();
    let arguments =
        ["--observers", "network", "--emit", "none", "--store", store.to_str().unwrap()];
    let Some(mut agent) = Agent::start(&arguments, Stdio::null()) else { return };
    let mut follows = Command::new(BINARY)
        .args(["events", "--follow", "--format", "json", "--store"])
        .arg(&store)
        .env("VAHTI_SOCKET", agent.socket())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(follows.try_wait().unwrap().is_none(), "it does not wait");
    std::fs::remove_dir(&lock).unwrap();
    let port = refuse();
    let mut lines = BufReader::new(follows.stdout.take().unwrap());
    assert_eq!(line_about(&mut lines, port)["subtype"], "connection_refused");
    drop(lines);
    assert_eq!(follows.wait().unwrap().code(), Some(0));
    agent.signal(libc::SIGTERM);
    assert_eq!(agent.ends_within(Duration::from_secs(5)).0, Some(0));
}

#[test]
fn files_whose_folder_comes_later_hold_up_nothing_and_a_durable_one_gets_all() {
    let folder = tempfile::tempdir().unwrap();
    let (config, out) = (folder.path().join("vahti.yaml"), folder.path().join("out"));
    let yaml = format!(
        "emitters:\n- {{type: file, name: plain, path: {out}/plain}}\n\
         - {{type: file, name: audit, durable: true, path: {out}/audit}}\n",
        out = out.display()
    );
    std::fs::write(&config, yaml).unwrap();
    let arguments = ["--observers", "network", "--config", config.to_str().unwrap()];
    let Some(mut agent) = Agent::start(&arguments, Stdio::null()) else { return };
    let failing = |name: &str| {
        let ledger = agent.ledger();
        let emitters = ledger["emitters"].as_array().cloned().unwrap_or_default();
        let emitter = emitters.into_iter().find(|emitter| emitter["name"] == name).unwrap();
        emitter["why"].as_str().is_some_and(|why| why.contains("does not exist; create it"))
    };
    assert!(failing("plain") && failing("audit"), "before anything comes");
    let doctor = Command::new(BINARY)
        .args(["doctor", "--json", "--socket", &agent.socket(), "--config"])
        .arg(&config)
        .env("VAHTI_STORE", agent.folder.path().join("store"))
        .env("VAHTI_HTTP", "none")
        .output()
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let audit = &report["emitters"][1];
    assert_eq!((&audit["name"], &audit["state"]), (&"audit".into(), &"failing".into()));
    assert!(audit["why"].as_str().unwrap().contains("create it"), "{audit}");
    let before = refuse();
    until("the plain one loses nothing", || {
        let ledger = agent.ledger();
        let lanes = ledger["observers"][0]["lanes"].as_array().cloned().unwrap_or_default();
        let plain = lanes.into_iter().find(|lane| lane["emitter"] == "plain").unwrap();
        let dropped = plain["dropped"].as_array().cloned().unwrap_or_default();
        dropped.iter().any(|dropped| dropped["envelopes"] != 0)
    });
    std::fs::create_dir(&out).unwrap();
    let after = refuse();
    let has = |name: &str, port: u16| {
        let text = std::fs::read_to_string(out.join(name)).unwrap_or_default();
        // Not as its own port, which may be one that was free again.
        text.contains(&format!("\"peer\":{{\"address\":\"127.0.0.1\",\"port\":{port}}}"))
    };
    until("it is not delivered", || {
        has("plain", after) && has("audit", before) && has("audit", after)
    });
    agent.adds_up();
    agent.signal(libc::SIGTERM);
    let (code, told) = agent.ends_within(Duration::from_secs(5));
    assert_eq!(code, Some(0));
    assert!(told.contains("events are kept for it in the store emitter=audit"), "{told}");
    // Others on this machine may have failed as well.
    assert!(told.contains("emitter plain: events not delivered: "), "{told}");
    assert!(told.contains(" normal at emit"), "{told}");
}

#[test]
fn what_a_store_that_never_opened_could_not_keep_is_told_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let (config, store) = (folder.path().join("vahti.yaml"), folder.path().join("store"));
    std::fs::create_dir_all(store.join("lock")).unwrap();
    let yaml = format!(
        "limits: {{drain_deadline: 300ms}}\nstore: {{path: {}}}\nemitters:\n\
         - {{type: file, name: audit, durable: true, path: {}/audit}}\n",
        store.display(),
        folder.path().display()
    );
    std::fs::write(&config, yaml).unwrap();
    let arguments = ["--config", config.to_str().unwrap()];
    let Some(mut agent) = Agent::start(&arguments, Stdio::null()) else { return };
    let crash = Command::new("sh").args(["-c", "kill -SEGV $$"]).status().unwrap();
    assert!(!crash.success());
    refuse();
    let waits = || {
        let ledger = agent.ledger();
        let observers = ledger["observers"].as_array().cloned().unwrap_or_default();
        let waits = |o: &serde_json::Value| {
            let lane = &o["lanes"][0];
            let of = |part: &str| lane[part]["envelopes"].as_u64().unwrap_or(0);
            lane["emitter"] == "store" && of("queued") + of("in_flight") > 0
        };
        observers.len() == 2 && observers.iter().all(waits)
    };
    until("nothing waits for the store", waits);
    assert_eq!(agent.ledger()["store"]["open"], false);
    agent.signal(libc::SIGTERM);
    let (code, told) = agent.ends_within(Duration::from_secs(10));
    assert_eq!(code, Some(0), "what was lost is told, and the end is as it was asked for");
    let lost = told.lines().find(|line| line.contains("the store could not keep "));
    let lost = lost.unwrap_or_else(|| panic!("{told}"));
    assert!(lost.contains(" ERROR ") && !lost.contains("keep 0 critical"), "{lost}");
    assert!(lost.contains(" normal events, and no durable emitter has them (audit)"), "{lost}");
    assert!(told.contains("emitter store: events not delivered: "), "{told}");
}
