//! The store's folder: who may enter, who writes, and what was set aside.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use vahti_runtime::clock::rfc3339;

use super::notice::{self, Identity};
use super::{StoreError, schema, shown};

/// How many files that were set aside are kept, for each reason.
const KEPT_ASIDE: usize = 3;

/// The file of a folder, in the schema of this version. One that a newer
/// version left is its own.
pub(super) fn file(folder: &Path, newer_stands_there: bool) -> PathBuf {
    if newer_stands_there {
        folder.join(format!("events-v{}.db", schema::VERSION))
    } else {
        folder.join("events.db")
    }
}

/// Makes the folder, for its owner alone.
pub(super) fn make(folder: &Path) -> Result<(), StoreError> {
    let failed = |error: io::Error| StoreError::Io {
        operation: "create the folder",
        path: folder.to_owned(),
        error,
    };
    let missing: Vec<&Path> = folder.ancestors().take_while(|path| !path.exists()).collect();
    DirBuilder::new().mode(0o700).recursive(true).create(folder).map_err(failed)?;
    // SQLite syncs what is in the folder; a power cut must not take the folder.
    for made in missing {
        let parent = made.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if let Err(error) = File::open(parent).and_then(|parent| parent.sync_all()) {
            tracing::debug!(folder = %shown(parent), %error, "can't be synced");
        }
    }
    Ok(())
}

/// Warns where others may enter the folder.
pub(super) fn look_at_rights(folder: &Path) {
    if fs::metadata(folder).is_ok_and(|there| there.permissions().mode() & 0o077 != 0) {
        let folder = shown(folder);
        tracing::warn!(%folder, "others may enter the store's folder; `chmod 0700` it");
    }
}

/// Makes the file, for its owner alone; SQLite's other files take after it.
pub(super) fn make_file(path: &Path) -> Result<(), StoreError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map(drop)
        .map_err(|error| StoreError::Io { operation: "open", path: path.to_owned(), error })
}

/// Opens a file to read what stands in it. Whatever else was put there, such as
/// a pipe, is not waited for.
pub(super) fn open_to_look(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Held by the agent that writes. Its time of change says when that agent was
/// last alive.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    identity: Identity,
    path: PathBuf,
    /// Whoever had it before is written down there still.
    was_left: bool,
    /// When that one was last seen alive, nanoseconds since 1970; 0 if it ended
    /// as it should. What this one does to the file does not change it.
    last_alive_ns: u64,
}

impl Lock {
    /// Takes the lock; one that another agent holds may become free until the
    /// patience ends, as when a service is restarted.
    pub(super) fn take(folder: &Path, patience: Duration) -> Result<Self, StoreError> {
        let path = folder.join("lock");
        let failed = |operation: &'static str| {
            let path = path.clone();
            move |error: io::Error| StoreError::Io { operation, path, error }
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .map_err(failed("open"))?;
        let until = Instant::now() + patience;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(failed("lock")(error)),
                Err(TryLockError::WouldBlock) => {}
            }
            let pid = read_id(&mut file);
            if Instant::now() >= until {
                return Err(StoreError::InUse { folder: folder.to_owned(), pid });
            }
            if !told {
                told = true;
                tracing::info!(pid, "another vahti has the store; waits for it to end");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let was_left = read_id(&mut file).is_some();
        let identity = Identity::of(&file.metadata().map_err(failed("look at"))?);
        let last_alive_ns =
            if was_left { file.metadata().as_ref().map_or(0, modified_ns) } else { 0 };
        let mut lock = Lock { file, identity, path, was_left, last_alive_ns };
        // Where another one was left in it, that stays until the store has it.
        if !was_left && let Err(error) = lock.sign() {
            tracing::debug!(%error, "the store's lock can't be signed yet");
        }
        Ok(lock)
    }

    /// Whether it is the one that others would have to take.
    pub(super) fn is_in_place(&self) -> bool {
        notice::identity(&self.path) == Some(self.identity)
    }

    /// Whether the agent before did not end as it should, as far as this file
    /// knows; the store's own knows better, where it can be read.
    pub(super) fn was_left(&self) -> bool {
        self.was_left
    }

    /// Strikes out who has it, who ends as it should.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.was_left = false;
        self.file.set_len(0)
    }

    /// When whoever had it before was last seen alive, nanoseconds since 1970.
    pub(super) fn last_alive_ns(&self) -> u64 {
        self.last_alive_ns
    }

    /// Writes down who has it. What stood there is cut off afterwards: on a full
    /// disk there may be no room for a first line, and there is for another.
    pub(super) fn sign(&mut self) -> Result<(), StoreError> {
        let path = &self.path;
        let line = format!("{}\n", std::process::id());
        self.file
            .rewind()
            .and_then(|()| self.file.write_all(line.as_bytes()))
            .and_then(|()| self.file.set_len(line.len() as u64))
            .map_err(|error| StoreError::Io { operation: "write", path: path.clone(), error })
    }

    /// Says that the agent is alive. What it costs is one change of an inode.
    pub(super) fn touch(&self) -> io::Result<()> {
        self.file.set_modified(SystemTime::now())
    }
}

/// The other processes that have a transaction open on a file, as far as they
/// can be seen: "pid 1, pid 2". Readers lock bytes 123 to 127 of the file's
/// shared memory (<https://sqlite.org/walformat.html#wal_locks>).
pub(super) fn readers(file: &Path) -> String {
    let Ok(meta) = fs::metadata(with_suffix(file, "-shm")) else { return String::new() };
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    readers_in(&locks, meta.ino(), std::process::id())
}

/// Of lines such as `1: POSIX  ADVISORY  READ 42 fe:00:1234 123 123`.
fn readers_in(locks: &str, inode: u64, own: u32) -> String {
    let mut pids: Vec<u32> = locks
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (kind, _, _) = (words.next()?, words.next()?, words.next()?);
            let pid: u32 = words.next()?.parse().ok()?;
            let of: u64 = words.next()?.rsplit(':').next()?.parse().ok()?;
            let from: u64 = words.next()?.parse().ok()?;
            let reads = kind == "POSIX" && of == inode && (123..=127).contains(&from);
            (reads && pid != own && pid != 0).then_some(pid)
        })
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids.iter().map(|pid| format!("pid {pid}")).collect::<Vec<_>>().join(", ")
}

fn modified_ns(meta: &fs::Metadata) -> u64 {
    let (secs, nanos) = (meta.mtime(), meta.mtime_nsec());
    u64::try_from(secs).unwrap_or(0).saturating_mul(1_000_000_000)
        + u64::try_from(nanos).unwrap_or(0)
}

fn read_id(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Why a file is set aside, which its new name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aside {
    /// It can't be read.
    Corrupt,
    /// Somebody put it in the place of the agent's.
    Replaced,
}

impl Aside {
    pub(super) fn word(self) -> &'static str {
        match self {
            Aside::Corrupt => "corrupt",
            Aside::Replaced => "replaced",
        }
    }
}

/// Renames a file, with what SQLite keeps beside it, and returns its new name.
/// Those go that were set aside first.
pub(super) fn set_aside(path: &Path, why: Aside, wall_ns: u64) -> Result<PathBuf, StoreError> {
    let why = why.word();
    let date = rfc3339(wall_ns).replace([':', '-'], "");
    let date = date.split('.').next().unwrap_or_default();
    let mut aside = with_suffix(path, &format!(".{why}-{date}Z"));
    let mut n = 1;
    while aside.exists() {
        n += 1;
        aside = with_suffix(path, &format!(".{why}-{date}Z-{n}"));
    }
    for suffix in ["", "-wal", "-shm"] {
        let from = with_suffix(path, suffix);
        match fs::rename(&from, with_suffix(&aside, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::Io { operation: "set aside", path: from, error });
            }
            _ => {}
        }
    }
    remove_old(path, &aside, why);
    Ok(aside)
}

/// `newest` stays, whatever the clocks say. By when they were renamed: what
/// somebody put there may have been written long before.
fn remove_old(path: &Path, newest: &Path, why: &str) {
    let Some((folder, name)) = path.parent().zip(path.file_name().and_then(|n| n.to_str())) else {
        return;
    };
    let prefix = format!("{name}.{why}-");
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut aside: Vec<((i64, i64), PathBuf)> = entries
        .flatten()
        .filter(|e| {
            let name = e.file_name();
            let name = name.to_string_lossy();
            name.starts_with(&prefix) && !name.ends_with("-wal") && !name.ends_with("-shm")
        })
        .filter(|e| e.path() != newest)
        .filter_map(|e| e.metadata().ok().map(|meta| ((meta.ctime(), meta.ctime_nsec()), e.path())))
        .collect();
    aside.sort();
    let excess = (aside.len() + 1).saturating_sub(KEPT_ASIDE);
    for (_, old) in aside.into_iter().take(excess) {
        for suffix in ["", "-wal", "-shm"] {
            let file = with_suffix(&old, suffix);
            if let Err(error) = fs::remove_file(&file)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(file = %shown(&file), %error, "can't be removed");
            }
        }
        tracing::warn!(file = %shown(&old), "removed: three newer ones are set aside already");
    }
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_are_those_who_lock_a_place_in_the_log() {
        let locks = "1: POSIX  ADVISORY  READ 42 fe:00:77 124 124\n\
                     2: POSIX  ADVISORY  READ 43 fe:00:77 128 128\n\
                     3: FLOCK  ADVISORY  WRITE 44 fe:00:77 124 124\n\
                     4: POSIX  ADVISORY  READ 45 fe:00:78 124 124\n\
                     5: POSIX  ADVISORY  READ 46 fe:00:77 124 124\n\
                     6: -> POSIX  ADVISORY  READ 47 fe:00:77 124 124\n\
                     7: POSIX  ADVISORY  READ 41 fe:00:77 123 123\nnonsense\n";
        assert_eq!(readers_in(locks, 77, 46), "pid 41, pid 42");
        assert_eq!(readers_in(locks, 1, 46), "");
    }

    #[test]
    fn three_that_were_set_aside_stay_the_last_one_among_them_however_old_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.db");
        let aside: Vec<PathBuf> = (0..5_u32)
            .map(|n| {
                fs::write(&path, n.to_string()).unwrap();
                let written = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(9 - n));
                File::options().write(true).open(&path).unwrap().set_modified(written).unwrap();
                set_aside(&path, Aside::Replaced, u64::from(n) * 1_000_000_000).unwrap()
            })
            .collect();
        let left: Vec<bool> = aside.iter().map(|path| path.exists()).collect();
        assert_eq!(left[4..], [true], "{left:?}");
        assert_eq!(left.iter().filter(|left| **left).count(), KEPT_ASIDE, "{left:?}");
    }
}
