//! Bytes that are not what they should be are malformed: counted, never a
//! panic, never an event.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends so")]

use proptest::prelude::*;
use vahti_ebpf::abi::FLAG_PROOF;
use vahti_observers::container::ContainerProcessor;
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

proptest! {
    #[test]
    fn random_bytes_are_malformed(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
        for processor in processors() {
            prop_assert!(is_malformed(&process(&*processor, &bytes)));
        }
    }

    #[test]
    fn a_record_with_changed_bytes_never_panics(
        observer in 0_usize..2,
        which in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
    ) {
        let records = records(observer);
        let mut record = which.get(&records).clone();
        for (at, value) in changes {
            let at = at.index(record.len());
            record[at] = value;
        }
        let processor = &processors()[observer];
        if let Ok(Output::One(event)) = process(&**processor, &record) {
            let mut line = Vec::new();
            vahti_runtime::event::to_json_line(&event, &mut line);
            let text = std::str::from_utf8(&line).unwrap();
            prop_assert!(!text.trim_end_matches('\n').chars().any(char::is_control));
        }
    }
}
