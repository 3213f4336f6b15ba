//! The agent as a process: started, read, measured from the outside, ended.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// The release binary at work.
pub(crate) struct Agent {
    child: Child,
    pub(crate) started: Instant,
    socket: PathBuf,
    /// Holds its store, if it has one.
    store: Option<PathBuf>,
}

/// Whether the agent keeps what it tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    Nothing,
    /// In a store on the disk that the build is on.
    Store,
}

/// What the kernel says of a process, as differences or levels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    pub(crate) wakeups: u64,
    pub(crate) bpf: Duration,
}

/// What is measured, if it is another one than cargo builds here, such as the
/// static one.
pub(crate) const BINARY: &str = "VAHTI_BENCH_BINARY";

fn binary() -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/vahti");
    std::env::var_os(BINARY).map_or_else(built, PathBuf::from)
}

fn remove(store: Option<&Path>) -> Result<(), String> {
    match store.map(fs::remove_dir_all) {
        Some(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(()),
    }
}

impl Agent {
    /// Starts `vahti run` with JSON lines on this standard output.
    pub(crate) fn start(stdout: Stdio, keep: Keep) -> Result<Self, String> {
        let socket = std::env::temp_dir().join(format!("vahti-bench-{}.sock", std::process::id()));
        let store = (keep == Keep::Store).then(|| {
            let name = format!("bench-store-{}", std::process::id());
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../target").join(name)
        });
        remove(store.as_deref())?;
        let started = Instant::now();
        let child = Command::new(binary())
            .args(["run", "--format", "json", "--socket"])
            .arg(&socket)
            .arg("--store")
            .arg(store.as_deref().unwrap_or(Path::new("none")))
            .env("VAHTI_LOG", "error")
            .stdout(stdout)
            .spawn()
            .map_err(|e| format!("{}: {e}", binary().display()))?;
        Ok(Agent { child, started, socket, store })
    }

    pub(crate) fn lines(&mut self) -> Result<BufReader<ChildStdout>, String> {
        self.child.stdout.take().map(BufReader::new).ok_or_else(|| "no output to read".into())
    }

    /// The folder of its store.
    pub(crate) fn store(&self) -> Option<&Path> {
        self.store.as_deref()
    }

    fn proc(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{file}", self.child.id()))
    }

    /// Resident memory, in bytes.
    pub(crate) fn rss(&self) -> u64 {
        let status = fs::read_to_string(self.proc("status")).unwrap_or_default();
        field(&status, "VmRSS:") * 1024
    }

    /// CPU time, wake-ups (voluntary context switches) of all its threads, and
    /// run time of its eBPF programs, since their starts.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage { cpu: Duration::ZERO, wakeups: 0, bpf: Duration::ZERO };
        for task in entries(&self.proc("task")) {
            let read = |file: &str| fs::read_to_string(task.join(file)).unwrap_or_default();
            let on_cpu = read("schedstat");
            let ns = on_cpu.split_whitespace().next().and_then(|n| n.parse().ok());
            usage.cpu += Duration::from_nanos(ns.unwrap_or(0));
            usage.wakeups += field(&read("status"), "voluntary_ctxt_switches:");
        }
        for info in entries(&self.proc("fdinfo")) {
            let info = fs::read_to_string(info).unwrap_or_default();
            if info.contains("prog_type:") {
                usage.bpf += Duration::from_nanos(field(&info, "run_time_ns:"));
            }
        }
        usage
    }

    /// The ledger, as `vahti ledger --json` prints it.
    pub(crate) fn ledger(&self) -> Result<serde_json::Value, String> {
        let out = Command::new(binary())
            .args(["ledger", "--json", "--socket"])
            .arg(&self.socket)
            .output()
            .map_err(|e| e.to_string())?;
        serde_json::from_slice(&out.stdout)
            .map_err(|e| format!("ledger: {e}: {}", String::from_utf8_lossy(&out.stderr)))
    }

    /// Waits until it answers and its source has read what there is.
    pub(crate) fn ready(&self) -> Result<(), String> {
        for _ in 0..1_000 {
            if let Ok(ledger) = self.ledger()
                && ledger["observers"].as_array().is_some_and(|o| o.len() == 2)
                && ledger["observers"][0]["kernel"]["attempted"].as_u64() > Some(0)
            {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err("the agent was not ready within 10 s".into())
    }

    /// Ends it as an operator would, and waits.
    pub(crate) fn end(mut self) -> Result<(), String> {
        let pid = i32::try_from(self.child.id()).map_err(|e| e.to_string())?;
        // SAFETY: no memory is involved; the pid is our own child's, not reaped yet.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let status = self.child.wait().map_err(|e| e.to_string())?;
        remove(self.store.as_deref())?;
        if status.success() { Ok(()) } else { Err(format!("the agent ended with {status}")) }
    }
}

impl std::ops::Sub for Usage {
    type Output = Usage;

    fn sub(self, before: Usage) -> Usage {
        Usage {
            cpu: self.cpu.saturating_sub(before.cpu),
            wakeups: self.wakeups.saturating_sub(before.wakeups),
            bpf: self.bpf.saturating_sub(before.bpf),
        }
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Reads JSON lines until the end; calls `f` with each and when it came.
pub(crate) fn each_line(
    reader: impl BufRead,
    mut f: impl FnMut(serde_json::Value, Instant),
) -> Result<(), String> {
    for line in reader.lines() {
        let line = line.map_err(|e| e.to_string())?;
        let now = Instant::now();
        f(serde_json::from_str(&line).map_err(|e| format!("{e}: {line}"))?, now);
    }
    Ok(())
}

/// Has the kernel account for the run time of eBPF programs, until dropped.
pub(crate) struct BpfStats {
    before: String,
}

const BPF_STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

impl BpfStats {
    pub(crate) fn on() -> Self {
        let before = fs::read_to_string(BPF_STATS).unwrap_or_else(|_| "0".into());
        if let Err(error) = fs::write(BPF_STATS, "1") {
            println!("  no eBPF run time: {BPF_STATS}: {error}");
        }
        BpfStats { before }
    }
}

impl Drop for BpfStats {
    fn drop(&mut self) {
        if let Err(error) = fs::write(BPF_STATS, self.before.trim()) {
            println!("  {BPF_STATS} could not be put back: {error}");
        }
    }
}
