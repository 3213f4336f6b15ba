//! What each signal needs of the probes, and what it is without them.

use vahti_ebpf::proof::{ProbeReport, ProbeState};

use crate::report::{SignalReport, State};

/// Something that vahti tells, by its subtype.
struct Signal {
    observer: &'static str,
    subtype: &'static str,
    needs: &'static [Need],
    /// How accurate it is where all is well, if that is not all there is to
    /// know.
    accuracy: Option<&'static str>,
}

/// A probe that a signal is made of.
struct Need {
    program: &'static str,
    /// What is lost without it; `None` if that is the signal itself.
    cost: Option<&'static str>,
}

const fn must(program: &'static str) -> Need {
    Need { program, cost: None }
}

const fn should(program: &'static str, cost: &'static str) -> Need {
    Need { program, cost: Some(cost) }
}

const END: Need = must("connection_end");
const OWNER: Need = should(
    "connection_begin",
    "connections that a process here began are told without that process and their duration",
);

const UNSEEN: Need = should(
    "connection_destroy",
    "a failure that the kernel shows to no program when it happens is not told",
);

const TAKEN: Need = should(
    "connection_error",
    "an error that its process takes before the socket is closed is inferred, and a failure that \
     the kernel shows to no program is told when its socket is closed",
);

const SIGNALS: [Signal; 8] = [
    Signal {
        observer: "network",
        subtype: "connection_refused",
        needs: &[END, OWNER, UNSEEN, TAKEN],
        accuracy: None,
    },
    Signal {
        observer: "network",
        subtype: "connection_timeout",
        needs: &[END, OWNER, UNSEEN, TAKEN],
        accuracy: None,
    },
    Signal {
        observer: "network",
        subtype: "connection_unreachable",
        needs: &[
            END,
            OWNER,
            UNSEEN,
            should(
                "connection_error",
                "what a firewall on this machine rejects may be told with an error that is \
                 inferred, or not at all",
            ),
            should("route_v4", "IPv4 connections to where no route leads are not told"),
            should("route_v6", "IPv6 connections to where no route leads are not told"),
        ],
        accuracy: Some(
            "where no route leads, a socket that was bound to a port or a device before is not told",
        ),
    },
    Signal {
        observer: "network",
        subtype: "connection_reset",
        needs: &[
            END,
            OWNER,
            should(
                "connection_receive",
                "accepted connections are told as their listener's, and as unresolved",
            ),
        ],
        accuracy: Some(
            "an accepted connection that nobody has read from is told as its listener's, and as \
             unresolved",
        ),
    },
    Signal {
        observer: "network",
        subtype: "connection_abandoned",
        needs: &[END, OWNER],
        accuracy: None,
    },
    Signal {
        observer: "container",
        subtype: "oom_kill",
        needs: &[must("oom_kill"), must("signal_sent")],
        accuracy: None,
    },
    Signal {
        observer: "container",
        subtype: "container_exit",
        needs: &[
            must("process_exit"),
            should(
                "cgroup_attach",
                "the first process of a container is told by its pid namespace or its parent",
            ),
            should(
                "process_exec",
                "the first process of a container that shares a pid namespace may be missed",
            ),
            should("signal_sent", "who sent a fatal signal is not told"),
            should("oom_kill", "an exit for want of memory is told as killed, without its cause"),
        ],
        accuracy: None,
    },
    Signal {
        observer: "container",
        subtype: "process_crash",
        needs: &[
            must("process_exit"),
            should("signal_sent", "who sent a fatal signal is not told"),
        ],
        accuracy: None,
    },
];

/// How each signal of an observer stands, by how its probes do; where it has
/// none, by why.
pub(super) fn reports(
    observer: &str,
    probes: &Result<Vec<ProbeReport>, String>,
) -> Vec<SignalReport> {
    let signals = SIGNALS.iter().filter(|signal| signal.observer == observer);
    signals
        .map(|signal| match probes {
            Ok(probes) => report(signal, probes),
            Err(why) => {
                let remedy = "a kernel 5.8 or later with CONFIG_DEBUG_INFO_BTF";
                SignalReport {
                    state: State::Missing,
                    why: Some(why.clone()),
                    remedy: Some(remedy.to_owned()),
                    ..blank(signal)
                }
            }
        })
        .collect()
}

fn blank(signal: &Signal) -> SignalReport {
    SignalReport {
        observer: signal.observer.to_owned(),
        signal: signal.subtype.to_owned(),
        state: State::Works,
        mechanism: None,
        why: None,
        remedy: None,
        accuracy: None,
    }
}

fn report(signal: &Signal, probes: &[ProbeReport]) -> SignalReport {
    let mut report = blank(signal);
    let mut tracepoints: Vec<&str> = Vec::new();
    let (mut whys, mut remedies, mut accuracy) = (Vec::new(), Vec::new(), Vec::new());
    for need in signal.needs {
        let found = probes.iter().find(|p| p.probe.program == need.program);
        match found.map(|p| (p.probe.tracepoint, &p.state)) {
            Some((tracepoint, ProbeState::Proven { .. })) => tracepoints.push(tracepoint),
            Some((tracepoint, ProbeState::New | ProbeState::Attached)) => {
                tracepoints.push(tracepoint);
                report.state = report.state.max(State::Degraded);
                whys.push(format!("{tracepoint}: attached, but saw no fact of our own making"));
                remedies.push("try again; if it stays, report the kernel's version".to_owned());
                accuracy.extend(need.cost.map(|cost| format!("if it sees none, {cost}")));
            }
            Some((tracepoint, ProbeState::Refused(why))) => {
                let lost = need.cost.map_or(State::Missing, |_| State::Degraded);
                report.state = report.state.max(lost);
                whys.push(format!("{tracepoint}: {why}"));
                remedies.push(format!("a kernel {} or later, with BTF", since(tracepoint)));
                accuracy.extend(need.cost.map(str::to_owned));
            }
            None => report.state = State::Missing,
        }
    }
    if report.state != State::Missing {
        accuracy.extend(signal.accuracy.map(str::to_owned));
        tracepoints.dedup();
        let plural = if tracepoints.len() == 1 { "" } else { "s" };
        let list = tracepoints.join(", ");
        report.mechanism = Some(format!("raw tracepoint{plural} {list}"));
        report.accuracy = (!accuracy.is_empty()).then(|| accuracy.join("; "));
    }
    remedies.dedup();
    report.why = (!whys.is_empty()).then(|| whys.join("; "));
    report.remedy = (!remedies.is_empty()).then(|| remedies.join("; "));
    report
}

/// The first kernel that can run what is attached to a tracepoint.
fn since(tracepoint: &str) -> &'static str {
    match tracepoint {
        "inet_sk_error_report" => "5.14",
        _ => "5.8",
    }
}

#[cfg(test)]
mod tests {
    use vahti_ebpf::proof::Probe;
    use vahti_observers::{container, network};
    use vahti_runtime::event::{
        CONNECTION_ABANDONED, CONNECTION_REFUSED, CONNECTION_RESET, CONNECTION_TIMEOUT,
        CONNECTION_UNREACHABLE, CONTAINER_EXIT, OOM_KILL, PROCESS_CRASH,
    };

    use super::*;

    fn probes(of: &[Probe], state: impl Fn(&Probe) -> ProbeState) -> Vec<ProbeReport> {
        of.iter().map(|probe| ProbeReport { probe: *probe, state: state(probe) }).collect()
    }

    fn all_proven(_: &Probe) -> ProbeState {
        ProbeState::Proven { boot_ns: 1 }
    }

    fn without(program: &'static str) -> impl Fn(&Probe) -> ProbeState {
        move |probe| match probe.program == program {
            true => ProbeState::Refused("no such tracepoint".to_owned()),
            false => all_proven(probe),
        }
    }

    fn states(reports: &[SignalReport]) -> Vec<(&str, State)> {
        reports.iter().map(|r| (r.signal.as_str(), r.state)).collect()
    }

    #[test]
    fn every_kind_of_event_is_a_signal_and_every_probe_serves_one() {
        let kinds = [
            &CONNECTION_REFUSED,
            &CONNECTION_TIMEOUT,
            &CONNECTION_UNREACHABLE,
            &CONNECTION_RESET,
            &CONNECTION_ABANDONED,
            &OOM_KILL,
            &CONTAINER_EXIT,
            &PROCESS_CRASH,
        ];
        assert_eq!(SIGNALS.map(|s| s.subtype), kinds.map(|kind| kind.subtype()));
        for (observer, probes) in
            [("network", &network::PROBES[..]), ("container", &container::PROBES)]
        {
            let needed = || {
                let signals = SIGNALS.iter().filter(|s| s.observer == observer);
                signals.flat_map(|s| s.needs).map(|need| need.program)
            };
            for program in needed() {
                assert!(probes.iter().any(|p| p.program == program), "{program}");
            }
            for probe in probes {
                assert!(needed().any(|program| program == probe.program), "{}", probe.program);
            }
        }
    }

    #[test]
    fn a_signal_works_where_all_of_its_probes_do() {
        let probes = Ok(probes(&network::PROBES, all_proven));
        let reports = reports("network", &probes);
        assert!(reports.iter().all(|r| r.state == State::Works && r.why.is_none()));
        let reset = &reports[3];
        assert_eq!(
            reset.mechanism.as_deref(),
            Some("raw tracepoints inet_sock_set_state, tcp_rcv_space_adjust")
        );
        assert!(reset.accuracy.is_some(), "what it can't know is told where all is well, too");
    }

    #[test]
    fn a_probe_that_is_refused_costs_its_signals_what_it_gives_them() {
        let probes = Ok(probes(&network::PROBES, without("connection_error")));
        let reports = reports("network", &probes);
        let degraded: Vec<_> = reports.iter().filter(|r| r.state != State::Works).collect();
        let [refused, timeout, unreachable] = degraded.as_slice() else { panic!("{reports:#?}") };
        assert_eq!(refused.signal, "connection_refused");
        assert_eq!(timeout.signal, "connection_timeout");
        assert_eq!(unreachable.signal, "connection_unreachable");
        assert!(degraded.iter().all(|r| r.state == State::Degraded));
        let accuracy = refused.accuracy.as_deref().unwrap();
        assert!(accuracy.starts_with("an error that its process takes "), "{accuracy}");
        assert_eq!(unreachable.why.as_deref(), Some("inet_sk_error_report: no such tracepoint"));
        assert_eq!(unreachable.remedy.as_deref(), Some("a kernel 5.14 or later, with BTF"));
        let accuracy = unreachable.accuracy.as_deref().unwrap();
        assert!(accuracy.starts_with("what a firewall on this machine rejects may be told with "));
    }

    #[test]
    fn a_signal_is_missing_where_what_makes_it_is() {
        let probes = Ok(probes(&container::PROBES, without("signal_sent")));
        let told = reports("container", &probes);
        let expected = [
            ("oom_kill", State::Missing),
            ("container_exit", State::Degraded),
            ("process_crash", State::Degraded),
        ];
        assert_eq!(states(&told), expected);
        assert_eq!(told[0].mechanism, None);
        let none = reports("container", &Err("no kernel BTF".to_owned()));
        assert!(none.iter().all(|r| r.state == State::Missing && r.remedy.is_some()));
        assert_eq!(none.len(), 3);
    }

    #[test]
    fn a_probe_without_a_proof_is_not_trusted() {
        let probes = Ok(probes(&network::PROBES, |_| ProbeState::Attached));
        for report in reports("network", &probes) {
            assert_eq!(report.state, State::Degraded);
            assert!(report.mechanism.is_some());
            let remedy = report.remedy.unwrap();
            assert_eq!(remedy, "try again; if it stays, report the kernel's version");
        }
    }
}
