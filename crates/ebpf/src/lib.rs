//! The life of eBPF programs, for any observer.
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
//! Minimum kernel: 5.8 with BTF. Never used: kprobes, tracefs, mounts (the
//! manager can attach to them; no default signal does).

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
