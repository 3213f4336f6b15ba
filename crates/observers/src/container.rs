//! The container observer.
//!
//! *Which container or process died, how, and who or what killed it?* OOM
//! kills with the real usage and limit of the memory cgroup that ran out, the
//! ends of containers' first processes, and crashes of any process.
//!
//! Data: raw tracepoints `mark_victim`, `signal_generate`,
//! `sched_process_exit`, `sched_process_exec`, `cgroup_attach_task`, through a
//! ring buffer of 256 KiB of their own, as these facts are critical. Minimum
//! kernel: 5.8 with BTF.
//!
//! Never: asks a container runtime, reads a process's memory, takes exit code
//! 137 for an OOM kill.
//!
//! Metrics: `vahti_events_seen_total` with the type `container`,
//! and the ledger's under the observer `container`.

pub mod abi;
mod child;
mod first;
pub mod id;
mod loader;
mod processor;

pub use loader::{OBJECT, PROBES, source};
pub use processor::ContainerProcessor;
