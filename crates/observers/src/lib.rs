//! Facts of the kernel to events; one folder an observer, the same files in
//! each: `*.bpf.c` (kernel side), `abi.rs` (its records), `loader.rs` (its
//! object, its probes, how they prove themselves), `processor.rs` (records to
//! events, a pure function).
//!
//! *What failed on this node, and whose was it?* [`network`] answers for
//! connections, [`container`] for containers and processes.
//!
//! Data: records of eBPF programs, through a ring buffer an observer.
//!
//! Never: does I/O or asks a clock in a processor, guesses (what is not known
//! is `unresolved`), makes an event of a proof.
//!
//! Minimum kernel: 5.8 with BTF; a probe that needs more says so in its
//! observer's `PROBES`.
//!
//! Metrics: `vahti_events_seen_total{observer,type,subtype,severity,outcome}`,
//! counted before sampling, and the ledger's.
//!
//! ```no_run
//! use vahti_ebpf::cgroup::Hierarchy;
//! use vahti_observers::{container, network};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let hierarchy = Hierarchy::detect();
//! let objects = [network::OBJECT, container::OBJECT];
//! let mut opened = vahti_ebpf::loader::open(&objects, hierarchy)?.into_iter();
//! if let Some(manager) = opened.next() {
//!     let source = network::source(manager?)?;
//! }
//! if let Some(manager) = opened.next() {
//!     let source = container::source(manager?, hierarchy)?;
//! }
//! # Ok(())
//! # }
//! ```

pub mod cgroups;
pub mod container;
mod errno;
pub mod network;
mod proof;
mod record;
pub mod recording;
