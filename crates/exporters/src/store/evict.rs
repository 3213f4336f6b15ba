//! What leaves the file: for the cap, for its age; and pages that are given back.

use rusqlite::{Transaction, params};
use vahti_runtime::clock::ClockPair;
use vahti_runtime::event::Priority;

use super::books::{Books, Contradiction, Gone, priority_of, signed, unsigned};
use super::writer::{PAGE_BYTES, Trouble, wal_bytes};

/// Makes room below the cap: what every exporter has first, then what is still
/// owed; normal events before critical ones, older before newer.
pub(super) fn evict(
    transaction: &Transaction<'_>,
    books: &mut Books,
    max_bytes: u64,
) -> Result<(), Trouble> {
    // A batch is written before what it takes the place of leaves, and a file
    // does not become smaller again: there is room for both beside the log.
    let beside_log = max_bytes.saturating_sub(wal_bytes(max_bytes));
    let limit = beside_log - (wal_bytes(max_bytes) / 2).min(beside_log / 4);
    let mut used = used_bytes(transaction)?;
    if used <= limit {
        return Ok(());
    }
    // Somewhat more than is needed, so that not every commit has to.
    let target = limit - limit / 64;
    let stages = [
        (Priority::Normal, true),
        (Priority::Critical, true),
        (Priority::Normal, false),
        (Priority::Critical, false),
    ];
    for (priority, settled) in stages {
        // No index leads to a priority: for nothing all there is would be looked at.
        while used > target && books.own.counts[priority as usize].stored.envelopes > 0 {
            let to = if settled { books.settled_by_all(priority) } else { u64::MAX };
            let rows: u64 = books.own.counts.iter().map(|c| c.stored.envelopes).sum();
            let row_bytes = (used / rows.max(1)).max(64);
            let wanted = ((used - target) / row_bytes).clamp(16, 20_000);
            if delete(transaction, books, priority, to, wanted, Gone::Full)? == 0 {
                break;
            }
            used = used_bytes(transaction)?;
        }
    }
    let stored: u64 = books.own.counts.iter().map(|c| c.stored.envelopes).sum();
    if used > target && (stored > 0 || holds_any(transaction)?) {
        // A damaged tree leads past its rows; the file would grow for ever.
        return Err(Contradiction.into());
    }
    Ok(())
}

fn holds_any(transaction: &Transaction<'_>) -> rusqlite::Result<bool> {
    transaction.prepare_cached("SELECT 1 FROM events LIMIT 1")?.exists([])
}

fn used_bytes(transaction: &Transaction<'_>) -> rusqlite::Result<u64> {
    let number = |sql| -> rusqlite::Result<u64> {
        transaction.prepare_cached(sql)?.query_row([], |row| unsigned(row, 0))
    };
    let pages = number("PRAGMA page_count")?.saturating_sub(number("PRAGMA freelist_count")?);
    Ok(pages * PAGE_BYTES)
}

/// Deletes the oldest of a priority, up to `to`; returns how many.
fn delete(
    transaction: &Transaction<'_>,
    books: &mut Books,
    priority: Priority,
    to: u64,
    limit: u64,
    why: Gone,
) -> Result<u64, Trouble> {
    let mut statement = transaction.prepare_cached(
        "DELETE FROM events WHERE seq IN (
             SELECT seq FROM events WHERE priority = ?1 AND seq > ?2 AND seq <= ?3
             ORDER BY seq LIMIT ?4)
         RETURNING seq, count, priority",
    )?;
    let from = signed(books.gone_to[priority as usize]);
    let mut rows = statement.query(params![priority.as_str(), from, signed(to), signed(limit)])?;
    let mut deleted = 0;
    while let Some(row) = rows.next()? {
        let priority = priority_of(row.get_ref(2)?.as_str().unwrap_or_default());
        books.evict(unsigned(row, 0)?, priority, unsigned(row, 1)?, why)?;
        deleted += 1;
    }
    Ok(deleted)
}

/// From when on events are kept. By the clocks as they were at the start: one
/// that was set forward must not empty the store.
pub(super) fn oldest_ns(began: &ClockPair, now: ClockPair, max_age_ns: u64) -> u64 {
    began.wall_of(now.boot_ns).min(now.wall_ns).saturating_sub(max_age_ns)
}

/// An event's number, and when it was seen.
pub(super) type Oldest = (u64, u64);

/// What finds the oldest of a priority; it passes over those of the other.
pub(super) const FIND_OLDEST: &str =
    "SELECT seq, observed FROM events WHERE priority = ?1 AND seq > ?2 ORDER BY seq LIMIT 1";

/// How many are let go of at once for their age.
const AT_ONCE: u64 = 20_000;

/// Lets go of what was seen before `oldest_ns`, as much as is let go of at
/// once; whether that may not have been all.
pub(super) fn evict_old(
    transaction: &Transaction<'_>,
    books: &mut Books,
    oldest: &mut [Option<Oldest>; 2],
    oldest_ns: u64,
) -> Result<bool, Trouble> {
    let mut is_more = false;
    for priority in Priority::ALL {
        let p = priority as usize;
        if books.own.counts[p].stored.envelopes == 0 {
            continue;
        }
        let from = books.gone_to[p];
        let (seq, observed) = match oldest[p].filter(|(seq, _)| *seq > from) {
            Some(known) => known,
            None => {
                let found: Option<Oldest> = transaction
                    .prepare_cached(FIND_OLDEST)?
                    .query_map(params![priority.as_str(), signed(from)], |row| {
                        Ok((unsigned(row, 0)?, unsigned(row, 1)?))
                    })?
                    .next()
                    .transpose()?;
                // The accounts know of some.
                found.ok_or(Contradiction)?
            }
        };
        oldest[p] = Some((seq, observed));
        if observed >= oldest_ns {
            continue;
        }
        // What comes before the first that is kept goes, so that what is gone
        // is a beginning.
        let kept: Option<u64> = transaction
            .prepare_cached(
                "SELECT seq FROM events WHERE priority = ?1 AND seq > ?2 AND observed >= ?3
                 ORDER BY seq LIMIT 1",
            )?
            .query_map(params![priority.as_str(), signed(from), signed(oldest_ns)], |row| {
                unsigned(row, 0)
            })?
            .next()
            .transpose()?;
        let to = kept.map_or(u64::MAX, |kept| kept - 1);
        is_more |= delete(transaction, books, priority, to, AT_ONCE, Gone::Age)? >= AT_ONCE;
    }
    Ok(is_more)
}

/// How many pages are given back at once: a megabyte, which goes through the
/// write-ahead log.
const GIVEN_BACK: u64 = 256;

/// Gives pages back that nobody uses, while the file is beyond what the cap
/// leaves it: the cap was greater once. Returns how long the file is then.
pub(super) fn shrink(transaction: &Transaction<'_>, max_bytes: u64) -> rusqlite::Result<u64> {
    let number = |sql| -> rusqlite::Result<u64> {
        transaction.prepare_cached(sql)?.query_row([], |row| unsigned(row, 0))
    };
    let share = max_bytes.saturating_sub(wal_bytes(max_bytes)) / PAGE_BYTES;
    let there = number("PRAGMA page_count")?;
    let excess = there.saturating_sub(share);
    if excess == 0 {
        return Ok(there * PAGE_BYTES);
    }
    let pages = excess.min(number("PRAGMA freelist_count")?).min(GIVEN_BACK);
    if pages > 0 {
        // Every step of it gives one page back.
        let mut statement = transaction.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
        let mut steps = statement.query([])?;
        while steps.next()?.is_some() {}
    }
    Ok(number("PRAGMA page_count")? * PAGE_BYTES)
}
