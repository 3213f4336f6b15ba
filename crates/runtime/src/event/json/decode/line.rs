//! The line's keys as they are read, in the shape of `event.schema.json`.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Unexpected, Visitor};

use crate::clock::Rfc3339;
use crate::event::json::words::Word;
use crate::event::{
    Comm, Endpoint, ExitClass, LinkKind, NetworkType, OomScope, Outcome, Priority, Severity,
    Signal, Transport, Value, unescape,
};
use crate::ids::{EventId, SpanId, TraceId};

/// How many attributes a custom event may have: writing one compares its keys
/// with each other.
const MAX_ATTRIBUTES: usize = 4_096;

#[derive(Deserialize)]
#[serde(expecting = "an event")]
pub(super) struct Line<'a> {
    #[serde(borrow)]
    pub(super) schema: Text<'a>,
    pub(super) id: Read<EventId>,
    pub(super) time: Read<Time>,
    pub(super) observed_time: Read<Time>,
    #[serde(borrow)]
    pub(super) name: Text<'a>,
    #[serde(borrow, rename = "type")]
    pub(super) event_type: Text<'a>,
    #[serde(borrow)]
    pub(super) subtype: Text<'a>,
    pub(super) priority: Read<Priority>,
    #[serde(borrow)]
    pub(super) source: Text<'a>,
    #[serde(borrow)]
    pub(super) node: Text<'a>,
    pub(super) severity: Read<Severity>,
    pub(super) outcome: Read<Outcome>,
    pub(super) error: Option<ErrorLine>,
    pub(super) trace_id: Option<Read<TraceId>>,
    pub(super) span_id: Option<Read<SpanId>>,
    pub(super) parent_span_id: Option<Read<SpanId>>,
    #[serde(borrow)]
    pub(super) links: Option<Vec<LinkLine<'a>>>,
    pub(super) duration_us: Option<u64>,
    pub(super) process: Option<ProcessLine>,
    pub(super) cgroup: Option<CgroupLine>,
    #[serde(borrow)]
    pub(super) container: Option<ContainerLine<'a>>,
    pub(super) network: Option<NetworkLine>,
    pub(super) memory: Option<MemoryLine>,
    pub(super) oom: Option<OomLine>,
    pub(super) exit: Option<ExitLine>,
    pub(super) gap: Option<GapLine>,
    pub(super) custom: Option<CustomLine>,
    pub(super) count: u64,
    pub(super) first_time: Option<Read<Time>>,
    pub(super) last_time: Option<Read<Time>>,
    pub(super) weight: f64,
    pub(super) sampling: Option<SamplingLine>,
    #[serde(borrow)]
    pub(super) unresolved: Option<UnresolvedLine<'a>>,
}

#[derive(Deserialize)]
#[serde(expecting = "an error")]
pub(super) struct ErrorLine {
    pub(super) code: Read<Code>,
    pub(super) message: Own,
    pub(super) cause: Option<Own>,
}

#[derive(Deserialize)]
#[serde(expecting = "a link")]
pub(super) struct LinkLine<'a> {
    pub(super) kind: Read<LinkKind>,
    pub(super) trace_id: Read<TraceId>,
    pub(super) span_id: Read<SpanId>,
    #[serde(borrow)]
    pub(super) rule: Text<'a>,
    pub(super) age_us: u64,
}

#[derive(Deserialize)]
#[serde(expecting = "a process")]
pub(super) struct ProcessLine {
    pub(super) pid: Option<u32>,
    pub(super) name: Option<Read<Comm>>,
    pub(super) uid: Option<u32>,
    pub(super) parent_pid: Option<u32>,
    pub(super) start_time: Option<Read<Time>>,
}

#[derive(Deserialize)]
#[serde(expecting = "a cgroup")]
pub(super) struct CgroupLine {
    pub(super) id: Exact,
    pub(super) path: Read<Box<[u8]>>,
    pub(super) version: u8,
}

#[derive(Deserialize)]
#[serde(expecting = "a container")]
pub(super) struct ContainerLine<'a> {
    pub(super) id: Read<Box<str>>,
    #[serde(borrow)]
    pub(super) runtime: Option<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(expecting = "a connection")]
pub(super) struct NetworkLine {
    pub(super) transport: Read<Transport>,
    #[serde(rename = "type")]
    pub(super) network_type: Read<NetworkType>,
    pub(super) local: Option<EndpointLine>,
    pub(super) peer: Option<EndpointLine>,
}

#[derive(Deserialize)]
#[serde(expecting = "an end of a connection")]
pub(super) struct EndpointLine {
    address: Option<Read<IpAddr>>,
    port: Option<u16>,
}

impl From<Option<EndpointLine>> for Endpoint {
    fn from(line: Option<EndpointLine>) -> Self {
        match line {
            Some(line) => Endpoint { address: line.address.map(|a| a.0), port: line.port },
            None => Endpoint { address: None, port: None },
        }
    }
}

#[derive(Deserialize)]
#[serde(expecting = "figures of memory")]
pub(super) struct MemoryLine {
    pub(super) usage_bytes: Option<u64>,
    pub(super) limit_bytes: Option<u64>,
}

#[derive(Deserialize)]
#[serde(expecting = "an OOM kill")]
pub(super) struct OomLine {
    pub(super) scope: Read<OomScope>,
    pub(super) trigger_pid: Option<u32>,
    pub(super) trigger_name: Option<Read<Comm>>,
    pub(super) victim_rss_bytes: Option<u64>,
    pub(super) score_adj: Option<i16>,
}

#[derive(Deserialize)]
#[serde(expecting = "the end of a process")]
pub(super) struct ExitLine {
    pub(super) code: Option<u8>,
    pub(super) signal: Option<Read<Signal>>,
    pub(super) class: Read<ExitClass>,
    pub(super) sender_pid: Option<u32>,
    pub(super) sender_name: Option<Read<Comm>>,
}

#[derive(Deserialize)]
#[serde(expecting = "a gap")]
pub(super) struct GapLine {
    pub(super) from: Read<Time>,
    pub(super) to: Read<Time>,
}

#[derive(Deserialize)]
#[serde(expecting = "custom data")]
pub(super) struct CustomLine {
    pub(super) schema: Own,
    pub(super) attributes: Attributes,
}

#[derive(Deserialize)]
#[serde(expecting = "how it was sampled")]
pub(super) struct SamplingLine {
    pub(super) threshold: Read<Threshold>,
}

#[derive(Deserialize)]
#[serde(expecting = "what is unresolved")]
pub(super) struct UnresolvedLine<'a> {
    #[serde(borrow)]
    pub(super) reason: Text<'a>,
}

/// Text, borrowed from the line unless it holds an escape of JSON's.
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// Text of the event's own.
pub(super) struct Own(pub(super) Cow<'static, str>);

impl<'de> Deserialize<'de> for Own {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Text::deserialize(deserializer).map(|text| Own(Cow::Owned(text.0.into_owned())))
    }
}

/// What stands as text in the line and means something narrower.
///
/// The visitor checks it, not what comes after: serde_json then knows where in
/// the line it was.
pub(super) struct Read<T>(pub(super) T);

pub(super) trait FromText: Sized {
    fn from_text(text: &str) -> Option<Self>;

    /// What it should have been, for an error.
    fn expected(f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

impl<'de, T: FromText> Deserialize<'de> for Read<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ReadVisitor<T>(PhantomData<T>);
        impl<T: FromText> Visitor<'_> for ReadVisitor<T> {
            type Value = Read<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                T::expected(f)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                T::from_text(text)
                    .map(Read)
                    .ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(ReadVisitor(PhantomData))
    }
}

impl<T: Word> FromText for T {
    fn from_text(text: &str) -> Option<Self> {
        T::ALL.iter().copied().find(|value| value.word() == text)
    }

    fn expected(f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one of")?;
        for (i, value) in T::ALL.iter().enumerate() {
            write!(f, "{} {}", if i == 0 { "" } else { "," }, value.word())?;
        }
        Ok(())
    }
}

impl FromText for EventId {
    fn from_text(text: &str) -> Option<Self> {
        EventId::parse(text)
    }

    fn expected(f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a ULID")
    }
}

impl FromText for TraceId {
    fn from_text(text: &str) -> Option<Self> {
        TraceId::parse(text)
    }

    fn expected(f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("32 hexadecimal digits")
    }
}

impl FromText for SpanId {
    fn from_text(text: &str) -> Option<Self> {
        SpanId::parse(text)
    }

    fn expected(f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("16 hexadecimal digits, not all of them 0")
    }
}

/// Nanoseconds since 1970.
pub(super) struct Time(pub(super) u64);

impl FromText for Time {
    fn from_text(text: &str) -> Option<Self> {
        Rfc3339::parse(text).map(Time)
    }

    fn expected(f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RFC 3339 in UTC with nine decimals, from 1970 to 2554")
    }
}

impl FromText for Comm {
    fn from_text(text: &str) -> Option<Self> {
        let bytes = unescape(text)?;
        let comm = Comm::new(&bytes);
        // Cutting it would be another name.
        (comm.as_bytes() == &*bytes).then_some(comm)
    }

    fn expected(f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an escaped name of at most 15 bytes")
    }
}

impl FromText for Box<[u8]> {
    fn from_text(text: &str) -> Option<Self> {
        unescape(text).map(|bytes| bytes.into())
    }

    fn expected(f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("escaped bytes")
    }
}

impl FromText for Box<str> {
    fn from_text(text: &str) -> Option<Self> {
        match unescape(text)? {
            Cow::Borrowed(bytes) => str::from_utf8(bytes).ok().map(Box::from),
            Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(String::into_boxed_str),
        }
    }

    fn expected(f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("escaped UTF-8")
    }
}

impl FromText for IpAddr {
    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn expected(f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an IP address")
    }
}

impl FromText for Signal {
    fn from_text(text: &str) -> Option<Self> {
        Signal::from_name(text)
    }

    fn expected(f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a signal's name")
    }
}

/// A threshold of 56 bits.
pub(super) struct Threshold(pub(super) u64);

impl FromText for Threshold {
    fn from_text(text: &str) -> Option<Self> {
        const DIGITS: usize = 14;
        let plain = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !plain || !(1..=DIGITS).contains(&text.len()) {
            return None;
        }
        let digits = u64::from_str_radix(text, 16).ok()?;
        Some(Threshold(digits << (4 * (DIGITS - text.len()))))
    }

    fn expected(f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("up to 14 hexadecimal digits")
    }
}

/// An error's code.
pub(super) struct Code(pub(super) Cow<'static, str>);

impl FromText for Code {
    /// The codes that built-in observers give cost no memory of their own.
    fn from_text(text: &str) -> Option<Self> {
        const KNOWN: [&str; 10] = [
            "ECONNREFUSED",
            "ETIMEDOUT",
            "ECONNRESET",
            "EHOSTUNREACH",
            "ENETUNREACH",
            "ECONNABORTED",
            "EPIPE",
            "EACCES",
            "ENOMEM",
            "EXIT",
        ];
        let signal = || Signal::from_name(text)?.standard_name().filter(|name| *name == text);
        Some(Code(match KNOWN.into_iter().find(|known| *known == text).or_else(signal) {
            Some(known) => Cow::Borrowed(known),
            None => Cow::Owned(text.to_owned()),
        }))
    }

    fn expected(f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text")
    }
}

/// A number, or decimal text where many readers could not hold it.
pub(super) struct Exact(pub(super) u64);

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ExactVisitor;
        impl Visitor<'_> for ExactVisitor {
            type Value = Exact;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number from 0 to 2^64 - 1, also as text")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
                Ok(Exact(number))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                // `parse` would take a sign.
                let plain = text.bytes().all(|b| b.is_ascii_digit());
                let number = if plain { text.parse().ok() } else { None };
                number.map(Exact).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(ExactVisitor)
    }
}

/// A custom event's attributes, in the line's order.
pub(super) struct Attributes(pub(super) Vec<(Cow<'static, str>, Value)>);

impl<'de> Deserialize<'de> for Attributes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AttributesVisitor;
        impl<'de> Visitor<'de> for AttributesVisitor {
            type Value = Attributes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("attributes")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut attributes = Vec::new();
                while let Some(Own(key)) = map.next_key()? {
                    if attributes.len() == MAX_ATTRIBUTES {
                        return Err(A::Error::custom(format_args!(
                            "more than {MAX_ATTRIBUTES} attributes"
                        )));
                    }
                    let Attribute(value) = map.next_value()?;
                    attributes.push((key, value));
                }
                Ok(Attributes(attributes))
            }
        }
        deserializer.deserialize_map(AttributesVisitor)
    }
}

/// A value of an attribute.
struct Attribute(Value);

impl<'de> Deserialize<'de> for Attribute {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ValueVisitor;
        impl<'de> Visitor<'de> for ValueVisitor {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, a number, text or a list of them")
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
                Ok(Value::Int(value))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
                Ok(i64::try_from(value).map_or(Value::Uint(value), Value::Int))
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
                Ok(Value::Double(value))
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
                Ok(Value::Text(Cow::Owned(value.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
                let mut values = Vec::new();
                while let Some(Attribute(value)) = list.next_element()? {
                    values.push(value);
                }
                Ok(Value::List(values))
            }
        }
        deserializer.deserialize_any(ValueVisitor).map(Attribute)
    }
}
