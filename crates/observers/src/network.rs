//! The network observer.
//!
//! *Which TCP connections failed, why, and whose were they?* The kernel's own
//! socket error decides (`sk_err`), never a guess from states; the owner is
//! the process that called connect(), or that received from the accepted
//! socket.
//!
//! Data: raw tracepoints `inet_sock_set_state` and `tcp_rcv_space_adjust`,
//! through a ring buffer of 1 MiB. Minimum kernel: 5.8 with BTF.
//!
//! Never: captures packets or payload, attributes by `current` in softirq,
//! tells of UDP.
//!
//! A connect() that the routing table refuses at once (no route, `unreachable`)
//! changes no socket's state, so that no tracepoint of TCP fires: it is not told.

pub mod abi;
mod loader;
mod processor;

pub use loader::{OBJECT, PROBES, source};
pub use processor::NetworkProcessor;
