//! A running agent, and what is asked of it.

use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use vahti_runtime::testing::not_run;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_vahti");

pub(crate) struct Agent {
    pub(crate) child: Child,
    pub(crate) folder: tempfile::TempDir,
    /// Whom it tells that it watches, and that it ends.
    pub(crate) manager: Option<UnixDatagram>,
}

impl Agent {
    /// Starts one and waits until it watches; `None`, having said why, where
    /// the rights are missing.
    pub(crate) fn start(arguments: &[&str], stdout: Stdio) -> Option<Self> {
        Self::start_by(|command| {
            command.args(arguments).stdout(stdout);
        })
    }

    /// The same with more that is said about how.
    pub(crate) fn start_by(how: impl FnOnce(&mut Command)) -> Option<Self> {
        Self::start_as(Command::new(BINARY), how)
    }

    /// The same of a program that becomes it.
    pub(crate) fn start_as(mut program: Command, how: impl FnOnce(&mut Command)) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let ready = folder.path().join("ready");
        let manager = UnixDatagram::bind(&ready).unwrap();
        manager.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        program
            .arg("run")
            .arg("--socket")
            .arg(folder.path().join("s"))
            .env("VAHTI_STORE", folder.path().join("store"))
            .env("VAHTI_HTTP", "none")
            .env("NOTIFY_SOCKET", ready)
            .env_remove("VAHTI_CONFIG")
            .env_remove("WATCHDOG_USEC")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        how(&mut program);
        let child = program.spawn().unwrap();
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
                if let Some(mut stderr) = agent.child.stderr.take() {
                    stderr.read_to_string(&mut told).unwrap();
                }
                assert_eq!(status.code(), Some(77), "{told}");
                not_run(format_args!("{told}"));
                return None;
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "it does not watch");
        }
    }

    pub(crate) fn socket(&self) -> String {
        self.folder.path().join("s").to_str().unwrap().to_owned()
    }

    pub(crate) fn ledger(&self) -> serde_json::Value {
        let output = Command::new(BINARY)
            .args(["ledger", "--json", "--socket", &self.socket()])
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Waits for a moment in which every line of its ledger adds up: other
    /// processes may fail to connect meanwhile.
    #[track_caller]
    pub(crate) fn adds_up(&self) {
        let mut ledger = self.ledger();
        let begun = Instant::now();
        while !is_exact(&ledger) {
            assert!(begun.elapsed() < Duration::from_secs(10), "{ledger}");
            std::thread::sleep(Duration::from_millis(10));
            ledger = self.ledger();
        }
    }

    pub(crate) fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: signals our own child, which was not waited for yet.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Its exit code, and what it told on standard error, where that is its
    /// own: nothing of a ledger that does not add up.
    #[track_caller]
    pub(crate) fn ends_within(&mut self, limit: Duration) -> (Option<i32>, String) {
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
pub(crate) fn is_exact(ledger: &serde_json::Value) -> bool {
    let observers = ledger["observers"].as_array().cloned().unwrap_or_default();
    let all = observers.iter().flat_map(|observer| {
        let lines = ["kernel", "ring", "records", "events"].map(|line| &observer[line]);
        lines.into_iter().chain(observer["lanes"].as_array().into_iter().flatten())
    });
    // What tells of a gap has no kernel and no ring.
    !observers.is_empty() && { all }.all(|line| line.is_null() || line["difference"] == 0)
}

/// Has a connection refused; returns the port.
pub(crate) fn refuse() -> u16 {
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
pub(crate) fn line_about(lines: &mut BufReader<ChildStdout>, port: u16) -> serde_json::Value {
    loop {
        let mut line = String::new();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "it ended");
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        if event["network"]["peer"]["port"] == port {
            return event;
        }
    }
}

/// Waits until it holds: longer than the longest delay between two tries.
#[track_caller]
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A configuration with this long to drain.
pub(crate) fn draining(drain_deadline: &str) -> tempfile::NamedTempFile {
    let config = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(config.path(), format!("limits: {{drain_deadline: {drain_deadline}}}\n"))
        .unwrap();
    config
}
