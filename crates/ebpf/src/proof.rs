//! Proof of life: each probe must see a harmless fact of our own making.
//!
//! A link says that a program is attached; it does not say that its tracepoint
//! fires, that it understands what it is given, or that anyone reads its ring.
//! So at the start and every hour an observer provokes facts that its own
//! programs must tell; they come back through the ring, marked, and are never
//! taken for failures.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use vahti_runtime::clock::boot_now_ns;

use crate::error::EbpfError;
use crate::kernel::KernelVersion;
use crate::manager::AyaManager;

/// How old a proof may be before the next is made.
pub const PROOF_PERIOD: Duration = Duration::from_secs(3600);
/// When to try again after one could not be made at all.
pub const PROOF_RETRY: Duration = Duration::from_secs(60);
/// How long a provoked fact may take to come back.
pub const PROOF_DEADLINE: Duration = Duration::from_secs(5);

/// One program, where it goes, and what is lost without it.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// The program's name in the object.
    pub program: &'static str,
    /// The raw tracepoint that it is attached to.
    pub tracepoint: &'static str,
    /// What the agent can't tell without it; in words for people.
    pub signal: &'static str,
    /// The first kernel that has the tracepoint.
    pub since: KernelVersion,
    /// The program's slot in `stats`, below [`SLOTS`](crate::ledger::SLOTS).
    pub slot: u32,
}

/// How an observer makes its probes prove themselves.
pub trait ProofOfLife: Send {
    /// Causes facts that every attached probe must see. What can't be caused
    /// is left out: its probe stays unproven and is reported by name.
    ///
    /// # Errors
    /// Nothing could be caused at all.
    fn provoke(&mut self, manager: &mut AyaManager) -> Result<(), EbpfError>;

    /// Our thread group id as the kernel knows it, asked before each time that
    /// facts are provoked: what others are told of us. `None` where what is
    /// provoked is nobody else's business.
    fn introduce(&mut self, _manager: &mut AyaManager) -> Option<u32> {
        None
    }

    /// Which probes a marked record proves: a bit a slot.
    fn proven_by(&self, record: &[u8]) -> u32;
}

/// Tells the other agents of this machine that facts of our own making are to
/// come: to them they would be failures.
pub trait Announce: Send + Sync {
    /// Comes back once they know, or can't be told. They forget it when what
    /// it returns is dropped. `tgid` is ours, as the kernel knows it.
    fn announce(&self, tgid: u32) -> Box<dyn Send>;
}

/// How a probe stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeState {
    /// It was never tried.
    New,
    /// The kernel refused it, and why.
    Refused(String),
    /// Attached; no proof has come yet.
    Attached,
    /// It saw a fact of our own making at this moment (boot clock).
    Proven {
        /// When.
        boot_ns: u64,
    },
}

/// A probe and how it stands; what `doctor` prints.
#[derive(Debug, Clone)]
pub struct ProbeReport {
    /// Which.
    pub probe: Probe,
    /// How it stands.
    pub state: ProbeState,
}

/// How the probes of a source stand, readable from any thread.
#[derive(Debug)]
pub struct ProbeStates {
    states: Mutex<Vec<ProbeReport>>,
}

impl ProbeStates {
    pub(crate) fn new(probes: &[Probe]) -> Self {
        let states =
            probes.iter().map(|probe| ProbeReport { probe: *probe, state: ProbeState::New });
        ProbeStates { states: Mutex::new(states.collect()) }
    }

    /// All of them, in the observer's order.
    #[must_use]
    pub fn all(&self) -> Vec<ProbeReport> {
        self.lock().clone()
    }

    /// What does not work or was not proven lately, a sentence each.
    #[must_use]
    pub fn degraded(&self) -> Vec<String> {
        let now = boot_now_ns();
        let reports = self.lock();
        reports.iter().filter_map(|r| complaint(r, now)).collect()
    }

    pub(crate) fn set(&self, slot: u32, state: ProbeState) {
        let mut states = self.lock();
        if let Some(report) = states.iter_mut().find(|r| r.probe.slot == slot) {
            report.state = state;
        }
    }

    pub(crate) fn prove(&self, slots: u32, boot_ns: u64) {
        for report in &mut *self.lock() {
            if slots & (1 << (report.probe.slot & 31)) != 0 {
                report.state = ProbeState::Proven { boot_ns };
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<ProbeReport>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is wrong with a probe, in a sentence; `None` if nothing is.
fn complaint(report: &ProbeReport, now_boot_ns: u64) -> Option<String> {
    let Probe { program, signal, .. } = report.probe;
    let limit = PROOF_PERIOD + PROOF_DEADLINE;
    match &report.state {
        ProbeState::Proven { boot_ns }
            if u128::from(now_boot_ns.saturating_sub(*boot_ns)) <= limit.as_nanos() =>
        {
            None
        }
        ProbeState::Proven { .. } => {
            Some(format!("can't tell {signal}: {program} no longer proves itself"))
        }
        ProbeState::Attached => Some(format!("may not tell {signal}: {program} is not proven yet")),
        ProbeState::New => Some(format!("can't tell {signal}: {program} is not attached")),
        ProbeState::Refused(why) => Some(format!("can't tell {signal}: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBE: Probe = Probe {
        program: "sees",
        tracepoint: "facts",
        signal: "facts",
        since: KernelVersion(5, 8),
        slot: 3,
    };

    fn after(state: ProbeState, now: u64) -> Option<String> {
        complaint(&ProbeReport { probe: PROBE, state }, now)
    }

    #[test]
    fn a_proof_counts_for_an_hour() {
        let hour = PROOF_PERIOD.as_nanos() as u64;
        let state = ProbeState::Proven { boot_ns: 7 };
        assert_eq!(after(state.clone(), 7 + hour), None);
        assert!(after(state, 8 + hour + PROOF_DEADLINE.as_nanos() as u64).is_some());
    }

    #[test]
    fn a_probe_is_not_trusted_before_its_proof() {
        let states = ProbeStates::new(&[PROBE]);
        assert_eq!(states.degraded().len(), 1);
        states.set(3, ProbeState::Attached);
        assert_eq!(states.degraded().len(), 1);
        states.prove(1 << 3, boot_now_ns());
        assert_eq!(states.degraded(), Vec::<String>::new());
    }
}
