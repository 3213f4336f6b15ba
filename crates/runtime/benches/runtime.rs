//! The runtime's own figures: queue, sampler, and bytes to a no-op emitter.
//!
//! Rounds of all contenders are interleaved and medians printed, as the
//! machines that this runs on are noisy. `cargo xtask bench` runs it.

#![allow(clippy::unwrap_used, reason = "a benchmark ends so")]

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crossbeam_queue::ArrayQueue;
use vahti_runtime::config::{Config, DropPolicy, SamplingConfig, SamplingRule};
use vahti_runtime::emitter::{Emission, EmitOutcome, EventEmitter};
use vahti_runtime::event::{Event, EventKind, Priority, Severity, from_json_line, to_json_line};
use vahti_runtime::ids::{EntityId, TraceId, identity_hash};
use vahti_runtime::observer::ObserverRuntime;
use vahti_runtime::processor::{EventProcessor, Output, ProcessError, RawRecord, RecordKind};
use vahti_runtime::queue::{BoundedQueue, QueueConfig};
use vahti_runtime::sampler::Sampler;
use vahti_runtime::units::ByteSize;

const ROUNDS: usize = 7;

/// `cargo bench -p vahti-runtime -- queue` runs one part; no word runs all.
fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let parts: [(&str, fn()); 4] =
        [("queue", queues), ("sampler", samplers), ("pipeline", pipelines), ("lines", lines)];
    for (name, part) in parts {
        if words.is_empty() || words.iter().any(|word| name.contains(word)) {
            part();
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What is measured: a name, and one round of it.
type Contender = (String, Box<dyn FnMut() -> f64>);

/// Runs each contender once a round and returns the medians.
fn interleaved(contenders: &mut [Contender]) -> Vec<(String, f64)> {
    let mut figures = vec![Vec::new(); contenders.len()];
    for _ in 0..ROUNDS {
        for (figure, (_, run)) in figures.iter_mut().zip(contenders.iter_mut()) {
            figure.push(run());
        }
    }
    let names = contenders.iter().map(|(name, _)| name.clone());
    names.zip(figures.into_iter().map(median)).collect()
}

fn ns_per(operations: u64, f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_nanos() as f64 / operations as f64
}

const QUEUE: usize = 10_000;
const PUSHES: u64 = 1_000_000;

fn queues() {
    println!("queue of {QUEUE}, full, one push = one dropped (ns/push, median of {ROUNDS})");
    let mut contenders: Vec<Contender> = Vec::new();
    for policy in [DropPolicy::Oldest, DropPolicy::Newest, DropPolicy::Random] {
        let config = QueueConfig { capacity: QUEUE, max_bytes: usize::MAX, policy };
        let queue = BoundedQueue::new(config);
        for n in 0..QUEUE {
            queue.enqueue(n as u64, Priority::Normal, 400);
        }
        let run = move || {
            ns_per(PUSHES, || {
                for n in 0..PUSHES {
                    black_box(queue.enqueue_or_drop(black_box(n), Priority::Normal, 400));
                }
            })
        };
        contenders.push((format!("BoundedQueue {policy:?}"), Box::new(run)));
    }
    let array = ArrayQueue::new(QUEUE);
    for n in 0..QUEUE {
        array.force_push(n as u64);
    }
    let run = move || {
        ns_per(PUSHES, || {
            for n in 0..PUSHES {
                black_box(array.force_push(black_box(n)));
            }
        })
    };
    contenders.push(("crossbeam ArrayQueue force_push".into(), Box::new(run)));
    let deque = Mutex::new((0..QUEUE as u64).collect::<VecDeque<u64>>());
    let run = move || {
        ns_per(PUSHES, || {
            for n in 0..PUSHES {
                let mut deque = deque.lock().unwrap();
                if deque.len() == QUEUE {
                    black_box(deque.pop_front());
                }
                deque.push_back(black_box(n));
            }
        })
    };
    contenders.push(("Mutex<VecDeque>".into(), Box::new(run)));
    for (name, ns) in interleaved(&mut contenders) {
        println!("  {name:<32} {ns:6.1}");
    }
}

static RULED: EventKind = EventKind::custom("bench.ruled", "bench", "subtype-37", Priority::Normal);

/// Each halves a subtype of its own.
fn rules(count: usize) -> Vec<SamplingRule> {
    (0..count)
        .map(|n| SamplingRule {
            event_type: "bench".into(),
            subtype: format!("subtype-{n}"),
            rate: 0.5,
            keep_all: false,
        })
        .collect()
}

fn samplers() {
    println!("sampler (ns/decision, median of {ROUNDS})");
    let mut contenders: Vec<Contender> = Vec::new();
    for count in [0, 5, 50] {
        let config = SamplingConfig { enabled: true, default_rate: 0.1, rules: rules(count) };
        let sampler = Sampler::new(&config);
        let traces: Vec<TraceId> = (0..1024u32)
            .map(|n| TraceId::from_hash(identity_hash("bench", &[&n.to_le_bytes()])))
            .collect();
        let run = move || {
            ns_per(PUSHES, || {
                for n in 0..PUSHES as usize {
                    let trace = traces[n % 1024];
                    black_box(sampler.decide(black_box(&RULED), Severity::Info, trace));
                }
            })
        };
        contenders.push((format!("{count} rules"), Box::new(run)));
    }
    for (name, ns) in interleaved(&mut contenders) {
        println!("  {name:<32} {ns:6.1}");
    }
}

/// Lines of events that built-in observers made.
const LINES: &str = include_str!("../src/event/json/decode/golden.jsonl");
const ROUNDS_OF_LINES: u64 = 20_000;

/// An event to its JSON line, and back.
fn lines() {
    println!("an event as a JSON line (µs/event, median of {ROUNDS})");
    let mut contenders: Vec<Contender> = Vec::new();
    for line in LINES.lines() {
        let event = from_json_line(line.as_bytes()).unwrap();
        let name = format!("{} ({} bytes)", event.kind.subtype(), line.len());
        let mut out = Vec::new();
        let write = move || {
            ns_per(ROUNDS_OF_LINES, || {
                for _ in 0..ROUNDS_OF_LINES {
                    out.clear();
                    to_json_line(black_box(&event), &mut out);
                    black_box(&out);
                }
            }) / 1e3
        };
        let read = move || {
            ns_per(ROUNDS_OF_LINES, || {
                for _ in 0..ROUNDS_OF_LINES {
                    drop(black_box(from_json_line(black_box(line.as_bytes()))));
                }
            }) / 1e3
        };
        contenders.push((format!("{name}, written"), Box::new(write)));
        contenders.push((format!("{name}, read"), Box::new(read)));
    }
    for (name, us) in interleaved(&mut contenders) {
        println!("  {name:<46} {us:6.2}");
    }
}

static NOTHING: EventKind =
    EventKind::custom("bench.nothing", "bench", "nothing", Priority::Normal);

/// Makes an event of every record, about one of 1,000 entities.
struct NoOp {
    entities: Vec<EntityId>,
}

impl NoOp {
    fn new() -> Self {
        NoOp { entities: (0..1_000).map(|n| EntityId::named(&format!("pod-{n}"))).collect() }
    }
}

impl EventProcessor for NoOp {
    fn name(&self) -> &str {
        "bench"
    }

    fn process(&self, record: RawRecord<'_>) -> Result<Output, ProcessError> {
        let mut event = Event::new(&NOTHING, Severity::Info);
        event.entity = self.entities.get(record.seq as usize % 1_000).copied();
        Ok(event.into())
    }
}

/// Counts what arrives.
struct Counter(Arc<AtomicU64>);

impl EventEmitter for Counter {
    fn name(&self) -> &str {
        "no-op"
    }

    fn emit<'a>(&'a mut self, batch: &'a [Arc<Event>]) -> Emission<'a, EmitOutcome> {
        self.0.fetch_add(batch.len() as u64, Ordering::Relaxed);
        Box::pin(std::future::ready(EmitOutcome::Delivered))
    }
}

const EVENTS: u64 = 2_000_000;
const BATCH: usize = 256;

/// Bytes to the no-op emitter; returns millions of events a second. A producer
/// waits while the lane is half full, so nothing is lost.
fn pipeline(producers: u64, one_core: bool) -> f64 {
    let arrived = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&arrived);
    if one_core {
        pin(Some(0));
    }
    let mut config = Config::for_observer("bench");
    config.backpressure.queue_size = 65_536;
    config.backpressure.max_bytes = Some(ByteSize(1 << 30));
    // No rule names the events of this one: each is looked up, and kept.
    config.sampling = SamplingConfig { enabled: true, default_rate: 1.0, rules: rules(50) };
    let observer = ObserverRuntime::builder(NoOp::new)
        .config(config)
        .concurrency(producers as usize)
        .emitter(move || Counter(Arc::clone(&count)))
        .build()
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (trigger, shutdown) = vahti_runtime::shutdown::channel();
    let took = runtime.block_on(async {
        let run = tokio::spawn(Arc::clone(&observer).run(shutdown));
        observer.started().await;
        let took = produce(&observer, producers, &arrived);
        trigger.begin();
        run.await.unwrap().unwrap();
        took
    });
    let ledger = observer.ledger();
    assert!(ledger.is_exact(), "{ledger:#?}");
    assert_eq!(ledger.lanes[0].delivered.occurrences, EVENTS);
    if one_core {
        pin(None);
    }
    EVENTS as f64 / took / 1e6
}

fn produce(observer: &Arc<ObserverRuntime>, producers: u64, arrived: &Arc<AtomicU64>) -> f64 {
    let start = Instant::now();
    let failed = AtomicBool::new(false);
    let made = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..producers {
            scope.spawn(|| {
                let payload = [7u8; 64];
                let records: Vec<RawRecord<'_>> = (0..BATCH as u64)
                    .map(|seq| RawRecord {
                        kind: RecordKind::Kernel,
                        boot_ns: seq + 1,
                        wall_ns: 1_700_000_000_000_000_000 + seq,
                        cpu: 0,
                        seq,
                        bytes: &payload,
                    })
                    .collect();
                loop {
                    let before = made.fetch_add(BATCH as u64, Ordering::Relaxed);
                    if before >= EVENTS {
                        return;
                    }
                    let n = BATCH.min((EVENTS - before) as usize);
                    while before.saturating_sub(arrived.load(Ordering::Relaxed)) > 32_768 {
                        std::thread::yield_now();
                    }
                    if observer.process_batch(&records[..n]).is_err() {
                        failed.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    while arrived.load(Ordering::Relaxed) < EVENTS {
        std::thread::yield_now();
    }
    assert!(!failed.load(Ordering::Relaxed));
    start.elapsed().as_secs_f64()
}

/// Pins this thread, and those that it starts, to one core, or frees it.
fn pin(core: Option<usize>) {
    // SAFETY: the set is plain memory of the right size, valid for the calls.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        match core {
            Some(core) => libc::CPU_SET(core, &mut set),
            None => (0..libc::CPU_SETSIZE as usize).for_each(|c| libc::CPU_SET(c, &mut set)),
        }
        assert_eq!(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set), 0);
    }
}

fn pipelines() {
    println!("an event takes {} bytes", size_of::<Event>());
    println!(
        "bytes -> no-op processor -> causality -> sampler -> lane -> no-op emitter, \
         nothing lost (M events/s, median of {ROUNDS})"
    );
    let mut contenders: Vec<Contender> = vec![
        ("1 producer and drain on 1 core".into(), Box::new(|| pipeline(1, true))),
        ("1 producer on 2 cores".into(), Box::new(|| pipeline(1, false))),
        ("4 producers on 2 cores".into(), Box::new(|| pipeline(4, false))),
    ];
    for (name, rate) in interleaved(&mut contenders) {
        println!("  {name:<32} {rate:6.2}");
    }
}
