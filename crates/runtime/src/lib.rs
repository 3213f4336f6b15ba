//! The observer runtime.

pub mod clock;
pub mod config;
pub mod ebpf;
pub mod emitter;
pub mod event;
pub mod ids;
pub mod processor;
pub mod shutdown;
pub mod source;
pub mod units;
