//! The truth, end to end: real faults on this machine's kernel, and exactly
//! the lines that the built agent prints of them.
//!
//! Every test starts an agent of its own, makes its faults in processes of its
//! own, and looks at the events of those processes only, as others on the
//! machine may fail meanwhile. Each ends with the ledger: every line of it
//! adds up, and it says that as much was delivered as was printed.
//!
//! Needs root and BTF. What can't run says so on standard error, and why.

// Helpers outside test functions fail as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod agent;
mod container;
mod durable;
mod exits;
mod names;
mod namespace;
mod network;
mod oom;
mod otlp;
mod outputs;
mod proofs;
mod reset;
mod role;
mod roles;
mod unanswered;
mod unreachable;

/// Not a test: the program that the helper processes of the others run.
#[test]
fn plays_a_role() {
    roles::play();
}
