//! Emitters: where the events of observers go. One file an emitter.
//!
//! *Does the other side have this event?* The events come from the runtime's
//! lanes, or from the store's log.
//!
//! | emitter | what it writes |
//! |---|---|
//! | [`StdoutEmitter`] | a readable line an event on a terminal, JSON lines elsewhere |
//! | [`FileEmitter`] | JSON lines, rotated by size and age |
//! | [`store`] | an SQLite file: history, and the log that durable exporters are served from |
//! | [`otlp`] | log records and spans, over gRPC or HTTP |
//! | [`polku`] | events of a POLKU gateway, over gRPC |
//! | [`NoneEmitter`] | nothing: everything counts as delivered |
//!
//! Each runs on a thread of its own and may block there. An emitter says of
//! every event what became of it; whether that means trying again is the
//! runtime's business, not its own.
//!
//! What it never does: drop an event silently, reorder events, or write a
//! control character that a process name or a path smuggled in.
//!
//! Minimum kernel: any that Rust's standard library runs on.
//!
//! Metrics: the ledger's last line, `vahti_lane_total{emitter,outcome}` and
//! `vahti_lane_events{emitter,state}`.

pub mod file;
mod lines;
mod none;
pub mod otlp;
pub mod polku;
#[cfg(test)]
#[path = "../tests/receivers/decoder.rs"]
mod receivers;
mod remote;
mod stdout;
pub mod store;
#[cfg(test)]
mod testing;
mod text;
mod tls;

pub use file::{FileConfig, FileEmitter, FileError};
pub use none::NoneEmitter;
pub use otlp::{OtlpConfig, OtlpEmitter};
pub use polku::{PolkuEmitter, PolkuTarget};
pub use remote::{shown as shown_endpoint, without_secrets};
pub use stdout::{Format, StdoutEmitter, wants_colour};
pub use text::to_text_line;
pub use tls::TlsConfig;
