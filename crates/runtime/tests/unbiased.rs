//! Counts downstream are unbiased: Σ weight × count over what arrives, plus the
//! drops counted the same way, estimates what happened, with sampling and
//! folding together.
//!
//! Identities are derived, so each run gives the same figures: this can't fail
//! one day by chance.
#![cfg(not(shuttle))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "stage/misbehaving.rs"]
mod misbehaving;

use std::sync::{Arc, Mutex};

use misbehaving::{Gate, NORMAL, STORM, assert_exact};
use vahti_runtime::config::{Config, SamplingConfig, SamplingRule};
use vahti_runtime::emitter::{Emission, EmitOutcome, EventEmitter};
use vahti_runtime::event::{ErrorInfo, Event, Severity};
use vahti_runtime::ids::BootId;
use vahti_runtime::ledger::ObserverLedger;
use vahti_runtime::observer::ObserverRuntime;
use vahti_runtime::processor::{EventProcessor, Output, ProcessError, RawRecord};
use vahti_runtime::shutdown::channel;
use vahti_runtime::testing::record;
use vahti_runtime::units::ByteSize;

const HAPPENED: u64 = 100_000;

/// First byte: whether it folds; second: whether it is a failure; third: key.
struct Weather;

impl EventProcessor for Weather {
    fn name(&self) -> &str {
        "weather"
    }

    fn process(&self, record: RawRecord<'_>) -> Result<Output, ProcessError> {
        let &[folds, fails, key] = record.bytes else {
            return Err(ProcessError::Malformed { what: "weather", len: record.bytes.len() });
        };
        let kind = if folds == 1 { &STORM } else { &NORMAL };
        let severity = if fails == 1 { Severity::Error } else { Severity::Info };
        let code = key.to_string().into();
        let error = Some(ErrorInfo { code, message: "".into(), cause: None });
        Ok(Event { error, ..Event::new(kind, severity) }.into())
    }
}

/// Σ weight × count and envelopes of what arrived.
#[derive(Default)]
struct Arrived {
    info: f64,
    failures: f64,
    envelopes: u64,
    summaries: u64,
}

struct Scales {
    arrived: Arc<Mutex<Arrived>>,
    open: Arc<Gate>,
}

impl EventEmitter for Scales {
    fn name(&self) -> &str {
        "scales"
    }

    fn emit<'a>(&'a mut self, batch: &'a [Arc<Event>]) -> Emission<'a, EmitOutcome> {
        self.open.wait();
        let mut arrived = self.arrived.lock().unwrap();
        for event in batch {
            let kept = ((1u64 << 56) - event.sampling_threshold) as f64 / (1u64 << 56) as f64;
            assert!((event.weight * kept - 1.0).abs() < 1e-9, "the weight is that of T");
            assert!(event.trace_id.randomness() >= event.sampling_threshold, "it passed its own T");
            let stands_for = event.weight * event.count as f64;
            if event.severity == Severity::Error {
                arrived.failures += stands_for;
            } else {
                arrived.info += stands_for;
            }
            arrived.envelopes += 1;
            arrived.summaries += u64::from(event.count > 1);
        }
        Box::pin(std::future::ready(EmitOutcome::Delivered))
    }
}

/// Plays the weather; `queue_size` bounds what waits for an emitter that takes
/// nothing before the end.
async fn play(
    sampling: SamplingConfig,
    queue_size: usize,
    bytes_of: impl Fn(u64) -> [u8; 3],
) -> (Arrived, ObserverLedger) {
    let mut config = Config::for_observer("weather");
    config.sampling = sampling;
    config.backpressure.queue_size = queue_size;
    config.backpressure.max_bytes = Some(ByteSize(1 << 30));
    let arrived = Arc::new(Mutex::new(Arrived::default()));
    let open = Arc::new(Gate::default());
    let (scales, gate) = (Arc::clone(&arrived), Arc::clone(&open));
    let observer = ObserverRuntime::builder(|| Weather)
        .config(config)
        .boot_id(BootId([7; 16]))
        .emitter(move || Scales { arrived: Arc::clone(&scales), open: Arc::clone(&gate) })
        .build()
        .unwrap();
    let (trigger, shutdown) = channel();
    let run = tokio::spawn(Arc::clone(&observer).run(shutdown));
    observer.started().await;
    for seq in 0..HAPPENED {
        let bytes = bytes_of(seq);
        // Five seconds in all: windows open and end on the way.
        let boot_ns = 1 + seq * 50_000;
        observer.process_event(RawRecord { boot_ns, seq, ..record(&bytes) }).unwrap();
    }
    open.open();
    trigger.begin();
    run.await.unwrap().unwrap();
    assert_exact(&observer);
    let arrived = std::mem::take(&mut *arrived.lock().unwrap());
    (arrived, observer.ledger())
}

/// Standard deviation of the estimate of n events that are each kept with this
/// probability.
fn sigma(n: u64, rate: f64) -> f64 {
    (n as f64 * (1.0 - rate) / rate).sqrt()
}

fn sampled(rate: f64) -> SamplingConfig {
    SamplingConfig { enabled: true, default_rate: rate, rules: Vec::new() }
}

#[tokio::test]
async fn sampling_and_folding_together_estimate_what_happened() {
    for rate in [0.003, 0.01, 0.1, 0.5, 0.9, 1.0] {
        for keys in [1, 50] {
            let (arrived, ledger) =
                play(sampled(rate), 1_000_000, |n| [1, 0, (n % keys) as u8]).await;
            let off = (arrived.info - HAPPENED as f64).abs();
            assert!(off <= 5.0 * sigma(HAPPENED, rate), "{rate}, {keys}: {}", arrived.info);
            let routed = ledger.lanes[0].routed;
            assert!(arrived.summaries > 0 && routed.envelopes < routed.occurrences, "folded");
        }
    }
}

#[tokio::test]
async fn drops_counted_the_same_way_complete_the_estimate() {
    for rate in [0.05, 0.5] {
        let (arrived, ledger) =
            play(sampled(rate), 16, |n| [u8::from(n % 3 == 0), 0, (n % 200) as u8]).await;
        let dropped = ledger.lanes[0].dropped_total();
        assert!(dropped.envelopes > arrived.envelopes, "most of it: {dropped:?}");
        let estimate = arrived.info + dropped.occurrences as f64 / rate;
        let off = (estimate - HAPPENED as f64).abs();
        assert!(off <= 5.0 * sigma(HAPPENED, rate), "{rate}: {estimate}");
        // Without them it would not be an estimate of anything.
        assert!((arrived.info - HAPPENED as f64).abs() > 50.0 * sigma(HAPPENED, rate));
    }
}

#[tokio::test]
async fn what_is_kept_at_different_rates_is_not_folded_into_one() {
    // Failures are all kept, the rest of the same key at one in ten.
    let (arrived, _) = play(sampled(0.1), 1_000_000, |n| [1, u8::from(n % 2 == 0), 0]).await;
    let half = HAPPENED / 2;
    assert_eq!(arrived.failures, half as f64, "exact where all are kept");
    assert!((arrived.info - half as f64).abs() <= 5.0 * sigma(half, 0.1), "{}", arrived.info);
}

#[tokio::test]
async fn rules_weigh_each_subtype_by_its_own_rate() {
    let rule = |subtype: &str, rate| SamplingRule {
        event_type: "test".into(),
        subtype: subtype.into(),
        rate,
        keep_all: false,
    };
    let sampling = SamplingConfig {
        enabled: true,
        default_rate: 0.0,
        rules: vec![rule("storm", 0.02), rule("", 0.25)],
    };
    let folds = |n: u64| !n.is_multiple_of(5);
    let (arrived, _) = play(sampling, 1_000_000, |n| [u8::from(folds(n)), 0, 0]).await;
    let (storm, normal) = (HAPPENED / 5 * 4, HAPPENED / 5);
    let sigma = sigma(storm, 0.02).hypot(sigma(normal, 0.25));
    assert!((arrived.info - HAPPENED as f64).abs() <= 5.0 * sigma, "{}", arrived.info);
}
