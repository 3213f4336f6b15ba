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
        let statement = connection.prepare_cached(writer::FIND_OLDEST).unwrap();
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
