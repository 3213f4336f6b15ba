//! How each part of an event is written; one thin view a part.

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use super::entry;
use super::words::Word;
use crate::clock::Rfc3339;
use crate::event::{
    Cgroup, Comm, Container, Custom, Endpoint, ErrorInfo, Exit, Gap, Link, Network, OomKill,
    Process, Unresolved, Value, escape, escape_text,
};

/// From here on, readers that take numbers for doubles lose digits.
const FIRST_INEXACT: u64 = 1 << 53;

/// A value as its `Display` shows it; must be harmless by its nature.
pub(super) struct Shown<T>(pub(super) T);

impl<T: std::fmt::Display> Serialize for Shown<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Nanoseconds since 1970, as RFC 3339.
pub(super) struct Time(pub(super) u64);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(Rfc3339::new(self.0).as_str())
    }
}

/// Text made by a program.
pub(super) struct Text<'a>(pub(super) &'a str);

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&escape_text(self.0))
    }
}

/// A name from the kernel.
struct Name<'a>(&'a [u8]);

impl Serialize for Name<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&escape(self.0))
    }
}

fn name(comm: &Comm) -> Name<'_> {
    Name(comm.as_bytes())
}

/// A number that is text where many readers could not hold it.
struct Exact(u64);

impl Serialize for Exact {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 < FIRST_INEXACT {
            serializer.serialize_u64(self.0)
        } else {
            serializer.collect_str(&self.0)
        }
    }
}

pub(super) struct ErrorView<'a>(pub(super) &'a ErrorInfo);

impl Serialize for ErrorView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("code", &Text(&self.0.code))?;
        map.serialize_entry("message", &Text(&self.0.message))?;
        entry(&mut map, "cause", self.0.cause.as_deref().map(Text))?;
        map.end()
    }
}

pub(super) struct LinksView<'a>(pub(super) &'a [Link]);

impl Serialize for LinksView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(LinkView))
    }
}

struct LinkView<'a>(&'a Link);

impl Serialize for LinkView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("kind", self.0.kind.word())?;
        map.serialize_entry("trace_id", &Shown(self.0.trace_id))?;
        map.serialize_entry("span_id", &Shown(self.0.span_id))?;
        map.serialize_entry("rule", &Text(self.0.rule))?;
        map.serialize_entry("age_us", &(self.0.age_ns / 1_000))?;
        map.end()
    }
}

pub(super) struct ProcessView<'a>(&'a Process);

impl<'a> ProcessView<'a> {
    /// `None` where nothing at all is known of the process.
    pub(super) fn of(process: Option<&'a Process>) -> Option<Self> {
        process
            .filter(|p| {
                p.pid.is_some()
                    || p.name.is_some()
                    || p.uid.is_some()
                    || p.parent_pid.is_some()
                    || p.start_ns.is_some()
            })
            .map(ProcessView)
    }
}

impl Serialize for ProcessView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        entry(&mut map, "pid", self.0.pid)?;
        entry(&mut map, "name", self.0.name.as_ref().map(name))?;
        entry(&mut map, "uid", self.0.uid)?;
        entry(&mut map, "parent_pid", self.0.parent_pid)?;
        entry(&mut map, "start_time", self.0.start_ns.map(Time))?;
        map.end()
    }
}

pub(super) struct CgroupView<'a>(pub(super) &'a Cgroup);

impl Serialize for CgroupView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("id", &Exact(self.0.id))?;
        map.serialize_entry("path", &Name(&self.0.path))?;
        map.serialize_entry("version", &self.0.version)?;
        map.end()
    }
}

pub(super) struct ContainerView<'a>(pub(super) &'a Container);

impl Serialize for ContainerView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("id", &Name(self.0.id.as_bytes()))?;
        entry(&mut map, "runtime", self.0.runtime.map(Text))?;
        map.end()
    }
}

pub(super) struct NetworkView<'a>(pub(super) &'a Network);

impl Serialize for NetworkView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("transport", self.0.transport.word())?;
        map.serialize_entry("type", self.0.network_type.word())?;
        entry(&mut map, "local", EndpointView::of(&self.0.local))?;
        entry(&mut map, "peer", EndpointView::of(&self.0.peer))?;
        map.end()
    }
}

struct EndpointView<'a>(&'a Endpoint);

impl<'a> EndpointView<'a> {
    fn of(endpoint: &'a Endpoint) -> Option<Self> {
        (endpoint.address.is_some() || endpoint.port.is_some()).then_some(EndpointView(endpoint))
    }
}

impl Serialize for EndpointView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let address = self.0.address.map(|address| address.to_canonical());
        let mut map = serializer.serialize_map(None)?;
        entry(&mut map, "address", address.map(Shown))?;
        entry(&mut map, "port", self.0.port)?;
        map.end()
    }
}

pub(super) struct MemoryView<'a>(&'a OomKill);

impl<'a> MemoryView<'a> {
    /// `None` where neither figure is known.
    pub(super) fn of(oom: &'a OomKill) -> Option<Self> {
        (oom.usage_bytes.is_some() || oom.limit_bytes.is_some()).then_some(MemoryView(oom))
    }
}

impl Serialize for MemoryView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        entry(&mut map, "usage_bytes", self.0.usage_bytes)?;
        entry(&mut map, "limit_bytes", self.0.limit_bytes)?;
        map.end()
    }
}

pub(super) struct OomView<'a>(pub(super) &'a OomKill);

impl Serialize for OomView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let trigger = self.0.trigger.as_ref();
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("scope", self.0.scope.word())?;
        entry(&mut map, "trigger_pid", trigger.map(|t| t.pid))?;
        entry(&mut map, "trigger_name", trigger.map(|t| name(&t.name)))?;
        entry(&mut map, "victim_rss_bytes", self.0.victim_rss_bytes)?;
        entry(&mut map, "score_adj", self.0.score_adj)?;
        map.end()
    }
}

pub(super) struct ExitView<'a>(pub(super) &'a Exit);

impl Serialize for ExitView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let sender = self.0.sender.as_ref();
        let mut map = serializer.serialize_map(None)?;
        entry(&mut map, "code", self.0.code)?;
        entry(&mut map, "signal", self.0.signal.map(Shown))?;
        map.serialize_entry("class", self.0.class.word())?;
        entry(&mut map, "sender_pid", sender.map(|s| s.pid))?;
        entry(&mut map, "sender_name", sender.map(|s| name(&s.name)))?;
        map.end()
    }
}

pub(super) struct GapView<'a>(pub(super) &'a Gap);

impl Serialize for GapView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("from", &Time(self.0.from_ns))?;
        map.serialize_entry("to", &Time(self.0.to_ns))?;
        map.end()
    }
}

pub(super) struct SamplingView(pub(super) u64);

impl Serialize for SamplingView {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("threshold", &Shown(Threshold(self.0)))?;
        map.end()
    }
}

/// 14 hexadecimal digits without trailing zeros, as OpenTelemetry's `th`.
struct Threshold(u64);

impl std::fmt::Display for Threshold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const DIGITS: u32 = 14;
        let zeros = (self.0.trailing_zeros() / 4).min(DIGITS - 1);
        let width = (DIGITS - zeros) as usize;
        write!(f, "{:0width$x}", self.0 >> (4 * zeros))
    }
}

pub(super) struct UnresolvedView(pub(super) Unresolved);

impl Serialize for UnresolvedView {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("reason", &Text(self.0.reason))?;
        map.end()
    }
}

pub(super) struct CustomView<'a>(pub(super) &'a Custom);

impl Serialize for CustomView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("schema", &Text(&self.0.schema))?;
        map.serialize_entry("attributes", &AttributesView(self.0))?;
        map.end()
    }
}

struct AttributesView<'a>(&'a Custom);

impl Serialize for AttributesView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let attributes = &self.0.attributes;
        let mut map = serializer.serialize_map(None)?;
        for (i, (key, value)) in attributes.iter().enumerate() {
            // A key twice in one object is no JSON that readers agree on: the
            // last one wins, as it does in theirs.
            if !attributes[i + 1..].iter().any(|(later, _)| later == key) {
                map.serialize_entry(key, &ValueView(value))?;
            }
        }
        map.end()
    }
}

struct ValueView<'a>(&'a Value);

impl Serialize for ValueView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Int(value) if value.unsigned_abs() >= FIRST_INEXACT => {
                serializer.collect_str(value)
            }
            Value::Int(value) => serializer.serialize_i64(*value),
            Value::Uint(value) => Exact(*value).serialize(serializer),
            Value::Double(value) if value.is_finite() => serializer.serialize_f64(*value),
            Value::Double(value) if value.is_nan() => serializer.serialize_str("NaN"),
            Value::Double(value) if *value > 0.0 => serializer.serialize_str("Infinity"),
            Value::Double(_) => serializer.serialize_str("-Infinity"),
            Value::Text(value) => serializer.serialize_str(value),
            Value::List(values) => {
                let mut list = serializer.serialize_seq(Some(values.len()))?;
                for value in values {
                    list.serialize_element(&ValueView(value))?;
                }
                list.end()
            }
        }
    }
}
