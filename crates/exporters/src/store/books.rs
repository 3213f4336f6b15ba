//! Who was given what: the accounts of the store and of the exporters that it
//! serves, kept in the same transactions as the events, so that they are exact
//! whatever ends the program.

use rusqlite::{Connection, Row, params};
use vahti_runtime::event::Priority;
use vahti_runtime::ledger::{DurableCounts, Tally};

use super::writer::Trouble;

/// The store's own account. Exporters' names hold no parentheses.
pub(super) const OWN: &str = "(store)";

/// In which of [`DurableCounts::dropped`] a reason is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    Full = 0,
    Age = 1,
    Lost = 2,
}

/// One account, by priority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    /// All of this priority up to here is settled; of the store's own account,
    /// committed.
    pub(super) cursor: [u64; 2],
    pub(super) counts: [DurableCounts; 2],
    changed: bool,
}

impl Account {
    fn new(name: &str, cursor: [u64; 2]) -> Self {
        Account { name: name.to_owned(), cursor, counts: Default::default(), changed: true }
    }

    /// What is gone with files that are.
    pub(super) fn lost(&self) -> Tally {
        self.counts.iter().map(|counts| counts.dropped[Gone::Lost as usize]).sum()
    }

    fn add(&mut self, priority: Priority, tally: Tally) {
        let counts = &mut self.counts[priority as usize];
        counts.routed += tally;
        counts.stored += tally;
        self.changed = true;
    }

    fn drop(&mut self, priority: Priority, tally: Tally, why: Gone) -> Result<(), Contradiction> {
        let counts = &mut self.counts[priority as usize];
        counts.stored = counts.less_stored(tally)?;
        counts.dropped[why as usize] += tally;
        self.changed = true;
        Ok(())
    }
}

/// The accounts say that less is there than there is: somebody else wrote to
/// the file, or it is damaged in a way that SQLite can't see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Contradiction;

trait Counts {
    fn less_stored(&self, tally: Tally) -> Result<Tally, Contradiction>;
    fn add_up(&self) -> bool;
}

impl Counts for DurableCounts {
    fn less_stored(&self, tally: Tally) -> Result<Tally, Contradiction> {
        let occurrences = self.stored.occurrences.checked_sub(tally.occurrences);
        let envelopes = self.stored.envelopes.checked_sub(tally.envelopes);
        let (occurrences, envelopes) = occurrences.zip(envelopes).ok_or(Contradiction)?;
        Ok(Tally { occurrences, envelopes })
    }

    fn add_up(&self) -> bool {
        let [full, age, lost] = self.dropped;
        let parts = [self.delivered, self.rejected, full, age, lost, self.stored];
        let sum = |part: fn(&Tally) -> u64| {
            parts.iter().map(part).try_fold(0u64, |sum, part| sum.checked_add(part))
        };
        sum(|t| t.occurrences) == Some(self.routed.occurrences)
            && sum(|t| t.envelopes) == Some(self.routed.envelopes)
    }
}

/// All accounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Books {
    pub(super) own: Account,
    pub(super) exporters: Vec<Account>,
    /// All of this priority up to here has left the file.
    pub(super) gone_to: [u64; 2],
    /// Since when an unclean end has not been told yet.
    pub(super) gap_from_ns: Option<u64>,
}

impl Books {
    pub(super) fn new(exporters: &[String]) -> Self {
        let exporters = exporters.iter().map(|name| Account::new(name, [0; 2])).collect();
        let own = Account::new(OWN, [0; 2]);
        Books { own, exporters, gone_to: [0; 2], gap_from_ns: None }
    }

    /// The greatest number that was given to an event.
    pub(super) fn last_seq(&self) -> u64 {
        self.own.cursor[0].max(self.own.cursor[1])
    }

    /// Up to where every exporter has what it is owed of this priority.
    pub(super) fn settled_by_all(&self, priority: Priority) -> u64 {
        let cursors = self.exporters.iter().map(|e| e.cursor[priority as usize]);
        cursors.min().unwrap_or(u64::MAX)
    }

    pub(super) fn exporter(&self, name: &str) -> Option<&Account> {
        self.exporters.iter().find(|account| account.name == name)
    }

    /// An event was written.
    pub(super) fn commit(&mut self, seq: u64, priority: Priority, count: u64) {
        let tally = Tally::one(count);
        self.own.cursor[priority as usize] = seq;
        self.own.add(priority, tally);
        for exporter in &mut self.exporters {
            exporter.add(priority, tally);
        }
    }

    /// An event left the file; whoever still was owed it has lost it.
    pub(super) fn evict(
        &mut self,
        seq: u64,
        priority: Priority,
        count: u64,
        why: Gone,
    ) -> Result<(), Contradiction> {
        let tally = Tally::one(count);
        let gone_to = &mut self.gone_to[priority as usize];
        *gone_to = seq.max(*gone_to);
        self.own.drop(priority, tally, why)?;
        for exporter in &mut self.exporters {
            if exporter.cursor[priority as usize] < seq {
                exporter.drop(priority, tally, why)?;
            }
        }
        Ok(())
    }

    /// Moves an exporter's cursor past events that it has, or never will have.
    /// What left the file before that was counted as dropped, and stays so.
    pub(super) fn settle(
        &mut self,
        name: &str,
        priority: Priority,
        passed: &[Passed],
    ) -> Result<(), Contradiction> {
        let gone_to = self.gone_to[priority as usize];
        let Some(account) = self.exporters.iter_mut().find(|e| e.name == name) else {
            return Ok(());
        };
        for passed in passed {
            let cursor = &mut account.cursor[priority as usize];
            if passed.seq <= *cursor {
                continue;
            }
            *cursor = passed.seq;
            account.changed = true;
            if passed.seq <= gone_to {
                continue;
            }
            let counts = &mut account.counts[priority as usize];
            let tally = Tally::one(passed.count);
            counts.stored = counts.less_stored(tally)?;
            if passed.rejected {
                counts.rejected += tally;
            } else {
                counts.delivered += tally;
            }
        }
        Ok(())
    }

    /// The file is gone with all that was in it.
    pub(super) fn lose_all(&mut self) {
        for account in std::iter::once(&mut self.own).chain(&mut self.exporters) {
            for counts in &mut account.counts {
                let stored = std::mem::take(&mut counts.stored);
                counts.dropped[Gone::Lost as usize] += stored;
            }
            account.changed = true;
        }
        self.gone_to = [self.last_seq(); 2];
    }

    /// Reads the accounts of a file. Exporters that are new begin at its end;
    /// those that are not configured any more are forgotten.
    pub(super) fn load(connection: &Connection, exporters: &[String]) -> Result<Self, Trouble> {
        let mut found: Vec<Account> = Vec::new();
        let mut statement = connection.prepare("SELECT * FROM accounts")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (name, priority): (String, String) = (row.get(0)?, row.get(1)?);
            let priority = priority_of(&priority) as usize;
            let index = found.iter().position(|a| a.name == name).unwrap_or_else(|| {
                found.push(Account { changed: false, ..Account::new(&name, [0; 2]) });
                found.len() - 1
            });
            found[index].cursor[priority] = unsigned(row, 2)?;
            found[index].counts[priority] = counts_of(row)?;
            if !found[index].counts[priority].add_up() {
                return Err(Contradiction.into());
            }
        }
        let mut take = |name: &str| {
            let index = found.iter().position(|account| account.name == name)?;
            Some(found.swap_remove(index))
        };
        let own = take(OWN).unwrap_or_else(|| Account::new(OWN, [0; 2]));
        let end = [own.cursor[0].max(own.cursor[1]); 2];
        let exporters: Vec<Account> =
            exporters.iter().map(|n| take(n).unwrap_or_else(|| Account::new(n, end))).collect();
        // One that is ahead of all events would wait for ever, and numbers that
        // are used up would follow into every fresh file.
        let ahead = exporters.iter().any(|e| e.cursor.iter().max() > end.iter().max());
        if ahead || end[0] > signed(u64::MAX).unsigned_abs() / 2 {
            return Err(Contradiction.into());
        }
        for forgotten in found {
            let owed: Tally = forgotten.counts.iter().map(|c| c.stored).sum();
            if owed == Tally::default() {
                continue;
            }
            let (exporter, occurrences) = (forgotten.name, owed.occurrences);
            tracing::warn!(
                exporter,
                occurrences,
                "not configured any more: what it was owed is not kept for it"
            );
        }
        Ok(Books { own, exporters, gone_to: [0; 2], gap_from_ns: None })
    }

    /// Writes the accounts that changed.
    pub(super) fn save(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let mut statement = connection.prepare_cached(
            "INSERT OR REPLACE INTO accounts VALUES
             (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17)",
        )?;
        for account in std::iter::once(&mut self.own).chain(&mut self.exporters) {
            if !std::mem::take(&mut account.changed) {
                continue;
            }
            for priority in Priority::ALL {
                let c = &account.counts[priority as usize];
                statement.execute(params![
                    account.name,
                    priority.as_str(),
                    signed(account.cursor[priority as usize]),
                    signed(c.routed.occurrences),
                    signed(c.routed.envelopes),
                    signed(c.delivered.occurrences),
                    signed(c.delivered.envelopes),
                    signed(c.rejected.occurrences),
                    signed(c.rejected.envelopes),
                    signed(c.dropped[0].occurrences),
                    signed(c.dropped[0].envelopes),
                    signed(c.dropped[1].occurrences),
                    signed(c.dropped[1].envelopes),
                    signed(c.dropped[2].occurrences),
                    signed(c.dropped[2].envelopes),
                    signed(c.stored.occurrences),
                    signed(c.stored.envelopes),
                ])?;
            }
        }
        Ok(())
    }

    /// Has all accounts written at the next commit.
    pub(super) fn mark_changed(&mut self) {
        for account in std::iter::once(&mut self.own).chain(&mut self.exporters) {
            account.changed = true;
        }
    }
}

/// An event that an exporter is through with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Passed {
    pub(super) seq: u64,
    pub(super) count: u64,
    pub(super) rejected: bool,
}

pub(super) fn priority_of(word: &str) -> Priority {
    if word == Priority::Critical.as_str() { Priority::Critical } else { Priority::Normal }
}

/// SQLite's integers are signed; counters don't come that far in practice.
pub(super) fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(row: &Row<'_>, index: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(index)?).unwrap_or(0))
}

fn counts_of(row: &Row<'_>) -> rusqlite::Result<DurableCounts> {
    let tally = |index| -> rusqlite::Result<Tally> {
        Ok(Tally { occurrences: unsigned(row, index)?, envelopes: unsigned(row, index + 1)? })
    };
    Ok(DurableCounts {
        routed: tally(3)?,
        delivered: tally(5)?,
        rejected: tally(7)?,
        dropped: [tally(9)?, tally(11)?, tally(13)?],
        stored: tally(15)?,
        in_flight: Tally::default(),
    })
}
