//! Bytes that are not what they should be are malformed: counted, never a
//! panic, never an event.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends so")]

use std::sync::LazyLock;

use proptest::prelude::*;
use vahti_ebpf::abi::FLAG_PROOF;
use vahti_observers::container::ContainerProcessor;
use vahti_observers::container::id::{Class, classify};
use vahti_observers::network::NetworkProcessor;
use vahti_observers::recording::Recording;
use vahti_runtime::ids::BootId;
use vahti_runtime::processor::{EventProcessor, Output, ProcessError, RawRecord, RecordKind};

const RECORDINGS: [&str; 2] =
    [include_str!("fixtures/network.rec"), include_str!("fixtures/container.rec")];

fn processors() -> [Box<dyn EventProcessor>; 2] {
    let boot = BootId([7; 16]);
    [Box::new(NetworkProcessor::new(boot, 2)), Box::new(ContainerProcessor::new(boot, 2))]
}

fn process(processor: &dyn EventProcessor, bytes: &[u8]) -> Result<Output, ProcessError> {
    processor.process(RawRecord {
        kind: RecordKind::Kernel,
        boot_ns: 1,
        wall_ns: 2,
        cpu: 0,
        seq: 1,
        bytes,
    })
}

/// Real records of an observer that are no proofs.
fn records(observer: usize) -> Vec<Vec<u8>> {
    let recording = Recording::parse(RECORDINGS[observer]).unwrap();
    let bytes = recording.records.iter().map(|r| r.raw().bytes.to_vec());
    bytes.filter(|b| u32::from(b[12]) & FLAG_PROOF == 0).collect()
}

fn is_malformed(result: &Result<Output, ProcessError>) -> bool {
    matches!(result, Err(ProcessError::Malformed { .. }))
}

#[test]
fn a_record_cut_anywhere_is_malformed() {
    for (observer, processor) in processors().iter().enumerate() {
        for record in records(observer) {
            for len in 0..record.len() {
                let cut = process(&**processor, &record[..len]);
                assert!(is_malformed(&cut), "cut to {len} of {}", record.len());
            }
        }
    }
}

#[test]
fn a_record_with_more_behind_it_is_malformed() {
    for (observer, processor) in processors().iter().enumerate() {
        for mut record in records(observer) {
            record.push(0);
            assert!(is_malformed(&process(&**processor, &record)));
        }
    }
}

#[test]
fn a_record_of_the_other_observer_is_malformed() {
    for (observer, processor) in processors().iter().enumerate() {
        for record in records(1 - observer) {
            assert!(is_malformed(&process(&**processor, &record)));
        }
    }
}

#[test]
fn a_record_of_another_abi_is_malformed() {
    for (observer, processor) in processors().iter().enumerate() {
        for mut record in records(observer) {
            record[0] += 1;
            assert!(is_malformed(&process(&**processor, &record)));
        }
    }
}

/// Tens of thousands, a second or two: what `fuzz/` does without an end, and
/// with a nightly compiler only.
fn many() -> ProptestConfig {
    ProptestConfig { cases: 10_000, ..ProptestConfig::default() }
}

/// Parsing a recording takes longer than a case.
static RECORDS: LazyLock<[Vec<Vec<u8>>; 2]> = LazyLock::new(|| [records(0), records(1)]);
static PROCESSORS: LazyLock<[Box<dyn EventProcessor>; 2]> = LazyLock::new(processors);

/// Names that runtimes use, put together as none does.
fn cgroup_path() -> impl Strategy<Value = Vec<u8>> {
    const PARTS: [&[u8]; 32] = [
        b"/",
        b"/docker/",
        b"/lxc/",
        b"/machine.slice/",
        b"/ecs/",
        b"/kubepods/",
        b"/pod",
        b"docker-",
        b"cri-containerd-",
        b"crio-conmon-",
        b"libpod-",
        b"lxc.payload.",
        b"lxc.monitor.",
        b"machine-",
        b"systemd-nspawn@",
        b"qemu\\x2d",
        b"lxc\\x2d",
        b"\\x",
        b"\\xff",
        b"-",
        b":",
        b"..",
        b".scope",
        b".slice",
        b".service",
        b"-pod",
        b"\xc3\xa9",
        b"\xff",
        b"\n",
        b"5f1c2ab3_9d4e_4c11_8a77_0b1c2d3e4f50",
        b"5f1c2ab3-9d4e-4c11-8a77-0b1c2d3e4f50",
        b"0123456789abcdef0123456789abcdef",
    ];
    let known = prop::sample::select(&PARTS[..]).prop_map(<[u8]>::to_vec);
    let part = prop_oneof![8 => known, 1 => proptest::collection::vec(any::<u8>(), 0..4)];
    proptest::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}

/// A line that nobody's terminal or parser stumbles over.
fn is_harmless(event: &vahti_runtime::event::Event) -> bool {
    let mut line = Vec::new();
    vahti_runtime::event::to_json_line(event, &mut line);
    let text = std::str::from_utf8(&line).unwrap();
    !text.trim_end_matches('\n').chars().any(char::is_control)
}

proptest! {
    #![proptest_config(many())]

    #[test]
    fn any_cgroup_path_is_classified(path in cgroup_path()) {
        if let Class::Container(container) = classify(&path) {
            prop_assert!(!container.id.is_empty());
            prop_assert!(container.id.len() <= path.len());
        }
    }

    #[test]
    fn random_bytes_are_malformed(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
        for processor in &*PROCESSORS {
            prop_assert!(is_malformed(&process(&**processor, &bytes)));
        }
    }

    #[test]
    fn a_network_record_with_changed_bytes_never_panics(changes in changes()) {
        if let Ok(Output::One(event)) = process_changed(0, changes) {
            prop_assert!(is_harmless(&event));
        }
    }

    #[test]
    fn a_container_record_with_changed_bytes_never_panics(changes in changes()) {
        if let Ok(Output::One(event)) = process_changed(1, changes) {
            prop_assert!(is_harmless(&event));
        }
    }
}

/// Which record, and what stands where in it instead.
type Changes = (prop::sample::Index, Vec<(prop::sample::Index, u8)>);

fn changes() -> impl Strategy<Value = Changes> {
    (
        any::<prop::sample::Index>(),
        proptest::collection::vec(any::<(prop::sample::Index, u8)>(), 1..40),
    )
}

fn process_changed(observer: usize, (which, changes): Changes) -> Result<Output, ProcessError> {
    let mut record = which.get(&RECORDS[observer]).clone();
    for (at, value) in changes {
        let at = at.index(record.len());
        record[at] = value;
    }
    process(&*PROCESSORS[observer], &record)
}
