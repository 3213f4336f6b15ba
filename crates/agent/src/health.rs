//! Whether the agent is alive, whether it watches, and how each part does: for
//! probes, over HTTP and the control socket, and for people.
//!
//! Alive means what the service manager's watchdog means: the thread that
//! supervises runs, and no emitter is stuck. Whatever is down by its policy is
//! told and is alive: a new process would be no better. Ready means that every
//! observer that is wanted watches, and that its programs have proven it.

mod command;
mod pulse;

use std::fmt;

use serde_json::{Value, json};
use vahti_runtime::clock::rfc3339;
use vahti_runtime::delivery::{EmitterHandle, EmitterState};
use vahti_runtime::event::escape_text;
use vahti_runtime::health::{Health, HealthStatus};
use vahti_runtime::ledger::ObserverLedger;
use vahti_runtime::observer::ObserverRuntime;

pub(crate) use self::command::health;
pub(crate) use self::pulse::Pulse;
use crate::reload;
use crate::run::{Running, emitter_state};

/// One thing that is looked at, and why it is not well, if it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) why: Option<String>,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why {
            None => write!(f, "[+]{} ok", self.name),
            // Reasons come from anywhere.
            Some(why) => write!(f, "[-]{}: {}", self.name, escape_text(why)),
        }
    }
}

/// How an observer does.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ObserverHealth {
    pub(crate) name: String,
    status: HealthStatus,
    last_check: Option<String>,
    events: u64,
    drops: u64,
    uptime_seconds: f64,
    /// Why it is not ready, if it is not.
    unready: Option<String>,
}

/// How the agent does.
pub(crate) struct Report {
    pub(crate) live: Vec<Check>,
    pub(crate) ready: Vec<Check>,
    pub(crate) observers: Vec<ObserverHealth>,
    emitters: Vec<Value>,
    /// `None` before the start.
    configuration: Option<reload::Status>,
    status: HealthStatus,
    uptime_seconds: f64,
}

impl Report {
    /// Of the agent that runs; of one that is still about to, `None`.
    pub(crate) fn of(running: Option<&Running>) -> Self {
        let Some(running) = running else { return Self::starting() };
        let observers: Vec<_> =
            running.enabled.iter().map(|name| ObserverHealth::of(running, name)).collect();
        let live = live(running);
        let status = status(running, &observers, &live);
        let ready = observers
            .iter()
            .map(|observer| Check { name: observer.name.clone(), why: observer.unready.clone() });
        Report {
            ready: ready.collect(),
            live,
            emitters: running.emitters.iter().map(emitter_state).collect(),
            configuration: Some(running.in_force.status()),
            uptime_seconds: running.since.elapsed().as_secs_f64(),
            status,
            observers,
        }
    }

    fn starting() -> Self {
        let why = "the agent is starting".to_owned();
        Report {
            live: vec![Check { name: "supervisor".to_owned(), why: None }],
            ready: vec![Check { name: "start".to_owned(), why: Some(why.clone()) }],
            observers: Vec::new(),
            emitters: Vec::new(),
            configuration: None,
            status: HealthStatus::degraded(why),
            uptime_seconds: 0.0,
        }
    }

    pub(crate) fn is_healthy(&self) -> bool {
        self.status.health < Health::Unhealthy
    }

    /// What is told beside the checks: a configuration that was refused makes the
    /// agent no less ready, as the one before stays in force.
    pub(crate) fn note(&self) -> Option<String> {
        let status = self.configuration.as_ref()?;
        let mut note = format!("[+]configuration ok: generation {}", status.generation);
        if let Some(why) = &status.refused {
            note.push_str(&format!("; a new one was refused: {}", escape_text(why)));
        }
        if !status.needs_restart.is_empty() {
            note.push_str(&format!("; needs a restart: {}", status.needs_restart.join(", ")));
        }
        Some(note)
    }

    pub(crate) fn to_json(&self) -> Value {
        let checks = |checks: &[Check]| -> Value {
            checks.iter().map(|check| json!({"name": check.name, "why": check.why})).collect()
        };
        let are_well = |checks: &[Check]| checks.iter().all(|check| check.why.is_none());
        json!({
            "status": self.status.health,
            "reason": self.status.reason,
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.uptime_seconds,
            "live": are_well(&self.live),
            "ready": are_well(&self.ready),
            "checks": {"live": checks(&self.live), "ready": checks(&self.ready)},
            "observers": self.observers.iter().map(ObserverHealth::to_json).collect::<Vec<_>>(),
            "emitters": self.emitters,
            "configuration": self.configuration.as_ref().map(reload::Status::to_json),
        })
    }
}

/// What a new process would help against.
fn live(running: &Running) -> Vec<Check> {
    let late = running.pulse.late();
    let why = late.map(|late| format!("has not run for {} s", late.as_secs()));
    let mut all = vec![Check { name: "supervisor".to_owned(), why }];
    all.extend(running.emitters.iter().map(|emitter| Check {
        name: emitter.name().to_owned(),
        why: emitter.is_stuck().then(|| {
            let why = failing(emitter).unwrap_or_else(|| "makes no progress".to_owned());
            format!("emitter stuck: {why}")
        }),
    }));
    all
}

fn failing(emitter: &EmitterHandle) -> Option<String> {
    match emitter.state() {
        EmitterState::Failing(why) => Some(why),
        _ => None,
    }
}

/// The worst of all parts, and why.
fn status(running: &Running, observers: &[ObserverHealth], live: &[Check]) -> HealthStatus {
    let stuck = live.iter().filter_map(|check| {
        let why = check.why.as_ref()?;
        Some(HealthStatus::unhealthy(format!("{}: {why}", check.name)))
    });
    let observers = observers.iter().map(|observer| HealthStatus {
        reason: format!("{}: {}", observer.name, observer.status.reason),
        ..observer.status.clone()
    });
    let emitters = running.emitters.iter().filter_map(|emitter| {
        let why = failing(emitter)?;
        Some(HealthStatus::degraded(format!("emitter {}: {why}", emitter.name())))
    });
    let refused = running.in_force.status().refused.into_iter();
    let refused =
        refused.map(|why| HealthStatus::degraded(format!("configuration refused: {why}")));
    let all = stuck.chain(observers).chain(emitters).chain(refused);
    let ill = all.filter(|status| status.health > Health::Healthy);
    // The first of the worst.
    ill.fold(
        HealthStatus::healthy(),
        |worst, next| {
            if next.health > worst.health { next } else { worst }
        },
    )
}

impl ObserverHealth {
    fn of(running: &Running, name: &str) -> Self {
        match running.observers.iter().find(|observer| observer.name() == name) {
            Some(observer) => Self::of_runtime(observer),
            None => {
                let why = "can't run here; `vahti doctor` tells why";
                ObserverHealth {
                    name: name.to_owned(),
                    status: HealthStatus::unhealthy(why),
                    last_check: None,
                    events: 0,
                    drops: 0,
                    uptime_seconds: 0.0,
                    unready: Some(why.to_owned()),
                }
            }
        }
    }

    fn of_runtime(observer: &ObserverRuntime) -> Self {
        let (ledger, uptime) = (observer.ledger(), observer.uptime());
        let mut status = observer.health();
        if uptime.is_none() && status.health < Health::Unhealthy {
            status = HealthStatus::unhealthy("is not running");
        }
        let unproven = observer.unproven().join("; ");
        let unready = if status.health == Health::Unhealthy {
            Some(status.reason.clone())
        } else {
            Some(unproven).filter(|unproven| !unproven.is_empty())
        };
        let since_1970 = |at: std::time::SystemTime| at.duration_since(std::time::UNIX_EPOCH).ok();
        let last_check = observer.health_checker().last_check().and_then(since_1970);
        ObserverHealth {
            name: observer.name().to_owned(),
            status,
            last_check: last_check
                .map(|at| rfc3339(u64::try_from(at.as_nanos()).unwrap_or(u64::MAX))),
            events: ledger.events.produced.occurrences,
            drops: drops(&ledger),
            uptime_seconds: uptime.unwrap_or_default().as_secs_f64(),
            unready,
        }
    }

    pub(crate) fn is_healthy(&self) -> bool {
        self.status.health < Health::Unhealthy
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "observer": self.name,
            "status": self.status.health,
            "reason": self.status.reason,
            "last_check": self.last_check,
            "events": self.events,
            "drops": self.drops,
            "uptime_seconds": self.uptime_seconds,
            "ready": self.unready.is_none(),
        })
    }
}

/// All that was lost on the way: records in the kernel, in the ring and while
/// they were processed, and occurrences in the lanes.
fn drops(ledger: &ObserverLedger) -> u64 {
    let kernel = ledger.kernel.map_or(0, |line| line.lost);
    let ring = ledger.ring.map_or(0, |line| line.abandoned);
    let failed: u64 = ledger.records.failed.iter().map(|failed| failed.records).sum();
    let lanes: u64 = ledger.lanes.iter().map(|lane| lane.dropped_total().occurrences).sum();
    kernel + ring + failed + lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_starts_is_alive_and_not_ready() {
        let report = Report::of(None);
        assert!(report.live.iter().all(|check| check.why.is_none()));
        assert_eq!(report.ready[0].to_string(), "[-]start: the agent is starting");
        let json = report.to_json();
        assert_eq!((&json["live"], &json["ready"]), (&json!(true), &json!(false)));
        assert_eq!(json["status"], "degraded");
    }

    #[test]
    fn a_reason_stays_in_its_line() {
        let check = Check { name: "store".to_owned(), why: Some("a\n[+]b ok".to_owned()) };
        assert!(!check.to_string().contains('\n'), "{check}");
    }
}
