//! The built agent as it runs, and what it printed.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use vahti_runtime::testing::not_run;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_vahti");

/// How long anything may take that must come: far beyond what it needs, as
/// the machine may be busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running agent. Killed when dropped.
pub(crate) struct Agent {
    child: Child,
    folder: tempfile::TempDir,
    printed: Arc<Mutex<Printed>>,
    readers: Vec<JoinHandle<()>>,
}

/// What an agent has printed so far.
#[derive(Default)]
struct Printed {
    /// Byte by byte.
    raw: Vec<u8>,
    /// Its lines, where they are JSON.
    events: Vec<Value>,
    log: String,
}

/// What an agent had printed when it ended.
pub(crate) struct Told {
    /// Byte by byte.
    pub(crate) raw: Vec<u8>,
    /// Line by line, of JSON.
    pub(crate) events: Vec<Value>,
}

/// How an agent is started.
#[derive(Default)]
pub(crate) struct Start<'a> {
    /// Its configuration file's text.
    pub(crate) config: &'a str,
    /// Further arguments of `vahti run`.
    pub(crate) arguments: &'a [&'a str],
    /// Text for people instead of JSON.
    pub(crate) text: bool,
    /// Nobody reads what it prints.
    pub(crate) unread: bool,
}

impl Agent {
    /// Starts one with everything on that prints JSON.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with(&Start::default())
    }

    /// Starts one and waits until it watches. `None`, having said why, where
    /// it can't.
    pub(crate) fn start_with(start: &Start<'_>) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("vahti.yaml");
        std::fs::write(&config, start.config).unwrap();
        let child = Command::new(BINARY)
            .args(["run", "--format", if start.text { "text" } else { "json" }])
            .arg("--socket")
            .arg(folder.path().join("s"))
            .arg("--config")
            .arg(&config)
            .args(start.arguments)
            .env("VAHTI_STORE", folder.path().join("store"))
            .env("VAHTI_HTTP", "none")
            .env_remove("VAHTI_OBSERVERS")
            .env_remove("VAHTI_EMIT")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut agent = Agent { child, folder, printed: Arc::default(), readers: Vec::new() };
        agent.read(start);
        agent.watches().then_some(agent)
    }

    fn read(&mut self, start: &Start<'_>) {
        let mut stderr = self.child.stderr.take().unwrap();
        let printed = Arc::clone(&self.printed);
        self.readers.push(std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = stderr.read(&mut bytes) {
                printed.lock().unwrap().log.push_str(&String::from_utf8_lossy(&bytes[..n]));
            }
        }));
        if start.unread {
            return;
        }
        let mut stdout = BufReader::new(self.child.stdout.take().unwrap());
        let printed = Arc::clone(&self.printed);
        let is_json = !start.text;
        self.readers.push(std::thread::spawn(move || {
            let mut line = Vec::new();
            while let Ok(1..) = stdout.read_until(b'\n', &mut line) {
                let mut printed = printed.lock().unwrap();
                if is_json {
                    printed.events.push(serde_json::from_slice(&line).unwrap());
                }
                printed.raw.append(&mut line);
            }
        }));
    }

    /// Waits until every observer has read the facts that it proves itself
    /// with: from then on nothing is missed.
    fn watches(&mut self) -> bool {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.readers.drain(..).for_each(|reader| reader.join().unwrap());
                let log = self.printed().log.clone();
                let cannot = log.contains("no kernel BTF") || status.code() == Some(77);
                assert!(cannot, "{status}: {log}");
                not_run(log.trim_end());
                return false;
            }
            let ledger = self.ledger();
            // What tells of a gap watches nothing.
            let proven = |o: &Value| {
                o["observer"] == "agent"
                    || o["records"]["received"].as_u64() > Some(1) && o["ring"]["in_ring"] == 0
            };
            if ledger["observers"]
                .as_array()
                .is_some_and(|all| !all.is_empty() && all.iter().all(proven))
            {
                return true;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not watch: {ledger}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn printed(&self) -> MutexGuard<'_, Printed> {
        self.printed.lock().unwrap()
    }

    /// What it has told by now of what is wanted.
    pub(crate) fn events(&self, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        self.printed().events.iter().filter(|event| wanted(event)).cloned().collect()
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What is its own.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its control socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    /// What `vahti why` prints about an event, once it is committed.
    pub(crate) fn why(&self, id: &Value) -> String {
        let mut text = String::new();
        let is_there = within(PATIENCE, || {
            let output = Command::new(BINARY)
                .args(["why", id.as_str().unwrap(), "--store"])
                .arg(self.folder.path().join("store"))
                .output()
                .unwrap();
            text = String::from_utf8(output.stdout).unwrap();
            output.status.success()
        });
        assert!(is_there, "{id} is not in the store");
        text
    }

    /// The ledger as `vahti ledger` has it.
    pub(crate) fn ledger(&self) -> Value {
        let socket = self.socket();
        let output =
            Command::new(BINARY).args(["ledger", "--json", "--socket"]).arg(socket).output();
        serde_json::from_slice(&output.unwrap().stdout).unwrap_or_default()
    }

    /// Waits until it has told as many occurrences of these events.
    #[track_caller]
    pub(crate) fn tells(&self, count: u64, wanted: impl Fn(&Value) -> bool) {
        let told = || occurrences(self.events(&wanted).iter());
        if !within(PATIENCE, || told() >= count) {
            let found = self.events(&wanted);
            let (sum, shown) = (occurrences(&found), &found[..found.len().min(5)]);
            let log = self.printed().log.clone();
            panic!("{sum} of {count}, such as {shown:#?}\n{log}{:#}", self.ledger());
        }
    }

    /// Waits for the moment in which nothing moves, and returns the ledger: it
    /// adds up in every line, and says what was printed.
    #[track_caller]
    pub(crate) fn settles(&self) -> Value {
        let mut ledger = Value::Null;
        let settled = within(PATIENCE, || {
            ledger = self.ledger();
            is_still(&ledger)
                && adds_up(&ledger)
                && delivered_to_stdout(&ledger) == occurrences(&self.printed().events)
        });
        let printed = occurrences(&self.printed().events);
        assert!(settled, "printed {printed} occurrences: {ledger:#}");
        ledger
    }

    /// Waits for the moment in which nothing moves and the ledger adds up, for
    /// an agent whose lines are not read as JSON.
    #[track_caller]
    pub(crate) fn is_quiet(&self) {
        let mut ledger = Value::Null;
        let settled = within(PATIENCE, || {
            ledger = self.ledger();
            is_still(&ledger) && adds_up(&ledger)
        });
        assert!(settled, "{ledger:#}");
    }

    /// Has it settle, then stop, and returns all that it told.
    #[track_caller]
    pub(crate) fn ends(self) -> Told {
        self.settles();
        self.stops()
    }

    /// Has it stop, by SIGTERM, and returns all that it told.
    #[track_caller]
    pub(crate) fn stops(mut self) -> Told {
        self.terminate();
        let status = self.ends_by_itself();
        self.readers.drain(..).for_each(|reader| reader.join().unwrap());
        let printed = std::mem::take(&mut *self.printed());
        assert_eq!(status.code(), Some(0), "{}", printed.log);
        // The ledger once more, with all that the drain did.
        assert!(!printed.log.contains("does not add up"), "{}", printed.log);
        Told { raw: printed.raw, events: printed.events }
    }

    fn terminate(&self) {
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: signals our own child, which was not waited for yet.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    }

    #[track_caller]
    fn ends_by_itself(&mut self) -> ExitStatus {
        let mut status = None;
        within(PATIENCE, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.expect("it goes on")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Whether a condition comes true in time.
pub(crate) fn within(limit: Duration, mut is_true: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        if is_true() {
            return true;
        }
        if begun.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Σ count.
pub(crate) fn occurrences<'a>(events: impl IntoIterator<Item = &'a Value>) -> u64 {
    events.into_iter().map(|e| e["count"].as_u64().unwrap()).sum()
}

/// The members of a list.
pub(crate) fn members(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// Whether nothing is on its way.
fn is_still(ledger: &Value) -> bool {
    members(&ledger["observers"]).all(|o| {
        let lanes = || members(&o["lanes"]);
        let nothing = |amount: &Value| amount["occurrences"] == 0;
        o["ring"]["in_ring"] == 0
            && o["records"]["processing"] == 0
            && ["folding", "waiting"].iter().all(|part| nothing(&o["events"][part]))
            && lanes().all(|lane| nothing(&lane["queued"]) && nothing(&lane["in_flight"]))
    })
}

fn differences(observer: &Value) -> Vec<(String, i64)> {
    let lines = ["kernel", "ring", "records", "events"];
    let mut all: Vec<(String, i64)> = lines
        .iter()
        .map(|line| ((*line).to_owned(), observer[line]["difference"].as_i64().unwrap()))
        .collect();
    for lane in members(&observer["lanes"]) {
        let routed = |line: &Value| line["routed"]["occurrences"].as_i64().unwrap();
        let name = lane["emitter"].as_str().unwrap();
        all.push((format!("lane to {name}"), lane["difference"].as_i64().unwrap()));
        all.push((format!("routed to {name}"), routed(lane) - routed(&observer["events"])));
    }
    all
}

/// Whether every line of every observer adds up.
pub(crate) fn adds_up(ledger: &Value) -> bool {
    members(&ledger["observers"]).flat_map(differences).all(|(_, difference)| difference == 0)
}

fn delivered_to_stdout(ledger: &Value) -> u64 {
    members(&ledger["observers"])
        .flat_map(|o| members(&o["lanes"]))
        .filter(|lane| lane["emitter"] == "stdout")
        .map(|lane| lane["delivered"]["occurrences"].as_u64().unwrap())
        .sum()
}
