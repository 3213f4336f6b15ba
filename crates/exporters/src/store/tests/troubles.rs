//! All troubles at once: whatever befalls the store, its lines add up, and
//! nothing that was committed is gone without being counted.

use std::collections::BTreeSet;

use proptest::prelude::*;
use vahti_runtime::durable::DurableCursor;
use vahti_runtime::ledger::Tally;

use super::lossy::{Disk, Image, NAME, Random, image_of};
use super::*;

const NAMES: [&str; 3] = ["a", "b", "c"];

#[derive(Debug, Clone)]
enum Step {
    Commit {
        /// Critical or not, and how long its message is.
        events: Vec<(bool, usize)>,
        old: bool,
    },
    Settle {
        who: usize,
        limit: usize,
        /// Every so-manieth is left out, or rejected.
        left_out: usize,
        rejected: usize,
    },
    Age,
    EndAndBegin,
    KillAndBegin,
    /// Ends, and begins with other exporters.
    Configure(BTreeSet<usize>),
    /// From here on files may grow by so much; `None` ends it.
    Room(Option<u64>),
    Tear {
        page: usize,
        pattern: u8,
    },
    Lock(bool),
    /// Files are removed: which of them.
    TakeAway(&'static [&'static str]),
}

const TAKEN: [&[&str]; 6] = [
    &["events.db"],
    &["events.db-wal"],
    &["events.db-shm"],
    &["events.db-wal", "events.db-shm"],
    &["events.db", "events.db-wal", "events.db-shm", "lock"],
    &["lock"],
];

fn a_step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![8 => 0usize..300, 1 => 3_000usize..20_000];
    let events = prop::collection::vec((prop::bool::weighted(0.2), size), 1..40);
    prop_oneof![
        40 => (events, prop::bool::weighted(0.1))
            .prop_map(|(events, old)| Step::Commit { events, old }),
        30 => (0usize..3, 1usize..60, 2usize..12, 2usize..30)
            .prop_map(|(who, limit, left_out, rejected)| Step::Settle { who, limit, left_out, rejected }),
        4 => Just(Step::Age),
        4 => Just(Step::EndAndBegin),
        4 => Just(Step::KillAndBegin),
        3 => prop::collection::btree_set(0usize..3, 0..=3).prop_map(Step::Configure),
        5 => prop::option::of(0u64..60_000).prop_map(Step::Room),
        2 => (0usize..60, prop_oneof![Just(0u8), Just(0xff), Just(0x5a)])
            .prop_map(|(page, pattern)| Step::Tear { page, pattern }),
        4 => any::<bool>().prop_map(Step::Lock),
        3 => prop::sample::select(&TAKEN[..]).prop_map(Step::TakeAway),
    ]
}

struct Stage {
    root: tempfile::TempDir,
    folder: PathBuf,
    lives: u32,
    disk: Arc<Disk>,
    store: Option<Store>,
    names: BTreeSet<usize>,
    cursors: [Option<Box<dyn DurableCursor>>; 3],
    foreign: Option<rusqlite::Connection>,
    made: u64,
    /// What was said to be committed since the accounts began.
    committed: Tally,
    /// What was committed when each exporter's account began.
    began: [Tally; 3],
    /// A page was torn, and it may not have been found out yet.
    torn: bool,
    room: Option<u64>,
}

fn less(a: Tally, b: Tally) -> Tally {
    let mut difference = a;
    difference -= b;
    difference
}

impl Stage {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::of(root.path(), &Image::new(), Random::new(0));
        let mut stage = Stage {
            folder: root.path().to_owned(),
            root,
            lives: 0,
            disk,
            store: None,
            names: BTreeSet::from([0, 1]),
            cursors: [None, None, None],
            foreign: None,
            made: 0,
            committed: Tally::default(),
            began: [Tally::default(); 3],
            torn: false,
            room: None,
        };
        stage.begin_with(&Image::new());
        stage
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    /// Goes on in a fresh folder with these files.
    fn begin_with(&mut self, image: &Image) {
        // A file was set aside, and the fresh one could not be begun yet: it ends
        // before what was lost could be written down anywhere.
        let unwritten = self.store.as_ref().is_some_and(|s| s.shared.view().file.is_none());
        (self.cursors, self.foreign) = ([None, None, None], None);
        self.store = None;
        self.lives += 1;
        self.folder = self.root.path().join(self.lives.to_string());
        fs::create_dir(&self.folder).unwrap();
        self.disk = Disk::of(&self.folder, image, Random::new(0));
        self.disk.limit(self.room);
        let medium = Medium { vfs: Some(NAME), busy: Duration::ZERO, ..Medium::default() };
        let config = StoreConfig {
            max_bytes: ByteSize((2 << 20) + (160 << 10)),
            ..StoreConfig::at(&self.folder)
        };
        let names = self.names.iter().map(|n| NAMES[*n].to_owned()).collect();
        let store = Store::open_on(medium, config, names, Duration::ZERO).unwrap();
        if store.shared.lock().writer.is_none() {
            // It can't be written to yet: nobody can say what it holds.
            self.room = None;
            self.disk.limit(None);
            store.shared.ready(&mut store.shared.lock()).unwrap();
        }
        if unwritten || store.set_aside() > 0 {
            // Whose accounts were in it begin anew.
            self.committed = Tally::default();
            self.began = [Tally::default(); 3];
            self.torn = false;
        }
        self.store = Some(store);
    }

    fn restart(&mut self, clean: bool) {
        if clean {
            self.store().end();
            // Whoever is the last to close empties the log.
            (self.cursors, self.foreign) = ([None, None, None], None);
            let mut inner = self.store().shared.lock();
            self.store().shared.note(&mut inner, Trouble::Later("ends".to_owned()));
        }
        let image = image_of(&self.folder);
        self.begin_with(&image.into_iter().filter(|(name, _)| !name.contains("corrupt")).collect());
    }

    fn play(&mut self, step: &Step) {
        let aside = self.store().set_aside();
        match step {
            Step::Commit { events, old } => self.commit(events, *old),
            Step::Settle { who, limit, left_out, rejected } => {
                self.settle(*who, *limit, *left_out, *rejected);
            }
            Step::Age => {
                self.store().shared.lock().aged_ns = 0;
                self.tick();
            }
            Step::EndAndBegin => return self.restart(true),
            Step::KillAndBegin => return self.restart(false),
            Step::Configure(names) => {
                let new = names.difference(&self.names).copied().collect::<Vec<_>>();
                self.names.clone_from(names);
                // Before the file may be set aside, which begins them anew too.
                new.iter().for_each(|n| self.began[*n] = self.committed);
                return self.restart(true);
            }
            Step::Room(room) => {
                self.room = *room;
                self.disk.limit(*room);
            }
            Step::Tear { page, pattern } => self.tear(*page, *pattern),
            Step::TakeAway(names) => self.take_away(names),
            Step::Lock(held) => {
                self.foreign = None;
                if *held {
                    let file = self.folder.join("events.db");
                    let other = rusqlite::Connection::open(file).unwrap();
                    // It may be torn already, or locked by what is going on.
                    let locked = other.execute_batch("BEGIN IMMEDIATE").is_ok();
                    self.foreign = locked.then_some(other);
                }
            }
        }
        if self.store().set_aside() > aside {
            self.torn = false;
        }
    }

    /// Whoever looks for damage then is waited for: what is found changes all
    /// accounts, at a moment of its own.
    fn tick(&self) {
        self.store().tick();
        let checks = self.store().shared.checks.lock().unwrap().take();
        if let Some(checks) = checks {
            checks.join().unwrap();
        }
    }

    /// Removes files, and has it noticed: who is killed before can't tell.
    fn take_away(&mut self, names: &[&str]) {
        if self.room.is_some() || self.torn || self.foreign.is_some() {
            return;
        }
        // It may have been closed for trouble that is over.
        self.store().shared.ready(&mut self.store().shared.lock()).unwrap();
        let aside = self.store().set_aside();
        names.iter().for_each(|name| fs::remove_file(self.folder.join(name)).unwrap());
        self.tick();
        assert!(self.store().shared.lock().writer.is_some());
        assert_eq!(self.store().set_aside(), aside, "{names:?}");
    }

    fn commit(&mut self, events: &[(bool, usize)], old: bool) {
        let now = ClockPair::now().wall_ns;
        let observed_ns = if old { now - 8 * 86_400_000_000_000 } else { now };
        let batch: Vec<Arc<Event>> = events
            .iter()
            .map(|(critical, len)| {
                self.made += 1;
                let kind = if *critical { &PROCESS_CRASH } else { &CONNECTION_REFUSED };
                let message = "x".repeat(*len).into();
                let error =
                    vahti_runtime::event::ErrorInfo { code: "E".into(), message, cause: None };
                Arc::new(Event {
                    id: vahti_runtime::ids::EventId(u128::from(self.made) + (1 << 90)),
                    count: 1 + self.made % 3,
                    time_ns: now,
                    observed_ns,
                    error: Some(error),
                    ..Event::new(kind, Severity::Error)
                })
            })
            .collect();
        let outcome = emit(&mut self.store().emitter(), &batch);
        if outcome == EmitOutcome::Delivered {
            batch.iter().for_each(|event| self.committed += Tally::one(event.count));
        } else {
            let excused = self.foreign.is_some() || self.room.is_some() || self.torn;
            assert!(excused, "{outcome:?}");
        }
    }

    fn settle(&mut self, who: usize, limit: usize, left_out: usize, rejected: usize) {
        if self.cursors[who].is_none() {
            self.cursors[who] = self.store().cursor(NAMES[who]).ok();
        }
        let Some(cursor) = &mut self.cursors[who] else { return };
        let Ok(owed) = cursor.read(limit) else {
            self.cursors[who] = None;
            return;
        };
        let settled = owed.iter().enumerate().filter(|(i, _)| i % left_out != left_out - 1);
        let settled = settled.map(|(i, owed)| Settled {
            seq: owed.seq,
            rejected: (i % rejected == rejected - 1).then(|| "no".to_owned()),
        });
        if cursor.settle(settled.collect()).is_err() {
            self.cursors[who] = None;
        }
    }

    /// Writes over a page, as if the disk had lost it.
    fn tear(&mut self, page: usize, pattern: u8) {
        // A write while SQLite's cache holds the page would be no disk's fault,
        // so it begins anew with what is torn.
        let mut image = image_of(&self.folder);
        let Some(file) = image.get_mut("events.db") else { return };
        let at = page * 4_096;
        if at + 4_096 <= file.len() {
            file[at..at + 4_096].fill(pattern);
            self.torn = true;
        }
        self.begin_with(&image.into_iter().filter(|(name, _)| !name.contains("corrupt")).collect());
    }

    fn check(&self) {
        let own = self.store().own_line();
        assert_eq!(own.difference, 0, "{own:#?}");
        assert_eq!(own.routed, self.committed, "what is committed is routed, once");
        for n in &self.names {
            let line = self.store().line(NAMES[*n]);
            assert_eq!(line.difference, 0, "{line:#?}");
            assert_eq!(line.routed, less(self.committed, self.began[*n]), "{line:#?}");
            let parts = [line.delivered, line.rejected, line.dropped_total(), line.stored];
            let parts: Tally = parts.into_iter().chain([line.in_flight]).sum();
            assert_eq!(line.routed.envelopes, parts.envelopes, "{line:#?}");
        }
        let inner = self.store().shared.lock();
        let Some(writer) = &inner.writer else { return };
        let there = |sql: &str| -> rusqlite::Result<Tally> {
            writer.connection.query_row(sql, [], |row| {
                Ok(Tally {
                    occurrences: books::unsigned(row, 0)?,
                    envelopes: books::unsigned(row, 1)?,
                })
            })
        };
        if self.torn {
            return;
        }
        let sums = "SELECT coalesce(sum(count), 0), count(*) FROM events NOT INDEXED";
        assert_eq!(own.stored, there(sums).unwrap(), "stored is what is there");
        for n in &self.names {
            let account = writer.books.exporter(NAMES[*n]).unwrap();
            for priority in Priority::ALL {
                let p = priority as usize;
                let (word, cursor) = (priority.as_str(), account.cursor[p]);
                let owed = there(&format!("{sums} WHERE priority = '{word}' AND seq > {cursor}"));
                assert_eq!(account.counts[p].stored, owed.unwrap(), "{} {word}", NAMES[*n]);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 40,
        max_shrink_iters: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_befalls_it_all_lines_add_up(steps in prop::collection::vec(a_step(), 1..80)) {
        let mut stage = Stage::new();
        for step in &steps {
            stage.play(step);
            stage.check();
        }
    }
}
