//! Lines that were torn or edited: an event or an error, never a panic. What is
//! read is written as a line that reads as the same event.

use vahti_runtime::event::{DecodeError, from_json_line, to_json_line};

const GOLDEN: &str = include_str!("../../crates/runtime/src/event/json/decode/golden.jsonl");

/// The first byte chooses a real line or none; the rest is where and what to
/// change in threes, or the line itself.
fn bytes_of(which: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = match GOLDEN.lines().nth(usize::from(which)) {
        Some(line) => line.as_bytes().to_vec(),
        None => return rest.to_vec(),
    };
    for change in rest.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
        bytes[at] = change[2];
    }
    bytes
}

pub(crate) fn run(input: &[u8]) {
    let [which, rest @ ..] = input else { return };
    let event = match from_json_line(&bytes_of(*which, rest)) {
        Ok(event) => event,
        Err(error) => {
            let text = error.to_string();
            assert!(!text.chars().any(char::is_control), "{text}");
            return;
        }
    };
    let mut once = Vec::new();
    to_json_line(&event, &mut once);
    let again = match from_json_line(&once) {
        // Escapes are longer than what they stand for.
        Err(DecodeError::TooLong { .. }) => return,
        again => again.expect("what was written is read"),
    };
    let mut twice = Vec::new();
    to_json_line(&again, &mut twice);
    assert_eq!(once, twice);
}
