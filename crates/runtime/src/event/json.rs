//! The JSON form of an event: one line, keys that are a contract.
//!
//! The contract is [`JSON_SCHEMA`], in which every key has its description and
//! unit. Keys are added, never renamed; a key without a value is absent.
//!
//! * Integers are JSON numbers. Two of them may pass 2⁵³, above which many
//!   readers lose digits, and are decimal text from there on: `cgroup.id` and
//!   the integers among a custom event's attributes.
//! * Names from the kernel pass [`escape`](super::escape), other text
//!   [`escape_text`](super::escape_text), so no
//!   value of a documented key holds a control character, not even decoded.
//!   Attributes of custom events are carried as they are; in the line itself
//!   their control characters stand as `\u001b`.
//! * `sampling.threshold` is OpenTelemetry's `th`: the 56-bit threshold in
//!   hexadecimal without its trailing zeros, absent where nothing was sampled.

mod decode;
mod views;
mod words;

#[cfg(test)]
mod tests;

pub use decode::{DecodeError, MAX_LINE_BYTES, from_json_line};

use std::io;

use serde::ser::{Serialize, SerializeMap, Serializer};

use self::views::{
    CgroupView, ContainerView, CustomView, ErrorView, ExitView, GapView, LinksView, MemoryView,
    NetworkView, OomView, ProcessView, SamplingView, Shown, Text, Time, UnresolvedView,
};
use super::data::is_unsafe;
use super::{Event, EventData};

/// The value of the key `schema`.
pub const SCHEMA: &str = "vahti.event/1";

/// The JSON Schema (draft 2020-12) of an event's JSON form.
pub const JSON_SCHEMA: &str = include_str!("event.schema.json");

/// Appends an event as one line of JSON, newline included.
///
/// The line holds no control character but its newline.
///
/// ```
/// use vahti_runtime::event::{CONNECTION_REFUSED, Event, Severity, to_json_line};
/// let mut line = Vec::new();
/// to_json_line(&Event::new(&CONNECTION_REFUSED, Severity::Error), &mut line);
/// assert!(line.starts_with(br#"{"schema":"vahti.event/1","id":"#));
/// assert!(line.ends_with(b"}\n"));
/// ```
pub fn to_json_line(event: &Event, out: &mut Vec<u8>) {
    let start = out.len();
    let mut serializer = serde_json::Serializer::with_formatter(&mut *out, PlainLine);
    if event.serialize(&mut serializer).is_err() {
        // Writing to memory doesn't fail and every key is a string, so this
        // can't happen; if it did, half a line must not leave.
        out.truncate(start);
        return;
    }
    out.push(b'\n');
}

/// Compact JSON in which what [`is_unsafe`] is written as `\u` escapes; JSON
/// itself asks that only of characters below U+0020.
struct PlainLine;

impl serde_json::ser::Formatter for PlainLine {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        // Without an early exit, so that it is done several bytes at a time.
        if fragment.bytes().fold(0, |seen, b| seen | (b + (b == 0x7f) as u8)) < 0x80 {
            return writer.write_all(fragment.as_bytes());
        }
        for c in fragment.chars() {
            let mut units = [0; 2];
            if is_unsafe(c) {
                for unit in c.encode_utf16(&mut units) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            } else {
                writer.write_all(c.encode_utf8(&mut [0; 4]).as_bytes())?;
            }
        }
        Ok(())
    }
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("schema", SCHEMA)?;
        map.serialize_entry("id", &Shown(self.id))?;
        map.serialize_entry("time", &Time(self.time_ns))?;
        map.serialize_entry("observed_time", &Time(self.observed_ns))?;
        map.serialize_entry("name", &Text(self.kind.name()))?;
        map.serialize_entry("type", &Text(self.kind.event_type()))?;
        map.serialize_entry("subtype", &Text(self.kind.subtype()))?;
        map.serialize_entry("priority", self.kind.priority().as_str())?;
        map.serialize_entry("source", &Text(&self.origin.source))?;
        map.serialize_entry("node", &Text(&self.origin.node))?;
        map.serialize_entry("severity", self.severity.as_str())?;
        map.serialize_entry("outcome", self.outcome.as_str())?;
        entry(&mut map, "error", self.error.as_ref().map(ErrorView))?;
        self.causality(&mut map)?;
        entry(&mut map, "duration_us", self.duration_ns.map(micros))?;
        entry(&mut map, "process", ProcessView::of(self.process.as_ref()))?;
        entry(&mut map, "cgroup", self.cgroup.as_deref().map(CgroupView))?;
        entry(&mut map, "container", self.container.as_deref().map(ContainerView))?;
        self.data(&mut map)?;
        self.weighing(&mut map)?;
        entry(&mut map, "unresolved", self.unresolved.map(UnresolvedView))?;
        map.end()
    }
}

impl Event {
    fn causality<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        let trace = self.trace_id.is_set().then_some(self.trace_id);
        entry(map, "trace_id", trace.map(Shown))?;
        entry(map, "span_id", self.span_id.map(Shown))?;
        entry(map, "parent_span_id", self.parent_span_id.map(Shown))?;
        let links = (!self.links.is_empty()).then_some(LinksView(&self.links));
        entry(map, "links", links)
    }

    fn data<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        match &self.data {
            EventData::None => Ok(()),
            EventData::Network(network) => map.serialize_entry("network", &NetworkView(network)),
            EventData::OomKill(oom) => {
                entry(map, "memory", MemoryView::of(oom))?;
                map.serialize_entry("oom", &OomView(oom))
            }
            EventData::Exit(exit) => map.serialize_entry("exit", &ExitView(exit)),
            EventData::Gap(gap) => map.serialize_entry("gap", &GapView(gap)),
            EventData::Custom(custom) => map.serialize_entry("custom", &CustomView(custom)),
        }
    }

    fn weighing<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        map.serialize_entry("count", &self.count)?;
        let first = (self.first_ns != 0).then_some(Time(self.first_ns));
        let last = (self.last_ns != 0).then_some(Time(self.last_ns));
        entry(map, "first_time", first)?;
        entry(map, "last_time", last)?;
        // JSON has no infinity. The pipeline makes none; were one to come, a
        // line that parses is worth more than the weight.
        let weight = if self.weight.is_finite() { self.weight } else { 1.0 };
        map.serialize_entry("weight", &weight)?;
        let threshold = self.sampling_threshold & ((1 << 56) - 1);
        let sampled = (threshold != 0).then_some(threshold);
        entry(map, "sampling", sampled.map(SamplingView))
    }
}

/// Writes a key, or nothing where it has no value.
fn entry<M: SerializeMap, T: Serialize>(
    map: &mut M,
    key: &'static str,
    value: Option<T>,
) -> Result<(), M::Error> {
    match value {
        Some(value) => map.serialize_entry(key, &value),
        None => Ok(()),
    }
}

fn micros(ns: u64) -> u64 {
    ns / 1_000
}
