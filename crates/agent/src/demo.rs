//! `vahti demo`: makes faults that harm nobody, and shows each being found.
//!
//! The faults are real and go the real way: kernel, ring, processor, lane,
//! emitter. They touch loopback, processes of our own, and a network namespace
//! and control groups that are made for it and removed.

mod faults;
mod unanswered;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use serde::Serialize;
use vahti_ebpf::cgroup::Hierarchy;
use vahti_ebpf::proof::{ProbeState, ProbeStates};
use vahti_exporters::to_text_line;
use vahti_runtime::clock::ClockPair;
use vahti_runtime::delivery::{EmitterConfig, EmitterHandle};
use vahti_runtime::emitter::{Emission, EmitOutcome, EventEmitter};
use vahti_runtime::event::Event;
use vahti_runtime::memory::CacheLimits;
use vahti_runtime::observer::ObserverRuntime;
use vahti_runtime::shutdown;
use vahti_runtime::supervisor::Supervisor;

use self::faults::{FAULTS, Fault, Trace};
use crate::config::Config;
use crate::losses;
use crate::output::{FAILURE, Failed, Outcome, SUCCESS, print};
use crate::proofs::ToAgents;
use crate::table::wrap;
use crate::wiring;

/// How long a fault has to be found.
const PATIENCE: Duration = Duration::from_secs(3);

/// How wide it is shown, in columns.
const WIDTH: usize = 80;

/// Makes each fault and tells what was found. Ends with 0 if every one that
/// could be made was, and the ledger adds up.
pub(crate) fn demo(json: bool) -> Outcome {
    let mut agent = Agent::start()?;
    let mut all_found = true;
    let mut shown = Vec::new();
    for fault in &FAULTS {
        let result = agent.show(fault);
        all_found &= !matches!(result.outcome, Verdict::NotFound);
        if json {
            shown.push(result);
        } else {
            print(&result.to_text())?;
        }
    }
    let differences = agent.stop();
    if json {
        let faults = serde_json::json!({ "faults": shown });
        print(&format!("{faults:#}\n"))?;
    }
    if !differences.is_empty() {
        return Err(Failed::failure(differences.join("\n")));
    }
    Ok(if all_found { SUCCESS } else { FAILURE })
}

/// A fault and what became of it.
#[derive(Debug, Serialize)]
struct Shown {
    fault: &'static str,
    what: &'static str,
    #[serde(flatten)]
    outcome: Verdict,
}

/// Whether a fault was found.
#[derive(Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
enum Verdict {
    /// It was: how long after the kernel's moment, and the event.
    Found { latency_us: u64, event: Arc<Event> },
    /// It was made, and not found.
    NotFound,
    /// It could not be made here.
    NotMade { why: String },
}

impl Shown {
    fn to_text(&self) -> String {
        let mut out = String::new();
        match &self.outcome {
            Verdict::Found { latency_us, event } => {
                let ms = *latency_us as f64 / 1e3;
                wrap(&mut out, "found      ", &format!("in {ms:.2} ms: {}", self.what), WIDTH);
                let mut line = Vec::new();
                to_text_line(event, false, &mut line);
                wrap(&mut out, "             ", String::from_utf8_lossy(&line).trim_end(), WIDTH);
            }
            Verdict::NotFound => wrap(&mut out, "NOT FOUND  ", self.what, WIDTH),
            Verdict::NotMade { why } => {
                wrap(&mut out, "not made   ", &format!("{}: {why}", self.what), WIDTH);
            }
        }
        out
    }
}

/// Observers that watch while the faults are made.
struct Agent {
    events: Receiver<(u64, Arc<Event>)>,
    stop: shutdown::ShutdownTrigger,
    running: Option<std::thread::JoinHandle<()>>,
    observers: Vec<Arc<ObserverRuntime>>,
}

impl Agent {
    fn start() -> Result<Self, Failed> {
        let config = Config::default();
        let (sender, events) = channel();
        let emitter = EmitterHandle::start(
            move || Box::new(Showing { sender: sender.clone() }),
            EmitterConfig::default(),
        )
        .map_err(|error| Failed::failure(wiring::describe(&error)))?;
        let emitters = [emitter];
        let hierarchy = Hierarchy::detect();
        let opened = wiring::open(&wiring::ALL, hierarchy, &ToAgents::new(None))
            .map_err(|error| wiring::refusal(&error))?;
        let mut supervisor = Supervisor::new(emitters.to_vec(), Duration::from_secs(1));
        let (mut probes, mut observers) = (Vec::new(), Vec::new());
        for (name, source) in wiring::ALL.into_iter().zip(opened) {
            let source = source.map_err(|error| wiring::refusal(&error))?;
            probes.push(source.probes());
            let caches = CacheLimits::default();
            let observer = wiring::build(name, &config, caches, hierarchy, source, &emitters)?;
            supervisor = supervisor.observer(Arc::clone(&observer));
            observers.push(observer);
        }
        let (stop, begun) = shutdown::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|error| Failed::failure(format!("cannot start: {error}")))?;
        let running = std::thread::Builder::new()
            .name("observers".to_owned())
            .spawn(move || drop(runtime.block_on(supervisor.run(begun))))
            .map_err(|error| Failed::failure(format!("cannot start: {error}")))?;
        wait_for_proof(&probes);
        Ok(Agent { events, stop, running: Some(running), observers })
    }

    fn show(&mut self, fault: &Fault) -> Shown {
        let outcome = match (fault.make)() {
            Ok(trace) => self.find(fault.subtype, &trace),
            Err(error) => Verdict::NotMade { why: error.to_string() },
        };
        Shown { fault: fault.subtype, what: fault.what, outcome }
    }

    fn find(&self, subtype: &str, trace: &Trace) -> Verdict {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok((seen_ns, event)) = self.events.recv_timeout(left) else {
                return Verdict::NotFound;
            };
            if event.kind.subtype() == subtype && trace.is_of(&event) {
                let latency_us = seen_ns.saturating_sub(event.time_ns) / 1_000;
                return Verdict::Found { latency_us, event };
            }
        }
    }

    /// What does not add up then.
    fn stop(&mut self) -> Vec<String> {
        self.stop.begin();
        if let Some(running) = self.running.take()
            && running.join().is_err()
        {
            tracing::error!("the observers did not end as they should");
        }
        self.observers.iter().flat_map(|observer| losses::differences(&observer.ledger())).collect()
    }
}

/// Waits until every probe saw a fact of our own making, or has had its time.
fn wait_for_proof(probes: &[Arc<ProbeStates>]) {
    let begun = Instant::now();
    let is_waited_for =
        |state: &ProbeState| matches!(state, ProbeState::New | ProbeState::Attached);
    while begun.elapsed() < PATIENCE
        && probes.iter().flat_map(|p| p.all()).any(|report| is_waited_for(&report.state))
    {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Hands every event over at once, with the time at which it came.
struct Showing {
    sender: Sender<(u64, Arc<Event>)>,
}

impl EventEmitter for Showing {
    fn name(&self) -> &str {
        "demo"
    }

    fn emit<'a>(&'a mut self, batch: &'a [Arc<Event>]) -> Emission<'a, EmitOutcome> {
        let now_ns = ClockPair::now().wall_ns;
        for event in batch {
            // Nobody looks any more once the demo is over.
            if self.sender.send((now_ns, Arc::clone(event))).is_err() {
                break;
            }
        }
        Box::pin(std::future::ready(EmitOutcome::Delivered))
    }
}
