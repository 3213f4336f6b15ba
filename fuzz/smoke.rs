//! Tries a target without a fuzzer, on a stable compiler: inputs are made of
//! real ones by chance. It knows nothing of coverage;
//! `cargo +nightly fuzz run records` does.
//!
//! A plain test run tries the same inputs each time; with
//! `VAHTI_FUZZ_SECONDS=60` others, for that long a target.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How many inputs a plain test run tries of each target, if they take no
/// longer than that together.
const INPUTS: u64 = 20_000;
const PLAIN_RUN: Duration = Duration::from_secs(3);

/// Longer than what a target distinguishes.
const MAX_LEN: usize = 1_024;

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
pub(crate) fn try_inputs(target: fn(&[u8]), seeds: &[Vec<u8>]) {
    let begun = Instant::now();
    let time = seconds().map(Duration::from_secs);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let mut chance = Chance(if time.is_some() { now.as_nanos() as u64 } else { 1 });
    let mut tried = 0;
    while begun.elapsed() < time.unwrap_or(PLAIN_RUN) && (time.is_some() || tried < INPUTS) {
        let mut input = seeds[chance.below(seeds.len())].clone();
        for _ in 0..chance.below(8) {
            chance.change(&mut input, seeds);
        }
        let result = std::panic::catch_unwind(|| target(&input));
        assert!(result.is_ok(), "after {tried} others, this input: {input:02x?}");
        tried += 1;
    }
}
