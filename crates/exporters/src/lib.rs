//! Emitters: where the events of observers go. One file an emitter.
//!
//! | emitter | what it writes |
//! |---|---|
//! | [`StdoutEmitter`] | a readable line an event on a terminal, JSON lines elsewhere |
//! | [`FileEmitter`] | JSON lines, rotated by size and age |
//! | [`store`] | an SQLite file: history, and the log that durable exporters are served from |
//! | [`NoneEmitter`] | nothing: everything counts as delivered |
//!
//! Each runs on a thread of its own and may block there. An emitter says of
//! every event what became of it; whether that means trying again is the
//! runtime's business, not its own.
//!
//! What it never does: drop an event silently, reorder events, or write a
//! control character that a process name or a path smuggled in.

pub mod file;
mod lines;
mod none;
mod stdout;
pub mod store;
#[cfg(test)]
mod testing;
mod text;

pub use file::{FileConfig, FileEmitter, FileError};
pub use none::NoneEmitter;
pub use stdout::{Format, StdoutEmitter, wants_colour};
pub use text::to_text_line;
