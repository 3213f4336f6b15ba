//! `vahti doctor`: attaches every probe, has each prove itself, and tells.

use std::time::{Duration, Instant};

use vahti_ebpf::proof::{ProbeReport, ProbeState};
use vahti_runtime::source::{RecordBatch, Source};

use crate::output::{FAILURE, Outcome, SUCCESS, print};
use crate::report::{DoctorReport, SignalReport, State};
use crate::wiring::{self, Opened, describe};

/// How long probes have to prove themselves.
const PATIENCE: Duration = Duration::from_secs(2);

/// Tells what can be seen on this node. Ends with 0 if all of it can.
pub(crate) fn doctor(json: bool) -> Outcome {
    let opened = wiring::open(&wiring::ALL).map_err(|error| wiring::refusal(&error))?;
    let signals = wiring::ALL
        .into_iter()
        .zip(opened)
        .flat_map(|(observer, opened)| examine(observer, opened))
        .collect();
    let report = DoctorReport { kernel: kernel(), signals };
    print(&if json { report.to_json() } else { report.to_text() })?;
    Ok(if report.is_anything_missing() { FAILURE } else { SUCCESS })
}

fn kernel() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

fn examine(observer: &str, opened: Opened) -> Vec<SignalReport> {
    let missing = |why: String| {
        vec![SignalReport {
            observer: observer.to_owned(),
            signal: "all of it".to_owned(),
            state: State::Missing,
            mechanism: None,
            why: Some(why),
            remedy: Some("a kernel 5.8 or later with CONFIG_DEBUG_INFO_BTF".to_owned()),
            accuracy: None,
        }]
    };
    let mut source = match opened {
        Ok(source) => source,
        Err(error) => return missing(describe(&error)),
    };
    let probes = source.probes();
    if let Err(error) = source.start() {
        return missing(describe(&error));
    }
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
    probes.all().iter().map(|report| signal(observer, report)).collect()
}

fn signal(observer: &str, report: &ProbeReport) -> SignalReport {
    let probe = report.probe;
    let mechanism = format!("raw tracepoint {}", probe.tracepoint);
    let (state, why, remedy) = match &report.state {
        ProbeState::Proven { .. } => (State::Works, None, None),
        ProbeState::New | ProbeState::Attached => (
            State::Degraded,
            Some("attached, but it did not see a fact of our own making in time".to_owned()),
            Some("try again; if it stays, report the kernel's version".to_owned()),
        ),
        ProbeState::Refused(why) => (
            State::Missing,
            Some(why.clone()),
            Some("a kernel that has this tracepoint, with BTF".to_owned()),
        ),
    };
    SignalReport {
        observer: observer.to_owned(),
        signal: probe.signal.to_owned(),
        mechanism: (state != State::Missing).then_some(mechanism),
        state,
        why,
        remedy,
        accuracy: None,
    }
}
