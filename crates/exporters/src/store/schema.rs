//! What the file looks like, and how older ones become like it.

use std::io::Read;
use std::path::Path;

use rusqlite::Connection;

use super::folder;

/// The schema that this version writes.
pub(super) const VERSION: u32 = 1;

/// "VAHT": says whose file it is, to `file(1)` and to us.
pub(super) const APPLICATION_ID: u32 = 0x5641_4854;

/// What turns version n into version n + 1.
pub(super) const STEPS: [&str; VERSION as usize] = ["
-- What happened. The line of JSON that every emitter would write, beside what people ask for.
CREATE TABLE events (
    seq       INTEGER PRIMARY KEY,  -- the order of commits; never used twice
    id        TEXT NOT NULL,        -- ULID
    time      INTEGER NOT NULL,     -- when it happened, ns since 1970
    observed  INTEGER NOT NULL,     -- when it was seen, ns since 1970
    priority  TEXT NOT NULL,        -- critical, normal
    type      TEXT NOT NULL,
    subtype   TEXT NOT NULL,
    severity  TEXT NOT NULL,
    pod       TEXT,
    container TEXT,
    process   TEXT,
    pid       INTEGER,
    peer      TEXT,                 -- address:port, [address]:port
    trace     TEXT,
    span      TEXT,
    parent    TEXT,
    count     INTEGER NOT NULL,     -- how many occurrences it stands for
    event     TEXT NOT NULL         -- all of it, as JSON
);
CREATE INDEX events_time ON events (time);
-- Chains of causes are made of critical events and of those with a parent. Few are: an index over all
-- would cost every commit a page for each event.
CREATE INDEX events_trace ON events (trace) WHERE priority = 'critical' OR parent IS NOT NULL;

-- What every durable exporter is owed: all with seq > cursor. (store) is the store itself: what was
-- committed (routed), what went (dropped), and what is there (stored). Occurrences and envelopes.
CREATE TABLE accounts (
    name TEXT NOT NULL, priority TEXT NOT NULL, cursor INTEGER NOT NULL,
    routed INTEGER NOT NULL, routed_envelopes INTEGER NOT NULL,
    delivered INTEGER NOT NULL, delivered_envelopes INTEGER NOT NULL,
    rejected INTEGER NOT NULL, rejected_envelopes INTEGER NOT NULL,
    dropped_full INTEGER NOT NULL, dropped_full_envelopes INTEGER NOT NULL,
    dropped_age INTEGER NOT NULL, dropped_age_envelopes INTEGER NOT NULL,
    dropped_lost INTEGER NOT NULL, dropped_lost_envelopes INTEGER NOT NULL,
    stored INTEGER NOT NULL, stored_envelopes INTEGER NOT NULL,
    PRIMARY KEY (name, priority)
) WITHOUT ROWID;

-- The last thousand that an exporter's other side refused for good.
CREATE TABLE rejected (
    number INTEGER PRIMARY KEY, exporter TEXT NOT NULL, seq INTEGER NOT NULL, id TEXT NOT NULL,
    time INTEGER NOT NULL, reason TEXT NOT NULL
);

-- The agent that writes here: since when, until when at least, and whether it ended as it should.
CREATE TABLE agent (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    running INTEGER NOT NULL, started INTEGER NOT NULL, alive INTEGER NOT NULL, gap_from INTEGER
);
INSERT INTO agent VALUES (1, 0, 0, 0, NULL);

-- The ledger as it was at a commit, as JSON.
CREATE TABLE ledger (one INTEGER PRIMARY KEY CHECK (one = 1), time INTEGER NOT NULL, ledger TEXT NOT NULL);
"];

/// What a file turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// One of ours, brought up to this version.
    Ours,
    /// One that a newer version writes: not to be touched.
    Newer(u32),
    /// Something else.
    Foreign,
}

/// Brings a file up to the version that so many steps lead to: all the way, or
/// not at all.
///
/// # Errors
/// It can't be read or written.
pub(super) fn migrate(connection: &mut Connection, steps: &[&str]) -> rusqlite::Result<Found> {
    let latest = u32::try_from(steps.len()).unwrap_or(u32::MAX);
    let found = look(connection, latest)?;
    let Look::Version(version) = found else {
        return Ok(match found {
            Look::Newer(version) => Found::Newer(version),
            _ => Found::Foreign,
        });
    };
    if version == latest {
        return Ok(Found::Ours);
    }
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for step in steps.iter().skip(version as usize) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", latest)?;
    transaction.commit()?;
    Ok(Found::Ours)
}

/// What a file is, before anything of it is changed; an empty one will be ours.
///
/// # Errors
/// It can't be read.
pub(super) fn look_first(connection: &Connection) -> rusqlite::Result<Found> {
    Ok(match look(connection, VERSION)? {
        Look::Version(_) => Found::Ours,
        Look::Newer(version) => Found::Newer(version),
        Look::Foreign => Found::Foreign,
    })
}

/// The schema of a file that a newer version wrote, from its header, so that
/// SQLite need not open it, which alone might change it.
pub(super) fn newer_at_a_glance(file: &Path) -> Option<u32> {
    let mut header = [0; 72];
    folder::open_to_look(file).and_then(|mut file| file.read_exact(&mut header)).ok()?;
    let number = |at: usize| {
        let bytes = header.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_be_bytes(bytes))
    };
    let (version, application) = (number(60)?, number(68)?);
    (header.starts_with(b"SQLite format 3\0") && application == APPLICATION_ID)
        .then_some(version)
        .filter(|version| *version > VERSION)
}

enum Look {
    Version(u32),
    Newer(u32),
    Foreign,
}

fn look(connection: &Connection, latest: u32) -> rusqlite::Result<Look> {
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (application, version) = (number("application_id")?, number("user_version")?);
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(match (u32::try_from(application), u32::try_from(version)) {
        (Ok(0), Ok(0)) if tables == 0 => Look::Version(0),
        (Ok(APPLICATION_ID), Ok(version)) if version > latest => Look::Newer(version),
        (Ok(APPLICATION_ID), Ok(version)) if version > 0 => Look::Version(version),
        _ => Look::Foreign,
    })
}

/// Whether this is a file that this version can read; `None` for one in which
/// nothing is yet.
///
/// # Errors
/// It can't be read.
pub(super) fn is_readable(connection: &Connection) -> rusqlite::Result<Option<Found>> {
    Ok(match look(connection, VERSION)? {
        Look::Version(0) => None,
        Look::Version(VERSION) => Some(Found::Ours),
        Look::Newer(version) => Some(Found::Newer(version)),
        _ => Some(Found::Foreign),
    })
}
