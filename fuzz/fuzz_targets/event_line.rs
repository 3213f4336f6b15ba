//! Lines that were torn or edited: an event or an error, never a panic. What is
//! read is written as a line that reads as the same event.
#![no_main]

#[path = "../bodies/event_line.rs"]
mod event_line;

libfuzzer_sys::fuzz_target!(|input: &[u8]| event_line::run(input));
