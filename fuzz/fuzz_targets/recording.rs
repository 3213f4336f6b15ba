//! Recordings that were torn or edited: read or refused, by line. What is read
//! is written as text that reads as the same recording.
#![no_main]

#[path = "../bodies/recording.rs"]
mod recording;

libfuzzer_sys::fuzz_target!(|input: &[u8]| recording::run(input));
