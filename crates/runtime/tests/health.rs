//! The checks that every observer has, on an observer that runs.
#![cfg(not(shuttle))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

#[path = "stage/misbehaving.rs"]
mod misbehaving;

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use misbehaving::{Gate, Handles, Mood, Moody, until};
use vahti_runtime::config::Config;
use vahti_runtime::health::{Health, HealthStatus};
use vahti_runtime::observer::{ObserverRuntime, RunError};
use vahti_runtime::shutdown::{ShutdownTrigger, channel};
use vahti_runtime::testing::{FakeFeed, FakeSource};
use vahti_runtime::units::HumanDuration;

struct Stage {
    observer: Arc<ObserverRuntime>,
    feed: FakeFeed,
    trigger: ShutdownTrigger,
    run: tokio::task::JoinHandle<Result<(), RunError>>,
}

/// An observer with a lane of 100 to an emitter with these moods.
async fn stage(check_interval: Duration, moods: &[Mood], stalled: Option<Arc<Gate>>) -> Stage {
    let mut config = Config::for_observer("test");
    config.backpressure.queue_size = 100;
    config.health.check_interval = HumanDuration(check_interval);
    let moods = Arc::new(Mutex::new(moods.iter().copied().collect()));
    let make = move || Moody {
        name: "moody".into(),
        critical: false,
        moods: Arc::clone(&moods),
        stalled: stalled.clone(),
        arrived: Arc::new(AtomicU64::new(0)),
        closed: Arc::new(AtomicBool::new(false)),
    };
    let (source, feed) = FakeSource::new();
    let observer = ObserverRuntime::builder(Handles::default().factory("test"))
        .config(config)
        .source(source)
        .emitter(make)
        .build()
        .unwrap();
    let (trigger, shutdown) = channel();
    let run = tokio::spawn(Arc::clone(&observer).run(shutdown));
    observer.started().await;
    Stage { observer, feed, trigger, run }
}

const NEVER: Duration = Duration::from_secs(3_600);

impl Stage {
    async fn check(&self) -> HealthStatus {
        self.observer.health_checker().check_now().await
    }

    async fn end(self) {
        self.trigger.begin();
        self.run.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_source_is_degraded_while_it_loses_and_for_what_it_says() {
    let stage = stage(NEVER, &[], None).await;
    assert_eq!(stage.check().await, HealthStatus::healthy());
    stage.feed.lose(3);
    let lost = stage.check().await;
    assert_eq!(lost, HealthStatus::degraded("source: the kernel lost 3 records"));
    assert_eq!(stage.check().await, HealthStatus::healthy(), "none since");
    stage.feed.degrade(&["probe a: refused", "probe b: no proof"]);
    stage.feed.lose(1);
    let both = "source: probe a: refused; probe b: no proof; the kernel lost 1 records";
    assert_eq!(stage.check().await, HealthStatus::degraded(both));
    assert!(stage.observer.is_healthy(), "degraded still works");
    stage.feed.degrade(&[]);
    assert_eq!(stage.check().await, HealthStatus::healthy());
    let kernel = stage.observer.ledger().kernel.unwrap();
    assert_eq!((kernel.lost, kernel.difference), (4, 0));
    stage.end().await;
}

#[tokio::test]
async fn a_lane_that_is_nearly_full_is_degraded_until_it_is_not() {
    let gate = Arc::new(Gate::default());
    let stage = stage(NEVER, &[], Some(Arc::clone(&gate))).await;
    let queued = |n| {
        let observer = &stage.observer;
        until(move || observer.ledger().lanes[0].queued.envelopes == n)
    };
    // The first is the stalled emitter's, the others wait.
    stage.feed.push(b"normal");
    until(|| stage.observer.ledger().lanes[0].in_flight.envelopes == 1).await;
    for _ in 0..89 {
        stage.feed.push(b"normal");
    }
    queued(89).await;
    assert_eq!(stage.check().await, HealthStatus::healthy());
    stage.feed.push(b"normal");
    queued(90).await;
    let full = stage.check().await;
    assert_eq!(full, HealthStatus::degraded("lanes: the lane to moody is 90 % full"));
    gate.open();
    queued(0).await;
    assert_eq!(stage.check().await, HealthStatus::healthy());
    stage.end().await;
}

#[tokio::test]
async fn an_emitter_that_fails_is_degraded_until_a_batch_arrives() {
    let stage = stage(NEVER, &[Mood::Retry], None).await;
    let settled = |n| {
        let lane = move |o: &ObserverRuntime| o.ledger().lanes.remove(0);
        let observer = Arc::clone(&stage.observer);
        until(move || {
            let line = lane(&observer);
            line.delivered.envelopes + line.dropped_total().envelopes == n
        })
    };
    stage.feed.push(b"normal");
    settled(1).await;
    let failing = stage.check().await;
    assert_eq!(failing.health, Health::Degraded);
    assert!(failing.reason.starts_with("emitters: moody fails: Retry"), "{}", failing.reason);
    stage.feed.push(b"normal");
    settled(2).await;
    let observer = &stage.observer;
    // The state is told just after the account.
    for _ in 0..1_000 {
        if stage.check().await == HealthStatus::healthy() {
            break;
        }
    }
    assert_eq!(observer.health(), HealthStatus::healthy());
    stage.end().await;
}

#[tokio::test]
async fn an_observer_that_runs_checks_by_itself() {
    let stage = stage(Duration::from_millis(100), &[], None).await;
    stage.feed.degrade(&["no proof"]);
    until(|| stage.observer.health() == HealthStatus::degraded("source: no proof")).await;
    assert!(stage.observer.health_checker().last_check().is_some());
    stage.end().await;
}
