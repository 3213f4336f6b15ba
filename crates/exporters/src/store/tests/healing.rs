//! What goes wrong beside the store, in it and below it, and what it costs.

use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

/// Gives up on locks of others soon.
fn impatient() -> Medium {
    Medium { busy: Duration::from_millis(5), ..Medium::default() }
}

fn open_impatient(folder: &Path) -> Store {
    Store::open_on(impatient(), config(folder), vec!["a".to_owned()], Duration::ZERO).unwrap()
}

/// Has the store close its file and open it anew.
fn upset(store: &Store, folder: &Path) {
    let other = rusqlite::Connection::open(folder.join("events.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let outcome = emit(&mut store.emitter(), &batch(1, 1));
    assert!(matches!(outcome, EmitOutcome::Retryable { .. }), "{outcome:?}");
    other.execute_batch("ROLLBACK").unwrap();
}

/// Whether this process holds a lock on a file that other processes see.
fn is_locked_by_us(file: &Path) -> bool {
    let end = format!(":{}", fs::metadata(file).unwrap().ino());
    let us = std::process::id().to_string();
    let locks = fs::read_to_string("/proc/locks").unwrap();
    locks.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.contains(&"POSIX")
            && words.contains(&us.as_str())
            && words.iter().any(|w| w.ends_with(&end))
    })
}

#[test]
fn a_store_that_opens_its_file_anew_keeps_the_lock_that_says_that_it_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_impatient(folder.path());
    commit(&store, &batch(1, 20));
    let mut a = store.cursor("a").unwrap();
    assert_eq!(a.read(5).unwrap().len(), 5);
    let file = folder.path().join("events.db");
    assert!(is_locked_by_us(&file));
    upset(&store, folder.path());
    commit(&store, &batch(21, 1));
    // Without it, whoever ends with `sqlite3` in between takes the log away.
    assert!(is_locked_by_us(&file));
    drop(a);
}

#[test]
fn what_leaves_while_it_is_in_flight_is_counted_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), &["a"]);
    commit(&store, &batch(1, 100));
    let mut a = store.cursor("a").unwrap();
    let owed = a.read(100).unwrap();
    assert_eq!(store.line("a").in_flight.envelopes, 100);
    let mut next = 101;
    while store.own_line().dropped_total().envelopes < 20 {
        commit(&store, &batch(next, 500));
        next += 500;
        assert_eq!(store.line("a").difference, 0, "{:#?}", store.line("a"));
    }
    // And more than was ever in flight.
    while store.own_line().dropped_total().envelopes < next / 2 {
        commit(&store, &batch(next, 500));
        next += 500;
        assert_eq!(store.line("a").difference, 0, "{:#?}", store.line("a"));
    }
    a.settle(owed.iter().map(|o| Settled { seq: o.seq, rejected: None }).collect()).unwrap();
    assert_eq!(store.line("a").difference, 0);
    assert_exact(&store, folder.path());
}

#[test]
fn a_ledger_that_panics_ends_one_commit_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), NOBODY);
    store.set_ledger(|| panic!("panics on purpose"));
    let panicked = catch_unwind(AssertUnwindSafe(|| commit(&store, &batch(1, 5))));
    assert!(panicked.is_err());
    store.set_ledger(|| b"{}".to_vec());
    commit(&store, &batch(1, 5));
    assert_eq!(kept(folder.path()), [1, 2, 3, 4, 5]);
    // The one that panicked held the lock: it is no reason to end uncleanly.
    store.end();
    drop(store);
    assert_eq!(open(folder.path(), NOBODY).gap_from_ns(), None);
}

#[test]
fn a_gap_that_was_told_is_not_told_again_after_the_file_was_opened_anew() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path(), &["a"]));
    let store = open_impatient(folder.path());
    assert!(store.gap_from_ns().is_some());
    // Told by a commit whose answer never came back: memory does not know it.
    let file = folder.path().join("events.db");
    let other = rusqlite::Connection::open(&file).unwrap();
    other.execute_batch("UPDATE agent SET gap_from = NULL; BEGIN IMMEDIATE").unwrap();
    let outcome = emit(&mut store.emitter(), &batch(1, 1));
    assert!(matches!(outcome, EmitOutcome::Retryable { .. }), "{outcome:?}");
    other.execute_batch("ROLLBACK").unwrap();
    commit(&store, &batch(1, 1));
    store.end();
    drop(store);
    assert_eq!(open(folder.path(), NOBODY).gap_from_ns(), None);
}

#[test]
fn accounts_that_contradict_the_events_are_a_reason_to_begin_a_fresh_file() {
    // One does not add up, one knows of no event, one can't be summed up.
    for sql in [
        "UPDATE accounts SET stored = stored + 1 WHERE name = 'a'",
        "UPDATE accounts SET stored = 0, stored_envelopes = 0, routed = 0, routed_envelopes = 0,
             dropped_age = 0, dropped_age_envelopes = 0",
        "UPDATE accounts SET delivered = 9223372036854775807, rejected = 9223372036854775807,
             stored = 9223372036854775807",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), &["a"]);
        commit(&store, &batch(1, 20));
        store.end();
        drop(store);
        let other = rusqlite::Connection::open(folder.path().join("events.db")).unwrap();
        other.execute_batch(sql).unwrap();
        other.execute_batch("UPDATE events SET observed = 0 WHERE seq <= 20").unwrap();
        drop(other);
        let store = open(folder.path(), &["a"]);
        commit(&store, &batch(21, 5));
        assert_eq!(store.set_aside(), 1, "{sql}");
        assert_exact(&store, folder.path());
        assert_eq!(store.line("a").difference, 0);
    }
}

#[test]
fn a_log_that_was_taken_away_is_noticed_and_what_was_in_it_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_impatient(folder.path());
    commit(&store, &batch(1, 20));
    let inner = store.shared.lock();
    let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
    inner.writer.as_ref().unwrap().connection.query_row(checkpoint, [], |_| Ok(())).unwrap();
    drop(inner);
    let early = fs::read(folder.path().join("events.db")).unwrap();
    commit(&store, &batch(21, 20));
    // As if somebody had put yesterday's copy in its place.
    let mut inner = store.shared.lock();
    store.shared.note(&mut inner, Trouble::Later("upset on purpose".to_owned()));
    fs::write(folder.path().join("events.db"), early).unwrap();
    drop(inner);
    commit(&store, &batch(41, 5));
    assert_eq!(store.set_aside(), 1);
    assert_eq!(kept(folder.path()), [41, 42, 43, 44, 45]);
    assert_exact(&store, folder.path());
    let line = store.line("a");
    assert_eq!((line.difference, line.routed.envelopes, line.stored.envelopes), (0, 45, 5));
    assert_eq!(line.dropped_for(DropReason::StoreLost).envelopes, 40);
}
