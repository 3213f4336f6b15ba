//! What an observer lost, in words: told when the agent ends, so that nobody has
//! to have asked for the ledger in time.

use std::fmt;

use vahti_runtime::ledger::{LaneLine, ObserverLedger};

/// One line for the records and one for each lane, of those that lost anything.
pub(crate) fn of(ledger: &ObserverLedger) -> Vec<String> {
    let lanes = ledger.lanes.iter().map(of_lane);
    std::iter::once(of_records(ledger)).chain(lanes).flatten().collect()
}

/// What the store could not keep, which no durable emitter gets either.
pub(crate) struct NotKept {
    critical: u64,
    normal: u64,
    durable: Vec<String>,
}

impl NotKept {
    /// Of all observers' lanes to the store; `None` if nothing was lost there.
    pub(crate) fn of(ledgers: &[ObserverLedger], durable: Vec<String>) -> Option<Self> {
        let lanes = ledgers.iter().flat_map(|ledger| &ledger.lanes);
        let dropped: Vec<_> =
            lanes.filter(|lane| lane.emitter == "store").flat_map(|lane| &lane.dropped).collect();
        let of = |priority: &str| -> u64 {
            let its = dropped.iter().filter(|dropped| dropped.priority == priority);
            its.map(|dropped| dropped.tally.occurrences).sum()
        };
        let (critical, normal) = (of("critical"), of("normal"));
        (critical + normal > 0).then_some(NotKept { critical, normal, durable })
    }

    /// Whether any of it was critical.
    pub(crate) fn is_critical(&self) -> bool {
        self.critical > 0
    }
}

impl fmt::Display for NotKept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NotKept { critical, normal, durable } = self;
        write!(f, "the store could not keep {critical} critical and {normal} normal events")?;
        if !durable.is_empty() {
            write!(f, ", and no durable emitter has them ({})", durable.join(", "))?;
        }
        Ok(())
    }
}

/// One line for each line of the ledger that does not add up.
pub(crate) fn differences(ledger: &ObserverLedger) -> Vec<String> {
    let wrong = ledger.differences().into_iter().filter(|(_, difference)| *difference != 0);
    wrong
        .map(|(line, difference)| {
            let observer = &ledger.observer;
            format!(
                "observer {observer}: the ledger does not add up: {line} is off by {difference}"
            )
        })
        .collect()
}

fn of_records(ledger: &ObserverLedger) -> Option<String> {
    let kernel = ledger.kernel.unwrap_or_default();
    let ring = ledger.ring.unwrap_or_default();
    let mut parts = Vec::new();
    let mut add = |n: u64, what: &str| {
        if n > 0 {
            parts.push(format!("{n} {what}"));
        }
    };
    add(kernel.lost, "lost in the kernel");
    add(kernel.missed, "calls that the kernel skipped");
    add(ring.abandoned, "left unread");
    for failed in &ledger.records.failed {
        add(failed.records, &format!("failed: {}", failed.reason));
    }
    let parts = said(&parts)?;
    Some(format!("observer {}: records that came to nothing: {parts}", ledger.observer))
}

fn of_lane(lane: &LaneLine) -> Option<String> {
    let mut parts = Vec::new();
    // Both priorities of a reason stand next to each other.
    for same in lane.dropped.chunk_by(|a, b| (a.stage, a.reason) == (b.stage, b.reason)) {
        let by_priority: Vec<String> = same
            .iter()
            .filter(|dropped| dropped.tally.occurrences > 0)
            .map(|dropped| format!("{} {}", dropped.tally.occurrences, dropped.priority))
            .collect();
        if let (Some(counts), Some(first)) = (said(&by_priority), same.first()) {
            parts.push(format!("{counts} at {}: {}", first.stage, first.reason));
        }
    }
    if lane.rejected.occurrences > 0 {
        parts.push(format!("{} rejected", lane.rejected.occurrences));
    }
    let (parts, LaneLine { observer, emitter, .. }) = (said(&parts)?, lane);
    Some(format!("observer {observer}, emitter {emitter}: events not delivered: {parts}"))
}

fn said(parts: &[String]) -> Option<String> {
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[cfg(test)]
mod tests {
    use vahti_runtime::ledger::{
        DropReason, Dropped, EventsLine, Failed, KernelLine, RecordsLine, RingLine, Tally,
    };

    use super::*;

    fn clean() -> ObserverLedger {
        let dropped = DropReason::ALL.iter().flat_map(|reason| {
            ["critical", "normal"].map(|priority| Dropped {
                stage: reason.stage(),
                reason: reason.as_str(),
                priority,
                tally: Tally::default(),
            })
        });
        ObserverLedger {
            observer: "network".to_owned(),
            kernel: Some(KernelLine::default()),
            ring: Some(RingLine::default()),
            records: RecordsLine {
                failed: vec![Failed { reason: "malformed", records: 0 }],
                ..RecordsLine::default()
            },
            events: EventsLine::default(),
            lanes: vec![LaneLine {
                observer: "network".to_owned(),
                emitter: "stdout".to_owned(),
                routed: Tally::default(),
                delivered: Tally::default(),
                rejected: Tally::default(),
                dropped: dropped.collect(),
                stored: Tally::default(),
                queued: Tally::default(),
                in_flight: Tally::default(),
                difference: 0,
            }],
        }
    }

    #[test]
    fn who_lost_nothing_is_not_mentioned() {
        assert!(of(&clean()).is_empty());
        assert!(differences(&clean()).is_empty());
    }

    #[test]
    fn what_was_lost_is_told_by_stage_reason_and_priority() {
        let mut ledger = clean();
        ledger.kernel = Some(KernelLine { lost: 3, ..KernelLine::default() });
        ledger.records.failed[0].records = 2;
        ledger.lanes[0].rejected = Tally::one(1);
        ledger.lanes[0].dropped[0].tally = Tally::one(4);
        ledger.lanes[0].dropped[1].tally = Tally::one(90);
        let deadline = |dropped: &&mut Dropped| dropped.reason == "deadline";
        ledger.lanes[0].dropped.iter_mut().rfind(deadline).unwrap().tally = Tally::one(7);
        assert_eq!(
            of(&ledger),
            [
                "observer network: records that came to nothing: 3 lost in the kernel, \
                 2 failed: malformed",
                "observer network, emitter stdout: events not delivered: 4 critical, 90 normal at \
                 queue: queue_items, 7 normal at shutdown: deadline, 1 rejected",
            ]
        );
    }

    #[test]
    fn what_the_store_could_not_keep_is_summed_over_observers() {
        let mut ledgers = [clean(), clean()];
        assert!(NotKept::of(&ledgers, Vec::new()).is_none());
        ledgers[0].lanes[0].dropped[0].tally = Tally::one(9);
        assert!(NotKept::of(&ledgers, Vec::new()).is_none(), "stdout's are none of the store's");
        ledgers[0].lanes[0].emitter = "store".to_owned();
        ledgers[1].lanes[0].emitter = "store".to_owned();
        ledgers[1].lanes[0].dropped[1].tally = Tally::one(4);
        let lost = NotKept::of(&ledgers, vec!["audit".to_owned(), "file".to_owned()]).unwrap();
        assert!(lost.is_critical());
        assert_eq!(
            lost.to_string(),
            "the store could not keep 9 critical and 4 normal events, and no durable emitter has \
             them (audit, file)"
        );
        ledgers[0].lanes[0].dropped[0].tally = Tally::default();
        assert!(!NotKept::of(&ledgers, Vec::new()).unwrap().is_critical());
    }

    #[test]
    fn a_ledger_that_does_not_add_up_is_told_line_by_line() {
        let mut ledger = clean();
        ledger.records.difference = -1;
        ledger.lanes[0].difference = 5;
        assert_eq!(
            differences(&ledger),
            [
                "observer network: the ledger does not add up: records is off by -1",
                "observer network: the ledger does not add up: lane stdout is off by 5",
            ]
        );
    }
}
