//! How much an observer may keep in memory beside its lanes, and what that
//! comes to at the most.

use crate::causality::CausalityTracker;
use crate::event::Event;
use crate::fold::Folder;
use crate::observer::{BATCH_BYTES, BATCH_RECORDS};
use crate::pipeline::SPARE;
use crate::pool;
use crate::source::RecordBatch;

/// What a general allocator keeps of a block, at the most.
pub(crate) const BLOCK: usize = 16;

/// Bounds of an observer's caches.
///
/// ```
/// use vahti_runtime::memory::CacheLimits;
///
/// let small = CacheLimits { entities: 256, fold_bytes: 256 << 10, ..CacheLimits::default() };
/// let all = |limits: CacheLimits| limits.parts().iter().map(|part| part.bytes).sum::<usize>();
/// assert!(all(small) < all(CacheLimits::default()));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// How many entities' latest spans are remembered, and as many causes.
    pub entities: usize,
    /// How many storms may be open at once; what comes beyond passes unfolded.
    pub fold_keys: usize,
    /// How many bytes their summaries may take.
    pub fold_bytes: usize,
    /// How many bytes all metrics' series may take; what comes beyond is counted
    /// under `_other`.
    pub metrics_bytes: usize,
}

impl Default for CacheLimits {
    fn default() -> Self {
        CacheLimits {
            entities: 4_096,
            fold_keys: 4_096,
            fold_bytes: 2_500 << 10,
            metrics_bytes: 512 << 10,
        }
    }
}

/// What one use of memory comes to at the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// What it is used for.
    pub used_for: &'static str,
    /// How much, in bytes.
    pub bytes: usize,
}

impl CacheLimits {
    /// What an observer with these takes beside its lanes, its source and what
    /// its processor keeps.
    #[must_use]
    pub fn parts(&self) -> [Part; 5] {
        let event = size_of::<Event>() + 2 * size_of::<usize>() + BLOCK;
        // One is read while the other is processed.
        let records = 2 * (BATCH_BYTES + BATCH_RECORDS * RecordBatch::SLOT_BYTES);
        [
            Part { used_for: "records", bytes: records },
            // Being made and spare on the observer's thread, and in the pool.
            Part { used_for: "spare events", bytes: (2 * SPARE + pool::KEPT) * event },
            Part { used_for: "causes", bytes: CausalityTracker::size_bytes(self.entities) },
            Part { used_for: "storms", bytes: Folder::size_bytes(self) },
            Part { used_for: "metrics", bytes: self.metrics_bytes },
        ]
    }
}
