//! What can be set about the agent.
//!
//! A field's doc comment is the user's documentation: `vahti config example`
//! and `vahti config schema` are generated from it.

pub(crate) mod example;
pub(crate) mod load;
mod problem;
pub(crate) mod settings;
mod tree;
mod typed;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vahti_exporters::{FileConfig, Format};
use vahti_runtime::config as runtime;
use vahti_runtime::config::InvalidField;
use vahti_runtime::units::{ByteSize, HumanDuration};

/// Everything that can be set about vahti. A value on the command line goes
/// before one in this file, this file before the environment (VAHTI_NODE_NAME,
/// VAHTI_LOG, VAHTI_OBSERVERS, VAHTI_EMIT), the environment before the
/// defaults.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(title = "Configuration of vahti")]
pub(crate) struct Config {
    /// The name of this node in every event; the host's name if not set. 1 to
    /// 253 letters, digits, dots, hyphens and underscores.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"node-1")]
    pub(crate) node_name: Option<String>,
    /// How much vahti tells about itself on standard error.
    pub(crate) log: LogLevel,
    /// What is watched.
    pub(crate) observers: Observers,
    /// Where events go: 1 to 16 of them. Each has a queue for each observer; a
    /// slow one holds up no other.
    pub(crate) emitters: Emitters,
    /// Bounds for the program as a whole.
    pub(crate) limits: Limits,
}

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogLevel {
    /// Nothing.
    Off,
    /// What failed.
    Error,
    /// And what is not as it should be.
    Warn,
    /// And what was started and stopped.
    #[default]
    Info,
    /// And details for developers.
    Debug,
    /// And more of them.
    Trace,
}

/// What is watched.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Observers {
    /// Connections that fail: refused, timed out, unreachable, reset, given up.
    pub(crate) network: NetworkObserver,
    /// Containers and processes that fail: OOM kills, failed exits, crashes.
    pub(crate) container: ContainerObserver,
}

/// The observer of connections that fail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NetworkObserver {
    /// Whether it runs.
    pub(crate) enabled: bool,
    /// Which events are kept. Failures are kept unless a rule names their
    /// subtype.
    pub(crate) sampling: runtime::SamplingConfig,
    /// The queue in front of each emitter.
    pub(crate) backpressure: runtime::BackpressureConfig,
    /// How the observer's health is checked.
    pub(crate) health: runtime::HealthConfig,
    /// What happens when the observer fails.
    pub(crate) failure: runtime::FailureConfig,
    /// What is counted about the observer's events.
    pub(crate) metrics: runtime::MetricsConfig,
}

/// The observer of containers and processes that fail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ContainerObserver {
    /// Whether it runs.
    pub(crate) enabled: bool,
    /// Whether containers that end as they should are events too.
    pub(crate) export_normal_exits: bool,
    /// Which events are kept. Failures are kept unless a rule names their
    /// subtype.
    pub(crate) sampling: runtime::SamplingConfig,
    /// The queue in front of each emitter.
    pub(crate) backpressure: runtime::BackpressureConfig,
    /// How the observer's health is checked.
    pub(crate) health: runtime::HealthConfig,
    /// What happens when the observer fails.
    pub(crate) failure: runtime::FailureConfig,
    /// What is counted about the observer's events.
    pub(crate) metrics: runtime::MetricsConfig,
}

/// The names of all observers, as `--observers` takes them.
pub(crate) const OBSERVERS: [&str; 2] = ["network", "container"];

impl Default for NetworkObserver {
    fn default() -> Self {
        NetworkObserver {
            enabled: true,
            sampling: Default::default(),
            backpressure: Default::default(),
            health: Default::default(),
            failure: Default::default(),
            metrics: Default::default(),
        }
    }
}

impl Default for ContainerObserver {
    fn default() -> Self {
        ContainerObserver {
            enabled: true,
            export_normal_exits: false,
            sampling: Default::default(),
            backpressure: Default::default(),
            health: Default::default(),
            failure: Default::default(),
            metrics: Default::default(),
        }
    }
}

impl NetworkObserver {
    /// What the runtime is told about it.
    pub(crate) fn to_runtime(&self) -> runtime::Config {
        runtime::Config {
            name: "network".to_owned(),
            sampling: self.sampling.clone(),
            backpressure: self.backpressure.clone(),
            health: self.health.clone(),
            failure: self.failure.clone(),
            metrics: self.metrics.clone(),
        }
    }
}

impl ContainerObserver {
    /// What the runtime is told about it.
    pub(crate) fn to_runtime(&self) -> runtime::Config {
        runtime::Config {
            name: "container".to_owned(),
            sampling: self.sampling.clone(),
            backpressure: self.backpressure.clone(),
            health: self.health.clone(),
            failure: self.failure.clone(),
            metrics: self.metrics.clone(),
        }
    }
}

/// Where events go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct Emitters(pub(crate) Vec<EmitterConfig>);

impl Default for Emitters {
    fn default() -> Self {
        Emitters(vec![EmitterConfig::of(EmitterType::Stdout)])
    }
}

/// Where an emitter writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EmitterType {
    /// To standard output.
    Stdout,
    /// To a file, as JSON lines, rotated by size and age.
    File,
    /// Nowhere.
    None,
}

impl EmitterType {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            EmitterType::Stdout => "stdout",
            EmitterType::File => "file",
            EmitterType::None => "none",
        }
    }
}

/// One place where events go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EmitterConfig {
    /// Where it writes.
    #[serde(rename = "type")]
    pub(crate) kind: EmitterType,
    /// Its name in metrics, logs and the ledger; its type if not set. 1 to 63
    /// lowercase letters, digits and hyphens, no two alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"audit")]
    pub(crate) name: Option<String>,
    /// Whether a batch that it fails to write is tried again, up to
    /// max_retries times; the others try once.
    #[serde(default)]
    pub(crate) critical: bool,
    /// How often a critical emitter tries a batch again before it is dropped:
    /// 0 to 1,000; the largest of the enabled observers' if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 3)]
    pub(crate) max_retries: Option<u32>,
    /// How long an event waits at most for a batch to fill: 1ms to 1h; the
    /// smallest of the enabled observers' if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"100ms")]
    pub(crate) drain_interval: Option<HumanDuration>,
    /// Type stdout: text on a terminal and json elsewhere, if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"json")]
    pub(crate) format: Option<Format>,
    /// Type file: the file. Its folder must exist; it is created with mode
    /// 0640.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"/var/log/vahti/events.jsonl")]
    pub(crate) path: Option<PathBuf>,
    /// Type file: from which size on it is rotated: 4KiB to 1024GiB; 64MiB if
    /// not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"64MiB")]
    pub(crate) max_size: Option<ByteSize>,
    /// Type file: from which age on it is rotated, when the next event comes:
    /// 1s to 366d; 1d if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"1d")]
    pub(crate) max_age: Option<HumanDuration>,
    /// Type file: how many rotated files are kept: 0 to 1,000; 5 if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 5)]
    pub(crate) keep: Option<u32>,
}

impl EmitterConfig {
    /// One of this type with everything else at its default.
    pub(crate) fn of(kind: EmitterType) -> Self {
        EmitterConfig {
            kind,
            name: None,
            critical: false,
            max_retries: None,
            drain_interval: None,
            format: None,
            path: None,
            max_size: None,
            max_age: None,
            keep: None,
        }
    }

    /// Its name: as set, or its type's.
    pub(crate) fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(self.kind.as_str())
    }

    /// What the file emitter is told.
    pub(crate) fn to_file(&self) -> FileConfig {
        let defaults = FileConfig::at(self.path.clone().unwrap_or_default());
        FileConfig {
            max_size: self.max_size.unwrap_or(defaults.max_size),
            max_age: self.max_age.unwrap_or(defaults.max_age),
            keep: self.keep.unwrap_or(defaults.keep),
            path: defaults.path,
        }
    }
}

/// Bounds for the program as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// How long a shutdown waits for what was accepted to be delivered: 0s to
    /// 10m. What is left then is counted as dropped.
    pub(crate) drain_deadline: HumanDuration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { drain_deadline: HumanDuration(Duration::from_secs(5)) }
    }
}

/// The most emitters that may be set.
const MAX_EMITTERS: usize = 16;

impl Config {
    /// The queues' settings of the observers that are enabled.
    pub(crate) fn backpressures(&self) -> impl Iterator<Item = &runtime::BackpressureConfig> {
        let Observers { network, container } = &self.observers;
        let network = network.enabled.then_some(&network.backpressure);
        let container = container.enabled.then_some(&container.backpressure);
        network.into_iter().chain(container)
    }

    /// Every value that is out of its bound, in the order of the fields.
    pub(crate) fn validate(&self) -> Vec<InvalidField> {
        let mut wrong = Wrong::default();
        if let Some(name) = &self.node_name {
            wrong.unless(is_node_name(name), "node_name", quoted(name), NODE_NAME);
        }
        wrong.below("observers.network", self.observers.network.to_runtime().validate());
        wrong.below("observers.container", self.observers.container.to_runtime().validate());
        let emitters = &self.emitters.0;
        let count = emitters.len();
        wrong.unless(
            (1..=MAX_EMITTERS).contains(&count),
            "emitters",
            format!("a list of {count}"),
            "a list of 1 to 16",
        );
        for (i, emitter) in emitters.iter().enumerate() {
            let taken = emitters[..i].iter().any(|other| other.name() == emitter.name());
            wrong.emitter(&format!("emitters[{i}]"), emitter, taken);
        }
        let deadline = self.limits.drain_deadline;
        wrong.unless(
            deadline.0 <= Duration::from_secs(600),
            "limits.drain_deadline",
            deadline.to_string(),
            "0s to 10m",
        );
        wrong.fields
    }
}

const NODE_NAME: &str = "1 to 253 letters, digits, dots, hyphens and underscores";

/// Whether a node may be called this.
pub(crate) fn is_node_name(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

fn is_emitter_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", vahti_runtime::event::escape_text(text))
}

#[derive(Default)]
struct Wrong {
    fields: Vec<InvalidField>,
}

impl Wrong {
    fn unless(&mut self, ok: bool, path: &str, value: String, bound: &str) {
        if !ok {
            self.fields.push(InvalidField {
                path: path.to_owned(),
                value,
                bound: bound.to_owned(),
            });
        }
    }

    fn below(&mut self, prefix: &str, result: Result<(), runtime::InvalidConfig>) {
        if let Err(invalid) = result {
            self.fields.extend(
                invalid.fields.into_iter().map(|field| InvalidField {
                    path: format!("{prefix}.{}", field.path),
                    ..field
                }),
            );
        }
    }

    fn emitter(&mut self, path: &str, emitter: &EmitterConfig, name_is_taken: bool) {
        let (kind, name) = (emitter.kind, emitter.name());
        let at = |key: &str| format!("{path}.{key}");
        self.unless(
            is_emitter_name(name),
            &at("name"),
            quoted(name),
            "1 to 63 lowercase letters, digits and hyphens",
        );
        self.unless(!name_is_taken, &at("name"), quoted(name), "a name that no other emitter has");
        if let Some(retries) = emitter.max_retries {
            self.unless(retries <= 1_000, &at("max_retries"), retries.to_string(), "0 to 1,000");
        }
        if let Some(interval) = emitter.drain_interval {
            let is_good = (1..=3_600_000).contains(&interval.0.as_millis());
            self.unless(is_good, &at("drain_interval"), interval.to_string(), "1ms to 1h");
        }
        let mut only = |is_set: bool, key: &str, of: EmitterType| {
            let bound = format!("left out for an emitter of type {}", kind.as_str());
            self.unless(!is_set || kind == of, &at(key), "set".to_owned(), &bound);
        };
        only(emitter.format.is_some(), "format", EmitterType::Stdout);
        only(emitter.path.is_some(), "path", EmitterType::File);
        only(emitter.max_size.is_some(), "max_size", EmitterType::File);
        only(emitter.max_age.is_some(), "max_age", EmitterType::File);
        only(emitter.keep.is_some(), "keep", EmitterType::File);
        if kind == EmitterType::File {
            if emitter.path.is_none() {
                self.unless(false, &at("path"), "not set".to_owned(), "the path of a file");
                return;
            }
            let wrong = emitter.to_file().validate();
            self.fields.extend(
                wrong.into_iter().map(|field| InvalidField { path: at(&field.path), ..field }),
            );
        }
    }
}
