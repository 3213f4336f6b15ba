//! Whether an observer does what it should, checked for real.
//!
//! A check looks at progress, losses, proofs, queues and emitters. It runs on
//! a thread of its own, contained: one that panics or hangs is a failed check.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::{mpsc, watch};

use crate::config::HealthConfig;
use crate::panic::contain;
use crate::shutdown::Shutdown;

/// How well something does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// All is well.
    Healthy,
    /// It works, but not all of it, or not as well as it should.
    Degraded,
    /// It does not work.
    Unhealthy,
}

/// What a check, or all of them, found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HealthStatus {
    /// How well it does.
    pub health: Health,
    /// Why it is not healthy; empty if it is.
    pub reason: String,
}

impl HealthStatus {
    /// All is well.
    #[must_use]
    pub fn healthy() -> Self {
        HealthStatus { health: Health::Healthy, reason: String::new() }
    }

    /// It works, but not all of it.
    pub fn degraded(reason: impl Into<String>) -> Self {
        HealthStatus { health: Health::Degraded, reason: reason.into() }
    }

    /// It does not work.
    pub fn unhealthy(reason: impl Into<String>) -> Self {
        HealthStatus { health: Health::Unhealthy, reason: reason.into() }
    }
}

/// One thing to look at.
pub trait HealthCheck: Send + Sync {
    /// What it looks at, for reasons and logs.
    fn name(&self) -> &str;

    /// Looks.
    fn check(&self) -> HealthStatus;
}

/// How long one check may take.
const CHECK_LIMIT: Duration = Duration::from_secs(5);

type Answers = mpsc::UnboundedReceiver<HealthStatus>;

struct Slot {
    check: Arc<dyn HealthCheck>,
    /// A check that hung is not started again before it came back.
    hung: Option<Answers>,
}

#[derive(Debug, Clone)]
struct State {
    marked: HealthStatus,
    checked: HealthStatus,
    last_check: Option<SystemTime>,
}

/// Checks one observer's health, again and again.
pub struct HealthChecker {
    observer: String,
    config: watch::Sender<HealthConfig>,
    limit: Duration,
    /// Held for a whole round.
    slots: tokio::sync::Mutex<Vec<Slot>>,
    /// For the next round.
    added: Mutex<Vec<Arc<dyn HealthCheck>>>,
    state: Mutex<State>,
}

impl fmt::Debug for HealthChecker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthChecker").field("observer", &self.observer).finish_non_exhaustive()
    }
}

impl HealthChecker {
    /// A checker without checks: healthy until it is marked otherwise.
    #[must_use]
    pub fn new(config: HealthConfig, observer: &str) -> Self {
        HealthChecker {
            observer: observer.to_owned(),
            config: watch::Sender::new(config),
            limit: CHECK_LIMIT,
            slots: tokio::sync::Mutex::new(Vec::new()),
            added: Mutex::new(Vec::new()),
            state: Mutex::new(State {
                marked: HealthStatus::healthy(),
                checked: HealthStatus::healthy(),
                last_check: None,
            }),
        }
    }

    /// Gives each check this long instead of five seconds.
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Adds something to look at.
    pub fn add(&self, check: Arc<dyn HealthCheck>) {
        self.added.lock().unwrap_or_else(PoisonError::into_inner).push(check);
    }

    /// The worse of what the checks found and what it was marked as.
    #[must_use]
    pub fn status(&self) -> HealthStatus {
        let state = self.lock();
        if state.marked.health >= state.checked.health {
            state.marked.clone()
        } else {
            state.checked.clone()
        }
    }

    /// Whether it is healthy, degraded included: it works.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.status().health < Health::Unhealthy
    }

    /// When the checks ran last.
    #[must_use]
    pub fn last_check(&self) -> Option<SystemTime> {
        self.lock().last_check
    }

    /// Takes back what it was marked as.
    pub fn mark_healthy(&self) {
        self.lock().marked = HealthStatus::healthy();
    }

    /// Marks it as works-in-part until it is marked otherwise.
    pub fn mark_degraded(&self, reason: impl Into<String>) {
        self.lock().marked = HealthStatus::degraded(reason);
    }

    /// Marks it as not working until it is marked otherwise.
    pub fn mark_unhealthy(&self, reason: impl Into<String>) {
        self.lock().marked = HealthStatus::unhealthy(reason);
    }

    /// Runs all checks once, on a thread of their own; waits up to the limit
    /// for each. One round at a time.
    pub async fn check_now(&self) -> HealthStatus {
        let mut slots = self.slots.lock().await;
        let added = std::mem::take(&mut *self.added.lock().unwrap_or_else(PoisonError::into_inner));
        slots.extend(added.into_iter().map(|check| Slot { check, hung: None }));
        let mut worst = HealthStatus::healthy();
        let mut answers: Option<Answers> = None;
        for index in 0..slots.len() {
            let status = match slots[index].still_hangs() {
                Some(status) => status,
                None => self.answer(&mut slots, index, &mut answers).await,
            };
            if status.health > worst.health {
                let reason = format!("{}: {}", slots[index].check.name(), status.reason);
                worst = HealthStatus { reason, ..status };
            }
        }
        drop(slots);
        self.note(worst);
        self.status()
    }

    /// The answer of one check. A thread runs the checks one after the other;
    /// when one hangs, another thread goes on behind it.
    async fn answer(
        &self,
        slots: &mut [Slot],
        index: usize,
        answers: &mut Option<Answers>,
    ) -> HealthStatus {
        let receiver = match answers {
            Some(receiver) => receiver,
            None => match start(&slots[index..]) {
                Ok(receiver) => answers.insert(receiver),
                Err(error) => {
                    return HealthStatus::unhealthy(format!("could not be started: {error}"));
                }
            },
        };
        match tokio::time::timeout(self.limit, receiver.recv()).await {
            Ok(Some(status)) => status,
            Ok(None) => HealthStatus::unhealthy("the check ended early"),
            Err(_late) => {
                slots[index].hung = answers.take();
                HealthStatus::unhealthy(format!("the check took longer than {:?}", self.limit))
            }
        }
    }

    fn note(&self, worst: HealthStatus) {
        let mut state = self.lock();
        if state.checked.health > Health::Healthy && worst.health == Health::Healthy {
            tracing::info!(observer = %self.observer, "healthy again");
        } else if state.checked != worst {
            tracing::warn!(observer = %self.observer, health = ?worst.health, reason = %worst.reason, "health changed");
        }
        state.checked = worst;
        state.last_check = Some(SystemTime::now());
    }

    /// Checks at the configured interval until the shutdown begins.
    pub async fn run(self: Arc<Self>, shutdown: Shutdown) {
        let mut config = self.config.subscribe();
        loop {
            let interval = {
                let config = config.borrow_and_update();
                config.enabled.then_some(config.check_interval.0)
            };
            if interval.is_none() {
                // What was found last would never be found otherwise.
                self.lock().checked = HealthStatus::healthy();
            }
            let next = async {
                match interval {
                    Some(interval) => tokio::time::sleep(interval).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.begun() => return,
                _ = config.changed() => {}
                () = next => {
                    self.check_now().await;
                }
            }
        }
    }

    /// Checks as often as this says from now on, or not any more: what was found
    /// last is forgotten then.
    pub fn reconfigure(&self, config: HealthConfig) {
        self.config.send_replace(config);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn still_hangs(&mut self) -> Option<HealthStatus> {
        let hung = self.hung.as_mut()?;
        if hung.try_recv() == Err(mpsc::error::TryRecvError::Empty) {
            return Some(HealthStatus::unhealthy("the check still hangs"));
        }
        self.hung = None;
        None
    }
}

/// Runs the checks that don't hang, one after the other, on a thread.
fn start(slots: &[Slot]) -> std::io::Result<Answers> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let checks: Vec<_> =
        slots.iter().filter(|s| s.hung.is_none()).map(|s| Arc::clone(&s.check)).collect();
    std::thread::Builder::new().name("health".into()).spawn(move || {
        for check in checks {
            let status = contain(check.name(), || check.check())
                .unwrap_or_else(|panicked| HealthStatus::unhealthy(panicked.to_string()));
            if sender.send(status).is_err() {
                // Nobody waits any more: an earlier one took too long.
                return;
            }
        }
    })?;
    Ok(receiver)
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    struct Check<F: Fn() -> HealthStatus + Send + Sync>(F);

    impl<F: Fn() -> HealthStatus + Send + Sync> HealthCheck for Check<F> {
        fn name(&self) -> &str {
            "check"
        }

        fn check(&self) -> HealthStatus {
            (self.0)()
        }
    }

    fn checker(check: impl Fn() -> HealthStatus + Send + Sync + 'static) -> HealthChecker {
        let checker = HealthChecker::new(HealthConfig::default(), "test");
        checker.add(Arc::new(Check(check)));
        checker
    }

    #[tokio::test]
    async fn a_check_that_panics_is_a_failed_check() {
        let status = checker(|| panic!("oops")).check_now().await;
        assert_eq!(status.health, Health::Unhealthy);
        assert!(status.reason.contains("oops"), "{}", status.reason);
    }

    #[tokio::test]
    async fn a_check_that_hangs_is_a_failed_check_and_is_not_piled_up() {
        let (release, gate) = std::sync::mpsc::sync_channel::<()>(0);
        let gate = Mutex::new(gate);
        let calls = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let seen = Arc::clone(&calls);
        let slow = checker(move || {
            calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            gate.lock().unwrap().recv().unwrap_err();
            HealthStatus::healthy()
        })
        .with_limit(Duration::from_millis(500));
        slow.add(Arc::new(Check(|| HealthStatus::degraded("the next one still runs"))));
        assert!(slow.check_now().await.reason.contains("longer than"));
        assert!(slow.check_now().await.reason.contains("still hangs"));
        assert_eq!(seen.load(std::sync::atomic::Ordering::SeqCst), 1);
        drop(release);
    }

    /// Runs a checker at a short interval; the rounds that its check has seen.
    fn running(
        enabled: bool,
    ) -> (crate::shutdown::ShutdownTrigger, impl Future<Output = ()>, Rounds) {
        let rounds = Rounds::default();
        let seen = Arc::clone(&rounds);
        let interval = crate::units::HumanDuration(Duration::from_millis(1));
        let config = HealthConfig { enabled, check_interval: interval, ..HealthConfig::default() };
        let checker = HealthChecker::new(config, "test");
        checker.add(Arc::new(Check(move || {
            seen.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            HealthStatus::healthy()
        })));
        let (trigger, shutdown) = crate::shutdown::channel();
        (trigger, Arc::new(checker).run(shutdown), rounds)
    }

    type Rounds = Arc<std::sync::atomic::AtomicU32>;

    #[tokio::test]
    async fn checks_run_again_and_again_until_the_shutdown() {
        let (trigger, run, rounds) = running(true);
        let run = tokio::spawn(run);
        while rounds.load(std::sync::atomic::Ordering::SeqCst) < 3 {
            assert!(!run.is_finished());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        trigger.begin();
        tokio::time::timeout(Duration::from_secs(20), run).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn checks_that_are_turned_off_never_run() {
        let (trigger, run, rounds) = running(false);
        let run = tokio::spawn(run);
        tokio::time::sleep(Duration::from_millis(50)).await;
        trigger.begin();
        tokio::time::timeout(Duration::from_secs(20), run).await.unwrap().unwrap();
        assert_eq!(rounds.load(std::sync::atomic::Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn checks_begin_and_stop_with_the_configuration() {
        let config = |enabled| HealthConfig {
            enabled,
            check_interval: crate::units::HumanDuration(Duration::from_millis(1)),
            ..HealthConfig::default()
        };
        let checker = Arc::new(HealthChecker::new(config(false), "test"));
        checker.add(Arc::new(Check(|| HealthStatus::degraded("slow"))));
        let (trigger, shutdown) = crate::shutdown::channel();
        let run = tokio::spawn(Arc::clone(&checker).run(shutdown));
        for (enabled, found) in [(false, Health::Healthy), (true, Health::Degraded)].repeat(3) {
            checker.reconfigure(config(enabled));
            let becomes = async {
                while checker.status().health != found {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), becomes).await.unwrap();
        }
        trigger.begin();
        tokio::time::timeout(Duration::from_secs(20), run).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_worse_of_mark_and_check_counts() {
        let checker = checker(|| HealthStatus::degraded("slow"));
        assert_eq!(checker.check_now().await.health, Health::Degraded);
        assert!(checker.is_healthy(), "degraded still works");
        checker.mark_unhealthy("down");
        assert_eq!(checker.status().reason, "down");
        checker.mark_healthy();
        assert_eq!(checker.status().reason, "check: slow");
        assert!(checker.last_check().is_some());
    }
}
