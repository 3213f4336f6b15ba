//! What must be true whatever happened: from what the emitters noted, and from
//! the file, which is read without the store's own code.
#![allow(unreachable_pub)]

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rusqlite::{Connection, OpenFlags, Row};
use vahti_runtime::ledger::{DropReason, LaneLine, ObserverLedger, Tally};

use crate::faults::{Fact, Notes};

/// What is known so far.
#[derive(Default)]
pub struct Oracle {
    /// Of everything that was ever seen, by anybody: one code has one id.
    ids: BTreeMap<String, String>,
    /// Rows that were seen in the file, by id, since its accounts began.
    pub committed: BTreeMap<String, Fact>,
    /// Up to which row of which file was read.
    read: (u64, i64),
    /// What the durable emitter had when its accounts began anew.
    had: BTreeSet<String>,
    /// Pages were overwritten.
    pub spoilt: bool,
}

/// One account of the file, of one priority.
#[derive(Debug, Default, Clone, Copy)]
struct Account {
    cursor: i64,
    routed: [i64; 2],
    delivered: i64,
    rejected: i64,
    dropped: i64,
    stored: [i64; 2],
}

fn open(folder: &Path) -> Option<Connection> {
    let file = folder.join("events.db");
    let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
    connection.busy_timeout(std::time::Duration::from_secs(2)).ok()?;
    Some(connection)
}

impl Oracle {
    /// An event of this code has this id, and no other has.
    fn identify(&mut self, fact: &Fact, fed: &BTreeSet<String>) {
        if fact.is_storm() {
            return;
        }
        assert!(fed.contains(&fact.code), "nobody made {fact:?}");
        let known = self.ids.entry(fact.code.clone()).or_insert_with(|| fact.id.clone());
        assert_eq!(*known, fact.id, "{} has two ids", fact.code);
    }

    /// Reads what was committed since.
    pub fn look(&mut self, folder: &Path, fed: &BTreeSet<String>) {
        let Ok(metadata) = std::fs::metadata(folder.join("events.db")) else { return };
        if self.read.0 != metadata.ino() {
            self.read = (metadata.ino(), 0);
        }
        // What can't be read now is read later; what never can be is counted.
        let Some(rows) = open(folder).and_then(|file| rows_after(&file, self.read.1).ok()) else {
            return;
        };
        for (seq, fact) in rows {
            self.read.1 = self.read.1.max(seq);
            self.identify(&fact, fed);
            self.committed.insert(fact.id.clone(), fact);
        }
    }

    /// The file was set aside before anybody could know what it was owed.
    pub fn begin_anew(&mut self, notes: &Notes) {
        assert!(self.spoilt, "a file was set aside that nobody had spoilt");
        self.committed.clear();
        self.had = notes.has.keys().cloned().collect();
    }

    /// Whatever an emitter was given, somebody made, and in this order.
    pub fn check_notes(&mut self, notes: &Notes, fed: &BTreeSet<String>) {
        let mut last: BTreeMap<(bool, u64), u64> = BTreeMap::new();
        for fact in &notes.firsts {
            self.identify(fact, fed);
            if fact.is_storm() {
                continue;
            }
            let (observer, place) = fact.place();
            let before = last.insert((fact.critical, observer), place);
            assert!(before < Some(place), "{fact:?} came after {before:?}");
        }
    }

    /// All that was committed is accounted for: by number in the file's own
    /// accounts, by id as far as the durable emitter and the rows can tell.
    pub fn check_file(&self, folder: &Path, notes: &Notes) {
        let file = open(folder).expect("the store is there");
        let rows = match rows_after(&file, 0) {
            // A page that nobody has come to yet.
            Err(_) if self.spoilt => return,
            rows => rows.expect("it can be read"),
        };
        let ids: BTreeSet<&str> = rows.iter().map(|(_, fact)| fact.id.as_str()).collect();
        assert_eq!(ids.len(), rows.len(), "each is kept once");
        for (priority, critical) in [("critical", true), ("normal", false)] {
            let own = account(&file, "(store)", priority);
            let durable = account(&file, "durable", priority);
            let of = || rows.iter().filter(|(_, fact)| fact.critical == critical);
            let count: u64 = of().map(|(_, fact)| fact.count).sum();
            assert_eq!(own.stored, [of().count() as i64, count as i64], "{priority} {own:?}");
            let owed = of().filter(|(seq, _)| *seq > durable.cursor);
            assert!(durable.stored[0] <= owed.count() as i64, "{priority} {durable:?}");
            for account in [own, durable] {
                let parts =
                    account.delivered + account.rejected + account.dropped + account.stored[0];
                assert_eq!(account.routed[0], parts, "{priority} {account:?}");
            }
            assert_eq!(own.routed, durable.routed, "it was there from the beginning");
            let seen = self.committed.values().filter(|fact| fact.critical == critical).count();
            assert!(own.routed[0] >= seen as i64, "{seen} were seen: {own:?}");
            self.check_durable(&file, priority, critical, durable, notes);
        }
    }

    fn check_durable(
        &self,
        file: &Connection,
        priority: &str,
        critical: bool,
        account: Account,
        notes: &Notes,
    ) {
        let has = notes.has.values().filter(|fact| fact.critical == critical);
        let has = has.filter(|fact| !self.had.contains(&fact.id)).count() as i64;
        assert!(account.delivered <= has, "it has {has} {priority}: {account:?}");
        let set_aside: BTreeSet<String> = set_aside(file).expect("it can be read");
        let stored: BTreeSet<String> = rows_after(file, account.cursor)
            .expect("it can be read")
            .into_iter()
            .map(|(_, fact)| fact.id)
            .collect();
        let missing: Vec<&Fact> = self
            .committed
            .values()
            .filter(|fact| fact.critical == critical)
            .filter(|fact| !notes.has.contains_key(&fact.id) && !notes.refused.contains(&fact.id))
            .filter(|fact| !set_aside.contains(&fact.id) && !stored.contains(&fact.id))
            .collect();
        assert!(
            missing.len() as i64 <= account.dropped,
            "{priority}, committed, and neither delivered nor counted: {missing:#?} {account:?}"
        );
    }
}

fn rows_after(file: &Connection, seq: i64) -> rusqlite::Result<Vec<(i64, Fact)>> {
    let sql = "SELECT seq, id, priority, count, event FROM events WHERE seq > ?1 ORDER BY seq";
    let mut statement = file.prepare(sql)?;
    let fact = |row: &Row<'_>| {
        let event: serde_json::Value =
            serde_json::from_str(&row.get::<_, String>(4)?).unwrap_or_default();
        let code = event["error"]["code"].as_str().unwrap_or("storm-of-what").to_owned();
        let critical = row.get::<_, String>(2)? == "critical";
        let count = row.get::<_, i64>(3)? as u64;
        Ok((row.get(0)?, Fact { id: row.get(1)?, code, critical, count }))
    };
    statement.query_map([seq], fact)?.collect()
}

fn account(file: &Connection, name: &str, priority: &str) -> Account {
    let sql = "SELECT cursor, routed_envelopes, routed, delivered_envelopes, rejected_envelopes,
                   dropped_full_envelopes + dropped_age_envelopes + dropped_lost_envelopes,
                   stored_envelopes, stored
               FROM accounts WHERE name = ?1 AND priority = ?2";
    let account = file.query_row(sql, [name, priority], |row| {
        Ok(Account {
            cursor: row.get(0)?,
            routed: [row.get(1)?, row.get(2)?],
            delivered: row.get(3)?,
            rejected: row.get(4)?,
            dropped: row.get(5)?,
            stored: [row.get(6)?, row.get(7)?],
        })
    });
    account.unwrap_or_else(|error| panic!("the account of {name}: {error}"))
}

fn set_aside(file: &Connection) -> rusqlite::Result<BTreeSet<String>> {
    file.prepare("SELECT id FROM rejected")?.query_map([], |row| row.get(0))?.collect()
}

/// Every line adds up, and nothing is under way any more.
pub fn nothing_is_left(ledger: &ObserverLedger) {
    assert!(ledger.is_exact(), "{:?}\n{ledger:#?}", ledger.differences());
    assert_eq!(ledger.records.processing, 0, "{ledger:#?}");
    assert_eq!(ledger.events.folding.occurrences, 0, "{ledger:#?}");
    for lane in &ledger.lanes {
        assert_eq!((lane.queued.envelopes, lane.in_flight.envelopes), (0, 0), "{lane:#?}");
        let parts =
            lane.delivered.envelopes + lane.rejected.envelopes + lane.dropped_total().envelopes;
        assert_eq!(lane.routed.envelopes, parts, "envelopes add up in a lane too: {lane:#?}");
    }
}

/// What a lane says was delivered has arrived. What it gave up while it was
/// being sent may have, too.
pub fn lanes_agree(lanes: &[&LaneLine], arrived: u64) {
    let sum = |part: fn(&LaneLine) -> Tally| -> u64 {
        lanes.iter().map(|lane| part(lane).occurrences).sum()
    };
    let delivered = sum(|lane| lane.delivered);
    let unsure = sum(|lane| lane.dropped_for(DropReason::Unacknowledged))
        + sum(|lane| lane.dropped_for(DropReason::Unanswered));
    assert!(
        (delivered..=delivered + unsure).contains(&arrived),
        "{arrived} arrived of {delivered} delivered and {unsure} unsure: {lanes:#?}"
    );
}

/// A lane gives up a critical event only once it holds no normal one: not
/// where all of them together would have fitted.
pub fn critical_ones_come_first(lane: &LaneLine, criticals: u64, queue_size: u64) {
    let dropped = lane.dropped.iter().filter(|d| d.stage == "queue" && d.priority == "critical");
    let dropped: u64 = dropped.map(|d| d.tally.envelopes).sum();
    assert!(dropped == 0 || criticals > queue_size, "{dropped} of {criticals}: {lane:#?}");
}
