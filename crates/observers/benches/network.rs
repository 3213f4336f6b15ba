//! Recorded bytes through the real network processor, everything on: ids,
//! causality, sampling with rules, folding, a lane, a no-op emitter. Producer
//! and drain share one core, and nothing is lost.
//!
//! Once with the recording's own peers, so that most is folded as in a storm;
//! once with another peer in every record, so that beyond 4,096 keys all of it
//! goes on to the emitter. `cargo xtask bench network` runs it.
#![allow(clippy::unwrap_used, reason = "a benchmark ends so")]

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use vahti_observers::network::NetworkProcessor;
use vahti_observers::network::abi::Connection;
use vahti_observers::recording::Recording;
use vahti_runtime::config::{Config, SamplingRule};
use vahti_runtime::emitter::{Emission, EmitOutcome, EventEmitter};
use vahti_runtime::event::Event;
use vahti_runtime::observer::ObserverRuntime;
use vahti_runtime::processor::{EventProcessor, Output, RawRecord};
use vahti_runtime::units::ByteSize;

const ROUNDS: usize = 7;
const RECORDS: u64 = 1_000_000;
const BATCH: usize = 256;
/// As many different records as peers are made up.
const DISTINCT: usize = 16_384;

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

fn main() {
    pin_to_one_core();
    let text = include_str!("../tests/fixtures/network.rec");
    let recording = Recording::parse(text).unwrap();
    let processor = NetworkProcessor::new(recording.boot_id, recording.cgroup_version);
    // Without the proofs of life, which are no events.
    let recorded: Vec<RawRecord<'_>> = recording
        .records
        .iter()
        .map(|record| record.raw())
        .filter(|raw| matches!(processor.process(*raw), Ok(Output::One(_))))
        .collect();
    println!(
        "recorded bytes -> network processor -> … -> no-op emitter, on one core \
         (M records/s, median of {ROUNDS})"
    );
    let mut figures = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (different, figures) in [false, true].into_iter().zip(&mut figures) {
            figures.push(run(&recording, &recorded, different));
        }
    }
    for (name, mut figures) in
        ["its own peers (folded)", "another peer each"].into_iter().zip(figures)
    {
        figures.sort_by(f64::total_cmp);
        println!("  {name:<32} {:6.2}", figures[ROUNDS / 2]);
    }
}

fn run(recording: &Recording, recorded: &[RawRecord<'_>], different_peers: bool) -> f64 {
    let arrived = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&arrived);
    let mut config = Config::for_observer("network");
    config.backpressure.queue_size = 65_536;
    config.backpressure.max_bytes = Some(ByteSize(1 << 30));
    config.sampling.enabled = true;
    config.sampling.rules = (0..50)
        .map(|n| SamplingRule {
            event_type: "network".into(),
            subtype: format!("subtype-{n}"),
            rate: 0.5,
            keep_all: false,
        })
        .collect();
    let (boot_id, version) = (recording.boot_id, recording.cgroup_version);
    let observer = ObserverRuntime::builder(move || NetworkProcessor::new(boot_id, version))
        .config(config)
        .boot_id(boot_id)
        .emitter(move || Counter(Arc::clone(&count)))
        .build()
        .unwrap();
    let bytes = records_of(recorded, different_peers);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (trigger, shutdown) = vahti_runtime::shutdown::channel();
    let took = runtime.block_on(async {
        let run = tokio::spawn(Arc::clone(&observer).run(shutdown));
        observer.started().await;
        let took = produce(&observer, recorded, &bytes, &arrived);
        trigger.begin();
        run.await.unwrap().unwrap();
        took
    });
    let ledger = observer.ledger();
    assert!(ledger.is_exact(), "{ledger:#?}");
    assert_eq!(ledger.lanes[0].delivered.occurrences, RECORDS);
    RECORDS as f64 / took / 1e6
}

fn records_of(recorded: &[RawRecord<'_>], different_peers: bool) -> Vec<Vec<u8>> {
    let peer = offset_of!(Connection, peer_port);
    recorded
        .iter()
        .cycle()
        .take(DISTINCT)
        .enumerate()
        .map(|(n, raw)| {
            let mut bytes = raw.bytes.to_vec();
            if different_peers {
                bytes[peer..peer + 2].copy_from_slice(&(n as u16).to_ne_bytes());
            }
            bytes
        })
        .collect()
}

fn produce(
    observer: &Arc<ObserverRuntime>,
    recorded: &[RawRecord<'_>],
    bytes: &[Vec<u8>],
    arrived: &AtomicU64,
) -> f64 {
    let first = recorded[0];
    let start = Instant::now();
    let mut made = 0;
    while made < RECORDS {
        let batch: Vec<RawRecord<'_>> = (made..RECORDS.min(made + BATCH as u64))
            .map(|n| RawRecord {
                boot_ns: first.boot_ns + n,
                wall_ns: first.wall_ns + n,
                seq: n,
                bytes: &bytes[n as usize % DISTINCT],
                ..first
            })
            .collect();
        made += batch.len() as u64;
        observer.process_batch(&batch).unwrap();
        // What was folded never arrives by itself; what is queued must fit.
        while observer.ledger().lanes[0].queued.envelopes > 32_768 {
            std::thread::yield_now();
        }
    }
    while observer.ledger().lanes[0].queued.envelopes > 0 {
        std::thread::yield_now();
    }
    assert!(arrived.load(Ordering::Relaxed) > 0);
    start.elapsed().as_secs_f64()
}

fn pin_to_one_core() {
    // SAFETY: the set is plain memory of the right size, valid for the calls.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(0, &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set), 0);
    }
}
