//! The one trait that an observer's author writes.
//!
//! A processor is pure logic: record in, event out. It does no I/O, holds no
//! clock and starts nothing; time comes with the record, so the same records
//! give the same events on any machine.

use std::fmt;

use crate::config::Config;
use crate::event::Event;

/// What kind of fact a record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// Bytes that an eBPF program wrote.
    Kernel,
    /// Time has passed; no bytes.
    Tick,
    /// A serialised object of the cluster or of `/proc`.
    Fact,
}

/// One record, stamped by its source.
#[derive(Debug, Clone, Copy)]
pub struct RawRecord<'a> {
    /// What the bytes are.
    pub kind: RecordKind,
    /// When it happened: `CLOCK_BOOTTIME`, nanoseconds.
    pub boot_ns: u64,
    /// When it happened: wall clock, nanoseconds since 1970.
    pub wall_ns: u64,
    /// The CPU that wrote it; 0 where there is none.
    pub cpu: u32,
    /// Its number on that CPU, counted by whoever wrote it.
    pub seq: u64,
    /// The payload.
    pub bytes: &'a [u8],
}

impl RawRecord<'_> {
    /// Wall-clock time of a moment given by the boot clock, in nanoseconds
    /// since 1970, by this record's own pair of stamps.
    #[must_use]
    pub fn wall_of(&self, boot_ns: u64) -> u64 {
        self.wall_ns.saturating_sub(self.boot_ns).saturating_add(boot_ns)
    }
}

/// What a processor made of a record.
#[allow(clippy::large_enum_variant, reason = "a box would cost an allocation an event")]
#[derive(Debug, Default)]
pub enum Output {
    /// Not interesting: the record counts as ignored.
    #[default]
    Nothing,
    /// One event.
    One(Event),
    /// Several, in order; an empty list counts as ignored.
    Several(Vec<Event>),
}

impl From<Event> for Output {
    fn from(event: Event) -> Self {
        Output::One(event)
    }
}

impl From<Option<Event>> for Output {
    fn from(event: Option<Event>) -> Self {
        event.map_or(Output::Nothing, Output::One)
    }
}

/// Why a processor made nothing of a record.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The bytes are not what they should be. Counted; the next record is
    /// processed as usual.
    #[error("malformed record: {what} ({len} bytes)")]
    Malformed {
        /// What is wrong with it.
        what: &'static str,
        /// How long the record is, in bytes.
        len: usize,
    },
    /// The processor can't go on. Counted; the failure policy decides.
    #[error("fatal: {0}")]
    Fatal(String),
}

/// Why an observer could not be set up or taken down.
#[derive(Debug)]
pub struct LifecycleError {
    what: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl LifecycleError {
    /// An error that says what was being done.
    pub fn new(what: impl Into<String>) -> Self {
        LifecycleError { what: what.into(), source: None }
    }

    /// An error with what brought it about.
    pub fn with_source(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        LifecycleError { what: what.into(), source: Some(source.into()) }
    }
}

impl fmt::Display for LifecycleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for LifecycleError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| &**s as &(dyn std::error::Error + 'static))
    }
}

/// What setting up and taking down return: a future, boxed so that the trait
/// stays usable as `dyn EventProcessor`.
pub type Lifecycle<'a> =
    std::pin::Pin<Box<dyn Future<Output = Result<(), LifecycleError>> + Send + 'a>>;

/// Turns records into events. The only code that an observer must have; the
/// rest comes from the runtime.
///
/// One thread calls an instance, unless the runtime was built with a
/// `concurrency` above 1; state may use a lock of its own. After a panic or a
/// [`ProcessError::Fatal`] the instance is never called again but for
/// [`teardown`](EventProcessor::teardown): the runtime's factory makes a fresh
/// one.
///
/// ```
/// use vahti_runtime::event::{Event, EventKind, Priority, Severity};
/// use vahti_runtime::processor::{EventProcessor, Output, ProcessError, RawRecord};
///
/// static GREETING: EventKind =
///     EventKind::custom("example.hello.greeting", "hello", "greeting", Priority::Normal);
///
/// struct Hello;
///
/// impl EventProcessor for Hello {
///     fn name(&self) -> &str {
///         "hello"
///     }
///
///     fn process(&self, record: RawRecord<'_>) -> Result<Output, ProcessError> {
///         match record.bytes {
///             b"hello" => Ok(Event::new(&GREETING, Severity::Info).into()),
///             b"" => Err(ProcessError::Malformed { what: "empty greeting", len: 0 }),
///             _ => Ok(Output::Nothing),
///         }
///     }
/// }
/// ```
pub trait EventProcessor: Send + Sync {
    /// The observer's name, lowercase with hyphens; in events, metrics, logs.
    fn name(&self) -> &str;

    /// Makes an event of a record, or says why not.
    ///
    /// # Errors
    /// [`ProcessError::Malformed`] is counted and nothing more;
    /// [`ProcessError::Fatal`] and a panic trigger the failure policy.
    fn process(&self, record: RawRecord<'_>) -> Result<Output, ProcessError>;

    /// Called once before the first record. A failure is a start-up error. It
    /// must not block its thread, which is that of all observers' lives; one
    /// that does not end is given up when a shutdown begins.
    fn setup<'a>(&'a self, config: &'a Config) -> Lifecycle<'a> {
        let _unused = config;
        Box::pin(std::future::ready(Ok(())))
    }

    /// Called once after the last record, also if [`setup`] failed, but not
    /// while a thread hangs inside this instance: it might hold what this
    /// needs. Has a quarter of the time that there is to drain.
    ///
    /// [`setup`]: EventProcessor::setup
    fn teardown(&self) -> Lifecycle<'_> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Makes processors: one at the start, a fresh one after each failure.
pub trait ProcessorFactory: Send + Sync {
    /// Makes one.
    fn make(&self) -> Box<dyn EventProcessor>;
}

impl<F, P> ProcessorFactory for F
where
    F: Fn() -> P + Send + Sync,
    P: EventProcessor + 'static,
{
    fn make(&self) -> Box<dyn EventProcessor> {
        Box::new(self())
    }
}
