//! What the programs of an observer tried, wrote and lost, and what it cost.

use std::sync::{Arc, Mutex, PoisonError};

use aya::maps::{MapData, PerCpuArray};
use vahti_runtime::source::{self, SourceCounts, SourceLedger};

use crate::error::EbpfError;
use crate::manager::{AttachedProgram, AyaManager};
use crate::proof::ProbeStates;
use crate::ring::Ring;
use crate::sys::ProgramCounters;

const SHARED_FILE: &str = include_str!("../bpf/vahti.bpf.h");

/// How many programs an object can have that write records.
pub const SLOTS: u32 = crate::abi_constant!(SHARED_FILE, "SLOTS") as u32;

/// A row of the `stats` map, as aya wants it: attempted, submitted, lost.
type StatsRow = [u64; 3];

/// Reads an observer's counters from any thread; holds nothing of the kernel's
/// once its source was dropped.
pub struct RingLedger {
    state: Mutex<State>,
    probes: Arc<ProbeStates>,
}

enum State {
    Live(Live),
    Closed(SourceCounts),
}

impl std::fmt::Debug for RingLedger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RingLedger").field("probes", &self.probes).finish_non_exhaustive()
    }
}

struct Live {
    ring: Arc<Ring>,
    stats: PerCpuArray<MapData, StatsRow>,
    programs: Vec<AttachedProgram>,
    last: SourceCounts,
}

/// What a program cost, as far as statistics were enabled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramCost {
    /// Its name.
    pub program: String,
    /// Its counters.
    pub counters: ProgramCounters,
}

impl RingLedger {
    pub(crate) fn new(
        manager: &AyaManager,
        ring: Arc<Ring>,
        probes: Arc<ProbeStates>,
    ) -> Result<Self, EbpfError> {
        Ok(RingLedger {
            state: Mutex::new(State::Live(Live {
                ring,
                stats: manager.per_cpu_array("stats")?,
                programs: Vec::new(),
                last: SourceCounts::default(),
            })),
            probes,
        })
    }

    pub(crate) fn watch(&self, attached: &[AttachedProgram]) {
        if let State::Live(live) = &mut *self.lock() {
            live.programs = attached.to_vec();
        }
    }

    /// Takes the last counts: what is in the ring now will never be read. To
    /// be called when no program can write any more.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        if let State::Live(live) = &mut *state {
            let mut counts = live.counts();
            counts.abandoned = counts.in_ring;
            counts.in_ring = 0;
            *state = State::Closed(counts);
        }
    }

    /// What each program cost; zeros where statistics are not enabled, and
    /// nothing after the source was dropped.
    #[must_use]
    pub fn costs(&self) -> Vec<ProgramCost> {
        let State::Live(live) = &*self.lock() else {
            return Vec::new();
        };
        live.programs
            .iter()
            .map(|p| ProgramCost {
                program: p.name().to_owned(),
                counters: p.counters().unwrap_or_default(),
            })
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    fn counts(&mut self) -> SourceCounts {
        let mut now = SourceCounts { in_ring: self.ring.waiting(), ..SourceCounts::default() };
        for slot in 0..SLOTS {
            // A refused read (it can't be, for our own map) keeps the last sum.
            let Ok(cpus) = self.stats.get(&slot, 0) else {
                return self.last;
            };
            for [attempted, submitted, lost] in cpus.iter() {
                now.attempted += attempted;
                now.submitted += submitted;
                now.lost += lost;
            }
        }
        let missed = self.programs.iter().filter_map(|p| p.counters().ok());
        now.missed = missed.map(|c| c.missed).sum();
        self.last = now;
        now
    }
}

impl SourceLedger for RingLedger {
    fn counts(&self) -> SourceCounts {
        match &mut *self.lock() {
            State::Live(live) => live.counts(),
            State::Closed(counts) => *counts,
        }
    }

    fn degraded(&self) -> Vec<String> {
        self.probes.degraded()
    }

    fn costs(&self) -> Vec<source::ProgramCost> {
        let cost = |cost: ProgramCost| source::ProgramCost {
            program: cost.program,
            run_time_ns: cost.counters.run_time_ns,
            runs: cost.counters.runs,
        };
        RingLedger::costs(self).into_iter().map(cost).collect()
    }
}
