//! What the store remembers, as people and scripts read it: `vahti events`,
//! `why`, `ledger`, and SQL as docs/store.md has it. Needs no rights.

// Helpers outside test functions fail as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::pin::pin;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use vahti_exporters::store::{Store, StoreConfig};
use vahti_runtime::clock::ClockPair;
use vahti_runtime::emitter::{EmitOutcome, EventEmitter};
use vahti_runtime::event::{
    CONNECTION_REFUSED, Comm, Event, EventData, OOM_KILL, Process, Severity, from_json_line,
};
use vahti_runtime::ids::EventId;
use vahti_runtime::testing::not_run;

const DOC: &str = include_str!("../../../docs/store.md");
const NETWORK: &str = include_str!("../../observers/tests/fixtures/network.jsonl");
const CONTAINER: &str = include_str!("../../observers/tests/fixtures/container.jsonl");

/// A store with events that were committed to it by the real thing.
struct Kept {
    folder: tempfile::TempDir,
    store: Store,
}

impl Kept {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store =
            Store::open(StoreConfig::at(folder.path()), Vec::new(), Duration::ZERO).unwrap();
        Kept { folder, store }
    }

    fn with(events: Vec<Event>) -> Self {
        let kept = Kept::new();
        kept.commit(events);
        kept
    }

    fn commit(&self, events: Vec<Event>) {
        let batch: Vec<Arc<Event>> = events.into_iter().map(Arc::new).collect();
        let mut emitter = self.store.emitter();
        let mut context = Context::from_waker(Waker::noop());
        let outcome = pin!(emitter.emit(&batch)).poll(&mut context);
        assert_eq!(outcome, Poll::Ready(EmitOutcome::Delivered));
    }

    fn path(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    fn vahti(&self, arguments: &[&str]) -> Output {
        vahti(arguments).env("VAHTI_STORE", self.folder.path()).output().unwrap()
    }

    fn events(&self, arguments: &[&str]) -> Vec<Value> {
        let output = self.vahti(&[&["events", "--format", "json"], arguments].concat());
        assert_eq!(stderr(&output), "");
        stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn sql(&self) -> Connection {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        Connection::open_with_flags(self.folder.path().join("events.db"), flags).unwrap()
    }
}

fn vahti(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vahti"));
    command.args(arguments).stdin(Stdio::null()).env_remove("VAHTI_SOCKET");
    command.env_remove("VAHTI_STORE");
    command
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn ids(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["id"].as_str().unwrap()).collect()
}

/// An id of that moment.
fn id_at(time_ns: u64, n: u64) -> EventId {
    EventId(u128::from(time_ns / 1_000_000) << 80 | u128::from(n))
}

/// The nth of refused connections, a millisecond apart.
fn refused(n: u64) -> Event {
    let time_ns = 1_700_000_000_000_000_000 + n * 1_000_000;
    let observed_ns = ClockPair::now().wall_ns;
    let event = Event::new(&CONNECTION_REFUSED, Severity::Error);
    Event { id: id_at(time_ns, n), time_ns, observed_ns, count: n + 1, ..event }
}

/// Events of real faults: those of the network of just now, some of them
/// storms and some two hours old; those of containers when they were recorded.
fn recorded() -> Vec<Event> {
    let now = ClockPair::now().wall_ns;
    let read = |lines: &str| -> Vec<Event> {
        let lines = lines.lines().filter(|line| line.starts_with('{'));
        lines.map(|line| from_json_line(line.as_bytes()).unwrap()).collect()
    };
    let network = read(NETWORK).into_iter().enumerate().map(|(i, event)| {
        let ago = if i % 4 == 3 { 7_200 } else { i as u64 * 60 };
        let time_ns = now - ago * 1_000_000_000;
        Event { id: id_at(time_ns, i as u64), time_ns, count: 1 + i as u64 % 3, ..event }
    });
    let events: Vec<Event> = network.chain(read(CONTAINER)).collect();
    assert!(events.len() > 20, "the fixtures are gone");
    events.into_iter().map(|event| Event { observed_ns: now, ..event }).collect()
}

/// A documented question: its heading, its SQL, and the command beside it.
fn questions() -> Vec<(&'static str, &'static str, &'static str)> {
    let (_, questions) = DOC.split_once("\n## Questions\n").expect("the section is gone");
    let fenced = |text: &'static str, fence: &str| {
        let (_, text) = text.split_once(&format!("```{fence}\n")).expect("a block is missing");
        text.split_once("```").unwrap().0
    };
    let read = |section: &'static str| {
        let (heading, body) = section.split_once('\n').unwrap();
        let command = fenced(body, "sh").split('|').next().unwrap().trim();
        (heading, fenced(body, "sql"), command)
    };
    questions.split("\n### ").skip(1).map(read).collect()
}

fn rows(connection: &Connection, sql: &str) -> Vec<Value> {
    let mut statement = connection.prepare(sql).unwrap();
    let columns: Vec<String> = statement.column_names().map(ToOwned::to_owned).collect();
    let read = |row: &rusqlite::Row<'_>| {
        let value = |i: usize| match row.get_ref(i).unwrap() {
            ValueRef::Null => Value::Null,
            ValueRef::Integer(n) => n.into(),
            ValueRef::Real(n) => n.into(),
            value => value.as_str().unwrap().into(),
        };
        Ok(columns.iter().enumerate().map(|(i, c)| (c.clone(), value(i))).collect())
    };
    statement.query_map([], read).unwrap().map(Result::unwrap).collect()
}

/// Occurrences by something, most first.
fn sums(events: &[Value], key: impl Fn(&Value) -> Option<Vec<String>>) -> Vec<(Vec<String>, u64)> {
    let mut sums: BTreeMap<Vec<String>, u64> = BTreeMap::new();
    for event in events {
        if let Some(key) = key(event) {
            *sums.entry(key).or_default() += event["count"].as_u64().unwrap();
        }
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    sums
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(ToOwned::to_owned)
}

fn peer(event: &Value) -> Option<String> {
    let peer = &event["network"]["peer"];
    let address: std::net::IpAddr = peer["address"].as_str()?.parse().ok()?;
    let port = peer["port"].as_u64()? as u16;
    Some(std::net::SocketAddr::new(address, port).to_string())
}

/// What a question's SQL has to return, made of what its command printed.
fn expected(heading: &str, events: &[Value]) -> Vec<Value> {
    let counted = |key: &dyn Fn(&Value) -> Option<Vec<String>>, names: &[&str], sum: &str| {
        let row = |(key, n): (Vec<String>, u64)| {
            let mut row: serde_json::Map<String, Value> = names
                .iter()
                .map(|n| (*n).to_owned())
                .zip(key.into_iter().map(Value::from))
                .collect();
            row.insert(sum.to_owned(), n.into());
            Value::Object(row)
        };
        sums(events, key).into_iter().map(row).collect::<Vec<_>>()
    };
    match heading {
        "What failed in the last hour" => {
            let mut rows =
                counted(&|e| Some(vec![text(&e["subtype"])?]), &["subtype"], "occurrences");
            for row in &mut rows {
                let same = events.iter().filter(|e| e["subtype"] == row["subtype"]);
                row["events"] = same.count().into();
            }
            rows
        }
        "Which peers refuse connections most" => {
            let mut rows = counted(&|e| Some(vec![peer(e)?]), &["peer"], "refused");
            rows.truncate(10);
            rows
        }
        "Crashes of one process" => events
            .iter()
            .map(|e| {
                let at = e["time"].as_str().unwrap()[..19].replace('T', " ");
                json!({"id": e["id"], "at": at, "pid": e["process"]["pid"],
                       "signal": e["exit"]["signal"]})
            })
            .collect(),
        "OOM kills, with usage and limit" => events
            .iter()
            .map(|e| {
                let container = e["container"]["id"].as_str().map(|id| &id[..12]);
                json!({"id": e["id"], "process": e["process"]["name"], "container": container,
                       "scope": e["oom"]["scope"], "usage_bytes": e["memory"]["usage_bytes"],
                       "limit_bytes": e["memory"]["limit_bytes"]})
            })
            .collect(),
        "The chain of a trace" => events
            .iter()
            .map(|e| {
                json!({"id": e["id"], "subtype": e["subtype"], "process": e["process"]["name"],
                       "span": e["span_id"], "parent": e["parent_span_id"]})
            })
            .collect(),
        "Failures by container" => counted(
            &|e| Some(vec![text(&e["container"]["id"])?, text(&e["subtype"])?]),
            &["container", "subtype"],
            "occurrences",
        ),
        other => panic!("no test knows the question {other:?}"),
    }
}

/// The events of a tree, causes before effects.
fn flattened(node: &Value, into: &mut Vec<Value>) {
    into.push(node["event"].clone());
    node["effects"].as_array().unwrap().iter().for_each(|effect| flattened(effect, into));
}

#[test]
fn documented_queries_return_what_the_commands_beside_them_return() {
    let kept = Kept::with(recorded());
    let connection = kept.sql();
    let questions = questions();
    assert_eq!(questions.len(), 6);
    for (heading, sql, command) in questions {
        let mut words = command.split_whitespace();
        assert_eq!(words.next(), Some("vahti"), "{command}");
        let output = kept.vahti(&words.collect::<Vec<_>>());
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""), "{command}");
        let events = if command.starts_with("vahti why") {
            let mut events = Vec::new();
            flattened(&serde_json::from_str(stdout(&output)).unwrap(), &mut events);
            events
        } else {
            stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        let rows = rows(&connection, sql);
        assert!(!rows.is_empty(), "{heading}: it proves nothing");
        assert_eq!(rows, expected(heading, &events), "{heading}");
    }
}

#[test]
fn every_table_and_column_stands_in_the_documentation() {
    let kept = Kept::new();
    let connection = kept.sql();
    let tables = rows(&connection, "SELECT name FROM sqlite_schema WHERE type = 'table'");
    let (_, schema) = DOC.split_once("### Schema, version 1").unwrap();
    for table in tables {
        let table = table["name"].as_str().unwrap();
        let (_, section) = schema.split_once(&format!("**`{table}`**")).expect(table);
        let section = section.split("**`").next().unwrap();
        let columns = rows(&connection, &format!("SELECT name FROM pragma_table_info('{table}')"));
        for column in columns {
            let name = column["name"].as_str().unwrap();
            assert!(section.contains(&format!("`{name}`")), "{table}.{name} is not documented");
        }
    }
}

#[test]
fn questions_of_a_time_or_a_chain_use_an_index() {
    let kept = Kept::new();
    let connection = kept.sql();
    for (heading, index) in
        [("What failed in the last hour", "events_time"), ("The chain of a trace", "events_trace")]
    {
        let (_, sql, _) = questions().into_iter().find(|q| q.0 == heading).unwrap();
        let plan = rows(&connection, &format!("EXPLAIN QUERY PLAN {sql}"));
        assert!(plan[0]["detail"].as_str().unwrap().contains(index), "{plan:?}");
    }
}

#[test]
fn any_number_of_events_comes_oldest_first() {
    let kept = Kept::new();
    let all: Vec<u64> = (0..3_500).collect();
    // Not committed in the order of time, and many of one moment.
    let mut events: Vec<Event> = all.iter().map(|n| refused(n / 1_200)).collect();
    for (n, event) in events.iter_mut().enumerate() {
        event.count = n as u64 + 1;
    }
    events.reverse();
    kept.commit(events);
    let counts = |limit: &str| -> Vec<u64> {
        kept.events(&["--limit", limit]).iter().map(|e| e["count"].as_u64().unwrap()).collect()
    };
    let whole = counts("0");
    assert_eq!(whole.len(), 3_500);
    let moment = |count: &u64| (count - 1) / 1_200;
    assert!(whole.is_sorted_by_key(moment), "oldest first");
    for limit in [1, 999, 1_000, 1_001, 1_200, 3_499, 3_500, 9_000] {
        let some = counts(&limit.to_string());
        let from = whole.len().saturating_sub(limit);
        assert_eq!(some, whole[from..], "{limit}");
    }
}

#[test]
fn a_moment_is_from_then_on_and_until_is_before() {
    let kept = Kept::with((0..10).map(refused).collect());
    // 1,700,000,000 s after 1970.
    let at = |ms: u64| format!("2023-11-14T22:13:20.{ms:03}Z");
    for (arguments, n) in [
        (vec!["--since".to_owned(), at(4)], 6),
        (vec!["--until".to_owned(), at(4)], 4),
        (vec!["--since".to_owned(), at(4), "--until".to_owned(), at(5)], 1),
        (vec!["--since".to_owned(), "2023-11-14".to_owned()], 10),
        (vec!["--since".to_owned(), "1h".to_owned()], 0),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        assert_eq!(kept.events(&arguments).len(), n, "{arguments:?}");
    }
}

#[test]
fn wrong_questions_are_refused_with_what_was_meant() {
    let kept = Kept::new();
    for (arguments, told) in [
        (&["events", "--since", "yesterday"][..], "how long ago, such as 5m"),
        (&["events", "--since", "1m", "--until", "5m"], "--until is not after --since"),
        (&["events", "--severity", "loud"], "must be debug, info, warning, error or fatal"),
        (&["events", "--type", "netwrok"], "did you mean network?"),
        (&["events", "--subtype", "conection_refused"], "did you mean connection_refused?"),
        (&["events", "--trace", "zz"], "must be 32 hexadecimal digits"),
        (&["events", "--peer", "localhost"], "must be an address, or an address and port"),
        (&["events", "--limit", "many"], "invalid value 'many'"),
        (&["events", "--follow", "--until", "5m"], "cannot be used with"),
        (&["why"], "<ID>"),
        (&["why", ""], "\"\" is no event's id"),
        (&["why", "\u{1b}[2J"], "\"\\x1b[2J\" is no event's id"),
    ] {
        let output = kept.vahti(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(told), "{arguments:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains('\u{1b}'));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn why_takes_an_id_or_how_it_begins_and_shows_causes_above_effects() {
    let kept = Kept::with(recorded());
    let (kill, exit) = ("01M81PH5ZSG0W767QPFGTM0HSK", "01M81PH5ZWY7DYPJYS6BM8GEQB");
    let output = kept.vahti(&["why", &exit.to_lowercase()[..16]]);
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
    let lines: Vec<&str> = stdout(&output).lines().collect();
    assert!(lines[0].contains("oom kill: hungry[25114]"), "{lines:#?}");
    assert_eq!(lines[1], format!("  id {kill}"));
    assert!(lines[2].starts_with("└─ > ") && lines[2].contains("because oom_kill"), "{lines:#?}");
    assert_eq!(lines[3], format!("     id {exit}"));
    assert_eq!(lines.len(), 4);

    let several = kept.vahti(&["why", "01m81ph5z"]);
    assert_eq!(several.status.code(), Some(1));
    assert!(stderr(&several).contains("several events have an id that begins with 01M81PH5Z:\n"));
    assert!(stderr(&several).contains(kill) && stderr(&several).contains(exit));

    for id in ["01M81PH5ZWY7DYPJYS6BM8GEQ0", "01M9"] {
        let none = kept.vahti(&["why", id]);
        assert_eq!(none.status.code(), Some(1));
        let told = format!("vahti: no event {id} is in this store");
        assert!(stderr(&none).starts_with(&told), "{}", stderr(&none));
    }
}

#[test]
fn a_cause_that_is_gone_is_named_and_an_event_of_any_id_is_found() {
    let exit = recorded().into_iter().find(|event| event.parent_span_id.is_some()).unwrap();
    // Its id says nothing of its time.
    let kept = Kept::with(vec![Event { id: EventId(7), ..exit }]);
    let output = kept.vahti(&["why", "00000000000000000000000007"]);
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
    assert!(stdout(&output).starts_with("(its cause, span "), "{}", stdout(&output));
}

#[test]
fn names_of_others_smuggle_nothing_into_text() {
    let comm = Comm::new(b"a\x1b[2J\nb\\c");
    let process = Some(Process {
        pid: Some(7),
        name: Some(comm),
        uid: None,
        parent_pid: None,
        start_ns: None,
    });
    let time_ns = ClockPair::now().wall_ns;
    let event = Event::new(&OOM_KILL, Severity::Error);
    let event = Event { id: id_at(time_ns, 1), time_ns, observed_ns: time_ns, process, ..event };
    assert_eq!(event.data, EventData::None);
    let kept = Kept::with(vec![event]);
    for format in ["text", "json"] {
        let output =
            kept.vahti(&["events", "--format", format, "--process", "a\\x1b[2J\\x0ab\\\\c"]);
        let line = stdout(&output);
        assert_eq!(line.lines().count(), 1, "{line:?}");
        assert!(!line.trim_end().chars().any(char::is_control), "{line:?}");
    }
    let events = kept.events(&[]);
    assert_eq!(events[0]["process"]["name"], "a\\x1b[2J\\x0ab\\\\c", "nothing is escaped twice");
}

fn spawn(store: &Path, arguments: &[&str]) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = vahti(arguments)
        .env("VAHTI_STORE", store)
        .env("VAHTI_SOCKET", store.join("s"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    (child, lines)
}

fn line(lines: &mut impl BufRead) -> String {
    let mut line = String::new();
    assert_ne!(lines.read_line(&mut line).unwrap(), 0, "it ended");
    line
}

fn ends(mut child: Child) {
    let begun = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None => assert!(begun.elapsed() < Duration::from_secs(20), "it goes on"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut told = String::new();
    child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert_eq!((status.code(), told.as_str()), (Some(0), ""));
}

#[test]
fn following_shows_the_newest_then_what_is_committed_and_ends_with_its_reader() {
    let kept = Kept::with((0..5).map(refused).collect());
    let (child, mut lines) = spawn(kept.folder.path(), &["events", "--limit", "2", "--follow"]);
    let count = |line: String| serde_json::from_str::<Value>(&line).unwrap()["count"].clone();
    assert_eq!([count(line(&mut lines)), count(line(&mut lines))], [4, 5]);
    kept.commit(vec![refused(5)]);
    assert_eq!(count(line(&mut lines)), 6);
    // Whatever its time is.
    kept.commit(vec![refused(0)]);
    assert_eq!(count(line(&mut lines)), 1);
    drop(lines);
    ends(child);
}

#[test]
fn following_waits_for_a_store_that_an_agent_is_about_to_begin() {
    let begun = Kept::with(vec![refused(0)]);
    begun.store.set_ledger(|| br#"{"observers":[]}"#.to_vec());
    begun.store.end();
    for command in [&["events", "--follow"][..], &["ledger", "--follow", "--json"]] {
        for there in [None, Some(&b""[..]), Some(&header_without_a_schema())] {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("events.db");
            if let Some(content) = there {
                std::fs::write(&file, content).unwrap();
            }
            // As an agent has it that was started just now.
            let lock = std::fs::File::create(folder.path().join("lock")).unwrap();
            lock.lock().unwrap();
            let (mut child, mut lines) = spawn(folder.path(), command);
            std::thread::sleep(Duration::from_millis(300));
            assert!(child.try_wait().unwrap().is_none(), "{command:?} {there:?}: does not wait");
            let ready = folder.path().join("ready");
            begun.sql().execute("VACUUM INTO ?1", [ready.to_str().unwrap()]).unwrap();
            std::fs::rename(ready, &file).unwrap();
            let first = line(&mut lines);
            let expected = if command[0] == "events" { &*refused(0).id.to_string() } else { "{" };
            assert!(first.contains(expected), "{first}");
            drop(lines);
            ends(child);
        }
    }
}

/// What a file is like of which only the first page was written.
fn header_without_a_schema() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x");
    let connection = Connection::open(&file).unwrap();
    let mode = "PRAGMA journal_mode = wal";
    connection.query_row(mode, [], |row| row.get::<_, String>(0)).unwrap();
    drop(connection);
    let page = std::fs::read(file).unwrap();
    assert_eq!(page.len(), 4_096);
    page
}

#[test]
fn following_a_store_that_is_waited_for_ends_with_its_reader_and_with_its_agent() {
    for leaves in ["reader", "agent"] {
        let folder = tempfile::tempdir().unwrap();
        let lock = std::fs::File::create(folder.path().join("lock")).unwrap();
        lock.lock().unwrap();
        let (child, lines) = spawn(folder.path(), &["events", "--follow"]);
        std::thread::sleep(Duration::from_millis(300));
        if leaves == "reader" {
            drop(lines);
            ends(child);
            continue;
        }
        drop(lock);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("there is no store in "), "{}", stderr(&output));
        drop(lines);
    }
}

#[test]
fn following_goes_on_with_a_file_that_was_begun_anew() {
    following_goes_on_after(|folder| {
        for name in ["events.db", "events.db-wal", "events.db-shm"] {
            let path = folder.join(name);
            drop(std::fs::rename(&path, path.with_extension("moved")));
        }
    });
}

#[test]
fn following_goes_on_with_a_file_that_was_emptied() {
    following_goes_on_after(|folder| {
        std::fs::write(folder.join("events.db"), b"").unwrap();
        for name in ["events.db-wal", "events.db-shm"] {
            drop(std::fs::remove_file(folder.join(name)));
        }
    });
}

/// The agent ended, somebody did this to its files, and it was started again.
fn following_goes_on_after(befalls: impl Fn(&Path)) {
    let mut kept = Kept::with((0..5).map(refused).collect());
    let (child, mut lines) = spawn(kept.folder.path(), &["events", "--limit", "1", "--follow"]);
    line(&mut lines);
    let other = Kept::new();
    std::mem::replace(&mut kept.store, other.store.clone()).end();
    befalls(kept.folder.path());
    kept.store =
        Store::open(StoreConfig::at(kept.folder.path()), Vec::new(), Duration::from_secs(5))
            .unwrap();
    kept.commit((10..13).map(refused).collect());
    for n in 11..14 {
        let event: Value = serde_json::from_str(&line(&mut lines)).unwrap();
        assert_eq!(event["count"], n);
    }
    drop(lines);
    ends(child);
}

#[test]
fn the_ledger_followed_tells_each_id_as_it_is_committed() {
    let kept = Kept::with(vec![refused(0)]);
    kept.store.set_ledger(|| br#"{"observers":[]}"#.to_vec());
    kept.store.end();
    let socket = kept.folder.path().join("s");
    let arguments = [
        "ledger",
        "--json",
        "--follow",
        "--store",
        kept.path(),
        "--socket",
        socket.to_str().unwrap(),
    ];
    let (child, lines) = spawn(kept.folder.path(), &arguments);
    let mut lines = lines.lines().map(Result::unwrap);
    assert!(lines.by_ref().any(|line| line == "}"), "the accounts come first");
    kept.commit(vec![refused(1), refused(2)]);
    for n in [1, 2] {
        let said: Value = serde_json::from_str(&lines.next().unwrap()).unwrap();
        assert_eq!(said["committed"]["id"], refused(n).id.to_string());
        assert_eq!(said["committed"]["subtype"], "connection_refused");
    }
    drop(lines);
    ends(child);
}

#[test]
fn a_store_that_cannot_be_read_says_why_and_what_to_do() {
    let kept = Kept::with(vec![refused(0)]);
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str, content: &[u8]| {
        let store = folder.path().join(name);
        std::fs::create_dir(&store).unwrap();
        std::fs::write(store.join("events.db"), content).unwrap();
        store.to_str().unwrap().to_owned()
    };
    let (garbage, begun) = (make("garbage", b"hello"), make("begun", b""));
    let newer = make("newer", b"");
    kept.sql().execute("VACUUM INTO ?1", [format!("{newer}/events.db")]).unwrap();
    let connection = Connection::open(Path::new(&newer).join("events.db")).unwrap();
    connection.pragma_update(None, "user_version", 9).unwrap();
    drop(connection);
    let file = format!("{}/events.db", kept.path());
    for (store, code, told) in [
        ("/nonexistent/store", 1, "there is no store in /nonexistent/store"),
        ("none", 64, "there is no store to read"),
        (&file, 64, "is a file; a store is a folder"),
        (&garbage, 1, "file is not a database; `vahti doctor` tells what to do"),
        (&begun, 1, "has no event yet"),
        (&newer, 1, "(schema 9): read it with that one"),
    ] {
        for command in
            [&["events"][..], &["why", "01M81PH5ZWY7DYPJYS6BM8GEQB"], &["ledger", "--follow"]]
        {
            let output = vahti(command).args(["--store", store]).output().unwrap();
            assert_eq!(output.status.code(), Some(code), "{store}: {}", stderr(&output));
            assert!(stderr(&output).contains(told), "{store}: {}", stderr(&output));
            assert_eq!(stderr(&output).lines().count(), 1);
        }
    }
}

#[test]
fn without_rights_the_store_of_others_is_closed_and_the_exit_code_is_77() {
    let kept = Kept::with(vec![refused(0)]);
    for command in ["events", "ledger"] {
        let output = Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .args([env!("CARGO_BIN_EXE_vahti"), command, "--store", kept.path()])
            .output();
        let output = match output {
            Ok(output) if !stderr(&output).contains("setpriv") => output,
            _ => return not_run("setpriv can't give up rights here"),
        };
        assert_eq!(output.status.code(), Some(77), "{}", stderr(&output));
        assert!(stderr(&output).contains("is for its owner alone"), "{}", stderr(&output));
    }
}

#[test]
fn every_filter_leaves_what_it_says() {
    let kept = Kept::with(recorded());
    let all = kept.events(&["--limit", "0"]);
    let has = |arguments: &[&str], fits: &dyn Fn(&Value) -> bool| {
        let expected: Vec<&str> =
            all.iter().filter(|e| fits(e)).map(|e| e["id"].as_str().unwrap()).collect();
        let got = kept.events(&[arguments, &["--limit", "0"]].concat());
        assert_eq!(ids(&got), expected, "{arguments:?}");
        assert!(!got.is_empty() || arguments[0] == "--pod", "{arguments:?}: it proves nothing");
    };
    has(&["--type", "container"], &|e| e["type"] == "container");
    has(&["--subtype", "oom_kill"], &|e| e["subtype"] == "oom_kill");
    has(&["--severity", "warning"], &|e| e["severity"] == "warning");
    has(&["--severity", "warning,info", "--severity", "fatal"], &|e| e["severity"] == "warning");
    has(&["--process", "hungry"], &|e| e["process"]["name"] == "hungry");
    has(&["--process", "25114"], &|e| e["process"]["pid"] == 25_114);
    has(&["--container", "4f1c"], &|e| {
        e["container"]["id"].as_str().is_some_and(|id| id.starts_with("4f1c"))
    });
    has(&["--peer", "127.0.0.1"], &|e| e["network"]["peer"]["address"] == "127.0.0.1");
    has(&["--peer", "::1"], &|e| e["network"]["peer"]["address"] == "::1");
    has(&["--peer", "[0:0::1]"], &|e| e["network"]["peer"]["address"] == "::1");
    has(&["--peer", "10.77.0.2:1000"], &|e| peer(e).as_deref() == Some("10.77.0.2:1000"));
    has(&["--peer", "[2001:db8::1]:443"], &|e| peer(e).as_deref() == Some("[2001:db8::1]:443"));
    let trace = "DE5D2A99FFD36B141BF1AAD6E24098AD";
    has(&["--trace", trace], &|e| e["trace_id"] == trace.to_lowercase());
    has(&["--pod", "default/web-0"], &|_| false);
}
