//! What can be set about an observer, with its defaults and its bounds.
//!
//! The doc comment of a field is the user's documentation: the commented
//! example and the JSON Schema are generated from it. Unknown fields are
//! refused; [`Config::validate`] names the field's path, the value and the
//! bound.

pub mod bounds;
pub mod change;

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::bounds::{Bounded, Checked, TextBound};
use crate::units::{ByteSize, HumanDuration};

/// Everything that can be set about one observer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
pub struct Config {
    /// The observer's name, such as `network`; lowercase with hyphens.
    #[serde(skip)]
    pub name: String,
    /// Which events are kept. Failures are kept unless a rule names their
    /// subtype.
    pub sampling: SamplingConfig,
    /// The queue in front of each emitter.
    pub backpressure: BackpressureConfig,
    /// How the observer's health is checked.
    pub health: HealthConfig,
    /// What happens when the observer fails.
    pub failure: FailureConfig,
    /// What is counted about the observer's events.
    pub metrics: MetricsConfig,
}

/// Which events are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(transform = bounds::describe::<SamplingConfig>)]
pub struct SamplingConfig {
    /// Whether anything is left out at all.
    pub enabled: bool,
    /// The share of events that is kept where no rule matches: 0.0 to 1.0.
    pub default_rate: f64,
    /// Exceptions; the first one that matches wins.
    pub rules: Vec<SamplingRule>,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        SamplingConfig { enabled: false, default_rate: 1.0, rules: Vec::new() }
    }
}

/// One exception from the default rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = bounds::describe::<SamplingRule>)]
pub struct SamplingRule {
    /// The type that it matches, such as `network`.
    #[schemars(example = &"network")]
    pub event_type: String,
    /// The subtype that it matches, such as `connection_refused`; empty
    /// matches all, but no failures (severity error and above).
    #[serde(default)]
    #[schemars(example = &"connection_refused")]
    pub subtype: String,
    /// The share of events that is kept: 0.0 to 1.0.
    #[serde(default = "one")]
    pub rate: f64,
    /// Keeps all, whatever the rate says.
    #[serde(default)]
    pub keep_all: bool,
}

fn one() -> f64 {
    1.0
}

impl SamplingRule {
    /// Whether the rule is about events of this type and subtype.
    #[must_use]
    pub fn matches(&self, event_type: &str, subtype: &str) -> bool {
        self.event_type == event_type && (self.subtype.is_empty() || self.subtype == subtype)
    }
}

/// What a full queue gives up. It gives up normal events before critical ones
/// whatever this says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DropPolicy {
    /// The event that has waited longest: what is recent is kept.
    #[default]
    Oldest,
    /// The event that comes in: what is queued is kept.
    Newest,
    /// One that waits, chosen at random, each as likely as the other.
    Random,
}

/// The queue in front of each emitter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(transform = bounds::describe::<BackpressureConfig>)]
pub struct BackpressureConfig {
    /// How many events wait at most: 1 to 10,000,000.
    pub queue_size: usize,
    /// How many bytes of events wait at most: 4 KiB to 16 GiB; a share of
    /// limits.memory if not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"4MiB")]
    pub max_bytes: Option<ByteSize>,
    /// What a full queue gives up.
    pub drop_policy: DropPolicy,
    /// How often a critical emitter tries a batch again before it is dropped:
    /// 0 to 1,000. Other emitters try once.
    pub max_retries: u32,
    /// How long an event waits at most for a batch to fill, for emitters whose
    /// requests are dear: 1ms to 1h.
    pub drain_interval: HumanDuration,
}

impl Default for BackpressureConfig {
    fn default() -> Self {
        BackpressureConfig {
            queue_size: 10_000,
            max_bytes: None,
            drop_policy: DropPolicy::Oldest,
            max_retries: 3,
            drain_interval: HumanDuration(Duration::from_millis(100)),
        }
    }
}

impl BackpressureConfig {
    /// How many bytes of events wait at most: 4 MiB where neither the user nor
    /// whoever divides a budget has set it.
    #[must_use]
    pub fn max_bytes(&self) -> ByteSize {
        self.max_bytes.unwrap_or(ByteSize::mib(4))
    }
}

/// How the observer's health is checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(transform = bounds::describe::<HealthConfig>)]
pub struct HealthConfig {
    /// Whether it is checked at all.
    pub enabled: bool,
    /// How often: 100ms to 1h.
    pub check_interval: HumanDuration,
    /// An observer that has work and made no progress for this long hangs:
    /// 100ms to 1h.
    pub hang_timeout: HumanDuration,
}

impl Default for HealthConfig {
    fn default() -> Self {
        HealthConfig {
            enabled: true,
            check_interval: HumanDuration(Duration::from_secs(10)),
            hang_timeout: HumanDuration(Duration::from_secs(10)),
        }
    }
}

/// What happens when an observer fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailurePolicy {
    /// It is down and reported; the others run on.
    #[default]
    Isolate,
    /// It is started again, later each time; degraded after too many times.
    Restart,
    /// The whole program drains and ends with an error.
    FailFast,
}

/// What happens when the observer fails.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FailureConfig {
    /// The policy.
    pub policy: FailurePolicy,
    /// When and how often `restart` tries again.
    pub retry: RetryConfig,
}

/// When and how often `restart` tries again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(transform = bounds::describe::<RetryConfig>)]
pub struct RetryConfig {
    /// How often within the period: 1 to 1,000. Then hourly.
    pub max_attempts: u32,
    /// The longest first delay; each delay is random up to its bound: 1ms to 1h.
    pub initial_delay: HumanDuration,
    /// The bound that no delay passes: not below the initial delay, to 24h.
    pub max_delay: HumanDuration,
    /// By how much the bound grows each time: 1.0 to 100.0.
    pub multiplier: f64,
    /// The period in which attempts count: 1s to 24h.
    pub period: HumanDuration,
}

impl Default for RetryConfig {
    fn default() -> Self {
        RetryConfig {
            max_attempts: 5,
            initial_delay: HumanDuration(Duration::from_millis(500)),
            max_delay: HumanDuration(Duration::from_secs(30)),
            multiplier: 2.0,
            period: HumanDuration(Duration::from_secs(600)),
        }
    }
}

/// What is counted about the observer's events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(transform = bounds::describe::<MetricsConfig>)]
pub struct MetricsConfig {
    /// Whether there are metrics at all; the ledger counts always.
    pub enabled: bool,
    /// The labels of the events' metrics that are exported; what is not named
    /// here never is. Those of the ledger's are fixed.
    pub allowed_labels: Vec<String>,
    /// How many series one metric has at most: 1 to 100,000. What comes beyond
    /// is counted under `_other`.
    pub max_series: usize,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        MetricsConfig {
            enabled: true,
            allowed_labels: ["observer", "type", "subtype", "severity", "outcome"]
                .map(str::to_owned)
                .to_vec(),
            max_series: 1_000,
        }
    }
}

/// A value that is out of its bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidField {
    /// The field, such as `sampling.default_rate` or `sampling.rules[2].rate`.
    pub path: String,
    /// The value as it was given.
    pub value: String,
    /// What it may be.
    pub bound: String,
}

impl fmt::Display for InvalidField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, but must be {}", self.path, self.value, self.bound)
    }
}

/// All values that are out of their bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidConfig {
    /// One or more of them, in the order of the fields.
    pub fields: Vec<InvalidField>,
}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, field) in self.fields.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{field}")?;
        }
        Ok(())
    }
}

impl std::error::Error for InvalidConfig {}

/// What an observer may be called.
const NAME: TextBound = TextBound {
    first: "a-z0-9-",
    rest: "a-z0-9-",
    max_len: 63,
    words: "lowercase letters, digits and hyphens",
};

/// What a label may be called: as Prometheus has it.
const LABEL: TextBound = TextBound {
    first: "A-Za-z_",
    rest: "A-Za-z0-9_",
    max_len: usize::MAX,
    words: "a label name: a letter or underscore, then letters, digits, underscores",
};

impl Config {
    /// The defaults for an observer of this name: sampling off, 10,000 items
    /// and 4 MiB a lane, drop oldest, isolate.
    ///
    /// ```
    /// use vahti_runtime::config::Config;
    /// let config = Config::for_observer("network");
    /// assert!(config.validate().is_ok());
    /// assert!(!config.sampling.enabled);
    /// ```
    #[must_use]
    pub fn for_observer(name: &str) -> Self {
        Config { name: name.to_owned(), ..Config::default() }
    }

    /// Checks every value against its bound.
    ///
    /// # Errors
    /// All fields that are out of bounds, with their paths.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        let fields = Checked::of(self).wrong;
        if fields.is_empty() { Ok(()) } else { Err(InvalidConfig { fields }) }
    }
}

impl Bounded for Config {
    fn sample() -> Self {
        Config::for_observer("network")
    }

    fn check(&self, checked: &mut Checked) {
        checked.text("name", &*self.name, NAME);
        checked.inside("sampling", &self.sampling);
        checked.inside("backpressure", &self.backpressure);
        checked.inside("health", &self.health);
        checked.inside("failure.retry", &self.failure.retry);
        checked.inside("metrics", &self.metrics);
    }
}

impl Bounded for SamplingConfig {
    fn sample() -> Self {
        SamplingConfig::default()
    }

    fn check(&self, checked: &mut Checked) {
        checked.number("default_rate", self.default_rate, 0.0, 1.0);
        checked.each("rules", &self.rules);
    }
}

impl Bounded for SamplingRule {
    fn sample() -> Self {
        let event_type = "network".to_owned();
        SamplingRule { event_type, subtype: String::new(), rate: 1.0, keep_all: false }
    }

    fn check(&self, checked: &mut Checked) {
        let what = "the type of an event, such as \"network\"";
        checked.filled("event_type", &self.event_type, what);
        checked.number("rate", self.rate, 0.0, 1.0);
    }
}

impl Bounded for BackpressureConfig {
    fn sample() -> Self {
        BackpressureConfig::default()
    }

    fn check(&self, checked: &mut Checked) {
        checked.whole("queue_size", self.queue_size as u64, 1, 10_000_000);
        checked.size("max_bytes", self.max_bytes, 4 << 10, 16 << 30);
        checked.whole("max_retries", u64::from(self.max_retries), 0, 1_000);
        checked.duration("drain_interval", self.drain_interval, 1, HOUR_MS);
    }
}

impl Bounded for HealthConfig {
    fn sample() -> Self {
        HealthConfig::default()
    }

    fn check(&self, checked: &mut Checked) {
        checked.duration("check_interval", self.check_interval, 100, HOUR_MS);
        checked.duration("hang_timeout", self.hang_timeout, 100, HOUR_MS);
    }
}

const HOUR_MS: u64 = 3_600_000;
const HOUR: HumanDuration = HumanDuration::from_ms(HOUR_MS);

impl Bounded for RetryConfig {
    fn sample() -> Self {
        RetryConfig::default()
    }

    fn check(&self, checked: &mut Checked) {
        checked.whole("max_attempts", u64::from(self.max_attempts), 1, 1_000);
        checked.duration("initial_delay", self.initial_delay, 1, HOUR_MS);
        checked.duration("max_delay", self.max_delay, 1, 24 * HOUR_MS);
        // What is out of its own bound was told already.
        let is_out = self.max_delay.0.is_zero() || self.initial_delay > HOUR;
        let is_ordered = is_out || self.initial_delay <= self.max_delay;
        checked.that(is_ordered, "max_delay", || {
            let bound = format!("no less than initial_delay, which is {}", self.initial_delay);
            (self.max_delay.to_string(), bound)
        });
        checked.number("multiplier", self.multiplier, 1.0, 100.0);
        checked.duration("period", self.period, 1_000, 24 * HOUR_MS);
    }
}

impl Bounded for MetricsConfig {
    fn sample() -> Self {
        MetricsConfig::default()
    }

    fn check(&self, checked: &mut Checked) {
        checked.texts("allowed_labels", &self.allowed_labels, LABEL);
        checked.whole("max_series", self.max_series as u64, 1, 100_000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_problem(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::for_observer("network");
        change(&mut config);
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_those_of_the_design() {
        let config = Config::for_observer("network");
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(config.sampling.default_rate, 1.0);
        assert_eq!(config.backpressure.queue_size, 10_000);
        assert_eq!(config.backpressure.max_bytes(), ByteSize::mib(4));
        assert_eq!(config.failure.policy, FailurePolicy::Isolate);
    }

    #[test]
    fn not_a_number_is_no_rate() {
        assert_eq!(
            first_problem(|c| c.sampling.default_rate = f64::NAN),
            "sampling.default_rate is NaN, but must be a number from 0.0 to 1.0"
        );
        assert!(first_problem(|c| c.failure.retry.multiplier = f64::NAN).contains("multiplier"));
    }

    #[test]
    fn a_rule_is_named_by_its_index() {
        let rule = SamplingRule {
            event_type: "network".into(),
            subtype: String::new(),
            rate: 1.5,
            keep_all: false,
        };
        let problem = first_problem(|c| c.sampling.rules = vec![rule]);
        assert!(problem.starts_with("sampling.rules[0].rate is 1.5"), "{problem}");
    }

    #[test]
    fn bounds_are_said_with_units() {
        let problem = first_problem(|c| c.backpressure.max_bytes = Some(ByteSize(1)));
        assert_eq!(problem, "backpressure.max_bytes is 1B, but must be 4KiB to 16GiB");
        let problem = first_problem(|c| c.health.check_interval = HumanDuration(Duration::ZERO));
        assert_eq!(problem, "health.check_interval is 0s, but must be 100ms to 1h");
        let problem = first_problem(|c| c.metrics.max_series = 1_000_000);
        assert_eq!(
            problem,
            "metrics.max_series is 1000000, but must be a whole number from 1 to 100,000"
        );
    }

    #[test]
    fn the_longest_delay_is_not_below_the_first() {
        let told = |ms| {
            first_problem(|c| c.failure.retry.max_delay = HumanDuration(Duration::from_millis(ms)))
        };
        assert_eq!(
            told(100),
            "failure.retry.max_delay is 100ms, but must be no less than initial_delay, which is \
             500ms"
        );
        assert_eq!(told(0), "failure.retry.max_delay is 0s, but must be 1ms to 1d");
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let problem = first_problem(|c| {
            c.name = "Network".into();
            c.backpressure.queue_size = 0;
        });
        assert!(problem.contains("name is \"Network\"") && problem.contains("queue_size is 0"));
    }
}
