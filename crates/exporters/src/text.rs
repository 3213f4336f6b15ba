//! An event as one line for people.
//!
//! ```text
//! 2026-03-01T14:22:13.123Z error connection refused: curl[4242] → 127.0.0.1:9, ECONNREFUSED: nobody listens there (docker 4f1c2ab39d01)
//! ```
//!
//! When, how bad, what; who and with whom; why; where; how often. The line is
//! made for reading and may change; programs read the JSON form.

use std::fmt::{self, Write};
use std::time::Duration;

use vahti_runtime::clock::Rfc3339;
use vahti_runtime::event::{
    Comm, Custom, Endpoint, Event, EventData, Exit, ExitClass, Gap, Network, OomKill, OomScope,
    ProcessRef, Severity, Value, escape_text,
};

/// How many characters of a container's id are shown, as its runtimes do.
const SHORT_ID: usize = 12;

/// Appends an event as one line for people, newline included. The line holds
/// no control character but its newline and, with `colour`, the colours of the
/// severity.
///
/// ```
/// use vahti_exporters::to_text_line;
/// use vahti_runtime::event::{Event, OOM_KILL, Severity};
/// let mut line = Vec::new();
/// to_text_line(&Event::new(&OOM_KILL, Severity::Fatal), false, &mut line);
/// assert_eq!(line, b"1970-01-01T00:00:00.000Z fatal oom kill\n");
/// ```
pub fn to_text_line(event: &Event, colour: bool, out: &mut Vec<u8>) {
    let mut line = String::with_capacity(200);
    // Writing to memory doesn't fail.
    if write_line(event, colour, &mut line).is_ok() {
        out.extend_from_slice(line.as_bytes());
        out.push(b'\n');
    }
}

fn write_line(event: &Event, colour: bool, line: &mut String) -> fmt::Result {
    let (on, off) = if colour { (colour_of(event.severity), "\x1b[0m") } else { ("", "") };
    let severity = event.severity.as_str();
    write!(line, "{} {on}{severity}{off} ", Millis(event.time_ns))?;
    // Kinds are declared in code, but by anybody.
    line.push_str(&escape_text(event.kind.subtype()).replace('_', " "));
    let mut parts = Parts::after(line, ": ");
    who(event, &mut parts)?;
    match &event.data {
        EventData::None | EventData::Network(_) => {}
        EventData::OomKill(oom) => out_of_memory(oom, &mut parts)?,
        // The error says by what it ended, where there is one.
        EventData::Exit(exit) => ended(exit, event.error.is_none(), &mut parts)?,
        EventData::Gap(gap) => not_watching(gap, &mut parts)?,
        EventData::Custom(custom) => attributes(custom, &mut parts)?,
    }
    if let Some(error) = &event.error {
        let (code, message) = (escape_text(&error.code), escape_text(&error.message));
        let line = parts.next()?;
        // EXIT is for programs; its message says it in words.
        if code != "EXIT" && !message.contains(&*code) {
            write!(line, "{code}: ")?;
        }
        line.push_str(&message);
        if let Some(cause) = &error.cause {
            let cause = escape_text(cause);
            parts.next()?.write_fmt(format_args!("because {cause}"))?;
        }
    }
    if let Some(ns) = event.duration_ns {
        let took = Span(Duration::from_nanos(ns));
        parts.next()?.write_fmt(format_args!("after {took}"))?;
    }
    whereabouts(event, line)?;
    how_often(event, line)
}

fn colour_of(severity: Severity) -> &'static str {
    match severity {
        Severity::Debug | Severity::Info => "\x1b[36m",
        Severity::Warning => "\x1b[33m",
        Severity::Error => "\x1b[31m",
        Severity::Fatal => "\x1b[1;31m",
    }
}

/// Writes parts with one separator before the first and another between them.
struct Parts<'a> {
    line: &'a mut String,
    separator: &'static str,
}

impl<'a> Parts<'a> {
    fn after(line: &'a mut String, first: &'static str) -> Self {
        Parts { line, separator: first }
    }

    fn next(&mut self) -> Result<&mut String, fmt::Error> {
        self.line.write_str(self.separator)?;
        self.separator = ", ";
        Ok(self.line)
    }
}

fn who(event: &Event, parts: &mut Parts<'_>) -> fmt::Result {
    let process = event.process.as_ref();
    let (name, pid) = (process.and_then(|p| p.name.as_ref()), process.and_then(|p| p.pid));
    let network = match &event.data {
        EventData::Network(network) => Some(network),
        _ => None,
    };
    let peer = network.map(PeerOf).filter(PeerOf::is_known);
    if name.is_none() && pid.is_none() && peer.is_none() {
        return Ok(());
    }
    let line = parts.next()?;
    if name.is_none() && pid.is_none() {
        line.push_str("somebody");
    }
    if let Some(name) = name {
        line.push_str(&name.display());
    }
    if let Some(pid) = pid {
        write!(line, "[{pid}]")?;
    }
    match peer {
        Some(peer) => write!(line, " → {peer}"),
        None => Ok(()),
    }
}

/// The other end, as far as it is known: `127.0.0.1:9`, `[::1]:9`, `port 9`.
struct PeerOf<'a>(&'a Network);

impl PeerOf<'_> {
    fn is_known(&self) -> bool {
        self.0.peer.address.is_some() || self.0.peer.port.is_some()
    }
}

impl fmt::Display for PeerOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Endpoint { address, port } = self.0.peer;
        match (address.map(|a| a.to_canonical()), port) {
            (Some(address), Some(port)) => std::net::SocketAddr::new(address, port).fmt(f),
            (Some(address), None) => address.fmt(f),
            (None, Some(port)) => write!(f, "port {port}"),
            (None, None) => Ok(()),
        }
    }
}

fn out_of_memory(oom: &OomKill, parts: &mut Parts<'_>) -> fmt::Result {
    let whose = match oom.scope {
        OomScope::Container => "the container's memory",
        OomScope::Cgroup => "the cgroup's memory",
        OomScope::System => "the machine's memory",
    };
    let line = parts.next()?;
    line.push_str(whose);
    match (oom.usage_bytes, oom.limit_bytes) {
        (Some(usage), Some(limit)) => write!(line, ": {} of {}", Size(usage), Size(limit))?,
        (Some(usage), None) => write!(line, ": {} used", Size(usage))?,
        (None, Some(limit)) => write!(line, ": limit {}", Size(limit))?,
        (None, None) => line.push_str(" ran out"),
    }
    match &oom.trigger {
        Some(trigger) => {
            let trigger = Named(trigger);
            parts.next()?.write_fmt(format_args!("asked by {trigger}"))
        }
        None => Ok(()),
    }
}

fn ended(exit: &Exit, by_what: bool, parts: &mut Parts<'_>) -> fmt::Result {
    match (exit.signal, exit.code) {
        (Some(signal), _) if by_what => parts.next()?.write_fmt(format_args!("by {signal}"))?,
        (None, Some(code)) if by_what => {
            parts.next()?.write_fmt(format_args!("exit code {code}"))?;
        }
        _ => {}
    }
    if by_what && exit.class == ExitClass::Oom {
        parts.next()?.push_str("out of memory");
    }
    match &exit.sender {
        Some(sender) => {
            let sender = Named(sender);
            parts.next()?.write_fmt(format_args!("sent by {sender}"))
        }
        None => Ok(()),
    }
}

fn not_watching(gap: &Gap, parts: &mut Parts<'_>) -> fmt::Result {
    let (from, to) = (Millis(gap.from_ns), Millis(gap.to_ns));
    // The wall clock may have been set back meanwhile.
    let lasted = Lasting(Duration::from_nanos(gap.to_ns.saturating_sub(gap.from_ns)));
    parts.next()?.write_fmt(format_args!(
        "the agent was not watching for {lasted}: it ended uncleanly ({from} to {to})"
    ))
}

struct Named<'a>(&'a ProcessRef);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ProcessRef { pid, name } = self.0;
        write!(f, "{}[{pid}]", Comm::display(name))
    }
}

fn attributes(custom: &Custom, parts: &mut Parts<'_>) -> fmt::Result {
    for (key, value) in &custom.attributes {
        let key = escape_text(key);
        let line = parts.next()?;
        write!(line, "{key}=")?;
        attribute(value, line)?;
    }
    Ok(())
}

fn attribute(value: &Value, line: &mut String) -> fmt::Result {
    match value {
        Value::Bool(value) => write!(line, "{value}"),
        Value::Int(value) => write!(line, "{value}"),
        Value::Uint(value) => write!(line, "{value}"),
        Value::Double(value) => write!(line, "{value}"),
        Value::Text(value) => write!(line, "{}", escape_text(value)),
        Value::List(values) => {
            line.push('[');
            for (i, value) in values.iter().enumerate() {
                if i > 0 {
                    line.push_str(", ");
                }
                attribute(value, line)?;
            }
            line.push(']');
            Ok(())
        }
    }
}

fn whereabouts(event: &Event, line: &mut String) -> fmt::Result {
    if let Some(container) = &event.container {
        let id = escape_text(&container.id);
        let short = id
            .char_indices()
            .nth(SHORT_ID)
            .map_or(&*id, |(end, _)| id.get(..end).unwrap_or_default());
        let runtime = escape_text(container.runtime.unwrap_or("container"));
        write!(line, " ({runtime} {short})")?;
    }
    if let Some(unresolved) = event.unresolved {
        write!(line, " (unresolved: {})", escape_text(unresolved.reason))?;
    }
    Ok(())
}

fn how_often(event: &Event, line: &mut String) -> fmt::Result {
    if event.count == 1 && event.weight <= 1.0 {
        return Ok(());
    }
    write!(line, " ×{}", event.count)?;
    if event.last_ns > event.first_ns && event.first_ns > 0 {
        let span = Span(Duration::from_nanos(event.last_ns - event.first_ns));
        write!(line, " in {span}")?;
    }
    if event.weight > 1.0 {
        write!(line, " (sampled: stands for {:.1} like it)", event.weight)?;
    }
    Ok(())
}

/// A moment, nanoseconds since 1970, as RFC 3339 with milliseconds.
struct Millis(u64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = Rfc3339::new(self.0);
        write!(f, "{}Z", time.as_str().get(..23).unwrap_or_default())
    }
}

/// A length of time between seconds and days, as one would say it.
struct Lasting(Duration);

impl fmt::Display for Lasting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() {
            0..10 => write!(f, "{:.1} s", self.0.as_secs_f64()),
            s @ 10..120 => write!(f, "{s} s"),
            s @ 120..7_200 => write!(f, "{} min", s / 60),
            s => write!(f, "{} h {} min", s / 3_600, s / 60 % 60),
        }
    }
}

/// A length of time in the unit that suits it.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_micros() {
            us @ 0..1_000 => write!(f, "{us}µs"),
            us @ 1_000..10_000_000 => write!(f, "{:.1}ms", us as f64 / 1e3),
            us => write!(f, "{:.1}s", us as f64 / 1e6),
        }
    }
}

/// A size in the unit that suits it.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        match self.0 {
            0..1_024 => write!(f, "{} B", self.0),
            1_024..1_048_576 => write!(f, "{:.1} KiB", bytes / 1024.0),
            1_048_576..1_073_741_824 => write!(f, "{:.1} MiB", bytes / 1024.0 / 1024.0),
            _ => write!(f, "{:.1} GiB", bytes / 1024.0 / 1024.0 / 1024.0),
        }
    }
}

#[cfg(test)]
mod tests;
