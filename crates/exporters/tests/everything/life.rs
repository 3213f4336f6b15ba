//! One life of an agent: a store, emitters and observers, from the start to an
//! end that may be unclean.
#![allow(unreachable_pub)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::Connection;
use vahti_exporters::store::{Store, StoreConfig};
use vahti_runtime::config::{Config, DropPolicy, FailurePolicy};
use vahti_runtime::delivery::{EmitterConfig, EmitterHandle};
use vahti_runtime::durable::DurableLog;
use vahti_runtime::emitter::EventEmitter;
use vahti_runtime::ids::BootId;
use vahti_runtime::observer::ObserverRuntime;
use vahti_runtime::shutdown::{ShutdownTrigger, channel};
use vahti_runtime::supervisor::{Report, Supervisor};
use vahti_runtime::testing::{FakeFeed, FakeSource};
use vahti_runtime::units::{ByteSize, HumanDuration};

use crate::faults::{Faulty, Fickle, Obedient, Random, TOO_LONG, Trouble};
use crate::oracle::{Oracle, critical_ones_come_first, lanes_agree, nothing_is_left};

const NAMES: [&str; 2] = ["one", "two"];

/// What does not change from life to life.
pub struct Setting<'a> {
    pub folder: &'a Path,
    /// On a disk of its own, which can be filled.
    pub is_small: bool,
    pub max_bytes: u64,
    pub max_age: Duration,
    pub durable: Fickle,
}

pub struct Life<'a> {
    setting: &'a Setting<'a>,
    store: Store,
    observers: Vec<Arc<ObserverRuntime>>,
    feeds: Vec<FakeFeed>,
    sources: Vec<Arc<Trouble>>,
    plain: Fickle,
    commits: EmitterHandle,
    handle: EmitterHandle,
    queue_size: u64,
    criticals: [u64; 2],
    /// What the ledger that is committed beside events does: panics once.
    panics: Arc<AtomicBool>,
    /// It hangs as long as this, in milliseconds.
    hangs_ms: Arc<AtomicU64>,
    routed: u64,
    /// The file of the life before could not be read.
    pub began_anew: bool,
    trigger: ShutdownTrigger,
    run: tokio::task::JoinHandle<Report>,
    deadline: Duration,
}

fn limits(emit_timeout: Duration, max_retries: u32) -> EmitterConfig {
    EmitterConfig { max_retries, emit_timeout, ..EmitterConfig::default() }
}

fn start(fickle: &Fickle) -> impl Fn() -> Box<dyn EventEmitter> + Send + 'static {
    let fickle = fickle.clone();
    move || Box::new(fickle.clone())
}

fn config(name: &str, queue_size: u64, random: &mut Random) -> Config {
    let mut config = Config::for_observer(name);
    config.failure.policy = FailurePolicy::Restart;
    config.failure.retry.max_attempts = 1_000;
    config.failure.retry.initial_delay = HumanDuration(Duration::from_millis(1));
    config.failure.retry.max_delay = HumanDuration(Duration::from_millis(5));
    config.health.hang_timeout = HumanDuration(Duration::from_millis(100));
    let policies = [DropPolicy::Oldest, DropPolicy::Newest, DropPolicy::Random];
    config.backpressure.drop_policy = random.pick(&policies);
    config.backpressure.queue_size = queue_size as usize;
    config.sampling.enabled = random.percent(30);
    config.sampling.default_rate = 0.5;
    config
}

fn open(setting: &Setting<'_>) -> Store {
    let config = StoreConfig {
        max_bytes: ByteSize(setting.max_bytes),
        max_age: HumanDuration(setting.max_age),
        ..StoreConfig::at(setting.folder)
    };
    // Threads of the life before may still hold it: those that were left behind.
    Store::open(config, vec!["durable".to_owned()], Duration::from_secs(20)).unwrap()
}

impl<'a> Life<'a> {
    pub async fn begin(setting: &'a Setting<'a>, number: u8, random: &mut Random) -> Self {
        let store = open(setting);
        let (began_anew, routed) = (store.set_aside() > 0, store.own_line().routed.envelopes);
        let (panics, hangs_ms) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (panics_now, hangs_now) = (Arc::clone(&panics), Arc::clone(&hangs_ms));
        store.set_ledger(move || {
            std::thread::sleep(Duration::from_millis(hangs_now.swap(0, Ordering::SeqCst)));
            assert!(!panics_now.swap(false, Ordering::SeqCst), "the store panics on purpose");
            b"{}".to_vec()
        });
        let patience = random.pick(&[TOO_LONG / 2, Duration::from_secs(30)]);
        let from = store.clone();
        let commits = move || Box::new(from.emitter()) as Box<dyn EventEmitter>;
        let commits = EmitterHandle::start(commits, limits(patience, 1_000)).unwrap();
        let log: Arc<dyn DurableLog> = Arc::new(store.clone());
        let short = TOO_LONG / 2;
        let handle =
            EmitterHandle::start_durable(start(&setting.durable), limits(short, 0), log).unwrap();
        let plain = Fickle {
            name: "plain",
            critical: random.percent(50),
            trouble: Trouble::new(random.next()),
            notes: Arc::default(),
        };
        let served = EmitterHandle::start(start(&plain), limits(short, 2)).unwrap();
        let queue_size = 20 + random.below(600);
        let deadline = random.pick(&[TOO_LONG / 4, Duration::from_secs(20)]);
        let (trigger, shutdown) = channel();
        let mut supervisor =
            Supervisor::new(vec![commits.clone(), handle.clone(), served.clone()], deadline);
        let (mut observers, mut feeds, mut sources) = (Vec::new(), Vec::new(), Vec::new());
        for name in &NAMES[..1 + random.below(2) as usize] {
            let (inner, feed) = FakeSource::new();
            let trouble = Trouble::new(random.next());
            let observer = ObserverRuntime::builder(move || Obedient(name))
                .config(config(name, queue_size, random))
                .boot_id(BootId([number; 16]))
                .source(Faulty { inner, trouble: Arc::clone(&trouble) })
                .shared_emitter(&commits)
                .shared_emitter(&served)
                .shared_emitter(&handle)
                .drain_deadline(deadline)
                .build()
                .unwrap();
            supervisor = supervisor.observer(Arc::clone(&observer));
            observers.push(observer);
            feeds.push(feed);
            sources.push(trouble);
        }
        let run = tokio::spawn(supervisor.run(shutdown));
        Life {
            setting,
            store,
            observers,
            feeds,
            sources,
            plain,
            commits,
            handle,
            queue_size,
            criticals: [0; 2],
            panics,
            hangs_ms,
            routed,
            began_anew,
            trigger,
            run,
            deadline,
        }
    }

    /// How many were committed since the accounts began.
    pub fn routed(&self) -> u64 {
        self.routed
    }

    /// Feeds a handful of records, as chance has it.
    fn feed(&mut self, fed: &mut BTreeSet<String>, next: &mut u64, random: &mut Random) {
        for _ in 0..random.below(60) {
            *next += 1;
            let (number, which) = (*next, random.below(self.feeds.len() as u64) as usize);
            let record = match random.below(1_000) {
                0..2 => "panic".to_owned(),
                2..4 => "fatal".to_owned(),
                4 => "hang".to_owned(),
                5..30 => "bad".to_owned(),
                30..60 => "none".to_owned(),
                60..300 => format!("storm-{}", number % 3),
                300..350 => format!("both-{which}-{number}"),
                350..450 => format!("c-{which}-{number}"),
                _ => format!("n-{which}-{number}"),
            };
            if let Some(place) = record.strip_prefix("both-") {
                fed.extend([format!("n-{place}"), format!("c-{place}")]);
            } else {
                fed.insert(record.clone());
            }
            self.criticals[which] += u64::from(record.starts_with(['c', 'b']));
            self.feeds[which].push(record.as_bytes());
        }
    }

    /// Some of it goes wrong, for a while.
    pub async fn suffer(
        &mut self,
        oracle: &mut Oracle,
        fed: &mut BTreeSet<String>,
        next: &mut u64,
        random: &mut Random,
    ) {
        let mut held = Vec::new();
        for _ in 0..1 + random.below(3) {
            held.extend(self.break_something(oracle, random));
        }
        for _ in 0..2 + random.below(6) {
            self.feed(fed, next, random);
            tokio::time::sleep(Duration::from_millis(random.below(60))).await;
            self.check_lines();
            if random.percent(50) {
                oracle.look(self.setting.folder, fed);
            }
            self.store.tick();
        }
        drop(held);
        self.heal();
    }

    /// What lasts until it is dropped comes back.
    fn break_something(&self, oracle: &mut Oracle, random: &mut Random) -> Option<Broken> {
        match random.below(12) {
            0..3 => self.setting.durable.trouble.set(random.pick(&[10, 50, 100])),
            3..5 => self.plain.trouble.set(random.pick(&[10, 50, 100])),
            5..7 => self.sources.iter().for_each(|source| source.set(random.pick(&[10, 60]))),
            7 => self.panics.store(true, Ordering::SeqCst),
            8 => self.hangs_ms.store(TOO_LONG.as_millis() as u64, Ordering::SeqCst),
            9 => return Broken::lock(self.setting.folder, random.pick(&["IMMEDIATE", "DEFERRED"])),
            10 if self.setting.is_small => return Some(Broken::fill(self.setting.folder, random)),
            11 if random.percent(25) => {
                oracle.spoilt = true;
                spoil_a_page(self.setting.folder, random);
            }
            _ => {}
        }
        None
    }

    pub fn heal(&self) {
        self.setting.durable.trouble.set(0);
        self.plain.trouble.set(0);
        self.sources.iter().for_each(|source| source.set(0));
        self.panics.store(false, Ordering::SeqCst);
    }

    /// Lines that are read under one lock add up at any moment.
    fn check_lines(&mut self) {
        let lanes = self.observers.iter().flat_map(|observer| observer.ledger().lanes);
        for line in lanes.chain([self.store.own_line(), self.store.line("durable")]) {
            assert_eq!(line.difference, 0, "{line:#?}");
        }
        let routed = self.store.own_line().routed.envelopes;
        assert!(self.routed <= routed, "what was committed stays: {} {routed}", self.routed);
        self.routed = routed;
    }

    /// All is well: whatever waits gets through by itself.
    pub async fn recover(&mut self) {
        self.heal();
        let begun = std::time::Instant::now();
        // It has ended where all sources panicked: what is owed then is kept.
        while !self.run.is_finished() {
            let lanes = self.commits.lane_lines();
            let waiting: u64 =
                lanes.iter().map(|l| l.queued.envelopes + l.in_flight.envelopes).sum();
            let owed = self.handle.lane_lines()[0].clone();
            let unread: usize = self.feeds.iter().map(FakeFeed::unread).sum();
            let is_down = self.observers.iter().any(|observer| !observer.is_healthy());
            if waiting == 0
                && owed.stored.envelopes + owed.in_flight.envelopes == 0
                && (unread == 0 || is_down)
            {
                return;
            }
            let states = (self.commits.state(), self.handle.state());
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "it did not recover: {waiting} wait, {unread} unread, {states:?} {owed:#?}"
            );
            self.store.tick();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends it, with `Store::end` or as a kill would; checks all accounts.
    pub async fn end(mut self, oracle: &mut Oracle, fed: &BTreeSet<String>, clean: bool) -> u64 {
        oracle.look(self.setting.folder, fed);
        self.panics.store(false, Ordering::SeqCst);
        self.trigger.begin();
        let report = (&mut self.run).await.unwrap();
        // A source that panicked is never used again, by any policy.
        let is_ours = |why: String| why.contains("the source panics on purpose");
        assert!(report.failed.iter().all(|e| is_ours(e.to_string())), "{report:?}");
        assert!(!report.failed_fast, "{report:?}");
        assert!(self.store.set_aside() == 0 || oracle.spoilt, "nobody had spoilt the file");
        self.check_lines();
        let ledgers: Vec<_> = self.observers.iter().map(|o| o.ledger()).collect();
        ledgers.iter().for_each(nothing_is_left);
        let to = |name: &'static str| {
            let lanes = ledgers.iter().flat_map(|ledger| &ledger.lanes);
            lanes.filter(move |lane| lane.emitter == name).collect::<Vec<_>>()
        };
        for name in ["store", "plain"] {
            for (lane, criticals) in to(name).iter().zip(self.criticals) {
                critical_ones_come_first(lane, criticals, self.queue_size);
            }
        }
        // Whoever was left behind in its call comes back.
        if !report.stuck_emitters.is_empty() || self.deadline < TOO_LONG {
            tokio::time::sleep(2 * TOO_LONG).await;
        }
        if !self.plain.critical {
            // What a critical emitter hung at is sent again, and arrives twice.
            lanes_agree(&to("plain"), self.plain.notes().arrived);
        }
        oracle.check_notes(&self.plain.notes(), fed);
        oracle.check_notes(&self.setting.durable.notes(), fed);
        if clean {
            self.store.end();
        }
        oracle.look(self.setting.folder, fed);
        self.store.own_line().routed.envelopes
    }
}

/// What is broken until this is dropped.
enum Broken {
    Locked(#[allow(dead_code, reason = "held, not used")] Connection),
    Full(std::path::PathBuf),
}

impl Broken {
    /// Another one writes, or reads and does not end.
    fn lock(folder: &Path, how: &str) -> Option<Self> {
        let connection = Connection::open(folder.join("events.db")).ok()?;
        let sql = format!("BEGIN {how}; SELECT count(*) FROM events;");
        connection.execute_batch(&sql).ok()?;
        Some(Broken::Locked(connection))
    }

    fn fill(folder: &Path, random: &mut Random) -> Self {
        use std::io::Write;
        let path = folder.join(format!("filler-{}", random.next()));
        let mut file = std::fs::File::create(&path).unwrap();
        let mut size = 64 << 10;
        while size > 0 {
            if file.write_all(&vec![0; size]).is_err() {
                size /= 2;
            }
        }
        Broken::Full(path)
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        if let Broken::Full(path) = self {
            std::fs::remove_file(path).unwrap();
        }
    }
}

/// By another process: whoever closes a file lets go of all locks that his own
/// process has on it, SQLite's included.
fn spoil_a_page(folder: &Path, random: &mut Random) {
    let file = folder.join("events.db");
    let pages = std::fs::metadata(&file).map_or(0, |meta| meta.len() / 4_096);
    let page = random.below(pages);
    let status = Command::new("dd")
        .args(["if=/dev/urandom", "bs=4096", "count=1", "conv=notrunc", "status=none"])
        .arg(format!("seek={page}"))
        .arg(format!("of={}", file.display()))
        .status();
    assert!(status.unwrap().success());
}

/// For what the emitters note.
pub fn durable(seed: u64) -> Fickle {
    let notes = Arc::new(Mutex::default());
    Fickle { name: "durable", critical: false, trouble: Trouble::new(seed), notes }
}
