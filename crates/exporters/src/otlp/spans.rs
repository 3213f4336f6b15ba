//! What becomes of spans, which no ledger has: an event counts by its record.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vahti_runtime::emitter::Meter;
use vahti_runtime::metrics::{MetricKind, Sample};

/// How many spans were sent, and what came of them.
#[derive(Debug, Default)]
pub(super) struct SpanCounts {
    acknowledged: AtomicU64,
    refused: AtomicU64,
}

impl SpanCounts {
    /// Some were settled, of which so many were refused.
    pub(super) fn count(&self, settled: u64, refused: u64) {
        self.acknowledged.fetch_add(settled.saturating_sub(refused), Ordering::Relaxed);
        self.refused.fetch_add(refused, Ordering::Relaxed);
    }

    /// Tells of them, under the emitter's name.
    pub(super) fn meter(self: &Arc<Self>, emitter: &str) -> Meter {
        let (counts, emitter) = (Arc::clone(self), emitter.to_owned());
        Arc::new(move || {
            let all = [("acknowledged", &counts.acknowledged), ("refused", &counts.refused)];
            let sample = |(result, count): (&str, &AtomicU64)| Sample {
                name: "vahti_emitter_spans_total".to_owned(),
                kind: MetricKind::Counter,
                labels: vec![
                    ("emitter".to_owned(), emitter.clone()),
                    ("result".to_owned(), result.to_owned()),
                ],
                value: i64::try_from(count.load(Ordering::Relaxed)).unwrap_or(i64::MAX),
            };
            all.into_iter().map(sample).collect()
        })
    }
}
