//! What it tells about itself, how much of it, and what it holds back.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::agent::{Agent, BINARY, refuse, until};

/// An agent whose log goes to a file, which takes everything.
fn telling(folder: &Path, arguments: &[&str]) -> Option<(Agent, PathBuf)> {
    let log = folder.join("log");
    let file = File::create(&log).unwrap();
    let agent = Agent::start_by(|command| {
        command.args(["--observers", "network"]).args(arguments).stderr(file);
        command.env_remove("VAHTI_LOG").env_remove("VAHTI_LOG_FORMAT");
    });
    agent.map(|agent| (agent, log))
}

fn vahti_log(agent: &Agent, arguments: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    command.arg("log").args(arguments).args(["--socket", &agent.socket()]).output().unwrap()
}

fn state(agent: &Agent) -> serde_json::Value {
    serde_json::from_slice(&vahti_log(agent, &["--json"]).stdout).unwrap()
}

#[track_caller]
fn ends(agent: &mut Agent) {
    agent.signal(libc::SIGTERM);
    assert_eq!(agent.ends_within(Duration::from_secs(20)).0, Some(0));
}

/// Each line as an object.
fn objects(log: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(log).unwrap();
    assert!(text.ends_with('\n'), "{text}");
    let parse = |line: &str| {
        assert!(line.len() < libc::PIPE_BUF, "{line}");
        let object: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for key in ["timestamp", "level", "target", "message"] {
            assert!(object[key].is_string(), "{key}: {line}");
        }
        object
    };
    text.lines().map(parse).collect()
}

fn held_back(lines: &[serde_json::Value]) -> u64 {
    lines.iter().map(|line| line["held_back"].as_u64().unwrap_or(0)).sum()
}

fn is_summary(line: &serde_json::Value) -> bool {
    line["message"].as_str().unwrap().starts_with("held back: ")
}

#[test]
fn the_level_is_changed_while_it_runs_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let Some((mut agent, log)) = telling(folder.path(), &["--log", "warn"]) else { return };
    let shown = vahti_log(&agent, &[]);
    assert_eq!(shown.status.code(), Some(0), "{shown:?}");
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(text.starts_with("level warn, format text\nlines written: "), "{text}");
    assert!(!fs::read_to_string(&log).unwrap().contains(" INFO "));
    let set = vahti_log(&agent, &["trace"]);
    assert_eq!((set.status.code(), &state(&agent)["level"]), (Some(0), &"trace".into()));
    until("it tells more", || {
        refuse();
        fs::read_to_string(&log).unwrap().contains(" TRACE sends what there is emitter=")
    });
    assert_eq!(vahti_log(&agent, &["off"]).status.code(), Some(0));
    let before = fs::read_to_string(&log).unwrap();
    let change = " INFO how much is told was changed from=\"trace\" to=\"off\"\n";
    assert!(before.contains(change), "{before}");
    let level = before.lines().filter(|line| line.contains("how much is told")).count();
    assert_eq!(level, 2, "{before}");
    ends(&mut agent);
    let after = fs::read_to_string(&log).unwrap();
    assert_eq!(after.len(), before.len(), "{after}");
}

#[test]
fn who_asks_for_no_level_or_no_agent_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let ask = |arguments: &[&str]| {
        let output =
            Command::new(BINARY).arg("log").args(arguments).arg("--socket").arg(&socket).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, told) = ask(&["debug"]);
    assert!(code == Some(1) && told.contains("no agent answers at"), "{code:?}: {told}");
    let (code, told) = ask(&["loud"]);
    assert!(code == Some(64) && told.contains("off, error, warn, info, debug or trace"), "{told}");
}

#[test]
fn a_storm_from_one_place_is_held_back_and_every_line_of_it_told() {
    const STORM: u64 = 500;
    for end in [libc::SIGTERM, libc::SIGINT] {
        let folder = tempfile::tempdir().unwrap();
        let arguments = ["--log-format", "json", "--emit", "none"];
        let Some((mut agent, log)) = telling(folder.path(), &arguments) else { return };
        for _ in 0..STORM {
            let mut client = UnixStream::connect(agent.socket()).unwrap();
            client.write_all(b"log info\n").unwrap();
            client.read_to_end(&mut Vec::new()).unwrap();
        }
        let held = state(&agent)["held_back"]["rate"].as_u64().unwrap();
        assert!(held > STORM / 2, "{held}");
        agent.signal(end);
        assert_eq!(agent.ends_within(Duration::from_secs(20)).0, Some(0));
        let lines = objects(&log);
        let about = |line: &&serde_json::Value| {
            line["message"].as_str().unwrap().contains("how much is told was changed")
        };
        let storm: Vec<_> = lines.iter().filter(about).cloned().collect();
        let written = storm.iter().filter(|line| !is_summary(line)).count() as u64;
        assert_eq!(written + held_back(&storm), STORM);
        assert_eq!(held_back(&lines), held_back(&storm), "nobody else was held back");
        assert!(held_back(&storm) >= held, "{held}");
    }
}

#[test]
fn why_it_can_not_start_is_told_in_the_form_of_the_log_whatever_the_level() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("a\"b");
    fs::write(&socket, "").unwrap();
    for (level, format, expected) in [
        ("error", "json", "{\"timestamp\":\""),
        ("off", "json", "vahti: "),
        ("info", "text", "vahti: "),
    ] {
        let mut command = Command::new(BINARY);
        command.args(["run", "--http", "none", "--store", "none"]);
        command.args(["--log", level, "--log-format", format, "--socket"]).arg(&socket);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{output:?}");
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.starts_with(expected) && told.lines().count() == 1, "{told}");
        assert!(told.contains("which vahti does not replace"), "{told}");
        if expected.starts_with('{') {
            let line: serde_json::Value = serde_json::from_str(&told).unwrap();
            assert!(line["message"].as_str().unwrap().contains("a\"b is no socket"), "{line}");
        }
    }
}

/// A receiver that refuses every request for good.
fn refusing() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut bytes = [0; 64 << 10];
                // What of a request comes at once is enough to refuse it.
                if stream.read(&mut bytes).is_ok_and(|count| count > 0) {
                    let answer = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\
                                   connection: close\r\n\r\n";
                    drop(stream.write_all(answer));
                }
            });
        }
    });
    url
}

/// How many events of this durable emitter were set aside.
fn set_aside(ledger: &serde_json::Value, emitter: &str) -> u64 {
    let lanes = ledger["store"]["lanes"].as_array().into_iter().flatten();
    let of = lanes.filter(|lane| lane["emitter"] == emitter);
    of.map(|lane| lane["rejected"]["envelopes"].as_u64().unwrap()).sum()
}

#[test]
fn a_storm_of_one_emitter_hides_no_line_of_another_and_the_ledger_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("c.yaml");
    let url = refusing();
    let emitter = |name: &str| {
        format!("{{type: otlp, name: {name}, durable: true, protocol: http, endpoint: \"{url}\"}}")
    };
    let yaml = format!("log: {{format: json}}\nemitters: [{}, {}]\n", emitter("a"), emitter("b"));
    fs::write(&config, yaml).unwrap();
    let config = config.to_str().unwrap().to_owned();
    let Some((mut agent, log)) = telling(folder.path(), &["--config", &config]) else { return };
    let made = 60;
    for _ in 0..made {
        refuse();
        // Events alike are one where they come too fast.
        std::thread::sleep(Duration::from_millis(2));
    }
    until("all are set aside", || {
        let ledger = agent.ledger();
        ["a", "b"].iter().all(|name| set_aside(&ledger, name) >= made)
    });
    ends(&mut agent);
    // As it was in the end, since others may fail to connect meanwhile.
    let stopped = Command::new(BINARY)
        .args(["ledger", "--json", "--socket", &agent.socket(), "--store"])
        .arg(agent.folder.path().join("store"))
        .output()
        .unwrap();
    let ledger: serde_json::Value = serde_json::from_slice(&stopped.stdout).unwrap();
    let counts = ["a", "b"].map(|name| set_aside(&ledger, name));
    let lines = objects(&log);
    for (name, count) in ["a", "b"].into_iter().zip(counts) {
        let told = lines.iter().filter(|line| {
            let message = line["message"].as_str().unwrap();
            let is_of = line["emitter"] == name || message.contains(&format!("emitter={name} "));
            is_of && message.contains("an event is set aside")
        });
        let told: Vec<_> = told.cloned().collect();
        let written = told.iter().filter(|line| !is_summary(line)).count() as u64;
        assert!(written >= 10, "{name}: the first ones are there");
        assert!(held_back(&told) > 0, "{name}: {count}");
        assert_eq!(written + held_back(&told), count, "{name}: {told:?}");
    }
}

#[test]
fn lines_of_json_are_json_whatever_names_hold() {
    let folder = tempfile::tempdir().unwrap();
    let mut name = b"\x1b[31m\n\"}{\\ \xff\xe2\x80\xae".to_vec();
    name.extend_from_slice("ä".repeat(100).as_bytes());
    let store = folder.path().join(std::ffi::OsStr::from_bytes(&name));
    fs::create_dir(&store).unwrap();
    fs::set_permissions(&store, fs::Permissions::from_mode(0o755)).unwrap();
    for format in ["json", "text"] {
        let log = folder.path().join("log");
        let file = File::create(&log).unwrap();
        let agent = Agent::start_by(|command| {
            command.args(["--observers", "network", "--log", "trace", "--log-format", format]);
            command.arg("--store").arg(&store).stderr(file);
        });
        let Some(mut agent) = agent else { return };
        refuse();
        ends(&mut agent);
        let text = fs::read_to_string(&log).unwrap();
        let harmful = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
        assert!(!text.contains(harmful), "{text:?}");
        if format == "json" {
            let lines = objects(&log);
            let about = |line: &&serde_json::Value| {
                line["message"].as_str().unwrap().starts_with("others may enter the store")
            };
            let folder = lines.iter().find(about).unwrap()["folder"].as_str().unwrap();
            let shown = r#"\x1b[31m\x0a"}{\\ \xff\xe2\x80\xae"#;
            assert!(folder.contains(shown) && folder.ends_with('ä'), "{folder}");
        } else {
            assert!(text.contains("  WARN others may enter the store's folder;"), "{text}");
        }
    }
}
