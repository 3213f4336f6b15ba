//! The store: history and durable log at once, one SQLite file in a folder of
//! its own.
//!
//! As an emitter it takes events from lanes and commits them in groups. As a
//! log it serves durable exporters: each has a cursor per priority over what is
//! committed. What was committed survives a kill and a power cut (WAL,
//! `synchronous=FULL`); rows leave when the cap or their age asks for it, and
//! every one that an exporter was still owed is counted.
//!
//! A disk that is full, a folder that can't be written to, another process's
//! lock, or its transaction that was left open until the write-ahead log is
//! beyond its share, make it fail for now: events wait in their lanes, whose policies decide
//! what goes. A file that can't be read is set aside under a dated name and a
//! fresh one is begun; one that is taken away or replaced under the agent is
//! noticed, and what was in it is counted. None of it stops the agent.
//!
//! What it never does: delete a file that it can't read, or write to one that a
//! newer version left.

mod books;
mod check;
mod folder;
mod log;
mod notice;
mod reader;
mod schema;
mod state;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::future::ready;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use vahti_runtime::clock::ClockPair;
use vahti_runtime::config::bounds::{Bounded, Checked, describe};
use vahti_runtime::emitter::{Emission, EmitOutcome, EventEmitter};
use vahti_runtime::event::{Event, Priority, escape};
use vahti_runtime::ids::EventId;
use vahti_runtime::ledger::{LaneLine, Tally};
use vahti_runtime::units::{ByteSize, HumanDuration};

use self::books::{Books, OWN, Passed};
use self::check::Check;
use self::folder::{Aside, Lock};
use self::log::{Line, Parked};
use self::notice::Sight;
use self::writer::{Before, Ledger, Medium, Opened, Trouble, Writer};

pub use self::reader::{Filter, ReadError, Reader, Row, Snapshot};
pub use self::state::{Contents, Owes, State};

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
    /// What one that reads for an exporter takes beside its events.
    pub const CURSOR_BYTES: usize = (CURSOR_CACHE_KIB << 10) + CONNECTION_BYTES + SETTLED_BYTES;

    /// What one that writes takes beside its pages: its connection, the list of
    /// rows that leave at once, and the index of the write-ahead log.
    /// And what it takes to look for damage.
    pub const WRITER_BYTES: usize =
        2 * CONNECTION_BYTES + check::CACHE_BYTES + (1 << 20) + (128 << 10);
}

/// Pages that are kept by one that reads for an exporter.
const CURSOR_CACHE_KIB: usize = 256;

/// What is remembered of events that are settled while one before them is not:
/// of four batches of 512, of each priority.
const SETTLED_BYTES: usize = 2 * 4 * 512 * 128;

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

fn shown(path: &Path) -> std::borrow::Cow<'_, str> {
    escape(path.as_os_str().as_encoded_bytes())
}

/// The store, shared by the emitter that writes to it and by the exporters
/// that it serves.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    config: StoreConfig,
    medium: Medium,
    /// The clocks when the agent began: age is counted by them, so that one
    /// that is set forward does not empty the store.
    began: ClockPair,
    exporters: Vec<String>,
    /// `None` until there is one to tell of.
    ledger: Mutex<Option<Box<Ledger>>>,
    inner: Mutex<Inner>,
    /// What everybody may look at while a commit waits for the disk.
    view: Mutex<View>,
    /// By exporter: what was delivered and could not be noted yet.
    parked: Mutex<HashMap<String, Parked>>,
    /// The connections that read, which are closed before the file is.
    lines: Mutex<Vec<Weak<Line>>>,
    /// Looks through the file, while it does.
    checks: Mutex<Option<JoinHandle<()>>>,
    committed: watch::Sender<u64>,
}

struct Inner {
    /// `None` while the folder can't be written to.
    lock: Option<Lock>,
    writer: Option<Box<Writer>>,
    /// What the accounts were when the file could be written last.
    books: Option<Books>,
    aged_ns: u64,
    /// Not all that is too old was let go of at once.
    is_more_old: bool,
    /// The batch that was committed last.
    last: Option<Mark>,
    /// A batch that may have been committed, and which event is there then: the
    /// file tells, once it is open again.
    unsure: Option<(Mark, u64)>,
    /// The files as they were after the last write.
    sight: Option<Sight>,
    /// Another agent may have written to the file since it was open here.
    others_wrote: bool,
    /// Another process was seen to write to the files before a commit: told, and
    /// looked into, with the next close look.
    was_touched: bool,
    check: Check,
}

impl Inner {
    /// Whether somebody else has committed to the file since it was open here.
    fn have_others_written(&self, last_seq: u64) -> bool {
        let is_ours = |books: &Books| {
            last_seq <= books.last_seq()
                || self.unsure.is_some_and(|(_, unsure)| last_seq == unsure)
        };
        self.others_wrote || !self.books.as_ref().is_none_or(is_ours)
    }
}

/// What tells a batch from every other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    first: (usize, EventId),
    last: (usize, EventId),
    len: usize,
}

impl Mark {
    fn of(batch: &[Arc<Event>]) -> Option<Self> {
        let end = |event: &Arc<Event>| (Arc::as_ptr(event).addr(), event.id);
        let (first, last) = (end(batch.first()?), end(batch.last()?));
        Some(Mark { first, last, len: batch.len() })
    }
}

struct View {
    books: Books,
    /// By exporter: by which of its cursors, and what.
    in_flight: HashMap<String, (u64, [Tally; 2])>,
    /// How many cursors were opened.
    cursors: u64,
    /// The file that is open, and which one since the start it is; it is the
    /// same one after it was opened anew.
    file: Option<PathBuf>,
    generation: u64,
    gap_from_ns: Option<u64>,
    set_aside: u64,
}

/// How often age is looked at where nothing is committed.
const AGE_INTERVAL_NS: u64 = 600_000_000_000;

/// How long the end waits for a commit that is under way.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// How long after its first event a group is written, the disk's flush aside.
pub const COMMIT_WINDOW: Duration = Duration::from_millis(10);

/// How long the first events of a group wait for others: the window but for the
/// timer, which counts in milliseconds, and the writing.
pub const GATHERING: Duration = COMMIT_WINDOW.saturating_sub(Duration::from_millis(2));

impl Store {
    /// Opens the store in its folder, for these durable exporters. Where the
    /// folder can't be used, that is told and tried again with every commit.
    ///
    /// # Errors
    /// Another agent has it, and has not ended within `patience`.
    pub fn open(
        config: StoreConfig,
        exporters: Vec<String>,
        patience: Duration,
    ) -> Result<Self, StoreError> {
        Self::open_on(Medium::default(), config, exporters, patience)
    }

    /// On another medium than the file system as it is, for tests.
    fn open_on(
        medium: Medium,
        config: StoreConfig,
        exporters: Vec<String>,
        patience: Duration,
    ) -> Result<Self, StoreError> {
        let books = Books::new(&exporters);
        let view = View {
            books,
            in_flight: HashMap::new(),
            cursors: 0,
            file: None,
            generation: 0,
            gap_from_ns: None,
            set_aside: 0,
        };
        let inner = Inner {
            lock: None,
            writer: None,
            books: None,
            aged_ns: 0,
            is_more_old: false,
            last: None,
            unsure: None,
            sight: None,
            others_wrote: false,
            was_touched: false,
            check: Check::new(false),
        };
        let shared = Arc::new(Shared {
            config,
            medium,
            began: ClockPair::now(),
            exporters,
            ledger: Mutex::default(),
            inner: Mutex::new(inner),
            view: Mutex::new(view),
            parked: Mutex::default(),
            lines: Mutex::default(),
            checks: Mutex::default(),
            committed: watch::Sender::new(0),
        });
        let mut inner = shared.lock();
        match shared.lock_folder(&mut inner, patience) {
            Err(error @ StoreError::InUse { .. }) => return Err(error),
            Err(error) => tracing::error!(%error, "the store can't be used; events are not kept"),
            Ok(()) => {
                if let Err(why) = shared.ready(&mut inner) {
                    let folder = shown(&shared.config.path);
                    tracing::error!(%folder, %why, "the store can't be used; events are not kept");
                }
            }
        }
        drop(inner);
        Ok(Store { shared })
    }

    /// What is written as the ledger, with the events of a commit. Until it is
    /// set, that of the agent before stays.
    pub fn set_ledger(&self, ledger: impl Fn() -> Vec<u8> + Send + Sync + 'static) {
        let mut current = self.shared.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Some(Box::new(ledger));
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.shared.config.path
    }

    /// What commits events.
    #[must_use]
    pub fn emitter(&self) -> StoreEmitter {
        StoreEmitter { shared: Arc::clone(&self.shared) }
    }

    /// Since when the agent before this one was not seen, if it did not end as
    /// it should; nanoseconds since 1970. Goes on being told at every start
    /// until an event of kind `vahti.agent.gap` is committed.
    #[must_use]
    pub fn gap_from_ns(&self) -> Option<u64> {
        self.shared.view().gap_from_ns
    }

    /// Whether a file was opened since the start, so that it is known whether
    /// there was a gap.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.shared.view().generation > 0
    }

    /// The store's own account: what was committed (routed), what left
    /// (dropped) and what is there (stored).
    #[must_use]
    pub fn own_line(&self) -> LaneLine {
        LaneLine::durable("store", OWN, &self.shared.view().books.own.counts)
    }

    /// How many files could not be read and were set aside since the start.
    #[must_use]
    pub fn set_aside(&self) -> u64 {
        self.shared.view().set_aside
    }

    /// The agent ends as it should: writes the ledger a last time. Without it
    /// the next start tells of a gap.
    pub fn end(&self) {
        if let Err(why) = self.shared.end() {
            let folder = shown(&self.shared.config.path);
            tracing::warn!(%folder, %why, "the store could not be closed as it should");
        }
    }

    /// Notes that the agent is alive, so that a gap begins where it ended, looks
    /// whether the files are still as it left them, and lets go of what is too
    /// old. Tries again to open the file, where that failed at the start. To be
    /// called every few seconds.
    pub fn tick(&self) {
        // Whoever commits is alive as well.
        let Some(mut inner) = self.shared.try_lock() else { return };
        let has_begun = || self.has_begun();
        if !has_begun()
            && let Err(why) = self.shared.ready(&mut inner)
        {
            tracing::debug!(%why, "the store can't be used yet");
        }
        self.shared.look_closely(&mut inner);
        // Until then the lock tells since when nothing is kept.
        if let Some(lock) = inner.lock.as_ref().filter(|lock| has_begun() || !lock.was_left())
            && let Err(error) = lock.touch()
        {
            tracing::debug!(%error, "the store's lock can't be touched");
        }
        if inner.writer.is_some() && inner.check.take() {
            check::begin(&self.shared);
        }
        let now = ClockPair::now().boot_ns;
        if !inner.is_more_old && now.saturating_sub(inner.aged_ns) < AGE_INTERVAL_NS {
            return;
        }
        inner.aged_ns = now;
        let result = inner.writer.as_mut().map_or(Ok(false), |writer| writer.age());
        match result {
            Ok(is_more) => {
                inner.is_more_old = is_more;
                self.shared.publish(&mut inner);
            }
            Err(trouble) => self.shared.note(&mut inner, trouble),
        }
    }
}

impl Drop for Shared {
    /// Once it is gone nobody has its file open any more.
    fn drop(&mut self) {
        let checks = self.checks.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let checks = checks.filter(|checks| checks.thread().id() != thread::current().id());
        if checks.is_some_and(|checks| checks.join().is_err()) {
            tracing::warn!("the look for damage has panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` while somebody else has it.
    fn try_lock(&self) -> Option<MutexGuard<'_, Inner>> {
        match self.inner.try_lock() {
            Ok(inner) => Some(inner),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// For whoever can't wait for a commit that does not come back.
    fn lock_within(&self, patience: Duration) -> Option<MutexGuard<'_, Inner>> {
        let until = Instant::now() + patience;
        loop {
            match self.try_lock() {
                Some(inner) => return Some(inner),
                None if Instant::now() >= until => return None,
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn parked(&self) -> MutexGuard<'_, HashMap<String, Parked>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Weak<Line>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self) -> Option<(PathBuf, u64)> {
        let view = self.view();
        Some((view.file.clone()?, view.generation))
    }

    fn lock_folder(&self, inner: &mut Inner, patience: Duration) -> Result<(), StoreError> {
        folder::make(&self.config.path)?;
        inner.lock = Some(Lock::take(&self.config.path, patience)?);
        folder::look_at_rights(&self.config.path);
        Ok(())
    }

    /// Has a file open to write to: the one that stands in the folder.
    fn ready(&self, inner: &mut Inner) -> Result<(), String> {
        self.hold_lock(inner)?;
        self.look(inner, false)?;
        if inner.writer.is_some() {
            return Ok(());
        }
        let (writer, goes_on) = match self.begin(inner) {
            Ok(begun) => begun,
            Err(trouble @ (Trouble::Later(_) | Trouble::Gone)) => return Err(trouble.why()),
            Err(Trouble::Corrupt(why)) => {
                self.set_aside(inner, &why)?;
                self.begin(inner).map_err(Trouble::why)?
            }
        };
        if let Some(Err(error)) = inner.lock.as_mut().map(Lock::sign) {
            tracing::debug!(%error, "the store's lock can't be signed");
        }
        let is_same = goes_on
            && !inner.have_others_written(writer.books.last_seq())
            && inner.sight.as_ref().is_some_and(|sight| sight.is_of(&writer.file));
        inner.books = None;
        inner.others_wrote = false;
        let mut view = self.view();
        if !is_same {
            view.generation += 1;
        }
        view.file = Some(writer.file.clone());
        // What a cursor finds there is what this generation's accounts say.
        view.books = writer.books.clone();
        drop(view);
        let unsure = inner.unsure.take();
        if !is_same {
            inner.last = None;
        } else if let Some((mark, last_seq)) = unsure
            && writer.books.last_seq() >= last_seq
            && !writer.holds_another(last_seq, &mark.last.1).unwrap_or(true)
        {
            inner.last = Some(mark);
        }
        inner.sight = None;
        inner.writer = Some(writer);
        self.publish(inner);
        Ok(())
    }

    /// Opens the file and notes that an agent runs; whether it is the one that
    /// was open before, with all that was in it.
    fn begin(&self, inner: &mut Inner) -> Result<(Box<Writer>, bool), Trouble> {
        let mut writer = self.open_file()?;
        let Some(books) = inner.books.clone() else {
            let before = inner.lock.as_ref().map(|lock| Before {
                alive_ns: lock.last_alive_ns(),
                left_the_lock: lock.was_left(),
            });
            let gap = writer.begin(Some(before.unwrap_or_default()))?;
            self.view().gap_from_ns = gap;
            inner.check = Check::new(gap.is_some());
            return Ok((writer, false));
        };
        let goes_on = take_over(&mut writer, books)?;
        writer.begin(None)?;
        if !goes_on {
            let lost = writer.books.own.lost().occurrences;
            tracing::error!(
                lost,
                "what was in the store's file is lost, and counted as store_lost"
            );
        }
        Ok((writer, goes_on))
    }

    fn open_file(&self) -> Result<Box<Writer>, Trouble> {
        let known = self.view().file.clone();
        for newer in [false, true] {
            let file = folder::file(&self.config.path, newer);
            if known.as_ref() != Some(&file) || !file.exists() {
                // Not where cursors may have it open: whoever closes a file lets
                // go of all locks that his process has on it, SQLite's too, and
                // the next `sqlite3` that ends would take itself for the last
                // one and remove the log that commits go to.
                folder::make_file(&file)?;
                if let Some(version) = schema::newer_at_a_glance(&file) {
                    let file = shown(&file);
                    tracing::warn!(%file, version, "a newer vahti writes this file; left as it is");
                    continue;
                }
            }
            match Writer::open(&file, &self.medium, &self.config, &self.exporters, self.began)? {
                Opened::Ready(writer) => return Ok(writer),
                Opened::Newer(version) => {
                    let file = shown(&file);
                    tracing::warn!(%file, version, "a newer vahti writes this file; left as it is");
                }
            }
        }
        Err(Trouble::Later("newer versions of vahti have taken both names of the file".to_owned()))
    }

    fn set_aside(&self, inner: &mut Inner, why: &str) -> Result<(), String> {
        let open = inner.sight.as_ref().map(|sight| sight.path().to_owned());
        self.close(inner, true);
        let file = open.unwrap_or_else(|| {
            let first = folder::file(&self.config.path, false);
            let is_newer = schema::newer_at_a_glance(&first).is_some();
            folder::file(&self.config.path, is_newer)
        });
        let aside = folder::set_aside(&file, Aside::Corrupt, ClockPair::now().wall_ns)
            .map_err(|error| error.to_string())?;
        inner.sight = None;
        self.view().set_aside += 1;
        let (file, aside) = (shown(&file), shown(&aside));
        tracing::error!(%file, why, "can't be read; it is {aside} now, and a fresh one is begun");
        Ok(())
    }

    /// Takes note of trouble; afterwards the file is opened anew.
    fn note(&self, inner: &mut Inner, trouble: Trouble) {
        let Some(writer) = &inner.writer else { return };
        match trouble {
            Trouble::Later(_) => {
                // Cursors keep what they have open of it.
                inner.books = Some(writer.books.clone());
                inner.writer = None;
            }
            Trouble::Gone => {
                if let Err(error) = self.look(inner, false) {
                    tracing::error!(%error, "a file that is gone can't be done without");
                }
            }
            Trouble::Corrupt(why) => {
                if let Err(error) = self.set_aside(inner, &why) {
                    tracing::error!(%error, "a file that can't be read can't be set aside");
                }
            }
        }
    }

    /// A reader found that a file can't be read.
    fn found_out(&self, generation: u64, trouble: Trouble) {
        let mut inner = self.lock();
        if self.view().generation != generation {
            return;
        }
        self.note(&mut inner, trouble);
        if let Err(why) = self.ready(&mut inner) {
            tracing::error!(%why, "a fresh file can't be begun yet");
        }
    }

    fn publish(&self, inner: &mut Inner) {
        let Some(writer) = &inner.writer else { return };
        inner.sight = Sight::of(writer, inner.sight.as_ref());
        let seq = writer.books.last_seq();
        self.view().books = writer.books.clone();
        if *self.committed.borrow() != seq {
            self.committed.send_replace(seq);
        }
    }

    fn commit(&self, batch: &[Arc<Event>]) -> Result<(), String> {
        let mut inner = self.lock();
        // It knows what became of a commit that it could not tell of.
        self.ready(&mut inner)?;
        // After a call that took so long that it was left behind, its batch
        // comes again from whoever took over: it may have got through meanwhile.
        let mark = Mark::of(batch);
        if mark.is_some() && inner.last == mark {
            return Ok(());
        }
        self.commit_once(&mut inner, batch, mark)?;
        inner.last = mark;
        Ok(())
    }

    fn commit_once(
        &self,
        inner: &mut Inner,
        batch: &[Arc<Event>],
        mark: Option<Mark>,
    ) -> Result<(), String> {
        // Once more with a fresh file, where the first can't be read.
        for _ in 0..2 {
            if inner.writer.is_none() {
                self.ready(inner)?;
            }
            let Some(writer) = &mut inner.writer else { continue };
            let result = match writer.bound_log() {
                Ok(None) => {
                    let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
                    writer.commit(batch, ledger.as_deref())
                }
                // The file is as it should be, and stays open.
                Ok(Some(held)) => {
                    self.publish(inner);
                    return Err(held);
                }
                Err(trouble) => Err(trouble),
            };
            let trouble = match result {
                Ok(()) => {
                    self.publish(inner);
                    return Ok(());
                }
                Err(trouble) => trouble,
            };
            // It may have been written all the same: the file knows.
            let last_seq = writer.books.last_seq() + batch.len() as u64;
            inner.unsure = mark.filter(|_| writer.is_unsure).map(|mark| (mark, last_seq));
            let is_unsure = inner.unsure.is_some();
            let is_over = matches!(trouble, Trouble::Corrupt(_) | Trouble::Gone);
            let why = trouble.to_string();
            self.note(inner, trouble);
            if is_over {
                continue;
            }
            if is_unsure && self.ready(inner).is_ok() && inner.last == mark {
                return Ok(());
            }
            return Err(why);
        }
        Err("the store's file can't be read, twice in a row".to_owned())
    }

    /// Whether the file is still the one that a cursor has read.
    fn settle(
        &self,
        exporter: &str,
        generation: u64,
        passed: &[(Priority, Vec<Passed>)],
        rejected: &[(u64, String, String)],
    ) -> Result<bool, String> {
        let mut inner = self.lock();
        self.ready(&mut inner)?;
        if self.view().generation != generation {
            return Ok(false);
        }
        let Some(writer) = &mut inner.writer else {
            return Err("the store is closed".to_owned());
        };
        match writer.settle(exporter, passed, rejected) {
            Ok(()) => {
                self.publish(&mut inner);
                Ok(true)
            }
            Err(trouble) => {
                let why = trouble.to_string();
                self.note(&mut inner, trouble);
                Err(why)
            }
        }
    }

    fn end(&self) -> Result<(), String> {
        // Without it the next start tells of an unclean end, which this was.
        let Some(mut inner) = self.lock_within(END_PATIENCE) else {
            return Err("a commit has not come back".to_owned());
        };
        if self.view().generation == 0 {
            // Nothing was kept: whether anybody is to be told of a time before
            // this one is for the next to find out.
            if let Some(lock) = inner.lock.as_mut().filter(|lock| !lock.was_left()) {
                lock.clear().map_err(|error| format!("its lock: {error}"))?;
            }
            return Err("it could not be opened, and nothing was kept".to_owned());
        }
        self.ready(&mut inner)?;
        let Some(writer) = &mut inner.writer else {
            return Err("it is not open".to_owned());
        };
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        writer.end(ledger.as_deref()).map_err(Trouble::why)?;
        drop(ledger);
        let cleared = inner.lock.as_mut().map_or(Ok(()), Lock::clear);
        cleared.map_err(|error| format!("its lock: {error}"))
    }
}

/// After the file was closed for a while, or replaced, the accounts go on;
/// whether it is the same one.
fn take_over(writer: &mut Writer, books: Books) -> Result<bool, Trouble> {
    let there = writer.books.last_seq();
    if there >= books.last_seq() {
        // The same file as before, with all that was written to it.
        writer.books.gone_to = books.gone_to;
        return Ok(true);
    }
    if there > 0 {
        // Somebody took its log away, or put an older copy in its place.
        return Err(writer::older());
    }
    writer.books = books;
    writer.books.lose_all();
    Ok(false)
}

/// Commits events to the store.
pub struct StoreEmitter {
    shared: Arc<Shared>,
}

impl EventEmitter for StoreEmitter {
    fn name(&self) -> &str {
        "store"
    }

    /// What can't be committed now is tried again.
    fn is_critical(&self) -> bool {
        true
    }

    /// As many as the write-ahead log takes several times.
    fn max_batch(&self) -> usize {
        let wal = writer::wal_bytes(self.shared.config.max_bytes.0);
        usize::try_from(wal / 4 / 1_024).unwrap_or(usize::MAX).clamp(128, 4_096)
    }

    /// A commit costs a disk's flush: events gather for [`GATHERING`].
    fn min_batch(&self) -> usize {
        self.max_batch()
    }

    fn emit<'a>(&'a mut self, batch: &'a [Arc<Event>]) -> Emission<'a, EmitOutcome> {
        let outcome = match self.shared.commit(batch) {
            Ok(()) => EmitOutcome::Delivered,
            Err(reason) => EmitOutcome::Retryable { reason, retry_after: None },
        };
        Box::pin(ready(outcome))
    }
}
