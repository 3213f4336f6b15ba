//! The typed parts of an event.

use std::borrow::Cow;
use std::net::IpAddr;

use crate::ids::{SpanId, TraceId};

/// A name as the kernel gave it: bytes, not text.
///
/// `comm` is at most 15 bytes, chosen by whoever runs the process, so it may
/// hold anything. Shown through [`escape`], which is lossless.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Comm {
    bytes: [u8; 16],
}

impl Comm {
    /// Takes the bytes up to the first NUL; what passes 15 bytes is cut, as
    /// the kernel does.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let mut comm = Comm::default();
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len()).min(15);
        comm.bytes[..end].copy_from_slice(&bytes[..end]);
        comm
    }

    /// The bytes before the first NUL.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        let end = self.bytes.iter().position(|b| *b == 0).unwrap_or(self.bytes.len());
        &self.bytes[..end]
    }

    /// The name as text, control characters and stray bytes escaped.
    #[must_use]
    pub fn display(&self) -> Cow<'_, str> {
        escape(self.as_bytes())
    }
}

impl std::fmt::Debug for Comm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.display())
    }
}

/// Shows bytes from the kernel as text that can do no harm, losslessly.
///
/// Printable UTF-8 stays as it is; a backslash becomes `\\`; every control
/// character (C0, DEL, C1), every character that reorders or hides text
/// (bidirectional controls, zero-width ones, line separators) and every byte
/// that is not UTF-8 becomes `\xNN`, byte by byte.
///
/// ```
/// use vahti_runtime::event::escape;
/// assert_eq!(escape(b"nginx"), "nginx");
/// assert_eq!(escape(b"a\x1b[31m\\"), r"a\x1b[31m\\");
/// assert_eq!(escape(b"\xff"), r"\xff");
/// ```
#[must_use]
pub fn escape(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes)
        && ((is_plain_ascii(bytes) && !bytes.contains(&b'\\')) || !text.chars().any(must_escape))
    {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c if must_escape(c) => push_hex(&mut out, c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => out.push(c),
            }
        }
        push_hex(&mut out, chunk.invalid());
    }
    Cow::Owned(out)
}

/// The bytes that [`escape`] was given; `None` for a text that it never makes,
/// with a backslash that neither another one nor `xNN` follows.
///
/// ```
/// use vahti_runtime::event::{escape, unescape};
/// let name = b"a\x1b[31m\\\xff";
/// assert_eq!(unescape(&escape(name)).as_deref(), Some(&name[..]));
/// assert_eq!(unescape(r"a\n"), None);
/// ```
#[must_use]
pub fn unescape(text: &str) -> Option<Cow<'_, [u8]>> {
    if !text.contains('\\') {
        return Some(Cow::Borrowed(text.as_bytes()));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    loop {
        rest = match rest {
            [] => return Some(Cow::Owned(bytes)),
            [b'\\', b'\\', rest @ ..] => {
                bytes.push(b'\\');
                rest
            }
            [b'\\', b'x', high, low, rest @ ..] => {
                bytes.push(nibble(*high)? << 4 | nibble(*low)?);
                rest
            }
            [b'\\', ..] => return None,
            [byte, rest @ ..] => {
                bytes.push(*byte);
                rest
            }
        };
    }
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Shows text made by a program, such as an error's message, so that it can
/// do no harm: as [`escape`] does, but a backslash stays as it is, so that a
/// name inside it that was escaped before is not escaped twice.
///
/// ```
/// use vahti_runtime::event::escape_text;
/// assert_eq!(escape_text(r"a\x1b of two\nlines"), r"a\x1b of two\nlines");
/// assert_eq!(escape_text("a\u{1b}[31m"), r"a\x1b[31m");
/// ```
#[must_use]
pub fn escape_text(text: &str) -> Cow<'_, str> {
    if is_plain_ascii(text.as_bytes()) || !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) {
            push_hex(&mut out, c.encode_utf8(&mut [0; 4]).as_bytes());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

fn push_hex(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        out.push_str("\\x");
        for nibble in [byte >> 4, byte & 15] {
            out.push(char::from_digit(u32::from(nibble), 16).unwrap_or('?'));
        }
    }
}

/// The common case, checked several bytes at a time.
fn is_plain_ascii(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |plain, b| plain & (0x20..0x7f).contains(b))
}

fn must_escape(c: char) -> bool {
    c == '\\' || is_unsafe(c)
}

/// Whether a character controls a terminal, reorders text or hides in it.
pub(super) fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// A process that an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Thread group id in the initial pid namespace.
    pub pid: Option<u32>,
    /// The thread group leader's `comm`.
    pub name: Option<Comm>,
    /// Real user id.
    pub uid: Option<u32>,
    /// Thread group id of the real parent.
    pub parent_pid: Option<u32>,
    /// When the process started, wall clock, nanoseconds since 1970.
    pub start_ns: Option<u64>,
}

/// A process named only in passing: who sent a signal, who asked for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessRef {
    /// Thread group id in the initial pid namespace.
    pub pid: u32,
    /// The process's `comm`.
    pub name: Comm,
}

/// A control group, as it was called at the moment of the fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// kernfs id; equals the inode of the cgroup's directory.
    pub id: u64,
    /// Path from the hierarchy's root, as bytes from the kernel.
    pub path: Box<[u8]>,
    /// 1 or 2.
    pub version: u8,
}

/// A container, as named by its cgroup's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The full id; never shortened.
    pub id: Box<str>,
    /// The runtime that the path's layout belongs to, such as `containerd`;
    /// `None` where the layout is shared by several.
    pub runtime: Option<&'static str>,
}

/// Transport protocol of a connection, in OpenTelemetry's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// The JSON word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        }
    }
}

/// Internet protocol of a connection, in OpenTelemetry's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkType {
    /// IPv4, also where it came as a mapped IPv6 address.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl NetworkType {
    /// The JSON word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            NetworkType::Ipv4 => "ipv4",
            NetworkType::Ipv6 => "ipv6",
        }
    }
}

/// One end of a connection. A part that the events of a storm did not share
/// is absent from its summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The address; IPv4-mapped ones are shown as IPv4.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: Option<u16>,
}

/// What a network event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Transport protocol.
    pub transport: Transport,
    /// Internet protocol.
    pub network_type: NetworkType,
    /// This end.
    pub local: Endpoint,
    /// The other end.
    pub peer: Endpoint,
}

/// Whose memory ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OomScope {
    /// A container's limit was reached, or that of a cgroup below its own.
    Container,
    /// A cgroup's limit that is not known to be a container's.
    Cgroup,
    /// The machine's memory ran out.
    System,
}

impl OomScope {
    /// The JSON word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            OomScope::Container => "container",
            OomScope::Cgroup => "cgroup",
            OomScope::System => "system",
        }
    }
}

/// What an OOM kill says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OomKill {
    /// Whose memory ran out.
    pub scope: OomScope,
    /// Memory charged to the cgroup that was at its limit, in bytes.
    pub usage_bytes: Option<u64>,
    /// That cgroup's limit, in bytes.
    pub limit_bytes: Option<u64>,
    /// Resident memory of the victim (anonymous, file and shared), in bytes.
    pub victim_rss_bytes: Option<u64>,
    /// The victim's `oom_score_adj`.
    pub score_adj: Option<i16>,
    /// Whose allocation brought it about.
    pub trigger: Option<ProcessRef>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitClass {
    /// Exit code 0, or a signal that asks a process to end.
    Normal,
    /// An exit code other than 0.
    Error,
    /// SIGKILL by somebody, not for memory.
    Killed,
    /// Killed for memory.
    Oom,
    /// A signal that means a crash.
    Crash,
}

impl ExitClass {
    /// The JSON word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            ExitClass::Normal => "normal",
            ExitClass::Error => "error",
            ExitClass::Killed => "killed",
            ExitClass::Oom => "oom",
            ExitClass::Crash => "crash",
        }
    }
}

/// What a process's end says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, where the process ended by itself.
    pub code: Option<u8>,
    /// The signal, where one ended it.
    pub signal: Option<Signal>,
    /// What that amounts to.
    pub class: ExitClass,
    /// Who sent the signal, where another process did.
    pub sender: Option<ProcessRef>,
}

/// A signal's number; shown by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(pub u8);

/// The time in which the agent was not watching, as it had ended uncleanly.
///
/// What happened between the two moments was not seen, so that nobody takes
/// silence for health.
///
/// ```
/// use vahti_runtime::event::{AGENT_GAP, Event, EventData, Gap, Severity, to_json_line};
/// let gap = Gap { from_ns: 0, to_ns: 12_000_000_000 };
/// let event = Event { data: EventData::Gap(gap), ..Event::new(&AGENT_GAP, Severity::Error) };
/// let mut line = Vec::new();
/// to_json_line(&event, &mut line);
/// assert!(String::from_utf8(line)?.contains(r#""to":"1970-01-01T00:00:12.000000000Z""#));
/// # Ok::<(), std::string::FromUtf8Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// When the agent is last known to have watched, wall clock, nanoseconds
    /// since 1970.
    pub from_ns: u64,
    /// When it watched again, wall clock, nanoseconds since 1970.
    pub to_ns: u64,
}

/// A value of a custom event's attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// True or false.
    Bool(bool),
    /// A signed number.
    Int(i64),
    /// A number that may be larger than `i64`, such as a byte count.
    Uint(u64),
    /// A floating-point number; NaN and infinities are shown as text.
    Double(f64),
    /// Text.
    Text(Cow<'static, str>),
    /// Several of them.
    List(Vec<Value>),
}

/// What an event by an observer outside this project says; every emitter
/// carries it.
#[derive(Debug, Clone, PartialEq)]
pub struct Custom {
    /// Names the schema of the attributes, such as a URL.
    pub schema: Cow<'static, str>,
    /// The attributes, in order.
    pub attributes: Vec<(Cow<'static, str>, Value)>,
}

/// The typed data of an event.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum EventData {
    /// Nothing beyond the common fields.
    #[default]
    None,
    /// A connection.
    Network(Network),
    /// An OOM kill.
    OomKill(OomKill),
    /// The end of a process.
    Exit(Exit),
    /// A time in which the agent was not watching.
    Gap(Gap),
    /// Whatever an observer by others says.
    Custom(Box<Custom>),
}

/// Why something failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorInfo {
    /// Stable and machine-readable: an errno's or a signal's name, or `EXIT`
    /// where a process ended by itself with a code other than 0.
    pub code: Cow<'static, str>,
    /// One sentence for people.
    pub message: Cow<'static, str>,
    /// What brought it about, where known.
    pub cause: Option<Cow<'static, str>>,
}

/// What a link between two events means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// Could be a cause, but it is not proven to be.
    PossibleCause,
}

impl LinkKind {
    /// The JSON word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            LinkKind::PossibleCause => "possible_cause",
        }
    }
}

/// A typed reference to another event's span, with its evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// What the link means.
    pub kind: LinkKind,
    /// The other event's trace.
    pub trace_id: TraceId,
    /// The other event's span.
    pub span_id: SpanId,
    /// Which rule found it.
    pub rule: &'static str,
    /// How much older the other event is, in nanoseconds.
    pub age_ns: u64,
}

/// Which fact could not be found out, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unresolved {
    /// The reason, in one of the documented words, such as `owner_unknown`.
    pub reason: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaping_is_lossless() {
        assert_eq!(escape("säiliö".as_bytes()), "säiliö");
        assert_eq!(escape(b"a\\x1b"), r"a\\x1b", "a literal backslash stays distinguishable");
        assert_eq!(escape("\u{202e}x".as_bytes()), r"\xe2\x80\xaex");
        assert_eq!(escape(b"\xc3"), r"\xc3");
    }

    #[test]
    fn a_comm_ends_at_its_first_nul_and_after_fifteen_bytes() {
        assert_eq!(Comm::new(b"sh\0rest").as_bytes(), b"sh");
        assert_eq!(Comm::new(b"0123456789abcdefgh").as_bytes(), b"0123456789abcde");
    }
}
