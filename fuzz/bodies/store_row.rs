//! Rows of the store whose cells hold whatever somebody wrote there: an answer
//! or an error, never a panic, and whoever is served from it gets past them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::types::Value;
use vahti_exporters::store::{Filter, Reader, Store, StoreConfig};
use vahti_runtime::durable::{DurableLog, Settled};
use vahti_runtime::emitter::EventEmitter;
use vahti_runtime::event::{Event, from_json_line};

const LINES: &str = include_str!("../../crates/runtime/src/event/json/decode/golden.jsonl");

/// What may be changed.
const CELLS: &[(&str, &[&str])] = &[
    (
        "events",
        &[
            "seq",
            "id",
            "time",
            "observed",
            "priority",
            "type",
            "subtype",
            "severity",
            "pod",
            "container",
            "process",
            "pid",
            "peer",
            "trace",
            "span",
            "parent",
            "count",
            "event",
        ],
    ),
    (
        "accounts",
        &[
            "name",
            "priority",
            "cursor",
            "routed",
            "routed_envelopes",
            "delivered",
            "rejected",
            "dropped_full",
            "dropped_age",
            "dropped_lost",
            "stored",
            "stored_envelopes",
        ],
    ),
    ("rejected", &["number", "exporter", "seq", "id", "time", "reason"]),
    ("agent", &["running", "started", "alive", "gap_from"]),
    ("ledger", &["time", "ledger"]),
];

fn root() -> &'static PathBuf {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let memory = PathBuf::from("/dev/shm");
        let root = if memory.is_dir() { memory } else { std::env::temp_dir() };
        root.join(format!("vahti-fuzz-store-{}", std::process::id()))
    })
}

/// To be called when nothing is tried any more.
#[allow(dead_code, reason = "the fuzzer never ends")]
pub(crate) fn clean_up() {
    std::fs::remove_dir_all(root()).expect("it was ours");
}

fn open(folder: &Path) -> Store {
    let config = StoreConfig::at(folder);
    Store::open(config, vec!["a".to_owned()], Duration::ZERO).expect("nobody else has it")
}

fn commit(store: &Store, events: &[Arc<Event>]) {
    let mut emitter = store.emitter();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    drop(std::pin::pin!(emitter.emit(events)).poll(&mut context));
}

fn events() -> Vec<Arc<Event>> {
    LINES.lines().filter_map(|line| from_json_line(line.as_bytes()).ok()).map(Arc::new).collect()
}

/// A store with an event of each kind, half of them delivered.
fn sound() -> &'static [u8] {
    static SOUND: OnceLock<Vec<u8>> = OnceLock::new();
    SOUND.get_or_init(|| {
        let folder = root().join("sound");
        std::fs::create_dir_all(root()).expect("a folder");
        let store = open(&folder);
        store.set_ledger(|| b"{}".to_vec());
        commit(&store, &events());
        let mut cursor = store.cursor("a").expect("it has an account");
        let owed = cursor.read(4).expect("it can be read");
        let reject = |(n, seq)| {
            let rejected = (n == 0).then(|| "never".to_owned());
            Settled { seq, rejected }
        };
        let settled = owed.iter().map(|owed| owed.seq).enumerate().map(reject).collect();
        cursor.settle(settled).expect("it can be noted");
        drop(cursor);
        store.end();
        drop(store);
        std::fs::read(folder.join("events.db")).expect("it is there")
    })
}

/// The first byte tells what sort of value the rest is.
fn value(kind: u8, rest: &[u8]) -> Value {
    let mut eight = [0; 8];
    let len = rest.len().min(8);
    eight[..len].copy_from_slice(&rest[..len]);
    match kind % 5 {
        0 => Value::Null,
        1 => Value::Integer(i64::from_le_bytes(eight)),
        2 => Value::Real(f64::from_le_bytes(eight)),
        3 => Value::Blob(rest.to_vec()),
        _ => Value::Text(String::from_utf8_lossy(rest).into_owned()),
    }
}

/// Table, column, row, sort of value; then the value.
pub(crate) fn run(input: &[u8]) {
    let [table, column, row, kind, rest @ ..] = input else { return };
    let (table, columns) = CELLS[usize::from(*table) % CELLS.len()];
    let column = columns[usize::from(*column) % columns.len()];
    let folder = root().join("spoilt");
    let sound = sound();
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("events.db"), sound).expect("a file");
    let connection = Connection::open(folder.join("events.db")).expect("it is sound");
    connection
        .execute_batch("PRAGMA synchronous = OFF; PRAGMA ignore_check_constraints = ON")
        .expect("it takes that");
    let sql = format!(
        "UPDATE OR REPLACE {table} SET {column} = ?1 WHERE rowid =
             (SELECT rowid FROM {table} LIMIT 1 OFFSET ?2 % (SELECT count(*) FROM {table}))"
    );
    // Not every column takes every value.
    drop(connection.execute(&sql, rusqlite::params![value(*kind, rest), row]));
    drop(connection);
    read(&folder);
    serve(&folder);
    std::fs::remove_dir_all(&folder).expect("it was ours");
}

fn read(folder: &Path) {
    let reader = Reader::open(folder).expect("the schema is as it was");
    let filter = Filter { after_seq: Some(0), ..Filter::default() };
    drop((reader.events(&filter), reader.events(&Filter::default()), reader.snapshot()));
    drop((reader.last_seq(), reader.chain("x", 10), reader.event("01")));
}

/// It gets to the end, whatever it does about the row.
fn serve(folder: &Path) {
    let store = open(folder);
    commit(&store, &events());
    for _ in 0..20 {
        let line = store.line("a");
        assert_eq!((line.difference, store.own_line().difference), (0, 0), "{line:#?}");
        let Ok(mut cursor) = store.cursor("a") else { continue };
        while let Ok(owed) = cursor.read(64) {
            if owed.is_empty() {
                return;
            }
            let settled = owed.iter().map(|o| Settled { seq: o.seq, rejected: None }).collect();
            if cursor.settle(settled).is_err() {
                break;
            }
        }
    }
    panic!("it does not come to the end: {:#?}", store.line("a"));
}
