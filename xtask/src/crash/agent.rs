//! An agent with a store, and the oracle beside it.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::now_ns;

/// Where everything of a run is.
pub(super) struct Place {
    pub(super) folder: PathBuf,
}

impl Place {
    pub(super) fn new(folder: &Path) -> Self {
        Place { folder: folder.to_owned() }
    }

    pub(super) fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    pub(super) fn database(&self) -> PathBuf {
        self.store().join("events.db")
    }

    /// What the durable emitter writes.
    pub(super) fn lines(&self) -> PathBuf {
        self.folder.join("out/events.jsonl")
    }

    /// What the oracle printed, of all its lives.
    pub(super) fn promises(&self) -> PathBuf {
        self.folder.join("oracle.jsonl")
    }

    /// Writes the configuration: a store, and a durable file beside it.
    pub(super) fn configure(&self, max_bytes: &str) -> Result<(), String> {
        fs::create_dir_all(self.folder.join("out")).map_err(|e| e.to_string())?;
        let (store, lines) = (self.store(), self.lines());
        let config = format!(
            "store: {{path: {}, max_bytes: {max_bytes}}}\n\
             emitters:\n  - {{type: file, path: {}, durable: true, max_size: 128MiB, keep: 1000}}\n",
            store.display(),
            lines.display()
        );
        self.configure_as(&config)
    }

    /// Writes this configuration.
    pub(super) fn configure_as(&self, config: &str) -> Result<(), String> {
        fs::write(self.folder.join("vahti.yaml"), config).map_err(|e| e.to_string())
    }

    fn vahti(&self, subcommand: &str) -> Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut command = Command::new(root.join("target/release/vahti"));
        command.arg(subcommand).arg("--socket").arg(self.folder.join("s")).stdin(Stdio::null());
        command
    }

    /// What the agent that runs answers to a request, such as `reload`.
    pub(super) fn ask(&self, request: &str) -> Result<Value, String> {
        let asked = || -> std::io::Result<String> {
            let mut socket = UnixStream::connect(self.folder.join("s"))?;
            socket.set_read_timeout(Some(Duration::from_secs(10)))?;
            writeln!(socket, "{request}")?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = asked().map_err(|e| format!("{request}: {e}"))?;
        serde_json::from_str(&answer).map_err(|e| format!("{request}: {e}: {answer:?}"))
    }

    /// The accounting of the agent that runs.
    pub(super) fn ledger(&self) -> Value {
        let output = self.vahti("ledger").arg("--json").output();
        output.map_or(Value::Null, |o| serde_json::from_slice(&o.stdout).unwrap_or_default())
    }
}

/// A running agent.
pub(super) struct Agent {
    child: Child,
    pub(super) exec_ns: u64,
    exec: Instant,
    /// How long until the store was open: the agent has begun.
    pub(super) opened: Option<Duration>,
    watching: Arc<OnceLock<Duration>>,
    reader: Option<JoinHandle<()>>,
    lock: PathBuf,
}

impl Agent {
    pub(super) fn start(place: &Place) -> Result<Self, String> {
        Self::start_writing_to(place, Stdio::null())
    }

    pub(super) fn start_writing_to(place: &Place, stdout: Stdio) -> Result<Self, String> {
        let (exec, exec_ns) = (Instant::now(), now_ns());
        let mut child = place
            .vahti("run")
            .arg("--config")
            .arg(place.folder.join("vahti.yaml"))
            .env("VAHTI_LOG", "info")
            .env_remove("VAHTI_STORE")
            .env_remove("VAHTI_EMIT")
            .env_remove("VAHTI_OBSERVERS")
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("vahti run: {e}"))?;
        let watching: Arc<OnceLock<Duration>> = Arc::default();
        let stderr = child.stderr.take().ok_or("no log to read")?;
        let mut log = append(&place.folder.join("agents.log"))?;
        let (told, pid) = (Arc::clone(&watching), child.id());
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if line.contains("watching") {
                    told.get_or_init(|| exec.elapsed());
                }
                drop(writeln!(log, "{pid} {line}"));
            }
        });
        let lock = place.store().join("lock");
        Ok(Agent { child, exec_ns, exec, opened: None, watching, reader: Some(reader), lock })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How long until it watched.
    pub(super) fn watching(&self) -> Option<Duration> {
        self.watching.get().copied()
    }

    /// Looks at it until a condition holds, or it has ended: then why.
    pub(super) fn wait_until(
        &mut self,
        limit: Duration,
        mut holds: impl FnMut(&Self) -> bool,
    ) -> Result<Option<ExitStatus>, String> {
        let begun = Instant::now();
        loop {
            if self.opened.is_none() {
                let holder = fs::read_to_string(&self.lock).unwrap_or_default();
                if holder.trim().parse() == Ok(self.pid()) {
                    self.opened = Some(self.exec.elapsed());
                }
            }
            if let Some(status) = self.child.try_wait().map_err(|e| e.to_string())? {
                return Ok(Some(status));
            }
            if holds(self) {
                return Ok(None);
            }
            if begun.elapsed() > limit {
                return Err(format!("the agent {} did not come that far in time", self.pid()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until it watches.
    pub(super) fn watches(&mut self) -> Result<(), String> {
        match self.wait_until(Duration::from_secs(30), |agent| agent.watching().is_some())? {
            None => Ok(()),
            Some(status) => Err(format!("the agent ended with {status}; see agents.log")),
        }
    }

    pub(super) fn since_exec(&self) -> Duration {
        self.exec.elapsed()
    }

    pub(super) fn signal(&self, signal: libc::c_int) {
        let pid = i32::try_from(self.pid()).unwrap_or(i32::MAX);
        // SAFETY: no memory is involved; the pid is our own child's, not reaped yet.
        unsafe { libc::kill(pid, signal) };
    }

    /// Waits for its end.
    pub(super) fn reap(&mut self) -> Result<ExitStatus, String> {
        let status = self.child.wait().map_err(|e| e.to_string())?;
        if let Some(reader) = self.reader.take() {
            reader.join().map_err(|_| "the reader of its log panicked")?;
        }
        Ok(status)
    }

    /// Resident memory, in bytes: now, and at most so far.
    pub(super) fn rss(&self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.unwrap_or_default();
        let field = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next());
            number.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
        };
        (field("VmRSS:"), field("VmHWM:"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The exit code of an agent that lacks the rights to load programs
/// (sysexits.h: EX_NOPERM).
const NO_RIGHTS: i32 = 77;

/// Why an agent can't run here, where it lacks the rights.
pub(super) fn refusal(folder: &Path) -> Result<Option<String>, String> {
    let place = Place::new(folder);
    place.configure("1GiB")?;
    let mut agent = Agent::start(&place)?;
    match agent.wait_until(Duration::from_secs(30), |agent| agent.watching().is_some())? {
        Some(status) if status.code() == Some(NO_RIGHTS) => {
            agent.reap()?;
            let log = fs::read_to_string(folder.join("agents.log")).unwrap_or_default();
            Ok(Some(log.trim().to_owned()))
        }
        Some(status) => Err(format!("the agent ended with {status}; see agents.log")),
        None => Ok(None),
    }
}

/// `vahti ledger --follow`, printing to a file.
pub(super) struct Oracle(Child);

impl Oracle {
    pub(super) fn start(place: &Place) -> Result<Self, String> {
        let promises = append(&place.promises())?;
        let complaints = append(&place.folder.join("oracle.log"))?;
        place
            .vahti("ledger")
            .args(["--follow", "--json", "--store"])
            .arg(place.store())
            .stdout(promises)
            .stderr(complaints)
            .spawn()
            .map(Oracle)
            .map_err(|e| format!("vahti ledger: {e}"))
    }

    /// Whether it still follows.
    pub(super) fn is_there(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Ends it; what it printed stays.
    pub(super) fn rest(mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn append(path: &Path) -> Result<File, String> {
    let file = OpenOptions::new().append(true).create(true).open(path);
    file.map_err(|e| format!("{}: {e}", path.display()))
}
