//! The ledger: five lines that add up, for every observer and every emitter.
//!
//! ```text
//! kernel   attempted = submitted + lost
//! ring     submitted = received + in_ring + abandoned
//! records  received  = ignored + failed{reason} + processed + processing
//! events   produced  = sampled_out + waiting + folding + routed
//! lane     routed    = delivered + rejected + Σ dropped{stage,reason,priority}
//!                      + stored + queued + in_flight
//! ```
//!
//! The last two count occurrences (Σ count); the number of envelopes stands
//! beside them. Counters only rise, each has one owner, and each reason is
//! there as zero before it ever happens. A snapshot is exact when nothing
//! moves; while events move it may be off by what moved during the reading.

mod counts;
mod samples;

use serde::Serialize;

pub(crate) use counts::{ObserverCounts, add};

use crate::event::Priority;
use crate::queue::QueueDrop;

/// Why a record came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailReason {
    /// The processor said that the bytes are not what they should be.
    Malformed,
    /// The processor said that it can't go on.
    Fatal,
    /// The processor panicked.
    Panic,
    /// The processor did not come back; its thread was abandoned.
    Hang,
    /// The observer was down when the record was read, or went down before it
    /// was processed.
    Down,
}

impl FailReason {
    /// All of them, in the order in which they are shown.
    pub const ALL: [FailReason; 5] = [
        FailReason::Malformed,
        FailReason::Fatal,
        FailReason::Panic,
        FailReason::Hang,
        FailReason::Down,
    ];

    /// The word in metrics and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            FailReason::Malformed => "malformed",
            FailReason::Fatal => "fatal",
            FailReason::Panic => "panic",
            FailReason::Hang => "hang",
            FailReason::Down => "down",
        }
    }
}

/// Why an event was given up, after it was routed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// The queue held as many events as it may.
    QueueItems,
    /// The queue held as many bytes as it may.
    QueueBytes,
    /// The event alone is larger than the queue may be.
    TooLarge,
    /// An emitter that is not critical could not take it, and tries once.
    TriedOnce,
    /// A critical emitter could not take it in as many tries as it has.
    RetriesExhausted,
    /// An emitter that is not critical was left behind within a call with it:
    /// the other side may or may not have it.
    Unanswered,
    /// It still waited when the time to drain was over.
    Deadline,
    /// It was being sent when the time to drain was over: the other side may
    /// or may not have it.
    Unacknowledged,
    /// It came after the emitter had ended.
    Closed,
    /// The store needed its room, before every durable emitter had it.
    StoreFull,
    /// It was as old as the store keeps events, before every durable emitter
    /// had it.
    StoreAge,
    /// The store's file could not be read any more and was set aside.
    StoreLost,
}

impl DropReason {
    /// All of them, in the order in which they are shown.
    pub const ALL: [DropReason; 12] = [
        DropReason::QueueItems,
        DropReason::QueueBytes,
        DropReason::TooLarge,
        DropReason::TriedOnce,
        DropReason::RetriesExhausted,
        DropReason::Unanswered,
        DropReason::Deadline,
        DropReason::Unacknowledged,
        DropReason::Closed,
        DropReason::StoreFull,
        DropReason::StoreAge,
        DropReason::StoreLost,
    ];

    /// Where it was given up: `queue`, `emit`, `shutdown` or `store`.
    #[must_use]
    pub const fn stage(self) -> &'static str {
        match self {
            DropReason::QueueItems | DropReason::QueueBytes | DropReason::TooLarge => "queue",
            DropReason::TriedOnce | DropReason::RetriesExhausted | DropReason::Unanswered => "emit",
            DropReason::Deadline | DropReason::Unacknowledged | DropReason::Closed => "shutdown",
            DropReason::StoreFull | DropReason::StoreAge | DropReason::StoreLost => "store",
        }
    }

    /// The word in metrics and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            DropReason::QueueItems => "queue_items",
            DropReason::QueueBytes => "queue_bytes",
            DropReason::TooLarge => "too_large",
            DropReason::TriedOnce => "tried_once",
            DropReason::RetriesExhausted => "retries_exhausted",
            DropReason::Unanswered => "unanswered",
            DropReason::Deadline => "deadline",
            DropReason::Unacknowledged => "unacknowledged",
            DropReason::Closed => "closed",
            DropReason::StoreFull => "store_full",
            DropReason::StoreAge => "store_age",
            DropReason::StoreLost => "store_lost",
        }
    }
}

impl From<QueueDrop> for DropReason {
    fn from(drop: QueueDrop) -> Self {
        match drop {
            QueueDrop::Items => DropReason::QueueItems,
            QueueDrop::Bytes => DropReason::QueueBytes,
            QueueDrop::TooLarge => DropReason::TooLarge,
        }
    }
}

/// A number of occurrences and of the envelopes that carried them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Tally {
    /// Σ count.
    pub occurrences: u64,
    /// Events, summaries among them.
    pub envelopes: u64,
}

impl Tally {
    /// One envelope with this count.
    #[must_use]
    pub const fn one(count: u64) -> Self {
        Tally { occurrences: count, envelopes: 1 }
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.occurrences += other.occurrences;
        self.envelopes += other.envelopes;
    }
}

impl std::ops::SubAssign for Tally {
    fn sub_assign(&mut self, other: Self) {
        self.occurrences -= other.occurrences;
        self.envelopes -= other.envelopes;
    }
}

impl std::iter::Sum for Tally {
    fn sum<I: Iterator<Item = Tally>>(tallies: I) -> Self {
        tallies.fold(Tally::default(), |mut sum, tally| {
            sum += tally;
            sum
        })
    }
}

/// The lane line's counters, kept under the lane's lock.
#[derive(Debug, Clone, Default)]
pub(crate) struct LaneCounts {
    pub(crate) routed: Tally,
    pub(crate) delivered: Tally,
    pub(crate) rejected: Tally,
    pub(crate) dropped: [[Tally; 2]; DropReason::ALL.len()],
    pub(crate) queued: Tally,
    /// By priority.
    pub(crate) in_flight: [Tally; 2],
}

impl LaneCounts {
    pub(crate) fn drop_one(&mut self, reason: DropReason, priority: Priority, count: u64) {
        self.dropped[reason as usize][priority as usize] += Tally::one(count);
    }
}

/// What a log keeps account of for one durable emitter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DurableCounts {
    /// Committed since the emitter was first served.
    pub routed: Tally,
    /// Acknowledged.
    pub delivered: Tally,
    /// Set aside: never to be taken.
    pub rejected: Tally,
    /// Given up by the log, for the reasons in [`DurableCounts::REASONS`].
    pub dropped: [Tally; 3],
    /// Committed and owed; not what is in flight.
    pub stored: Tally,
    /// Being sent.
    pub in_flight: Tally,
}

impl DurableCounts {
    /// Why a log gives something up.
    pub const REASONS: [DropReason; 3] =
        [DropReason::StoreFull, DropReason::StoreAge, DropReason::StoreLost];
}

/// What was given up, by stage, reason and priority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// `queue`, `emit`, `shutdown` or `store`.
    pub stage: &'static str,
    /// The reason's word.
    pub reason: &'static str,
    /// `critical` or `normal`.
    pub priority: &'static str,
    /// How much.
    #[serde(flatten)]
    pub tally: Tally,
}

/// The lane line of one observer's lane to one emitter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LaneLine {
    /// The observer.
    pub observer: String,
    /// The emitter.
    pub emitter: String,
    /// Handed to the lane.
    pub routed: Tally,
    /// The other side has it.
    pub delivered: Tally,
    /// The other side will never take it.
    pub rejected: Tally,
    /// Given up; every reason and priority, zero or not.
    pub dropped: Vec<Dropped>,
    /// Kept by a durable emitter for later.
    pub stored: Tally,
    /// Waiting in the queue.
    pub queued: Tally,
    /// Being sent.
    pub in_flight: Tally,
    /// What does not add up, in occurrences; 0 when nothing moves.
    pub difference: i64,
}

impl LaneLine {
    /// The line of a durable emitter, which is owed what the log `observer`
    /// committed; its counts by priority.
    #[must_use]
    pub fn durable(observer: &str, emitter: &str, counts: &[DurableCounts; 2]) -> Self {
        let sum = |part: fn(&DurableCounts) -> Tally| counts.iter().map(part).sum();
        let mut lane = LaneCounts {
            routed: sum(|c| c.routed),
            delivered: sum(|c| c.delivered),
            rejected: sum(|c| c.rejected),
            ..LaneCounts::default()
        };
        for (i, reason) in DurableCounts::REASONS.into_iter().enumerate() {
            lane.dropped[reason as usize] = [counts[0].dropped[i], counts[1].dropped[i]];
        }
        let mut line = LaneLine::new(observer, emitter, &lane);
        line.stored = sum(|c| c.stored);
        line.in_flight = sum(|c| c.in_flight);
        line.balance();
        line
    }

    pub(crate) fn new(observer: &str, emitter: &str, counts: &LaneCounts) -> Self {
        let dropped = DropReason::ALL
            .iter()
            .flat_map(|reason| Priority::ALL.map(|priority| (*reason, priority)))
            .map(|(reason, priority)| Dropped {
                stage: reason.stage(),
                reason: reason.as_str(),
                priority: priority.as_str(),
                tally: counts.dropped[reason as usize][priority as usize],
            })
            .collect();
        let mut line = LaneLine {
            observer: observer.to_owned(),
            emitter: emitter.to_owned(),
            routed: counts.routed,
            delivered: counts.delivered,
            rejected: counts.rejected,
            dropped,
            stored: Tally::default(),
            queued: counts.queued,
            in_flight: counts.in_flight.into_iter().sum(),
            difference: 0,
        };
        line.balance();
        line
    }

    fn balance(&mut self) {
        self.difference = difference(
            self.routed.occurrences,
            &[
                self.delivered.occurrences,
                self.rejected.occurrences,
                self.dropped_total().occurrences,
                self.stored.occurrences,
                self.queued.occurrences,
                self.in_flight.occurrences,
            ],
        );
    }

    /// All that was given up.
    #[must_use]
    pub fn dropped_total(&self) -> Tally {
        self.dropped.iter().map(|d| d.tally).sum()
    }

    /// What was given up for one reason, of both priorities.
    #[must_use]
    pub fn dropped_for(&self, reason: DropReason) -> Tally {
        self.dropped.iter().filter(|d| d.reason == reason.as_str()).map(|d| d.tally).sum()
    }
}

fn difference(whole: u64, parts: &[u64]) -> i64 {
    let parts: u64 = parts.iter().fold(0, |sum, part| sum.wrapping_add(*part));
    whole.wrapping_sub(parts) as i64
}

/// The kernel line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct KernelLine {
    /// Records that the programs tried to write.
    pub attempted: u64,
    /// Written.
    pub submitted: u64,
    /// Not written, for want of room.
    pub lost: u64,
    /// Beside the line: calls that the kernel skipped (recursion misses).
    pub missed: u64,
    /// What does not add up; 0 when nothing moves.
    pub difference: i64,
}

/// The ring line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct RingLine {
    /// Written by the programs.
    pub submitted: u64,
    /// Read by the observer.
    pub received: u64,
    /// Written and not yet read.
    pub in_ring: u64,
    /// Given up unread when the source was closed.
    pub abandoned: u64,
    /// What does not add up; 0 when nothing moves.
    pub difference: i64,
}

/// The records line.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct RecordsLine {
    /// Taken from the source, or handed to `process_event`.
    pub received: u64,
    /// Of no interest.
    pub ignored: u64,
    /// Came to nothing; every reason, zero or not.
    pub failed: Vec<Failed>,
    /// Made one event or several.
    pub processed: u64,
    /// Being processed.
    pub processing: u64,
    /// What does not add up; 0 when nothing moves.
    pub difference: i64,
}

/// How many records came to nothing, by reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// The reason's word.
    pub reason: &'static str,
    /// How many.
    pub records: u64,
}

/// The events line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct EventsLine {
    /// Made by the processor.
    pub produced: Tally,
    /// Left out by sampling.
    pub sampled_out: Tally,
    /// Waiting to be enriched.
    pub waiting: Tally,
    /// Part of a summary that is still open.
    pub folding: Tally,
    /// Handed to the lanes.
    pub routed: Tally,
    /// What does not add up, in occurrences; 0 when nothing moves. (Folding
    /// turns many envelopes into one, so envelopes do not add up.)
    pub difference: i64,
}

/// All lines of one observer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ObserverLedger {
    /// The observer's name.
    pub observer: String,
    /// The kernel line, where the source has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelLine>,
    /// The ring line, where the source has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ring: Option<RingLine>,
    /// The records line.
    pub records: RecordsLine,
    /// The events line.
    pub events: EventsLine,
    /// One lane line for each emitter.
    pub lanes: Vec<LaneLine>,
}

impl ObserverLedger {
    /// Each line's name and what does not add up in it.
    #[must_use]
    pub fn differences(&self) -> Vec<(String, i64)> {
        let mut all = Vec::new();
        if let Some(line) = self.kernel {
            all.push(("kernel".to_owned(), line.difference));
        }
        if let Some(line) = self.ring {
            all.push(("ring".to_owned(), line.difference));
        }
        all.push(("records".to_owned(), self.records.difference));
        all.push(("events".to_owned(), self.events.difference));
        for lane in &self.lanes {
            all.push((format!("lane {}", lane.emitter), lane.difference));
            // Every lane is handed what was routed, no more and no less.
            let handed = difference(self.events.routed.occurrences, &[lane.routed.occurrences]);
            all.push((format!("routed to {}", lane.emitter), handed));
        }
        all
    }

    /// Whether every line adds up.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.differences().iter().all(|(_, difference)| *difference == 0)
    }
}
