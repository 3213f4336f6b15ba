//! How often a call site may be heard.
//!
//! The first lines of a trouble say what it is, and one every ten seconds says
//! that it goes on; a thousand a second say no more, and fill a disk. So each
//! call site has [`BURST`] lines at once and one more every [`REFILL`]. Where a
//! line names its observer or emitter, that one has them for itself: a storm of
//! one must not hide the first line of another.
//!
//! Details are limited, too, as clients can provoke some of them, but a hundred
//! times as generously: who asks for details wants to see their order, and who
//! changes the configuration what came of each field.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::fmt::{self, Write};
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata};

/// How many lines are written at once.
pub(super) const BURST: u32 = 10;
/// How long it takes until there may be another.
pub(super) const REFILL: Duration = Duration::from_secs(10);

/// What details have of both.
const BURST_OF_DETAILS: u32 = 1_000;
const REFILL_OF_DETAILS: Duration = Duration::from_millis(100);

/// How many observers and emitters have lines for themselves, at most; beyond
/// that, whoever comes shares what the call site has. There are as many call
/// sites as the program has. Each takes up to half a kilobyte.
pub(super) const MAX_SUBJECTS: usize = 256;

/// The fields that name whom a line is about.
const SUBJECTS: [&str; 3] = ["observer", "emitter", "exporter"];

/// A call site, and whom it tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key(u64);

/// What becomes of a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is written, and tells of so many before it that were not.
    Write { held: u64, of: Key },
    /// It is counted.
    Hold {
        of: Key,
        /// Whether nothing was held back since the last line.
        is_first: bool,
    },
}

/// Records that were held back and are to be told of.
pub(super) struct Held {
    pub(super) of: Key,
    pub(super) count: u64,
    pub(super) what: &'static Metadata<'static>,
    /// The first of them, in short.
    pub(super) like: String,
}

struct Site {
    what: &'static Metadata<'static>,
    spent: u32,
    /// When the first of those that were spent began to come back.
    since: Instant,
    last: Instant,
    held: u64,
    like: String,
}

#[derive(Default)]
struct Sites {
    by_key: HashMap<Key, Site>,
    swept: Option<Instant>,
}

/// What call sites have left. The lock is held for a look, and never while
/// something is written or made into text.
pub(super) struct Limit {
    sites: LazyLock<Mutex<Sites>>,
    is_lifted: AtomicBool,
}

impl Limit {
    pub(super) const fn new() -> Self {
        Limit { sites: LazyLock::new(Mutex::default), is_lifted: AtomicBool::new(false) }
    }

    fn sites(&self) -> MutexGuard<'_, Sites> {
        self.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a record may be written now.
    pub(super) fn admit(&self, event: &Event<'_>, now: Instant) -> Verdict {
        let (whole, alone) = keys(event);
        let mut sites = self.sites();
        let has_room = sites.by_key.len() < MAX_SUBJECTS || sites.by_key.contains_key(&alone);
        let of = if has_room { alone } else { whole };
        let site = sites.by_key.entry(of).or_insert_with(|| Site::new(event.metadata(), now));
        let may = site.may_pass(now) || self.is_lifted.load(Ordering::Relaxed);
        if may {
            return Verdict::Write { held: std::mem::take(&mut site.held), of };
        }
        site.held += 1;
        Verdict::Hold { of, is_first: site.held == 1 }
    }

    /// Says what was held back, for when that is told.
    pub(super) fn describe(&self, of: Key, like: String) {
        if let Some(site) = self.sites().by_key.get_mut(&of) {
            site.like = like;
        }
    }

    /// What was held back is to be told later, as it could not be told now.
    pub(super) fn give_back(&self, of: Key, held: u64) {
        if held > 0
            && let Some(site) = self.sites().by_key.get_mut(&of)
        {
            site.held += held;
        }
    }

    /// What was held back of call sites that have been quiet for as long as it
    /// takes to have a line again; without a time, of all. Looks at most that
    /// often.
    pub(super) fn take_held(&self, now: Option<Instant>, every: Duration) -> Vec<Held> {
        let mut sites = self.sites();
        if let Some(now) = now {
            let swept = *sites.swept.get_or_insert(now);
            if now.saturating_duration_since(swept) < every {
                return Vec::new();
            }
            sites.swept = Some(now);
        }
        let is_quiet =
            |site: &Site| now.is_none_or(|now| now.saturating_duration_since(site.last) >= REFILL);
        let quiet = sites.by_key.iter_mut().filter(|(_, site)| site.held > 0 && is_quiet(site));
        let take = |(of, site): (&Key, &mut Site)| Held {
            of: *of,
            count: std::mem::take(&mut site.held),
            what: site.what,
            like: site.like.clone(),
        };
        quiet.map(take).collect()
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> u64 {
        self.sites().by_key.values().map(|site| site.held).sum()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.sites().by_key.len()
    }

    /// Holds nothing back from now on.
    pub(super) fn lift(&self) {
        self.is_lifted.store(true, Ordering::Relaxed);
    }
}

impl Site {
    fn new(what: &'static Metadata<'static>, now: Instant) -> Self {
        Site { what, spent: 0, since: now, last: now, held: 0, like: String::new() }
    }

    fn may_pass(&mut self, now: Instant) -> bool {
        let (burst, refill) = if is_to_be_whole(self.what) {
            (BURST_OF_DETAILS, REFILL_OF_DETAILS)
        } else {
            (BURST, REFILL)
        };
        self.last = now;
        let passed = now.saturating_duration_since(self.since).as_nanos() / refill.as_nanos();
        let back = u32::try_from(passed).unwrap_or(u32::MAX);
        if back >= self.spent {
            (self.spent, self.since) = (0, now);
        } else {
            self.spent -= back;
            self.since += refill * back;
        }
        let may = self.spent < burst;
        self.spent += u32::from(may);
        may
    }
}

/// Whether it is limited as details are: so is what a reload changes or refuses,
/// field by field, which has its own bound.
fn is_to_be_whole(what: &Metadata<'_>) -> bool {
    *what.level() > Level::INFO || what.target().starts_with("vahti::reload")
}

/// Of the call site as a whole, and of whom this record is about.
fn keys(event: &Event<'_>) -> (Key, Key) {
    let mut hasher = DefaultHasher::new();
    event.metadata().callsite().hash(&mut hasher);
    let whole = Key(hasher.finish());
    let mut subject = Subject(hasher);
    event.record(&mut subject);
    (whole, Key(subject.0.finish()))
}

/// Takes note of whom a record is about, without making that a text.
struct Subject(DefaultHasher);

impl Visit for Subject {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if SUBJECTS.contains(&field.name()) {
            // Writing into a hash does not fail.
            write!(self, "{value:?}").unwrap_or_default();
        }
    }
}

impl Write for Subject {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}
