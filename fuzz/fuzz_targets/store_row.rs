//! Rows of the store whose cells hold whatever somebody wrote there: an answer
//! or an error, never a panic, and whoever is served from it gets past them.
#![no_main]

#[path = "../bodies/store_row.rs"]
mod store_row;

libfuzzer_sys::fuzz_target!(|input: &[u8]| store_row::run(input));
