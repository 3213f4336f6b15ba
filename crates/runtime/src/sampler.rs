//! Consistent probability sampling, as OpenTelemetry defines it.
//!
//! An event is kept iff R ≥ T, where T = (1 − p)·2⁵⁶ and R is the last 56 bits
//! of its trace id. Trace ids here are hashes and the same on every node, so
//! every node keeps the same chains of causes. What is kept carries T and the
//! weight 1/p, so counts downstream stay unbiased.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::config::{SamplingConfig, SamplingRule};
use crate::event::{Event, EventKind, Severity};

/// 2⁵⁶: no R reaches it, so it keeps nothing.
const NEVER: u64 = 1 << 56;

/// What a rule amounts to.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Decision {
    threshold: u64,
    weight: f64,
}

impl Decision {
    const KEEP: Decision = Decision { threshold: 0, weight: 1.0 };

    fn for_rate(rate: f64) -> Self {
        // NaN and what is out of range were refused by the configuration.
        let rate = if rate.is_nan() { 1.0 } else { rate.clamp(0.0, 1.0) };
        // Exact: 2⁵⁶ is a power of two, and p has 53 bits.
        let threshold = NEVER - (rate * NEVER as f64).round() as u64;
        let kept = NEVER - threshold;
        let weight = if kept == 0 { 0.0 } else { NEVER as f64 / kept as f64 };
        Decision { threshold, weight }
    }
}

/// Hashes of kinds are computed at compile time and need no further hashing.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

type Table = HashMap<u64, (usize, Decision), BuildHasherDefault<Identity>>;

/// Decides which events are kept. Rules are compiled once; a look-up takes
/// constant time and no lock, however many rules there are.
///
/// ```
/// use vahti_runtime::config::{SamplingConfig, SamplingRule};
/// use vahti_runtime::event::{CONNECTION_REFUSED, Severity};
/// use vahti_runtime::ids::TraceId;
/// use vahti_runtime::sampler::Sampler;
///
/// let rule = SamplingRule {
///     event_type: "network".into(), subtype: "connection_refused".into(),
///     rate: 0.5, keep_all: false,
/// };
/// let sampler = Sampler::new(&SamplingConfig { enabled: true, default_rate: 1.0, rules: vec![rule] });
/// let low = TraceId(1);
/// assert_eq!(sampler.decide(&CONNECTION_REFUSED, Severity::Error, low), None);
/// ```
#[derive(Debug, Clone)]
pub struct Sampler {
    enabled: bool,
    default: Decision,
    /// The first rule that names a subtype, by hash of type and subtype.
    named: Table,
    /// The first rule with an empty subtype, by hash of the type.
    wild: Table,
}

/// What an event that is kept carries.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kept {
    /// T, 56 bits; 0 where everything is kept.
    pub threshold: u64,
    /// How many events it stands for: 1 / p.
    pub weight: f64,
}

impl Sampler {
    /// Compiles the rules.
    #[must_use]
    pub fn new(config: &SamplingConfig) -> Self {
        let mut sampler = Sampler {
            enabled: config.enabled,
            default: Decision::for_rate(config.default_rate),
            named: Table::default(),
            wild: Table::default(),
        };
        for (index, rule) in config.rules.iter().enumerate() {
            let decision =
                if rule.keep_all { Decision::KEEP } else { Decision::for_rate(rule.rate) };
            let (table, hash) = sampler.table_for(rule);
            table.entry(hash).or_insert((index, decision));
        }
        sampler
    }

    /// One that keeps everything.
    #[must_use]
    pub fn disabled() -> Self {
        Sampler::new(&SamplingConfig::default())
    }

    fn table_for(&mut self, rule: &SamplingRule) -> (&mut Table, u64) {
        if rule.subtype.is_empty() {
            (&mut self.wild, EventKind::hash_type(&rule.event_type))
        } else {
            (&mut self.named, EventKind::hash_subtype(&rule.event_type, &rule.subtype))
        }
    }

    /// Whether an event of this kind, severity and trace is kept, and with
    /// what weight.
    #[inline]
    #[must_use]
    pub fn decide(
        &self,
        kind: &EventKind,
        severity: Severity,
        trace: crate::ids::TraceId,
    ) -> Option<Kept> {
        if !self.enabled {
            return Some(Kept { threshold: 0, weight: 1.0 });
        }
        let decision = self.look_up(kind, severity);
        (trace.randomness() >= decision.threshold)
            .then_some(Kept { threshold: decision.threshold, weight: decision.weight })
    }

    #[inline]
    fn look_up(&self, kind: &EventKind, severity: Severity) -> Decision {
        let named = self.named.get(&kind.subtype_hash());
        if severity.is_failure() {
            // Failures are kept unless a rule names their subtype.
            return named.map_or(Decision::KEEP, |(_, decision)| *decision);
        }
        let wild = if self.wild.is_empty() { None } else { self.wild.get(&kind.type_hash()) };
        match (named, wild) {
            (Some((first, a)), Some((second, b))) => *if first < second { a } else { b },
            (Some((_, decision)), None) | (None, Some((_, decision))) => *decision,
            (None, None) => self.default,
        }
    }

    /// Whether an event is kept; the reference's `ShouldSample`.
    #[must_use]
    pub fn should_sample(&self, event: &Event) -> bool {
        self.decide(event.kind, event.severity, event.trace_id).is_some()
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::event::{CONNECTION_ABANDONED, CONNECTION_REFUSED, Priority};
    use crate::ids::{TraceId, identity_hash};

    fn rule(event_type: &str, subtype: &str, rate: f64) -> SamplingRule {
        SamplingRule {
            event_type: event_type.into(),
            subtype: subtype.into(),
            rate,
            keep_all: false,
        }
    }

    fn sampler(default_rate: f64, rules: Vec<SamplingRule>) -> Sampler {
        Sampler::new(&SamplingConfig { enabled: true, default_rate, rules })
    }

    fn traces(n: u64) -> impl Iterator<Item = TraceId> {
        (0..n).map(|i| TraceId::from_hash(identity_hash("test", &[&i.to_le_bytes()])))
    }

    #[test]
    fn weights_times_kept_estimate_what_happened() {
        for rate in [0.01, 0.1, 0.5, 0.9] {
            let sampler = sampler(rate, vec![]);
            let weight: f64 = traces(100_000)
                .filter_map(|t| sampler.decide(&CONNECTION_ABANDONED, Severity::Warning, t))
                .map(|kept| kept.weight)
                .sum();
            // Standard deviation of the estimate: sqrt(n (1-p) / p).
            let sigma = (100_000.0 * (1.0 - rate) / rate).sqrt();
            assert!((weight - 100_000.0).abs() < 5.0 * sigma, "rate {rate}: {weight}");
        }
    }

    #[test]
    fn whether_an_event_is_kept_is_what_was_decided_of_it() {
        let sampler = sampler(0.5, vec![]);
        for trace in [TraceId(0), TraceId(u128::MAX)] {
            let mut event = Event::new(&CONNECTION_ABANDONED, Severity::Warning);
            event.trace_id = trace;
            assert_eq!(sampler.should_sample(&event), trace == TraceId(u128::MAX));
            event.severity = Severity::Error;
            assert!(sampler.should_sample(&event), "a failure");
        }
    }

    #[test]
    fn a_lower_rate_keeps_a_subset_of_a_higher_one() {
        let (low, high) = (sampler(0.1, vec![]), sampler(0.3, vec![]));
        for trace in traces(10_000) {
            let in_low = low.decide(&CONNECTION_ABANDONED, Severity::Info, trace).is_some();
            let in_high = high.decide(&CONNECTION_ABANDONED, Severity::Info, trace).is_some();
            assert!(!in_low || in_high);
        }
    }

    #[test]
    fn failures_are_kept_unless_a_rule_names_them() {
        let wild = sampler(0.0, vec![rule("network", "", 0.0)]);
        let named = sampler(1.0, vec![rule("network", "connection_refused", 0.0)]);
        for trace in traces(1_000) {
            assert!(wild.decide(&CONNECTION_REFUSED, Severity::Error, trace).is_some());
            assert!(wild.decide(&CONNECTION_ABANDONED, Severity::Warning, trace).is_none());
            assert!(named.decide(&CONNECTION_REFUSED, Severity::Error, trace).is_none());
        }
    }

    #[test]
    fn the_first_rule_that_matches_wins() {
        let trace = TraceId(0);
        let wild_first = sampler(
            1.0,
            vec![rule("network", "", 0.0), rule("network", "connection_abandoned", 1.0)],
        );
        let named_first = sampler(
            1.0,
            vec![rule("network", "connection_abandoned", 1.0), rule("network", "", 0.0)],
        );
        assert!(wild_first.decide(&CONNECTION_ABANDONED, Severity::Info, trace).is_none());
        assert!(named_first.decide(&CONNECTION_ABANDONED, Severity::Info, trace).is_some());
    }

    #[test]
    fn rules_apply_to_kinds_that_others_declare() {
        static MINE: EventKind = EventKind::custom("x.y", "mine", "thing", Priority::Normal);
        let sampler = sampler(1.0, vec![rule("mine", "thing", 0.0)]);
        assert!(sampler.decide(&MINE, Severity::Info, TraceId(u128::MAX)).is_none());
    }

    #[test]
    fn rate_zero_keeps_nothing_and_rate_one_everything() {
        let (none, all) = (sampler(0.0, vec![]), sampler(1.0, vec![]));
        for trace in [TraceId(1), TraceId(u128::MAX)] {
            assert!(none.decide(&CONNECTION_ABANDONED, Severity::Info, trace).is_none());
            let kept = all.decide(&CONNECTION_ABANDONED, Severity::Info, trace).unwrap();
            assert_eq!((kept.threshold, kept.weight), (0, 1.0));
        }
    }
}
