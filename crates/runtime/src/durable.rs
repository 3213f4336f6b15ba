//! A log of committed events, from which durable emitters are served.
//!
//! A durable emitter has no lanes. What it is owed stands in a log that
//! survives the program (the exporters' `store` is one), and the log keeps a
//! cursor for it: an acknowledgement moves that cursor and nothing else. So an
//! event that was committed reaches every durable emitter at least once, for
//! as long as the log keeps it.

use std::sync::Arc;

use tokio::sync::watch;

use crate::event::Event;
use crate::ledger::LaneLine;

/// A committed event that an emitter is owed.
#[derive(Debug, Clone)]
pub struct Owed {
    /// Its place in the log; later ones are greater.
    pub seq: u64,
    /// The event.
    pub event: Arc<Event>,
}

/// What became of one that was owed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Its place in the log.
    pub seq: u64,
    /// Why the other side will never take it; `None` if it has it.
    pub rejected: Option<String>,
}

/// Why a log can't do what it is asked for; it is asked again later.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct LogError(pub String);

/// Keeps committed events until every durable emitter has them.
pub trait DurableLog: Send + Sync {
    /// What this emitter is owed.
    ///
    /// # Errors
    /// The log can't be read now.
    fn cursor(&self, emitter: &str) -> Result<Box<dyn DurableCursor>, LogError>;

    /// The account of this emitter, of events in flight `in_flight`.
    fn line(&self, emitter: &str) -> LaneLine;

    /// Changes whenever something was committed.
    fn committed(&self) -> watch::Receiver<u64>;
}

/// One emitter's place in a log.
pub trait DurableCursor: Send {
    /// Up to `limit` events that are owed and not settled, critical ones
    /// first, each priority in its order. They count as in flight until they
    /// are settled or this is called again.
    ///
    /// # Errors
    /// The log can't be read now.
    fn read(&mut self, limit: usize) -> Result<Vec<Owed>, LogError>;

    /// Takes note of what became of some of what was read last.
    ///
    /// # Errors
    /// It could not be noted: what is settled may be read again.
    fn settle(&mut self, settled: Vec<Settled>) -> Result<(), LogError>;
}
