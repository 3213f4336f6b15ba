//! Files that are taken away, replaced or cut short under a running store.

use std::os::unix::fs::MetadataExt;

use super::*;

const DATABASE: &str = "events.db";
const LOG: &str = "events.db-wal";
const INDEX: &str = "events.db-shm";

/// A store that has committed 1 to 20 and 21 to 40, in its own folder; of the
/// forty its exporter has ten.
struct Stage {
    root: tempfile::TempDir,
    folder: PathBuf,
    store: Store,
    cursor: Box<dyn vahti_runtime::durable::DurableCursor>,
}

impl Stage {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("store");
        let medium = Medium { busy: Duration::from_millis(5), ..Medium::default() };
        let names = vec!["a".to_owned()];
        let store = Store::open_on(medium, config(&folder), names, Duration::ZERO).unwrap();
        commit(&store, &batch(1, 20));
        let mut cursor = store.cursor("a").unwrap();
        assert_eq!(settle(&mut *cursor, 10).len(), 10);
        let stage = Stage { root, folder, store, cursor };
        stage.write_back();
        commit(&stage.store, &batch(21, 20));
        stage
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write_back(&self) {
        let mut inner = self.store.shared.lock();
        assert!(inner.writer.as_mut().unwrap().write_back().unwrap());
        self.store.shared.publish(&mut inner);
    }

    /// All that was in the file is gone, and counted; what comes now is kept,
    /// seen by others, and reaches the exporter through the cursor that it has.
    #[track_caller]
    fn lost_all(mut self, aside: &[&str]) {
        commit(&self.store, &batch(41, 5));
        assert_eq!(kept(&self.folder), [41, 42, 43, 44, 45]);
        assert_exact(&self.store, &self.folder);
        let own = self.store.own_line();
        assert_eq!((own.routed.envelopes, own.stored.envelopes), (45, 5));
        assert_eq!(own.dropped_for(DropReason::StoreLost).envelopes, 40);
        let line = self.store.line("a");
        assert_eq!(line.dropped_for(DropReason::StoreLost).envelopes, 30);
        let got = settle(&mut *self.cursor, 100);
        assert_eq!(got.iter().sum::<u64>(), 41 + 42 + 43 + 44 + 45);
        let line = self.store.line("a");
        assert_eq!((line.delivered.envelopes, line.difference), (15, 0), "{line:#?}");
        let names = files(&self.folder);
        let names: Vec<&str> =
            names.iter().filter_map(|name| name.split_once(".db.")).map(|n| n.1).collect();
        let mains = names.iter().filter(|n| !n.ends_with("-wal") && !n.ends_with("-shm"));
        let words: Vec<&str> = mains.map(|n| n.split_once('-').unwrap().0).collect();
        assert_eq!(words, aside);
        self.goes_on_after_a_restart(50);
    }

    /// Nothing is gone.
    #[track_caller]
    fn lost_nothing(mut self) {
        commit(&self.store, &batch(41, 5));
        assert_eq!(kept(&self.folder), (1..=45).collect::<Vec<_>>());
        assert_exact(&self.store, &self.folder);
        assert_eq!(settle(&mut *self.cursor, 100).len(), 35);
        let line = self.store.line("a");
        assert_eq!((line.delivered.envelopes, line.stored.envelopes), (45, 0));
        assert_eq!(self.store.own_line().dropped_total(), Tally::default());
        assert_eq!(self.store.set_aside(), 0);
        self.goes_on_after_a_restart(90);
    }

    /// After a kill, as it were.
    #[track_caller]
    fn goes_on_after_a_restart(self, events: u64) {
        let Stage { root, folder, store, cursor } = self;
        let before = kept(&folder).len() as u64;
        commit(&store, &batch(50, 45));
        let routed = store.own_line().routed;
        drop((cursor, store));
        let store = open(&folder, &["a"]);
        assert_eq!(kept(&folder).len() as u64, before + 45);
        assert_eq!(before + 45, events);
        assert_eq!(store.own_line().routed, routed);
        assert_exact(&store, &folder);
        drop(root);
    }
}

/// What can befall a store, and under which names something is set aside then.
type Case = (&'static str, fn(&Stage), &'static [&'static str]);

fn copy_of(stage: &Stage, name: &str) -> Vec<u8> {
    fs::read(stage.at(name)).unwrap()
}

/// Puts other bytes in a file's place, as `mv` does.
fn replace(stage: &Stage, name: &str, bytes: &[u8]) {
    let new = stage.at("new");
    fs::write(&new, bytes).unwrap();
    fs::rename(new, stage.at(name)).unwrap();
}

/// Puts a pipe in a file's place that nobody writes to: who opens it waits.
fn pipe(stage: &Stage, name: &str) {
    fs::remove_file(stage.at(name)).unwrap();
    let path = std::ffi::CString::new(stage.at(name).into_os_string().into_encoded_bytes());
    // SAFETY: the path is a string that ends with NUL.
    assert_eq!(unsafe { libc::mkfifo(path.unwrap().as_ptr(), 0o600) }, 0);
}

fn cut(stage: &Stage, name: &str, to: impl Fn(u64) -> u64) {
    let file = fs::OpenOptions::new().write(true).open(stage.at(name)).unwrap();
    file.set_len(to(file.metadata().unwrap().len())).unwrap();
}

/// The file without its newest events, which are in its log.
fn older(stage: &Stage) -> Vec<u8> {
    copy_of(stage, DATABASE)
}

/// Somebody else's store, with more in it.
fn of_others(stage: &Stage) -> Vec<u8> {
    let folder = stage.root.path().join("others");
    let store = open(&folder, &["a"]);
    commit(&store, &batch(1_000, 100));
    store.end();
    drop(store);
    fs::read(folder.join(DATABASE)).unwrap()
}

const LOSSES: &[Case] = &[
    ("the file is removed", |s| fs::remove_file(s.at(DATABASE)).unwrap(), &[]),
    (
        "the file and all beside it is removed",
        |s| [DATABASE, LOG, INDEX].iter().for_each(|name| fs::remove_file(s.at(name)).unwrap()),
        &[],
    ),
    ("the folder is removed", |s| fs::remove_dir_all(&s.folder).unwrap(), &[]),
    (
        "the folder is renamed",
        |s| fs::rename(&s.folder, s.root.path().join("elsewhere")).unwrap(),
        &[],
    ),
    (
        "another folder stands in its place",
        |s| {
            let others = of_others(s);
            fs::rename(&s.folder, s.root.path().join("elsewhere")).unwrap();
            fs::create_dir(&s.folder).unwrap();
            fs::write(s.at(DATABASE), others).unwrap();
        },
        &["replaced"],
    ),
    ("an older copy is moved there", |s| replace(s, DATABASE, &older(s)), &["replaced"]),
    ("a store of others is moved there", |s| replace(s, DATABASE, &of_others(s)), &["replaced"]),
    ("something else is moved there", |s| replace(s, DATABASE, b"no store"), &["replaced"]),
    ("a pipe is put there", |s| pipe(s, DATABASE), &["replaced"]),
    (
        "a folder is put there",
        |s| {
            fs::remove_file(s.at(DATABASE)).unwrap();
            fs::create_dir(s.at(DATABASE)).unwrap();
        },
        &["replaced"],
    ),
    ("the file is emptied", |s| cut(s, DATABASE, |_| 0), &["corrupt"]),
    ("the file is cut in two", |s| cut(s, DATABASE, |bytes| bytes / 2), &["corrupt"]),
    ("the log is emptied", |s| cut(s, LOG, |_| 0), &["corrupt"]),
    ("the log is cut in two", |s| cut(s, LOG, |bytes| bytes / 2), &["corrupt"]),
    (
        "the log is removed and its index cut short",
        |s| {
            fs::remove_file(s.at(LOG)).unwrap();
            cut(s, INDEX, |_| 0);
        },
        &["corrupt"],
    ),
    (
        "an older store is copied over it",
        |s| {
            let older = older(s);
            fs::write(s.at(DATABASE), older).unwrap();
            fs::write(s.at(LOG), b"").unwrap();
        },
        &["corrupt"],
    ),
];

const RESCUES: &[Case] = &[
    ("the log is removed", |s| fs::remove_file(s.at(LOG)).unwrap(), &[]),
    ("the log is replaced", |s| replace(s, LOG, b"another one"), &[]),
    ("an older log is moved there", |s| replace(s, LOG, &copy_of(s, LOG)[..9_000]), &[]),
    ("the index is removed", |s| fs::remove_file(s.at(INDEX)).unwrap(), &[]),
    ("the index is replaced", |s| replace(s, INDEX, &[0; 32_768]), &[]),
    ("the index is cut short", |s| cut(s, INDEX, |_| 0), &[]),
    (
        "log and index are removed",
        |s| [LOG, INDEX].iter().for_each(|name| fs::remove_file(s.at(name)).unwrap()),
        &[],
    ),
    (
        "another agent has the lock for a while, and commits nothing",
        |s| {
            fs::remove_file(s.at("lock")).unwrap();
            drop(open(&s.folder, &["a"]));
        },
        &[],
    ),
    ("the lock is removed", |s| fs::remove_file(s.at("lock")).unwrap(), &[]),
    ("the lock is replaced", |s| replace(s, "lock", b""), &[]),
    (
        "somebody vacuums it",
        |s| {
            let other = rusqlite::Connection::open(s.at(DATABASE)).unwrap();
            other.execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        },
        &[],
    ),
    (
        "somebody writes the log back",
        |s| {
            let other = rusqlite::Connection::open(s.at(DATABASE)).unwrap();
            other.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        },
        &[],
    ),
];

#[test]
fn what_takes_the_files_away_is_noticed_with_the_next_commit_and_what_was_in_them_is_counted() {
    for (what, befalls, aside) in LOSSES {
        eprintln!("{what}");
        let stage = Stage::new();
        befalls(&stage);
        stage.lost_all(aside);
    }
}

#[test]
fn what_takes_the_files_away_is_noticed_where_nothing_is_committed() {
    for (what, befalls, aside) in LOSSES {
        eprintln!("{what}");
        let mut stage = Stage::new();
        befalls(&stage);
        stage.store.tick();
        // There is a fresh file at once, and nothing in it.
        assert_eq!(stage.store.own_line().stored.envelopes, 0, "{what}");
        assert!(kept(&stage.folder).is_empty(), "{what}");
        assert_eq!(stage.cursor.read(100).unwrap().len(), 0, "{what}");
        stage.lost_all(aside);
    }
}

#[test]
fn what_leaves_the_file_whole_costs_nothing() {
    for (what, befalls, _) in RESCUES {
        for ticks in [false, true] {
            eprintln!("{what}, ticks {ticks}");
            let stage = Stage::new();
            befalls(&stage);
            if ticks {
                stage.store.tick();
                assert_eq!(kept(&stage.folder).len(), 40, "{what}");
            }
            stage.lost_nothing();
        }
    }
}

#[test]
fn what_was_committed_to_a_file_that_went_away_just_then_is_committed_to_the_next_one() {
    let stage = Stage::new();
    // Between the look and the commit: the ledger is written in the middle of it.
    let file = stage.at(DATABASE);
    stage.store.set_ledger(move || {
        if fs::metadata(&file).is_ok_and(|meta| meta.len() > 8 * 4_096) {
            fs::remove_file(&file).unwrap();
        }
        b"{}".to_vec()
    });
    std::thread::sleep(Duration::from_millis(110));
    commit(&stage.store, &batch(41, 5));
    assert_eq!(kept(&stage.folder), [41, 42, 43, 44, 45]);
    assert_exact(&stage.store, &stage.folder);
    let own = stage.store.own_line();
    assert_eq!(own.dropped_for(DropReason::StoreLost).envelopes, 40);
    assert_eq!(own.routed.envelopes, 45, "counted once");
}

#[test]
fn what_was_committed_while_the_file_was_away_for_a_moment_is_committed_once() {
    let mut stage = Stage::new();
    let (file, away) = (stage.at(DATABASE), stage.root.path().join("away"));
    let events = batch(41, 5);
    let mut inner = stage.store.shared.lock();
    fs::rename(&file, &away).unwrap();
    let writer = inner.writer.as_mut().unwrap();
    let trouble = writer.commit(&events, None).unwrap_err();
    assert!(matches!(trouble, writer::Trouble::Gone) && writer.is_unsure, "{trouble}");
    inner.unsure = Mark::of(&events).map(|mark| (mark, 45));
    fs::rename(&away, &file).unwrap();
    stage.store.shared.note(&mut inner, trouble);
    drop(inner);
    commit(&stage.store, &events);
    assert_eq!(kept(&stage.folder), (1..=45).collect::<Vec<_>>());
    assert_exact(&stage.store, &stage.folder);
    assert_eq!(stage.store.own_line().routed.envelopes, 45, "counted once");
    assert_eq!(settle(&mut *stage.cursor, 100).len(), 35);
}

#[test]
fn a_file_that_takes_the_place_of_the_one_that_is_open_is_never_taken_for_it() {
    let stage = Stage::new();
    replace(&stage, DATABASE, &copy_of(&stage, DATABASE));
    let inner = stage.store.shared.lock();
    let writer = inner.writer.as_ref().unwrap();
    assert!(notice::Sight::of(writer, None).is_none());
    let before = inner.sight.clone();
    let sight = notice::Sight::of(writer, before.as_ref()).unwrap();
    assert!(!sight.is_of(&stage.at(DATABASE)), "it is the one before");
    drop(inner);
    stage.lost_all(&["replaced"]);
}

#[test]
fn what_an_exporter_is_owed_reaches_it_once_the_store_is_free_again_also_without_a_commit() {
    let mut stage = Stage::new();
    fs::remove_file(stage.at("lock")).unwrap();
    let other = folder::Lock::take(&stage.folder, Duration::ZERO).unwrap();
    stage.store.tick();
    assert!(stage.store.shared.file().is_none(), "another agent has it");
    stage.store.tick();
    drop(other);
    stage.store.tick();
    assert!(stage.store.shared.file().is_some());
    assert_eq!(settle(&mut *stage.cursor, 100).len(), 30);
}

#[test]
fn a_pipe_in_the_place_of_the_file_is_not_waited_for() {
    let stage = Stage::new();
    fs::remove_file(stage.at(DATABASE)).unwrap();
    let made = std::process::Command::new("mkfifo").arg(stage.at(DATABASE)).status().unwrap();
    assert!(made.success());
    stage.lost_all(&["replaced"]);
}

#[test]
fn what_was_put_in_the_place_of_the_file_stays_as_it_is_under_another_name() {
    let stage = Stage::new();
    let others = of_others(&stage);
    replace(&stage, DATABASE, &others);
    stage.store.tick();
    let state = State::of(&stage.folder).unwrap();
    let [(aside, _)] = &state.replaced[..] else { panic!("{:?}", state.replaced) };
    assert!(state.set_aside.is_empty());
    assert!(fs::read(aside).unwrap() == others, "it was changed");
    assert!(!folder::with_suffix(aside, "-wal").exists(), "it has the other file's log");
}

#[test]
fn a_pipe_in_the_place_of_a_file_holds_up_nobody_who_looks() {
    let stage = Stage::new();
    pipe(&stage, "lock");
    pipe(&stage, DATABASE);
    assert!(matches!(Reader::open(&stage.folder), Err(ReadError::Foreign(_))));
    assert_eq!(State::of(&stage.folder).unwrap().agent, None);
}

#[test]
fn a_file_that_was_renamed_alone_is_whole_where_it_is() {
    let stage = Stage::new();
    let elsewhere = stage.root.path().join("elsewhere.db");
    fs::rename(stage.at(DATABASE), &elsewhere).unwrap();
    commit(&stage.store, &batch(41, 5));
    let moved = rusqlite::Connection::open(elsewhere).unwrap();
    let sql = "SELECT count(*) FROM events";
    assert_eq!(moved.query_row(sql, [], |row| row.get::<_, u32>(0)).unwrap(), 40);
    assert_eq!(kept(&stage.folder), [41, 42, 43, 44, 45]);
    assert_exact(&stage.store, &stage.folder);
}

#[test]
fn a_folder_that_was_renamed_holds_all_that_was_in_it() {
    let stage = Stage::new();
    let elsewhere = stage.root.path().join("elsewhere");
    fs::rename(&stage.folder, &elsewhere).unwrap();
    commit(&stage.store, &batch(41, 5));
    assert_eq!(kept(&elsewhere), (1..=40).collect::<Vec<_>>());
}

#[test]
fn two_agents_never_write_to_one_store_whatever_becomes_of_the_lock() {
    let mut stage = Stage::new();
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    fs::remove_file(stage.at("lock")).unwrap();
    let second = open(&stage.folder, &["a"]);
    let outcome = emit(&mut stage.store.emitter(), &batch(41, 5));
    let EmitOutcome::Retryable { reason, .. } = outcome else { panic!("{outcome:?}") };
    let told = format!("another vahti (pid {}) has taken the store", std::process::id());
    assert_eq!(reason, told);
    stage.store.tick();
    assert!(stage.cursor.read(10).is_err(), "the other one serves it now");
    commit(&second, &batch(100, 10));
    let mut its = second.cursor("a").unwrap();
    assert_eq!(settle(&mut *its, 25).len(), 25);
    assert_exact(&second, &stage.folder);
    drop(its);
    second.end();
    drop(second);
    // It goes on where the other one left off.
    commit(&stage.store, &batch(41, 5));
    assert_eq!(stage.store.set_aside(), 0);
    assert_eq!(kept(&stage.folder).len(), 55);
    assert_exact(&stage.store, &stage.folder);
    assert_eq!(settle(&mut *stage.cursor, 100).len(), 20);
    let line = stage.store.line("a");
    assert_eq!((line.delivered.envelopes, line.stored.envelopes, line.difference), (55, 0, 0));
    let lock = inode(stage.at("lock"));
    stage.store.tick();
    assert_eq!(inode(stage.at("lock")), lock);
    assert_eq!(State::of(&stage.folder).unwrap().agent, Some(std::process::id()));
}

#[test]
fn what_another_agent_wrote_before_it_was_noticed_is_no_damage() {
    let stage = Stage::new();
    let (lock, kept_lock) = (stage.at("lock"), stage.at("kept"));
    fs::hard_link(&lock, &kept_lock).unwrap();
    fs::remove_file(&lock).unwrap();
    let second = open(&stage.folder, &["a"]);
    commit(&second, &batch(100, 10));
    drop(second);
    // As if it had begun between the look at the lock and the commit.
    fs::rename(&kept_lock, &lock).unwrap();
    let outcome = emit(&mut stage.store.emitter(), &batch(41, 5));
    assert!(matches!(outcome, EmitOutcome::Retryable { .. }), "{outcome:?}");
    commit(&stage.store, &batch(41, 5));
    assert_eq!(stage.store.set_aside(), 0);
    assert_eq!(kept(&stage.folder).len(), 55);
    assert_exact(&stage.store, &stage.folder);
}

#[test]
fn what_others_wrote_between_two_commits_is_told_once_where_the_files_are_looked_at() {
    let stage = Stage::new();
    stage.store.tick();
    let touched = || stage.store.shared.lock().was_touched;
    commit(&stage.store, &batch(41, 5));
    assert!(!touched());
    let other = rusqlite::Connection::open(stage.at(DATABASE)).unwrap();
    other.execute_batch("UPDATE agent SET started = started + 1").unwrap();
    // These commits are its own, and the files are as they left them.
    commit(&stage.store, &batch(46, 5));
    commit(&stage.store, &batch(51, 5));
    assert!(touched());
    stage.store.tick();
    assert!(!touched());
    commit(&stage.store, &batch(56, 5));
    assert!(!touched());
    drop(other);
    assert_eq!(kept(&stage.folder), (1..=60).collect::<Vec<_>>());
    assert_exact(&stage.store, &stage.folder);
}

#[test]
fn rows_of_another_process_are_told_to_be_that() {
    let stage = Stage::new();
    let other = rusqlite::Connection::open(stage.at(DATABASE)).unwrap();
    let sql = "INSERT INTO events SELECT seq + 1, id, time, observed, priority, type, subtype,
                   severity, pod, container, process, pid, peer, trace, span, parent, count, event
               FROM events ORDER BY seq DESC LIMIT 1";
    other.execute_batch(sql).unwrap();
    let error = other.execute_batch(&sql.replace("seq + 1", "seq")).unwrap_err();
    let trouble = Trouble::from(error);
    assert!(trouble.to_string().starts_with("another process writes to it"), "{trouble}");
    assert!(matches!(trouble, Trouble::Corrupt(_)));
    drop(other);
    stage.lost_all(&["corrupt"]);
}

#[test]
fn a_newer_version_s_file_that_was_put_there_is_left_alone() {
    let stage = Stage::new();
    replace(&stage, DATABASE, &of_others(&stage));
    let newer = rusqlite::Connection::open(stage.at(DATABASE)).unwrap();
    newer.pragma_update(None, "user_version", schema::VERSION + 1).unwrap();
    drop(newer);
    let before = copy_of(&stage, DATABASE);
    commit(&stage.store, &batch(41, 5));
    assert_eq!(kept(&stage.folder), [41, 42, 43, 44, 45]);
    assert_exact(&stage.store, &stage.folder);
    assert!(copy_of(&stage, DATABASE) == before, "it was changed");
    assert_eq!(stage.store.set_aside(), 0);
}

#[test]
fn a_file_beside_that_of_a_newer_version_is_the_one_that_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path(), NOBODY));
    let newer = rusqlite::Connection::open(folder.path().join(DATABASE)).unwrap();
    newer.pragma_update(None, "user_version", schema::VERSION + 1).unwrap();
    drop(newer);
    let before = fs::read(folder.path().join(DATABASE)).unwrap();
    fs::write(folder.path().join("events-v1.db"), "no store, longer than a header".repeat(99))
        .unwrap();
    let store = open(folder.path(), NOBODY);
    commit(&store, &batch(1, 5));
    assert!(fs::read(folder.path().join(DATABASE)).unwrap() == before, "it was moved or changed");
    assert!(files(folder.path()).iter().any(|name| name.starts_with("events-v1.db.corrupt-")));
    assert_eq!(kept(folder.path()), [1, 2, 3, 4, 5]);
}
