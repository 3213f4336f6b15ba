//! Where records come from: a ring buffer, an informer, `/proc`, a recording.
//!
//! A source copies what it has into a [`RecordBatch`] and lets go of it at
//! once, so that a slow processor does not hold the kernel's ring, and a hung
//! one can be abandoned while its batch goes on with a fresh one.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::processor::{LifecycleError, RawRecord, RecordKind};

/// Where a record in a batch lies, and its stamps.
#[derive(Debug, Clone, Copy)]
struct Slot {
    kind: RecordKind,
    boot_ns: u64,
    wall_ns: u64,
    cpu: u32,
    seq: u64,
    start: usize,
    end: usize,
}

/// Records copied out of a source, bounded in items and bytes, reused from one
/// read to the next.
#[derive(Debug)]
pub struct RecordBatch {
    bytes: Vec<u8>,
    slots: Vec<Slot>,
    max_records: usize,
    max_bytes: usize,
}

impl RecordBatch {
    /// What it takes beside a record's bytes; twice, as lists grow by doubling.
    pub(crate) const SLOT_BYTES: usize = 2 * size_of::<Slot>();

    /// At most this many records and bytes.
    #[must_use]
    pub fn new(max_records: usize, max_bytes: usize) -> Self {
        RecordBatch {
            bytes: Vec::new(),
            slots: Vec::new(),
            max_records: max_records.max(1),
            max_bytes,
        }
    }

    /// Adds a copy of a record. `false` if there is no room: it is not taken,
    /// read it again next time. An empty batch takes a record of any size.
    pub fn push(&mut self, record: RawRecord<'_>) -> bool {
        if !self.has_room(record.bytes.len()) {
            return false;
        }
        let start = self.bytes.len();
        if self.bytes.capacity() - start < record.bytes.len() {
            // Doubles, as a vector would, but not beyond what may ever be held.
            let doubled = start.min(self.max_bytes.saturating_sub(start));
            self.bytes.reserve_exact(doubled.max(record.bytes.len()));
        }
        self.bytes.extend_from_slice(record.bytes);
        self.slots.push(Slot {
            kind: record.kind,
            boot_ns: record.boot_ns,
            wall_ns: record.wall_ns,
            cpu: record.cpu,
            seq: record.seq,
            start,
            end: self.bytes.len(),
        });
        true
    }

    /// Whether a record of this many bytes would be taken.
    #[must_use]
    pub fn has_room(&self, len: usize) -> bool {
        self.slots.is_empty()
            || (self.slots.len() < self.max_records && self.bytes.len() + len <= self.max_bytes)
    }

    /// How many records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The record at a position.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<RawRecord<'_>> {
        let slot = self.slots.get(index)?;
        Some(RawRecord {
            kind: slot.kind,
            boot_ns: slot.boot_ns,
            wall_ns: slot.wall_ns,
            cpu: slot.cpu,
            seq: slot.seq,
            bytes: self.bytes.get(slot.start..slot.end)?,
        })
    }

    /// The records in order.
    pub fn iter(&self) -> impl Iterator<Item = RawRecord<'_>> {
        (0..self.len()).filter_map(|i| self.get(i))
    }

    /// Forgets the records and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.slots.clear();
    }
}

/// What a read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadOutcome {
    /// The batch holds what there was; there may be more.
    Read,
    /// The wait ended, or was interrupted, without a record.
    Idle,
    /// There will never be another record.
    Ended,
}

/// Why a source failed.
#[derive(Debug, thiserror::Error)]
#[error("source {source_name}: {what}")]
pub struct SourceError {
    /// Which source.
    pub source_name: String,
    /// What it was doing.
    pub what: String,
    /// What the system said.
    #[source]
    pub error: Option<std::io::Error>,
}

/// The first two lines of the ledger, as the source counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SourceCounts {
    /// Records that the kernel side tried to write.
    pub attempted: u64,
    /// Those that it wrote.
    pub submitted: u64,
    /// Those that it could not write, counted by whoever failed to reserve.
    pub lost: u64,
    /// Calls that the kernel skipped because the program was already running
    /// on that CPU; beside the line, as they never attempted anything.
    pub missed: u64,
    /// Written and not yet read, counted by walking the ring.
    pub in_ring: u64,
    /// Written, and given up unread when the source was closed.
    pub abandoned: u64,
}

/// Reads a source's counters from any thread, while the source is in use and
/// after it was dropped (then: the last values).
pub trait SourceLedger: Send + Sync + fmt::Debug {
    /// The counters now.
    fn counts(&self) -> SourceCounts;

    /// What of this source can't work here or was not proven lately; empty
    /// means that all of it works.
    fn degraded(&self) -> Vec<String> {
        Vec::new()
    }

    /// What each of its programs cost, where the kernel counts that.
    fn costs(&self) -> Vec<ProgramCost> {
        Vec::new()
    }
}

/// What a program of the kernel cost since it was loaded, as far as the kernel
/// counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramCost {
    /// Its name.
    pub program: String,
    /// Time spent in it.
    pub run_time_ns: u64,
    /// How often it ran.
    pub runs: u64,
}

/// Ends a [`Source::read`] that waits, from any thread.
pub trait Interrupt: Send + Sync {
    /// Makes the read under way, or the next one, return at once.
    fn interrupt(&self);
}

/// For a source whose reads never wait.
impl Interrupt for () {
    fn interrupt(&self) {}
}

/// Whence an observer's records come. Used by one thread at a time.
pub trait Source: Send {
    /// For logs and errors.
    fn name(&self) -> &str;

    /// Attaches, connects, opens. Called once, before the first read.
    ///
    /// # Errors
    /// What could not be started; a start-up error of the observer. A part
    /// that can't run here while the rest can is not an error: the source
    /// says so in its health.
    fn start(&mut self) -> Result<(), LifecycleError> {
        Ok(())
    }

    /// Copies records into `batch`, waiting for the first one until `timeout`
    /// has passed (`None`: for ever) or [`Interrupt::interrupt`] is called.
    ///
    /// # Errors
    /// The source can't be read any more; the failure policy decides.
    fn read(
        &mut self,
        batch: &mut RecordBatch,
        timeout: Option<Duration>,
    ) -> Result<ReadOutcome, SourceError>;

    /// Makes no new records; what was made can still be read (then `Ended`).
    fn stop(&mut self);

    /// Interrupts this source's reads.
    fn interrupter(&self) -> Arc<dyn Interrupt>;

    /// The kernel and ring lines of the ledger, and what is degraded, where the
    /// source has them. Asked for once, after `start`.
    fn ledger(&self) -> Option<Arc<dyn SourceLedger>> {
        None
    }
}
