//! What it tells, to whom, and how it ends: asked to, hung up on, unread.

use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vahti_runtime::testing::not_run;

use crate::agent::{Agent, BINARY, draining, line_about, refuse};

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
