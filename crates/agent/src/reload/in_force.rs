//! The configuration that is gone by, and what became of the last new one.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use vahti_runtime::config::InvalidField;

use super::plan::Plan;
use crate::budget::Division;
use crate::config::problem::InvalidConfig;
use crate::config::{Config, LogSettings};

/// What a reload came to, as metrics count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A configuration that is another one than before.
    Changed,
    /// The one that is known.
    Unchanged,
    /// One that is wrong, or none that can be read.
    Refused,
}

impl Outcome {
    pub(crate) const ALL: [Outcome; 3] = [Outcome::Changed, Outcome::Unchanged, Outcome::Refused];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Outcome::Changed => "changed",
            Outcome::Unchanged => "unchanged",
            Outcome::Refused => "refused",
        }
    }
}

/// What is in force, for who reloads and who asks.
#[derive(Debug)]
pub(crate) struct InForce(Mutex<State>);

#[derive(Debug)]
struct State {
    /// As it was resolved, but for what needs a restart.
    config: Config,
    /// What was asked for last and is good: with what needs a restart.
    accepted: Config,
    division: Division,
    status: Status,
}

/// What is told of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Status {
    /// Goes up with every configuration that is another one than the one before
    /// and was not refused; the one of the start is the first.
    pub(crate) generation: u64,
    /// Why the last one was refused, if it was.
    pub(crate) refused: Option<String>,
    /// When one was read last that was not refused, in seconds since 1970.
    pub(crate) success_seconds: f64,
    /// The fields that differ from what is in force.
    pub(crate) needs_restart: Vec<String>,
    /// How often, by result.
    pub(crate) counts: [u64; Outcome::ALL.len()],
}

impl Status {
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "generation": self.generation,
            "last_reload_successful": self.refused.is_none(),
            "refused": self.refused,
            "needs_restart": self.needs_restart,
        })
    }
}

impl InForce {
    /// At the start.
    pub(crate) fn new(config: Config, division: Division) -> Self {
        let status = Status {
            generation: 1,
            refused: None,
            success_seconds: now_seconds(),
            needs_restart: Vec::new(),
            counts: [0; Outcome::ALL.len()],
        };
        InForce(Mutex::new(State { accepted: config.clone(), config, division, status }))
    }

    pub(crate) fn status(&self) -> Status {
        self.lock().status.clone()
    }

    pub(crate) fn log(&self) -> LogSettings {
        self.lock().config.log
    }

    /// Who may take how much memory, now.
    pub(crate) fn division(&self) -> Division {
        self.lock().division.clone()
    }

    /// Whether this is the one that was accepted last.
    pub(crate) fn is(&self, wanted: &Config) -> bool {
        self.lock().accepted == *wanted
    }

    /// What is to be done for this configuration, if anything is.
    ///
    /// # Errors
    /// It can't be gone by before a restart.
    pub(crate) fn plan(&self, wanted: &Config) -> Result<Plan, Vec<InvalidField>> {
        let state = self.lock();
        Plan::of(&state.config, &state.division, wanted)
    }

    /// It is gone by from now on. Whether it is another one than before.
    pub(crate) fn accept(&self, wanted: Config, plan: Plan) -> (Outcome, Status) {
        let mut state = self.lock();
        let result = if state.accepted == wanted { Outcome::Unchanged } else { Outcome::Changed };
        let State { config, accepted, division, status } = &mut *state;
        (*config, *division, *accepted) = (plan.config, plan.division, wanted);
        let waits = plan.changes.into_iter().filter(|change| !change.applied);
        status.needs_restart = waits.map(|change| change.path).collect();
        status.generation += u64::from(result == Outcome::Changed);
        status.refused = None;
        status.success_seconds = now_seconds();
        status.counts[result as usize] += 1;
        (result, status.clone())
    }

    /// It stays as it is.
    pub(crate) fn refuse(&self, why: &InvalidConfig) -> Status {
        let mut state = self.lock();
        let text = why.to_string();
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default().to_owned();
        let more = lines.count();
        let all = if more > 0 { format!("{first} (and {more} more)") } else { first };
        state.status.refused = Some(all);
        state.status.counts[Outcome::Refused as usize] += 1;
        state.status.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
