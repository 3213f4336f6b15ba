//! Commits, bounds and trouble; power cuts, and all troubles at once, in files
//! of their own.

mod bounds;
mod crash;
mod damage;
mod healing;
mod hostile;
mod lossy;
mod migrations;
mod notices;
mod readonly;
mod repairs;
mod troubles;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use vahti_runtime::config::bounds::Checked;
use vahti_runtime::durable::{DurableLog, Settled};
use vahti_runtime::event::{AGENT_GAP, CONNECTION_REFUSED, ErrorInfo, PROCESS_CRASH, Severity};
use vahti_runtime::ledger::DropReason;
use vahti_runtime::units::ByteSize;

use super::*;
use crate::testing::{SmallDisk, emit};

const NOBODY: &[&str] = &[];

fn config(folder: &Path) -> StoreConfig {
    StoreConfig { max_bytes: ByteSize::mib(8), ..StoreConfig::at(folder) }
}

fn open(folder: &Path, exporters: &[&str]) -> Store {
    let exporters = exporters.iter().map(|name| (*name).to_owned()).collect();
    let store = Store::open(config(folder), exporters, Duration::ZERO).unwrap();
    store.set_ledger(|| b"{}".to_vec());
    store
}

/// Normal events, and every tenth a critical one.
fn batch(from: u64, n: u64) -> Vec<Arc<Event>> {
    let now = ClockPair::now().wall_ns;
    (from..from + n)
        .map(|count| {
            let kind = if count % 10 == 0 { &PROCESS_CRASH } else { &CONNECTION_REFUSED };
            let id = vahti_runtime::ids::EventId(u128::from(count) + (1 << 90));
            let event = Event::new(kind, Severity::Error);
            Arc::new(Event { id, count, time_ns: now, observed_ns: now, ..event })
        })
        .collect()
}

fn commit(store: &Store, batch: &[Arc<Event>]) {
    assert_eq!(emit(&mut store.emitter(), batch), EmitOutcome::Delivered);
}

/// The counts of the events that are there, in the order of their commits.
fn kept(folder: &Path) -> Vec<u64> {
    let filter = Filter { after_seq: Some(0), ..Filter::default() };
    let rows = Reader::open(folder).unwrap().events(&filter).unwrap();
    rows.iter()
        .map(|row| {
            let json: serde_json::Value = serde_json::from_str(&row.json).unwrap();
            json["count"].as_u64().unwrap()
        })
        .collect()
}

#[track_caller]
fn assert_exact(store: &Store, folder: &Path) {
    let line = store.own_line();
    assert_eq!(line.difference, 0, "{line:#?}");
    let kept = kept(folder);
    assert_eq!(line.stored.occurrences, kept.iter().sum::<u64>());
    assert_eq!(line.stored.envelopes, kept.len() as u64);
}

fn files(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name());
    let mut names: Vec<String> = names.map(|n| n.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_committed_is_there_after_a_restart_and_for_its_owner_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b");
    let store = open(&path, NOBODY);
    commit(&store, &batch(1, 25));
    assert_exact(&store, &path);
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    for file in files(&path) {
        assert_eq!(mode(&path.join(&file)), 0o600, "{file}");
    }
    store.end();
    drop(store);
    let store = open(&path, NOBODY);
    assert_eq!(store.gap_from_ns(), None);
    commit(&store, &batch(26, 25));
    assert_eq!(kept(&path), (1..=50).collect::<Vec<_>>());
    assert_exact(&store, &path);
}

#[test]
fn beyond_the_cap_normal_events_leave_before_critical_ones() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), NOBODY);
    let mut next = 1;
    while store.own_line().dropped_total().envelopes < 20_000 {
        commit(&store, &batch(next, 500));
        next += 500;
        let sizes = ["events.db", "events.db-wal"].map(|f| folder.path().join(f));
        let size: u64 = sizes.iter().map(|f| fs::metadata(f).map_or(0, |m| m.len())).sum();
        assert!(size <= ByteSize::mib(8).0, "{size}");
    }
    let line = store.own_line();
    assert_eq!(line.dropped_for(DropReason::StoreFull), line.dropped_total());
    let kept = kept(folder.path());
    let critical: Vec<u64> = kept.iter().copied().filter(|c| c % 10 == 0).collect();
    // Only once no normal one is left to go.
    assert_eq!(critical.len() as u64, (next - 1) / 10);
    assert!(kept.len() > critical.len(), "it took more than it had to");
    assert_exact(&store, folder.path());
}

#[test]
fn the_files_stay_below_the_cap_with_whole_batches_of_long_lines() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), NOBODY);
    let most = store.emitter().max_batch() as u64;
    let mut greatest = 0;
    for round in 0..30 {
        let batch: Vec<Arc<Event>> = batch(1 + round * most, most)
            .iter()
            .map(|event| {
                let message = "x".repeat(900).into();
                let error = ErrorInfo { code: "E".into(), message, cause: None };
                Arc::new(Event { error: Some(error), ..(**event).clone() })
            })
            .collect();
        commit(&store, &batch);
        let sizes = ["events.db", "events.db-wal"].map(|f| folder.path().join(f));
        greatest =
            sizes.iter().map(|f| fs::metadata(f).map_or(0, |m| m.len())).sum::<u64>().max(greatest);
    }
    assert!(greatest <= ByteSize::mib(8).0, "{greatest}");
    assert!(store.own_line().dropped_for(DropReason::StoreFull).envelopes > 0);
    assert_exact(&store, folder.path());
}

#[test]
fn what_is_too_old_leaves_and_a_clock_that_jumps_takes_nothing_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), NOBODY);
    let old = |hours: u64| {
        let batch = batch(1, 10).into_iter().map(|event| {
            let observed_ns = event.observed_ns - hours * 3_600_000_000_000;
            Arc::new(Event { observed_ns, ..(*event).clone() })
        });
        batch.collect::<Vec<_>>()
    };
    commit(&store, &old(8 * 24));
    commit(&store, &old(6 * 24));
    let line = store.own_line();
    assert_eq!(line.dropped_for(DropReason::StoreAge).envelopes, 10);
    assert_eq!(line.stored.envelopes, 10);
    assert_exact(&store, folder.path());
    // As if the wall clock had been set a year forward since the start, or back.
    let year = 365 * 86_400_000_000_000;
    let mut inner = store.shared.lock();
    let writer = inner.writer.as_mut().unwrap();
    let now = writer.began.wall_ns;
    for began in [now - year, now + year] {
        writer.began.wall_ns = began;
        writer.age().unwrap();
    }
    drop(inner);
    assert_eq!(kept(folder.path()).len(), 10);
}

fn settle(log: &mut dyn vahti_runtime::durable::DurableCursor, limit: usize) -> Vec<u64> {
    let owed = log.read(limit).unwrap();
    let counts = owed.iter().map(|o| o.event.count).collect();
    log.settle(owed.iter().map(|o| Settled { seq: o.seq, rejected: None }).collect()).unwrap();
    counts
}

#[test]
fn an_exporter_gets_all_that_was_committed_since_it_was_configured_critical_first() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), &["a"]);
    commit(&store, &batch(1, 20));
    let mut a = store.cursor("a").unwrap();
    assert_eq!(settle(&mut *a, 5), [10, 20, 1, 2, 3]);
    assert_eq!(store.line("a").delivered.envelopes, 5);
    assert_eq!(store.line("a").stored.envelopes, 15);
    drop(a);
    drop(store);
    // Another one begins at the end; the first goes on where it was.
    let store = open(folder.path(), &["a", "b"]);
    commit(&store, &batch(21, 3));
    let mut b = store.cursor("b").unwrap();
    assert_eq!(settle(&mut *b, 100), [21, 22, 23]);
    let mut a = store.cursor("a").unwrap();
    assert_eq!(settle(&mut *a, 6), [4, 5, 6, 7, 8, 9]);
    let owed = a.read(100).unwrap();
    assert_eq!(store.line("a").in_flight.envelopes, owed.len() as u64);
    assert_eq!(store.line("a").difference, 0);
    // A rejected one is remembered; one in the middle does not hold up others.
    let middle = owed.len() / 2;
    let settled = owed
        .iter()
        .enumerate()
        .filter(|(i, _)| *i != middle)
        .map(|(i, o)| Settled { seq: o.seq, rejected: (i == 0).then(|| "no".to_owned()) });
    a.settle(settled.collect()).unwrap();
    let again = a.read(100).unwrap();
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].seq, owed[middle].seq);
    a.settle(vec![Settled { seq: again[0].seq, rejected: None }]).unwrap();
    let line = store.line("a");
    assert_eq!((line.stored.envelopes, line.rejected.envelopes, line.difference), (0, 1, 0));
    assert_eq!(line.delivered.envelopes, 22);
    for name in ["a", "b"] {
        assert_eq!(store.line(name).difference, 0);
    }
    // Nobody is held back by one that is not configured any more.
    drop((a, b));
    drop(store);
    let store = open(folder.path(), &["b"]);
    assert_eq!(store.line("b").delivered.envelopes, 3);
    assert!(store.cursor("a").is_err());
}

#[test]
fn what_is_read_ahead_is_bounded_in_bytes_and_nothing_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let memory = StoreMemory { window_bytes: 32 << 10, ..StoreMemory::default() };
    let config = StoreConfig { memory, ..config(folder.path()) };
    let store = Store::open(config, vec!["a".to_owned()], Duration::ZERO).unwrap();
    commit(&store, &batch(1, 300));
    let mut a = store.cursor("a").unwrap();
    let mut seen = Vec::new();
    loop {
        let owed = a.read(512).unwrap();
        let bytes: usize = owed.iter().map(|owed| owed.event.size_bytes()).sum();
        assert!(bytes <= memory.window_bytes, "{bytes}");
        let Some(last) = owed.last() else { break };
        // Some are refused for now and are read again, ahead of nothing.
        let last = last.seq;
        let settled = owed.iter().filter(|o| o.seq != last || owed.len() == 1);
        seen.extend(settled.clone().map(|o| o.event.count));
        a.settle(settled.map(|o| Settled { seq: o.seq, rejected: None }).collect()).unwrap();
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..=300).collect::<Vec<_>>());
    let line = store.line("a");
    assert_eq!((line.delivered.envelopes, line.stored.envelopes, line.difference), (300, 0, 0));
}

#[test]
fn what_an_exporter_is_owed_leaves_last_and_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), &["slow"]);
    let mut slow = store.cursor("slow").unwrap();
    let mut sent = 0;
    for round in 0..60 {
        commit(&store, &batch(1 + round * 500, 500));
        sent += settle(&mut *slow, 50).len() as u64;
    }
    let line = store.line("slow");
    assert_eq!(line.difference, 0, "{line:#?}");
    assert_eq!(line.delivered.envelopes, sent);
    assert!(line.dropped_for(DropReason::StoreFull).envelopes > 5_000);
    let critical = line.dropped.iter().filter(|d| d.priority == "critical");
    assert_eq!(critical.map(|d| d.tally.envelopes).sum::<u64>(), 0);
    let mut rest = 0;
    loop {
        let n = settle(&mut *slow, 1_000).len() as u64;
        rest += n;
        if n == 0 {
            break;
        }
    }
    let line = store.line("slow");
    assert_eq!(line.stored.envelopes, 0);
    assert_eq!(line.delivered.envelopes, sent + rest);
    assert_eq!((line.difference, line.routed.envelopes), (0, 30_000));
    assert_exact(&store, folder.path());
}

#[test]
fn an_unclean_end_is_told_until_it_is_committed() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), NOBODY);
    assert_eq!(store.gap_from_ns(), None);
    commit(&store, &batch(1, 1));
    drop(store);
    let first = open(folder.path(), NOBODY).gap_from_ns().unwrap();
    let store = open(folder.path(), NOBODY);
    assert_eq!(store.gap_from_ns(), Some(first), "it was not told yet");
    commit(&store, &[Arc::new(Event::new(&AGENT_GAP, Severity::Error))]);
    store.end();
    drop(store);
    assert_eq!(open(folder.path(), NOBODY).gap_from_ns(), None);
}

#[test]
fn an_unclean_end_is_told_also_where_its_file_cannot_be_read_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let spoil = || {
        let file = folder.path().join("events.db");
        fs::write(&file, "no database, but longer than a header".repeat(99)).unwrap();
        drop(fs::remove_file(folder::with_suffix(&file, "-wal")));
    };
    let store = open(folder.path(), NOBODY);
    commit(&store, &batch(1, 1));
    let before = ClockPair::now().wall_ns;
    drop(store);
    spoil();
    let store = open(folder.path(), NOBODY);
    let from = store.gap_from_ns().unwrap();
    assert!(from <= before && from > before - 60_000_000_000, "{from} {before}");
    assert_eq!(store.set_aside(), 1);
    store.end();
    drop(store);
    spoil();
    assert_eq!(open(folder.path(), NOBODY).gap_from_ns(), None);
}

/// Has the file be in the way of an agent that starts now.
fn open_late(folder: &Path) -> (Store, rusqlite::Connection) {
    let other = rusqlite::Connection::open(folder.join("events.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let medium = Medium { busy: Duration::from_millis(10), ..Medium::default() };
    let store = Store::open_on(medium, config(folder), Vec::new(), Duration::ZERO).unwrap();
    assert!(!store.has_begun() && store.gap_from_ns().is_none());
    // Its own signs of life are none of the one before.
    std::thread::sleep(Duration::from_millis(20));
    store.tick();
    (store, other)
}

#[test]
fn a_file_that_opens_late_knows_since_when_nobody_watched() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    drop(open(folder, NOBODY));
    let ended = ClockPair::now().wall_ns;
    for ends in [true, false] {
        // Nothing was kept: the next one tells of the time before this one, too.
        let (store, other) = open_late(folder);
        if ends {
            store.end();
        }
        drop((store, other));
    }
    let (store, other) = open_late(folder);
    other.execute_batch("ROLLBACK").unwrap();
    store.tick();
    let from = store.gap_from_ns().unwrap();
    assert!(store.has_begun() && from <= ended, "{from} {ended}");
    commit(&store, &[Arc::new(Event::new(&AGENT_GAP, Severity::Error))]);
    store.end();
}

#[test]
fn who_never_had_the_file_ends_as_it_should_or_leaves_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    open(folder, NOBODY).end();
    let (store, other) = open_late(folder);
    store.end();
    drop((store, other));
    let store = open(folder, NOBODY);
    assert_eq!(store.gap_from_ns(), None);
    store.end();
    drop(store);
    let ended = ClockPair::now().wall_ns;
    drop(open_late(folder));
    let from = open(folder, NOBODY).gap_from_ns().unwrap();
    assert!(from >= ended, "it watched: {from} {ended}");
}

#[test]
fn a_second_agent_waits_and_then_is_told_who_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path(), NOBODY);
    let second = Store::open(config(folder.path()), vec![], Duration::from_millis(60));
    let refused = second.err().unwrap().to_string();
    assert!(refused.contains(&format!("(pid {})", std::process::id())), "{refused}");
    let ends = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        drop(first);
    });
    let second = Store::open(config(folder.path()), vec![], Duration::from_secs(20));
    assert!(second.is_ok());
    ends.join().unwrap();
}

#[test]
fn a_newer_schema_is_left_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), NOBODY);
    commit(&store, &batch(1, 3));
    store.end();
    drop(store);
    let file = folder.path().join("events.db");
    let newer = rusqlite::Connection::open(&file).unwrap();
    newer.pragma_update(None, "user_version", schema::VERSION + 1).unwrap();
    drop(newer);
    let before = fs::read(&file).unwrap();
    let refused = Reader::open(folder.path()).unwrap_err().to_string();
    assert!(refused.contains("a newer version"), "{refused}");
    let store = open(folder.path(), NOBODY);
    commit(&store, &batch(4, 2));
    assert_eq!(kept(folder.path()), [4, 5]);
    assert!(fs::read(&file).unwrap() == before, "it was changed");
    assert!(files(folder.path()).contains(&"events-v1.db".to_owned()));
}

#[test]
fn a_file_that_is_no_store_is_set_aside_and_three_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("events.db");
    for round in 0..5 {
        for old in files(folder.path()).iter().filter(|f| f.starts_with("events.db")) {
            if !old.contains("corrupt") {
                fs::remove_file(folder.path().join(old)).unwrap();
            }
        }
        fs::write(&file, format!("{round}: no database, but longer than a header").repeat(99))
            .unwrap();
        let store = open(folder.path(), NOBODY);
        assert_eq!(store.set_aside(), 1);
        commit(&store, &batch(1, 1));
        assert_exact(&store, folder.path());
    }
    let aside = files(folder.path()).iter().filter(|f| f.contains("corrupt")).count();
    assert_eq!(aside, 3);
}

#[test]
fn every_page_in_turn_may_be_torn() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let store = open(&whole, &["a"]);
    for round in 0..6 {
        commit(&store, &batch(1 + round * 20, 20));
    }
    store.end();
    drop(store);
    let bytes = fs::read(whole.join("events.db")).unwrap();
    for page in 0..bytes.len() / 4096 {
        for pattern in [0x00, 0xff, 0x5a] {
            let path = folder.path().join("torn");
            fs::create_dir(&path).unwrap();
            let mut torn = bytes.clone();
            torn[page * 4096..(page + 1) * 4096].fill(pattern);
            fs::write(path.join("events.db"), torn).unwrap();
            let store = open(&path, &["a"]);
            let wanted: Vec<u64> = (1_000..1_005).collect();
            commit(&store, &batch(1_000, 5));
            let line = store.own_line();
            assert_eq!(line.difference, 0, "page {page}, {pattern:#x}: {line:#?}");
            // Whatever became of what was there: what comes now is kept and
            // reaches the exporter, once the file was found out.
            let mut got = Vec::new();
            for _ in 0..10 {
                let Ok(mut a) = store.cursor("a") else { continue };
                match a.read(500) {
                    Ok(owed) => {
                        got.extend(owed.iter().map(|o| o.event.count));
                        let all = owed.iter().map(|o| Settled { seq: o.seq, rejected: None });
                        if a.settle(all.collect()).is_err() {
                            continue;
                        }
                    }
                    Err(_) => commit(&store, &batch(1_000, 5)),
                }
            }
            for count in &wanted {
                assert!(got.contains(count), "page {page}, {pattern:#x}: {got:?}");
            }
            drop(store);
            fs::remove_dir_all(&path).unwrap();
        }
    }
}

#[test]
fn a_full_disk_loses_nothing_that_waits_and_is_over_when_there_is_room() {
    let Some(disk) = SmallDisk::of_kib(1_024) else { return };
    let path = disk.path().join("store");
    let ballast = disk.path().join("ballast");
    let store = open(&path, NOBODY);
    commit(&store, &batch(1, 2));
    // As much as there is room for.
    assert!(fs::write(&ballast, vec![1; 1 << 20]).is_err());
    let mut emitter = store.emitter();
    let more = batch(3, 40);
    let EmitOutcome::Retryable { reason, .. } = emit(&mut emitter, &more) else {
        panic!("it has room?");
    };
    assert!(reason.contains("full"), "{reason}");
    fs::remove_file(&ballast).unwrap();
    commit(&store, &more);
    assert_eq!(kept(&path), (1..=42).collect::<Vec<_>>());
    assert_exact(&store, &path);
}

#[test]
fn a_folder_that_cannot_be_used_is_told_and_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    fs::write(&path, "in the way").unwrap();
    let store = open(&path, NOBODY);
    let outcome = emit(&mut store.emitter(), &batch(1, 1));
    let EmitOutcome::Retryable { reason, .. } = outcome else { panic!("{outcome:?}") };
    assert!(reason.contains("store"), "{reason}");
    fs::remove_file(&path).unwrap();
    commit(&store, &batch(1, 1));
    assert_eq!(kept(&path), [1]);
}

#[test]
fn another_process_that_holds_a_lock_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), NOBODY);
    let other = rusqlite::Connection::open(folder.path().join("events.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let outcome = emit(&mut store.emitter(), &batch(1, 1));
    let EmitOutcome::Retryable { reason, .. } = outcome else { panic!("{outcome:?}") };
    assert!(reason.contains("lock"), "{reason}");
    other.execute_batch("ROLLBACK").unwrap();
    commit(&store, &batch(1, 1));
    assert_exact(&store, folder.path());
}

#[test]
fn a_transaction_that_is_left_open_bounds_the_log_and_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), &["a"]);
    commit(&store, &batch(1, 10));
    let file = folder.path().join("events.db");
    let other = rusqlite::Connection::open(&file).unwrap();
    other.execute_batch("BEGIN; SELECT count(*) FROM events").unwrap();
    let mut emitter = store.emitter();
    let (mut next, mut refused) = (11, None);
    while refused.is_none() && next < 100_000 {
        match emit(&mut emitter, &batch(next, 200)) {
            EmitOutcome::Delivered => next += 200,
            EmitOutcome::Retryable { reason, .. } => refused = Some(reason),
            outcome => panic!("{outcome:?}"),
        }
    }
    let refused = refused.expect("the log has no bound");
    assert!(refused.contains("transaction open"), "{refused}");
    let log = || fs::metadata(folder::with_suffix(&file, "-wal")).unwrap().len();
    let most = writer::wal_bytes(8 << 20) * 5 / 4;
    for _ in 0..3 {
        assert!(matches!(emit(&mut emitter, &batch(next, 200)), EmitOutcome::Retryable { .. }));
    }
    // What is there is delivered meanwhile.
    let mut a = store.cursor("a").unwrap();
    while !settle(&mut *a, 1_000).is_empty() {}
    assert_eq!(store.line("a").stored.envelopes, 0);
    assert!(log() <= most, "{}", log());
    other.execute_batch("COMMIT").unwrap();
    commit(&store, &batch(next, 200));
    assert!(log() <= writer::wal_bytes(8 << 20));
    assert_exact(&store, folder.path());
}

#[test]
fn opening_the_file_anew_leaves_its_readers_their_locks() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), &["a"]);
    commit(&store, &batch(1, 10));
    let inode = fs::metadata(folder.path().join("events.db")).unwrap().ino();
    let is_locked = || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        locks.lines().any(|l| l.contains("POSIX") && l.contains(&format!(":{inode} ")))
    };
    let mut a = store.cursor("a").unwrap();
    assert!(is_locked());
    store.shared.note(&mut store.shared.lock(), Trouble::Later("the disk is full".to_owned()));
    commit(&store, &batch(11, 10));
    assert!(is_locked(), "another program could take the log away");
    drop(a.read(1));
}

#[test]
fn a_batch_that_comes_again_after_a_call_that_was_left_behind_is_not_kept_twice() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), NOBODY);
    let (first, second) = (batch(1, 3), batch(4, 3));
    commit(&store, &first);
    commit(&store, &first.clone());
    commit(&store, &second);
    assert_eq!(kept(folder.path()), (1..=6).collect::<Vec<_>>());
    assert_exact(&store, folder.path());
}

#[test]
fn an_emitter_that_was_left_behind_commits_nothing_once_another_has() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), NOBODY);
    let (first, second) = (batch(1, 3), batch(4, 3));
    let (mut left, mut fresh) = (store.emitter(), store.emitter());
    assert_eq!(emit(&mut left, &first), EmitOutcome::Delivered);
    for batch in [&first, &second] {
        assert_eq!(emit(&mut fresh, batch), EmitOutcome::Delivered);
    }
    // It waited for the lock all the time.
    assert!(matches!(emit(&mut left, &first), EmitOutcome::Retryable { .. }));
    assert_eq!(kept(folder.path()), (1..=6).collect::<Vec<_>>());
    assert_exact(&store, folder.path());
}

#[test]
fn a_path_with_a_nul_byte_is_no_path() {
    let wrong = Checked::of(&StoreConfig::at("/var/lib/va\0hti")).wrong;
    let told: Vec<String> = wrong.iter().map(ToString::to_string).collect();
    assert_eq!(told, [r#"path is "/var/lib/va\x00hti", but must be a path without a NUL byte"#]);
    assert!(Checked::of(&StoreConfig::at("/var/lib/vahti")).wrong.is_empty());
}
