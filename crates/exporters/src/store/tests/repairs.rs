//! Files that lost a part of themselves, stores that are opened anew, and what
//! neither may cost.

use rusqlite::StatementStatus;

use super::*;

/// Normal events alone.
fn normal(from: u64, n: u64) -> Vec<Arc<Event>> {
    let normal = |event: Arc<Event>| {
        let plain = Event::new(&CONNECTION_REFUSED, Severity::Error);
        let (count, time_ns) = (event.count, event.time_ns);
        Arc::new(Event { id: event.id, count, time_ns, observed_ns: time_ns, ..plain })
    };
    batch(from, n).into_iter().map(normal).collect()
}

#[test]
fn a_priority_of_which_nothing_is_there_costs_no_commit_a_look_at_all_others() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), NOBODY);
    for round in 0..10 {
        commit(&store, &normal(1 + round * 500, 500));
    }
    // One critical event far behind is looked for once, and then known.
    commit(&store, &batch(10_000, 1));
    let steps = || {
        let inner = store.shared.lock();
        let connection = &inner.writer.as_ref().unwrap().connection;
        let statement = connection.prepare_cached(evict::FIND_OLDEST).unwrap();
        statement.get_status(StatementStatus::VmStep)
    };
    let before = steps();
    for round in 0..5 {
        commit(&store, &normal(20_001 + round, 1));
    }
    assert!(steps() - before < 1_000, "{}", steps() - before);
    assert_exact(&store, folder.path());
}

/// A store that ended, in its own folder, with rows in every table.
fn ended(path: &Path) {
    let store = open(path, &["a"]);
    commit(&store, &batch(1, 50));
    let mut a = store.cursor("a").unwrap();
    let owed = a.read(10).unwrap();
    let rejected =
        |o: &vahti_runtime::durable::Owed| Settled { seq: o.seq, rejected: Some("no".to_owned()) };
    a.settle(owed.iter().map(rejected).collect()).unwrap();
    drop(a);
    store.end();
}

/// Commits and serves, whatever stands in the file.
fn goes_on(path: &Path, what: &str) -> u64 {
    let store = open(path, &["a"]);
    let mut got = Vec::new();
    for _ in 0..4 {
        commit(&store, &batch(1_001, 5));
        let Ok(mut a) = store.cursor("a") else { continue };
        while let Ok(owed) = a.read(100) {
            got.extend(owed.iter().map(|owed| owed.event.count));
            // Refused, so that this is written down as well.
            let settled = owed.iter().map(|o| Settled { seq: o.seq, rejected: Some("no".into()) });
            if owed.is_empty() || a.settle(settled.collect()).is_err() {
                break;
            }
        }
    }
    assert!((1_001..1_006).all(|count| got.contains(&count)), "{what}: {got:?}");
    assert_exact(&store, path);
    assert_eq!(store.line("a").stored.envelopes, 0, "{what}");
    store.set_aside()
}

#[test]
fn a_file_that_lost_a_table_is_set_aside() {
    for table in ["events", "accounts", "rejected", "agent", "ledger"] {
        let folder = tempfile::tempdir().unwrap();
        ended(folder.path());
        let other = rusqlite::Connection::open(folder.path().join("events.db")).unwrap();
        other.execute_batch(&format!("DROP TABLE {table}")).unwrap();
        drop(other);
        assert_eq!(goes_on(folder.path(), table), 1, "{table}");
    }
}

#[test]
fn a_schema_that_lost_its_last_entries_is_no_reason_to_stand_still() {
    for fewer in 1..=7 {
        let folder = tempfile::tempdir().unwrap();
        ended(folder.path());
        let file = folder.path().join("events.db");
        let mut bytes = fs::read(&file).unwrap();
        let cells = u16::from_be_bytes([bytes[103], bytes[104]]);
        assert_eq!(cells, 7);
        bytes[103..105].copy_from_slice(&(cells - fewer).to_be_bytes());
        fs::write(&file, bytes).unwrap();
        assert_eq!(goes_on(folder.path(), &format!("{fewer} fewer")), 1, "{fewer} fewer");
    }
}

/// Has the store open its file anew.
fn upset(store: &Store) {
    let mut inner = store.shared.lock();
    store.shared.note(&mut inner, Trouble::Later("upset on purpose".to_owned()));
}

#[test]
fn an_end_in_the_middle_of_trouble_is_a_clean_one_once_the_file_can_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), NOBODY);
    commit(&store, &batch(1, 5));
    upset(&store);
    store.end();
    drop(store);
    let store = open(folder.path(), NOBODY);
    assert_eq!(store.gap_from_ns(), None);
    // A commit that is under way is waited for.
    let busy = store.clone();
    let (held, holds) = std::sync::mpsc::channel();
    let other = std::thread::spawn(move || {
        let _inner = busy.shared.lock();
        held.send(()).unwrap();
        std::thread::sleep(Duration::from_millis(200));
    });
    holds.recv().unwrap();
    store.shared.end().unwrap();
    other.join().unwrap();
    drop(store);
    assert_eq!(open(folder.path(), NOBODY).gap_from_ns(), None);
}

#[test]
fn an_end_without_a_file_is_not_said_to_be_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    fs::write(&path, "in the way").unwrap();
    assert!(open(&path, NOBODY).shared.end().is_err());
}

fn all(owed: &[vahti_runtime::durable::Owed]) -> Vec<Settled> {
    owed.iter().map(|o| Settled { seq: o.seq, rejected: None }).collect()
}

#[test]
fn a_file_that_is_opened_anew_costs_no_cursor_what_it_knows() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), &["a"]);
    commit(&store, &batch(1, 20));
    let mut a = store.cursor("a").unwrap();
    let owed = a.read(5).unwrap();
    upset(&store);
    commit(&store, &batch(21, 1));
    a.settle(all(&owed)).unwrap();
    assert_eq!(store.line("a").delivered.envelopes, 5);
    assert_eq!(settle(&mut *a, 100).len(), 16);
    // Another file costs what was in the first, and no more.
    let mut inner = store.shared.lock();
    store.shared.note(&mut inner, Trouble::Corrupt("spoilt on purpose".to_owned()));
    drop(inner);
    commit(&store, &batch(22, 3));
    assert_eq!(settle(&mut *a, 100), [22, 23, 24]);
    assert_exact(&store, folder.path());
}

#[tokio::test]
async fn what_was_delivered_and_could_not_be_noted_is_not_sent_again() {
    use vahti_runtime::delivery::{EmitterConfig, EmitterHandle, EmitterState};
    let folder = tempfile::tempdir().unwrap();
    let medium = Medium { busy: Duration::from_millis(5), ..Medium::default() };
    let names = vec!["a".to_owned()];
    let store = Store::open_on(medium, config(folder.path()), names, Duration::ZERO).unwrap();
    commit(&store, &batch(1, 20));
    let other = rusqlite::Connection::open(folder.path().join("events.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (make, served) = vahti_runtime::testing::CapturingEmitter::new("a");
    let make = move || Box::new(make()) as Box<_>;
    let log = Arc::new(store.clone());
    let emitter = EmitterHandle::start_durable(make, EmitterConfig::default(), log).unwrap();
    let until = async |what: &dyn Fn() -> bool| {
        for _ in 0..10_000 {
            if what() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("it did not come true within 10 s");
    };
    until(&|| matches!(emitter.state(), EmitterState::Failing(_))).await;
    // Several tries later.
    until(&|| store.shared.view().cursors >= 4).await;
    other.execute_batch("ROLLBACK").unwrap();
    until(&|| store.line("a").delivered.envelopes == 20).await;
    assert_eq!(served.occurrences(), (1..=20).sum::<u64>(), "once each");
    commit(&store, &batch(21, 1));
    until(&|| emitter.state() == EmitterState::Working).await;
    until(&|| store.line("a").delivered.envelopes == 21).await;
    assert_eq!(served.occurrences(), (1..=21).sum::<u64>());
    assert!(emitter.end(tokio::time::Instant::now() + Duration::from_secs(5)).await);
    assert_exact(&store, folder.path());
}

#[test]
fn a_clock_that_was_set_forward_empties_no_store_that_is_opened_anew() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path(), NOBODY);
    // As if it had been set a year forward since the start.
    let year = 365 * 86_400_000_000_000;
    let past = ClockPair::now().wall_ns - year;
    Arc::get_mut(&mut store.shared).unwrap().began.wall_ns -= year;
    let old = |event: Arc<Event>| Arc::new(Event { observed_ns: past, ..(*event).clone() });
    upset(&store);
    commit(&store, &batch(1, 10).into_iter().map(old).collect::<Vec<_>>());
    upset(&store);
    commit(&store, &batch(11, 1));
    assert_eq!(kept(folder.path()).len(), 11);
}

#[test]
fn a_batch_that_comes_again_after_trouble_is_kept_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), NOBODY);
    let (first, second) = (batch(1, 3), batch(4, 3));
    commit(&store, &first);
    upset(&store);
    commit(&store, &first);
    assert_eq!(kept(folder.path()), [1, 2, 3]);
    // As if nobody could tell whether the second was committed, and the file
    // could not be opened at once.
    commit(&store, &second);
    upset(&store);
    let mut inner = store.shared.lock();
    inner.last = Mark::of(&first);
    inner.unsure = Mark::of(&second).map(|mark| (mark, 6));
    drop(inner);
    commit(&store, &second);
    assert_eq!(kept(folder.path()), [1, 2, 3, 4, 5, 6]);
    // And as if it was not.
    let third = batch(7, 3);
    upset(&store);
    store.shared.lock().unsure = Mark::of(&third).map(|mark| (mark, 9));
    commit(&store, &third);
    assert_eq!(kept(folder.path()), (1..=9).collect::<Vec<_>>());
    assert_exact(&store, folder.path());
}

#[test]
fn a_log_that_can_not_be_written_back_has_the_file_opened_anew() {
    use super::lossy::{Disk, Image, NAME, Random};
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::of(folder.path(), &Image::new(), Random::new(0));
    let medium = Medium { vfs: Some(NAME), ..Medium::default() };
    let store = Store::open_on(medium, config(folder.path()), vec![], Duration::ZERO).unwrap();
    commit(&store, &batch(1, 200));
    let log = folder::with_suffix(&folder.path().join("events.db"), "-wal");
    let log = fs::OpenOptions::new().write(true).open(log).unwrap();
    log.set_len(writer::wal_bytes(8 << 20) + 1).unwrap();
    disk.limit(Some(0));
    let outcome = emit(&mut store.emitter(), &batch(201, 1));
    let EmitOutcome::Retryable { reason, .. } = outcome else { panic!("{outcome:?}") };
    assert!(reason.contains("full"), "{reason}");
    assert!(store.shared.lock().writer.is_none(), "it goes on with what failed");
    disk.limit(None);
    commit(&store, &batch(201, 1));
    assert_eq!(kept(folder.path()).len(), 201);
    assert_exact(&store, folder.path());
}

#[test]
fn what_is_too_old_leaves_tick_by_tick_until_nothing_of_it_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let config = StoreConfig { max_bytes: ByteSize::mib(64), ..config(folder.path()) };
    let store = Store::open(config, vec![], Duration::ZERO).unwrap();
    for round in 0..11 {
        commit(&store, &normal(1 + round * 2_000, 2_000));
    }
    let mut inner = store.shared.lock();
    let connection = &inner.writer.as_ref().unwrap().connection;
    connection.execute_batch("UPDATE events SET observed = 0").unwrap();
    inner.aged_ns = 0;
    drop(inner);
    upset(&store);
    store.shared.ready(&mut store.shared.lock()).unwrap();
    store.tick();
    assert_eq!(store.own_line().stored.envelopes, 2_000);
    store.tick();
    assert_eq!(store.own_line().stored.envelopes, 0);
    assert_exact(&store, folder.path());
}

#[test]
fn a_cursor_that_was_left_behind_has_no_say_in_what_its_successor_sends() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), &["a"]);
    commit(&store, &batch(1, 20));
    let mut first = store.cursor("a").unwrap();
    assert_eq!(first.read(20).unwrap().len(), 20);
    let mut second = store.cursor("a").unwrap();
    let owed = second.read(7).unwrap();
    drop(first);
    assert_eq!(store.line("a").in_flight.envelopes, 7);
    second.settle(all(&owed)).unwrap();
    assert_eq!(store.line("a").in_flight.envelopes, 0);
    assert_eq!(store.line("a").difference, 0);
}

#[test]
fn a_smaller_cap_makes_the_file_smaller() {
    let folder = tempfile::tempdir().unwrap();
    let large = StoreConfig { max_bytes: ByteSize::mib(64), ..config(folder.path()) };
    let store = Store::open(large, vec![], Duration::ZERO).unwrap();
    for round in 0..20 {
        commit(&store, &normal(1 + round * 2_000, 2_000));
    }
    store.end();
    drop(store);
    let size = || fs::metadata(folder.path().join("events.db")).unwrap().len();
    assert!(size() > 12 << 20, "{}", size());
    let store = open(folder.path(), NOBODY);
    for round in 0..60 {
        commit(&store, &normal(100_000 + round, 1));
    }
    store.end();
    assert!(size() <= 8 << 20, "{}", size());
    assert_exact(&store, folder.path());
}

#[test]
fn a_file_of_somebody_else_is_set_aside_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("events.db");
    let other = rusqlite::Connection::open(&file).unwrap();
    other.execute_batch("PRAGMA auto_vacuum = FULL; CREATE TABLE theirs (a)").unwrap();
    drop(other);
    let before = fs::read(&file).unwrap();
    let store = open(folder.path(), NOBODY);
    assert_eq!(store.set_aside(), 1);
    let aside = files(folder.path()).into_iter().find(|name| name.contains("corrupt")).unwrap();
    assert!(fs::read(folder.path().join(aside)).unwrap() == before, "it was changed");
}
