//! Prints what the observers' programs write, decoded, with the counters at
//! the end. `print_records [seconds] [folder]`; with a folder, keeps each
//! record's bytes there, as fixtures are made.

use std::io::Write as _;
use std::time::{Duration, Instant};

use vahti_ebpf::abi;
use vahti_ebpf::cgroup::Hierarchy;
use vahti_ebpf::loader::open;
use vahti_ebpf::source::RingSource;
use vahti_observers::container::abi::{OomKill, ProcessExit};
use vahti_observers::network::abi::Connection;
use vahti_observers::{container, network};
use vahti_runtime::source::{RecordBatch, Source as _, SourceLedger as _};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let seconds: u64 = args.next().map_or(Ok(10), |a| a.parse())?;
    let folder = args.next();
    let start = Instant::now();
    let hierarchy = Hierarchy::detect();
    let mut opened = open(&[network::OBJECT, container::OBJECT], hierarchy)?.into_iter();
    eprintln!("opened after {:?}, RSS {} KiB", start.elapsed(), rss_kib());
    let mut sources = Vec::new();
    if let Some(manager) = opened.next() {
        sources.push(network::source(manager?)?);
    }
    if let Some(manager) = opened.next() {
        sources.push(container::source(manager?, hierarchy)?);
    }
    for source in &mut sources {
        source.start()?;
    }
    let _stats = vahti_ebpf::manager::count_runs()?;
    eprintln!("started after {:?}, RSS {} KiB", start.elapsed(), rss_kib());
    let mut batch = RecordBatch::new(256, 1 << 20);
    let mut kept = 0;
    while start.elapsed() < Duration::from_secs(seconds) {
        for source in &mut sources {
            read(source, &mut batch, folder.as_deref(), &mut kept)?;
        }
    }
    for source in &sources {
        report(source);
    }
    eprintln!("RSS {} KiB", rss_kib());
    Ok(())
}

fn read(
    source: &mut RingSource,
    batch: &mut RecordBatch,
    folder: Option<&str>,
    kept: &mut u32,
) -> Result<(), Failure> {
    batch.clear();
    source.read(batch, Some(Duration::from_millis(5)))?;
    let mut out = std::io::stdout().lock();
    for record in batch.iter() {
        print(&mut out, source.name(), record.bytes)?;
        if let Some(folder) = folder {
            std::fs::write(format!("{folder}/{kept:05}.{}", source.name()), record.bytes)?;
            *kept += 1;
        }
    }
    Ok(())
}

fn print(out: &mut impl std::io::Write, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let path =
        |from: usize| String::from_utf8_lossy(&bytes[from.min(bytes.len())..]).replace('\0', " < ");
    if let (Some((c, _)), "network") = (abi::split::<Connection>(bytes), name) {
        let comm = String::from_utf8_lossy(&c.owner.comm);
        return writeln!(
            out,
            "connection state={} err={} soft={} retrans={} kind={} flags={} tgid={} comm={} {:?}:{} -> {:?}:{} {}us cgroup={} {}",
            c.old_state,
            c.err,
            c.err_soft,
            c.retransmits,
            c.owner_kind,
            c.header.flags,
            c.owner.tgid,
            comm.trim_end_matches('\0'),
            &c.local_addr[..4],
            c.local_port,
            &c.peer_addr[..4],
            c.peer_port,
            c.header.boot_ns.saturating_sub(c.begin_boot_ns) / 1000,
            c.owner.cgroup_id,
            path(152)
        );
    }
    let (header, _) = abi::split::<abi::Header>(bytes).unwrap_or_else(|| std::process::abort());
    if header.kind == container::abi::KIND_PROCESS_EXIT {
        if let Some((exit, _)) = abi::split::<ProcessExit>(bytes) {
            return writeln!(out, "{exit:?} {}", path(128));
        }
    }
    if header.kind == container::abi::KIND_OOM_KILL {
        if let Some((kill, _)) = abi::split::<OomKill>(bytes) {
            return writeln!(out, "{kill:?} {}", path(168));
        }
    }
    writeln!(out, "{name} {header:?}")
}

fn report(source: &RingSource) {
    let ledger = source.ring_ledger();
    let mut err = std::io::stderr().lock();
    let _unused = writeln!(err, "{}: {:?} {:?}", source.name(), ledger.counts(), ledger.degraded());
    for cost in ledger.costs() {
        let c = cost.counters;
        let mean = c.run_time_ns.checked_div(c.runs).unwrap_or(0);
        let _unused = writeln!(
            err,
            "  {:20} {:8} runs {:6} ns each, {} missed",
            cost.program, c.runs, mean, c.missed
        );
    }
}

fn rss_kib() -> u64 {
    std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|s| s.split(' ').nth(1)?.parse::<u64>().ok())
        .map_or(0, |pages| pages * 4)
}
