//! The ledger in the words of the metrics: what only rises as counters, what
//! is a level as gauges.

use super::{LaneLine, ObserverLedger, RecordsLine, Tally};
use crate::metrics::{MetricKind, Sample};

impl ObserverLedger {
    /// The ledger in the words of the metrics. Occurrences, not envelopes.
    ///
    /// | metric | kind |
    /// |---|---|
    /// | `vahti_{kernel,ring,records,events,lane}_total{outcome}` | counter |
    /// | `vahti_ring_records{state}`, `vahti_observer_records{state}` | gauge |
    /// | `vahti_observer_events{state}`, `vahti_lane_events{state}` | gauge |
    /// | `vahti_ledger_difference{line}` | gauge |
    ///
    /// A gauge's name is nowhere a counter's without its `_total`: the two
    /// would be one metric to `OpenMetrics`.
    ///
    /// The labels are words of this crate and names from the configuration, so
    /// there is a bounded number of them, and none is left out: without one
    /// the lines would not add up.
    #[must_use]
    pub fn samples(&self) -> Vec<Sample> {
        let mut samples = Samples { observer: &self.observer, all: Vec::new() };
        if let Some(k) = self.kernel {
            let outcomes = [("attempted", k.attempted), ("submitted", k.submitted)];
            samples.line("kernel", &outcomes);
            samples.line("kernel", &[("lost", k.lost), ("missed", k.missed)]);
        }
        if let Some(r) = self.ring {
            let outcomes = [("submitted", r.submitted), ("received", r.received)];
            samples.line("ring", &outcomes);
            samples.line("ring", &[("abandoned", r.abandoned)]);
            samples.level("vahti_ring_records", &[("state", "in_ring")], r.in_ring);
        }
        let RecordsLine { received, ignored, processed, processing, failed, .. } = &self.records;
        samples.line("records", &[("received", *received), ("ignored", *ignored)]);
        samples.line("records", &[("processed", *processed)]);
        for failed in failed {
            let labels = [("outcome", "failed"), ("reason", failed.reason)];
            samples.counter("records", &labels, failed.records);
        }
        samples.level("vahti_observer_records", &[("state", "processing")], *processing);
        let e = &self.events;
        let outcomes =
            [("produced", e.produced), ("sampled_out", e.sampled_out), ("routed", e.routed)];
        samples.line("events", &outcomes.map(|(outcome, tally)| (outcome, tally.occurrences)));
        for (state, Tally { occurrences, .. }) in [("waiting", e.waiting), ("folding", e.folding)] {
            samples.level("vahti_observer_events", &[("state", state)], occurrences);
        }
        for lane in &self.lanes {
            samples.lane(lane);
        }
        for (line, difference) in self.differences() {
            let labels = [("line", line.as_str())];
            samples.push("vahti_ledger_difference", MetricKind::Gauge, &labels, difference);
        }
        samples.all
    }
}

impl LaneLine {
    /// The line in the words of the metrics: of a lane that belongs to no
    /// observer's ledger, such as a durable emitter's account.
    #[must_use]
    pub fn samples(&self) -> Vec<Sample> {
        let mut samples = Samples { observer: &self.observer, all: Vec::new() };
        samples.lane(self);
        let line = format!("lane {}", self.emitter);
        let labels = [("line", line.as_str())];
        samples.push("vahti_ledger_difference", MetricKind::Gauge, &labels, self.difference);
        samples.all
    }
}

struct Samples<'a> {
    observer: &'a str,
    all: Vec<Sample>,
}

impl Samples<'_> {
    fn push(&mut self, name: &str, kind: MetricKind, labels: &[(&str, &str)], value: i64) {
        let observer = [("observer", self.observer)];
        let labels = observer.iter().chain(labels);
        let labels = labels.map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        self.all.push(Sample { name: name.to_owned(), kind, labels, value });
    }

    fn counter(&mut self, line: &str, labels: &[(&str, &str)], value: u64) {
        self.push(&format!("vahti_{line}_total"), MetricKind::Counter, labels, signed(value));
    }

    fn level(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.push(name, MetricKind::Gauge, labels, signed(value));
    }

    fn line(&mut self, line: &str, outcomes: &[(&str, u64)]) {
        for (outcome, value) in outcomes {
            self.counter(line, &[("outcome", outcome)], *value);
        }
    }

    fn lane(&mut self, lane: &LaneLine) {
        let emitter = ("emitter", lane.emitter.as_str());
        for (outcome, tally) in
            [("routed", lane.routed), ("delivered", lane.delivered), ("rejected", lane.rejected)]
        {
            self.counter("lane", &[emitter, ("outcome", outcome)], tally.occurrences);
        }
        for d in &lane.dropped {
            let labels = [
                emitter,
                ("outcome", "dropped"),
                ("stage", d.stage),
                ("reason", d.reason),
                ("priority", d.priority),
            ];
            self.counter("lane", &labels, d.tally.occurrences);
        }
        for (state, tally) in
            [("stored", lane.stored), ("queued", lane.queued), ("in_flight", lane.in_flight)]
        {
            self.level("vahti_lane_events", &[emitter, ("state", state)], tally.occurrences);
        }
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
