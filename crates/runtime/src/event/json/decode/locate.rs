//! Which key of a line a byte belongs to; only ever asked for an error.
//!
//! serde_json tells where it stopped, in bytes. Keeping track of the keys
//! while reading would cost every line what few need.

use std::fmt::Write;
use std::ops::Range;

/// How many levels of keys an error names.
const MAX_LEVELS: usize = 6;

/// How much of one key an error names, in bytes.
const MAX_KEY_BYTES: usize = 60;

/// What is open at some byte.
enum Open {
    /// An object, and where its current key stands.
    Object { key: Range<usize>, key_is_next: bool },
    /// A list, and its current item.
    List(usize),
}

/// The path of the key whose value holds the byte `at`, or ends there, such as
/// `links.0.rule`; `line` outside of all.
pub(super) fn key_at(line: &str, at: usize) -> String {
    let path = shown(line, &open_at(&line.as_bytes()[..at.min(line.len())]));
    if path.is_empty() { "line".to_owned() } else { path }
}

fn open_at(bytes: &[u8]) -> Vec<Open> {
    let mut open = Vec::new();
    let mut i = 0;
    while let Some(byte) = bytes.get(i) {
        match (byte, open.last_mut()) {
            (b'"', last) => {
                let end = end_of_string(bytes, i + 1);
                if let Some(Open::Object { key, key_is_next: true }) = last {
                    *key = i + 1..end;
                }
                i = end;
            }
            (b'{', _) => open.push(Open::Object { key: 0..0, key_is_next: true }),
            (b'[', _) => open.push(Open::List(0)),
            (b'}' | b']', _) => {
                open.pop();
            }
            (b':', Some(Open::Object { key_is_next, .. })) => *key_is_next = false,
            (b',', Some(last @ Open::Object { .. })) => {
                *last = Open::Object { key: 0..0, key_is_next: true };
            }
            (b',', Some(Open::List(item))) => *item += 1,
            _ => {}
        }
        i += 1;
    }
    open
}

/// Where the quote stands that ends a string, or the end of all.
fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let mut i = start;
    while let Some(byte) = bytes.get(i) {
        match byte {
            b'"' => return i,
            b'\\' => i += 2,
            _ => i += 1,
        }
    }
    bytes.len()
}

fn shown(line: &str, open: &[Open]) -> String {
    let mut path = String::new();
    for level in open.iter().take(MAX_LEVELS) {
        let separator = if path.is_empty() { "" } else { "." };
        match level {
            Open::Object { key, .. } if key.is_empty() => break,
            Open::Object { key, .. } => {
                let key = line.get(key.clone()).unwrap_or_default();
                let key = &key[..key.floor_char_boundary(MAX_KEY_BYTES)];
                path.push_str(separator);
                path.push_str(&crate::event::escape_text(key));
            }
            Open::List(item) => {
                // Writing to memory does not fail.
                if write!(path, "{separator}{item}").is_err() {
                    break;
                }
            }
        }
    }
    path
}
