//! Storms are folded: exact counts, few events.
//!
//! The first event of a key passes at once; what follows within the key's
//! window becomes one summary with the exact count, first and last time, and
//! only the fields that all of them shared. Windows begin and end by the
//! records' own time; of a live source, which may have nothing to tell for a
//! while, they also end by the clock.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use xxhash_rust::xxh3::xxh3_64;

use crate::event::{Endpoint, Event, EventData, Network, Process};
use crate::ids::{EventId, SpanId, TraceId};
use crate::ledger::Tally;
use crate::memory::{BLOCK, CacheLimits};

/// How many bits of a trace id sampling looks at.
const RANDOM_BITS: u32 = 56;

/// What can be set about folding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FoldLimits {
    pub(crate) window_ns: u64,
    /// Beyond this many open keys, events pass unfolded.
    pub(crate) max_keys: usize,
    /// Beyond this many bytes of summaries as well, unless their key has one.
    pub(crate) max_bytes: usize,
}

impl Default for FoldLimits {
    fn default() -> Self {
        FoldLimits::of(&CacheLimits::default())
    }
}

impl FoldLimits {
    pub(crate) fn of(limits: &CacheLimits) -> Self {
        FoldLimits {
            window_ns: 1_000_000_000,
            max_keys: limits.fold_keys,
            max_bytes: limits.fold_bytes,
        }
    }
}

/// A storm's summary so far.
#[derive(Debug)]
struct Summary {
    event: Event,
    /// What it took when it began: it only ever becomes smaller.
    bytes: usize,
}

type Open = HashMap<u128, Option<Box<Summary>>, BuildHasherDefault<Identity>>;

#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}

/// Folds the events of one observer.
#[derive(Debug)]
pub(crate) struct Folder {
    limits: FoldLimits,
    open: Open,
    /// What the summaries take.
    bytes: usize,
    /// When each open key's window ends, in that order: windows are equally
    /// long, so the order of opening is the order of ending.
    ends: VecDeque<(u64, u128)>,
    /// The latest record time seen: CPUs' records may come out of order.
    now_ns: u64,
    folding: Tally,
}

impl Folder {
    pub(crate) fn new(limits: FoldLimits) -> Self {
        Folder {
            limits,
            open: HashMap::default(),
            bytes: 0,
            ends: VecDeque::new(),
            now_ns: 0,
            folding: Tally::default(),
        }
    }

    /// What keys and summaries within these limits take: the table and the line
    /// of ends grow by doubling.
    pub(crate) fn size_bytes(limits: &CacheLimits) -> usize {
        let slots = (limits.fold_keys * 8 / 7).next_power_of_two();
        let slot = size_of::<(u128, Option<Box<Summary>>)>() + 1;
        let ends = limits.fold_keys.next_power_of_two() * size_of::<(u64, u128)>();
        slots * slot + ends + limits.fold_bytes
    }

    /// What open summaries hold.
    pub(crate) fn folding(&self) -> Tally {
        self.folding
    }

    /// When the next window ends, on the boot clock; `None` if none is open.
    pub(crate) fn next_end_ns(&self) -> Option<u64> {
        self.ends.front().map(|(end, _)| *end)
    }

    /// Offers an event that happened at this time on the boot clock; `true` if
    /// it is part of a summary now and does not go on by itself. A summary that
    /// begins with it gets its id, and the hash of its span, from `summary_id`.
    #[inline]
    pub(crate) fn offer(
        &mut self,
        event: &Event,
        boot_ns: u64,
        summary_id: impl FnOnce() -> (EventId, u128),
    ) -> bool {
        self.now_ns = self.now_ns.max(boot_ns);
        if !event.kind.folds() {
            return false;
        }
        let key = key_of(event);
        if let Some(summary) = self.open.get_mut(&key) {
            match summary {
                Some(summary) => absorb(&mut summary.event, event),
                None => {
                    let bytes = event.size_bytes() + size_of::<usize>() + BLOCK;
                    if self.bytes + bytes > self.limits.max_bytes {
                        return false;
                    }
                    self.bytes += bytes;
                    self.folding.envelopes += 1;
                    let event = first_of(event.clone(), summary_id());
                    *summary = Some(Box::new(Summary { event, bytes }));
                }
            }
            self.folding.occurrences += event.count;
            return true;
        }
        if self.open.len() < self.limits.max_keys {
            self.open.insert(key, None);
            self.ends.push_back((self.now_ns.saturating_add(self.limits.window_ns), key));
        }
        false
    }

    /// Ends the windows that are over at this time on the boot clock, and
    /// hands out their summaries.
    pub(crate) fn advance(&mut self, boot_ns: u64, out: &mut impl FnMut(Event)) {
        self.now_ns = self.now_ns.max(boot_ns);
        while let Some((end, key)) = self.ends.front().copied() {
            if end > self.now_ns {
                break;
            }
            self.ends.pop_front();
            if let Some(Some(summary)) = self.open.remove(&key) {
                self.bytes -= summary.bytes;
                self.folding -= Tally::one(summary.event.count);
                out(finished(summary.event));
            }
        }
    }

    /// Ends all windows, for good: what comes after passes unfolded, as nobody
    /// would end its window.
    pub(crate) fn flush(&mut self, out: &mut impl FnMut(Event)) {
        self.advance(u64::MAX, out);
        self.limits.max_keys = 0;
    }
}

/// Subtype; container, else process; peer; error code; threshold (so that all
/// that is folded has the same weight).
fn key_of(event: &Event) -> u128 {
    let mut bytes = [0u8; 96];
    let mut at = 0;
    let mut put = |field: &[u8]| {
        if let Some(room) = bytes.get_mut(at..at + field.len()) {
            room.copy_from_slice(field);
            at += field.len();
        }
    };
    put(&event.kind.subtype_hash().to_le_bytes());
    put(&event.sampling_threshold.to_le_bytes());
    match (&event.container, event.entity, &event.process) {
        (Some(container), ..) => put(&xxh3_64(container.id.as_bytes()).to_le_bytes()),
        // Of an event without a container, the entity is the process.
        (None, Some(entity), _) => put(&entity.0.to_le_bytes()),
        (None, None, Some(process)) => put(&process.pid.unwrap_or(0).to_le_bytes()),
        (None, None, None) => {}
    }
    if let EventData::Network(network) = &event.data {
        match network.peer.address {
            Some(std::net::IpAddr::V4(ip)) => put(&ip.octets()),
            Some(std::net::IpAddr::V6(ip)) => put(&ip.octets()),
            None => {}
        }
        put(&network.peer.port.unwrap_or(0).to_le_bytes());
    }
    if let Some(error) = &event.error {
        put(&xxh3_64(error.code.as_bytes()).to_le_bytes());
    }
    xxhash_rust::xxh3::xxh3_128(&bytes[..at])
}

fn first_of(event: Event, (id, hash): (EventId, u128)) -> Event {
    let time_ns = event.time_ns;
    Event {
        id,
        span_id: Some(SpanId::from_hash(hash)),
        first_ns: if event.first_ns == 0 { time_ns } else { event.first_ns },
        last_ns: if event.last_ns == 0 { time_ns } else { event.last_ns },
        ..event
    }
}

/// A summary of several incidents is a trace of its own. It passed the
/// threshold of its parts, so whoever samples what arrives once more must find
/// a randomness above it, as uniform as theirs was.
fn finished(mut summary: Event) -> Event {
    if let (false, Some(span)) = (summary.trace_id.is_set(), summary.span_id) {
        let hash = crate::ids::identity_hash("summary", &[&span.get().to_le_bytes()]);
        let threshold = u128::from(summary.sampling_threshold);
        let range = (1 << RANDOM_BITS) - threshold;
        let randomness = u128::from(TraceId(hash).randomness());
        let kept = threshold + ((randomness * range) >> RANDOM_BITS);
        summary.trace_id = TraceId::from_hash((hash >> RANDOM_BITS << RANDOM_BITS) | kept);
    }
    summary
}

fn keep_if_equal<T: PartialEq>(mine: &mut Option<T>, other: &Option<T>) {
    if mine.is_some() && mine != other {
        *mine = None;
    }
}

/// Adds an event to a summary, which keeps only what both share.
fn absorb(summary: &mut Event, event: &Event) {
    summary.count += event.count;
    let first = if event.first_ns == 0 { event.time_ns } else { event.first_ns };
    summary.first_ns = summary.first_ns.min(first);
    summary.last_ns = summary.last_ns.max(event.last_ns).max(event.time_ns);
    summary.time_ns = summary.first_ns;
    keep_if_equal(&mut summary.duration_ns, &event.duration_ns);
    keep_if_equal(&mut summary.parent_span_id, &event.parent_span_id);
    // A start time is derived from the wall clock anew for each record, so it
    // may differ by a few microseconds within one incarnation of a process.
    let same_process = summary.entity.is_some() && summary.entity == event.entity;
    share_process(&mut summary.process, &event.process, same_process);
    keep_if_equal(&mut summary.entity, &event.entity);
    keep_if_equal(&mut summary.cause, &event.cause);
    keep_if_equal(&mut summary.unresolved, &event.unresolved);
    keep_if_equal(&mut summary.error, &event.error);
    if summary.trace_id != event.trace_id {
        // Several incidents: the summary is none of them.
        summary.trace_id = TraceId::UNSET;
        summary.parent_span_id = None;
    }
    if !summary.links.is_empty() && summary.links != event.links {
        summary.links.clear();
    }
    // Shared ones compare by pointer first, as `Arc<T: Eq>` does.
    keep_if_equal(&mut summary.cgroup, &event.cgroup);
    keep_if_equal(&mut summary.container, &event.container);
    share_data(&mut summary.data, &event.data);
    if event.severity > summary.severity {
        summary.severity = event.severity;
    }
    if summary.outcome != event.outcome {
        summary.outcome = crate::event::Outcome::Unknown;
    }
}

fn share_process(summary: &mut Option<Process>, event: &Option<Process>, same_entity: bool) {
    if summary == event {
        return;
    }
    let (Some(mine), Some(other)) = (summary.as_mut(), event) else {
        *summary = None;
        return;
    };
    if mine.pid != other.pid || (mine.start_ns != other.start_ns && !same_entity) {
        (mine.pid, mine.start_ns) = (None, None);
    }
    keep_if_equal(&mut mine.name, &other.name);
    keep_if_equal(&mut mine.uid, &other.uid);
    keep_if_equal(&mut mine.parent_pid, &other.parent_pid);
    let nothing = Process { pid: None, name: None, uid: None, parent_pid: None, start_ns: None };
    if *mine == nothing {
        *summary = None;
    }
}

fn share_data(summary: &mut EventData, event: &EventData) {
    match (&mut *summary, event) {
        (EventData::Network(mine), EventData::Network(other))
            if (mine.transport, mine.network_type) == (other.transport, other.network_type) =>
        {
            share_network(mine, other);
        }
        (mine, other) if *mine == *other => {}
        _ => *summary = EventData::None,
    }
}

fn share_network(mine: &mut Network, other: &Network) {
    let share = |mine: &mut Endpoint, other: &Endpoint| {
        keep_if_equal(&mut mine.address, &other.address);
        keep_if_equal(&mut mine.port, &other.port);
    };
    share(&mut mine.local, &other.local);
    share(&mut mine.peer, &other.peer);
}

#[cfg(all(test, not(shuttle)))]
mod tests;
