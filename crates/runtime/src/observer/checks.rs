//! The health checks that every observer has.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use super::ObserverRuntime;
use crate::delivery::EmitterState;
use crate::health::{HealthCheck, HealthStatus};

/// A lane is reported when it is this full.
const FULL_PERCENT: usize = 90;

pub(super) fn add_to(runtime: &Arc<ObserverRuntime>) {
    let of = || Arc::downgrade(runtime);
    let health = &runtime.health;
    health.add(Arc::new(Progress { of: of(), last: Mutex::new(None) }));
    health.add(Arc::new(SourceCheck { of: of(), lost: AtomicU64::new(0) }));
    health.add(Arc::new(Lanes { of: of() }));
    health.add(Arc::new(Emitters { of: of() }));
}

/// Has work but makes no progress. Idle is alive.
struct Progress {
    of: Weak<ObserverRuntime>,
    last: Mutex<Option<((u64, usize), Instant)>>,
}

impl HealthCheck for Progress {
    fn name(&self) -> &str {
        "progress"
    }

    fn check(&self) -> HealthStatus {
        let Some(runtime) = self.of.upgrade() else { return HealthStatus::healthy() };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = runtime.seat.progress();
        let since = match (now, *last) {
            (Some(now), Some((before, since))) if now == before => since,
            (Some(now), _) => {
                let since = Instant::now();
                *last = Some((now, since));
                since
            }
            (None, _) => {
                *last = None;
                return HealthStatus::healthy();
            }
        };
        if since.elapsed() >= runtime.config().health.hang_timeout.0 {
            return HealthStatus::unhealthy(format!(
                "has had work and made no progress for {:?}",
                since.elapsed()
            ));
        }
        HealthStatus::healthy()
    }
}

/// What the source says itself, and kernel records lost since the last check.
struct SourceCheck {
    of: Weak<ObserverRuntime>,
    lost: AtomicU64,
}

impl HealthCheck for SourceCheck {
    fn name(&self) -> &str {
        "source"
    }

    fn check(&self) -> HealthStatus {
        let runtime = self.of.upgrade();
        let Some(ledger) = runtime.as_ref().and_then(|r| r.source_ledger.get()) else {
            return HealthStatus::healthy();
        };
        let lost = ledger.counts().lost;
        let before = self.lost.swap(lost, Ordering::Relaxed);
        let mut degraded = ledger.degraded();
        if lost > before {
            degraded.push(format!("the kernel lost {} records", lost - before));
        }
        if degraded.is_empty() {
            return HealthStatus::healthy();
        }
        HealthStatus::degraded(degraded.join("; "))
    }
}

/// How full the lanes are.
struct Lanes {
    of: Weak<ObserverRuntime>,
}

impl HealthCheck for Lanes {
    fn name(&self) -> &str {
        "lanes"
    }

    fn check(&self) -> HealthStatus {
        let Some(runtime) = self.of.upgrade() else { return HealthStatus::healthy() };
        let config = runtime.config();
        let bounds = &config.backpressure;
        for ((lane, _), emitter) in runtime.pipeline.lanes.iter().zip(&runtime.emitters) {
            let fill = lane.fill();
            let items = fill.items.saturating_mul(100) / bounds.queue_size.max(1);
            let bytes = fill.bytes.saturating_mul(100) / bounds.max_bytes().as_usize().max(1);
            let percent = items.max(bytes);
            if percent >= FULL_PERCENT {
                let name = emitter.name();
                return HealthStatus::degraded(format!("the lane to {name} is {percent} % full"));
            }
        }
        HealthStatus::healthy()
    }
}

/// Whether the emitters get rid of what they are given.
struct Emitters {
    of: Weak<ObserverRuntime>,
}

impl HealthCheck for Emitters {
    fn name(&self) -> &str {
        "emitters"
    }

    fn check(&self) -> HealthStatus {
        let Some(runtime) = self.of.upgrade() else { return HealthStatus::healthy() };
        for emitter in &runtime.emitters {
            if let EmitterState::Failing(why) = emitter.state() {
                return HealthStatus::degraded(format!("{} fails: {why}", emitter.name()));
            }
        }
        HealthStatus::healthy()
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Config;
    use crate::event::{Event, EventKind, Priority, Severity};
    use crate::health::Health;
    use crate::processor::{EventProcessor, Output, ProcessError, RawRecord};
    use crate::units::HumanDuration;

    static PING: EventKind = EventKind::custom("test.ping", "test", "ping", Priority::Normal);

    struct Ping;

    impl EventProcessor for Ping {
        fn name(&self) -> &str {
            "ping"
        }

        fn process(&self, _: RawRecord<'_>) -> Result<Output, ProcessError> {
            Ok(Event::new(&PING, Severity::Info).into())
        }
    }

    // The other checks need a run: tests/health.rs. There the watcher would take
    // the work from a thread that makes no progress, as soon as this check fails.
    #[test]
    fn work_without_progress_is_unhealthy_and_none_is_not() {
        let mut config = Config::for_observer("ping");
        config.health.hang_timeout = HumanDuration(Duration::from_millis(100));
        let runtime = ObserverRuntime::builder(|| Ping).config(config).build().unwrap();
        let check = Progress { of: Arc::downgrade(&runtime), last: Mutex::new(None) };
        let timeout = || std::thread::sleep(Duration::from_millis(110));

        assert_eq!(check.check(), HealthStatus::healthy());
        timeout();
        assert_eq!(check.check(), HealthStatus::healthy(), "idle is alive");

        runtime.seat.sit_at_nothing();
        assert_eq!(check.check(), HealthStatus::healthy(), "it has just begun");
        timeout();
        let status = check.check();
        assert_eq!(status.health, Health::Unhealthy);
        assert!(status.reason.contains("made no progress"), "{}", status.reason);

        runtime.seat.sit_at_nothing();
        assert_eq!(check.check(), HealthStatus::healthy(), "it goes on");
    }
}
