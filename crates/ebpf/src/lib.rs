//! The life of eBPF programs, for any observer.
//!
//! *Which programs of an observer run on this kernel, do they see, and what
//! became of each record that they tried to write?*
//!
//! Opens compiled CO-RE objects ([`loader`]), attaches their programs one by
//! one ([`manager`]), reads their ring buffers ([`ring`], [`source`]), counts
//! what they tried, wrote and lost ([`ledger`]), and makes each of them prove
//! that it sees ([`proof`]).
//!
//! An observer's kernel side includes `bpf/vahti.bpf.h`, which holds what the
//! programs of all observers share; its records start with the header that
//! [`abi`] describes.
//!
//! Data: the records in ring buffers, the counters that programs keep in their
//! maps, what the kernel counts for a program, and the kernel's own types
//! (`/sys/kernel/btf/vmlinux`).
//!
//! Never: says what a record means, exports a fact that was made as a proof,
//! takes a link for a proof, uses kprobes, tracefs or mounts for a default
//! signal (the manager can attach to them).
//!
//! Minimum kernel: 5.8 with BTF.
//!
//! Metrics: the ledger's first two lines, `vahti_kernel_total{outcome}`,
//! `vahti_ring_total{outcome}` and `vahti_ring_records{state}`.

pub mod abi;
pub mod cgroup;
pub mod error;
mod eventfd;
mod footprint;
pub mod kernel;
mod kernel_btf;
pub mod ledger;
pub mod loader;
pub mod makers;
pub mod manager;
pub mod proof;
pub mod rights;
pub mod ring;
pub mod source;
mod sys;
mod wall;

pub use aya::include_bytes_aligned;
pub use error::EbpfError;
pub use sys::ProgramCounters;
