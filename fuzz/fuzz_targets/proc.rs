//! Files of `/proc` that say whatever they like: an answer, never a panic.
#![no_main]

#[path = "../bodies/proc.rs"]
mod proc;

libfuzzer_sys::fuzz_target!(|input: &[u8]| proc::run(input));
