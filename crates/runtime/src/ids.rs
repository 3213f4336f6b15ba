//! Identities that need no coordination.
//!
//! Trace, span and entity ids are XXH3-128 over the length-prefixed fields of
//! a stable identity, so two nodes that know the same facts derive the same
//! ids. Event ids are ULIDs of the event's own time whose entropy is a hash of
//! where the record came from, so replaying a recording gives the same ids.
//! The vectors in `tests/vectors/ids.json` are a contract: kinds are added,
//! none changes.

use std::fmt;
use std::num::NonZeroU64;

use xxhash_rust::xxh3::xxh3_128;

/// Names the derivation; part of every hash.
const SCHEME: &[u8] = b"vahti/1";

/// Hashes (`vahti/1`, kind, fields…), each prefixed with its length as a
/// little-endian `u32`.
///
/// ```
/// use vahti_runtime::ids::identity_hash;
/// let a = identity_hash("container.end", &[b"4f1c"]);
/// assert_ne!(a, identity_hash("container.end", &[b"4f", b"1c"]));
/// ```
#[must_use]
pub fn identity_hash(kind: &str, fields: &[&[u8]]) -> u128 {
    let mut buffer = FieldBuffer::new();
    buffer.push(SCHEME);
    buffer.push(kind.as_bytes());
    for field in fields {
        buffer.push(field);
    }
    buffer.hash()
}

/// Collects length-prefixed fields in place; spills to the heap only for
/// identities longer than any that the kernel hands out.
#[derive(Debug, Clone)]
struct FieldBuffer {
    inline: [u8; 192],
    len: usize,
    spill: Vec<u8>,
}

impl FieldBuffer {
    fn new() -> Self {
        Self { inline: [0; 192], len: 0, spill: Vec::new() }
    }

    #[inline]
    fn push(&mut self, field: &[u8]) {
        // A field longer than u32::MAX bytes cannot come from any source here;
        // saturating keeps the prefix well defined all the same.
        let prefix = u32::try_from(field.len()).unwrap_or(u32::MAX).to_le_bytes();
        self.append(&prefix);
        self.append(field);
    }

    #[inline]
    fn append(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        match self.inline.get_mut(self.len..end) {
            Some(room) if self.spill.is_empty() => {
                room.copy_from_slice(bytes);
                self.len = end;
            }
            _ => {
                if self.spill.is_empty() {
                    self.spill.extend_from_slice(&self.inline[..self.len]);
                }
                self.spill.extend_from_slice(bytes);
            }
        }
    }

    /// The hash with 40 more bytes behind what is there.
    #[inline]
    fn hash_with(&self, tail: &[u8; 40]) -> u128 {
        let mut buffer = self.inline;
        match buffer.get_mut(self.len..self.len + tail.len()) {
            Some(room) if self.spill.is_empty() => {
                room.copy_from_slice(tail);
                xxh3_128(&buffer[..self.len + tail.len()])
            }
            _ => {
                let mut longer = self.clone();
                longer.append(tail);
                longer.hash()
            }
        }
    }

    fn hash(&self) -> u128 {
        if self.spill.is_empty() {
            xxh3_128(&self.inline[..self.len])
        } else {
            xxh3_128(&self.spill)
        }
    }
}

/// The trace that an event belongs to: 128 bits, never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceId(pub u128);

impl TraceId {
    /// "Not set": the pipeline derives one from the event's id.
    pub const UNSET: TraceId = TraceId(0);

    /// Takes a hash as a trace id; the invalid id 0 becomes 1.
    #[must_use]
    pub const fn from_hash(hash: u128) -> Self {
        TraceId(if hash == 0 { 1 } else { hash })
    }

    /// On plain Linux a process incarnation is the trace of what happens to it.
    #[must_use]
    pub fn of_process(boot_id: &BootId, tgid: u32, start_boot_ns: u64) -> Self {
        Self::from_hash(process_hash("process", boot_id, tgid, start_boot_ns))
    }

    /// OpenTelemetry's R value: the last 56 bits, uniform as ids are hashes.
    #[must_use]
    pub const fn randomness(self) -> u64 {
        (self.0 as u64) & ((1 << 56) - 1)
    }

    /// Reads what `Display` writes: 32 hexadecimal digits, none of them a
    /// capital.
    ///
    /// ```
    /// use vahti_runtime::ids::TraceId;
    /// assert_eq!(TraceId::parse("0000000000000000000000000000000a"), Some(TraceId(10)));
    /// ```
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        hexadecimal(text, 32).map(TraceId)
    }

    /// Whether this id was set.
    #[must_use]
    pub const fn is_set(self) -> bool {
        self.0 != 0
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One span within a trace: 64 bits, never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanId(NonZeroU64);

impl SpanId {
    /// Takes the low half of a hash as a span id; the invalid id 0 becomes 1.
    #[must_use]
    pub const fn from_hash(hash: u128) -> Self {
        match NonZeroU64::new(hash as u64) {
            Some(id) => SpanId(id),
            None => SpanId(NonZeroU64::MIN),
        }
    }

    /// The span of a container's end.
    #[must_use]
    pub fn of_container_end(container_id: &str) -> Self {
        Self::from_hash(identity_hash("container.end", &[container_id.as_bytes()]))
    }

    /// The span of the OOM kill of one process incarnation.
    #[must_use]
    pub fn of_oom_kill(boot_id: &BootId, tgid: u32, start_boot_ns: u64) -> Self {
        Self::from_hash(process_hash("oom_kill", boot_id, tgid, start_boot_ns))
    }

    /// The span of the end of one process incarnation.
    #[must_use]
    pub fn of_process_end(boot_id: &BootId, tgid: u32, start_boot_ns: u64) -> Self {
        Self::from_hash(process_hash("process.end", boot_id, tgid, start_boot_ns))
    }

    /// Reads what `Display` writes: 16 hexadecimal digits, none of them a
    /// capital. `None` for 0, which is no span's.
    ///
    /// ```
    /// use vahti_runtime::ids::SpanId;
    /// assert_eq!(SpanId::parse("000000000000000a"), Some(SpanId::from_hash(10)));
    /// assert_eq!(SpanId::parse("0000000000000000"), None);
    /// ```
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let id = u64::try_from(hexadecimal(text, 16)?).ok()?;
        NonZeroU64::new(id).map(SpanId)
    }

    /// The id as a number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// So many lowercase hexadecimal digits, 32 at most.
fn hexadecimal(text: &str, digits: usize) -> Option<u128> {
    if text.len() != digits {
        return None;
    }
    text.bytes().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

fn process_hash(kind: &str, boot_id: &BootId, tgid: u32, start_boot_ns: u64) -> u128 {
    identity_hash(kind, &[&boot_id.0, &tgid.to_le_bytes(), &start_boot_ns.to_le_bytes()])
}

/// The kernel's `/proc/sys/kernel/random/boot_id`: which boot of which machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct BootId(pub [u8; 16]);

impl BootId {
    /// Parses the form of `/proc/sys/kernel/random/boot_id`: 32 hexadecimal
    /// digits, dashes anywhere.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut out = [0u8; 16];
        let mut digits = 0usize;
        for c in text.trim().chars().filter(|c| *c != '-') {
            let digit = u8::try_from(c.to_digit(16)?).ok()?;
            let byte = out.get_mut(digits / 2)?;
            *byte = (*byte << 4) | digit;
            digits += 1;
        }
        (digits == 32).then_some(BootId(out))
    }
}

/// Which record an event was made of; with the event's time it makes the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordPosition {
    /// The CPU that wrote the record; 0 where there is none.
    pub cpu: u32,
    /// The record's boot clock, in nanoseconds.
    pub boot_ns: u64,
    /// The record's sequence number on its CPU.
    pub seq: u64,
    /// Which of the record's events: 0 for the first. Bit 31 marks the summary
    /// of a storm that began with this record.
    pub ordinal: u32,
}

/// Derives the ids of one observer's events.
///
/// The hash is [`identity_hash`]`("event", [boot id, observer, cpu, boot_ns,
/// seq, ordinal])`, numbers in little-endian; what does not change from event
/// to event is laid out once.
#[derive(Debug, Clone)]
pub struct EventIds {
    fields: FieldBuffer,
}

impl EventIds {
    /// For events of this observer on this boot of a machine.
    #[must_use]
    pub fn new(boot_id: &BootId, observer: &str) -> Self {
        let mut fields = FieldBuffer::new();
        for field in [SCHEME, b"event", &boot_id.0, observer.as_bytes()] {
            fields.push(field);
        }
        EventIds { fields }
    }

    /// The id of an event, and the hash that its own span and trace are taken
    /// from where it has no better identity.
    #[inline]
    #[must_use]
    pub fn derive(&self, wall_ns: u64, position: &RecordPosition) -> (EventId, u128) {
        // Four fixed fields, each behind its length.
        let mut tail = [0u8; 40];
        tail[0] = 4;
        tail[4..8].copy_from_slice(&position.cpu.to_le_bytes());
        tail[8] = 8;
        tail[12..20].copy_from_slice(&position.boot_ns.to_le_bytes());
        tail[20] = 8;
        tail[24..32].copy_from_slice(&position.seq.to_le_bytes());
        tail[32] = 4;
        tail[36..40].copy_from_slice(&position.ordinal.to_le_bytes());
        let hash = self.fields.hash_with(&tail);
        let millis = u128::from(wall_ns / 1_000_000) & ((1 << 48) - 1);
        (EventId((millis << 80) | (hash >> 48)), hash)
    }
}

/// A ULID: 48 bits of milliseconds since 1970, then 80 bits of entropy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(pub u128);

impl EventId {
    /// "Not set": the pipeline derives it.
    pub const UNSET: EventId = EventId(0);

    /// Reads what `Display` writes: a ULID in capitals.
    ///
    /// ```
    /// use vahti_runtime::ids::EventId;
    /// let id = EventId(0x018b_cfe5_6800_u128 << 80 | 7);
    /// assert_eq!(EventId::parse("01HF7YAT000000000000000007"), Some(id));
    /// assert_eq!(EventId::parse("81HF7YAT000000000000000007"), None, "more than 128 bits");
    /// ```
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text: &[u8; 26] = text.as_bytes().try_into().ok()?;
        if text[0] > b'7' {
            return None;
        }
        text.iter()
            .try_fold(0, |id, c| match VALUES[usize::from(*c)] {
                NO_DIGIT => None,
                value => Some(id << 5 | u128::from(value)),
            })
            .map(EventId)
    }
}

/// Crockford's base 32, as ULIDs are written.
const BASE32: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

const NO_DIGIT: u8 = u8::MAX;

/// What each byte stands for in base 32.
const VALUES: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0;
    while value < BASE32.len() {
        values[BASE32[value] as usize] = value as u8;
        value += 1;
    }
    values
};

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; 26];
        for (i, c) in text.iter_mut().enumerate() {
            *c = BASE32[((self.0 >> (5 * (25 - i))) & 31) as usize];
        }
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Something that events are about: a process, a container, an endpoint.
///
/// Kept as the hash of its identity, so that the causality tracker's memory
/// does not depend on how long names are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityId(pub u128);

impl EntityId {
    /// One incarnation of a process.
    #[must_use]
    pub fn process(boot_id: &BootId, tgid: u32, start_boot_ns: u64) -> Self {
        EntityId(process_hash("process", boot_id, tgid, start_boot_ns))
    }

    /// A container, by its full id.
    #[must_use]
    pub fn container(container_id: &str) -> Self {
        EntityId(identity_hash("container", &[container_id.as_bytes()]))
    }

    /// Anything that has a text name: a uid, or one of the aliases
    /// `namespace/name` and `ip:port`.
    ///
    /// ```
    /// use vahti_runtime::ids::EntityId;
    /// assert_eq!(EntityId::named("default/web-0"), EntityId::named("default/web-0"));
    /// ```
    #[must_use]
    pub fn named(name: &str) -> Self {
        EntityId(identity_hash("entity", &[name.as_bytes()]))
    }
}

impl fmt::Debug for EntityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
