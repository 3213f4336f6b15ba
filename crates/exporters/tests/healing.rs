//! The store fails, panics, hangs or loses its file below a running observer:
//! it is back by itself, nobody else notices, and the ledger tells all of it.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use vahti_exporters::store::{Filter, Reader, Store, StoreConfig};
use vahti_runtime::delivery::{EmitterConfig, EmitterHandle, EmitterState};
use vahti_runtime::durable::DurableLog;
use vahti_runtime::event::{Event, EventKind, Priority, Severity};
use vahti_runtime::ledger::{DropReason, LaneLine};
use vahti_runtime::observer::ObserverRuntime;
use vahti_runtime::processor::{EventProcessor, Output, ProcessError, RawRecord};
use vahti_runtime::shutdown::{ShutdownTrigger, channel};
use vahti_runtime::supervisor::{Report, Supervisor};
use vahti_runtime::testing::{Captured, CapturingEmitter, FakeFeed, FakeSource};

static NORMAL: EventKind = EventKind::custom("test.normal", "test", "normal", Priority::Normal);
static CRITICAL: EventKind =
    EventKind::custom("test.critical", "test", "critical", Priority::Critical);

struct Plain;

impl EventProcessor for Plain {
    fn name(&self) -> &str {
        "plain"
    }

    fn process(&self, record: RawRecord<'_>) -> Result<Output, ProcessError> {
        let kind = if record.bytes == b"critical" { &CRITICAL } else { &NORMAL };
        Ok(Event::new(kind, Severity::Info).into())
    }
}

async fn until(what: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it did not come true within 20 s");
}

/// An observer that emits to a store, which serves a durable emitter, and to
/// one that has nothing to do with it.
struct Stage {
    store: Store,
    observer: Arc<ObserverRuntime>,
    feed: FakeFeed,
    fed: u64,
    commits: EmitterHandle,
    durable: EmitterHandle,
    served: Captured,
    other: Captured,
    trigger: ShutdownTrigger,
    run: tokio::task::JoinHandle<Report>,
}

async fn stage(folder: &Path) -> Stage {
    stage_with(folder, EmitterConfig::default().emit_timeout).await
}

async fn stage_with(folder: &Path, emit_timeout: Duration) -> Stage {
    let config = StoreConfig::at(folder);
    let store = Store::open(config, vec!["durable".to_owned()], Duration::ZERO).unwrap();
    let commits = EmitterConfig { max_retries: 1_000, emit_timeout, ..EmitterConfig::default() };
    let from = store.clone();
    let commits = EmitterHandle::start(move || Box::new(from.emitter()), commits).unwrap();
    let (make, served) = CapturingEmitter::new("durable");
    let log = Arc::new(store.clone());
    let make = move || Box::new(make()) as Box<_>;
    let durable = EmitterHandle::start_durable(make, EmitterConfig::default(), log).unwrap();
    let (make, other) = CapturingEmitter::new("other");
    let others = EmitterHandle::start(move || Box::new(make()), EmitterConfig::default()).unwrap();
    let (source, feed) = FakeSource::new();
    let deadline = Duration::from_secs(10);
    let observer = ObserverRuntime::builder(|| Plain)
        .source(source)
        .shared_emitter(&commits)
        .shared_emitter(&others)
        .drain_deadline(deadline)
        .build()
        .unwrap();
    let (trigger, shutdown) = channel();
    let emitters = vec![commits.clone(), durable.clone(), others];
    let supervisor = Supervisor::new(emitters, deadline).observer(Arc::clone(&observer));
    let run = tokio::spawn(supervisor.run(shutdown));
    observer.started().await;
    Stage { store, observer, feed, fed: 0, commits, durable, served, other, trigger, run }
}

impl Stage {
    fn push(&mut self, records: u64) {
        for n in 0..records {
            self.feed.push(if n % 10 == 0 { b"critical" } else { b"normal" });
        }
        self.fed += records;
    }

    fn line(&self) -> LaneLine {
        self.observer.ledger().lanes.remove(0)
    }

    async fn fails(&self, told: &str) {
        until(|| matches!(self.commits.state(), EmitterState::Failing(why) if why.contains(told)))
            .await;
    }

    async fn all_reach_the_other(&self) {
        until(|| self.other.occurrences() == self.fed).await;
    }

    async fn works_again(&self) {
        until(|| self.line().delivered.occurrences == self.fed).await;
        until(|| self.commits.state() == EmitterState::Working).await;
    }

    async fn end(self) -> Ended {
        self.trigger.begin();
        assert_eq!(self.run.await.unwrap(), Report::default());
        let ledger = self.observer.ledger();
        assert!(ledger.is_exact(), "{:?}", ledger.differences());
        assert_eq!(self.other.occurrences(), self.fed, "the other loses nothing");
        let (own, durable) = (self.store.own_line(), self.store.line("durable"));
        assert_eq!((own.difference, durable.difference), (0, 0), "{own:#?}{durable:#?}");
        self.store.end();
        Ended { own, durable, served: self.served.occurrences() }
    }
}

struct Ended {
    own: LaneLine,
    durable: LaneLine,
    served: u64,
}

fn kept(folder: &Path) -> u64 {
    let filter = Filter { after_seq: Some(0), ..Filter::default() };
    Reader::open(folder).unwrap().events(&filter).unwrap().len() as u64
}

#[tokio::test]
async fn a_store_without_a_folder_has_the_lanes_hold_what_it_can_not_commit_yet() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    std::fs::write(&path, "in the way").unwrap();
    let mut stage = stage(&path).await;
    stage.push(500);
    stage.fails("store").await;
    stage.all_reach_the_other().await;
    let line = stage.line();
    let held = line.queued.occurrences + line.in_flight.occurrences;
    assert_eq!((held, line.dropped_total().occurrences, line.difference), (500, 0, 0));
    std::fs::remove_file(&path).unwrap();
    stage.works_again().await;
    until(|| stage.served.occurrences() == 500).await;
    let ended = stage.end().await;
    assert_eq!((ended.own.routed.envelopes, ended.own.stored.envelopes), (500, 500));
    assert_eq!((ended.served, ended.durable.delivered.envelopes), (500, 500));
    assert_eq!(kept(&path), 500);
}

#[tokio::test]
async fn a_lock_of_another_process_is_outlasted() {
    let folder = tempfile::tempdir().unwrap();
    let mut stage = stage(folder.path()).await;
    stage.push(100);
    stage.works_again().await;
    let other = rusqlite::Connection::open(folder.path().join("events.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    stage.push(400);
    stage.fails("lock").await;
    stage.all_reach_the_other().await;
    other.execute_batch("ROLLBACK").unwrap();
    stage.works_again().await;
    until(|| stage.durable.lane_lines()[0].delivered.envelopes == 500).await;
    let ended = stage.end().await;
    assert_eq!(ended.own.stored.envelopes, 500);
    assert!(ended.served >= 500, "once or more: {}", ended.served);
}

#[tokio::test]
async fn a_file_that_can_not_be_read_any_more_is_set_aside_while_the_agent_runs() {
    let folder = tempfile::tempdir().unwrap();
    let mut stage = stage(folder.path()).await;
    stage.push(300);
    stage.works_again().await;
    until(|| stage.served.occurrences() == 300).await;
    // All of it, at a moment when nobody has it in memory: another one wrote.
    let file = folder.path().join("events.db");
    let other = rusqlite::Connection::open(&file).unwrap();
    other.execute_batch("UPDATE agent SET started = started + 1").unwrap();
    other.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(other);
    let len = std::fs::metadata(&file).unwrap().len() as usize;
    let spoilt = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&spoilt, &vec![0xa5; len], 0).unwrap();
    stage.push(100);
    stage.works_again().await;
    assert_eq!(stage.store.set_aside(), 1);
    stage.push(200);
    stage.works_again().await;
    until(|| stage.durable.lane_lines()[0].stored.envelopes == 0).await;
    until(|| stage.durable.state() == EmitterState::Working).await;
    let fed = stage.fed;
    let ended = stage.end().await;
    assert_eq!(ended.own.routed.envelopes, fed);
    let lost = ended.own.dropped_for(DropReason::StoreLost).envelopes;
    assert!(lost >= 300, "{lost}");
    assert_eq!(ended.own.stored.envelopes, fed - lost);
    assert_eq!(kept(folder.path()), fed - lost);
    let durable = &ended.durable;
    let lost = durable.dropped_for(DropReason::StoreLost).envelopes;
    assert_eq!(durable.delivered.envelopes + lost, fed);
    assert!(ended.served >= fed - lost);
}

#[tokio::test]
async fn a_store_that_panics_is_made_anew_and_commits_what_it_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let mut stage = stage(folder.path()).await;
    let panics = AtomicBool::new(true);
    stage.store.set_ledger(move || {
        assert!(!panics.swap(false, Ordering::SeqCst), "panics on purpose");
        b"{}".to_vec()
    });
    stage.push(300);
    stage.works_again().await;
    assert_eq!(stage.commits.panics(), 1);
    let ended = stage.end().await;
    assert_eq!(ended.own.stored.envelopes, 300);
    assert_eq!(kept(folder.path()), 300);
}

#[tokio::test]
async fn a_store_that_hangs_is_told_and_commits_all_once_it_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut stage = stage_with(folder.path(), Duration::from_secs(1)).await;
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let (wait, calls) = (Arc::clone(&gate), Arc::new(AtomicU64::new(0)));
    let called = Arc::clone(&calls);
    stage.store.set_ledger(move || {
        called.fetch_add(1, Ordering::SeqCst);
        let mut open = wait.0.lock().unwrap();
        while !*open {
            open = wait.1.wait(open).unwrap();
        }
        b"{}".to_vec()
    });
    stage.push(300);
    until(|| calls.load(Ordering::SeqCst) == 1).await;
    stage.all_reach_the_other().await;
    // Its accounts can be asked for, and nobody who ticks waits for it.
    assert_eq!(stage.store.own_line().difference, 0);
    stage.store.tick();
    until(|| stage.commits.taken_over() == 1).await;
    stage.fails("did not return").await;
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    stage.works_again().await;
    assert!(!stage.commits.is_stuck());
    until(|| stage.durable.lane_lines()[0].stored.envelopes == 0).await;
    let fed = stage.fed;
    let ended = stage.end().await;
    // What it was given when it hung was given to its successor too, and is
    // kept once.
    assert_eq!(ended.own.stored.envelopes, fed, "{:#?}", ended.own);
    assert_eq!(ended.served, fed);
    let filter = Filter { after_seq: Some(0), ..Filter::default() };
    let rows = Reader::open(folder.path()).unwrap().events(&filter).unwrap();
    let ids: BTreeSet<String> = rows.iter().map(|row| row.id.clone()).collect();
    assert_eq!(ids.len() as u64, fed, "each of them once");
}

#[tokio::test]
async fn a_folder_that_is_removed_again_and_again_costs_what_was_in_it_and_all_of_it_is_counted() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("store");
    let mut stage = stage(&folder).await;
    for round in 0..8 {
        stage.push(200);
        if round % 2 == 0 {
            stage.works_again().await;
        }
        // It may begin a fresh one just now.
        while std::fs::remove_dir_all(&folder).is_err() {}
        stage.push(50);
        stage.works_again().await;
        if round % 3 == 0 {
            stage.store.tick();
        }
    }
    until(|| stage.durable.lane_lines()[0].stored.envelopes == 0).await;
    until(|| stage.durable.state() == EmitterState::Working).await;
    assert_eq!(stage.store.set_aside(), 0, "nothing was damaged");
    let fed = stage.fed;
    let ended = stage.end().await;
    assert_eq!(ended.own.routed.envelopes, fed);
    let lost = ended.own.dropped_for(DropReason::StoreLost).envelopes;
    assert!(lost >= 800, "{lost}");
    assert_eq!(ended.own.stored.envelopes, fed - lost);
    assert_eq!(kept(&folder), fed - lost);
    let durable = &ended.durable;
    let lost = durable.dropped_for(DropReason::StoreLost).envelopes;
    assert_eq!(durable.delivered.envelopes + lost, fed);
    assert!(ended.served >= fed - lost);
}
