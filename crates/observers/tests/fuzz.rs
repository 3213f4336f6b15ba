//! The fuzz targets' bodies without a fuzzer, on a stable compiler: each over
//! inputs that are made of real ones by chance. It knows nothing of coverage;
//! `cargo +nightly fuzz run records` does.
//!
//! A plain test run tries the same inputs each time; with
//! `VAHTI_FUZZ_SECONDS=60` others, for that long a target.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends so")]

#[path = "../../../fuzz/bodies/container_path.rs"]
mod container_path;
#[path = "../../../fuzz/bodies/records.rs"]
mod records;
#[path = "../../../fuzz/bodies/text.rs"]
mod text;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How many inputs a plain test run tries of each target.
const INPUTS: u64 = 20_000;

/// Longer than what a target distinguishes.
const MAX_LEN: usize = 512;

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
/// generators, 2014).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[7]
    }

    /// A piece of some input.
    fn piece(&mut self, of: &[u8]) -> Vec<u8> {
        let from = self.below(of.len() + 1);
        let len = self.below(of.len() - from + 1);
        of[from..from + len].to_vec()
    }

    fn change(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        match self.below(6) {
            0 if at < input.len() => input[at] = self.byte(),
            1 if at < input.len() => input[at] ^= 1 << self.below(8),
            2 => input.insert(at, self.byte()),
            3 => input.truncate(at),
            4 => {
                let piece = self.piece(&input.clone());
                input.splice(at..at, piece);
            }
            _ => {
                let other = self.below(seeds.len());
                let piece = self.piece(&seeds[other]);
                input.splice(at..at, piece);
            }
        }
        input.truncate(MAX_LEN);
    }
}

fn seconds() -> Option<u64> {
    std::env::var("VAHTI_FUZZ_SECONDS").ok().map(|text| text.parse().expect("whole seconds"))
}

/// Tries inputs that are made of `seeds`; an input that makes the target panic
/// is printed, so that it can become a test.
fn try_inputs(target: fn(&[u8]), seeds: &[Vec<u8>]) {
    let begun = Instant::now();
    let time = seconds().map(Duration::from_secs);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let mut chance = Chance(if time.is_some() { now.as_nanos() as u64 } else { 1 });
    let mut tried = 0;
    while time.map_or(tried < INPUTS, |time| begun.elapsed() < time) {
        let mut input = seeds[chance.below(seeds.len())].clone();
        for _ in 0..chance.below(8) {
            chance.change(&mut input, seeds);
        }
        let result = std::panic::catch_unwind(|| target(&input));
        assert!(result.is_ok(), "after {tried} others, this input: {input:02x?}");
        tried += 1;
    }
}

#[test]
fn any_cgroup_path_is_classified() {
    let corpus = include_str!("../src/container/cgroup-paths.tsv");
    let paths = corpus.lines().filter_map(|line| line.split('\t').next());
    try_inputs(container_path::run, &paths.map(|path| path.into()).collect::<Vec<_>>());
}

#[test]
fn any_record_is_an_event_or_malformed() {
    // The observer, one of its real records, and what to change in it.
    let real = (0..2).flat_map(|observer| (0..40).map(move |which| vec![observer, which]));
    // None of them: what follows is the record.
    let made_up = (0..2).map(|observer| [vec![observer, 255], vec![0; 200]].concat());
    try_inputs(records::run, &real.chain(made_up).collect::<Vec<_>>());
}

#[test]
fn any_text_is_shown_without_harm_and_without_loss() {
    let texts: [&[u8]; 8] = [
        b"500ms",
        b"16 GiB",
        b"18446744073709551615d",
        b"6b1e1d9a-f124-c0e9-d0f3-c5b7a294e180",
        b"\\x1b[31m\x1b[0m\\",
        "gr\u{fc}n \u{202e}\u{1f980}".as_bytes(),
        b"\xff\xfe\x80",
        b"",
    ];
    try_inputs(text::run, &texts.map(<[u8]>::to_vec));
}
