#![allow(clippy::panic, reason = "a test ends so")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::*;
use crate::event::{
    CONNECTION_REFUSED, Comm, Container, ErrorInfo, NetworkType, OOM_KILL, Outcome, Severity,
    Transport,
};
use crate::ids::EntityId;

const MS: u64 = 1_000_000;
/// The window.
const W: u64 = 1_000 * MS;

fn endpoint(last: u8, port: u16) -> Endpoint {
    Endpoint { address: Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))), port: Some(port) }
}

/// A refused connection of a process to a peer, at a millisecond.
fn refused(pid: u32, peer: u8, ms: u64) -> Event {
    let process = Process {
        pid: Some(pid),
        name: Some(Comm::new(b"curl")),
        uid: Some(1_000),
        parent_pid: Some(1),
        start_ns: Some(u64::from(pid)),
    };
    Event {
        id: EventId(u128::from(ms) + 1),
        time_ns: ms * MS,
        trace_id: TraceId(u128::from(pid)),
        span_id: Some(SpanId::from_hash(u128::from(ms) + 1)),
        outcome: Outcome::Failure,
        error: Some(ErrorInfo {
            code: "ECONNREFUSED".into(),
            message: "nobody listens there".into(),
            cause: None,
        }),
        entity: Some(EntityId::named(&pid.to_string())),
        process: Some(process),
        data: EventData::Network(Network {
            transport: Transport::Tcp,
            network_type: NetworkType::Ipv4,
            local: endpoint(1, 40_000),
            peer: endpoint(peer, 80),
        }),
        ..Event::new(&CONNECTION_REFUSED, Severity::Error)
    }
}

fn in_container(id: &str, event: Event) -> Event {
    let container = Arc::new(Container { id: id.into(), runtime: None });
    Event { container: Some(container), ..event }
}

fn network(event: &Event) -> Network {
    match &event.data {
        EventData::Network(network) => *network,
        other => panic!("{other:?}"),
    }
}

/// Offers events at their own times; which of them pass, and all summaries.
fn fold(folder: &mut Folder, events: &[Event]) -> Vec<bool> {
    events.iter().map(|event| !folder.offer(event, event.time_ns, || (EventId(99), 99))).collect()
}

fn flushed(folder: &mut Folder) -> Vec<Event> {
    let mut summaries = Vec::new();
    folder.flush(&mut |summary| summaries.push(summary));
    summaries
}

/// The one summary that follows a first event.
fn summary_of(events: &[Event]) -> Event {
    let mut folder = Folder::new(FoldLimits::default());
    let passed = fold(&mut folder, events);
    assert!(passed[0] && !passed[1..].contains(&true), "one key: {passed:?}");
    let mut summaries = flushed(&mut folder);
    assert_eq!(summaries.len(), 1);
    summaries.remove(0)
}

#[test]
fn the_first_passes_at_once_and_the_rest_become_one_with_the_exact_count() {
    let mut folder = Folder::new(FoldLimits::default());
    let events: Vec<_> = (0..500).map(|ms| refused(7, 2, ms)).collect();
    let passed = fold(&mut folder, &events);
    assert_eq!(passed.iter().filter(|passed| **passed).count(), 1);
    assert!(passed[0]);
    assert_eq!(folder.folding(), Tally { occurrences: 499, envelopes: 1 });
    let summaries = flushed(&mut folder);
    assert_eq!((summaries.len(), summaries[0].count), (1, 499));
    let first_and_last = (summaries[0].first_ns, summaries[0].last_ns);
    assert_eq!(first_and_last, (MS, 499 * MS), "of those that it stands for");
    assert_eq!(summaries[0].time_ns, MS);
    assert_eq!((summaries[0].id, summaries[0].span_id), (EventId(99), Some(SpanId::from_hash(99))));
    assert_eq!(folder.folding(), Tally::default());
}

#[test]
fn one_alone_leaves_no_summary() {
    let mut folder = Folder::new(FoldLimits::default());
    assert_eq!(fold(&mut folder, &[refused(7, 2, 0)]), [true]);
    assert!(flushed(&mut folder).is_empty());
}

#[test]
fn counts_of_what_was_folded_before_add_up() {
    let three = |ms| Event { count: 3, first_ns: ms, last_ns: ms * MS, ..refused(7, 2, ms) };
    let summary = summary_of(&[three(10), three(20), three(30)]);
    assert_eq!((summary.count, summary.first_ns, summary.last_ns), (6, 20, 30 * MS));
}

#[test]
fn what_all_shared_survives() {
    let summary = summary_of(&[refused(7, 2, 0), refused(7, 2, 1), refused(7, 2, 2)]);
    let single = refused(7, 2, 1);
    assert_eq!(summary.process, single.process, "the pid of one process stays");
    assert_eq!(summary.entity, single.entity);
    assert_eq!(summary.error, single.error);
    assert_eq!(summary.data, single.data);
    assert_eq!(summary.trace_id, single.trace_id);
    assert_eq!((summary.severity, summary.outcome), (Severity::Error, Outcome::Failure));
}

#[test]
fn a_local_port_that_differs_is_absent() {
    let with_port = |port| {
        let event = refused(7, 2, u64::from(port));
        let data = EventData::Network(Network { local: endpoint(1, port), ..network(&event) });
        Event { data, ..event }
    };
    let summary = summary_of(&[with_port(1), with_port(2), with_port(3)]);
    let network = network(&summary);
    assert_eq!(network.local, Endpoint { port: None, ..endpoint(1, 0) });
    assert_eq!(network.peer, endpoint(2, 80));
}

#[test]
fn a_start_time_that_is_off_by_a_little_is_still_the_same_process() {
    let off = |event: Event, by: u64| {
        let process = event.process.map(|p| Process { start_ns: Some(7 + by), ..p });
        Event { process, ..event }
    };
    let summary =
        summary_of(&[refused(7, 2, 0), off(refused(7, 2, 1), 1), off(refused(7, 2, 2), 2)]);
    assert_eq!(summary.process.map(|p| (p.pid, p.start_ns)), Some((Some(7), Some(8))));
}

#[test]
fn a_process_that_took_another_name_meanwhile_has_none_in_the_summary() {
    let named = |event: Event, name| {
        let process = event.process.map(|p| Process { name: Some(Comm::new(name)), ..p });
        Event { process, ..event }
    };
    let (before, after) = (named(refused(7, 2, 1), b"sh"), named(refused(7, 2, 2), b"curl"));
    let summary = summary_of(&[refused(7, 2, 0), before, after]);
    assert_eq!(summary.process.map(|p| (p.pid, p.name)), Some((Some(7), None)));
}

#[test]
fn processes_of_one_container_fold_together_and_no_pid_is_claimed() {
    let events: Vec<_> =
        (0..4u32).map(|n| in_container("c", refused(n, 2, u64::from(n)))).collect();
    let summary = summary_of(&events);
    let process = summary.process.unwrap();
    assert_eq!((process.pid, process.start_ns), (None, None));
    assert_eq!(process.name, Some(Comm::new(b"curl")), "shared by all");
    assert_eq!(summary.entity, None);
    assert_eq!(summary.container.as_ref().map(|c| &*c.id), Some("c"));
    let own = summary.trace_id;
    assert!(own.is_set() && events.iter().all(|e| e.trace_id != own), "several incidents");
}

#[test]
fn a_process_that_only_some_have_is_none() {
    let without = Event { process: None, ..in_container("c", refused(1, 2, 1)) };
    let with = in_container("c", refused(1, 2, 2));
    assert_eq!(summary_of(&[with.clone(), without.clone(), with.clone()]).process, None);
    assert_eq!(summary_of(&[with.clone(), with.clone(), without]).process, None);
}

#[test]
fn what_differs_in_a_key_is_not_merged() {
    let base = || refused(7, 2, 0);
    let code =
        |code: &'static str| base().error.map(|error| ErrorInfo { code: code.into(), ..error });
    let port = EventData::Network(Network { peer: endpoint(2, 81), ..network(&base()) });
    let events = [
        base(),
        refused(7, 3, 1),
        refused(8, 2, 2),
        Event { error: code("ECONNRESET"), ..base() },
        Event { error: None, ..base() },
        Event { data: port, ..base() },
        Event { sampling_threshold: 1 << 55, weight: 2.0, ..base() },
        Event { kind: &crate::event::CONNECTION_RESET, ..base() },
        in_container("a", base()),
        in_container("b", base()),
    ];
    let mut folder = Folder::new(FoldLimits::default());
    assert_eq!(fold(&mut folder, &events), [true; 10]);
    assert_eq!(folder.folding(), Tally::default());
}

#[test]
fn what_is_critical_never_folds() {
    let kill = Event { kind: &OOM_KILL, ..refused(7, 2, 0) };
    let mut folder = Folder::new(FoldLimits::default());
    assert_eq!(fold(&mut folder, &[kill.clone(), kill.clone(), kill]), [true; 3]);
    assert_eq!(folder.next_end_ns(), None, "not even a window");
}

#[test]
fn beyond_the_limit_of_keys_events_pass_unfolded() {
    let mut folder = Folder::new(FoldLimits { max_keys: 2, ..FoldLimits::default() });
    for round in 0..3u64 {
        let events: Vec<_> = (0..4u32).map(|pid| refused(pid, 2, round)).collect();
        let first = round == 0;
        assert_eq!(fold(&mut folder, &events), [first, first, true, true]);
    }
    let counts: Vec<_> = flushed(&mut folder).iter().map(|summary| summary.count).collect();
    assert_eq!(counts, [2, 2]);
}

#[test]
fn a_key_that_ended_makes_room_for_another() {
    let mut folder = Folder::new(FoldLimits { max_keys: 1, ..FoldLimits::default() });
    fold(&mut folder, &[refused(1, 2, 0)]);
    assert_eq!(fold(&mut folder, &[refused(2, 2, 1), refused(2, 2, 2)]), [true, true]);
    folder.advance(W, &mut |_| {});
    assert_eq!(fold(&mut folder, &[refused(2, 2, 1_000), refused(2, 2, 1_001)]), [true, false]);
}

#[test]
fn a_window_ends_when_it_is_over_and_not_before() {
    let mut folder = Folder::new(FoldLimits::default());
    fold(&mut folder, &[refused(7, 2, 100), refused(7, 2, 200)]);
    let end = 100 * MS + W;
    assert_eq!(folder.next_end_ns(), Some(end));
    let mut summaries = Vec::new();
    folder.advance(end - 1, &mut |summary| summaries.push(summary));
    assert!(summaries.is_empty());
    folder.advance(end, &mut |summary| summaries.push(summary));
    assert_eq!(summaries.len(), 1);
    assert_eq!((folder.next_end_ns(), folder.folding()), (None, Tally::default()));
    assert_eq!(fold(&mut folder, &[refused(7, 2, 1_100)]), [true], "a storm that goes on shows");
}

#[test]
fn records_of_several_cpus_out_of_order_count_all_the_same() {
    let at = |ms| refused(7, 2, ms);
    let summary = summary_of(&[at(500), at(900), at(400), at(700)]);
    assert_eq!(summary.count, 3);
    assert_eq!((summary.first_ns, summary.last_ns), (400 * MS, 900 * MS));
    assert_eq!(summary.time_ns, 400 * MS);
    // An old record opens a window of full length from the latest time seen.
    let mut folder = Folder::new(FoldLimits::default());
    fold(&mut folder, &[at(5_000), refused(8, 2, 10)]);
    let mut over = 0;
    folder.advance(5_500 * MS, &mut |_| over += 1);
    assert_eq!((over, folder.ends.len()), (0, 2));
}

#[test]
fn the_end_of_the_boot_clock_is_survived() {
    let mut folder = Folder::new(FoldLimits::default());
    let event = refused(7, 2, 0);
    for _ in 0..3 {
        folder.offer(&event, u64::MAX, || (EventId(1), 1));
    }
    let counts: u64 = flushed(&mut folder).iter().map(|summary| summary.count).sum();
    assert_eq!(counts, 2);
}

#[test]
fn after_the_last_flush_nothing_is_held_back_any_more() {
    let mut folder = Folder::new(FoldLimits::default());
    fold(&mut folder, &[refused(7, 2, 0), refused(7, 2, 1)]);
    assert_eq!(flushed(&mut folder).len(), 1);
    assert_eq!(fold(&mut folder, &[refused(7, 2, 2), refused(7, 2, 3)]), [true, true]);
}

#[test]
fn severities_and_outcomes_that_differ_become_the_worst_and_unknown() {
    let worse = Event { severity: Severity::Fatal, ..refused(7, 2, 2) };
    let other = Event { outcome: Outcome::Timeout, ..refused(7, 2, 3) };
    let summary = summary_of(&[refused(7, 2, 0), refused(7, 2, 1), worse, other]);
    assert_eq!((summary.severity, summary.outcome), (Severity::Fatal, Outcome::Unknown));
}

#[test]
fn a_summary_passes_the_threshold_of_its_parts_uniformly() {
    for threshold in [1 << 55, (1 << 56) - (1 << 46)] {
        let above: Vec<f64> = (0..2_000u64)
            .map(|n| {
                let span_id = Some(SpanId::from_hash(u128::from(n) + 1));
                let sampled = Event {
                    sampling_threshold: threshold,
                    trace_id: TraceId::UNSET,
                    span_id,
                    ..refused(1, 2, 1)
                };
                let randomness = finished(sampled).trace_id.randomness();
                assert!(randomness >= threshold);
                (randomness - threshold) as f64 / ((1u64 << 56) - threshold) as f64
            })
            .collect();
        let mean = above.iter().sum::<f64>() / above.len() as f64;
        // A uniform mean of n has a standard deviation of 1 / sqrt(12 n).
        assert!((mean - 0.5).abs() < 5.0 / (12.0 * above.len() as f64).sqrt(), "{mean}");
    }
}

#[test]
fn storms_beyond_the_bytes_pass_unfolded_and_those_that_fit_are_exact() {
    let one = refused(1, 1, 0).size_bytes() + size_of::<usize>() + BLOCK;
    let limits = FoldLimits { max_bytes: 3 * one, ..FoldLimits::default() };
    let mut folder = Folder::new(limits);
    let mut passed = 0;
    for ms in 0..10 {
        for peer in 0..5 {
            let event = refused(1, peer, ms);
            let summary_id = || (EventId(9), 9);
            passed += u64::from(!folder.offer(&event, ms * MS, summary_id));
        }
    }
    // The first of each key, and all of the two that found no room.
    assert_eq!(passed, 5 + 2 * 9);
    let mut counts = Vec::new();
    folder.advance(2 * W, &mut |summary| counts.push(summary.count));
    assert_eq!(counts, [9; 3]);
    assert_eq!((folder.bytes, folder.folding()), (0, Tally::default()));
}
