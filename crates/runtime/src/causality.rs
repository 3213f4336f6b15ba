//! Which span came last for an entity, and what caused a span.
//!
//! Bounded: what was used longest ago is forgotten first. A chain ends at its
//! root, at what was forgotten, or before it would turn in a circle.

use std::hash::{BuildHasherDefault, Hasher};
use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use lru::LruCache;

use crate::event::Event;
use crate::ids::{EntityId, SpanId, TraceId};

/// Ids are hashes already: their low half is as good as any further hash.
#[derive(Default)]
struct LowHalf(u64);

impl Hasher for LowHalf {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 << 8) | u64::from(*byte);
        }
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = id;
    }

    fn write_u128(&mut self, id: u128) {
        self.0 = id as u64;
    }
}

type Lru<K, V> = LruCache<K, V, BuildHasherDefault<LowHalf>>;

/// A span and the trace that it is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrackedSpan {
    /// The trace.
    pub trace_id: TraceId,
    /// The span.
    pub span_id: SpanId,
}

/// Remembers the latest span of each entity and the parent of each span.
///
/// ```
/// use vahti_runtime::causality::{CausalityTracker, TrackedSpan};
/// use vahti_runtime::ids::{EntityId, SpanId, TraceId};
///
/// let tracker = CausalityTracker::new(1_000);
/// let pod = EntityId::named("default/web-0");
/// let span = TrackedSpan { trace_id: TraceId(7), span_id: SpanId::from_hash(9) };
/// tracker.record(pod, span, None);
/// assert_eq!(tracker.latest(pod), Some(span));
/// ```
#[derive(Debug)]
pub struct CausalityTracker {
    state: Mutex<State>,
}

#[derive(Debug)]
pub(crate) struct State {
    latest: Lru<EntityId, TrackedSpan>,
    parents: Lru<SpanId, SpanId>,
    /// Entities by the hash of another name of theirs.
    aliases: Lru<EntityId, EntityId>,
}

/// The longest chain that is followed: far more than any real one, few enough
/// to be walked under a lock.
const MAX_CHAIN: usize = 64;

impl CausalityTracker {
    /// Remembers at most this many entities and as many parents; 0 is taken
    /// as 1.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let capacity = NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN);
        CausalityTracker {
            state: Mutex::new(State {
                latest: LruCache::with_hasher(capacity, BuildHasherDefault::default()),
                parents: LruCache::with_hasher(capacity, BuildHasherDefault::default()),
                aliases: LruCache::with_hasher(capacity, BuildHasherDefault::default()),
            }),
        }
    }

    /// What so many entities, parents and aliases take. An entry is a block of
    /// its own, linked both ways; the table points to it, grows by doubling, and
    /// is at most seven eighths full.
    pub(crate) fn size_bytes(capacity: usize) -> usize {
        let links = 2 * size_of::<usize>() + crate::memory::BLOCK;
        let entries = size_of::<(EntityId, TrackedSpan)>()
            + size_of::<(SpanId, SpanId)>()
            + size_of::<(EntityId, EntityId)>()
            + 3 * links;
        let slots = (capacity * 8 / 7).next_power_of_two() * (2 * size_of::<usize>() + 1);
        capacity * entries + 3 * slots
    }

    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a span as the entity's latest, and its parent.
    pub fn record(&self, entity: EntityId, span: TrackedSpan, parent: Option<SpanId>) {
        self.lock().record(entity, span, parent);
    }

    /// The entity's latest span.
    pub fn latest(&self, entity: EntityId) -> Option<TrackedSpan> {
        self.lock().latest.get(&entity).copied()
    }

    /// Makes a text name another name of an entity: `namespace/name` of a pod,
    /// `ip:port` of whoever listens there, beside its uid.
    pub fn alias(&self, name: &str, entity: EntityId) {
        self.lock().aliases.put(EntityId::named(name), entity);
    }

    /// The latest span of an entity by its uid or an alias of it.
    pub fn latest_by_name(&self, name: &str) -> Option<TrackedSpan> {
        let mut state = self.lock();
        let named = EntityId::named(name);
        let entity = state.aliases.get(&named).copied().unwrap_or(named);
        state.latest.get(&entity).copied()
    }

    /// The span that caused this one.
    pub fn parent(&self, span: SpanId) -> Option<SpanId> {
        self.lock().parents.get(&span).copied()
    }

    /// The span, its parent, and so on to the root. No span twice.
    pub fn chain(&self, span: SpanId) -> Vec<SpanId> {
        let mut state = self.lock();
        let mut chain = vec![span];
        let mut at = span;
        while let Some(parent) = state.parents.get(&at).copied() {
            if chain.len() == MAX_CHAIN || chain.contains(&parent) {
                break;
            }
            chain.push(parent);
            at = parent;
        }
        chain
    }

    /// How many entities are remembered.
    pub fn len(&self) -> usize {
        self.lock().latest.len()
    }

    /// Whether no entity is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl State {
    fn record(&mut self, entity: EntityId, span: TrackedSpan, parent: Option<SpanId>) {
        self.latest.put(entity, span);
        self.record_parent(span.span_id, parent);
    }

    fn record_parent(&mut self, span: SpanId, parent: Option<SpanId>) {
        if let Some(parent) = parent.filter(|parent| *parent != span) {
            self.parents.put(span, parent);
        }
    }

    /// Sets the event's parent from its cause where it has none. An event that
    /// adopts a parent joins the parent's trace, so that the chain is one trace.
    pub(crate) fn adopt(&mut self, event: &mut Event) {
        if event.parent_span_id.is_none()
            && let Some(cause) = event.cause
            && let Some(caused_by) = self.latest.get(&cause).copied()
            && Some(caused_by.span_id) != event.span_id
        {
            event.parent_span_id = Some(caused_by.span_id);
            event.trace_id = caused_by.trace_id;
        }
    }

    /// Remembers an event's span and its parent.
    #[inline]
    pub(crate) fn remember(&mut self, event: &Event) {
        let Some(span_id) = event.span_id else { return };
        if let Some(entity) = event.entity {
            self.latest.put(entity, TrackedSpan { trace_id: event.trace_id, span_id });
            if let (Some(container), false) = (&event.container, event.kind.folds()) {
                self.aliases.put(EntityId::named(&container.id), entity);
            }
        }
        self.record_parent(span_id, event.parent_span_id);
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    fn span(n: u128) -> SpanId {
        SpanId::from_hash(n)
    }

    fn tracked(n: u128) -> TrackedSpan {
        TrackedSpan { trace_id: TraceId(1), span_id: span(n) }
    }

    #[test]
    fn a_chain_goes_to_the_root() {
        let tracker = CausalityTracker::new(10);
        let entity = EntityId::named("e");
        tracker.record(entity, tracked(2), Some(span(1)));
        tracker.record(entity, tracked(3), Some(span(2)));
        assert_eq!(tracker.chain(span(3)), [span(3), span(2), span(1)]);
        assert_eq!(tracker.latest(entity), Some(tracked(3)));
    }

    #[test]
    fn an_entity_is_found_by_any_name_of_it() {
        let tracker = CausalityTracker::new(10);
        let pod = EntityId::named("uid-1");
        tracker.alias("default/web-0", pod);
        tracker.alias("10.0.0.7:80", pod);
        tracker.record(pod, tracked(4), None);
        for name in ["uid-1", "default/web-0", "10.0.0.7:80"] {
            assert_eq!(tracker.latest_by_name(name), Some(tracked(4)), "{name}");
        }
        assert_eq!(tracker.latest_by_name("default/web-1"), None);
    }

    #[test]
    fn a_circle_is_walked_once() {
        let tracker = CausalityTracker::new(10);
        tracker.record(EntityId::named("a"), tracked(1), Some(span(2)));
        tracker.record(EntityId::named("b"), tracked(2), Some(span(1)));
        assert_eq!(tracker.chain(span(1)), [span(1), span(2)]);
        tracker.record(EntityId::named("c"), tracked(5), Some(span(5)));
        assert_eq!(tracker.chain(span(5)), [span(5)]);
    }

    #[test]
    fn what_was_used_longest_ago_is_forgotten_first() {
        let tracker = CausalityTracker::new(2);
        let [a, b, c] = ["a", "b", "c"].map(EntityId::named);
        tracker.record(a, tracked(1), None);
        tracker.record(b, tracked(2), None);
        assert!(tracker.latest(a).is_some());
        tracker.record(c, tracked(3), None);
        assert_eq!((tracker.latest(b), tracker.len()), (None, 2));
    }
}
