//! The agent as it runs, on this machine's kernel: starting, answering,
//! stopping. Needs the rights to load programs; says so where they are missing.

// Helpers outside test functions fail as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod agent;
mod doctor;
mod ends;
mod keeps;
mod log;
mod reload;
mod secrets;
mod turns;
