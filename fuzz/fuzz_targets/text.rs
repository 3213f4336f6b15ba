//! What comes from outside as text: shown without harm, without loss.
#![no_main]

#[path = "../bodies/text.rs"]
mod text;

libfuzzer_sys::fuzz_target!(|input: &[u8]| text::run(input));
