//! One agent, many emitters, each with a receiver of its own that has a fault.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::agent::{Agent, BINARY, refuse, until};
use crate::cases::{Case, Cases};
use crate::names::{Mood, NameServer};
use crate::receiver::{Receiver, twice};
use crate::trust::Authority;

/// How an emitter is served.
#[derive(Clone, Copy, PartialEq)]
enum Served {
    Once,
    Critical,
    Durable,
}

impl Served {
    const ALL: [(Served, &str, &str); 3] = [
        (Served::Once, "once", ""),
        (Served::Critical, "critical", "critical: true, max_retries: 1000, "),
        (Served::Durable, "durable", "durable: true, "),
    ];
}

struct Emitter {
    name: String,
    served: Served,
    case: Arc<Case>,
    receiver: Receiver,
}

/// How many cases an agent bears: it may have 16 emitters.
const AT_ONCE: usize = 5;

/// All cases at once, in as many agents as that takes.
pub(crate) fn rage(cases: Cases) {
    let Cases { mut all, authority } = cases;
    std::thread::scope(|scope| {
        while !all.is_empty() {
            let some = all.split_off(all.len().saturating_sub(AT_ONCE));
            let storm = Storm::of(some, &authority);
            scope.spawn(|| storm.passes());
        }
    });
}

/// Receivers that take what they are sent, and refuse some of it for good:
/// `refused` says how many, of how many in how many requests.
pub(crate) fn settle(cases: Cases, refused: fn(&str, u64, u64) -> u64) {
    let storm = Storm::of(cases.all, &cases.authority);
    let Some(agent) = storm.begins(Command::new(BINARY)) else { return };
    for _ in 0..5 {
        let port = refuse();
        until("the file waits for others", || storm.beside_has(port));
        all_exact(&agent.ledger());
    }
    let owed: HashSet<String> = storm.beside().into_iter().collect();
    for emitter in &storm.emitters {
        until(&emitter.name, || emitter.receiver.seen.has_all(&owed));
    }
    let ledger = Storm::ends(agent);
    for emitter in &storm.emitters {
        let (name, seen) = (&emitter.name, &emitter.receiver.seen);
        let (taken, books) = (seen.taken(), Books::of(&ledger, name));
        let refused = refused(emitter.case.name, taken.len() as u64, seen.requests());
        assert_eq!(
            (books.delivered, books.rejected),
            (taken.len() as u64 - refused, refused),
            "{name}"
        );
        assert_eq!((books.dropped, books.stored, books.in_flight), (0, 0, 0), "{name}: {books:?}");
        assert_eq!(taken, storm.beside(), "{name}");
    }
}

/// Receivers that come and go all the time, whatever is under way.
pub(crate) fn flicker(cases: Cases) {
    let storm = Storm::of(cases.all, &cases.authority);
    let Some(agent) = storm.begins(Command::new(BINARY)) else { return };
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        let is_well = (begun.elapsed().as_millis() / 400).is_multiple_of(2);
        for Emitter { receiver, case, .. } in &storm.emitters {
            if is_well { receiver.is_well_now() } else { receiver.fails_now(case.fault.clone()) }
        }
        refuse();
        all_exact(&agent.ledger());
        std::thread::sleep(Duration::from_millis(100));
    }
    storm.is_over(&agent);
    let ledger = Storm::ends(agent);
    let beside = storm.beside();
    for emitter in &storm.emitters {
        let (name, taken) = (&emitter.name, emitter.receiver.seen.taken());
        let books = Books::of(&ledger, name);
        let mut known = HashSet::new();
        let first: Vec<String> = taken.into_iter().filter(|id| known.insert(id.clone())).collect();
        assert!(is_part_of(&first, &beside), "{name}: out of order");
        assert_eq!((books.rejected, books.stored, books.in_flight), (0, 0, 0), "{name}: {books:?}");
        // What it took without that being known is dropped by who tries once.
        assert!(books.delivered <= first.len() as u64, "{name}: {books:?}");
        assert_eq!(books.delivered + books.dropped, beside.len() as u64, "{name}: {books:?}");
        if emitter.served != Served::Once {
            assert_eq!((books.dropped, first.len()), (0, beside.len()), "{name}: {books:?}");
        }
    }
}

/// Receivers at a name that is not found out at first.
pub(crate) fn search(cases: Cases, names: &NameServer) {
    let storm = Storm::of(cases.all, &cases.authority);
    let Some(mut agent) = storm.begins(names.vahti(storm.folder.path())) else { return };
    let log = Log::of(&mut agent);
    let begun = Instant::now();
    for mood in [Mood::Silent, Mood::Denies] {
        names.is(mood);
        storm.rages(&agent, &log);
    }
    // Asked for both kinds of addresses, twice where nobody answers.
    let most = begun.elapsed().as_secs_f64() * 10.0 + 2.0;
    let questions = names.questions();
    assert!(questions as f64 <= most * 4.0 * storm.emitters.len() as f64, "{questions} questions");
    assert!(questions > 0, "it has another resolver");
    names.is(Mood::Knows);
    storm.is_over(&agent);
    storm.adds_up(&Storm::ends(agent));
}

/// Some cases, in one agent.
struct Storm {
    emitters: Vec<Emitter>,
    config: String,
    folder: tempfile::TempDir,
}

impl Storm {
    fn of(cases: Vec<Case>, authority: &Authority) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = authority.file(folder.path());
        let beside = folder.path().join("beside");
        let mut config = format!(
            "limits: {{memory: 4GiB, drain_deadline: 5s}}\nemitters:\n\
             - {{type: file, name: beside, path: \"{}\"}}\n",
            beside.display()
        );
        let mut emitters = Vec::new();
        for case in cases.into_iter().map(Arc::new) {
            for (served, how, settings) in Served::ALL {
                let well = case.tls.then(|| authority.server("localhost", false, false));
                let receiver = Receiver::with(case.fault.clone(), well);
                let name = format!("{}-{}-{how}", case.name, case.protocol);
                let (protocol, port) = (case.protocol, receiver.port);
                let timeout = if case.is_silent() { "1s" } else { "10s" };
                let place = if case.tls {
                    format!("\"https://localhost:{port}\", tls: {{ca: \"{}\"}}", ca.display())
                } else {
                    format!("\"http://{}:{port}\"", case.host)
                };
                config += &format!(
                    "- {{type: otlp, name: {name}, {settings}protocol: {protocol}, timeout: {timeout}, \
                     traces: false, endpoint: {place}}}\n"
                );
                emitters.push(Emitter { name, served, case: Arc::clone(&case), receiver });
            }
        }
        Storm { emitters, config, folder }
    }

    fn passes(self) {
        let Some(mut agent) = self.begins(Command::new(BINARY)) else { return };
        let log = Log::of(&mut agent);
        self.rages(&agent, &log);
        self.is_over(&agent);
        self.recovered_at_once();
        self.adds_up(&Storm::ends(agent));
    }

    fn begins(&self, program: Command) -> Option<Agent> {
        let config = self.folder.path().join("vahti.yaml");
        std::fs::write(&config, &self.config).unwrap();
        let arguments = ["--observers", "network", "--config", config.to_str().unwrap()];
        Agent::start_as(program, |command| {
            command.args(arguments);
        })
    }

    /// The ledger that the agent leaves behind.
    fn ends(mut agent: Agent) -> Value {
        agent.signal(libc::SIGTERM);
        assert_eq!(agent.ends_within(Duration::from_secs(40)).0, Some(0));
        let output = Command::new(BINARY)
            .args(["ledger", "--json", "--store"])
            .arg(agent.folder.path().join("store"))
            .env("VAHTI_SOCKET", agent.folder.path().join("nobody"))
            .output()
            .unwrap();
        let ledger = serde_json::from_slice(&output.stdout).unwrap();
        all_exact(&ledger);
        ledger
    }

    /// The receivers have their faults: what is beside them has every event,
    /// nobody goes round in circles, and every line adds up.
    fn rages(&self, agent: &Agent, log: &Log) {
        let (begun, cpu) = (Instant::now(), cpu_seconds(agent.child.id()));
        for _ in 0..4 {
            let port = refuse();
            until("the file waits for others", || self.beside_has(port));
            all_exact(&agent.ledger());
            std::thread::sleep(Duration::from_millis(400));
        }
        agent.adds_up();
        let took = begun.elapsed().as_secs_f64();
        for emitter in &self.emitters {
            let attempts = emitter.receiver.seen.attempts();
            let name = &emitter.name;
            // 100 ms pass between two tries, at least.
            let most = if emitter.case.recovers { took * 10.0 + 2.0 } else { 1.0 };
            assert!(attempts as f64 <= most, "{name}: {attempts} times in {took:.1} s");
            log.tells_of(emitter);
        }
        let cpu = (cpu_seconds(agent.child.id()) - cpu) / took;
        assert!(cpu < 0.5, "{cpu:.2} of a CPU while nothing can be sent");
    }

    /// They are well again: what was owed arrives.
    fn is_over(&self, agent: &Agent) {
        let owed: HashSet<String> = self.beside().into_iter().collect();
        for emitter in &self.emitters {
            emitter.receiver.is_well_now();
        }
        for emitter in self.emitters.iter().filter(|emitter| emitter.case.recovers) {
            let what = format!("{} does not recover", emitter.name);
            if emitter.served == Served::Once {
                // It gets what comes from now on.
                until(&what, || {
                    let seen = &emitter.receiver.seen;
                    refuse();
                    wait_for(|| !seen.is_empty());
                    !seen.is_empty()
                });
            } else {
                until(&what, || emitter.receiver.seen.has_all(&owed));
            }
        }
        for emitter in &self.emitters {
            // Until the agent ends, before which all is tried once more.
            let has_waited = emitter.receiver.seen.taken().is_empty();
            assert_eq!(has_waited, !emitter.case.recovers, "{}", emitter.name);
        }
        all_exact(&agent.ledger());
    }

    /// The first try after a receiver was well arrived.
    fn recovered_at_once(&self) {
        for emitter in self.emitters.iter().filter(|emitter| emitter.case.recovers) {
            let tries = emitter.receiver.seen.until_taken();
            // One may have been under way, before it was well.
            let most = if emitter.case.is_silent() { 4 } else { 2 };
            assert!(tries <= most, "{}: {tries} connections until something arrived", emitter.name);
        }
    }

    /// The books at the end, against what the receivers have.
    fn adds_up(&self, ledger: &Value) {
        let beside = self.beside();
        for emitter in &self.emitters {
            let (name, taken) = (&emitter.name, emitter.receiver.seen.taken());
            let books = Books::of(ledger, name);
            assert_eq!((books.rejected, books.in_flight), (0, 0), "{name}: {books:?}");
            if emitter.served != Served::Once {
                // Who was to wait for minutes is tried before the end, too.
                assert_eq!((books.dropped, books.stored), (0, 0), "{name}: {books:?}");
                assert_eq!(books.delivered, beside.len() as u64, "{name}: {books:?}");
            }
            if emitter.case.is_silent() {
                // It waits for answers so briefly that some may be too late.
                assert!(books.delivered <= taken.len() as u64, "{name}: {books:?}");
                continue;
            }
            assert_eq!(books.delivered, taken.len() as u64, "{name}: {books:?}");
            assert!(twice(&taken).is_empty(), "{name}: some came twice");
            assert!(is_part_of(&taken, &beside), "{name}: out of order");
        }
    }

    fn beside(&self) -> Vec<String> {
        let text = self.text();
        // Not of a line that is being written.
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let event = |line| serde_json::from_str::<Value>(line).unwrap();
        whole.map(|line| event(line)["id"].as_str().unwrap().to_owned()).collect()
    }

    fn beside_has(&self, port: u16) -> bool {
        self.text().contains(&format!("\"peer\":{{\"address\":\"127.0.0.1\",\"port\":{port}}}"))
    }

    /// What the file has.
    fn text(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("beside")).unwrap_or_default()
    }
}

/// What the ledger has of an emitter, in events.
#[derive(Debug)]
struct Books {
    delivered: u64,
    rejected: u64,
    dropped: u64,
    stored: u64,
    in_flight: u64,
}

impl Books {
    fn of(ledger: &Value, emitter: &str) -> Self {
        let lane = lanes(ledger).find(|lane| lane["emitter"] == *emitter).unwrap();
        let count = |part: &str| lane[part]["envelopes"].as_u64().unwrap();
        Books {
            delivered: count("delivered"),
            rejected: count("rejected"),
            dropped: dropped(lane, "envelopes"),
            stored: count("stored"),
            in_flight: count("queued") + count("in_flight"),
        }
    }
}

/// Waits until it holds, for a while.
fn wait_for(holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() && begun.elapsed() < Duration::from_millis(500) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether these are all in there, in that order.
fn is_part_of(some: &[String], all: &[String]) -> bool {
    let mut all = all.iter();
    some.iter().all(|id| all.any(|other| other == id))
}

fn lanes(ledger: &Value) -> impl Iterator<Item = &Value> {
    let observers = ledger["observers"].as_array().into_iter().flatten();
    let lanes = observers.chain([&ledger["store"]]).flat_map(|it| it["lanes"].as_array());
    // The last one of a name is the store's account of what it owes.
    lanes.flatten().collect::<Vec<_>>().into_iter().rev()
}

fn dropped(lane: &Value, unit: &str) -> u64 {
    let parts = lane["dropped"].as_array().into_iter().flatten();
    parts.map(|part| part[unit].as_u64().unwrap()).sum()
}

/// Every lane adds up, in both units, also while things move.
#[track_caller]
fn all_exact(ledger: &Value) {
    for lane in lanes(ledger) {
        for unit in ["occurrences", "envelopes"] {
            let parts = ["delivered", "rejected", "stored", "queued", "in_flight"];
            let sum: u64 = parts.iter().map(|part| lane[*part][unit].as_u64().unwrap()).sum();
            let sum = sum + dropped(lane, unit);
            assert_eq!(lane["routed"][unit].as_u64(), Some(sum), "{lane}");
        }
    }
}

/// What the agent logs.
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn of(agent: &mut Agent) -> Self {
        let stderr = BufReader::new(agent.child.stderr.take().unwrap());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                told.lock().unwrap().push(line);
            }
        });
        Log(lines)
    }

    /// It says why, in the words that are expected, and not in a storm.
    fn tells_of(&self, emitter: &Emitter) {
        let (name, says) = (&emitter.name, emitter.case.says);
        let lines = self.0.lock().unwrap().clone();
        let its = lines.iter().filter(|line| line.contains(&format!("emitter={name} ")));
        let its: Vec<&String> = its.collect();
        assert!(
            its.iter().any(|line| says.split('|').any(|words| line.contains(words))),
            "{name}: no {says:?} in {its:#?}"
        );
        assert!(its.len() == 1, "{name}: {its:#?}");
    }
}

/// The CPU time of a process so far: fields 14 and 15 of its `stat`.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after = stat.rsplit(')').next().unwrap().split_whitespace();
    let ticks: f64 = after.skip(11).take(2).map(|field| field.parse::<f64>().unwrap()).sum();
    // SAFETY: asks for a constant of this system.
    ticks / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
}
