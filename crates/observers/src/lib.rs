//! Facts of the kernel to events; one folder an observer, the same files in
//! each: `*.bpf.c` (kernel side), `abi.rs` (its records), `loader.rs` (its
//! object, its probes, how they prove themselves), `processor.rs` (records to
//! events, a pure function).
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
