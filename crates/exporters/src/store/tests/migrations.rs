//! Files of an older version become like those of a newer one: there is only
//! one so far, so the newer ones are those of these tests.

use rusqlite::Connection;

use super::schema::{Found, STEPS};
use super::*;

const ADD: &str = "ALTER TABLE events ADD COLUMN cluster TEXT; UPDATE events SET cluster = 'one'";
const INDEX: &str = "CREATE INDEX events_cluster ON events (cluster)";
const FAILS: &str = "DELETE FROM events; CREATE TABLE events (a)";

/// A file of version 1, as a kill leaves it, with rows in every table.
fn first(folder: &Path) -> Connection {
    let store = open(folder, &["a"]);
    commit(&store, &batch(1, 50));
    let mut a = store.cursor("a").unwrap();
    let owed = a.read(10).unwrap();
    let reason = Some("no".to_owned());
    a.settle(vec![Settled { seq: owed[0].seq, rejected: reason }]).unwrap();
    drop((a, store));
    Connection::open(folder.join("events.db")).unwrap()
}

fn version(connection: &Connection) -> u32 {
    connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
}

/// All that a file of version 1 holds, and its schema.
fn contents(connection: &Connection) -> Vec<String> {
    let tables = ["events", "accounts", "rejected", "agent", "ledger", "sqlite_schema"];
    let rows_of = |table: &str| -> Vec<String> {
        let mut statement = connection.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns = statement.column_count().min(18);
        let mut rows = statement.query([]).unwrap();
        let mut found = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            let cells = (0..columns).map(|i| format!("{:?}", row.get_ref(i).unwrap()));
            found.push(format!("{table} {}", cells.collect::<Vec<_>>().join("|")));
        }
        found
    };
    tables.into_iter().flat_map(rows_of).collect()
}

#[test]
fn an_older_file_is_brought_up_step_by_step_with_all_that_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = first(folder.path());
    let before = contents(&file);
    assert_eq!(schema::migrate(&mut file, &[STEPS[0], ADD, INDEX]).unwrap(), Found::Ours);
    assert_eq!(version(&file), 3);
    let is_row = |line: &&String| !line.starts_with("sqlite_schema");
    let after = contents(&file);
    assert!(before.iter().filter(is_row).eq(after.iter().filter(is_row)));
    let clusters: u32 = file
        .query_row("SELECT count(*) FROM events WHERE cluster = 'one'", [], |row| row.get(0))
        .unwrap();
    assert_eq!(clusters, 50);
    // Once is enough, and a fresh file comes to the same.
    assert_eq!(schema::migrate(&mut file, &[STEPS[0], FAILS, FAILS]).unwrap(), Found::Ours);
    let mut fresh = Connection::open(folder.path().join("fresh.db")).unwrap();
    assert_eq!(schema::migrate(&mut fresh, &[STEPS[0], ADD, INDEX]).unwrap(), Found::Ours);
    let sql = "SELECT group_concat(sql) FROM sqlite_schema";
    let schema_of = |file: &Connection| file.query_row(sql, [], |row| row.get::<_, String>(0));
    assert_eq!(schema_of(&file).unwrap(), schema_of(&fresh).unwrap());
}

#[test]
fn a_migration_that_fails_in_the_middle_leaves_the_older_file_whole_and_the_next_one_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = first(folder.path());
    let before = contents(&file);
    assert!(schema::migrate(&mut file, &[STEPS[0], ADD, FAILS]).is_err());
    assert_eq!((version(&file), contents(&file) == before), (1, true));
    drop(file);
    // The older agent goes on with it.
    let store = open(folder.path(), &["a"]);
    assert_eq!(store.set_aside(), 0);
    commit(&store, &batch(51, 5));
    assert_exact(&store, folder.path());
    assert_eq!(store.line("a").rejected.envelopes, 1);
    drop(store);
    // And so does the newer one, once it can.
    let mut file = Connection::open(folder.path().join("events.db")).unwrap();
    assert_eq!(schema::migrate(&mut file, &[STEPS[0], ADD, INDEX]).unwrap(), Found::Ours);
    assert_eq!(version(&file), 3);
    drop(file);
    // Which the older one leaves alone from then on.
    let store = open(folder.path(), &["a"]);
    commit(&store, &batch(1, 5));
    assert!(files(folder.path()).contains(&"events-v1.db".to_owned()));
    assert_eq!(store.set_aside(), 0);
}

#[test]
fn a_migration_that_a_power_cut_ends_has_not_happened() {
    use super::lossy::{Disk, NAME, Random, image_of};
    let folder = tempfile::tempdir().unwrap();
    drop(first(&folder.path().join("first")));
    let image = image_of(&folder.path().join("first"));
    let (mut old, mut new) = (0, 0);
    for seed in 0..60 {
        let path = folder.path().join(seed.to_string());
        fs::create_dir(&path).unwrap();
        let disk = Disk::of(&path, &image, Random::new(seed));
        let medium = Medium { vfs: Some(NAME), ..Medium::default() };
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE;
        let mut file = medium.connect(&path.join("events.db"), flags).unwrap();
        disk.cut_at(seed, false);
        schema::migrate(&mut file, &[STEPS[0], ADD, INDEX]).unwrap();
        drop(file);
        let path = folder.path().join(format!("{seed} after the cut"));
        fs::create_dir(&path).unwrap();
        for (name, bytes) in disk.after_cut().unwrap_or_else(|| disk.cut()) {
            fs::write(path.join(name), bytes).unwrap();
        }
        let mut file = Connection::open(path.join("events.db")).unwrap();
        match version(&file) {
            1 => old += 1,
            3 => new += 1,
            version => panic!("{version}"),
        }
        schema::migrate(&mut file, &[STEPS[0], ADD, INDEX]).unwrap();
        let sql = "SELECT count(*) FROM events WHERE cluster = 'one'";
        let events: u32 = file.query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(events, 50);
    }
    assert!(old > 2 && new > 2, "{old} {new}");
}
