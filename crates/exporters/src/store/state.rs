//! How a store stands, for whoever looks at it from outside, such as
//! `vahti doctor`. It changes nothing, and holds up neither agent nor commits.

use std::ffi::CString;
use std::fs::{self, TryLockError};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, params};

use super::books::{OWN, signed, unsigned};
use super::folder::{Aside, with_suffix};
use super::reader::{ReadError, Reader};
use super::{folder, schema};

/// Larger files are not checked page by page: that would take long.
const CHECKED_BYTES: u64 = 512 << 20;

/// A store's folder and what is in it.
#[derive(Debug)]
pub struct State {
    /// Who may enter, as in `chmod`.
    pub mode: u32,
    /// Whose folder it is.
    pub owner: u32,
    /// Why it can't be written to by whoever asks, if so.
    pub not_writable: Option<io::Error>,
    /// How much room its disk has left for whoever asks.
    pub free_bytes: u64,
    /// The process that writes to it; 0 if it can't be told which.
    pub agent: Option<u32>,
    /// What the file and all that SQLite keeps beside it take.
    pub bytes: u64,
    /// What is in the file, or why that can't be told; `None` if there is no
    /// file yet.
    pub contents: Option<Result<Contents, ReadError>>,
    /// A file of a newer version that stands beside it, and its schema.
    pub newer: Option<(PathBuf, u32)>,
    /// Files that could not be read, and their sizes; the oldest first.
    pub set_aside: Vec<(PathBuf, u64)>,
    /// Files that somebody put in the place of an agent's while it ran, and
    /// their sizes; the oldest first.
    pub replaced: Vec<(PathBuf, u64)>,
}

/// What is in a store's file.
#[derive(Debug)]
pub struct Contents {
    /// The file.
    pub file: PathBuf,
    /// How many events it holds.
    pub events: u64,
    /// When the oldest and the newest happened, nanoseconds since 1970.
    pub span_ns: Option<(u64, u64)>,
    /// What each durable exporter is owed.
    pub owed: Vec<Owes>,
    /// Whether an agent that has not said that it ended wrote it last.
    pub running: bool,
    /// What SQLite's quick check found, unless all is well; `None` as well
    /// where the file is too large to look at all of it.
    pub damage: Option<String>,
    /// Whether all of it was looked at.
    pub checked: bool,
}

/// What a durable exporter is owed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owes {
    /// The exporter.
    pub exporter: String,
    /// Events, of both priorities.
    pub events: u64,
    /// Of them the critical ones.
    pub critical: u64,
    /// When the one that was committed first happened, nanoseconds since 1970.
    pub oldest_ns: Option<u64>,
    /// How many the other side refused for good.
    pub rejected: u64,
}

impl State {
    /// Looks at the store in this folder.
    ///
    /// # Errors
    /// There is no folder, or it may not be looked at.
    pub fn of(store: &Path) -> io::Result<Self> {
        let meta = fs::metadata(store)?;
        if !meta.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let (current, newer) = files(store);
        let sizes = ["", "-wal", "-shm"].map(|suffix| size(&with_suffix(&current, suffix)));
        Ok(State {
            mode: meta.permissions().mode() & 0o7777,
            owner: meta.uid(),
            not_writable: not_writable(store),
            free_bytes: free_bytes(store),
            agent: agent(store),
            bytes: sizes.iter().sum(),
            set_aside: set_aside(store, Aside::Corrupt)?,
            replaced: set_aside(store, Aside::Replaced)?,
            // An empty one was begun by an agent that was killed just then.
            contents: (sizes[0] > 0).then(|| contents(store, &current)),
            newer,
        })
    }
}

/// The file that this version writes, and one of a newer version beside it.
fn files(store: &Path) -> (PathBuf, Option<(PathBuf, u32)>) {
    let first = folder::file(store, false);
    match schema::newer_at_a_glance(&first) {
        Some(version) => (folder::file(store, true), Some((first, version))),
        None => (first, None),
    }
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

fn free_bytes(store: &Path) -> u64 {
    let Ok(path) = CString::new(store.as_os_str().as_bytes()) else { return 0 };
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `path` ends with NUL, and `stat` has room for one.
    let result = unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) };
    // SAFETY: all zeros is a valid value, also where the call failed.
    let stat = unsafe { stat.assume_init() };
    if result == 0 { stat.f_bavail.saturating_mul(stat.f_frsize) } else { u64::MAX }
}

pub(super) fn not_writable(store: &Path) -> Option<io::Error> {
    let path = CString::new(store.as_os_str().as_bytes()).ok()?;
    // SAFETY: `path` is a string that ends with NUL.
    let result = unsafe { libc::access(path.as_ptr(), libc::W_OK | libc::X_OK) };
    (result != 0).then(io::Error::last_os_error)
}

/// Who holds the lock. It is tried for a moment; an agent that starts just then
/// tries again.
pub(super) fn agent(store: &Path) -> Option<u32> {
    let mut file = folder::open_to_look(&store.join("lock")).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {}
        _ => return None,
    }
    let mut text = String::new();
    (&mut file).take(32).read_to_string(&mut text).ok()?;
    Some(text.trim().parse().unwrap_or(0))
}

fn set_aside(store: &Path, why: Aside) -> io::Result<Vec<(PathBuf, u64)>> {
    let mark = format!(".db.{}-", why.word());
    let mut found: Vec<(PathBuf, u64)> = Vec::new();
    for entry in fs::read_dir(store)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let beside = name.ends_with("-wal") || name.ends_with("-shm");
        if name.contains(&mark) && !beside {
            let sizes = ["", "-wal", "-shm"].map(|suffix| size(&with_suffix(&path, suffix)));
            found.push((path, sizes.iter().sum()));
        }
    }
    found.sort();
    Ok(found)
}

fn contents(store: &Path, file: &Path) -> Result<Contents, ReadError> {
    let reader = Reader::open(store)?;
    let checked = size(file) <= CHECKED_BYTES;
    let read = || -> rusqlite::Result<Contents> {
        let connection = reader.connection();
        let number = |sql| connection.query_row(sql, [], |row| unsigned(row, 0));
        let end = |order| {
            let sql = format!("SELECT time FROM events ORDER BY time {order} LIMIT 1");
            connection.query_row(&sql, [], |row| unsigned(row, 0)).optional()
        };
        let said: String = if checked {
            connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?
        } else {
            "ok".to_owned()
        };
        Ok(Contents {
            file: file.to_owned(),
            events: connection.query_row(
                "SELECT coalesce(sum(stored_envelopes), 0) FROM accounts WHERE name = ?1",
                [OWN],
                |row| unsigned(row, 0),
            )?,
            span_ns: end("ASC")?.zip(end("DESC")?),
            owed: owed(connection)?,
            running: number("SELECT running FROM agent")? != 0,
            damage: (said != "ok").then_some(said),
            checked,
        })
    };
    read().map_err(|error| ReadError::Sqlite { path: file.to_owned(), error })
}

fn owed(connection: &Connection) -> rusqlite::Result<Vec<Owes>> {
    let mut statement = connection.prepare(
        "SELECT name, priority, cursor, stored_envelopes, rejected_envelopes FROM accounts
         WHERE name <> ?1 ORDER BY name, priority",
    )?;
    let mut rows = statement.query([OWN])?;
    let mut owed: Vec<Owes> = Vec::new();
    while let Some(row) = rows.next()? {
        let (exporter, priority): (String, String) = (row.get(0)?, row.get(1)?);
        let (events, rejected) = (unsigned(row, 3)?, unsigned(row, 4)?);
        if owed.last().is_none_or(|last| last.exporter != exporter) {
            owed.push(Owes { exporter, events: 0, critical: 0, oldest_ns: None, rejected: 0 });
        }
        let Some(of) = owed.last_mut() else { continue };
        of.events += events;
        of.rejected += rejected;
        if priority == "critical" {
            of.critical = events;
        }
        if events > 0 {
            let oldest = connection
                .query_row(
                    "SELECT time FROM events WHERE priority = ?1 AND seq > ?2 ORDER BY seq LIMIT 1",
                    params![priority, signed(unsigned(row, 2)?)],
                    |row| unsigned(row, 0),
                )
                .optional()?;
            of.oldest_ns = of.oldest_ns.into_iter().chain(oldest).min();
        }
    }
    Ok(owed)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use vahti_runtime::clock::ClockPair;
    use vahti_runtime::durable::{DurableLog, Settled};
    use vahti_runtime::emitter::EmitOutcome;
    use vahti_runtime::event::Event;

    use super::super::{Store, StoreConfig};
    use super::*;
    use crate::testing::{emit, events};

    fn open(folder: &Path, exporters: &[&str]) -> Store {
        let exporters = exporters.iter().map(|name| (*name).to_owned()).collect();
        Store::open(StoreConfig::at(folder), exporters, Duration::ZERO).unwrap()
    }

    #[test]
    fn it_tells_who_writes_what_is_there_and_what_is_owed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("s");
        assert_eq!(State::of(&folder).unwrap_err().kind(), io::ErrorKind::NotFound);
        let store = open(&folder, &["a", "b"]);
        // None of them as old as rows may become.
        let observed_ns = ClockPair::now().wall_ns;
        let of_now = |event: Arc<Event>| Arc::new(Event { observed_ns, ..(*event).clone() });
        let batch: Vec<_> = events(1, 3).into_iter().map(of_now).collect();
        assert_eq!(emit(&mut store.emitter(), &batch), EmitOutcome::Delivered);
        let mut cursor = store.cursor("b").unwrap();
        let owed = cursor.read(2).unwrap();
        let settled = owed.iter().map(|o| Settled { seq: o.seq, rejected: None }).collect();
        cursor.settle(settled).unwrap();
        let state = State::of(&folder).unwrap();
        assert_eq!((state.mode, state.agent), (0o700, Some(std::process::id())));
        assert!(state.not_writable.is_none() && state.bytes > 0 && state.set_aside.is_empty());
        let contents = state.contents.unwrap().unwrap();
        assert_eq!((contents.events, contents.running, contents.damage), (3, true, None));
        let owed: Vec<_> = contents.owed.iter().map(|o| (&*o.exporter, o.events)).collect();
        assert_eq!(owed, [("a", 3), ("b", 1)]);
        store.end();
        drop((cursor, store));
        let state = State::of(&folder).unwrap();
        assert_eq!(state.agent, None);
        assert!(!state.contents.unwrap().unwrap().running);
    }

    #[test]
    fn files_set_aside_and_of_newer_versions_are_named() {
        let folder = tempfile::tempdir().unwrap();
        drop(open(folder.path(), &[]));
        let file = folder.path().join("events.db");
        let aside = folder::set_aside(&file, folder::Aside::Corrupt, 1_000_000_000).unwrap();
        let state = State::of(folder.path()).unwrap();
        assert!(state.contents.is_none());
        assert_eq!(state.set_aside.len(), 1);
        assert_eq!(state.set_aside[0].0, aside);
        drop(open(folder.path(), &[]));
        let connection = Connection::open(&file).unwrap();
        connection.pragma_update(None, "user_version", 9).unwrap();
        drop(connection);
        let state = State::of(folder.path()).unwrap();
        assert_eq!(state.newer, Some((file.clone(), 9)));
        assert!(state.contents.is_none(), "nothing was written beside it yet");
        // The one beside it is read, and no more once the first is gone.
        drop(open(folder.path(), &[]));
        let file_read = || State::of(folder.path()).unwrap().contents.unwrap().unwrap().file;
        assert_eq!(file_read(), folder::file(folder.path(), true));
        std::fs::remove_file(&file).unwrap();
        drop(open(folder.path(), &[]));
        assert_eq!(file_read(), file);
        let reader = format!("{:?}", Reader::open(folder.path()).unwrap());
        assert!(reader.contains("events.db"), "{reader}");
    }
}
