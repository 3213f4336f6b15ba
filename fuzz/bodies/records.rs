//! Bytes that a kernel program might have written, and real records with bytes
//! changed: an event or malformed, never a panic, and nothing smuggled out.

use std::sync::OnceLock;

use vahti_observers::container::ContainerProcessor;
use vahti_observers::network::NetworkProcessor;
use vahti_observers::recording::Recording;
use vahti_runtime::event::to_json_line;
use vahti_runtime::ids::BootId;
use vahti_runtime::processor::{EventProcessor, Output};
use vahti_runtime::testing::record;

const RECORDINGS: [&str; 2] = [
    include_str!("../../crates/observers/tests/fixtures/network.rec"),
    include_str!("../../crates/observers/tests/fixtures/container.rec"),
];

fn real() -> &'static [Vec<Vec<u8>>; 2] {
    static REAL: OnceLock<[Vec<Vec<u8>>; 2]> = OnceLock::new();
    REAL.get_or_init(|| {
        RECORDINGS.map(|text| {
            let recording = Recording::parse(text).expect("a committed recording");
            recording.records.iter().map(|r| r.raw().bytes.to_vec()).collect()
        })
    })
}

/// The first byte chooses the observer, the second a real record or none; the
/// rest is where and what to change in threes, or the record itself.
fn bytes_of(observer: usize, which: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = match real()[observer].get(usize::from(which)) {
        Some(bytes) => bytes.clone(),
        None => return rest.to_vec(),
    };
    for change in rest.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
        bytes[at] = change[2];
    }
    bytes
}

pub(crate) fn run(input: &[u8]) {
    let [observer, which, rest @ ..] = input else { return };
    let observer = usize::from(observer % 2);
    let boot = BootId([7; 16]);
    let processor: Box<dyn EventProcessor> = match observer {
        0 => Box::new(NetworkProcessor::new(boot, 2)),
        _ => Box::new(ContainerProcessor::new(boot, 2).with_normal_exits(true)),
    };
    let bytes = bytes_of(observer, *which, rest);
    let events = match processor.process(record(&bytes)) {
        Ok(Output::One(event)) => vec![event],
        Ok(Output::Several(events)) => events,
        Ok(Output::Nothing) | Err(_) => return,
    };
    for event in events {
        let mut line = Vec::new();
        to_json_line(&event, &mut line);
        let text = std::str::from_utf8(&line).expect("JSON is UTF-8");
        assert!(!text.trim_end_matches('\n').chars().any(char::is_control), "{text}");
    }
}
