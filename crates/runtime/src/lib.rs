//! The observer runtime.

pub mod causality;
pub mod clock;
pub mod config;
pub mod delivery;
pub mod ebpf;
pub mod emitter;
pub mod event;
pub mod health;
pub mod ids;
pub mod ledger;
pub mod metrics;
pub mod observer;
pub mod panic;
pub mod processor;
pub mod queue;
pub mod sampler;
pub mod shutdown;
pub mod source;
pub mod supervisor;
pub mod testing;
pub mod units;

mod backoff;
mod doorbell;
mod fold;
mod lane;
mod pipeline;
mod pool;
mod sync;

#[cfg(all(test, shuttle))]
mod shuttle_tests;
