//! Notices what becomes of the store's files under a running agent: they are
//! looked at from outside, before every commit and every few seconds.
//!
//! A look is a `stat` of each. None of them is opened for it: whoever closes a
//! file lets go of all locks that his process has on it, SQLite's too.
//!
//! What was in a file that is not at its place any more is lost, and counted;
//! what somebody put there is not the agent's, and is set aside. A log that was
//! taken away is written back first, from the one that is still open.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vahti_runtime::clock::ClockPair;

use super::folder::{self, with_suffix};
use super::writer::{DISK_FULL, Trouble, Writer};
use super::{Inner, Shared, StoreError, schema, shown};

/// What tells a file from every other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    pub(super) fn of(meta: &fs::Metadata) -> Self {
        Identity { device: meta.dev(), inode: meta.ino() }
    }
}

/// What a look at a file tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    identity: Identity,
    bytes: u64,
    changed: (i64, i64),
}

impl Look {
    /// `None` if there is no such file.
    fn at(path: &Path) -> io::Result<Option<Self>> {
        match fs::metadata(path) {
            Ok(meta) => Ok(Some(Look {
                identity: Identity::of(&meta),
                bytes: meta.len(),
                changed: (meta.mtime(), meta.mtime_nsec()),
            })),
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// What stands behind a path; `None` also where that can't be told.
pub(super) fn identity(path: &Path) -> Option<Identity> {
    fs::metadata(path).ok().map(|meta| Identity::of(&meta))
}

/// The store's files as they were after the last write to them.
#[derive(Debug, Clone)]
pub(super) struct Sight {
    path: PathBuf,
    file: Look,
    /// What the file can't be shorter than: what SQLite may still cut off it
    /// is not counted.
    least_bytes: u64,
    log: Option<Look>,
    index: Option<Look>,
}

/// What came of looking once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finding {
    Same,
    /// The file is not there, or it is another one.
    Gone,
    Cut,
    /// The log is not there, or it is another one.
    LogGone,
    /// Somebody else wrote to them.
    Written,
    /// The log was cut short, or SQLite's index of it was, or is another.
    Touched,
}

impl Sight {
    /// Of the files of a writer that has just written. Where another file has
    /// just taken the place of its own, the sight before stands, which the next
    /// look finds to be gone.
    pub(super) fn of(writer: &Writer, before: Option<&Sight>) -> Option<Self> {
        let file = Look::at(&writer.file).ok()?;
        let Some(file) = file.filter(|file| writer.is_of(file.identity)) else {
            return before.cloned();
        };
        let log = Look::at(&with_suffix(&writer.file, "-wal")).ok()?;
        // It changes with every write; which one it is does not.
        let index = match before {
            Some(before) => before.index,
            None => Look::at(&with_suffix(&writer.file, "-shm")).ok()?,
        };
        let path = writer.file.clone();
        Some(Sight { path, file, least_bytes: file.bytes.min(writer.bytes), log, index })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_of(&self, file: &Path) -> bool {
        self.path == file && identity(file) == Some(self.file.identity)
    }

    fn finding(&self) -> io::Result<Finding> {
        let path = &self.path;
        let Some(file) = Look::at(path)?.filter(|now| now.identity == self.file.identity) else {
            return Ok(Finding::Gone);
        };
        let (log, index) =
            (Look::at(&with_suffix(path, "-wal"))?, Look::at(&with_suffix(path, "-shm"))?);
        let identity = |look: Option<Look>| look.map(|look| look.identity);
        let bytes = |look: Option<Look>| look.map(|look| look.bytes);
        let is_another_index = identity(index) != identity(self.index);
        Ok(if !is_another_index && bytes(index) < bytes(self.index) {
            // SQLite has it mapped: whoever reads on there is killed.
            Finding::Touched
        } else if file.bytes < self.least_bytes {
            Finding::Cut
        } else if identity(log) != identity(self.log) {
            Finding::LogGone
        } else if is_another_index || bytes(log) < bytes(self.log) {
            Finding::Touched
        } else if log != self.log || file != self.file {
            Finding::Written
        } else {
            Finding::Same
        })
    }

    /// Whether the log stands where it was, and can be read.
    fn is_log_left(&self) -> bool {
        let now = |suffix| Look::at(&with_suffix(&self.path, suffix)).ok().flatten();
        let (log, index) = (now("-wal"), now("-shm"));
        let is_index_whole = index
            .zip(self.index)
            .is_none_or(|(now, then)| now.identity != then.identity || now.bytes >= then.bytes);
        is_index_whole && log.is_some() && log.map(|l| l.identity) == self.log.map(|l| l.identity)
    }

    /// Removes what belonged to the file and is of no use without it: the next
    /// file must not be taken for the one that this log is of.
    fn remove_left(&self) -> io::Result<()> {
        for (suffix, look) in [("-wal", self.log), ("-shm", self.index)] {
            let path = with_suffix(&self.path, suffix);
            if look.is_some() && identity(&path) == look.map(|look| look.identity) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

impl Shared {
    /// Has the folder's lock. One that is not at its place any more is no lock:
    /// another agent may have taken the one that is.
    pub(super) fn hold_lock(&self, inner: &mut Inner) -> Result<(), String> {
        let was_held = inner.lock.is_some();
        if inner.lock.as_ref().is_some_and(folder::Lock::is_in_place) {
            return Ok(());
        }
        inner.lock = None;
        let taken = self.lock_folder(inner, Duration::ZERO);
        let Err(error) = taken else {
            if was_held {
                let folder = shown(&self.config.path);
                tracing::error!(%folder, "the store's lock was removed; it was taken anew");
                // Another agent may have had it meanwhile.
                inner.others_wrote = true;
                self.close(inner, true);
            }
            return Ok(());
        };
        let had_it = was_held || inner.books.is_some();
        let why = match error {
            StoreError::InUse { pid, .. } if had_it => {
                let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
                format!("another vahti{pid} has taken the store")
            }
            error => error.to_string(),
        };
        if was_held {
            let folder = shown(&self.config.path);
            tracing::error!(%folder, %why, "the store's lock is gone; nothing is written");
            inner.others_wrote = true;
            self.close(inner, true);
        }
        Err(why)
    }

    /// Looks whether the files are still those that are open, and closes what
    /// is not. Not `closely`, what others wrote to them is only remembered: one who
    /// goes on writing costs no commit more than that.
    pub(super) fn look(&self, inner: &mut Inner, closely: bool) -> Result<(), String> {
        let Some(then) = inner.sight.clone() else { return Ok(()) };
        // What can't be looked at now may be all right.
        let finding = match then.finding().unwrap_or(Finding::Same) {
            Finding::Written if !closely => {
                inner.was_touched |= inner.writer.is_some();
                Finding::Same
            }
            Finding::Same if closely && inner.was_touched => Finding::Written,
            finding => finding,
        };
        match (finding, &inner.writer) {
            (Finding::Gone, _) => self.leave(inner, &then),
            (Finding::Same, _) => Ok(()),
            (_, None) => {
                // What cursors have open of it is not what is opened next.
                self.close_cursors();
                Ok(())
            }
            (Finding::Cut, Some(writer)) => {
                if writer.was_vacuumed_below(then.least_bytes).unwrap_or(false) {
                    inner.sight = Sight::of(writer, Some(&then));
                } else {
                    self.note(inner, Trouble::Corrupt("the file was cut short".to_owned()));
                }
                Ok(())
            }
            (Finding::LogGone, Some(_)) => self.save_log(inner),
            (Finding::Written | Finding::Touched, Some(_)) => {
                let file = shown(then.path());
                tracing::warn!(%file, "another process has changed the store's files; opens them anew");
                inner.check.hurry();
                inner.was_touched = false;
                self.close(inner, true);
                Ok(())
            }
        }
    }

    /// The file's log was taken away: what is in it is written back to the file.
    fn save_log(&self, inner: &mut Inner) -> Result<(), String> {
        self.close_cursors();
        let Some(writer) = &mut inner.writer else { return Ok(()) };
        match writer.write_back() {
            Ok(true) => {
                tracing::error!(
                    file = %shown(&writer.file),
                    "the store's write-ahead log was removed or replaced; all of it was saved"
                );
                self.close(inner, false);
                Ok(())
            }
            Ok(false) => Err("its write-ahead log was removed, and can't be saved while another \
                              process keeps a transaction open: end that one"
                .to_owned()),
            Err(Trouble::Later(why)) if why == DISK_FULL => Err(why),
            Err(trouble) => {
                let why = format!("its write-ahead log is gone: {trouble}");
                self.note(inner, Trouble::Corrupt(why));
                Ok(())
            }
        }
    }

    /// As every few seconds, where perhaps nothing is committed.
    pub(super) fn look_closely(&self, inner: &mut Inner) {
        let was_open = inner.writer.is_some();
        let looked = self.hold_lock(inner).and_then(|()| self.look(inner, true));
        if was_open && let Err(why) = looked.and_then(|()| self.ready(inner)) {
            let folder = shown(&self.config.path);
            tracing::error!(%folder, %why, "the store can't be used; events are not kept");
        }
    }

    /// Closes what else this process has open of the file.
    pub(super) fn close_cursors(&self) {
        for line in self.lines().drain(..).filter_map(|line| line.upgrade()) {
            line.close();
        }
    }

    /// Closes what this process has open of the file; the accounts are kept in
    /// memory. `as_it_is`: the log is not written back.
    pub(super) fn close(&self, inner: &mut Inner, as_it_is: bool) {
        self.close_cursors();
        self.view().file = None;
        let Some(writer) = inner.writer.take() else { return };
        if as_it_is {
            writer.leave_log();
        }
        inner.books = Some(writer.books.clone());
    }

    /// The file is not at its place any more. What is there instead, if
    /// anything is, is somebody else's: it is set aside.
    pub(super) fn leave(&self, inner: &mut Inner, then: &Sight) -> Result<(), String> {
        let file = then.path();
        if then.is_log_left()
            && let Some(writer) = &mut inner.writer
        {
            // The file may have been renamed alone: it is whole where it is now.
            self.close_cursors();
            if !matches!(writer.write_back(), Ok(true)) {
                let file = shown(file);
                tracing::warn!(%file, "its log can't be written back to it, wherever it is now");
            }
        }
        self.close(inner, true);
        let failed = |error: io::Error| format!("cannot remove what is left of it: {error}");
        then.remove_left().map_err(failed)?;
        let is_replaced = identity(file).is_some();
        let path = shown(file);
        if !is_replaced {
            tracing::error!(file = %path, "the store's file was removed; a fresh one is begun");
        } else if schema::newer_at_a_glance(file).is_none() {
            let aside = folder::set_aside(file, folder::Aside::Replaced, ClockPair::now().wall_ns)
                .map_err(|error| error.to_string())?;
            self.view().set_aside += 1;
            tracing::error!(
                file = %path,
                "the store's file was replaced while the agent ran; what was put there is {} now, \
                 and a fresh one is begun",
                shown(&aside)
            );
        }
        inner.sight = None;
        Ok(())
    }
}
