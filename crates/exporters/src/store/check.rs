//! Looks for damage in the whole file: after a start, once a day, and where
//! somebody else wrote to it.
//!
//! On a thread and with a connection of its own, beside commits. While it reads
//! the write-ahead log can't begin anew, so it gives up where that grows, or
//! where it takes too long.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use rusqlite::ErrorCode;
use vahti_runtime::clock::ClockPair;

use super::folder::with_suffix;
use super::log::Line;
use super::writer::Trouble;
use super::{Shared, shown, writer};

const DAY_NS: u64 = 86_400_000_000_000;
/// When it is tried again after it had to give up.
const SOON_NS: u64 = 3_600_000_000_000;
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// After how many of SQLite's steps it looks whether to give up.
const STEPS: i32 = 1_000;
/// Pages that are kept meanwhile.
pub(super) const CACHE_BYTES: usize = 256 << 10;

/// When the file is to be looked through.
#[derive(Debug, Clone, Copy)]
pub(super) struct Check {
    due_ns: u64,
}

impl Check {
    /// After a start: at once, so that a restart has it done.
    pub(super) fn new() -> Self {
        Check { due_ns: 0 }
    }

    /// Something is not as it should be: it is due at once.
    pub(super) fn hurry(&mut self) {
        self.due_ns = 0;
    }

    /// Whether it is due, for whoever does it then.
    pub(super) fn take(&mut self) -> bool {
        let now = ClockPair::now().boot_ns;
        let is_due = self.due_ns <= now;
        if is_due {
            self.due_ns = now + DAY_NS;
        }
        is_due
    }

    fn put_off(&mut self) {
        self.due_ns = self.due_ns.min(ClockPair::now().boot_ns + SOON_NS);
    }
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Sound,
    Damage(String),
    GaveUp,
}

/// Looks through the file that is open, beside everything else.
pub(super) fn begin(shared: &Arc<Shared>, check: &mut Check) {
    let Some((file, generation)) = shared.file() else { return };
    // Where nobody reads it comes to half of its share.
    let log_bytes = writer::wal_bytes(shared.bounds.max_bytes()) / 4 * 3;
    let line = match Line::open(shared, &file, CACHE_BYTES) {
        Ok(line) => line,
        Err(why) => {
            tracing::warn!(%why, "the store can't be looked through for damage");
            return check.put_off();
        }
    };
    let weak = Arc::downgrade(shared);
    let looks = move || {
        let found = look_through(&line, with_suffix(&file, "-wal"), log_bytes, &weak);
        drop(line);
        if let Some(shared) = weak.upgrade() {
            take_note(&shared, &file, generation, found);
        }
    };
    let thread = std::thread::Builder::new().name("store-check".to_owned());
    match thread.stack_size(512 << 10).spawn(looks) {
        Ok(thread) => {
            // The one before is over long since.
            *shared.checks.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        }
        Err(error) => {
            tracing::warn!(%error, "the store can't be looked through for damage");
            check.put_off();
        }
    }
}

fn take_note(shared: &Arc<Shared>, file: &Path, generation: u64, found: rusqlite::Result<Found>) {
    let file = shown(file);
    match found {
        Ok(Found::Sound) => tracing::debug!(%file, "no damage was found"),
        Ok(Found::GaveUp) => {
            tracing::debug!(%file, "not all could be looked through; in an hour again");
            shared.lock().check.put_off();
        }
        Ok(Found::Damage(what)) => shared.found_out(generation, Trouble::Corrupt(what)),
        Err(error) => match Trouble::from(error) {
            trouble @ Trouble::Corrupt(_) => shared.found_out(generation, trouble),
            trouble => {
                tracing::warn!(%file, why = %trouble, "can't be looked through for damage");
                shared.lock().check.put_off();
            }
        },
    }
}

pub(super) fn look_through(
    line: &Arc<Line>,
    log: PathBuf,
    log_bytes: u64,
    shared: &Weak<Shared>,
) -> rusqlite::Result<Found> {
    let mut connection = line.lock();
    let Some(connection) = &mut *connection else { return Ok(Found::GaveUp) };
    connection.execute_batch("PRAGMA cell_size_check = ON; PRAGMA temp_store = MEMORY;")?;
    let (until, line, shared) = (Instant::now() + PATIENCE, Arc::downgrade(line), shared.clone());
    let gives_up = move || {
        fs::metadata(&log).is_ok_and(|log| log.len() > log_bytes)
            || Instant::now() > until
            || shared.strong_count() == 0
            || line.upgrade().is_none_or(|line| line.is_to_close())
    };
    connection.progress_handler(STEPS, Some(gives_up))?;
    let said = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    match said {
        Ok(said) if said == "ok" => Ok(Found::Sound),
        Ok(said) => Ok(Found::Damage(said)),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
            Ok(Found::GaveUp)
        }
        Err(error) => Err(error),
    }
}
