//! Probes that the kernel refuses: the others go on, and it is said which can't.
//! Needs root and BTF; says so where it has not got them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends so")]

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use vahti_ebpf::EbpfError;
use vahti_ebpf::cgroup::Hierarchy;
use vahti_ebpf::loader::open;
use vahti_ebpf::manager::AyaManager;
use vahti_ebpf::proof::{Probe, ProofOfLife};
use vahti_ebpf::source::RingSource;
use vahti_observers::network::{self, NetworkProcessor};
use vahti_runtime::event::{CONNECTION_REFUSED, Event, EventData};
use vahti_runtime::ids::BootId;
use vahti_runtime::processor::{EventProcessor as _, Output};
use vahti_runtime::source::{RecordBatch, Source as _, SourceLedger as _};
use vahti_runtime::testing::not_run;

/// Provokes nothing: what is told here is told of a fault of the test's own.
#[derive(Debug)]
struct NoProof;

impl ProofOfLife for NoProof {
    fn provoke(&mut self, _: &mut AyaManager) -> Result<(), EbpfError> {
        Ok(())
    }

    fn proven_by(&self, _: &[u8]) -> u32 {
        0
    }
}

/// The network observer's source, with `is_refused` probes on a tracepoint that
/// no kernel has; `None`, having said why, where it can't be had.
fn source(is_refused: impl Fn(&Probe) -> bool) -> Option<RingSource> {
    let manager = match open(&[network::OBJECT], Hierarchy::detect()) {
        Ok(mut opened) => opened.remove(0).unwrap(),
        Err(error) => {
            let lacks = matches!(error, EbpfError::NoKernelBtf { .. });
            assert!(error.is_permission() || lacks, "{error}");
            not_run(error);
            return None;
        }
    };
    let probes = network::PROBES.map(|probe| match is_refused(&probe) {
        true => Probe { tracepoint: "vahti_no_such_tracepoint", ..probe },
        false => probe,
    });
    Some(RingSource::new("network", manager, &probes, Box::new(NoProof)).unwrap())
}

/// What can't be told at all: not what only was not proven.
fn refused(source: &RingSource) -> Vec<String> {
    let complaints = source.ring_ledger().degraded();
    complaints.into_iter().filter(|complaint| complaint.starts_with("can't tell ")).collect()
}

/// Reads until the refused connection to this port is told.
fn told(source: &mut RingSource, port: u16) -> Event {
    let processor = NetworkProcessor::new(BootId([7; 16]), Hierarchy::detect().version);
    let mut batch = RecordBatch::new(256, 1 << 20);
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < Duration::from_secs(10), "it is not told");
        batch.clear();
        source.read(&mut batch, Some(Duration::from_millis(50))).unwrap();
        for record in batch.iter() {
            let Output::One(event) = processor.process(record).unwrap() else { continue };
            let EventData::Network(network) = &event.data else { continue };
            if network.peer.port == Some(port) {
                return event;
            }
        }
    }
}

#[test]
fn a_probe_that_the_kernel_refuses_is_named_and_the_others_tell_what_they_see() {
    let Some(mut source) = source(|probe| probe.program == "route_v4") else { return };
    source.start().unwrap();
    let [complaint] = &refused(&source)[..] else { panic!("{:?}", refused(&source)) };
    assert!(complaint.starts_with("can't tell IPv4 connections to where no route leads: "));
    assert!(complaint.contains("route_v4"), "{complaint}");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let peer = listener.local_addr().unwrap();
    drop(listener);
    assert!(TcpStream::connect(peer).is_err());
    let event = told(&mut source, peer.port());
    assert_eq!(event.kind, &CONNECTION_REFUSED);
    assert_eq!(event.process.and_then(|process| process.pid), Some(std::process::id()));
}

#[test]
fn a_source_whose_probes_are_all_refused_does_not_start_and_says_why() {
    let Some(mut source) = source(|_| true) else { return };
    let error = source.start().unwrap_err().to_string();
    assert!(error.contains("no probe works: "), "{error}");
    for probe in network::PROBES {
        assert!(error.contains(probe.signal), "{}: {error}", probe.signal);
    }
}
