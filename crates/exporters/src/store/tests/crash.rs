//! Power cuts at random moments, on a disk that loses what was not synced.
//!
//! Each life of the store ends in the middle of something; the next one begins
//! with what the disk held then, and must find all that was said to be
//! committed, or its departure counted, and accounts that fit the events.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use vahti_runtime::durable::DurableCursor;
use vahti_runtime::event::ErrorInfo;
use vahti_runtime::ledger::Tally;

use super::lossy::{Disk, Image, Random};
use super::*;

const EXPORTERS: [&str; 2] = ["fast", "slow"];

/// What is known of a committed event.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fact {
    id: String,
    priority: Priority,
    count: u64,
}

/// What must be true of the store, whatever becomes of the power.
#[derive(Default)]
struct Known {
    /// What was said to be committed, in the order of commits.
    committed: Vec<Fact>,
    /// What was being committed when the power went.
    in_doubt: Vec<Fact>,
    /// What each exporter ever said it had, by its place.
    settled: [BTreeSet<u64>; 2],
    made: u64,
    began: bool,
    seen: Seen,
}

/// What came about, so that a test that tries nothing is noticed.
#[derive(Debug, Default)]
struct Seen {
    in_doubt_kept: u64,
    in_doubt_lost: u64,
    gone: u64,
    delivered: u64,
    rejected: u64,
}

struct Life {
    disk: Arc<Disk>,
    store: Option<Store>,
    cursors: [Option<Box<dyn DurableCursor>>; 2],
    medium: Medium,
    folder: PathBuf,
}

/// Small enough for evictions to be an everyday matter.
fn small(folder: &Path) -> StoreConfig {
    StoreConfig { max_bytes: ByteSize((2 << 20) + (160 << 10)), ..StoreConfig::at(folder) }
}

fn open_on(medium: Medium, folder: &Path) -> Store {
    let exporters = EXPORTERS.map(str::to_owned).to_vec();
    Store::open_on(medium, small(folder), exporters, Duration::ZERO).unwrap()
}

fn medium(synchronous: &'static str) -> Medium {
    Medium { vfs: Some(super::lossy::NAME), synchronous, busy: Duration::from_millis(20) }
}

impl Life {
    fn begin(medium: Medium, folder: PathBuf, image: &Image, random: &mut Random) -> Self {
        fs::create_dir(&folder).unwrap();
        let disk = Disk::of(&folder, image, Random::new(random.next()));
        if random.percent(90) {
            // Now and then while it is opened; most often in the middle.
            let within = if random.percent(20) { 30 } else { 900 };
            disk.cut_at(1 + random.below(within), random.percent(25));
        }
        let store = open_on(medium, &folder);
        Life { disk, store: Some(store), cursors: [None, None], medium, folder }
    }

    /// Works until the power is gone.
    fn work(&mut self, known: &mut Known, random: &mut Random) -> Image {
        for _ in 0..60 {
            if let Some(image) = self.disk.after_cut() {
                return image;
            }
            known.began = true;
            match random.below(100) {
                0..55 => self.commit(known, random),
                55..80 => self.settle(known, random),
                80..90 => self.checkpoint(random),
                90..96 => self.age(),
                _ => self.end_and_begin(known),
            }
        }
        self.disk.cut()
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn commit(&mut self, known: &mut Known, random: &mut Random) {
        let most = if random.percent(10) { 120 } else { 12 };
        let n = 1 + random.below(most);
        let old = random.percent(10);
        let batch: Vec<Arc<Event>> = (0..n).map(|_| event(known, random, old)).collect();
        let facts = batch.iter().map(|event| Fact {
            id: event.id.to_string(),
            priority: event.kind.priority(),
            count: event.count,
        });
        known.in_doubt = facts.collect();
        let outcome = emit(&mut self.store().emitter(), &batch);
        if self.disk.after_cut().is_none() {
            assert_eq!(outcome, EmitOutcome::Delivered);
            known.committed.append(&mut known.in_doubt);
        }
    }

    fn settle(&mut self, known: &mut Known, random: &mut Random) {
        let who = usize::from(random.percent(30));
        if self.cursors[who].is_none() {
            self.cursors[who] = self.store().cursor(EXPORTERS[who]).ok();
        }
        let Some(cursor) = &mut self.cursors[who] else { return };
        let Ok(owed) = cursor.read(1 + random.below(40) as usize) else {
            self.cursors[who] = None;
            return;
        };
        let mut settled = Vec::new();
        for owed in owed {
            if random.percent(85) {
                let rejected = random.percent(5).then(|| "no".to_owned());
                known.settled[who].insert(owed.seq);
                settled.push(Settled { seq: owed.seq, rejected });
            }
        }
        if cursor.settle(settled).is_err() || random.percent(10) {
            self.cursors[who] = None;
        }
    }

    fn checkpoint(&mut self, random: &mut Random) {
        let inner = self.store().shared.lock();
        let Some(writer) = &inner.writer else { return };
        let how = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][random.below(4) as usize];
        let sql = format!("PRAGMA wal_checkpoint({how})");
        writer.connection.query_row(&sql, [], |_| Ok(())).unwrap();
    }

    fn age(&mut self) {
        let mut inner = self.store().shared.lock();
        inner.writer.as_mut().unwrap().age().unwrap();
        self.store().shared.publish(&mut inner);
    }

    /// An end as it should be, and a start, with the disk still powered.
    fn end_and_begin(&mut self, known: &mut Known) {
        known.began = false;
        self.cursors = [None, None];
        self.store().end();
        // It has the folder's lock.
        self.store = None;
        self.store = Some(open_on(self.medium, &self.folder));
    }
}

fn event(known: &mut Known, random: &mut Random, old: bool) -> Arc<Event> {
    known.made += 1;
    let kind = if random.percent(15) { &PROCESS_CRASH } else { &CONNECTION_REFUSED };
    let message = "x".repeat(random.below(600) as usize);
    let message = if random.percent(2) { message.repeat(20) } else { message };
    let now = ClockPair::now().wall_ns;
    let observed_ns = if old { now - 8 * 86_400_000_000_000 } else { now };
    Arc::new(Event {
        id: vahti_runtime::ids::EventId(u128::from(known.made) + (1 << 90)),
        count: 1 + random.below(3),
        time_ns: now,
        observed_ns,
        error: Some(ErrorInfo { code: "E".into(), message: message.into(), cause: None }),
        ..Event::new(kind, Severity::Error)
    })
}

/// Fails unless the store that was opened after a cut holds what it must.
fn check(store: &Store, known: &mut Known) -> Result<(), String> {
    let that = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
    that(store.set_aside() == 0, "the file was set aside")?;
    that(store.gap_from_ns().is_some() || !known.began, "the gap is not told")?;
    let inner = store.shared.lock();
    let writer = inner.writer.as_ref().ok_or("it can't be opened")?;
    let said: String = writer
        .connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .map_err(|error| error.to_string())?;
    that(said == "ok", &said)?;
    let rows = rows(&writer.connection).map_err(|error| error.to_string())?;
    let books = &writer.books;
    // A commit that was under way is there as a whole, or not at all.
    let routed: u64 = books.own.counts.iter().map(|c| c.routed.envelopes).sum();
    let in_doubt = std::mem::take(&mut known.in_doubt);
    if routed as usize != known.committed.len() {
        let all = known.committed.len() + in_doubt.len();
        that(routed as usize == all, "what was committed is not what is accounted for")?;
        known.committed.extend(in_doubt);
        known.seen.in_doubt_kept += 1;
    } else if !in_doubt.is_empty() {
        known.seen.in_doubt_lost += 1;
    }
    that(books.last_seq() == routed, "a place was used twice or left out")?;
    for priority in Priority::ALL {
        let p = priority as usize;
        let all = known.committed.iter().zip(1u64..).filter(|(fact, _)| fact.priority == priority);
        let all: BTreeMap<u64, &Fact> = all.map(|(fact, seq)| (seq, fact)).collect();
        let there = rows.iter().filter(|(_, fact)| fact.priority == priority);
        let there: BTreeMap<u64, &Fact> = there.map(|(seq, fact)| (*seq, fact)).collect();
        that(there.iter().all(|(seq, fact)| all.get(seq) == Some(fact)), "an event is another")?;
        // What is gone left by rule: the oldest first, and counted.
        let gone = tally(all.iter().filter(|(seq, _)| !there.contains_key(seq)).map(|(_, f)| *f));
        let oldest = all.keys().take(gone.envelopes as usize).all(|seq| !there.contains_key(seq));
        that(oldest, "what is gone is not the oldest: committed events are lost")?;
        let counts = &books.own.counts[p];
        let [full, age, lost] = counts.dropped;
        known.seen.gone += gone.envelopes;
        that(lost == Tally::default(), "counted as lost")?;
        that([full, age].into_iter().sum::<Tally>() == gone, "what is gone is not counted")?;
        that(counts.stored == tally(there.values().copied()), "stored is not what is there")?;
        that(counts.routed == tally(all.values().copied()), "routed is not what was committed")?;
        for (name, settled) in EXPORTERS.iter().zip(&known.settled) {
            let account = books.exporter(name).ok_or("an account is gone")?;
            let cursor = account.cursor[p];
            let owed = there.range(cursor + 1..).map(|(_, fact)| *fact);
            let counts = &account.counts[p];
            that(counts.stored == tally(owed), &format!("{name} is owed other than is stored"))?;
            that(counts.routed == books.own.counts[p].routed, "routed past an exporter")?;
            known.seen.delivered += counts.delivered.envelopes;
            known.seen.rejected += counts.rejected.envelopes;
            let mut passed = there.range(..=cursor);
            that(
                passed.all(|(seq, _)| settled.contains(seq)),
                &format!("{name}'s cursor is ahead of what it has"),
            )?;
        }
    }
    drop(inner);
    for line in [store.own_line(), store.line("fast"), store.line("slow")] {
        that(line.difference == 0, "a line does not add up")?;
    }
    Ok(())
}

fn tally<'a>(facts: impl Iterator<Item = &'a Fact>) -> Tally {
    facts.map(|fact| Tally::one(fact.count)).sum()
}

fn rows(connection: &rusqlite::Connection) -> rusqlite::Result<Vec<(u64, Fact)>> {
    let mut statement =
        connection.prepare("SELECT seq, id, priority, count FROM events NOT INDEXED")?;
    let rows = statement.query_map([], |row| {
        let priority: String = row.get(2)?;
        let priority = books::priority_of(&priority);
        let fact = Fact { id: row.get(1)?, priority, count: books::unsigned(row, 3)? };
        Ok((books::unsigned(row, 0)?, fact))
    })?;
    rows.collect()
}

/// Lives one after the other, each ended by a power cut; what was found amiss
/// after one of them.
fn lives(synchronous: &'static str, seed: u64, cuts: usize) -> Result<Seen, String> {
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random::new(seed);
    let mut known = Known::default();
    let mut image = Image::new();
    for n in 0..cuts {
        let path = folder.path().join(n.to_string());
        let amiss = |what: String| format!("seed {seed}, cut {n}: {what}");
        let mut life = Life::begin(medium(synchronous), path.clone(), &image, &mut random);
        image = life.work(&mut known, &mut random);
        drop(life);
        fs::remove_dir_all(&path).unwrap();
        // A look at it by itself, so that it ends nothing and begins nothing.
        let path = folder.path().join(format!("{n}-after"));
        fs::create_dir(&path).unwrap();
        let _disk = Disk::of(&path, &image, Random::new(1));
        let store = open_on(medium("FULL"), &path);
        check(&store, &mut known).map_err(amiss)?;
        drop(store);
        fs::remove_dir_all(&path).unwrap();
    }
    Ok(known.seen)
}

const CUTS: usize = 8;

#[test]
fn a_power_cut_takes_nothing_that_was_said_to_be_committed() {
    let mut all = [0; 5];
    for seed in 0..50 {
        let seen = lives("FULL", seed, CUTS).unwrap();
        let Seen { in_doubt_kept, in_doubt_lost, gone, delivered, rejected } = seen;
        let seen = [in_doubt_kept, in_doubt_lost, gone, delivered, rejected];
        all.iter_mut().zip(seen).for_each(|(all, seen)| *all += seen);
    }
    println!("in doubt kept, in doubt lost, gone, delivered, rejected: {all:?}");
    assert!(all.iter().all(|seen| *seen > 10), "{all:?}");
}

/// Were it not so, the test above would show nothing.
#[test]
fn commits_that_do_not_wait_for_the_disk_are_found_out() {
    for synchronous in ["OFF", "NORMAL"] {
        let found = (0..20).find_map(|seed| {
            let lives = AssertUnwindSafe(|| lives(synchronous, seed, CUTS));
            catch_unwind(lives).unwrap_or_else(|_| Err("it panicked".to_owned())).err()
        });
        let found = found.unwrap_or_else(|| panic!("synchronous={synchronous} passes"));
        println!("synchronous={synchronous}: {found}");
    }
}
