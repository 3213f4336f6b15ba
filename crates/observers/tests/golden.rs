//! Recorded bytes to the events that they must give, on any machine.
//!
//! `VAHTI_UPDATE_GOLDEN=1 cargo test -p vahti-observers --test golden` writes
//! the expected events anew, to be read in the diff.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends so")]

use std::path::PathBuf;

use vahti_observers::container::ContainerProcessor;
use vahti_observers::network::NetworkProcessor;
use vahti_observers::recording::Recording;
use vahti_runtime::event::to_json_line;
use vahti_runtime::processor::{EventProcessor, Output};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn recording(observer: &str) -> Recording {
    let text = std::fs::read_to_string(fixture(&format!("{observer}.rec"))).unwrap();
    Recording::parse(&text).unwrap()
}

fn processor(recording: &Recording) -> Box<dyn EventProcessor> {
    let (boot_id, version) = (recording.boot_id, recording.cgroup_version);
    match recording.observer.as_str() {
        "network" => Box::new(NetworkProcessor::new(boot_id, version)),
        _ => Box::new(ContainerProcessor::new(boot_id, version)),
    }
}

fn events_of(recording: &Recording) -> String {
    let processor = processor(recording);
    let mut lines = Vec::new();
    for record in &recording.records {
        match processor.process(record.raw()).unwrap() {
            Output::Nothing => lines.extend_from_slice(b"nothing\n"),
            Output::One(event) => to_json_line(&event, &mut lines),
            Output::Several(_) => panic!("one record, one event"),
        }
    }
    String::from_utf8(lines).unwrap()
}

fn compare(observer: &str) {
    let events = events_of(&recording(observer));
    let golden = fixture(&format!("{observer}.jsonl"));
    if std::env::var_os("VAHTI_UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &events).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap();
    for (number, (event, expected)) in events.lines().zip(expected.lines()).enumerate() {
        assert_eq!(event, expected, "record {number} of {observer}");
    }
    assert_eq!(events.lines().count(), expected.lines().count());
}

#[test]
fn network_records_give_the_events_that_they_gave() {
    compare("network");
}

#[test]
fn container_records_give_the_events_that_they_gave() {
    compare("container");
}

fn line_of(output: Output) -> String {
    let mut line = Vec::new();
    if let Output::One(event) = output {
        to_json_line(&event, &mut line);
    }
    String::from_utf8(line).unwrap()
}

#[test]
fn the_same_bytes_give_the_same_event_whatever_came_before() {
    for observer in ["network", "container"] {
        let recording = recording(observer);
        let used = processor(&recording);
        for record in recording.records.iter().chain(recording.records.iter().rev()) {
            let again = used.process(record.raw()).unwrap();
            let fresh = processor(&recording).process(record.raw()).unwrap();
            assert_eq!(line_of(again), line_of(fresh));
        }
    }
}
