//! What an event says, as OpenTelemetry's attributes.
//!
//! Stable names of its semantic conventions where there are some, and names of
//! our own, `vahti.` and the JSON key, where there are none. docs/otlp.md has
//! the table; a test holds both to each other and to the JSON line.

use std::fmt::{Display, Write};

use opentelemetry_proto::tonic::common::v1::any_value::Value as Wire;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use vahti_runtime::clock::Rfc3339;
use vahti_runtime::event::{
    Comm, Custom, Endpoint, ErrorInfo, Event, EventData, Exit, Gap, Link, Network, OomKill,
    Process, Value, escape, escape_text,
};

/// Writes over a list of another event, whose memory it uses again: most of an
/// event's cost would be in its many small texts otherwise.
pub(super) struct Attributes<'a> {
    list: &'a mut Vec<KeyValue>,
    len: usize,
}

impl Attributes<'_> {
    /// Makes `list` all that an event says beside what the fields of a record
    /// and of a span have a place for.
    pub(super) fn write(event: &Event, list: &mut Vec<KeyValue>) {
        let mut all = Attributes { list, len: 0 };
        all.shown("log.record.uid", event.id);
        all.word("vahti.type", event.kind.event_type());
        all.word("vahti.subtype", event.kind.subtype());
        all.word("vahti.priority", event.kind.priority().as_str());
        all.word("vahti.source", &event.origin.source);
        all.word("vahti.outcome", event.outcome.as_str());
        if let Some(error) = &event.error {
            all.error(error);
        }
        if let Some(parent) = event.parent_span_id {
            all.shown("vahti.parent_span_id", parent);
        }
        if !event.links.is_empty() {
            all.put("vahti.links", array(event.links.iter().map(link)));
        }
        if let Some(duration) = event.duration_ns {
            all.number("vahti.duration_us", duration / 1_000);
        }
        if let Some(process) = &event.process {
            all.process(process);
        }
        if let Some(cgroup) = &event.cgroup {
            all.number("vahti.cgroup.id", cgroup.id);
            all.name("vahti.cgroup.path", &cgroup.path);
            all.number("vahti.cgroup.version", cgroup.version.into());
        }
        if let Some(container) = &event.container {
            all.name("container.id", container.id.as_bytes());
            if let Some(runtime) = container.runtime {
                all.word("container.runtime.name", runtime);
            }
        }
        all.data(&event.data);
        all.weighing(event);
        let len = all.len;
        list.truncate(len);
    }

    /// The place of the next value, under its key.
    fn slot(&mut self, key: &str) -> &mut Option<AnyValue> {
        if self.len == self.list.len() {
            self.list.push(KeyValue::default());
        }
        let slot = &mut self.list[self.len];
        self.len += 1;
        if slot.key != key {
            slot.key.clear();
            slot.key.push_str(key);
        }
        &mut slot.value
    }

    fn put(&mut self, key: &str, value: Wire) {
        *self.slot(key) = Some(any(value));
    }

    /// Writes a value that is a text, with the memory of the one before.
    fn text(&mut self, key: &str, write: impl FnOnce(&mut String)) {
        let slot = self.slot(key);
        let mut text = match slot.take() {
            Some(AnyValue { value: Some(Wire::StringValue(text)) }) => text,
            _ => String::new(),
        };
        text.clear();
        write(&mut text);
        *slot = Some(any(Wire::StringValue(text)));
    }

    fn shown(&mut self, key: &str, value: impl Display) {
        // Writing to memory doesn't fail.
        self.text(key, |text| write!(text, "{value}").unwrap_or_default());
    }

    /// Text made by a program.
    fn word(&mut self, key: &str, value: &str) {
        self.text(key, |text| text.push_str(&escape_text(value)));
    }

    /// A name from the kernel.
    fn name(&mut self, key: &str, value: &[u8]) {
        self.text(key, |text| text.push_str(&escape(value)));
    }

    fn comm(&mut self, key: &str, value: &Comm) {
        self.name(key, value.as_bytes());
    }

    fn number(&mut self, key: &str, value: u64) {
        self.put(key, whole(value));
    }

    fn time(&mut self, key: &str, ns: u64) {
        self.text(key, |text| text.push_str(Rfc3339::new(ns).as_str()));
    }

    fn error(&mut self, error: &ErrorInfo) {
        self.word("error.type", &error.code);
        self.word("error.message", &error.message);
        if let Some(cause) = &error.cause {
            self.word("vahti.error.cause", cause);
        }
    }

    fn process(&mut self, process: &Process) {
        if let Some(pid) = process.pid {
            self.number("process.pid", pid.into());
        }
        if let Some(name) = &process.name {
            self.comm("vahti.process.name", name);
        }
        if let Some(uid) = process.uid {
            self.number("process.real_user.id", uid.into());
        }
        if let Some(parent) = process.parent_pid {
            self.number("process.parent_pid", parent.into());
        }
        if let Some(start) = process.start_ns {
            self.time("process.creation.time", start);
        }
    }

    fn data(&mut self, data: &EventData) {
        match data {
            EventData::None => {}
            EventData::Network(network) => self.network(network),
            EventData::OomKill(oom) => self.oom(oom),
            EventData::Exit(exit) => self.exit(exit),
            EventData::Gap(Gap { from_ns, to_ns }) => {
                self.time("vahti.gap.from", *from_ns);
                self.time("vahti.gap.to", *to_ns);
            }
            EventData::Custom(custom) => self.custom(custom),
        }
    }

    fn network(&mut self, network: &Network) {
        self.word("network.transport", network.transport.as_str());
        self.word("network.type", network.network_type.as_str());
        self.endpoint("network.local.address", "network.local.port", &network.local);
        self.endpoint("network.peer.address", "network.peer.port", &network.peer);
    }

    fn endpoint(&mut self, address: &str, port: &str, endpoint: &Endpoint) {
        if let Some(is) = endpoint.address {
            self.shown(address, is.to_canonical());
        }
        if let Some(is) = endpoint.port {
            self.number(port, is.into());
        }
    }

    fn oom(&mut self, oom: &OomKill) {
        for (key, value) in [
            ("vahti.memory.usage_bytes", oom.usage_bytes),
            ("vahti.memory.limit_bytes", oom.limit_bytes),
            ("vahti.oom.victim_rss_bytes", oom.victim_rss_bytes),
        ] {
            if let Some(value) = value {
                self.number(key, value);
            }
        }
        self.word("vahti.oom.scope", oom.scope.as_str());
        if let Some(trigger) = &oom.trigger {
            self.number("vahti.oom.trigger_pid", trigger.pid.into());
            self.comm("vahti.oom.trigger_name", &trigger.name);
        }
        if let Some(score) = oom.score_adj {
            self.put("vahti.oom.score_adj", Wire::IntValue(score.into()));
        }
    }

    fn exit(&mut self, exit: &Exit) {
        if let Some(code) = exit.code {
            self.number("process.exit.code", code.into());
        }
        if let Some(signal) = exit.signal {
            self.shown("vahti.exit.signal", signal);
        }
        self.word("vahti.exit.class", exit.class.as_str());
        if let Some(sender) = &exit.sender {
            self.number("vahti.exit.sender_pid", sender.pid.into());
            self.comm("vahti.exit.sender_name", &sender.name);
        }
    }

    /// Under their own keys, as whoever made them expects; in a list of their
    /// own only those that would stand for something else.
    fn custom(&mut self, custom: &Custom) {
        self.word("vahti.custom.schema", &custom.schema);
        for (i, (key, value)) in custom.attributes.iter().enumerate() {
            // Twice in one list is not allowed: the last one wins.
            if custom.attributes[i + 1..].iter().any(|(later, _)| later == key) {
                continue;
            }
            let is_taken =
                key.is_empty() || key.starts_with("vahti.") || CONVENTIONAL.contains(&&**key);
            if is_taken {
                self.put(&format!("vahti.custom.{key}"), wire(value));
            } else {
                self.put(key, wire(value));
            }
        }
    }

    fn weighing(&mut self, event: &Event) {
        self.number("vahti.count", event.count);
        if event.first_ns != 0 {
            self.time("vahti.first_time", event.first_ns);
        }
        if event.last_ns != 0 {
            self.time("vahti.last_time", event.last_ns);
        }
        let weight = if event.weight.is_finite() { event.weight } else { 1.0 };
        self.put("vahti.weight", Wire::DoubleValue(weight));
        if let Some(threshold) = threshold(event) {
            self.word("sampling.threshold", &threshold);
        }
        if let Some(unresolved) = event.unresolved {
            self.word("vahti.unresolved.reason", unresolved.reason);
        }
    }
}

/// The keys of OpenTelemetry's conventions that have their meaning in every
/// event, whether it has a value for them or not.
pub(super) const CONVENTIONAL: [&str; 17] = [
    "container.id",
    "container.runtime.name",
    "error.message",
    "error.type",
    "log.record.uid",
    "network.local.address",
    "network.local.port",
    "network.peer.address",
    "network.peer.port",
    "network.transport",
    "network.type",
    "process.creation.time",
    "process.exit.code",
    "process.parent_pid",
    "process.pid",
    "process.real_user.id",
    "sampling.threshold",
];

/// OpenTelemetry's `th`, where the event was sampled.
pub(super) fn threshold(event: &Event) -> Option<String> {
    let threshold = event.sampling_threshold & ((1 << 56) - 1);
    if threshold == 0 {
        return None;
    }
    let digits = format!("{threshold:014x}");
    Some(digits.trim_end_matches('0').to_owned())
}

/// The evidence of a link, beside the span that it leads to.
pub(super) fn evidence(link: &Link) -> Vec<KeyValue> {
    vec![
        pair("vahti.link.kind", Wire::StringValue(link.kind.as_str().to_owned())),
        pair("vahti.link.rule", Wire::StringValue(escape_text(link.rule).into_owned())),
        pair("vahti.link.age_us", whole(link.age_ns / 1_000)),
    ]
}

fn link(link: &Link) -> AnyValue {
    let values = vec![
        pair("kind", Wire::StringValue(link.kind.as_str().to_owned())),
        pair("trace_id", Wire::StringValue(link.trace_id.to_string())),
        pair("span_id", Wire::StringValue(link.span_id.to_string())),
        pair("rule", Wire::StringValue(escape_text(link.rule).into_owned())),
        pair("age_us", whole(link.age_ns / 1_000)),
    ];
    any(Wire::KvlistValue(KeyValueList { values }))
}

pub(super) fn pair(key: &str, value: Wire) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(any(value)), ..KeyValue::default() }
}

fn any(value: Wire) -> AnyValue {
    AnyValue { value: Some(value) }
}

fn array(values: impl Iterator<Item = AnyValue>) -> Wire {
    Wire::ArrayValue(ArrayValue { values: values.collect() })
}

/// Attributes have no unsigned numbers: what does not fit is decimal text, as
/// in JSON.
fn whole(value: u64) -> Wire {
    i64::try_from(value).map_or_else(|_| Wire::StringValue(value.to_string()), Wire::IntValue)
}

fn wire(value: &Value) -> Wire {
    match value {
        Value::Bool(value) => Wire::BoolValue(*value),
        Value::Int(value) => Wire::IntValue(*value),
        Value::Uint(value) => whole(*value),
        Value::Double(value) => Wire::DoubleValue(*value),
        Value::Text(value) => Wire::StringValue(value.clone().into_owned()),
        Value::List(values) => array(values.iter().map(|value| any(wire(value)))),
    }
}
