//! An observer that goes by another configuration while it runs.

use std::sync::{Arc, PoisonError};

use super::ObserverRuntime;
use crate::config::change::{Change, changes};
use crate::config::{Config, InvalidConfig};
use crate::delivery::EmitterConfig;
use crate::queue::QueueConfig;
use crate::sampler::Sampler;

impl ObserverRuntime {
    /// Goes by this configuration from now on, as a whole or not at all, and
    /// says what of it is new. Nothing is lost by it, and the ledger goes on.
    ///
    /// - Events are sampled by the new rules from the next batch of records on;
    ///   each is decided by the rules of one configuration, whose threshold and
    ///   weight it carries.
    /// - A lane that becomes smaller gives nothing up: while it holds more than it
    ///   may now it is full, and its room sinks with what leaves. From now on it
    ///   gives up what its new policy says.
    /// - A label that is not allowed any more is gone from the metrics at once,
    ///   and series that are alike then are one, with their sum; a lower
    ///   `max_series` takes in no more, and puts nothing out. The sum over all
    ///   series stays the same.
    /// - Emitters of its own are served by the new `max_retries` and
    ///   `drain_interval`; those that it shares are their owner's business
    ///   ([`EmitterHandle::reconfigure`](crate::delivery::EmitterHandle::reconfigure)).
    /// - The failure policy and its retries count from the next failure on.
    /// - The name can't change: events are told by it. An empty one stands for
    ///   what it is; another one stays a change that is not applied.
    ///
    /// ```
    /// use vahti_runtime::config::{Config, SamplingConfig};
    /// # use vahti_runtime::event::{Event, EventKind, Priority, Severity};
    /// # use vahti_runtime::observer::ObserverRuntime;
    /// # use vahti_runtime::processor::{EventProcessor, Output, ProcessError, RawRecord};
    /// # struct Ping;
    /// # impl EventProcessor for Ping {
    /// #     fn name(&self) -> &str { "ping" }
    /// #     fn process(&self, _: RawRecord<'_>) -> Result<Output, ProcessError> {
    /// #         Ok(Output::Nothing)
    /// #     }
    /// # }
    /// let runtime = ObserverRuntime::builder(|| Ping).build()?;
    /// let sampling = SamplingConfig { enabled: true, default_rate: 0.5, rules: vec![] };
    /// let changes = runtime.reconfigure(Config { sampling, ..(*runtime.config()).clone() })?;
    /// let told: Vec<String> = changes.iter().map(ToString::to_string).collect();
    /// assert_eq!(told, ["sampling.enabled: false → true", "sampling.default_rate: 1.0 → 0.5"]);
    /// assert!(changes.iter().all(|change| change.applied));
    ///
    /// let mut wrong = (*runtime.config()).clone();
    /// wrong.backpressure.queue_size = 0;
    /// assert!(runtime.reconfigure(wrong).is_err());
    /// assert_eq!(runtime.config().backpressure.queue_size, 10_000, "as before");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// All values that are out of their bounds; then everything stays as it was.
    pub fn reconfigure(&self, config: Config) -> Result<Vec<Change>, InvalidConfig> {
        let _whole = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let name = if config.name.is_empty() { self.name.clone() } else { config.name.clone() };
        let config = Config { name, ..config };
        config.validate()?;
        let before = self.config();
        let mut told = changes(&*before, &config);
        if config.name != self.name {
            told.insert(0, Change::named("name", &self.name, &config.name));
        }
        let config = Config { name: self.name.clone(), ..config };
        if *before != config {
            self.go_by(&before, config);
        }
        Ok(told)
    }

    fn go_by(&self, before: &Config, config: Config) {
        if before.sampling != config.sampling && !self.sampling_disabled {
            self.pipeline.sampler.set(Sampler::new(&config.sampling));
        }
        if before.backpressure != config.backpressure {
            let bounds = QueueConfig::of(&config.backpressure);
            for (lane, _) in &self.pipeline.lanes {
                lane.reconfigure(bounds);
            }
            for emitter in &self.owned {
                emitter.reconfigure(EmitterConfig {
                    max_retries: config.backpressure.max_retries,
                    drain_interval: config.backpressure.drain_interval.0,
                    ..emitter.config()
                });
            }
        }
        if before.metrics != config.metrics {
            self.pipeline.relabel(&config.metrics);
        }
        if before.health != config.health {
            self.health.reconfigure(config.health.clone());
        }
        self.config.send_replace(Arc::new(config));
    }
}
