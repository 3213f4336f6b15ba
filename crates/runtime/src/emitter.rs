//! Where events go: the trait that every exporter implements.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::event::Event;
use crate::metrics::Sample;

/// What became of one event of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The other side has it.
    Delivered,
    /// Not now; trying again may help.
    Retryable,
    /// Never; trying again can't help.
    Rejected,
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmitOutcome {
    /// All of it arrived.
    Delivered,
    /// None of it arrived; trying again may help, not before the hint.
    Retryable {
        /// Why, for logs.
        reason: String,
        /// How long the other side asked to wait; at most 5 minutes count.
        retry_after: Option<Duration>,
    },
    /// None of it will ever be taken.
    Rejected {
        /// Why, for logs.
        reason: String,
    },
    /// The batch is larger than the other side takes at once; it is tried again
    /// in halves, at once. A single event that is too large is rejected.
    TooLarge {
        /// Why, for logs.
        reason: String,
    },
    /// One answer per event, in the batch's order. A list that is too short
    /// leaves the rest retryable; what is too long is ignored.
    Each {
        /// The answers.
        deliveries: Vec<Delivery>,
        /// Why some did not arrive, for logs.
        reason: String,
        /// How long the other side asked to wait before the retryable ones.
        retry_after: Option<Duration>,
    },
    /// The other side took the batch but for this many, and did not say
    /// which; they are counted as rejected and never retried.
    RejectedUnidentified {
        /// How many; more than the batch counts as the whole batch.
        rejected: u64,
        /// Why, for logs.
        reason: String,
    },
}

/// A future that an emitter returns, boxed so that the trait stays usable as
/// `dyn EventEmitter`.
pub type Emission<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Tells what an emitter has counted of its own, beside what the ledger has: of
/// this one and those that were made in its place before.
pub type Meter = Arc<dyn Fn() -> Vec<Sample> + Send + Sync>;

/// The largest batch of an emitter that does not say otherwise, in events.
pub const MAX_BATCH: usize = 512;

/// Takes batches of events to a wire, a disk or a terminal.
///
/// An emitter has a thread of its own: it may block, stall, panic or fail, and
/// holds up nobody else. It is called with one batch at a time. Where a call
/// does not return, a fresh emitter takes over while the first one is still
/// inside its call, unless it [waits for a reader](Self::waits_for_reader).
pub trait EventEmitter: Send {
    /// The emitter's name; in metrics, logs and the ledger.
    fn name(&self) -> &str;

    /// Whether what it fails to take is retried (up to `max_retries`).
    fn is_critical(&self) -> bool {
        false
    }

    /// The largest batch that it takes, in events.
    fn max_batch(&self) -> usize {
        MAX_BATCH
    }

    /// From how many events on a request is worth its price: up to that many
    /// are waited for, `drain_interval` at the longest. 1 takes what is there.
    fn min_batch(&self) -> usize {
        1
    }

    /// Whether a call may block for as long as whoever reads the other end
    /// likes, a pipe's reader for one. Such a call is waited for, however long
    /// it takes: a fresh emitter would wait for the same reader, and write into
    /// the middle of what the first one still writes.
    fn waits_for_reader(&self) -> bool {
        false
    }

    /// What it counts of its own, for metrics. Asked for once, at the start.
    fn meter(&self) -> Option<Meter> {
        None
    }

    /// Delivers a batch.
    fn emit<'a>(&'a mut self, batch: &'a [Arc<Event>]) -> Emission<'a, EmitOutcome>;

    /// Flushes and closes. Called once, after the last batch.
    fn close(&mut self) -> Emission<'_, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
