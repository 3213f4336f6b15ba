//! The counters of the records and events lines, and the lines made of them.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{EventsLine, FailReason, Failed, KernelLine, RecordsLine, RingLine, Tally, difference};
use crate::source::SourceCounts;

/// The records and events lines' counters of one observer.
#[derive(Debug, Default)]
pub(crate) struct ObserverCounts {
    pub(crate) received: AtomicU64,
    /// Of `received`, those that came from the source and not from
    /// `process_event`.
    pub(crate) received_from_source: AtomicU64,
    pub(crate) ignored: AtomicU64,
    pub(crate) failed: [AtomicU64; FailReason::ALL.len()],
    pub(crate) processed: AtomicU64,
    pub(crate) processing: AtomicU64,
    pub(crate) produced: AtomicTally,
    pub(crate) sampled_out: AtomicTally,
    pub(crate) folding: AtomicTally,
    pub(crate) routed: AtomicTally,
}

#[derive(Debug, Default)]
pub(crate) struct AtomicTally {
    occurrences: AtomicU64,
    envelopes: AtomicU64,
}

impl AtomicTally {
    pub(crate) fn add(&self, tally: Tally) {
        if tally.envelopes > 0 {
            add(&self.occurrences, tally.occurrences);
            add(&self.envelopes, tally.envelopes);
        }
    }

    /// For what is a level and not a counter.
    pub(crate) fn set(&self, tally: Tally) {
        self.occurrences.store(tally.occurrences, Ordering::Relaxed);
        self.envelopes.store(tally.envelopes, Ordering::Relaxed);
    }

    fn get(&self) -> Tally {
        Tally { occurrences: get(&self.occurrences), envelopes: get(&self.envelopes) }
    }
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    if n > 0 {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

pub(crate) fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl ObserverCounts {
    pub(crate) fn records_line(&self) -> RecordsLine {
        let failed: Vec<Failed> = FailReason::ALL
            .iter()
            .map(|r| Failed { reason: r.as_str(), records: get(&self.failed[*r as usize]) })
            .collect();
        let mut line = RecordsLine {
            received: get(&self.received),
            ignored: get(&self.ignored),
            processed: get(&self.processed),
            processing: get(&self.processing),
            failed,
            difference: 0,
        };
        let failures: u64 = line.failed.iter().map(|f| f.records).sum();
        line.difference =
            difference(line.received, &[line.ignored, failures, line.processed, line.processing]);
        line
    }

    pub(crate) fn events_line(&self) -> EventsLine {
        let mut line = EventsLine {
            produced: self.produced.get(),
            sampled_out: self.sampled_out.get(),
            waiting: Tally::default(),
            folding: self.folding.get(),
            routed: self.routed.get(),
            difference: 0,
        };
        line.difference = difference(
            line.produced.occurrences,
            &[
                line.sampled_out.occurrences,
                line.waiting.occurrences,
                line.folding.occurrences,
                line.routed.occurrences,
            ],
        );
        line
    }

    pub(crate) fn source_lines(&self, counts: SourceCounts) -> (KernelLine, RingLine) {
        let SourceCounts { attempted, submitted, lost, missed, in_ring, abandoned } = counts;
        let received = get(&self.received_from_source);
        let kernel = KernelLine {
            attempted,
            submitted,
            lost,
            missed,
            difference: difference(attempted, &[submitted, lost]),
        };
        let ring = RingLine {
            submitted,
            received,
            in_ring,
            abandoned,
            difference: difference(submitted, &[received, in_ring, abandoned]),
        };
        (kernel, ring)
    }
}
