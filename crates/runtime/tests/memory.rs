//! What is said to be the most that is kept in memory, counted block by block.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vahti_runtime::config::Config;
use vahti_runtime::delivery::{EmitterConfig, EmitterHandle};
use vahti_runtime::emitter::EventEmitter;
use vahti_runtime::event::{Custom, ErrorInfo, Event, EventData, EventKind, Severity, Value};
use vahti_runtime::ids::EntityId;
use vahti_runtime::memory::CacheLimits;
use vahti_runtime::observer::ObserverRuntime;
use vahti_runtime::processor::{EventProcessor, Output, ProcessError, RawRecord};
use vahti_runtime::shutdown::channel;
use vahti_runtime::testing::FakeSource;
use vahti_runtime::units::ByteSize;

#[path = "stage/counting.rs"]
mod counting;
#[path = "stage/misbehaving.rs"]
mod misbehaving;
use counting::{MOST, NOW};
use misbehaving::{CRITICAL, Gate, Moody, NORMAL, STORM, assert_exact};

/// Makes events of all sizes, no two alike.
struct Various;

impl EventProcessor for Various {
    fn name(&self) -> &str {
        "various"
    }

    fn process(&self, record: RawRecord<'_>) -> Result<Output, ProcessError> {
        let number = u64::from_le_bytes(record.bytes.try_into().unwrap());
        let kind: &'static EventKind = match number % 20 {
            0 => &CRITICAL,
            1..10 => &STORM,
            _ => &NORMAL,
        };
        let mut event = Event::new(kind, Severity::Error);
        // Each key several times, so that there are summaries.
        let key = number % 5_000;
        let code = format!("{key:x>40}").into();
        event.error = Some(ErrorInfo { code, message: "various".into(), cause: None });
        event.entity = Some(EntityId::named(&key.to_string()));
        let text = "t".repeat((number % 64) as usize * 100);
        let list = (0..number % 7).map(|_| Value::Text("v".repeat(30).into())).collect();
        event.data = EventData::Custom(Box::new(Custom {
            schema: "https://example.com/various".into(),
            attributes: vec![
                (format!("key-{number}").into(), Value::Text(text.into())),
                ("list".into(), Value::List(list)),
            ],
        }));
        Ok(event.into())
    }
}

#[tokio::test]
async fn a_storm_before_an_emitter_that_stalls_takes_what_was_said_and_no_more() {
    const LANE: usize = 2 << 20;
    const BATCH: usize = 256 << 10;
    const COUNT: u64 = 40_000;
    let gate = Arc::new(Gate::default());
    let stalled = Arc::clone(&gate);
    let emitter = move || -> Box<dyn EventEmitter> {
        Box::new(Moody {
            name: "stalled".to_owned(),
            critical: false,
            moods: Arc::default(),
            stalled: Some(Arc::clone(&stalled)),
            arrived: Arc::default(),
            closed: Arc::default(),
        })
    };
    let served = EmitterConfig { max_batch_bytes: BATCH, ..EmitterConfig::default() };
    let emitter = EmitterHandle::start(emitter, served).unwrap();
    let mut config = Config::for_observer("various");
    config.backpressure.max_bytes = Some(ByteSize(LANE as u64));
    config.health.hang_timeout = vahti_runtime::units::HumanDuration(Duration::from_secs(60));
    let caches = CacheLimits { fold_bytes: 1 << 20, ..CacheLimits::default() };
    let (source, feed) = FakeSource::new();
    let observer = ObserverRuntime::builder(|| Various)
        .config(config)
        .caches(caches)
        .source(source)
        .shared_emitter(&emitter)
        .build()
        .unwrap();
    let (trigger, shutdown) = channel();
    let before = NOW.load(Ordering::SeqCst);
    MOST.store(before, Ordering::SeqCst);
    let run = tokio::spawn(Arc::clone(&observer).run(shutdown));
    for number in 0..COUNT {
        feed.push(&number.to_le_bytes());
        // What the feed itself holds is not what this is about.
        while feed.unread() > 100 {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }
    while observer.ledger().records.processed < COUNT {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let most = MOST.load(Ordering::SeqCst) - before;
    let parts: usize = caches.parts().iter().map(|part| part.bytes).sum();
    let said = parts + LANE + BATCH;
    println!("{most} bytes were kept at the most, {said} were said");
    assert!(most <= said, "{most}, {said}");
    assert!(most > LANE + BATCH, "the lane was full: {most}");
    let ledger = observer.ledger();
    assert!(ledger.lanes[0].dropped.iter().any(|d| d.tally.occurrences > 0), "{ledger:?}");
    assert_exact(&observer);
    gate.open();
    trigger.begin();
    run.await.unwrap().unwrap();
}
