//! Any path of a control group is classified, without a panic.
#![no_main]

#[path = "../bodies/container_path.rs"]
mod container_path;

libfuzzer_sys::fuzz_target!(|input: &[u8]| container_path::run(input));
