//! The one connection that writes: commits, acknowledgements, and what leaves
//! with them.

use std::cmp::Ordering;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior, ffi, params};
use vahti_runtime::clock::ClockPair;
use vahti_runtime::event::{
    AGENT_GAP, Endpoint, Event, EventData, Priority, escape, escape_text, to_json_line,
};
use vahti_runtime::ids::EventId;

use super::books::{Books, Contradiction, OWN, Passed, signed, unsigned};
use super::config::Bounds;
use super::evict::{Oldest, evict, evict_old, oldest_ns, shrink};
use super::notice::{self, Identity};
use super::schema::Found;
use super::{StoreConfig, StoreError, folder, schema};

pub(super) const PAGE_BYTES: u64 = 4096;
/// How long readers are waited for that keep the write-ahead log from being
/// begun anew. Ours take milliseconds.
const LOG_PATIENCE: Duration = Duration::from_millis(250);
/// The ledger is written with a commit, but not more often than this.
const LEDGER_INTERVAL_NS: u64 = 100_000_000;
pub(super) const DISK_FULL: &str = "the disk is full";
/// How many refused events are remembered by name.
const KEPT_REJECTED: i64 = 1_000;

/// How the file is reached.
#[derive(Debug, Clone, Copy)]
pub(super) struct Medium {
    /// Which of SQLite's ways to the file system; `None` is its own.
    pub(super) vfs: Option<&'static str>,
    /// What a commit waits for.
    pub(super) synchronous: &'static str,
    /// How long a lock that another process holds is waited for.
    pub(super) busy: Duration,
}

impl Default for Medium {
    fn default() -> Self {
        Medium { vfs: None, synchronous: "FULL", busy: Duration::from_secs(2) }
    }
}

impl Medium {
    pub(super) fn connect(&self, file: &Path, access: OpenFlags) -> rusqlite::Result<Connection> {
        let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = match self.vfs {
            None => Connection::open_with_flags(file, flags)?,
            Some(vfs) => Connection::open_with_flags_and_vfs(file, flags, vfs)?,
        };
        connection.busy_timeout(self.busy)?;
        Ok(connection)
    }
}

pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) file: PathBuf,
    /// Which file it is: it may be another's place meanwhile.
    identity: Option<Identity>,
    /// How long the file is with what its log holds, as of the last commit.
    pub(super) bytes: u64,
    synchronous: &'static str,
    busy: Duration,
    pub(super) books: Books,
    bounds: Arc<Bounds>,
    /// The cap that the log's share was reckoned from.
    max_bytes: u64,
    /// The clocks when the agent began: age is counted by them, so that a
    /// clock that is set forward does not empty the store.
    pub(super) began: ClockPair,
    ledger_written_ns: u64,
    /// By priority: the oldest that is there, and when it was seen. No index
    /// leads to it, so it is looked up only once it has left.
    oldest: [Option<Oldest>; 2],
    /// Whether a commit failed so late that it may be in the file.
    pub(super) is_unsure: bool,
    line: Vec<u8>,
}

/// Makes the ledger's JSON.
pub(super) type Ledger = dyn Fn() -> Vec<u8> + Send + Sync;

/// What went wrong, by what can be done about it.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The file can't be read: it is set aside.
    Corrupt(String),
    /// The file is not at its place any more.
    Gone,
    /// It may work later, with this file.
    Later(String),
}

impl Trouble {
    pub(super) fn why(self) -> String {
        self.to_string()
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Trouble::Corrupt(why) | Trouble::Later(why) => why,
            Trouble::Gone => "the file was removed or replaced",
        })
    }
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        let said = error.to_string();
        let rusqlite::Error::SqliteFailure(failure, _) = &error else {
            // A value that can't be what it is: somebody else wrote it. Or a
            // statement that does not fit the schema, which is ours.
            return Trouble::Corrupt(said);
        };
        match failure.code {
            // Our statements fit our schema: a table is gone.
            ErrorCode::Unknown if failure.extended_code & 0xff == ffi::SQLITE_ERROR => {
                Trouble::Corrupt(said)
            }
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Trouble::Corrupt(said),
            ErrorCode::DiskFull => Trouble::Later(DISK_FULL.to_owned()),
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
                Trouble::Later("another process holds a lock on it".to_owned())
            }
            // No agent's, which would have the lock and its own accounts.
            ErrorCode::ConstraintViolation => {
                Trouble::Corrupt(format!("another process writes to it, or it is damaged: {said}"))
            }
            // A row or an index that contradicts itself.
            ErrorCode::TypeMismatch => Trouble::Corrupt(said),
            _ => Trouble::Later(said),
        }
    }
}

/// What the lock says of the agent before this one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Before {
    /// When it was last seen alive.
    pub(super) alive_ns: u64,
    /// It did not strike itself out, as one does that ends as it should.
    pub(super) left_the_lock: bool,
}

/// What a file was like when it was opened.
pub(super) enum Opened {
    Ready(Box<Writer>),
    /// A newer version's: another file is to be taken.
    Newer(u32),
}

impl Writer {
    pub(super) fn open(
        file: &Path,
        medium: &Medium,
        (config, bounds): (&StoreConfig, Arc<Bounds>),
        exporters: &[String],
        began: ClockPair,
    ) -> Result<Opened, Trouble> {
        let identity = notice::identity(file);
        let mut connection = medium.connect(file, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        if notice::identity(file) != identity {
            // Nobody knows which of them it is.
            return Err(Trouble::Gone);
        }
        connection.execute_batch(
            "PRAGMA cell_size_check = ON; PRAGMA trusted_schema = OFF; PRAGMA temp_store = MEMORY;",
        )?;
        // What is not ours is not changed in the least.
        match schema::look_first(&connection)? {
            Found::Ours => {}
            Found::Newer(version) => return Ok(Opened::Newer(version)),
            Found::Foreign => return Err(foreign()),
        }
        connection.execute_batch("PRAGMA auto_vacuum = INCREMENTAL")?;
        let cache_kib = config.memory.cache_bytes >> 10;
        connection.pragma_update(None, "cache_size", -signed(cache_kib as u64))?;
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
        if mode != "wal" {
            let why = format!("the file system has no shared memory (journal mode {mode})");
            return Err(Trouble::Later(why));
        }
        match schema::migrate(&mut connection, &schema::STEPS)? {
            Found::Ours => {}
            Found::Newer(version) => return Ok(Opened::Newer(version)),
            Found::Foreign => return Err(foreign()),
        }
        let max_bytes = bounds.max_bytes();
        bound_log_of(&connection, max_bytes)?;
        connection.pragma_update(None, "synchronous", medium.synchronous)?;
        connection.set_prepared_statement_cache_capacity(32);
        let books = Books::load(&connection, exporters)?;
        let bytes = file_bytes(&connection)?;
        Ok(Opened::Ready(Box::new(Writer {
            connection,
            file: file.to_owned(),
            identity,
            bytes,
            synchronous: medium.synchronous,
            busy: medium.busy,
            books,
            bounds,
            max_bytes,
            began,
            ledger_written_ns: 0,
            oldest: [None; 2],
            is_unsure: false,
            line: Vec::new(),
        })))
    }

    /// Whether this is the file that is open.
    pub(super) fn is_of(&self, identity: Identity) -> bool {
        self.identity == Some(identity)
    }

    /// Notes that an agent runs. At its start it is told when the one before
    /// was last alive, and finds out since when none was, if that one did not
    /// end as it should.
    pub(super) fn begin(&mut self, before: Option<Before>) -> Result<Option<u64>, Trouble> {
        let now = ClockPair::now().wall_ns;
        let sql = "SELECT running, alive, gap_from FROM agent";
        let (running, alive, gap) = self.connection.query_row(sql, [], |row| {
            let gap: Option<i64> = row.get(2)?;
            Ok((row.get::<_, bool>(0)?, unsigned(row, 1)?, gap))
        })?;
        // One that was never told goes on.
        let untold = gap.and_then(|gap| u64::try_from(gap).ok());
        // The lock knows of an agent that never had this file: it may have had
        // another one, or none that it could open.
        let unclean = before.filter(|it| running || (it.left_the_lock && it.alive_ns > alive));
        // The clock may have been set back since; no gap has a negative length.
        let gap_from = untold.or(unclean.map(|it| alive.max(it.alive_ns).min(now)));
        let mut books = self.books.clone();
        books.gap_from_ns = books.gap_from_ns.or(gap_from);
        books.mark_changed();
        let transaction = self.connection.transaction_with_behavior(IMMEDIATE)?;
        // Those of exporters that are not configured any more go.
        transaction.execute("DELETE FROM accounts", [])?;
        books.save(&transaction)?;
        transaction.execute(
            "UPDATE agent SET running = 1, started = ?1, alive = ?1, gap_from = ?2",
            params![signed(now), books.gap_from_ns.map(signed)],
        )?;
        transaction.commit()?;
        self.books = books;
        Ok(gap_from)
    }

    /// Has the write-ahead log begin anew where it is beyond its share, which
    /// only a reader can bring about: what it may still look at can't be
    /// overwritten. Settling goes on meanwhile, as all that can be settled is
    /// bounded by what is there.
    ///
    /// Where a reader's transaction is still open, it tells whose it may be.
    ///
    /// # Errors
    /// The file or its log can't be read or written.
    pub(super) fn bound_log(&mut self) -> Result<Option<String>, Trouble> {
        let share = wal_bytes(self.max_bytes);
        let log = folder::with_suffix(&self.file, "-wal");
        if std::fs::metadata(&log).map_or(0, |meta| meta.len()) <= share {
            return Ok(None);
        }
        if self.write_back()? {
            return Ok(None);
        }
        let readers = folder::readers(&self.file);
        let readers = if readers.is_empty() { String::new() } else { format!(" ({readers})") };
        Ok(Some(format!(
            "the write-ahead log is beyond its {} MiB, as another process{readers} has kept a \
             transaction open: end that one",
            share >> 20
        )))
    }

    /// Goes by the cap as it is now: its log's share changes with it.
    fn take_up_bounds(&mut self) -> Result<(), Trouble> {
        let max_bytes = self.bounds.max_bytes();
        if max_bytes != self.max_bytes {
            bound_log_of(&self.connection, max_bytes)?;
            self.max_bytes = max_bytes;
        }
        Ok(())
    }

    /// Writes events and what comes with them, durably. Nothing of it happened
    /// where it fails.
    pub(super) fn commit(
        &mut self,
        batch: &[Arc<Event>],
        ledger: Option<&Ledger>,
    ) -> Result<(), Trouble> {
        self.take_up_bounds()?;
        let mut books = self.books.clone();
        let now = ClockPair::now();
        let transaction = write_to(&mut self.connection, &self.books)?;
        insert(&transaction, batch, &mut books, &mut self.line)?;
        evict(&transaction, &mut books, self.max_bytes)?;
        let mut oldest = self.oldest;
        let oldest_ns = oldest_ns(&self.began, now, self.bounds.max_age_ns());
        evict_old(&transaction, &mut books, &mut oldest, oldest_ns)?;
        let bytes = shrink(&transaction, self.max_bytes)?;
        if let Some(ledger) = ledger
            && now.wall_ns.abs_diff(self.ledger_written_ns) >= LEDGER_INTERVAL_NS
        {
            write_ledger(&transaction, now.wall_ns, ledger)?;
            self.ledger_written_ns = now.wall_ns;
        }
        books.save(&transaction)?;
        transaction
            .prepare_cached("UPDATE agent SET alive = ?1, gap_from = ?2")?
            .execute(params![signed(now.wall_ns), books.gap_from_ns.map(signed)])?;
        self.is_unsure = true;
        transaction.commit()?;
        if notice::identity(&self.file) != self.identity {
            // It went to a file that nobody else can see, unless that comes back.
            return Err(Trouble::Gone);
        }
        self.is_unsure = false;
        self.books = books;
        self.oldest = oldest;
        self.bytes = bytes;
        Ok(())
    }

    /// Whether the event with this number is another than this one; where it
    /// has left already nobody can say.
    pub(super) fn holds_another(&self, seq: u64, id: &EventId) -> Result<bool, Trouble> {
        let sql = "SELECT count(*) FROM events WHERE seq = ?1 AND id <> ?2";
        let values = params![signed(seq), id.to_string()];
        Ok(self.connection.query_row(sql, values, |row| row.get(0))?)
    }

    /// Writes all of the log back to the file, from the one that is open,
    /// whatever became of its name; whether nobody was in the way.
    pub(super) fn write_back(&mut self) -> Result<bool, Trouble> {
        self.connection.busy_timeout(LOG_PATIENCE)?;
        let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
        let held = self.connection.query_row(sql, [], |row| row.get::<_, bool>(0));
        self.connection.busy_timeout(self.busy)?;
        Ok(!held?)
    }

    /// Whether the file is as short as it is since somebody has vacuumed it: its
    /// header knows of that.
    pub(super) fn was_vacuumed_below(&self, bytes: u64) -> Result<bool, Trouble> {
        Ok(file_bytes(&self.connection)? < bytes)
    }

    /// Has the log stay as it is when this is closed.
    pub(super) fn leave_log(&self) {
        let option = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
        if let Err(error) = self.connection.set_db_config(option, true) {
            tracing::debug!(%error, "the log is written back");
        }
    }

    /// Lets go of what is too old, where nothing is committed; whether there
    /// may be more of it.
    pub(super) fn age(&mut self) -> Result<bool, Trouble> {
        let mut books = self.books.clone();
        let transaction = write_to(&mut self.connection, &self.books)?;
        let mut oldest = self.oldest;
        let oldest_ns = oldest_ns(&self.began, ClockPair::now(), self.bounds.max_age_ns());
        let is_more = evict_old(&transaction, &mut books, &mut oldest, oldest_ns)?;
        self.oldest = oldest;
        if books == self.books {
            return Ok(false);
        }
        books.save(&transaction)?;
        transaction.commit()?;
        self.books = books;
        Ok(is_more)
    }

    /// Moves an exporter's cursor. It is not waited for the disk: a power cut
    /// may have the exporter send some again, and loses nothing.
    pub(super) fn settle(
        &mut self,
        exporter: &str,
        passed: &[(Priority, Vec<Passed>)],
        rejected: &[(u64, String, String)],
    ) -> Result<(), Trouble> {
        let mut books = self.books.clone();
        self.connection.pragma_update(None, "synchronous", "NORMAL")?;
        let result = (|| -> Result<(), Trouble> {
            let transaction = write_to(&mut self.connection, &self.books)?;
            for (priority, passed) in passed {
                books.settle(exporter, *priority, passed)?;
            }
            if !rejected.is_empty() {
                write_rejected(&transaction, exporter, rejected)?;
            }
            books.save(&transaction)?;
            Ok(transaction.commit()?)
        })();
        self.connection.pragma_update(None, "synchronous", self.synchronous)?;
        result?;
        self.books = books;
        Ok(())
    }

    /// The agent ends as it should.
    pub(super) fn end(&mut self, ledger: Option<&Ledger>) -> Result<(), Trouble> {
        let now = ClockPair::now().wall_ns;
        let transaction = self.connection.transaction_with_behavior(IMMEDIATE)?;
        if let Some(ledger) = ledger {
            write_ledger(&transaction, now, ledger)?;
        }
        transaction.execute("UPDATE agent SET running = 0, alive = ?1", [signed(now)])?;
        transaction.commit()?;
        // So that the file alone is all there is. Not where somebody reads: the
        // log is emptied by whoever is the last to close it then.
        self.connection.busy_timeout(Duration::ZERO)?;
        let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
        if self.connection.query_row(sql, [], |row| row.get::<_, bool>(0)).unwrap_or(true) {
            tracing::debug!("somebody reads the store; its log stays");
        }
        Ok(())
    }
}

fn foreign() -> Trouble {
    Trouble::Corrupt("it is no store of vahti".to_owned())
}

const IMMEDIATE: TransactionBehavior = TransactionBehavior::Immediate;

/// Begins to write, to a file that is as these accounts say: an older copy of
/// it, or one that another agent has written to since, is not.
fn write_to<'c>(connection: &'c mut Connection, books: &Books) -> Result<Transaction<'c>, Trouble> {
    let transaction = connection.transaction_with_behavior(IMMEDIATE)?;
    let there = transaction
        .prepare_cached("SELECT max(cursor) FROM accounts WHERE name = ?1")?
        .query_row([OWN], |row| unsigned(row, 0))?;
    match there.cmp(&books.last_seq()) {
        Ordering::Equal => Ok(transaction),
        Ordering::Less => Err(older()),
        Ordering::Greater => Err(Trouble::Later("another vahti has written to it".to_owned())),
    }
}

/// Its rows and what was committed do not belong together any more.
pub(super) fn older() -> Trouble {
    Trouble::Corrupt("what was committed last is not in it any more".to_owned())
}

fn file_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    let pages =
        connection.prepare_cached("PRAGMA page_count")?.query_row([], |row| unsigned(row, 0))?;
    Ok(pages * PAGE_BYTES)
}

/// Has the log be written back, and cut, by its share of the cap.
fn bound_log_of(connection: &Connection, max_bytes: u64) -> rusqlite::Result<()> {
    let wal_pages = wal_bytes(max_bytes) / 2 / PAGE_BYTES;
    connection.pragma_update(None, "wal_autocheckpoint", signed(wal_pages))?;
    connection.pragma_update(None, "journal_size_limit", signed(wal_bytes(max_bytes)))
}

/// What of the cap is for the write-ahead log.
pub(super) fn wal_bytes(max_bytes: u64) -> u64 {
    (max_bytes / 4).clamp(2 << 20, 32 << 20)
}

fn insert(
    transaction: &Transaction<'_>,
    batch: &[Arc<Event>],
    books: &mut Books,
    line: &mut Vec<u8>,
) -> rusqlite::Result<()> {
    let mut statement = transaction.prepare_cached(
        "INSERT INTO events VALUES (?1,?2,?3,?4,?5,?6,?7,?8,NULL,?9,?10,?11,?12,?13,?14,?15,?16,?17)",
    )?;
    let mut seq = books.last_seq();
    for event in batch {
        seq += 1;
        line.clear();
        to_json_line(event, line);
        let json = line.strip_suffix(b"\n").unwrap_or(line);
        let json = std::str::from_utf8(json).unwrap_or_default();
        let kind = event.kind;
        let process = event.process.as_ref();
        let peer = match &event.data {
            EventData::Network(network) => peer_text(&network.peer),
            _ => None,
        };
        statement.execute(params![
            signed(seq),
            event.id.to_string(),
            signed(event.time_ns),
            signed(event.observed_ns),
            kind.priority().as_str(),
            kind.event_type(),
            kind.subtype(),
            event.severity.as_str(),
            event.container.as_ref().map(|c| escape_text(&c.id)),
            process.and_then(|p| p.name.as_ref()).map(|name| escape(name.as_bytes())),
            process.and_then(|p| p.pid),
            peer,
            event.trace_id.is_set().then(|| event.trace_id.to_string()),
            event.span_id.map(|span| span.to_string()),
            event.parent_span_id.map(|span| span.to_string()),
            signed(event.count),
            json,
        ])?;
        books.commit(seq, kind.priority(), event.count);
        if kind == &AGENT_GAP {
            books.gap_from_ns = None;
        }
    }
    Ok(())
}

fn peer_text(peer: &Endpoint) -> Option<String> {
    let address = peer.address?;
    Some(match peer.port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    })
}

fn write_ledger(transaction: &Transaction<'_>, now: u64, ledger: &Ledger) -> rusqlite::Result<()> {
    let json = String::from_utf8(ledger()).unwrap_or_default();
    transaction
        .prepare_cached("INSERT OR REPLACE INTO ledger VALUES (1, ?1, ?2)")?
        .execute(params![signed(now), json])?;
    Ok(())
}

fn write_rejected(
    transaction: &Transaction<'_>,
    exporter: &str,
    rejected: &[(u64, String, String)],
) -> rusqlite::Result<()> {
    let now = signed(ClockPair::now().wall_ns);
    for (seq, id, reason) in rejected {
        transaction
            .prepare_cached(
                "INSERT INTO rejected (exporter, seq, id, time, reason) VALUES (?1,?2,?3,?4,?5)",
            )?
            .execute(params![exporter, signed(*seq), id, now, reason])?;
    }
    transaction
        .prepare_cached(
            "DELETE FROM rejected WHERE number <= (SELECT max(number) FROM rejected) - ?1",
        )?
        .execute([KEPT_REJECTED])?;
    Ok(())
}

impl From<Contradiction> for Trouble {
    fn from(_: Contradiction) -> Self {
        Trouble::Corrupt("its accounts and its events contradict each other".to_owned())
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Trouble::Later(error.to_string())
    }
}
