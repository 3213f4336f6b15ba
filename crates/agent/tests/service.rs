//! The agent below a service manager: what it tells on `NOTIFY_SOCKET`, on this
//! machine's kernel. Needs the rights to load programs; says so where they are
//! missing.

// Helpers outside test functions fail as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vahti_runtime::testing::not_run;

const BINARY: &str = env!("CARGO_BIN_EXE_vahti");

struct Service {
    child: Child,
    manager: UnixDatagram,
    /// What it told first.
    ready: String,
    _folder: tempfile::TempDir,
}

impl Service {
    /// Starts one and waits until it is ready; `None`, having said why, where
    /// the rights are missing. Nothing else may be told before.
    fn start(arguments: &[&str], is_abstract: bool, watchdog: bool) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let (manager, name) = if is_abstract {
            let name = format!("vahti-test-{}", std::process::id());
            let address = SocketAddr::from_abstract_name(&name).unwrap();
            (UnixDatagram::bind_addr(&address).unwrap(), OsString::from(format!("@{name}")))
        } else {
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string())
        };
        manager.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut command = Command::new(BINARY);
        command.args(["run", "--observers", "network", "--socket"]).arg(folder.path().join("s"));
        if watchdog {
            command.env("WATCHDOG_USEC", "400000");
        }
        let child = command
            .args(arguments)
            .env("NOTIFY_SOCKET", name)
            .env("VAHTI_STORE", folder.path().join("store"))
            .env("VAHTI_HTTP", "none")
            .env_remove("VAHTI_CONFIG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut service = Service { child, manager, ready: String::new(), _folder: folder };
        let begun = Instant::now();
        let first = loop {
            if let Some(told) = service.told() {
                break told;
            }
            if let Some(status) = service.child.try_wait().unwrap() {
                let mut told = String::new();
                service.child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
                assert_eq!(status.code(), Some(77), "{told}");
                not_run(format_args!("{told}"));
                return None;
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "it is not ready");
        };
        assert!(first.starts_with("READY=1\nSTATUS=watching: network; emitters: "), "{first}");
        service.ready = first;
        Some(service)
    }

    /// The next thing that it tells, within a moment.
    fn told(&self) -> Option<String> {
        let mut bytes = [0; 4_096];
        let len = self.manager.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..len]).into_owned())
    }

    /// All that it tells in this time.
    fn told_within(&self, time: Duration) -> Vec<String> {
        let begun = Instant::now();
        let mut all = Vec::new();
        while begun.elapsed() < time {
            all.extend(self.told());
        }
        all
    }

    fn pings_within(&self, time: Duration) -> usize {
        self.told_within(time).iter().filter(|told| *told == "WATCHDOG=1").count()
    }

    fn terminate(&mut self) -> Vec<String> {
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: signals our own child, which was not waited for yet.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
        let told = self.told_within(Duration::from_millis(500));
        let begun = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(10), "it goes on");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        assert!(!log.contains("does not add up"), "{log}");
        told
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Has a connection refused; returns the port.
fn refuse() -> u16 {
    for _ in 0..20 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        if TcpStream::connect(("127.0.0.1", port)).is_err() {
            return port;
        }
    }
    panic!("no connection is refused");
}

#[test]
fn what_happens_once_it_is_ready_is_seen_and_stopping_is_told() {
    let Some(mut service) = Service::start(&["--emit", "stdout"], true, false) else { return };
    let mut lines = BufReader::new(service.child.stdout.take().unwrap());
    let port = refuse();
    let mut line = String::new();
    while !line.contains(&format!("\"port\":{port}")) {
        line.clear();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "it ended");
    }
    assert_eq!(service.told_within(Duration::from_secs(1)), [""; 0], "nobody asked for pings");
    let told = service.terminate();
    assert_eq!(told, ["STOPPING=1\nEXTEND_TIMEOUT_USEC=10000000\nSTATUS=draining"]);
}

#[test]
fn an_emitter_whose_folder_is_missing_is_named_when_the_rest_is_ready() {
    let emit = ["--emit", "none", "--emit", "file=/nonexistent/folder/x"];
    let Some(mut service) = Service::start(&emit, false, false) else { return };
    let told = "emitters: store, none, file; failing: file (cannot open /nonexistent/folder/x: ";
    assert!(service.ready.contains(told), "{}", service.ready);
    service.terminate();
}

#[test]
fn the_watchdog_is_fed_though_nobody_reads_and_not_if_the_supervisor_hangs() {
    let Some(mut service) = Service::start(&["--emit", "stdout"], false, true) else { return };
    assert!(service.pings_within(Duration::from_secs(1)) >= 3);
    // Each to a port of its own, so that nothing is folded: more than the pipe
    // holds. Whoever should read it is no reason to start anew.
    for _ in 0..300 {
        refuse();
    }
    assert!(service.pings_within(Duration::from_secs(1)) >= 3);
    let supervisor = i32::try_from(service.child.id()).unwrap();
    if !ptrace(libc::PTRACE_SEIZE, supervisor) {
        not_run("no thread may be stopped with ptrace(2)");
        return;
    }
    assert!(ptrace(libc::PTRACE_INTERRUPT, supervisor));
    let mut status = 0;
    // SAFETY: waits for our own child's main thread, which is being stopped.
    let stopped = unsafe { libc::waitpid(supervisor, &raw mut status, libc::__WALL) };
    assert_eq!(stopped, supervisor);
    service.told_within(Duration::from_millis(200));
    assert_eq!(service.pings_within(Duration::from_secs(1)), 0, "it hangs");
    assert!(ptrace(libc::PTRACE_DETACH, supervisor));
    assert!(service.pings_within(Duration::from_secs(1)) >= 3, "it goes on");
    // Nobody reads: it drains until its deadline, and feeds the watchdog.
    let told = service.terminate();
    assert!(told.iter().any(|told| told.starts_with("STOPPING=1\n")), "{told:?}");
    assert!(told.iter().any(|told| told == "WATCHDOG=1"), "{told:?}");
}

fn ptrace(request: libc::c_uint, thread: i32) -> bool {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: these requests read and write no memory of ours.
    unsafe { libc::ptrace(request, thread, none, none) == 0 }
}
