//! What the service manager is told: ready, alive, stopping, and how things are.
//!
//! The protocol is systemd's sd_notify(3): datagrams of lines to the socket that
//! `NOTIFY_SOCKET` names, by path or, after `@`, in the abstract namespace.
//! Without that variable nothing here runs. The watchdog is fed from the thread
//! that supervises, so a thread that hangs there feeds nothing; without a
//! watchdog nothing wakes up.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vahti_runtime::event::escape_text;
use vahti_runtime::shutdown::Shutdown;

use crate::run::Running;

/// The manager may be busy, but nothing here may wait for it for long.
const PATIENCE: Duration = Duration::from_secs(1);

/// Beside the time to drain, for what comes before and after it.
const MARGIN: Duration = Duration::from_secs(5);

/// Longer ones are cut: it is one line in `systemctl status`.
const MAX_STATUS: usize = 400;

/// How the program does.
pub(crate) struct Status {
    /// In one line, for people.
    pub(crate) text: String,
    /// What has work, makes no progress, and could not be replaced.
    pub(crate) stuck: Option<String>,
}

/// The service manager that started this process.
#[derive(Debug)]
pub(crate) struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
}

impl Manager {
    /// The one that the environment names, if it does.
    pub(crate) fn from_environment() -> Option<Self> {
        let name = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())?;
        let variable = |name| std::env::var(name).ok();
        let watchdog = watchdog(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"));
        address(&name)
            .and_then(|address| Manager::at(address, watchdog))
            .inspect_err(|error| tracing::warn!(%error, "the service manager can't be told"))
            .ok()
    }

    fn at(address: SocketAddr, watchdog: Option<Duration>) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Manager { socket, address, watchdog })
    }

    fn tell(&self, state: &str) {
        if let Err(error) = self.socket.send_to_addr(state.as_bytes(), &self.address) {
            tracing::warn!(%error, "the service manager could not be told");
        }
    }

    /// Says that all is up, feeds the watchdog while nothing is stuck, and says
    /// when the shutdown begins; feeds it until it is dropped. To be called once
    /// every stage is up or known to be down.
    pub(crate) async fn attend(
        self,
        status: impl Fn() -> Status,
        shutdown: Shutdown,
        drain_deadline: Duration,
        reloading: &Reloading,
    ) {
        let mut told = status_line(&status().text);
        if !shutdown.has_begun() {
            self.tell(&format!("READY=1\n{told}"));
            reloading.0.store(true, Ordering::Release);
        }
        let mut stuck = None;
        while !self.begins_within_a_beat(&shutdown).await {
            let now = status();
            self.feed(now.stuck, &mut stuck);
            let line = status_line(&now.text);
            if line != told {
                self.tell(&line);
                told = line;
            }
        }
        let more = (drain_deadline + MARGIN).as_micros();
        self.tell(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={more}\nSTATUS=draining"));
        while let Some(beat) = self.beat() {
            tokio::time::sleep(beat).await;
            self.feed(status().stuck, &mut stuck);
        }
    }

    /// Waits for a beat, or for ever without a watchdog; whether the shutdown
    /// began meanwhile.
    async fn begins_within_a_beat(&self, shutdown: &Shutdown) -> bool {
        match self.beat() {
            Some(beat) => tokio::time::timeout(beat, shutdown.begun()).await.is_ok(),
            None => {
                shutdown.begun().await;
                true
            }
        }
    }

    /// Half of the time after which the manager takes us for dead.
    fn beat(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    fn feed(&self, stuck: Option<String>, before: &mut Option<String>) {
        match &stuck {
            None => self.tell("WATCHDOG=1"),
            Some(what) if stuck != *before => {
                tracing::error!("{what} is stuck: the watchdog is not fed any more");
            }
            Some(_) => {}
        }
        *before = stuck;
    }
}

/// Whether the manager was told that all is up: only then is it told of reloads.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reloading(Arc<AtomicBool>);

/// A reload that the manager knows of; it is over when this is dropped.
pub(crate) struct Reload<'a> {
    manager: Option<Manager>,
    running: &'a Running,
}

impl Reloading {
    /// One begins now.
    pub(crate) fn begins<'a>(&self, running: &'a Running) -> Reload<'a> {
        let is_up = self.0.load(Ordering::Acquire);
        let manager = is_up.then(Manager::from_environment).flatten();
        if let Some(manager) = &manager {
            // By the clock that the manager compares with.
            let now = monotonic().as_micros();
            manager.tell(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
        }
        Reload { manager, running }
    }
}

impl Drop for Reload<'_> {
    fn drop(&mut self) {
        if let Some(manager) = &self.manager {
            manager.tell(&format!("READY=1\n{}", status_line(&self.running.status().text)));
        }
    }
}

fn monotonic() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is writable; the clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn status_line(text: &str) -> String {
    // Reasons come from anywhere; a second line would be another assignment.
    let text: String = escape_text(text).chars().take(MAX_STATUS).collect();
    format!("STATUS={text}")
}

fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "NOTIFY_SOCKET is neither a path nor an abstract name",
        )),
    }
}

/// The time that the manager gives this process to say that it is alive.
fn watchdog(usec: Option<String>, pid: Option<String>) -> Option<Duration> {
    let is_ours = pid.is_none_or(|pid| pid.parse() == Ok(std::process::id()));
    let usec: u64 = usec?.parse().ok()?;
    (is_ours && usec > 0).then(|| Duration::from_micros(usec))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use vahti_runtime::shutdown::channel;

    use super::*;

    #[test]
    fn the_watchdog_is_ours_only_if_it_names_this_process() {
        let usec = || Some("400000".to_owned());
        let limit = Some(Duration::from_millis(400));
        assert_eq!(watchdog(usec(), None), limit);
        assert_eq!(watchdog(usec(), Some(std::process::id().to_string())), limit);
        assert_eq!(watchdog(usec(), Some("1".to_owned())), None);
        for none in [None, Some("0".to_owned()), Some("soon".to_owned())] {
            assert_eq!(watchdog(none, None), None);
        }
    }

    #[test]
    fn a_status_is_one_line_of_bounded_length() {
        let line = status_line(&format!("a\nWATCHDOG=1{}", "x".repeat(1_000)));
        assert!(!line.contains('\n') && line.starts_with("STATUS=a"), "{line}");
        assert_eq!(line.len(), "STATUS=".len() + MAX_STATUS);
    }

    #[test]
    fn only_paths_and_abstract_names_are_taken() {
        assert!(address(OsStr::new("@vahti")).unwrap().as_abstract_name().is_some());
        assert!(address(OsStr::new("/run/x")).unwrap().as_pathname().is_some());
        assert!(address(OsStr::new("vsock:2:1")).is_err());
    }

    #[tokio::test]
    async fn the_watchdog_is_fed_only_while_nothing_is_stuck() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let told = || {
            let mut all = Vec::new();
            let mut line = [0; 1_024];
            while let Ok(len) = manager.recv(&mut line) {
                all.push(String::from_utf8_lossy(&line[..len]).into_owned());
            }
            all
        };
        // No more pings between two looks than a socket holds: ten.
        let watchdog = Some(Duration::from_millis(80));
        let ours = Manager::at(SocketAddr::from_pathname(&path).unwrap(), watchdog).unwrap();
        let stuck = std::sync::Arc::new(std::sync::Mutex::new(None::<String>));
        let now = std::sync::Arc::clone(&stuck);
        let status = move || Status { text: "fine".to_owned(), stuck: now.lock().unwrap().clone() };
        let (trigger, shutdown) = channel();
        let reloading = Reloading::default();
        let attends = tokio::spawn(async move {
            ours.attend(status, shutdown, Duration::from_secs(5), &reloading).await;
        });
        let wait = || tokio::time::sleep(Duration::from_millis(200));
        wait().await;
        let first = told();
        assert_eq!(first[0], "READY=1\nSTATUS=fine");
        assert!(first[1..].len() >= 2 && first[1..].iter().all(|l| l == "WATCHDOG=1"), "{first:?}");
        *stuck.lock().unwrap() = Some("emitter x".to_owned());
        wait().await;
        told();
        wait().await;
        assert_eq!(told(), [""; 0], "it starves");
        *stuck.lock().unwrap() = None;
        wait().await;
        assert!(told().len() >= 2, "and is fed again");
        trigger.begin();
        wait().await;
        let last = told();
        let stopping = "STOPPING=1\nEXTEND_TIMEOUT_USEC=10000000\nSTATUS=draining";
        assert!(last.iter().any(|line| line == stopping), "{last:?}");
        assert_eq!(last.last().map(String::as_str), Some("WATCHDOG=1"), "while it drains as well");
        attends.abort();
    }
}
