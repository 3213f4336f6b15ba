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
//! beyond its share, make it fail for now: events wait in their lanes, whose
//! policies decide what goes. A file that can't be read is set aside under a
//! dated name and a fresh one is begun; one that is taken away or replaced under
//! the agent is noticed, and what was in it is counted. None of it stops the
//! agent.
//!
//! What it never does: delete a file because it can't read it (of those that it
//! set aside, three stay), or write to one that a newer version left.

mod books;
mod check;
mod config;
mod evict;
mod files;
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
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use vahti_runtime::clock::ClockPair;
use vahti_runtime::emitter::{Emission, EmitOutcome, EventEmitter};
use vahti_runtime::event::{Event, Priority, escape};
use vahti_runtime::ids::EventId;
use vahti_runtime::ledger::{LaneLine, Tally};
use vahti_runtime::units::{ByteSize, HumanDuration};

use self::books::{Books, OWN, Passed};
use self::check::Check;
use self::folder::Lock;
use self::log::{Line, Parked};
use self::notice::Sight;
use self::writer::{Ledger, Medium, Trouble, Writer};

pub use self::config::{StoreConfig, StoreError, StoreMemory};

use self::config::Bounds;
pub use self::reader::{Filter, ReadError, Reader, Row, Snapshot};
pub use self::state::{Contents, Owes, State};

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
    /// How large and how old what is kept may become, as of now.
    bounds: Arc<Bounds>,
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
    /// How many emitters were made.
    emitters: AtomicU64,
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
    /// The newest emitter that has committed.
    emitter: u64,
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
            emitter: 0,
            last: None,
            unsure: None,
            sight: None,
            others_wrote: false,
            was_touched: false,
            check: Check::new(),
        };
        let shared = Arc::new(Shared {
            bounds: Arc::new(Bounds::of(&config)),
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
            emitters: AtomicU64::new(0),
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

    /// Bounds what is kept otherwise, from the next commit on: what is too much
    /// or too old then leaves with it. Waits for no disk.
    pub fn set_bounds(&self, max_bytes: ByteSize, max_age: HumanDuration) {
        self.shared.bounds.set(max_bytes, max_age);
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.shared.config.path
    }

    /// What commits events.
    #[must_use]
    pub fn emitter(&self) -> StoreEmitter {
        let number = self.shared.emitters.fetch_add(1, Ordering::Relaxed);
        StoreEmitter { shared: Arc::clone(&self.shared), number }
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

    /// How many files were set aside since the start: they could not be read, or
    /// were put in the place of the agent's.
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
    /// old. Tries again to open the file, where that failed. To be called every
    /// few seconds.
    pub fn tick(&self) {
        // Whoever commits is alive as well.
        let Some(mut inner) = self.shared.try_lock() else { return };
        let has_begun = || self.has_begun();
        // Exporters are owed what is in it, also where nothing is committed.
        if inner.writer.is_none()
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
            check::begin(&self.shared, &mut inner.check);
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

    fn commit(&self, emitter: u64, batch: &[Arc<Event>]) -> Result<(), String> {
        let mut inner = self.lock();
        // One that was left behind while it waited for the lock: whoever took over
        // may have committed its batch long ago, and others since.
        if emitter < inner.emitter {
            return Err("another one has taken over".to_owned());
        }
        inner.emitter = emitter;
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
                if mark.is_some() && inner.last == mark {
                    return Ok(());
                }
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
            let is_over = matches!(trouble, Trouble::Corrupt(_) | Trouble::Gone);
            let why = trouble.to_string();
            self.note(inner, trouble);
            if is_over {
                continue;
            }
            let is_unsure = inner.unsure.is_some();
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

/// Commits events to the store.
pub struct StoreEmitter {
    shared: Arc<Shared>,
    /// Which of all emitters it is: one that was left behind commits no more.
    number: u64,
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
        let wal = writer::wal_bytes(self.shared.bounds.max_bytes());
        usize::try_from(wal / 4 / 1_024).unwrap_or(usize::MAX).clamp(128, 4_096)
    }

    /// A commit costs a disk's flush: events gather for [`GATHERING`].
    fn min_batch(&self) -> usize {
        self.max_batch()
    }

    fn emit<'a>(&'a mut self, batch: &'a [Arc<Event>]) -> Emission<'a, EmitOutcome> {
        // A batch of a store that was larger may be too much for this one's log.
        if batch.len() > self.max_batch() {
            let reason = "more than is committed at once".to_owned();
            return Box::pin(ready(EmitOutcome::TooLarge { reason }));
        }
        let outcome = match self.shared.commit(self.number, batch) {
            Ok(()) => EmitOutcome::Delivered,
            Err(reason) => EmitOutcome::Retryable { reason, retry_after: None },
        };
        Box::pin(ready(outcome))
    }
}
