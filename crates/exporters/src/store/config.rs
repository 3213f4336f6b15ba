//! What can be set about the store, what it takes of memory, and why there is
//! none.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vahti_runtime::config::bounds::{Bounded, Checked, describe};
use vahti_runtime::event::escape;
use vahti_runtime::units::{ByteSize, HumanDuration};

use super::{check, shown};

/// What can be set about the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = describe::<StoreConfig>)]
pub struct StoreConfig {
    /// Its folder, which belongs to the store alone; made with mode 0700.
    pub path: PathBuf,
    /// How large it may become, write-ahead log included: 8MiB to 1024GiB.
    #[serde(default = "default_max_bytes")]
    pub max_bytes: ByteSize,
    /// How long events are kept: 1m to 3660d.
    #[serde(default = "default_max_age")]
    pub max_age: HumanDuration,
    /// What of it may be in memory.
    #[serde(skip)]
    pub memory: StoreMemory,
}

/// How much memory a store may take, beside the batch that it is handed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreMemory {
    /// Pages of the file, for whoever writes.
    pub cache_bytes: usize,
    /// Events that an exporter is owed and that were read, for each exporter; as
    /// many bytes of their rows are looked at, and one event of each priority at
    /// least.
    pub window_bytes: usize,
}

impl Default for StoreMemory {
    fn default() -> Self {
        StoreMemory { cache_bytes: 4 << 20, window_bytes: 4 << 20 }
    }
}

impl StoreMemory {
    /// What one that reads for an exporter takes beside its events, by how many
    /// that takes at once: for what is remembered of those, of each priority, that
    /// are settled while one before them is not.
    #[must_use]
    pub const fn cursor_bytes(max_batch: usize) -> usize {
        let settled = 2 * AHEAD * max_batch * SETTLED_BYTES;
        (CURSOR_CACHE_KIB << 10) + CONNECTION_BYTES + settled
    }

    /// What one that writes takes beside its pages: its connection, the list of
    /// rows that leave at once, the index of the write-ahead log, and what it
    /// takes to look for damage.
    pub const WRITER_BYTES: usize =
        2 * CONNECTION_BYTES + check::CACHE_BYTES + (1 << 20) + (128 << 10);
}

/// Pages that are kept by one that reads for an exporter.
pub(super) const CURSOR_CACHE_KIB: usize = 256;

/// How many times its batch a cursor reads ahead of one that can't be sent now.
pub(super) const AHEAD: usize = 4;

/// What is remembered of one event that is settled.
const SETTLED_BYTES: usize = 128;

/// A connection with its schema, its statements and what SQLite keeps ready for
/// it: some 120 KB were measured.
const CONNECTION_BYTES: usize = 128 << 10;

fn default_max_bytes() -> ByteSize {
    ByteSize::mib(256)
}

fn default_max_age() -> HumanDuration {
    HumanDuration(Duration::from_secs(7 * 86_400))
}

impl StoreConfig {
    /// The defaults for this folder: 256 MiB, seven days.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        StoreConfig {
            path: path.into(),
            max_bytes: default_max_bytes(),
            max_age: default_max_age(),
            memory: StoreMemory::default(),
        }
    }
}

impl Bounded for StoreConfig {
    fn sample() -> Self {
        StoreConfig::at("/var/lib/vahti")
    }

    fn check(&self, checked: &mut Checked) {
        let path = self.path.as_os_str().as_encoded_bytes();
        checked.filled("path", &self.path.to_string_lossy(), "the path of a folder");
        let told = || (format!("\"{}\"", escape(path)), "a path without a NUL byte".to_owned());
        checked.that(!path.contains(&0), "path", told);
        checked.size("max_bytes", self.max_bytes, 8 << 20, 1 << 40);
        checked.duration("max_age", self.max_age, 60_000, 3_660 * 86_400_000);
    }
}

/// How large and how old what is kept may become; changes while it runs.
#[derive(Debug)]
pub(super) struct Bounds {
    max_bytes: AtomicU64,
    max_age_ns: AtomicU64,
}

impl Bounds {
    pub(super) fn of(config: &StoreConfig) -> Self {
        let bounds = Bounds { max_bytes: AtomicU64::new(0), max_age_ns: AtomicU64::new(0) };
        bounds.set(config.max_bytes, config.max_age);
        bounds
    }

    pub(super) fn set(&self, max_bytes: ByteSize, max_age: HumanDuration) {
        let age_ns = u64::try_from(max_age.0.as_nanos()).unwrap_or(u64::MAX);
        self.max_bytes.store(max_bytes.0, Ordering::Relaxed);
        self.max_age_ns.store(age_ns, Ordering::Relaxed);
    }

    pub(super) fn max_bytes(&self) -> u64 {
        self.max_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn max_age_ns(&self) -> u64 {
        self.max_age_ns.load(Ordering::Relaxed)
    }
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another agent has it.
    #[error(
        "another vahti{} has the store {}: stop it, or give this one a store of its own with \
         --store", pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), shown(folder)
    )]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// The other's process id, where it can be read.
        pid: Option<u32>,
    },
    /// Something can't be read or written.
    #[error("cannot {operation} {}: {error}", shown(path))]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// What went wrong.
        error: io::Error,
    },
}
