//! Events in a file: JSON lines, rotated by size and age.
//!
//! The file is written by one process at a time (it is locked) and holds whole
//! lines: what a full disk cut off is cut back, what a crash or another writer
//! tore is closed with a newline before the next line. It is rotated by
//! renaming: `path` becomes `path.1`, `path.1` becomes `path.2`, up to `keep` of
//! them, so that readers that follow it by name or by inode both go on. A file
//! that somebody moved away or deleted is created anew.

mod rotation;

use std::fs::{File, OpenOptions, TryLockError};
use std::future::ready;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vahti_runtime::config::InvalidField;
use vahti_runtime::config::bounds::{Bounded, Checked, describe};
use vahti_runtime::emitter::{Delivery, Emission, EmitOutcome, EventEmitter};
use vahti_runtime::event::{Event, escape, to_json_line};
use vahti_runtime::units::{ByteSize, HumanDuration};

use crate::lines::{DEFAULT_BYTES, Lines, outcome, write_all};

/// What can be set about a file of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = describe::<FileConfig>)]
pub struct FileConfig {
    /// The file; it is created with mode 0640, its folder is not.
    pub path: PathBuf,
    /// From which size on it is rotated: 4KiB to 1024GiB.
    #[serde(default = "default_max_size")]
    pub max_size: ByteSize,
    /// From which age on it is rotated, when the next event comes: 1s to 366d.
    #[serde(default = "default_max_age")]
    pub max_age: HumanDuration,
    /// How many rotated files are kept: 0 to 1,000. With the current one they
    /// take at most (keep + 1) times the size.
    #[serde(default = "default_keep")]
    pub keep: u32,
}

fn default_max_size() -> ByteSize {
    ByteSize::mib(64)
}

fn default_max_age() -> HumanDuration {
    HumanDuration(Duration::from_secs(24 * 3_600))
}

fn default_keep() -> u32 {
    5
}

impl FileConfig {
    /// The defaults for this path: 64 MiB, one day, 5 kept.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        FileConfig {
            path: path.into(),
            max_size: default_max_size(),
            max_age: default_max_age(),
            keep: default_keep(),
        }
    }

    /// Checks every value against its bound; returns those that are out of it.
    #[must_use]
    pub fn validate(&self) -> Vec<InvalidField> {
        Checked::of(self).wrong
    }
}

impl Bounded for FileConfig {
    fn sample() -> Self {
        FileConfig::at("events.jsonl")
    }

    fn check(&self, checked: &mut Checked) {
        let days = |n: u64| n * 86_400_000;
        checked.file("path", &self.path);
        checked.size("max_size", self.max_size, 4 << 10, 1 << 40);
        checked.duration("max_age", self.max_age, 1_000, days(366));
        checked.whole("keep", u64::from(self.keep), 0, 1_000);
    }
}

/// Why a file of events can't be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}: {problem}", shown(path))]
pub struct FileError {
    /// What was tried: `open`, `lock`, `write`, `rotate`.
    pub operation: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// What went wrong, and what to do about it where we know.
    pub problem: String,
}

fn shown(path: &Path) -> std::borrow::Cow<'_, str> {
    escape(path.as_os_str().as_encoded_bytes())
}

/// Writes events to a file, as JSON lines.
#[derive(Debug)]
pub struct FileEmitter {
    name: String,
    critical: bool,
    synced: bool,
    config: FileConfig,
    current: Option<Current>,
    lines: Lines,
}

/// The file that is open.
#[derive(Debug)]
struct Current {
    file: File,
    /// Device and inode: whether the path still means this file.
    identity: (u64, u64),
    len: u64,
    began: SystemTime,
    /// Its last line lacks its end.
    torn: bool,
}

impl FileEmitter {
    /// Opens the file, or creates it.
    ///
    /// # Errors
    /// It can't be opened or locked, or is no regular file; the error says
    /// what to do.
    pub fn open(name: &str, config: FileConfig) -> Result<Self, FileError> {
        let mut emitter = Self::deferred(name, config);
        let opened = emitter.reopen();
        opened
            // What it was opened with may be due already.
            .and_then(|()| emitter.rotate_if_due(0))
            .map(|()| emitter)
    }

    /// Opens the file when the first event comes. Can't fail, so that an
    /// emitter can be made anew after a panic.
    #[must_use]
    pub fn deferred(name: &str, config: FileConfig) -> Self {
        FileEmitter {
            name: name.to_owned(),
            critical: false,
            synced: false,
            config,
            current: None,
            lines: Lines::new(DEFAULT_BYTES),
        }
    }

    fn reopen(&mut self) -> Result<(), FileError> {
        // Its lock goes first: the new file may be the old one.
        self.current = None;
        self.current = Some(Current::open(&self.config.path)?);
        rotation::remove_beyond(&self.config.path, self.config.keep)
            .map_err(|e| self.error("rotate", &e))
    }

    /// Whether what it fails to take is retried.
    #[must_use]
    pub fn critical(mut self, critical: bool) -> Self {
        self.critical = critical;
        self
    }

    /// How many bytes of lines are made at once, at most; one line at least.
    #[must_use]
    pub fn lines_bytes(mut self, max_bytes: usize) -> Self {
        self.lines = Lines::new(max_bytes);
        self
    }

    /// Whether a batch counts as delivered only once the disk has it.
    #[must_use]
    pub fn synced(mut self, synced: bool) -> Self {
        self.synced = synced;
        self
    }

    fn error(&self, operation: &'static str, error: &io::Error) -> FileError {
        FileError { operation, path: self.config.path.clone(), problem: error.to_string() }
    }

    /// Writes the lines of a batch; returns how many of them are whole in a
    /// file, and why not all.
    fn write(&mut self, count: usize) -> (usize, Result<(), FileError>) {
        let mut done = 0;
        while done < count {
            match self.write_some(done) {
                Ok(next) => done = next,
                Err((next, error)) => return (next, Err(error)),
            }
        }
        (done, Ok(()))
    }

    /// Writes lines from `from` on, as many as the file may still take, and at
    /// least one; returns the number of the next line.
    fn write_some(&mut self, from: usize) -> Result<usize, (usize, FileError)> {
        let first = self.lines.slice(from, from + 1).len() as u64;
        self.rotate_if_due(first).map_err(|e| (from, e))?;
        let Some(current) = &mut self.current else {
            return Err((from, self.error("write", &io::ErrorKind::NotFound.into())));
        };
        let room = self.config.max_size.0.saturating_sub(current.len);
        let to = self.lines.fitting(from, room).max(from + 1);
        let written = current.append(self.lines.slice(from, to));
        written.map(|()| to).map_err(|(kept, error)| {
            let whole = self.lines.fitting(from, kept);
            if let Some(current) = &mut self.current {
                current.cut_back(kept - self.lines.slice(from, whole).len() as u64);
            }
            (whole, self.error("write", &error))
        })
    }

    /// Makes sure that the file that is open is the one at the path, and that
    /// it may take `next` bytes more.
    fn rotate_if_due(&mut self, next: u64) -> Result<(), FileError> {
        if let Some(current) = &mut self.current
            && current.is_still_at(&self.config.path)
        {
            let full = current.len.saturating_add(next) > self.config.max_size.0;
            let old = current.age() >= self.config.max_age.0;
            if current.len == 0 || !(full || old) {
                return Ok(());
            }
            rotation::rotate(&self.config.path, self.config.keep)
                .map_err(|e| self.error("rotate", &e))?;
        }
        self.reopen()
    }
}

impl Current {
    fn open(path: &Path) -> Result<Self, FileError> {
        let error =
            |operation, problem: String| FileError { operation, path: path.to_owned(), problem };
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o640)
            // No symbolic link, or whoever may write to the folder could have
            // us write anywhere; no waiting for the other end of a pipe.
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
            .map_err(|e| error("open", explain(path, &e)))?;
        let meta = file.metadata().map_err(|e| error("open", e.to_string()))?;
        if !meta.is_file() {
            let advice = "it is no regular file; to write to a device or a pipe, use the \
                          emitter stdout and redirect it";
            return Err(error("open", advice.to_owned()));
        }
        file.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => {
                let advice = "another process writes to it; stop that one, or set another path";
                error("lock", advice.to_owned())
            }
            TryLockError::Error(e) => error("lock", e.to_string()),
        })?;
        let torn = ends_torn(&file, meta.len()).map_err(|e| error("read", e.to_string()))?;
        Ok(Current {
            identity: (meta.dev(), meta.ino()),
            len: meta.len(),
            began: meta
                .created()
                .or_else(|_| meta.modified())
                .unwrap_or_else(|_| SystemTime::now()),
            torn,
            file,
        })
    }

    /// Whether the path still leads to this file; looks at its end anew where
    /// others changed it: they may have truncated it, or, with no regard to the
    /// lock, have left half a line.
    fn is_still_at(&mut self, path: &Path) -> bool {
        match path.symlink_metadata() {
            Ok(meta) if (meta.dev(), meta.ino()) == self.identity => {
                if meta.len() != self.len {
                    self.len = meta.len();
                    // What can't be read is closed: an empty line harms nobody.
                    self.torn = ends_torn(&self.file, self.len).unwrap_or(true);
                }
                true
            }
            _ => false,
        }
    }

    /// How old it is; nothing if the clock was set back.
    fn age(&self) -> Duration {
        self.began.elapsed().unwrap_or_default()
    }

    /// Appends whole lines, after the end of a torn one.
    ///
    /// # Errors
    /// How many of the bytes are in the file, and the error.
    fn append(&mut self, bytes: &[u8]) -> Result<(), (u64, io::Error)> {
        if self.torn {
            write_all(&self.file, b"\n").map_err(|(_, e)| (0, e))?;
            self.torn = false;
            self.len += 1;
        }
        if self.len == 0 {
            // An empty file is as old as its first line will be.
            self.began = SystemTime::now();
        }
        let (written, result) = match write_all(&self.file, bytes) {
            Ok(()) => (bytes.len(), Ok(())),
            Err((written, error)) => (written, Err((written as u64, error))),
        };
        self.len += written as u64;
        result
    }

    /// Takes back the last bytes, half a line; if that fails, the line is
    /// closed before the next.
    fn cut_back(&mut self, excess: u64) {
        if excess == 0 {
            return;
        }
        match self.file.set_len(self.len - excess) {
            Ok(()) => self.len -= excess,
            Err(_) => self.torn = true,
        }
    }
}

fn ends_torn(mut file: &File, len: u64) -> io::Result<bool> {
    if len == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::Start(len - 1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

/// Says what to do about an error of opening, where we know.
fn explain(path: &Path, error: &io::Error) -> String {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    match error.raw_os_error() {
        Some(libc::ENOENT) if !folder.exists() => {
            format!("the folder {} does not exist; create it, or set another path", shown(folder))
        }
        Some(libc::ELOOP) => {
            "it is a symbolic link, which is not followed; set the path that it leads to".to_owned()
        }
        Some(libc::EISDIR) => "it is a folder; set the path of a file in it".to_owned(),
        _ => error.to_string(),
    }
}

impl EventEmitter for FileEmitter {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_critical(&self) -> bool {
        self.critical
    }

    fn emit<'a>(&'a mut self, batch: &'a [Arc<Event>]) -> Emission<'a, EmitOutcome> {
        let (mut delivered, mut result) = (0, Ok(()));
        while let Some(rest) = batch.get(delivered..).filter(|rest| !rest.is_empty()) {
            let count = self.lines.render(rest, to_json_line);
            let (written, wrote) = self.write(count);
            delivered += written;
            result = wrote;
            if result.is_err() {
                break;
            }
        }
        if self.synced
            && let Some(current) = &self.current
            && let Err(error) = current.file.sync_data()
        {
            // Whether the disk has any of it can't be known.
            (delivered, result) = (0, Err(self.error("write", &error)));
        }
        self.lines.release();
        let reason = result.err().map(|e| e.to_string()).unwrap_or_default();
        Box::pin(ready(outcome(delivered, batch.len(), Delivery::Retryable, reason)))
    }

    fn close(&mut self) -> Emission<'_, Result<(), String>> {
        let synced = match self.current.take() {
            Some(current) => current.file.sync_data(),
            None => Ok(()),
        };
        Box::pin(ready(synced.map_err(|e| self.error("write", &e).to_string())))
    }
}

#[cfg(test)]
mod tests;
