//! Distinct events committed and synced per second, with indexes and eviction
//! running, beside the bare cost of the disk's flush. `cargo xtask bench store`
//! runs it; VAHTI_BENCH_DIR names the folder to write in.
#![allow(clippy::unwrap_used, reason = "a benchmark ends so")]

use std::io::Write;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use vahti_exporters::store::{Store, StoreConfig};
use vahti_runtime::clock::ClockPair;
use vahti_runtime::emitter::{EmitOutcome, EventEmitter};
use vahti_runtime::event::{
    CONNECTION_REFUSED, Comm, Endpoint, ErrorInfo, Event, EventData, Network, NetworkType,
    PROCESS_CRASH, Process, Severity, Transport,
};
use vahti_runtime::ids::{EventId, SpanId, TraceId};
use vahti_runtime::units::ByteSize;

const ROUNDS: usize = 5;
const EVENTS: u64 = 300_000;

fn main() {
    let folder =
        std::env::var_os("VAHTI_BENCH_DIR").unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
    let folder = tempfile::Builder::new().prefix("vahti-bench-").tempdir_in(folder).unwrap();
    let flush = median((0..ROUNDS).map(|_| flush_ms(folder.path())).collect());
    println!("store: distinct events, committed and synced (median of {ROUNDS}, one thread)");
    println!("  fdatasync of 4 KiB, median: {flush:.2} ms");
    for (batch, normal_only) in [(512, false), (4_096, false), (512, true)] {
        let mut rates = Vec::new();
        let mut p99 = Vec::new();
        let mut evicted = 0;
        for round in 0..ROUNDS {
            let path = folder.path().join(format!("{batch}-{normal_only}-{round}"));
            let mut config = StoreConfig::at(&path);
            // Small enough that most of the run evicts.
            config.max_bytes = ByteSize::mib(64);
            let store = Store::open(config, vec![], Duration::ZERO).unwrap();
            let mut emitter = store.emitter();
            let batches: Vec<Vec<Arc<Event>>> = (0..EVENTS / batch)
                .map(|b| (b * batch..(b + 1) * batch).map(|n| event(n, normal_only)).collect())
                .collect();
            let mut took = Vec::new();
            let start = Instant::now();
            for batch in &batches {
                let one = Instant::now();
                assert_eq!(emit(&mut emitter, batch), EmitOutcome::Delivered);
                took.push(one.elapsed().as_secs_f64() * 1e3);
            }
            rates.push((EVENTS / batch * batch) as f64 / start.elapsed().as_secs_f64());
            took.sort_by(f64::total_cmp);
            p99.push(took[took.len() * 99 / 100]);
            let line = store.own_line();
            assert_eq!(line.difference, 0);
            evicted = line.dropped_total().envelopes;
            drop((emitter, store));
            std::fs::remove_dir_all(&path).unwrap();
        }
        println!(
            "  commits of {batch:>5}{}: {:>7.0} events/s, p99 of a commit {:.1} ms, {evicted} of {EVENTS} evicted",
            if normal_only { ", none critical" } else { "" },
            median(rates),
            median(p99)
        );
    }
}

fn event(n: u64, normal_only: bool) -> Arc<Event> {
    let kind =
        if n.is_multiple_of(100) && !normal_only { &PROCESS_CRASH } else { &CONNECTION_REFUSED };
    let now = ClockPair::now().wall_ns + n * 10_000;
    let hash = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let endpoint = |n: u64| Endpoint {
        address: Some(std::net::Ipv4Addr::from((n as u32) | 0x0a00_0000).into()),
        port: Some(n as u16),
    };
    Arc::new(Event {
        id: EventId((u128::from(now / 1_000_000) << 80) | u128::from(hash)),
        time_ns: now,
        observed_ns: now + 50_000,
        trace_id: TraceId(u128::from(hash) << 64 | 7),
        span_id: Some(SpanId::from_hash(u128::from(hash))),
        duration_ns: Some(70_000),
        error: Some(ErrorInfo {
            code: "ECONNREFUSED".into(),
            message: "Connection refused".into(),
            cause: None,
        }),
        process: Some(Process {
            pid: Some(n as u32 % 30_000),
            name: Some(Comm::new(b"benchmark")),
            uid: Some(0),
            parent_pid: Some(1),
            start_ns: Some(now),
        }),
        data: EventData::Network(Network {
            transport: Transport::Tcp,
            network_type: NetworkType::Ipv4,
            local: endpoint(1),
            peer: endpoint(n),
        }),
        ..Event::new(kind, Severity::Error)
    })
}

fn emit(emitter: &mut impl EventEmitter, batch: &[Arc<Event>]) -> EmitOutcome {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(emitter.emit(batch)).poll(&mut context) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => unreachable!("the store blocks instead of waiting"),
    }
}

fn flush_ms(folder: &std::path::Path) -> f64 {
    let mut file = tempfile::tempfile_in(folder).unwrap();
    let times = (0..50).map(|_| {
        file.write_all(&[7; 4096]).unwrap();
        let start = Instant::now();
        file.sync_data().unwrap();
        start.elapsed().as_secs_f64() * 1e3
    });
    median(times.collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
