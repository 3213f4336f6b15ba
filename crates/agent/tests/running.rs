//! The agent as it runs, on this machine's kernel: starting, answering,
//! stopping. Needs the rights to load programs; says so where they are missing.

// Helpers outside test functions fail as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use vahti_runtime::testing::not_run;

const BINARY: &str = env!("CARGO_BIN_EXE_vahti");

struct Agent {
    child: Child,
    folder: tempfile::TempDir,
    /// Whom it tells that it watches, and that it ends.
    manager: Option<UnixDatagram>,
}

impl Agent {
    /// Starts one and waits until it watches; `None`, having said why, where
    /// the rights are missing.
    fn start(arguments: &[&str], stdout: Stdio) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let ready = folder.path().join("ready");
        let manager = UnixDatagram::bind(&ready).unwrap();
        manager.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let child = Command::new(BINARY)
            .arg("run")
            .args(arguments)
            .arg("--socket")
            .arg(folder.path().join("s"))
            .env("VAHTI_STORE", folder.path().join("store"))
            .env("VAHTI_HTTP", "none")
            .env("NOTIFY_SOCKET", ready)
            .env_remove("VAHTI_CONFIG")
            .env_remove("WATCHDOG_USEC")
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut agent = Agent { child, folder, manager: None };
        let begun = Instant::now();
        loop {
            let mut told = [0; 1_024];
            if manager.recv(&mut told).is_ok() {
                assert!(told.starts_with(b"READY=1\n"));
                agent.manager = Some(manager);
                return Some(agent);
            }
            if let Some(status) = agent.child.try_wait().unwrap() {
                let mut told = String::new();
                agent.child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
                assert_eq!(status.code(), Some(77), "{told}");
                not_run(format_args!("{told}"));
                return None;
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "it does not watch");
        }
    }

    fn socket(&self) -> String {
        self.folder.path().join("s").to_str().unwrap().to_owned()
    }

    fn ledger(&self) -> serde_json::Value {
        let output = Command::new(BINARY)
            .args(["ledger", "--json", "--socket", &self.socket()])
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Waits for a moment in which every line of its ledger adds up: other
    /// processes may fail to connect meanwhile.
    #[track_caller]
    fn adds_up(&self) {
        let mut ledger = self.ledger();
        let begun = Instant::now();
        while !is_exact(&ledger) {
            assert!(begun.elapsed() < Duration::from_secs(10), "{ledger}");
            std::thread::sleep(Duration::from_millis(10));
            ledger = self.ledger();
        }
    }

    fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: signals our own child, which was not waited for yet.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Its exit code, and what it told on standard error, where that is its
    /// own: nothing of a ledger that does not add up.
    #[track_caller]
    fn ends_within(&mut self, limit: Duration) -> (Option<i32>, String) {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < limit, "it goes on: {}", self.ledger());
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut told = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut told).unwrap();
        }
        assert!(!told.contains("does not add up"), "{told}");
        (status.code(), told)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Whether it has observers, and every line of theirs adds up.
fn is_exact(ledger: &serde_json::Value) -> bool {
    let observers = ledger["observers"].as_array().cloned().unwrap_or_default();
    let all = observers.iter().flat_map(|observer| {
        let lines = ["kernel", "ring", "records", "events"].map(|line| &observer[line]);
        lines.into_iter().chain(observer["lanes"].as_array().into_iter().flatten())
    });
    // What tells of a gap has no kernel and no ring.
    !observers.is_empty() && { all }.all(|line| line.is_null() || line["difference"] == 0)
}

/// Has a connection refused; returns the port.
fn refuse() -> u16 {
    // Not always at once: a child that another test just forked holds the
    // listener, too, until it becomes another program.
    for _ in 0..20 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        // Nor for this reason, where others have taken all ports.
        let refused = |error: std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
        if TcpStream::connect(("127.0.0.1", port)).is_err_and(refused) {
            return port;
        }
    }
    panic!("no connection is refused");
}

/// The line about the connection to this port.
fn line_about(lines: &mut BufReader<ChildStdout>, port: u16) -> serde_json::Value {
    loop {
        let mut line = String::new();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "it ended");
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        if event["network"]["peer"]["port"] == port {
            return event;
        }
    }
}

#[test]
fn a_refused_connection_is_told_and_the_ledger_adds_up() {
    let Some(mut agent) = Agent::start(&["--observers", "network"], Stdio::piped()) else { return };
    let mut lines = BufReader::new(agent.child.stdout.take().unwrap());
    let port = refuse();
    let event = line_about(&mut lines, port);
    assert_eq!(event["subtype"], "connection_refused");
    assert_eq!(event["process"]["pid"], std::process::id());
    // Others may fail to connect meanwhile, to more lines than a pipe holds.
    std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    agent.adds_up();
    agent.signal(libc::SIGTERM);
    let (code, told) = agent.ends_within(Duration::from_secs(5));
    assert_eq!(code, Some(0));
    assert!(!told.contains("observer network"), "nothing was lost: {told}");
}

#[test]
fn what_was_lost_is_told_at_the_end() {
    let config = draining("300ms");
    let arguments = ["--observers", "network", "--config", config.path().to_str().unwrap()];
    let Some(mut agent) = Agent::start(&arguments, Stdio::piped()) else { return };
    for _ in 0..300 {
        refuse();
    }
    agent.signal(libc::SIGTERM);
    let (code, told) = agent.ends_within(Duration::from_secs(3));
    assert_eq!(code, Some(0));
    let lost = told.lines().find(|line| line.contains("events not delivered: "));
    let lost = lost.unwrap_or_else(|| panic!("{told}"));
    assert!(lost.contains("WARN observer network, emitter stdout: "), "{told}");
    assert!(lost.contains(" normal at shutdown: "), "{told}");
}

#[test]
fn hanging_up_does_not_kill_and_interrupting_drains() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("e");
    let emit = format!("file={}", path.display());
    let arguments = ["--observers", "network", "--emit", &emit];
    let Some(mut agent) = Agent::start(&arguments, Stdio::null()) else { return };
    agent.signal(libc::SIGHUP);
    let port = refuse();
    agent.signal(libc::SIGINT);
    assert_eq!(agent.ends_within(Duration::from_secs(5)).0, Some(0));
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(&format!("\"port\":{port}")), "what was accepted is delivered: {text}");
    assert!(!Path::new(&agent.socket()).exists(), "its socket is gone");
}

#[test]
fn a_reader_that_goes_away_ends_the_agent_without_failure() {
    let Some(mut agent) = Agent::start(&["--observers", "network"], Stdio::piped()) else { return };
    drop(agent.child.stdout.take());
    refuse();
    assert_eq!(agent.ends_within(Duration::from_secs(5)).0, Some(0));
}

/// A terminal: the end of whoever looks at it, and that of who writes to it.
fn terminal() -> (std::fs::File, OwnedFd) {
    let mut name = [0; 64];
    // SAFETY: the descriptor is owned by nobody else; `name` is writable for
    // its own size.
    let (person, named) = unsafe {
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        let person = OwnedFd::from_raw_fd(libc::posix_openpt(flags));
        let fd = person.as_raw_fd();
        assert_eq!((libc::grantpt(fd), libc::unlockpt(fd)), (0, 0));
        assert_eq!(libc::ptsname_r(fd, name.as_mut_ptr(), name.len()), 0);
        (person, std::ffi::CStr::from_ptr(name.as_ptr()).to_str().unwrap())
    };
    let mut options = std::fs::File::options();
    let program = options.read(true).write(true).custom_flags(libc::O_NOCTTY).open(named).unwrap();
    (person.into(), program.into())
}

#[test]
fn a_terminal_is_told_in_text_and_its_hang_up_ends_the_agent_without_failure() {
    let (person, program) = terminal();
    let arguments = ["--observers", "network"];
    let Some(mut agent) = Agent::start(&arguments, program.into()) else { return };
    let port = refuse();
    let mut lines = BufReader::new(person);
    let mut line = String::new();
    while !line.contains(&format!("127.0.0.1:{port}")) {
        line.clear();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "it ended");
    }
    assert!(line.contains("connection refused: ") && !line.contains('{'), "{line}");
    agent.adds_up();
    drop(lines);
    // Writing to it fails with EIO from now on.
    refuse();
    let (code, told) = agent.ends_within(Duration::from_secs(5));
    assert_eq!(code, Some(0), "{told}");
}

#[test]
fn a_reader_that_stalls_stops_neither_the_shutdown_nor_a_second_signal() {
    for (signal, code) in [(libc::SIGTERM, 143), (libc::SIGINT, 130)] {
        stall_and_signal_twice(signal, code);
    }
}

fn stall_and_signal_twice(signal: libc::c_int, code: i32) {
    let config = draining("30s");
    let arguments = ["--observers", "network", "--config", config.path().to_str().unwrap()];
    let Some(mut agent) = Agent::start(&arguments, Stdio::piped()) else { return };
    // Each to a port of its own, so that nothing is folded: more than a pipe
    // holds.
    for _ in 0..300 {
        refuse();
    }
    std::thread::sleep(Duration::from_millis(200));
    agent.adds_up();
    agent.signal(signal);
    std::thread::sleep(Duration::from_millis(300));
    assert!(agent.child.try_wait().unwrap().is_none(), "it waits for its reader");
    agent.signal(signal);
    assert_eq!(agent.ends_within(Duration::from_secs(2)).0, Some(code));
}

#[test]
fn a_reader_of_everything_that_stalls_does_not_stop_the_shutdown() {
    let Some(mut agent) = stalled("500ms") else { return };
    agent.signal(libc::SIGTERM);
    assert_eq!(agent.ends_within(Duration::from_secs(3)).0, Some(0));
}

#[test]
fn a_reader_of_everything_that_stalls_does_not_stop_a_second_signal() {
    let Some(mut agent) = stalled("30s") else { return };
    agent.signal(libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(300));
    assert!(agent.child.try_wait().unwrap().is_none(), "it waits for its reader");
    agent.signal(libc::SIGTERM);
    assert_eq!(agent.ends_within(Duration::from_secs(2)).0, Some(143));
}

fn unread(pipe: &std::io::PipeReader) -> libc::c_int {
    let mut bytes = 0;
    // SAFETY: FIONREAD writes one int, for which there is room.
    assert_eq!(unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut bytes) }, 0);
    bytes
}

/// An agent whose standard output and error are one pipe, full, which nobody
/// reads.
fn stalled(drain_deadline: &str) -> Option<Agent> {
    let config = draining(drain_deadline);
    let (reader, writer) = std::io::pipe().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let child = Command::new(BINARY)
        .args(["run", "--observers", "network", "--log", "trace", "--config"])
        .arg(config.path())
        .arg("--socket")
        .arg(folder.path().join("s"))
        .env("VAHTI_STORE", folder.path().join("store"))
        .env("VAHTI_HTTP", "none")
        .stdout(writer.try_clone().unwrap())
        .stderr(writer)
        .spawn()
        .unwrap();
    let mut agent = Agent { child, folder, manager: None };
    let begun = Instant::now();
    while unread(&reader) < 48 << 10 {
        if let Some(status) = agent.child.try_wait().unwrap() {
            assert_eq!(status.code(), Some(77));
            not_run("the rights to load programs are missing");
            return None;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "the pipe does not fill");
        refuse();
    }
    // More than the rest of what a pipe holds.
    for _ in 0..100 {
        refuse();
    }
    std::thread::sleep(Duration::from_millis(200));
    // What it would say of it at the end, nobody could read.
    agent.adds_up();
    // Open as long as this process is: it stalls, but it is there.
    std::mem::forget(reader);
    Some(agent)
}

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

/// A configuration with this long to drain.
fn draining(drain_deadline: &str) -> tempfile::NamedTempFile {
    let config = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(config.path(), format!("limits: {{drain_deadline: {drain_deadline}}}\n"))
        .unwrap();
    config
}

impl Agent {
    /// Starts another one on the same store, and on this socket.
    fn second(&self, config: &tempfile::NamedTempFile, socket: &Path) -> Agent {
        let child = Command::new(BINARY)
            .args(["run", "--observers", "network", "--emit", "none", "--socket"])
            .arg(socket)
            .arg("--config")
            .arg(config.path())
            .env("VAHTI_STORE", self.folder.path().join("store"))
            .env("VAHTI_HTTP", "none")
            .env_remove("VAHTI_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Agent { child, folder: tempfile::tempdir().unwrap(), manager: None }
    }

    /// It runs and does not end for a moment.
    #[track_caller]
    fn waits(&mut self) {
        std::thread::sleep(Duration::from_millis(500));
        assert!(self.child.try_wait().unwrap().is_none(), "it does not wait");
    }
}

#[test]
fn a_second_agent_waits_for_the_first_and_is_refused_by_name() {
    let Some(agent) = Agent::start(&["--observers", "network"], Stdio::null()) else { return };
    let config = draining("1s");
    let mut second = agent.second(&config, Path::new(&agent.socket()));
    second.waits();
    let (code, told) = second.ends_within(Duration::from_secs(10));
    assert_eq!(code, Some(1));
    let expected = format!("another vahti runs already (pid {})", agent.child.id());
    assert!(told.contains(&expected), "{told}");
    assert_eq!(told.matches("waiting for it to end").count(), 1, "{told}");
}

#[test]
fn a_second_agent_takes_over_socket_and_store_when_the_first_ends() {
    let Some(mut agent) = Agent::start(&["--observers", "network"], Stdio::null()) else { return };
    let config = draining("20s");
    let mut second = agent.second(&config, Path::new(&agent.socket()));
    second.waits();
    agent.signal(libc::SIGTERM);
    assert_eq!(agent.ends_within(Duration::from_secs(5)).0, Some(0));
    let begun = Instant::now();
    let pid = || agent.ledger()["pid"].as_u64();
    while pid() != Some(second.child.id().into()) {
        assert!(begun.elapsed() < Duration::from_secs(10), "it does not take over");
        std::thread::sleep(Duration::from_millis(20));
    }
    second.signal(libc::SIGTERM);
    let (code, told) = second.ends_within(Duration::from_secs(5));
    assert_eq!(code, Some(0), "{told}");
    assert!(!told.contains("not kept"), "{told}");
}

#[test]
fn an_agent_that_waits_for_another_ends_when_it_is_told_to() {
    let Some(agent) = Agent::start(&["--observers", "network"], Stdio::null()) else { return };
    let config = draining("30s");
    let own = agent.folder.path().join("own");
    for (socket, signal, what) in [
        (agent.socket().into(), libc::SIGTERM, "the control socket"),
        (own.clone(), libc::SIGINT, "the store"),
    ] {
        let mut second = agent.second(&config, &socket);
        second.waits();
        second.signal(signal);
        let (code, told) = second.ends_within(Duration::from_secs(2));
        assert_eq!(code, Some(0), "{told}");
        assert!(told.contains(&format!("another vahti has {what}; waiting")), "{told}");
    }
    assert!(!own.exists(), "its socket is gone");
    assert!(Path::new(&agent.socket()).exists(), "the other one's is not");
}

/// Waits until it holds: longer than the longest delay between two tries.
#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

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
