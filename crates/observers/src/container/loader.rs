//! The container observer's object, its probes, and how they prove themselves.

use aya::maps::HashMap;
use vahti_ebpf::abi::{self, SelfFacts};
use vahti_ebpf::cgroup::Hierarchy;
use vahti_ebpf::error::EbpfError;
use vahti_ebpf::kernel::KernelVersion;
use vahti_ebpf::loader::Object;
use vahti_ebpf::manager::AyaManager;
use vahti_ebpf::proof::{Probe, ProofOfLife};
use vahti_ebpf::source::RingSource;
use vahti_runtime::ebpf::EbpfManager as _;

use super::abi::{KIND_PROCESS_EXIT, ProcessExit, slot};
use super::{child, first};
use crate::proof::{introduce, test_run_proof, write_self};

/// The compiled programs.
pub const OBJECT: Object =
    Object { name: "container", bytes: vahti_ebpf::include_bytes_aligned!("container.bpf.o") };

/// The programs, in the order in which they are attached: what explains an
/// exit is to be known before it is told.
pub const PROBES: [Probe; 5] = [
    Probe {
        program: "cgroup_attach",
        tracepoint: "cgroup_attach_task",
        signal: "which process is a container's first",
        since: KernelVersion(5, 8),
        slot: slot::ATTACH,
    },
    Probe {
        program: "process_exec",
        tracepoint: "sched_process_exec",
        signal: "which process is the first of a container that shares a pid namespace",
        since: KernelVersion(5, 8),
        slot: slot::EXEC,
    },
    Probe {
        program: "signal_sent",
        tracepoint: "signal_generate",
        signal: "OOM kills, and who sent a fatal signal",
        since: KernelVersion(5, 8),
        slot: slot::SIGNAL,
    },
    Probe {
        program: "oom_kill",
        tracepoint: "mark_victim",
        signal: "OOM kills",
        since: KernelVersion(5, 8),
        slot: slot::OOM_KILL,
    },
    Probe {
        program: "process_exit",
        tracepoint: "sched_process_exit",
        signal: "crashes and container exits",
        since: KernelVersion(5, 8),
        slot: slot::EXIT,
    },
];

/// The observer's source, from its opened object.
///
/// # Errors
/// The object has not the maps that it should have.
pub fn source(manager: AyaManager, hierarchy: Hierarchy) -> Result<RingSource, EbpfError> {
    let proof = ContainerProof { hierarchy };
    RingSource::new("container", manager, &PROBES, Box::new(proof))
}

/// Has a child of our own killed by a crash signal that we send.
///
/// An OOM kill can't be had without harm (the kernel logs it, and others raise
/// alarms on that line), nor can a move between cgroups without a cgroup to
/// write to. Those programs are run once by hand instead: that proves that
/// they are loaded and their ring is read; the link says that they are
/// attached.
#[derive(Debug)]
struct ContainerProof {
    hierarchy: Hierarchy,
}

impl ProofOfLife for ContainerProof {
    fn introduce(&mut self, manager: &mut AyaManager) -> Option<u32> {
        introduce(manager)
    }

    fn provoke(&mut self, manager: &mut AyaManager) -> Result<(), EbpfError> {
        let failed = |error| EbpfError::System { operation: "making a child that crashes", error };
        write_self(manager, |facts| SelfFacts { proof: 1, ..facts })?;
        let proven = child::crash().map_err(failed);
        write_self(manager, |facts| SelfFacts { proof: 0, ..facts })?;
        proven?;
        // Each time, as the kernel side keeps 4096 and forgets the oldest.
        seed_firsts(manager, self.hierarchy)
    }

    fn proven_by(&self, record: &[u8]) -> u32 {
        let Some((exit, _)) = abi::split::<ProcessExit>(record) else {
            return test_run_proof(record);
        };
        if exit.header.kind != KIND_PROCESS_EXIT {
            return test_run_proof(record);
        }
        let sender = u32::from(exit.sender_tgid != 0) << slot::SIGNAL;
        1 << slot::EXIT | sender
    }
}

/// Tells the programs which processes were first in the containers that run
/// already. What they learned meanwhile by themselves is newer and stays.
fn seed_firsts(manager: &mut AyaManager, hierarchy: Hierarchy) -> Result<(), EbpfError> {
    let failed = |error: aya::maps::MapError| EbpfError::Map {
        map: "firsts".to_owned(),
        what: error.to_string(),
    };
    let mut map: HashMap<_, u64, u32> = manager.map("firsts")?.try_into().map_err(failed)?;
    for first in first::of_running_containers(hierarchy) {
        const NO_EXIST: u64 = 1;
        match map.insert(first.cgroup_id, first.tgid, NO_EXIST) {
            Ok(()) => {}
            Err(aya::maps::MapError::SyscallError(refused))
                if refused.io_error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}
