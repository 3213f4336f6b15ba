//! Bytes that a kernel program might have written, and real records with bytes
//! changed: an event or malformed, never a panic, and nothing smuggled out.
#![no_main]

#[path = "../bodies/records.rs"]
mod records;

libfuzzer_sys::fuzz_target!(|input: &[u8]| records::run(input));
