//! What the doctor, the demo and the division of memory say of an agent.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vahti_runtime::testing::not_run;

use crate::agent::{Agent, BINARY, refuse};

/// What the kernel says of the maps that a process has, each once.
fn maps_bytes(pid: u32) -> u64 {
    let infos = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let maps: std::collections::BTreeMap<u64, u64> = infos
        .filter_map(|info| {
            let text = std::fs::read_to_string(info.ok()?.path()).ok()?;
            let number = |key: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(key))?;
                line.trim().parse::<u64>().ok()
            };
            Some((number("map_id:")?, number("memlock:")?))
        })
        .collect();
    maps.values().sum()
}

#[test]
fn what_is_said_of_maps_is_what_the_kernel_says() {
    let Some(agent) = Agent::start(&[], Stdio::null()) else { return };
    let memory = agent.ledger()["memory"].clone();
    let parts = memory["parts"].as_array().unwrap();
    let of_maps = parts.iter().filter(|part| part["used_for"] == "maps in the kernel");
    let said: u64 = of_maps.map(|part| part["bytes"].as_u64().unwrap()).sum();
    let told = maps_bytes(agent.child.id());
    assert!(told > 1 << 20, "{told}");
    // The loader adds one of its own now and then, for constants.
    assert!(said >= told * 95 / 100 && said <= told * 110 / 100, "said {said}, told {told}");
    let all: u64 = parts.iter().map(|part| part["bytes"].as_u64().unwrap()).sum();
    assert!(all <= memory["budget_bytes"].as_u64().unwrap(), "{memory:#}");
}

#[test]
fn the_demo_finds_every_fault_that_it_can_make_here() {
    let output = Command::new(BINARY).args(["demo", "--json"]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) {
        not_run(format_args!("{told}"));
        return;
    }
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let faults = shown["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 9);
    for fault in faults {
        if fault["outcome"] == "not_made" {
            not_run(format_args!("{}: {}", fault["what"], fault["why"]));
            continue;
        }
        assert_eq!(fault["outcome"], "found", "{fault}");
        // Nothing is found before it happens, nor later than the demo waits.
        let latency_us = fault["latency_us"].as_u64().unwrap();
        assert!((1..3_000_000).contains(&latency_us), "{fault}");
        assert_eq!(fault["event"]["subtype"], fault["fault"]);
    }
    // It fails, too, where the ledger does not add up.
    assert_eq!(output.status.code(), Some(0), "{told}");
}

#[test]
fn the_doctor_fits_eighty_columns_and_says_by_its_exit_code_whether_anything_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let doctor = |arguments: &[&str]| {
        let mut command = Command::new(BINARY);
        command.arg("doctor").args(arguments).env_remove("VAHTI_CONFIG");
        command.env("VAHTI_STORE", folder.path().join("store")).output().unwrap()
    };
    let text = doctor(&[]);
    if text.status.code() == Some(77) {
        not_run(format_args!("{}", String::from_utf8_lossy(&text.stderr)));
        return;
    }
    let lines = String::from_utf8(text.stdout).unwrap();
    assert!(lines.lines().all(|line| line.chars().count() <= 80), "{lines}");
    let json = doctor(&["--json"]);
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let signals = report["signals"].as_array().unwrap();
    let names: Vec<&str> = signals.iter().map(|s| s["signal"].as_str().unwrap()).collect();
    let told = [
        "connection_refused",
        "connection_timeout",
        "connection_unreachable",
        "connection_reset",
        "connection_abandoned",
        "oom_kill",
        "container_exit",
        "process_crash",
    ];
    assert_eq!(names, told);
    for signal in signals {
        let is_missing = signal["state"] == "missing";
        assert_eq!(signal["mechanism"].is_string(), !is_missing, "{signal}");
        assert_eq!(signal["why"].is_string(), signal["state"] != "works", "{signal}");
    }
    let is_missing = signals.iter().any(|signal| signal["state"] == "missing");
    assert_eq!(json.status.code(), Some(i32::from(is_missing)));
    assert_eq!(report["store"]["state"], "works", "it will be made");
    let nowhere = doctor(&["--json", "--store", "/proc/1/nowhere/store"]);
    assert_eq!(nowhere.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&nowhere.stdout).unwrap();
    assert_eq!(report["store"]["state"], "missing");
}

#[test]
fn the_doctor_tells_what_is_in_the_way_of_a_store_where_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(place("locked/lock")).unwrap();
    std::fs::create_dir_all(place("taken/events.db")).unwrap();
    std::fs::write(place("file"), "").unwrap();
    std::fs::create_dir(place("disk")).unwrap();
    // On disks of its own, which are gone with the process.
    let on = |options: &str| {
        let disk = place("disk");
        let disk = disk.display();
        format!("mount -t tmpfs -o {options} none {disk} && exec \"$@\"")
    };
    for (script, store, told) in [
        (None, Path::new("/proc/x").to_owned(), "no folder can be made in /proc"),
        (None, place("locked"), "/locked/lock is a folder"),
        (None, place("taken"), "/taken/events.db is a folder"),
        (None, place("file/a"), "/file is no folder, so nothing can be in it"),
        (Some(on("ro")), place("disk"), "/disk can't be written to: Read-only file system"),
        (Some(on("ro")), place("disk/a"), "no folder can be made in "),
        (Some(on("size=64k")), place("disk"), "/disk can't be written to: No space left"),
        (Some(on("nr_inodes=1")), place("disk/a"), "no folder can be made in "),
    ] {
        let mut command = match &script {
            None => Command::new(BINARY),
            Some(script) => {
                let mut command = Command::new("unshare");
                command.args(["-m", "sh", "-c", script, "sh", BINARY]);
                command
            }
        };
        command.args(["doctor", "--json", "--socket"]).arg(place("s")).arg("--store").arg(&store);
        let output = command.env_remove("VAHTI_CONFIG").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.code() == Some(77) || said.contains("unshare: ") {
            not_run(said);
            continue;
        }
        assert_eq!(output.status.code(), Some(1), "{}: {said}", store.display());
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["store"]["state"], "missing", "{report:#}");
        let finding = &report["store"]["findings"][0];
        assert!(finding["why"].as_str().unwrap().contains(told), "{finding:#}");
        assert!(finding["remedy"].is_string(), "{finding:#}");
    }
}

#[test]
fn the_doctor_names_the_agent_that_writes_and_what_its_emitters_are_owed() {
    let folder = tempfile::tempdir().unwrap();
    let (config, store) = (folder.path().join("vahti.yaml"), folder.path().join("store"));
    let audit = folder.path().join("audit");
    let yaml = format!(
        "emitters:\n- {{type: file, name: audit, durable: true, path: {}}}\nstore: {{path: {}}}\n",
        audit.display(),
        store.display()
    );
    std::fs::write(&config, yaml).unwrap();
    let config = config.to_str().unwrap();
    let arguments = ["--observers", "network", "--config", config];
    let Some(mut agent) = Agent::start(&arguments, Stdio::null()) else { return };
    let port = refuse();
    let begun = Instant::now();
    while !std::fs::read_to_string(&audit).is_ok_and(|t| t.contains(&format!(":{port}}}"))) {
        assert!(begun.elapsed() < Duration::from_secs(10), "it is not delivered");
        std::thread::sleep(Duration::from_millis(10));
    }
    let socket = agent.socket();
    let report = || -> serde_json::Value {
        let arguments = ["doctor", "--json", "--config", config, "--socket", &socket];
        let output = Command::new(BINARY).args(arguments).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let store = report()["store"].take();
    assert_eq!(store["agent"], agent.child.id(), "{store}");
    assert_eq!((&store["mode"], &store["owed"][0]["emitter"]), (&"0700".into(), &"audit".into()));
    assert!(store["events"].as_u64() > Some(0), "{store}");
    agent.signal(libc::SIGKILL);
    agent.ends_within(Duration::from_secs(5));
    let store = report()["store"].take();
    assert!(store["agent"].is_null(), "{store}");
    assert!(store.to_string().contains("did not end as it should"), "{store}");
    assert_eq!(store["state"], "works", "{store}");
}
