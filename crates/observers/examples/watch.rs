//! Watches this machine with both observers and no agent: prints each event as
//! a JSON line and, at the end, the counters.
//!
//! `watch [seconds] [folder]`; with a folder, keeps the records there, as
//! `network.rec` and `container.rec`. Needs root.

use std::io::Write as _;
use std::time::{Duration, Instant};

use vahti_ebpf::cgroup::Hierarchy;
use vahti_ebpf::loader::{Object, open};
use vahti_ebpf::manager::count_runs;
use vahti_ebpf::source::RingSource;
use vahti_observers::container::{self, ContainerProcessor};
use vahti_observers::network::{self, NetworkProcessor};
use vahti_observers::recording::Recording;
use vahti_runtime::event::to_json_line;
use vahti_runtime::ids::BootId;
use vahti_runtime::processor::{EventProcessor, Output};
use vahti_runtime::source::{RecordBatch, Source as _, SourceLedger as _};

type Failure = Box<dyn std::error::Error>;

struct Observer {
    source: RingSource,
    processor: Box<dyn EventProcessor>,
    recording: Recording,
}

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let seconds: u64 = args.next().map_or(Ok(10), |a| a.parse())?;
    let folder = args.next();
    let begin = Instant::now();
    let mut observers = observers()?;
    eprintln!("opened after {:?}, RSS {} KiB", begin.elapsed(), rss_kib());
    for observer in &mut observers {
        observer.source.start()?;
    }
    let _counting = count_runs()?;
    eprintln!("started after {:?}, RSS {} KiB", begin.elapsed(), rss_kib());
    let mut batch = RecordBatch::new(256, 1 << 20);
    while begin.elapsed() < Duration::from_secs(seconds) {
        for observer in &mut observers {
            read(observer, &mut batch, folder.is_some())?;
        }
    }
    for Observer { source, recording, .. } in &observers {
        report(source);
        if let Some(folder) = &folder {
            let path = format!("{folder}/{}.rec", source.name());
            std::fs::write(path, recording.to_string())?;
        }
    }
    eprintln!("RSS {} KiB", rss_kib());
    Ok(())
}

fn observers() -> Result<Vec<Observer>, Failure> {
    let hierarchy = Hierarchy::detect();
    let version = hierarchy.version;
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let boot_id = BootId::parse(&boot_id).ok_or("no boot id")?;
    let recording = |object: Object| Recording::new(object.name, object.bytes, boot_id, version);
    let mut opened = open(&[network::OBJECT, container::OBJECT], hierarchy)?.into_iter();
    let mut next = || opened.next().ok_or("an object is missing");
    Ok(vec![
        Observer {
            source: network::source(next()??)?,
            processor: Box::new(NetworkProcessor::new(boot_id, version)),
            recording: recording(network::OBJECT),
        },
        Observer {
            source: container::source(next()??, hierarchy)?,
            processor: Box::new(ContainerProcessor::new(boot_id, version)),
            recording: recording(container::OBJECT),
        },
    ])
}

fn read(observer: &mut Observer, batch: &mut RecordBatch, keep: bool) -> Result<(), Failure> {
    batch.clear();
    observer.source.read(batch, Some(Duration::from_millis(5)))?;
    let mut lines = Vec::new();
    for record in batch.iter() {
        match observer.processor.process(record)? {
            Output::Nothing => {}
            Output::One(event) => to_json_line(&event, &mut lines),
            Output::Several(events) => events.iter().for_each(|e| to_json_line(e, &mut lines)),
        }
        if keep {
            observer.recording.push(record);
        }
    }
    std::io::stdout().lock().write_all(&lines)?;
    Ok(())
}

fn report(source: &RingSource) {
    let ledger = source.ring_ledger();
    eprintln!("{}: {:?} {:?}", source.name(), ledger.counts(), ledger.degraded());
    for cost in ledger.costs() {
        let c = cost.counters;
        let mean = c.run_time_ns.checked_div(c.runs).unwrap_or(0);
        eprintln!("  {:20} {:8} runs {mean:6} ns each, {} missed", cost.program, c.runs, c.missed);
    }
}

fn rss_kib() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|s| s.split(' ').nth(1)?.parse::<u64>().ok());
    pages.map_or(0, |pages| pages * 4)
}
