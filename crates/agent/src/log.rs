//! What the agent tells about itself, on standard error.
//!
//! One record is one line, written at once or not at all: whoever does not read
//! standard error must not hold up an observer or the shutdown. No call site
//! can fill a disk: what comes too often is held back, counted, and told with
//! the next line of its kind, or at the end ([`limit`]).

pub(crate) mod command;
mod limit;
mod line;
mod stderr;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tracing::metadata::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::{Interest, Subscriber};
use tracing::{Event, Level, Metadata};
use vahti_runtime::clock::ClockPair;

use self::limit::{Held, Limit, Verdict};
use self::line::{Line, in_short};
use crate::config::{LogFormat, LogLevel, LogSettings};

/// The log of this process.
static LOG: Log = Log::new(stderr::write_now, Instant::now);

/// Starts logging. Once per process.
pub(crate) fn start(settings: LogSettings) -> Ends {
    LOG.level.store(settings.level as u8, Ordering::Relaxed);
    set_format(settings.format);
    // Somebody else logs already, in a test.
    tracing::subscriber::set_global_default(&LOG).unwrap_or_default();
    Ends
}

/// Whether why the program ends is told as a line of JSON, too.
pub(crate) fn tells_failures_as_json() -> bool {
    LOG.format() == LogFormat::Json && LOG.level() >= LogLevel::Error
}

/// Changes how much is told from now on. A call site that is told nothing of
/// costs no more than a look at a number.
pub(crate) fn set_level(level: LogLevel) {
    LOG.level.store(level as u8, Ordering::Relaxed);
    tracing_core::callsite::rebuild_interest_cache();
}

/// Changes how lines are written from now on.
pub(crate) fn set_format(format: LogFormat) {
    LOG.is_json.store(format == LogFormat::Json, Ordering::Relaxed);
}

/// Changes how much is told because somebody asked for it, and tells that: at
/// whichever of the two levels tells more.
pub(crate) fn change_level(level: LogLevel) {
    let before = LOG.level();
    set_level(level.max(before));
    let (from, to) = (before.as_str(), level.as_str());
    tracing::info!(from, to, "how much is told was changed");
    set_level(level);
}

/// What is in force, and what was told and held back so far.
pub(crate) fn state() -> Value {
    let counts = counts();
    let lines = counts.lines.iter().map(|(level, count)| ((*level).to_owned(), json!(count)));
    json!({
        "level": LOG.level().as_str(),
        "format": LOG.format().as_str(),
        "lines": lines.collect::<Map<_, _>>(),
        "held_back": {"rate": counts.rate, "stderr": counts.stderr},
    })
}

/// Tells what was held back, and from now on holds nothing back: what is told
/// at the end is told once, and has its own bound.
pub(crate) fn lift_limit() {
    LOG.tell_held(None);
    LOG.limit.lift();
}

/// Tells what was held back, whichever way the agent ends.
#[must_use = "tells what was held back when it is dropped"]
pub(crate) struct Ends;

impl Drop for Ends {
    fn drop(&mut self) {
        LOG.tell_held(None);
    }
}

/// What became of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Lines that were written, by level.
    pub(crate) lines: [(&'static str, u64); 5],
    /// What came too often.
    pub(crate) rate: u64,
    /// What standard error did not take at once.
    pub(crate) stderr: u64,
}

/// What became of records so far.
pub(crate) fn counts() -> Counts {
    let words = ["error", "warn", "info", "debug", "trace"];
    Counts {
        lines: std::array::from_fn(|i| (words[i], LOG.lines[i].load(Ordering::Relaxed))),
        rate: LOG.rate.load(Ordering::Relaxed),
        stderr: LOG.stderr.load(Ordering::Relaxed),
    }
}

/// How long it is at least from one look for what was held back to the next.
const SWEEP: Duration = limit::REFILL;

/// Takes records, and writes those that may be.
struct Log {
    /// As [`LogLevel::ALL`] counts them.
    level: AtomicU8,
    is_json: AtomicBool,
    limit: Limit,
    /// Written lines, the gravest level first.
    lines: [AtomicU64; 5],
    /// Records that came too often.
    rate: AtomicU64,
    /// Records that standard error did not take.
    stderr: AtomicU64,
    /// Those of them that no line has told of yet.
    untold: AtomicU64,
    write: fn(&[u8]) -> bool,
    now: fn() -> Instant,
}

impl Log {
    const fn new(write: fn(&[u8]) -> bool, now: fn() -> Instant) -> Self {
        Log {
            level: AtomicU8::new(LogLevel::Info as u8),
            is_json: AtomicBool::new(false),
            limit: Limit::new(),
            lines: [const { AtomicU64::new(0) }; 5],
            rate: AtomicU64::new(0),
            stderr: AtomicU64::new(0),
            untold: AtomicU64::new(0),
            write,
            now,
        }
    }

    fn level(&self) -> LogLevel {
        let level = usize::from(self.level.load(Ordering::Relaxed));
        LogLevel::ALL.get(level).copied().unwrap_or_default()
    }

    fn format(&self) -> LogFormat {
        if self.is_json.load(Ordering::Relaxed) { LogFormat::Json } else { LogFormat::Text }
    }

    fn filter(&self) -> LevelFilter {
        match self.level() {
            LogLevel::Off => LevelFilter::OFF,
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        }
    }

    /// What libraries tell of their connections is for their developers, and
    /// may hold what others must not see: only what is not as it should be.
    fn takes(&self, what: &Metadata<'_>) -> bool {
        let ours = self.filter();
        let filter =
            if what.target().starts_with("vahti") { ours } else { ours.min(LevelFilter::WARN) };
        what.is_event() && *what.level() <= filter
    }

    fn tell(&self, event: &Event<'_>) {
        let now = (self.now)();
        match self.limit.admit(event, now) {
            Verdict::Write { held, of } => {
                if !self.write(event.metadata(), held, |line| line.event(event)) {
                    self.stderr.fetch_add(1, Ordering::Relaxed);
                    self.untold.fetch_add(1, Ordering::Relaxed);
                    self.limit.give_back(of, held);
                }
            }
            Verdict::Hold { of, is_first } => {
                self.rate.fetch_add(1, Ordering::Relaxed);
                // Only once each time: it costs what writing it would.
                if is_first {
                    self.limit.describe(of, in_short(event));
                }
            }
        }
        self.tell_held(Some(now));
    }

    /// Tells what was held back and has had no line since that would have told:
    /// of all that is quiet by then, or of all there is.
    fn tell_held(&self, now: Option<Instant>) {
        for held in self.limit.take_held(now, SWEEP) {
            let Held { of, count, what, like } = held;
            let told = self.takes(what) && self.write(what, count, |line| line.held_back(&like));
            if !told {
                self.limit.give_back(of, count);
            }
        }
    }

    /// Whether a line could be written at once.
    fn write(&self, what: &Metadata<'_>, held: u64, say: impl FnOnce(&mut Line)) -> bool {
        let untold = self.untold.swap(0, Ordering::Relaxed);
        let wall_ns = ClockPair::now().wall_ns;
        let mut line = Line::begin(self.format(), wall_ns, what, untold);
        say(&mut line);
        let written = (self.write)(line.end(held).as_bytes());
        if written {
            self.lines[place(*what.level())].fetch_add(1, Ordering::Relaxed);
        } else {
            self.untold.fetch_add(untold, Ordering::Relaxed);
        }
        written
    }
}

fn place(level: Level) -> usize {
    match level {
        Level::ERROR => 0,
        Level::WARN => 1,
        Level::INFO => 2,
        Level::DEBUG => 3,
        Level::TRACE => 4,
    }
}

/// Spans are nothing to it: no line tells of them.
impl Subscriber for &'static Log {
    fn register_callsite(&self, what: &'static Metadata<'static>) -> Interest {
        if self.takes(what) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, what: &Metadata<'_>) -> bool {
        self.takes(what)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.filter())
    }

    fn event(&self, event: &Event<'_>) {
        self.tell(event);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[cfg(test)]
mod tests;
