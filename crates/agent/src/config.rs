//! What can be set about the agent.
//!
//! A field's doc comment is the user's documentation: `vahti config example`
//! and `vahti config schema` are generated from it.

pub(crate) mod example;
mod listen;
pub(crate) mod load;
mod places;
pub(crate) mod problem;
pub(crate) mod settings;
mod tree;
mod typed;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vahti_exporters::otlp::{Compression, HeaderSource, OtlpConfig, Protocol};
use vahti_exporters::store::StoreConfig;
use vahti_exporters::{FileConfig, Format, PolkuTarget, TlsConfig};
use vahti_runtime::config as runtime;
use vahti_runtime::config::InvalidField;
use vahti_runtime::config::bounds::{Bounded, Checked, TextBound, describe};
use vahti_runtime::event::{AGENT_GAP, EventKind};
use vahti_runtime::units::{ByteSize, HumanDuration};

pub(crate) use self::listen::Listen;
use crate::budget::{self, Division};

/// Everything that can be set about vahti. A value on the command line goes
/// before one in this file, this file before the environment (VAHTI_NODE_NAME,
/// VAHTI_LOG, VAHTI_OBSERVERS, VAHTI_EMIT, VAHTI_STORE, VAHTI_HTTP), the
/// environment before the defaults.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(title = "Configuration of vahti", transform = describe::<Config>)]
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
    /// Where events go: 1 to 16 of them. Each has a queue for each observer, or is
    /// served from the store; a slow one holds up no other.
    pub(crate) emitters: Emitters,
    /// What is kept on this node: the history that `vahti events` shows, and
    /// the log that durable emitters are served from.
    pub(crate) store: StoreSettings,
    /// Where metrics and health can be asked for.
    pub(crate) http: HttpSettings,
    /// Bounds for the program as a whole.
    pub(crate) limits: Limits,
}

/// How much is told.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
)]
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
    /// To a receiver of OTLP, as log records and spans.
    Otlp,
    /// To a gateway of POLKU.
    Polku,
    /// Nowhere.
    None,
}

impl EmitterType {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            EmitterType::Stdout => "stdout",
            EmitterType::File => "file",
            EmitterType::Otlp => "otlp",
            EmitterType::Polku => "polku",
            EmitterType::None => "none",
        }
    }
}

/// One place where events go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = describe::<EmitterConfig>, transform = example::describe_types)]
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
    /// Types file, otlp and polku: whether it is served from the store: what it fails to write
    /// is tried again until it arrives, also after a restart, for as long as
    /// the store keeps it; some may arrive twice. max_retries and
    /// drain_interval do not apply.
    #[serde(default)]
    pub(crate) durable: bool,
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
    /// Type file: the file; it is created with mode 0640, its folder is not.
    /// Where it can't be written to, that is tried again with every batch.
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
    /// Types otlp and polku: where to: http:// or https://, a host or an
    /// address, and a port; for protocol http also a path that /v1/logs and
    /// /v1/traces are put behind. For type otlp, if not set,
    /// OTEL_EXPORTER_OTLP_ENDPOINT, else this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"https://collector.example:4317")]
    pub(crate) endpoint: Option<String>,
    /// Type otlp: how; if not set, OTEL_EXPORTER_OTLP_PROTOCOL, else grpc.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"grpc")]
    pub(crate) protocol: Option<Protocol>,
    /// Type otlp: what every request carries besides: by name a text, a file
    /// with it or an environment variable with it, never shown; those of
    /// OTEL_EXPORTER_OTLP_HEADERS as well.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(example = example::header())]
    pub(crate) headers: BTreeMap<String, HeaderSource>,
    /// Types otlp and polku: for https://, the files (PEM) of the authorities to believe
    /// (ca; those of the system if not set), and of this client's own
    /// certificate and key (cert, key).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = example::trust())]
    pub(crate) tls: Option<TlsConfig>,
    /// Type otlp: how requests are compressed; if not set,
    /// OTEL_EXPORTER_OTLP_COMPRESSION, else none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"gzip")]
    pub(crate) compression: Option<Compression>,
    /// Types otlp and polku: how long an answer is waited for: 10ms to 5m; if
    /// not set, OTEL_EXPORTER_OTLP_TIMEOUT for type otlp, else 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"10s")]
    pub(crate) timeout: Option<HumanDuration>,
    /// Type otlp: how large a request may be, before compression: 64KiB to
    /// 64MiB; 3MiB if not set, as receivers take 4MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"3MiB")]
    pub(crate) max_request: Option<ByteSize>,
    /// Type otlp: whether events that chains of causes are made of are sent as
    /// spans, too; true if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true)]
    pub(crate) traces: Option<bool>,
    /// Type polku: which cluster the events are said to be from; none if not
    /// set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"production")]
    pub(crate) cluster: Option<String>,
}

impl EmitterConfig {
    /// One of this type with everything else at its default.
    pub(crate) fn of(kind: EmitterType) -> Self {
        EmitterConfig {
            kind,
            name: None,
            critical: false,
            durable: false,
            max_retries: None,
            drain_interval: None,
            format: None,
            path: None,
            max_size: None,
            max_age: None,
            keep: None,
            endpoint: None,
            protocol: None,
            headers: BTreeMap::new(),
            tls: None,
            compression: None,
            timeout: None,
            max_request: None,
            traces: None,
            cluster: None,
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

impl EmitterConfig {
    /// What the OTLP emitter is told.
    pub(crate) fn to_otlp(&self) -> OtlpConfig {
        OtlpConfig {
            endpoint: self.endpoint.clone(),
            protocol: self.protocol,
            headers: self.headers.clone(),
            tls: self.tls.clone().unwrap_or_default(),
            compression: self.compression,
            timeout: self.timeout,
            max_request: self.max_request,
            traces: self.traces,
        }
    }

    /// What the POLKU emitter is told.
    pub(crate) fn to_polku(&self) -> Result<PolkuTarget, runtime::InvalidConfig> {
        let timeout = self.timeout.map_or(Duration::from_secs(10), |timeout| timeout.0);
        let (endpoint, cluster) = (self.endpoint.as_deref(), self.cluster.as_deref());
        let tls = self.tls.clone().unwrap_or_default();
        PolkuTarget::new(endpoint.unwrap_or("not set"), cluster.unwrap_or_default(), tls, timeout)
    }
}

/// What is kept on this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(transform = describe::<StoreSettings>)]
pub(crate) struct StoreSettings {
    /// Its folder, which belongs to the store alone, or `none` for no store;
    /// /var/lib/vahti if not set, or vahti in $XDG_STATE_HOME without the right
    /// to that.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"/var/lib/vahti")]
    pub(crate) path: Option<PathBuf>,
    /// How large it may become, write-ahead log included: 8MiB to 1024GiB.
    /// Beyond it the oldest events leave: first what every durable emitter has,
    /// normal ones before critical ones.
    pub(crate) max_bytes: ByteSize,
    /// How long events are kept: 1m to 3660d.
    pub(crate) max_age: HumanDuration,
}

impl Default for StoreSettings {
    fn default() -> Self {
        let StoreConfig { max_bytes, max_age, .. } = StoreConfig::at("");
        StoreSettings { path: None, max_bytes, max_age }
    }
}

impl StoreSettings {
    /// Whether there is to be none.
    pub(crate) fn is_off(&self) -> bool {
        self.path.as_deref() == Some(Path::new("none"))
    }

    /// What the store is told, in this folder.
    pub(crate) fn to_store(&self, path: PathBuf) -> StoreConfig {
        StoreConfig { max_bytes: self.max_bytes, max_age: self.max_age, ..StoreConfig::at(path) }
    }
}

impl Bounded for StoreSettings {
    fn sample() -> Self {
        StoreSettings { path: Some("/var/lib/vahti".into()), ..StoreSettings::default() }
    }

    fn check(&self, checked: &mut Checked) {
        let path = self.path.as_deref().unwrap_or(Path::new("unset")).to_string_lossy();
        checked.filled("path", &path, "the path of a folder, or none");
        places::check_no_nul(checked, "path", self.path.as_deref().unwrap_or(Path::new("unset")));
        self.to_store("checked".into()).check(checked);
    }
}

/// Where metrics and health can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HttpSettings {
    /// The address and port that is listened on, or `none` for nowhere. Whoever
    /// reaches it may read metrics and health, and nothing else.
    pub(crate) listen: Listen,
}

/// Bounds for the program as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(transform = describe::<Limits>)]
pub(crate) struct Limits {
    /// How long a shutdown waits for what was accepted to be delivered: 0s to
    /// 10m. What is left then is counted as dropped.
    pub(crate) drain_deadline: HumanDuration,
    /// How much memory it may take: 16MiB to 64GiB, for queues, caches, the
    /// store and what programs keep in the kernel. Divided at the start, as
    /// `vahti doctor` shows; refused where it is not enough.
    pub(crate) memory: ByteSize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { drain_deadline: HumanDuration(Duration::from_secs(5)), memory: budget::DEFAULT }
    }
}

/// What a node may be called.
const NODE_NAME: TextBound = TextBound {
    first: "A-Za-z0-9._-",
    rest: "A-Za-z0-9._-",
    max_len: 253,
    words: "letters, digits, dots, hyphens and underscores",
};

/// What an emitter may be called.
const EMITTER_NAME: TextBound = TextBound {
    first: "a-z0-9-",
    rest: "a-z0-9-",
    max_len: 63,
    words: "lowercase letters, digits and hyphens",
};

/// Which keys are for emitters of some types only.
const OF_TYPES: [(&str, &[EmitterType]); 14] = [
    ("format", &[EmitterType::Stdout]),
    ("path", &[EmitterType::File]),
    ("max_size", &[EmitterType::File]),
    ("max_age", &[EmitterType::File]),
    ("keep", &[EmitterType::File]),
    ("endpoint", &[EmitterType::Otlp, EmitterType::Polku]),
    ("protocol", &[EmitterType::Otlp]),
    ("headers", &[EmitterType::Otlp]),
    ("tls", &[EmitterType::Otlp, EmitterType::Polku]),
    ("compression", &[EmitterType::Otlp]),
    ("timeout", &[EmitterType::Otlp, EmitterType::Polku]),
    ("max_request", &[EmitterType::Otlp]),
    ("traces", &[EmitterType::Otlp]),
    ("cluster", &[EmitterType::Polku]),
];

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
        Checked::of(self).wrong
    }

    /// The same for a configuration that nothing else adds to: it must have
    /// something to watch. The command line can name observers too.
    pub(crate) fn validate_alone(&self) -> Vec<InvalidField> {
        let mut wrong = self.validate();
        if !self.observers.network.enabled && !self.observers.container.enabled {
            wrong.push(InvalidField {
                path: "observers".to_owned(),
                value: "without any that is enabled".to_owned(),
                bound: format!("with one at least: {}", problem::one_of(&OBSERVERS)),
            });
        }
        wrong
    }
}

impl Bounded for Config {
    fn sample() -> Self {
        Config::default()
    }

    fn check(&self, checked: &mut Checked) {
        checked.text("node_name", self.node_name.as_deref(), NODE_NAME);
        let Observers { network, container } = &self.observers;
        checked.inside("observers.network", &network.to_runtime());
        check_rules(checked, "observers.network", &network.sampling);
        checked.inside("observers.container", &container.to_runtime());
        check_rules(checked, "observers.container", &container.sampling);
        let emitters = &self.emitters.0;
        checked.items("emitters", emitters.len(), 1, 16);
        checked.each("emitters", emitters);
        for (i, emitter) in emitters.iter().enumerate() {
            places::check_apart(checked, &format!("emitters[{i}]"), emitter, &emitters[..i]);
        }
        for (i, emitter) in emitters.iter().enumerate() {
            checked.that(
                !emitter.durable || !self.store.is_off(),
                &format!("emitters[{i}].durable"),
                || ("true".to_owned(), "false where store.path is none".to_owned()),
            );
            checked.that(emitter.name() != "store", &format!("emitters[{i}].name"), || {
                (quoted("store"), "another name: that is the store's own".to_owned())
            });
        }
        checked.inside("store", &self.store);
        checked.inside("limits", &self.limits);
        // What is out of a bound of its own was told already.
        if checked.wrong.is_empty()
            && let Err(unmet) = Division::of(self)
        {
            checked.wrong.push(unmet.field());
        }
    }
}

/// A rule about events that do not exist would never match, which nobody would
/// notice.
fn check_rules(checked: &mut Checked, observer: &str, sampling: &runtime::SamplingConfig) {
    for (i, rule) in sampling.rules.iter().enumerate() {
        let path = |key: &str| format!("{observer}.sampling.rules[{i}].{key}");
        let (types, subtypes) = (event_types(), subtypes(&rule.event_type));
        let is_type = types.contains(&&*rule.event_type);
        // That it is empty was told.
        checked.that(is_type || rule.event_type.is_empty(), &path("event_type"), || {
            (quoted(&rule.event_type), one_of_known(&rule.event_type, &types))
        });
        let is_subtype = rule.subtype.is_empty() || subtypes.contains(&&*rule.subtype);
        checked.that(is_subtype || !is_type, &path("subtype"), || {
            (quoted(&rule.subtype), one_of_known(&rule.subtype, &subtypes))
        });
    }
}

/// The types of the events that there are.
fn event_types() -> Vec<&'static str> {
    // What the agent tells about itself is never sampled.
    let observed = EventKind::ALL.iter().filter(|kind| ***kind != AGENT_GAP);
    let mut types: Vec<_> = observed.map(|kind| kind.event_type()).collect();
    types.dedup();
    types
}

/// The subtypes of events of this type.
fn subtypes(event_type: &str) -> Vec<&'static str> {
    let of_type = EventKind::ALL.iter().filter(|kind| kind.event_type() == event_type);
    of_type.map(|kind| kind.subtype()).collect()
}

fn one_of_known(given: &str, known: &[&str]) -> String {
    let meant = problem::nearest(given, known).map(|word| format!("; did you mean {word}?"));
    format!("{}{}", problem::one_of(known), meant.unwrap_or_default())
}

impl Bounded for EmitterConfig {
    fn sample() -> Self {
        EmitterConfig { path: Some("events.jsonl".into()), ..EmitterConfig::of(EmitterType::File) }
    }

    fn check(&self, checked: &mut Checked) {
        checked.text("name", self.name.as_deref(), EMITTER_NAME);
        checked.whole("max_retries", self.max_retries.map(u64::from), 0, 1_000);
        checked.duration("drain_interval", self.drain_interval, 1, 3_600_000);
        // A reader of standard output that goes away is not coming back.
        let may_be_durable = !matches!(self.kind, EmitterType::Stdout | EmitterType::None);
        checked.that(!self.durable || may_be_durable, "durable", || {
            let bound = format!("false for an emitter of type {}", self.kind.as_str());
            ("true".to_owned(), bound)
        });
        for (key, kinds) in OF_TYPES {
            checked.that(!self.sets(key) || kinds.contains(&self.kind), key, || {
                let bound = format!("left out for an emitter of type {}", self.kind.as_str());
                ("set".to_owned(), bound)
            });
        }
        checked.duration("timeout", self.timeout, 10, 300_000);
        checked.size("max_request", self.max_request, 64 << 10, 64 << 20);
        checked.filled("endpoint", self.endpoint.as_deref().unwrap_or("unset"), "a URL");
        if let Some(tls) = &self.tls {
            checked.inside("tls", tls);
        }
        if self.kind == EmitterType::Otlp {
            check_otlp(checked, &self.to_otlp());
        }
        checked.filled("cluster", self.cluster.as_deref().unwrap_or("unset"), "a name");
        if self.kind == EmitterType::Polku
            && let Err(wrong) = self.to_polku()
        {
            checked.wrong.extend(wrong.fields);
        }
        if self.kind != EmitterType::File {
            return;
        }
        match self.path {
            Some(ref path) => {
                self.to_file().check(checked);
                places::check_no_nul(checked, "path", path);
                places::check_writable_in_time(checked, path);
            }
            None => checked
                .that(false, "path", || ("not set".to_owned(), "the path of a file".to_owned())),
        }
    }
}

/// With what the environment fills in, as that is what would be sent with.
fn check_otlp(checked: &mut Checked, config: &OtlpConfig) {
    let wrong = config.target().err().map(|wrong| wrong.fields).unwrap_or_default();
    // What has a bound of its own was told with that.
    let others = wrong.into_iter().filter(|wrong| {
        let is_empty = wrong.path == "endpoint" && config.endpoint.as_deref() == Some("");
        !is_empty && !["timeout", "max_request"].contains(&&*wrong.path)
    });
    checked.wrong.extend(others);
}

impl EmitterConfig {
    /// Whether it sets a key of [`OF_TYPES`].
    fn sets(&self, key: &str) -> bool {
        match key {
            "format" => self.format.is_some(),
            "path" => self.path.is_some(),
            "max_size" => self.max_size.is_some(),
            "max_age" => self.max_age.is_some(),
            "keep" => self.keep.is_some(),
            "endpoint" => self.endpoint.is_some(),
            "protocol" => self.protocol.is_some(),
            "headers" => !self.headers.is_empty(),
            "tls" => self.tls.is_some(),
            "compression" => self.compression.is_some(),
            "timeout" => self.timeout.is_some(),
            "max_request" => self.max_request.is_some(),
            "traces" => self.traces.is_some(),
            _ => self.cluster.is_some(),
        }
    }
}

impl Bounded for Limits {
    fn sample() -> Self {
        Limits::default()
    }

    fn check(&self, checked: &mut Checked) {
        checked.duration("drain_deadline", self.drain_deadline, 0, 600_000);
        checked.size("memory", self.memory, 16 << 20, 64 << 30);
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", vahti_runtime::event::escape_text(text))
}
