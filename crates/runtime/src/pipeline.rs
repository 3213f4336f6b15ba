//! Joins the stages: record → processor → causality → sampling → folding →
//! lanes. Everything here is counted on the way.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::causality::CausalityTracker;
use crate::clock::ClockPair;
use crate::config::MetricsConfig;
use crate::current::{Current, Seen};
use crate::doorbell::Doorbell;
use crate::event::{Event, EventKind, Origin, Outcome, Severity};
use crate::fold::Folder;
use crate::ids::{EventIds, RecordPosition, SpanId, TraceId};
use crate::lane::Lane;
use crate::ledger::{FailReason, ObserverCounts, Tally, add};
use crate::metrics::{MetricKind, Registry, Series};
use crate::panic::{Panicked, contain};
use crate::pool::{EventPool, share};
use crate::processor::{EventProcessor, Output, ProcessError, RawRecord};
use crate::sampler::Sampler;

/// Marks the ordinal of a summary's id.
const SUMMARY: u32 = 1 << 31;

/// The most occurrences that one event can stand for.
const MAX_COUNT: u64 = 1 << 32;

/// Spare events taken for a batch: as many as sources read at once.
pub(crate) const SPARE: usize = 256;

/// The stages of one observer, behind its processor.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) origin: &'static Origin,
    pub(crate) ids: EventIds,
    pub(crate) sampler: Current<Sampler>,
    pub(crate) causality: CausalityTracker,
    pub(crate) folder: Mutex<Folder>,
    pub(crate) lanes: Vec<(Arc<Lane>, Arc<Doorbell>)>,
    pub(crate) pool: Arc<EventPool>,
    pub(crate) counts: ObserverCounts,
    pub(crate) metrics: Registry,
    pub(crate) kinds: Mutex<KindCounter>,
}

/// An event that the processor made, and which record it comes from.
struct Made {
    event: Arc<Event>,
    position: RecordPosition,
}

/// What of an event is not the processor's business.
struct Stamp<'a> {
    record: &'a RawRecord<'a>,
    ordinal: u32,
    observed_ns: u64,
    sampler: &'a Sampler,
}

/// Memory that is used again from batch to batch.
#[derive(Default)]
pub(crate) struct Scratch {
    made: Vec<Made>,
    routed: Vec<Arc<Event>>,
    given_up: Vec<Arc<Event>>,
    spare: Vec<Arc<Event>>,
    sampler: Seen<Sampler>,
}

/// Why a processor can't go on.
#[derive(Debug)]
pub(crate) enum Failure {
    Fatal(String),
    Panicked(Panicked),
}

/// What processing came to, before anything of it is counted or routed.
#[derive(Default)]
pub(crate) struct Processed {
    ignored: u64,
    malformed: u64,
    processed: u64,
    pub(crate) failure: Option<Failure>,
}

impl Processed {
    /// How many records this accounts for.
    pub(crate) fn records(&self) -> u64 {
        let failed = u64::from(self.failure.is_some());
        self.ignored + self.malformed + self.processed + failed
    }
}

impl Pipeline {
    /// Runs the processor over records, contained. Stops at the first one
    /// after which it can't go on. `at` follows which record it is at.
    pub(crate) fn process<'a>(
        &self,
        processor: &dyn EventProcessor,
        records: impl Iterator<Item = RawRecord<'a>>,
        at: &AtomicUsize,
        scratch: &mut Scratch,
    ) -> Processed {
        let mut done = Processed::default();
        let observed_ns = ClockPair::now().wall_ns;
        let Scratch { made, spare, sampler, .. } = scratch;
        let sampler = self.sampler.see(sampler);
        self.pool.take(SPARE.saturating_sub(spare.len()), spare);
        let result = contain(&self.origin.source, || {
            for (index, record) in records.enumerate() {
                at.store(index, Ordering::Relaxed);
                match processor.process(record) {
                    Ok(Output::One(event)) => {
                        let stamp = Stamp { record: &record, ordinal: 0, observed_ns, sampler };
                        made.push(self.make(event, &stamp, spare));
                        done.processed += 1;
                    }
                    Ok(Output::Nothing) => done.ignored += 1,
                    Ok(Output::Several(events)) if events.is_empty() => done.ignored += 1,
                    Ok(Output::Several(events)) => {
                        for (event, ordinal) in events.into_iter().zip(0..SUMMARY) {
                            let stamp = Stamp { record: &record, ordinal, observed_ns, sampler };
                            made.push(self.make(event, &stamp, spare));
                        }
                        done.processed += 1;
                    }
                    Err(ProcessError::Malformed { .. }) => done.malformed += 1,
                    Err(ProcessError::Fatal(why)) => return Some(why),
                }
            }
            None
        });
        done.failure = match result {
            Ok(None) => None,
            Ok(Some(why)) => Some(Failure::Fatal(why)),
            Err(panicked) => Some(Failure::Panicked(panicked)),
        };
        done
    }

    /// Counts what processing came to, and routes what it made.
    pub(crate) fn commit(&self, done: &Processed, scratch: &mut Scratch) {
        let counts = &self.counts;
        add(&counts.ignored, done.ignored);
        add(&counts.processed, done.processed);
        self.fail(FailReason::Malformed, done.malformed);
        match done.failure {
            Some(Failure::Fatal(_)) => self.fail(FailReason::Fatal, 1),
            Some(Failure::Panicked(_)) => self.fail(FailReason::Panic, 1),
            None => {}
        }
        if !scratch.made.is_empty() {
            self.route(scratch);
        }
    }

    /// Counts records that came to nothing.
    pub(crate) fn fail(&self, reason: FailReason, records: u64) {
        add(&self.counts.failed[reason as usize], records);
    }

    /// Stamps what the processor left open, and makes the event one that can be
    /// shared.
    #[inline]
    fn make(&self, mut event: Event, stamp: &Stamp<'_>, spare: &mut Vec<Arc<Event>>) -> Made {
        let Stamp { record, ordinal, observed_ns, sampler } = *stamp;
        let RawRecord { boot_ns, cpu, seq, .. } = *record;
        let position = RecordPosition { cpu, boot_ns, seq, ordinal };
        if event.time_ns == 0 {
            event.time_ns = record.wall_ns;
        }
        let (id, hash) = self.ids.derive(event.time_ns, &position);
        event.id = id;
        event.origin = self.origin;
        event.observed_ns = observed_ns;
        // Every event stands for at least one occurrence, and for no more than
        // sums can take.
        event.count = event.count.clamp(1, MAX_COUNT);
        event.span_id.get_or_insert(SpanId::from_hash(hash));
        if !event.trace_id.is_set() {
            event.trace_id = TraceId::from_hash(hash);
        }
        if event.parent_span_id == event.span_id {
            event.parent_span_id = None;
        }
        if event.cause.is_none() {
            // With a cause, the trace is known only when its parent is.
            sample(&mut event, sampler);
        }
        Made { event: share(event, spare), position }
    }

    /// Causality, sampling and folding under one lock a batch; then the lanes.
    fn route(&self, scratch: &mut Scratch) {
        let (mut produced, mut sampled_out, mut routed) =
            (Tally::default(), Tally::default(), Tally::default());
        let Scratch { made, routed: out, spare, sampler, .. } = scratch;
        let sampler = self.sampler.see(sampler);
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let mut causality = self.causality.lock();
        let mut folder = self.folder.lock().unwrap_or_else(PoisonError::into_inner);
        for Made { mut event, position } in made.drain(..) {
            let tally = Tally::one(event.count);
            produced += tally;
            kinds.count(&event, self);
            if event.cause.is_some()
                && let Some(event) = Arc::get_mut(&mut event)
            {
                causality.adopt(event);
                sample(event, sampler);
            }
            if event.weight == 0.0 {
                sampled_out += tally;
                keep(event, spare);
                continue;
            }
            folder.advance(position.boot_ns, &mut |summary| {
                emit(Arc::new(summary), &mut routed, out);
            });
            let summary_id = || {
                let position = RecordPosition { ordinal: position.ordinal | SUMMARY, ..position };
                self.ids.derive(event.time_ns, &position)
            };
            if folder.offer(&event, position.boot_ns, summary_id) {
                keep(event, spare);
            } else {
                // Only what is sent can be anybody's parent.
                causality.remember(&event);
                emit(event, &mut routed, out);
            }
        }
        self.counts.folding.set(folder.folding());
        drop(folder);
        drop(causality);
        kinds.flush();
        drop(kinds);
        self.counts.produced.add(produced);
        self.counts.sampled_out.add(sampled_out);
        self.hand_over(routed, scratch);
    }

    /// Ends the storms whose window is over at this time on the boot clock
    /// (`None`: all of them), and routes their summaries.
    pub(crate) fn fold_until(&self, boot_ns: Option<u64>, scratch: &mut Scratch) {
        let mut routed = Tally::default();
        let out = &mut scratch.routed;
        let observed_ns = ClockPair::now().wall_ns;
        let mut folder = self.folder.lock().unwrap_or_else(PoisonError::into_inner);
        let mut take = |mut summary: Event| {
            summary.observed_ns = observed_ns;
            emit(Arc::new(summary), &mut routed, out);
        };
        match boot_ns {
            Some(boot_ns) => folder.advance(boot_ns, &mut take),
            None => folder.flush(&mut take),
        }
        self.counts.folding.set(folder.folding());
        drop(folder);
        if routed.envelopes > 0 {
            self.hand_over(routed, scratch);
        }
    }

    /// When the next storm's window ends, on the boot clock.
    pub(crate) fn next_fold_ns(&self) -> Option<u64> {
        self.folder.lock().unwrap_or_else(PoisonError::into_inner).next_end_ns()
    }

    /// Counts events by other labels, or under another cap, from now on.
    pub(crate) fn relabel(&self, config: &MetricsConfig) {
        // Who counts holds this, and has added all that he counted when he lets
        // go of it: nothing goes to a series that is no more.
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        self.metrics.reconfigure(config, &[("observer", &self.origin.source)]);
        kinds.known.clear();
    }

    fn hand_over(&self, routed: Tally, scratch: &mut Scratch) {
        let Scratch { routed: out, given_up, .. } = scratch;
        self.counts.routed.add(routed);
        if let Some(((last, last_bell), others)) = self.lanes.split_last() {
            for (lane, bell) in others {
                lane.push(out.iter().cloned(), given_up);
                bell.ring();
            }
            last.push(out.drain(..), given_up);
            last_bell.ring();
        }
        out.clear();
        given_up.clear();
    }
}

/// Decides whether the event is kept; one that is not weighs nothing.
#[inline]
fn sample(event: &mut Event, sampler: &Sampler) {
    match sampler.decide(event.kind, event.severity, event.trace_id) {
        Some(kept) => {
            event.sampling_threshold = kept.threshold;
            event.weight = kept.weight;
        }
        None => event.weight = 0.0,
    }
}

/// Keeps the memory of an event that goes no further.
#[inline]
fn keep(mut event: Arc<Event>, spare: &mut Vec<Arc<Event>>) {
    if spare.len() < SPARE
        && let Some(own) = Arc::get_mut(&mut event)
    {
        own.let_go();
        spare.push(event);
    }
}

#[inline]
fn emit(event: Arc<Event>, routed: &mut Tally, out: &mut Vec<Arc<Event>>) {
    *routed += Tally::one(event.count);
    out.push(event);
}

/// Counts events by kind, severity and outcome, before sampling. Those are
/// few, so each one's series is looked up once and found again by a short scan.
#[derive(Debug, Default)]
pub(crate) struct KindCounter {
    known: Vec<KindCount>,
    /// Where the last event's is: the next one is often of the same kind.
    last: usize,
}

#[derive(Debug)]
struct KindCount {
    kind: &'static EventKind,
    severity: Severity,
    outcome: Outcome,
    series: Series,
    pending: u64,
}

impl KindCount {
    fn is_of(&self, event: &Event) -> bool {
        std::ptr::eq(self.kind, event.kind)
            && (self.severity, self.outcome) == (event.severity, event.outcome)
    }
}

impl KindCounter {
    #[inline]
    fn count(&mut self, event: &Event, pipeline: &Pipeline) {
        if !self.known.get(self.last).is_some_and(|known| known.is_of(event)) {
            self.last = match self.known.iter().position(|known| known.is_of(event)) {
                Some(index) => index,
                None => self.learn(event, pipeline),
            };
        }
        if let Some(known) = self.known.get_mut(self.last) {
            known.pending += event.count;
        }
    }

    fn learn(&mut self, event: &Event, pipeline: &Pipeline) -> usize {
        let labels = [
            ("observer", &*pipeline.origin.source),
            ("type", event.kind.event_type()),
            ("subtype", event.kind.subtype()),
            ("severity", event.severity.as_str()),
            ("outcome", event.outcome.as_str()),
        ];
        let series =
            pipeline.metrics.series("vahti_events_seen_total", MetricKind::Counter, &labels);
        let Event { kind, severity, outcome, .. } = *event;
        self.known.push(KindCount { kind, severity, outcome, series, pending: 0 });
        self.known.len() - 1
    }

    fn flush(&mut self) {
        for known in &mut self.known {
            if known.pending > 0 {
                known.series.add(std::mem::take(&mut known.pending));
            }
        }
    }
}
