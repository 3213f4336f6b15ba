//! Recorded bytes to the lines that they must give, on any machine, through
//! all that lies between a record and an emitter: ids, origin, traces, sampling.
//!
//! `VAHTI_UPDATE_GOLDEN=1 cargo test -p vahti-observers --test golden` writes
//! the expected lines anew, to be read in the diff.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends so")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use vahti_observers::container::ContainerProcessor;
use vahti_observers::network::NetworkProcessor;
use vahti_observers::recording::Recording;
use vahti_runtime::event::{Event, to_json_line};
use vahti_runtime::observer::ObserverRuntime;
use vahti_runtime::processor::{EventProcessor, Output};
use vahti_runtime::testing::{Captured, CapturingEmitter};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn recording(name: &str) -> Recording {
    let text = std::fs::read_to_string(fixture(&format!("{name}.rec"))).unwrap();
    Recording::parse(&text).unwrap()
}

/// The one whose records are read with `export_normal_exits` on.
const NORMAL_EXITS: &str = "container_normal";

fn container(name: &str, recording: &Recording) -> ContainerProcessor {
    let (boot_id, version) = (recording.boot_id, recording.cgroup_version);
    ContainerProcessor::new(boot_id, version).with_normal_exits(name == NORMAL_EXITS)
}

fn processor(name: &str, recording: &Recording) -> Box<dyn EventProcessor> {
    let (boot_id, version) = (recording.boot_id, recording.cgroup_version);
    match recording.observer.as_str() {
        "network" => Box::new(NetworkProcessor::new(boot_id, version)),
        _ => Box::new(container(name, recording)),
    }
}

/// As the agent runs an observer, but for storms: here every event is a line.
fn runtime(name: &str, recording: &Recording) -> (Arc<ObserverRuntime>, Captured) {
    let (boot_id, version) = (recording.boot_id, recording.cgroup_version);
    let builder = match recording.observer.as_str() {
        "network" => ObserverRuntime::builder(move || NetworkProcessor::new(boot_id, version)),
        _ => {
            let (name, recording) = (name.to_owned(), recording.clone());
            ObserverRuntime::builder(move || container(&name, &recording))
        }
    };
    let (emitter, captured) = CapturingEmitter::new("captured");
    let builder = builder.boot_id(boot_id).node("node-under-test").folding_disabled();
    (builder.emitter(emitter).build().unwrap(), captured)
}

/// A line a record: its event, or `nothing`.
fn lines_of(name: &str) -> String {
    let recording = &recording(name);
    let runner = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runner.block_on(async {
        let (runtime, captured) = runtime(name, recording);
        let (trigger, shutdown) = vahti_runtime::shutdown::channel();
        let run = tokio::spawn(Arc::clone(&runtime).run(shutdown));
        runtime.started().await;
        let mut lines = Vec::new();
        for record in &recording.records {
            let before = captured.events().len();
            let ignored = runtime.ledger().records.ignored;
            runtime.process_event(record.raw()).unwrap();
            if runtime.ledger().records.ignored > ignored {
                lines.extend_from_slice(b"nothing\n");
                continue;
            }
            to_json_line(&masked(next(&captured, before).await), &mut lines);
        }
        trigger.begin();
        run.await.unwrap().unwrap();
        let ledger = runtime.ledger();
        assert!(ledger.is_exact(), "{ledger:?}");
        String::from_utf8(lines).unwrap()
    })
}

async fn next(captured: &Captured, before: usize) -> Event {
    for _ in 0..5_000 {
        let events = captured.events();
        if let Some(event) = events.get(before) {
            assert_eq!(events.len(), before + 1, "one record, one event");
            return (**event).clone();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("event {before} did not come");
}

/// When it was observed is the one fact that is not the recording's.
fn masked(event: Event) -> Event {
    Event { observed_ns: 0, ..event }
}

fn compare(name: &str) {
    let lines = lines_of(name);
    assert_eq!(lines, lines_of(name), "replayed, {name} differs");
    let golden = fixture(&format!("{name}.jsonl"));
    if std::env::var_os("VAHTI_UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &lines).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap();
    for (number, (line, expected)) in lines.lines().zip(expected.lines()).enumerate() {
        assert_eq!(line, expected, "record {number} of {name}");
    }
    assert_eq!(lines.lines().count(), expected.lines().count());
}

#[test]
fn network_records_give_the_lines_that_they_gave() {
    compare("network");
}

#[test]
fn container_records_give_the_lines_that_they_gave() {
    compare("container");
}

/// systemd in a container: services in cgroups below the container's own.
#[test]
fn records_from_below_a_containers_cgroup_give_the_lines_that_they_gave() {
    compare("container_below");
}

/// What the kernel that the others were recorded on could not make.
#[test]
fn records_that_were_made_by_hand_give_the_lines_that_they_gave() {
    compare("network_made");
    compare("container_made");
}

#[test]
fn normal_ends_of_containers_give_the_lines_that_they_gave_where_they_are_asked_for() {
    compare(NORMAL_EXITS);
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
    let made = ["network_made", "container_made", NORMAL_EXITS];
    for name in ["network", "container", "container_below"].into_iter().chain(made) {
        let recording = recording(name);
        let used = processor(name, &recording);
        for record in recording.records.iter().chain(recording.records.iter().rev()) {
            let again = used.process(record.raw()).unwrap();
            let fresh = processor(name, &recording).process(record.raw()).unwrap();
            assert_eq!(line_of(again), line_of(fresh));
        }
    }
}
