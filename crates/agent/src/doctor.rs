//! `vahti doctor`: attaches every probe, has each prove itself, and tells what
//! that means for every signal; and how the store stands.

mod folder;
mod signals;
pub(crate) mod store;

use std::time::{Duration, Instant};

use vahti_ebpf::cgroup::Hierarchy;
use vahti_ebpf::proof::{ProbeReport, ProbeState};
use vahti_runtime::source::{RecordBatch, Source};

use crate::cli::DoctorArgs;
use crate::config::settings;
use crate::output::{FAILURE, Failed, Outcome, SUCCESS, complain, print};
use crate::proofs::ToAgents;
use crate::report::{self, DoctorReport, MemoryReport};
use crate::wiring::{self, Opened, describe};
use crate::{control, socket};

/// How long probes have to prove themselves.
const PATIENCE: Duration = Duration::from_secs(2);

/// Tells what can be seen on this node, and kept. Ends with 0 if all of it can.
/// An agent that runs, such as the one at the socket, is told what is made for
/// that.
pub(crate) fn doctor(args: &DoctorArgs) -> Outcome {
    let config = settings::resolve(args.overrides(), |name| std::env::var_os(name))
        .map_err(|invalid| Failed::usage(invalid.to_string()))?;
    let socket = socket::path(args.socket.clone())?;
    let ledger = socket.and_then(|path| control::ask(&path, "ledger").ok());
    let memory = MemoryReport::of(&config, ledger.as_ref())?;
    let agents = ToAgents::new(args.socket.clone());
    let opened = wiring::open(&wiring::ALL, Hierarchy::detect(), &agents)
        .map_err(|error| wiring::refusal(&error))?;
    let signals = wiring::ALL
        .into_iter()
        .zip(opened)
        .flat_map(|(observer, opened)| signals::reports(observer, &examine(opened)))
        .collect();
    for untold in agents.untold() {
        complain(&format!("{untold}; it tells the faults that were made here as failures"));
    }
    let store = store::report(&config, ledger.as_ref());
    let emitters = report::emitters(ledger.as_ref());
    let report = DoctorReport { kernel: kernel(), signals, memory, store, emitters };
    print(&if args.json { report.to_json() } else { report.to_text() })?;
    Ok(if report.is_anything_missing() { FAILURE } else { SUCCESS })
}

fn kernel() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

/// How the probes of an observer stand, or why it has none.
fn examine(opened: Opened) -> Result<Vec<ProbeReport>, String> {
    let mut source = opened.map_err(|error| describe(&error))?;
    let probes = source.probes();
    source.start().map_err(|error| describe(&error))?;
    let mut batch = RecordBatch::new(256, 256 << 10);
    let begun = Instant::now();
    let unproven = |r: &ProbeReport| r.state == ProbeState::Attached;
    while begun.elapsed() < PATIENCE && probes.all().iter().any(unproven) {
        batch.clear();
        if source.read(&mut batch, Some(Duration::from_millis(50))).is_err() {
            break;
        }
    }
    source.stop();
    Ok(probes.all())
}
