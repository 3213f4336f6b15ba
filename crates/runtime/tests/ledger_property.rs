//! Whatever happens, every line of the ledger adds up.
//!
//! Random policies, queues, sampling, storms, records that poison their
//! processor, emitters in bad moods, records handed in from other threads, and
//! an end at any moment. What the emitters saw is counted by themselves, apart
//! from the ledger.
#![cfg(not(shuttle))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "stage/misbehaving.rs"]
mod misbehaving;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use misbehaving::{Gate, Handles, Mood, Moody};
use proptest::prelude::*;
use vahti_runtime::config::{Config, DropPolicy, FailurePolicy, SamplingConfig, SamplingRule};
use vahti_runtime::delivery::{EmitterConfig, EmitterHandle};
use vahti_runtime::ledger::{DropReason, LaneLine, ObserverLedger};
use vahti_runtime::observer::{ObserverRuntime, ProcessEventError};
use vahti_runtime::shutdown::channel;
use vahti_runtime::supervisor::Supervisor;
use vahti_runtime::testing::{FakeFeed, FakeSource, record};
use vahti_runtime::units::{ByteSize, HumanDuration};

type Record = &'static [u8];

#[derive(Debug, Clone)]
struct ObserverPlan {
    failure: FailurePolicy,
    drop: DropPolicy,
    queue_size: usize,
    max_bytes: u64,
    max_retries: u32,
    sampling: SamplingConfig,
    drain_ms: u64,
    /// From the source.
    records: Vec<Record>,
    /// Through `process_batch`, from another thread.
    direct: Vec<Record>,
}

#[derive(Debug, Clone)]
struct EmitterPlan {
    shared: bool,
    critical: bool,
    stalled: bool,
    moods: Vec<Mood>,
}

#[derive(Debug, Clone)]
struct Plan {
    observers: Vec<ObserverPlan>,
    emitters: Vec<EmitterPlan>,
    /// When the shutdown begins; `None`: once the sources have ended.
    shutdown_ms: Option<u64>,
}

fn a_record() -> impl Strategy<Value = Record> {
    prop_oneof![
        800 => Just(&b"normal"[..]),
        200 => Just(&b"critical"[..]),
        300 => Just(&b"storm"[..]),
        100 => Just(&b"storm-a"[..]),
        100 => Just(&b"storm-b"[..]),
        100 => Just(&b"failure"[..]),
        100 => Just(&b"several"[..]),
        100 => Just(&b"none"[..]),
        100 => Just(&b"bad"[..]),
        6 => Just(&b"panic"[..]),
        3 => Just(&b"fatal"[..]),
        1 => Just(&b"hang"[..]),
    ]
}

fn a_rate() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), Just(1.0), 0.0..1.0]
}

fn sampling() -> impl Strategy<Value = SamplingConfig> {
    let subtype = prop_oneof![Just(""), Just("normal"), Just("storm"), Just("critical")];
    let rule = (subtype, a_rate(), any::<bool>()).prop_map(|(subtype, rate, keep_all)| {
        SamplingRule { event_type: "test".into(), subtype: subtype.into(), rate, keep_all }
    });
    (any::<bool>(), a_rate(), prop::collection::vec(rule, 0..4))
        .prop_map(|(enabled, default_rate, rules)| SamplingConfig { enabled, default_rate, rules })
}

fn an_observer() -> impl Strategy<Value = ObserverPlan> {
    let failure = prop_oneof![
        2 => Just(FailurePolicy::Restart),
        1 => Just(FailurePolicy::Isolate),
        1 => Just(FailurePolicy::FailFast),
    ];
    let drop =
        prop_oneof![Just(DropPolicy::Oldest), Just(DropPolicy::Newest), Just(DropPolicy::Random)];
    let sizes = (1usize..300, prop_oneof![4_096u64..20_000, Just(1 << 20)], 0u32..3);
    let direct = prop_oneof![
        2 => Just(Vec::new()).boxed(),
        1 => prop::collection::vec(a_record().prop_filter("it would hang its caller", |r| *r != b"hang"), 1..200).boxed(),
    ];
    let records = prop::collection::vec(a_record(), 0..800);
    (failure, drop, sizes, sampling(), 1u64..300, records, direct).prop_map(
        |(
            failure,
            drop,
            (queue_size, max_bytes, max_retries),
            sampling,
            drain_ms,
            records,
            direct,
        )| {
            ObserverPlan {
                failure,
                drop,
                queue_size,
                max_bytes,
                max_retries,
                sampling,
                drain_ms,
                records,
                direct,
            }
        },
    )
}

fn an_emitter() -> impl Strategy<Value = EmitterPlan> {
    let mood = prop_oneof![
        4 => Just(Mood::Deliver),
        1 => Just(Mood::Retry),
        1 => Just(Mood::Reject),
        1 => Just(Mood::Panic),
        1 => Just(Mood::Half),
        1 => Just(Mood::Unidentified),
        1 => Just(Mood::TooShort),
        2 => Just(Mood::Slow),
    ];
    let moods = prop::collection::vec(mood, 0..8);
    (any::<bool>(), any::<bool>(), prop::bool::weighted(0.1), moods).prop_map(
        |(shared, critical, stalled, moods)| EmitterPlan { shared, critical, stalled, moods },
    )
}

fn a_plan() -> impl Strategy<Value = Plan> {
    (
        prop::collection::vec(an_observer(), 1..=2),
        prop::collection::vec(an_emitter(), 1..=3),
        prop::option::weighted(0.6, 0u64..60),
    )
        .prop_map(|(observers, emitters, shutdown_ms)| Plan {
            observers,
            emitters,
            shutdown_ms,
        })
}

/// Occurrences that an emitter saw, by its name.
type Seen = HashMap<String, Arc<AtomicU64>>;

struct Stage {
    observers: Vec<Arc<ObserverRuntime>>,
    shared: Vec<EmitterHandle>,
    feeds: Vec<FakeFeed>,
    seen: Seen,
    hang: Vec<Handles>,
    stall: Arc<Gate>,
}

const NAMES: [&str; 2] = ["one", "two"];

fn moody(
    plan: &EmitterPlan,
    name: String,
    seen: &mut Seen,
    stall: &Arc<Gate>,
) -> impl Fn() -> Moody + Send + 'static {
    let arrived = Arc::clone(seen.entry(name.clone()).or_default());
    let moods = Arc::new(Mutex::new(plan.moods.iter().copied().collect()));
    let stalled = plan.stalled.then(|| Arc::clone(stall));
    let critical = plan.critical;
    move || Moody {
        name: name.clone(),
        critical,
        moods: Arc::clone(&moods),
        stalled: stalled.clone(),
        arrived: Arc::clone(&arrived),
        closed: Arc::new(AtomicBool::new(false)),
    }
}

fn config(name: &str, plan: &ObserverPlan) -> Config {
    let mut config = Config::for_observer(name);
    config.failure.policy = plan.failure;
    config.failure.retry.initial_delay = HumanDuration(Duration::from_millis(1));
    config.failure.retry.max_delay = HumanDuration(Duration::from_millis(2));
    config.health.hang_timeout = HumanDuration(Duration::from_millis(100));
    config.backpressure.drop_policy = plan.drop;
    config.backpressure.queue_size = plan.queue_size;
    config.backpressure.max_bytes = Some(ByteSize(plan.max_bytes));
    config.backpressure.max_retries = plan.max_retries;
    config.sampling = plan.sampling.clone();
    config
}

impl Stage {
    fn new(plan: &Plan) -> Self {
        let stall = Arc::new(Gate::default());
        let mut seen = Seen::new();
        let mut shared = Vec::new();
        for (n, emitter) in plan.emitters.iter().enumerate().filter(|(_, e)| e.shared) {
            let make = moody(emitter, format!("shared-{n}"), &mut seen, &stall);
            let config = EmitterConfig { max_retries: 1, ..EmitterConfig::default() };
            shared.push(EmitterHandle::start(move || Box::new(make()), config).unwrap());
        }
        let mut stage = Stage {
            observers: Vec::new(),
            shared,
            feeds: Vec::new(),
            seen,
            hang: Vec::new(),
            stall,
        };
        for (name, observer) in NAMES.into_iter().zip(&plan.observers) {
            stage.add(name, observer, &plan.emitters);
        }
        stage
    }

    fn add(&mut self, name: &'static str, plan: &ObserverPlan, emitters: &[EmitterPlan]) {
        let (source, feed) = FakeSource::new();
        let handles = Handles::default();
        let mut builder = ObserverRuntime::builder(handles.factory(name))
            .config(config(name, plan))
            .source(source)
            .drain_deadline(Duration::from_millis(plan.drain_ms));
        for (n, emitter) in emitters.iter().enumerate().filter(|(_, e)| !e.shared) {
            builder =
                builder.emitter(moody(emitter, format!("{name}-{n}"), &mut self.seen, &self.stall));
        }
        for emitter in &self.shared {
            builder = builder.shared_emitter(emitter);
        }
        self.observers.push(builder.build().unwrap());
        self.feeds.push(feed);
        self.hang.push(handles);
    }

    async fn play(&self, plan: &Plan) {
        for (feed, observer) in self.feeds.iter().zip(&plan.observers) {
            observer.records.iter().for_each(|record| feed.push(record));
            // Records through `process_batch` need somebody who still runs.
            if observer.direct.is_empty() {
                feed.end();
            }
        }
        let directs: Vec<_> = self.observers.iter().zip(&plan.observers).map(hand_in).collect();
        let (trigger, shutdown) = channel();
        let mut supervisor = Supervisor::new(self.shared.clone(), Duration::from_millis(100));
        for observer in &self.observers {
            supervisor = supervisor.observer(Arc::clone(observer));
        }
        let mut run = tokio::spawn(supervisor.run(shutdown));
        let watch = tokio::spawn(watch(self.observers.clone()));
        // One that waits an hour for its next start ends by a shutdown only.
        let patience = Duration::from_millis(plan.shutdown_ms.unwrap_or(500));
        if tokio::time::timeout(patience, &mut run).await.is_err() {
            trigger.begin();
            run.await.unwrap();
        }
        for direct in directs {
            tokio::task::spawn_blocking(move || direct.join().unwrap()).await.unwrap();
        }
        watch.abort();
        if let Err(error) = watch.await {
            assert!(error.is_cancelled(), "{error}");
        }
    }
}

/// Hands records in from another thread, until it is told that the end has come.
fn hand_in(
    (observer, plan): (&Arc<ObserverRuntime>, &ObserverPlan),
) -> std::thread::JoinHandle<()> {
    let (observer, direct) = (Arc::clone(observer), plan.direct.clone());
    std::thread::spawn(move || {
        let mut started = false;
        for batch in direct.chunks(7) {
            let records: Vec<_> = batch.iter().map(|bytes| record(bytes)).collect();
            let mut tries = 0;
            while let Err(error) = observer.process_batch(&records) {
                let not_running = matches!(error, ProcessEventError::NotRunning { .. });
                let refused = not_running || matches!(error, ProcessEventError::Down { .. });
                tries += 1;
                if !refused || (started && not_running) || tries > 20 {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            started = true;
        }
    })
}

/// All counters of a ledger, which only rise.
fn counters(ledger: &ObserverLedger) -> Vec<u64> {
    let mut all = vec![ledger.records.received, ledger.records.ignored, ledger.records.processed];
    all.extend(ledger.records.failed.iter().map(|f| f.records));
    let events = [ledger.events.produced, ledger.events.sampled_out, ledger.events.routed];
    all.extend(events.iter().flat_map(|t| [t.occurrences, t.envelopes]));
    for lane in &ledger.lanes {
        let tallies = [lane.routed, lane.delivered, lane.rejected].into_iter();
        let dropped = lane.dropped.iter().map(|d| d.tally);
        all.extend(tallies.chain(dropped).flat_map(|t| [t.occurrences, t.envelopes]));
    }
    all
}

/// Reads the ledgers while they are written to.
async fn watch(observers: Vec<Arc<ObserverRuntime>>) {
    let mut before: Vec<Vec<u64>> = Vec::new();
    loop {
        let now: Vec<_> = observers.iter().map(|o| counters(&o.ledger())).collect();
        for (before, now) in before.iter().zip(&now) {
            assert!(before.iter().zip(now).all(|(b, n)| b <= n), "{before:?}\n{now:?}");
        }
        for lane in observers.iter().flat_map(|o| o.ledger().lanes) {
            assert_eq!(lane.difference, 0, "a lane's line adds up at any moment");
        }
        before = now;
        tokio::time::sleep(Duration::from_micros(300)).await;
    }
}

fn nothing_is_left(ledger: &ObserverLedger) {
    assert!(ledger.is_exact(), "{:?}\n{ledger:#?}", ledger.differences());
    assert_eq!(ledger.records.processing, 0, "{ledger:#?}");
    assert_eq!(ledger.events.folding.occurrences, 0, "{ledger:#?}");
    assert_eq!(ledger.events.waiting.occurrences, 0);
    for lane in &ledger.lanes {
        assert_eq!((lane.queued.envelopes, lane.in_flight.envelopes), (0, 0), "{lane:#?}");
        let parts =
            lane.delivered.envelopes + lane.rejected.envelopes + lane.dropped_total().envelopes;
        assert_eq!(lane.routed.envelopes, parts, "envelopes add up in a lane too: {lane:#?}");
    }
}

/// What an emitter says that it saw is what the lanes say was delivered. What
/// was being sent at the deadline may have arrived or not.
fn emitters_agree(seen: &Seen, ledgers: &[ObserverLedger]) {
    for (name, seen) in seen {
        let lines: Vec<&LaneLine> =
            ledgers.iter().flat_map(|l| &l.lanes).filter(|l| l.emitter == *name).collect();
        let delivered: u64 = lines.iter().map(|l| l.delivered.occurrences).sum();
        let unsure = lines.iter().map(|l| l.dropped_for(DropReason::Unacknowledged).occurrences);
        let (seen, unsure) = (seen.load(Ordering::SeqCst), unsure.sum::<u64>());
        assert!(
            delivered <= seen && seen <= delivered + unsure,
            "{name} saw {seen} of {delivered} delivered and {unsure} unacknowledged"
        );
    }
}

async fn check(plan: Plan) {
    let stage = Stage::new(&plan);
    stage.play(&plan).await;
    let ledgers: Vec<_> = stage.observers.iter().map(|o| o.ledger()).collect();
    ledgers.iter().for_each(nothing_is_left);
    emitters_agree(&stage.seen, &ledgers);
    // What was left behind comes back: it changes nothing any more.
    stage.stall.open();
    stage.hang.iter().for_each(|handles| handles.hang.open());
    tokio::time::sleep(Duration::from_millis(5)).await;
    let after: Vec<_> = stage.observers.iter().map(|o| o.ledger()).collect();
    assert_eq!(ledgers, after);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 20,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    // Most of the time of a plan is waiting, so several are played at once.
    #[test]
    fn the_ledger_adds_up_whatever_happens(plans in prop::collection::vec(a_plan(), 1..=14)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let plays: Vec<_> = plans.into_iter().map(|plan| tokio::spawn(check(plan))).collect();
            for play in plays {
                play.await.unwrap();
            }
        });
    }
}
