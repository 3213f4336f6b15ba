//! Runs all observers of a program, each by its failure policy.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};

use crate::config::FailurePolicy;
use crate::delivery::EmitterHandle;
use crate::observer::{ObserverRuntime, RunError};
use crate::shutdown::{Shutdown, ShutdownTrigger, channel};

/// Runs observers side by side and ends them together.
///
/// * isolate: an observer that failed is down and reported; the others run on.
/// * restart: the observer starts itself again (see
///   [`ObserverRuntime::run`]); nothing of it is seen here.
/// * fail_fast: all drain, and the report says so.
///
/// Emitters are supervised as well: one whose call does not return is replaced
/// (see [`EmitterHandle::supervise`]).
#[derive(Debug)]
pub struct Supervisor {
    observers: Vec<Arc<ObserverRuntime>>,
    /// The names of those that do not count.
    beside: Vec<String>,
    emitters: Vec<EmitterHandle>,
    drain_deadline: Duration,
}

/// How it all ended.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// The observers that ended with an error, in the order in which they did.
    pub failed: Vec<RunError>,
    /// Whether a fail_fast observer ended the program.
    pub failed_fast: bool,
    /// Whether all observers had failed before the shutdown began; those beside
    /// them do not count.
    pub all_failed: bool,
    /// The emitters that did not end in time and were left behind.
    pub stuck_emitters: Vec<String>,
}

impl Report {
    /// Whether the program should end with success.
    #[must_use]
    pub fn is_success(&self) -> bool {
        !self.failed_fast && !self.all_failed
    }
}

impl Supervisor {
    /// One that ends `emitters` once all observers have ended, within the
    /// deadline.
    #[must_use]
    pub fn new(emitters: Vec<EmitterHandle>, drain_deadline: Duration) -> Self {
        Supervisor { observers: Vec::new(), beside: Vec::new(), emitters, drain_deadline }
    }

    /// Adds an observer.
    #[must_use]
    pub fn observer(mut self, observer: Arc<ObserverRuntime>) -> Self {
        self.observers.push(observer);
        self
    }

    /// Adds an observer that has a task beside the others': a program in which
    /// all others have failed has failed, whatever became of this one.
    #[must_use]
    pub fn beside(mut self, observer: Arc<ObserverRuntime>) -> Self {
        self.beside.push(observer.name().to_owned());
        self.observer(observer)
    }

    fn is_beside(&self, name: &str) -> bool {
        self.beside.iter().any(|beside| beside == name)
    }

    /// Runs until the shutdown begins, every observer has ended, or one that
    /// is fail_fast failed; then drains.
    pub async fn run(self, shutdown: Shutdown) -> Report {
        let (trigger, inner) = channel();
        let mut runs = JoinSet::new();
        let mut names = HashMap::new();
        let observers = self.observers.len() - self.beside.len();
        for observer in &self.observers {
            let task = runs.spawn(Arc::clone(observer).run(inner.clone()));
            names.insert(task.id(), observer);
        }
        let forward = tokio::spawn(forward(shutdown.clone(), trigger.clone()));
        // Until the end, the drain included: dropped with this function.
        let mut watchers = JoinSet::new();
        for emitter in &self.emitters {
            watchers.spawn(emitter.supervise());
        }
        let mut report = Report::default();
        let mut failed = 0;
        while let Some(ended) = runs.join_next().await {
            let result = ended.unwrap_or_else(|crash| Err(crashed(names.get(&crash.id()), &crash)));
            let Err(error) = result else { continue };
            failed += usize::from(!self.is_beside(error.observer()));
            if error.is_fail_fast() {
                report.failed_fast = true;
                trigger.begin();
            }
            report.failed.push(error);
        }
        report.all_failed = observers > 0 && failed == observers && !shutdown.has_begun();
        forward.abort();
        let deadline = inner.begun_at() + self.drain_deadline;
        // What lanes hold first: durable emitters are served from what comes of it.
        let (durable, served): (Vec<_>, Vec<_>) =
            self.emitters.iter().partition(|emitter| emitter.is_durable());
        for emitter in &served {
            emitter.begin_end();
        }
        for emitter in served.into_iter().chain(durable) {
            if !emitter.end(deadline).await {
                report.stuck_emitters.push(emitter.name().to_owned());
            }
        }
        report
    }
}

/// The runtime itself panicked: that should not be, and is told all the same.
fn crashed(observer: Option<&&Arc<ObserverRuntime>>, crash: &JoinError) -> RunError {
    RunError::Failed {
        observer: observer.map_or_else(String::new, |o| o.name().to_owned()),
        why: crash.to_string(),
        policy: observer.map_or_else(FailurePolicy::default, |o| o.config().failure.policy),
    }
}

async fn forward(from: Shutdown, to: ShutdownTrigger) {
    from.begun().await;
    to.begin();
}
