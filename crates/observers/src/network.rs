//! The network observer.
//!
//! *Which TCP connections failed, why, and whose were they?* The kernel's own
//! socket error decides (`sk_err`), never a guess from states; the owner is
//! the process that called connect(), or that received from the accepted
//! socket.
//!
//! Data: raw tracepoints `inet_sock_set_state`, `inet_sk_error_report`,
//! `tcp_rcv_space_adjust` and `tcp_destroy_sock`, and, for connects that the
//! routing table refuses, `fib_table_lookup` and `fib6_table_lookup`; through a
//! ring buffer of 1 MiB.
//! Minimum kernel: 5.8 with BTF, for `inet_sk_error_report` 5.14.
//!
//! Never: captures packets or payload, attributes by `current` in softirq,
//! tells of UDP.
//!
//! Metrics: `vahti_events_seen_total` with the type `network`, and the ledger's
//! under the observer `network`.
//!
//! Not told, as nothing in the kernel tells it: a connect() that fails before
//! it looks for a route (a wrong address, no free port); one from a socket that
//! was bound to a port or a device before, where no route leads; one in a
//! network namespace that has no routing table at all, or has rules of its own
//! and no match in any table. A reset of an accepted connection from which
//! nobody has read yet is told with its listener for an owner.

pub mod abi;
mod loader;
mod processor;

pub use loader::{OBJECT, PROBES, source};
pub use processor::NetworkProcessor;
