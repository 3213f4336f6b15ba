//! Records as they came, kept in a file: what fixtures are, and what replay
//! will read.
//!
//! Text, a line each, so that a difference can be read. A recording names the
//! ABI and the object that wrote its records, and the boot whose clock they
//! carry: with the same bytes in, the same events come out on any machine.
//!
//! ```text
//! vahti-recording 1
//! observer network
//! abi 1
//! object 6f1d0e0d6a0c3c1f0d9a2f0a5f6b7c8d
//! boot 00000000000000000000000000000000
//! cgroup-version 2
//! kernel 5000 1700000000000000000 0 1 0100010128...
//! ```
//!
//! A record's line: kind, boot clock, wall clock, CPU, number, bytes in hex.
//! Among them a line that begins with `#` is a comment.

use std::fmt::{self, Write as _};

use vahti_ebpf::abi::ABI_VERSION;
use vahti_runtime::ids::{BootId, identity_hash};
use vahti_runtime::processor::{RawRecord, RecordKind};

const MAGIC: &str = "vahti-recording 1";

/// Records of one observer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    /// Which observer's.
    pub observer: String,
    /// The ABI of their bytes.
    pub abi_version: u16,
    /// Which object wrote them: [`object_hash`].
    pub object: u128,
    /// Which boot they are of.
    pub boot_id: BootId,
    /// Of the hierarchy that their cgroups are in.
    pub cgroup_version: u8,
    /// The records, in order.
    pub records: Vec<Recorded>,
}

/// One record with the stamps that its source gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    kind: RecordKind,
    boot_ns: u64,
    wall_ns: u64,
    cpu: u32,
    seq: u64,
    bytes: Vec<u8>,
}

/// Why a recording can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct RecordingError {
    /// Which line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: &'static str,
}

/// Names an object by its bytes.
#[must_use]
pub fn object_hash(object: &[u8]) -> u128 {
    identity_hash("object", &[object])
}

impl Recording {
    /// An empty one, of this build's ABI.
    #[must_use]
    pub fn new(observer: &str, object: &[u8], boot_id: BootId, cgroup_version: u8) -> Self {
        Recording {
            observer: observer.to_owned(),
            abi_version: ABI_VERSION,
            object: object_hash(object),
            boot_id,
            cgroup_version,
            records: Vec::new(),
        }
    }

    /// Adds a copy of a record.
    pub fn push(&mut self, record: RawRecord<'_>) {
        self.records.push(Recorded {
            kind: record.kind,
            boot_ns: record.boot_ns,
            wall_ns: record.wall_ns,
            cpu: record.cpu,
            seq: record.seq,
            bytes: record.bytes.to_vec(),
        });
    }

    /// Reads one.
    ///
    /// # Errors
    /// It is none, or of a format that is not known, or cut short in a line.
    pub fn parse(text: &str) -> Result<Self, RecordingError> {
        let mut lines = text.lines().enumerate();
        let mut header = |key: &'static str, what: &'static str| {
            let (index, line) = lines.next().unwrap_or((0, ""));
            let value = line.strip_prefix(key);
            let error = RecordingError { line: index + 1, what };
            value.map(str::trim).ok_or(error)
        };
        let bad = |line, what| RecordingError { line, what };
        header(MAGIC, "no recording, or of another version")?;
        let observer = header("observer ", "no observer")?.to_owned();
        let abi_version = header("abi ", "no ABI")?;
        let object = header("object ", "no object")?;
        let boot_id = header("boot ", "no boot")?;
        let cgroup_version = header("cgroup-version ", "no cgroup version")?;
        let mut recording = Recording {
            observer,
            abi_version: abi_version.parse().map_err(|_| bad(3, "no ABI"))?,
            object: u128::from_str_radix(object, 16).map_err(|_| bad(4, "no object"))?,
            boot_id: BootId::parse(boot_id).ok_or(bad(5, "no boot"))?,
            cgroup_version: cgroup_version.parse().map_err(|_| bad(6, "no cgroup version"))?,
            records: Vec::new(),
        };
        let is_no_record = |line: &str| line.is_empty() || line.starts_with('#');
        for (index, line) in lines.filter(|(_, line)| !is_no_record(line)) {
            let record = Recorded::parse(line).ok_or(bad(index + 1, "no record"))?;
            recording.records.push(record);
        }
        Ok(recording)
    }
}

impl Recorded {
    /// The record, as its source gave it.
    #[must_use]
    pub fn raw(&self) -> RawRecord<'_> {
        RawRecord {
            kind: self.kind,
            boot_ns: self.boot_ns,
            wall_ns: self.wall_ns,
            cpu: self.cpu,
            seq: self.seq,
            bytes: &self.bytes,
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(' ');
        let kind = match fields.next()? {
            "kernel" => RecordKind::Kernel,
            "tick" => RecordKind::Tick,
            "fact" => RecordKind::Fact,
            _ => return None,
        };
        let recorded = Recorded {
            kind,
            boot_ns: fields.next()?.parse().ok()?,
            wall_ns: fields.next()?.parse().ok()?,
            cpu: fields.next()?.parse().ok()?,
            seq: fields.next()?.parse().ok()?,
            bytes: unhex(fields.next()?)?,
        };
        fields.next().is_none().then_some(recorded)
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16)?).ok();
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect()
}

impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let boot = self.boot_id.0;
        writeln!(f, "{MAGIC}")?;
        writeln!(f, "observer {}", self.observer)?;
        writeln!(f, "abi {}", self.abi_version)?;
        writeln!(f, "object {:032x}", self.object)?;
        writeln!(f, "boot {:032x}", u128::from_be_bytes(boot))?;
        writeln!(f, "cgroup-version {}", self.cgroup_version)?;
        for record in &self.records {
            writeln!(f, "{record}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            RecordKind::Kernel => "kernel",
            RecordKind::Tick => "tick",
            RecordKind::Fact => "fact",
        };
        let Recorded { boot_ns, wall_ns, cpu, seq, .. } = self;
        write!(f, "{kind} {boot_ns} {wall_ns} {cpu} {seq} ")?;
        let mut hex = String::with_capacity(self.bytes.len() * 2);
        for byte in &self.bytes {
            write!(hex, "{byte:02x}")?;
        }
        f.write_str(&hex)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(
            boot_ns: u64, wall_ns: u64, cpu: u32, seq: u64, bytes: Vec<u8>, boot: [u8; 16],
        ) {
            let mut recording = Recording::new("network", b"object", BootId(boot), 2);
            recording.push(RawRecord { kind: RecordKind::Kernel, boot_ns, wall_ns, cpu, seq, bytes: &bytes });
            prop_assert_eq!(Recording::parse(&recording.to_string()), Ok(recording));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".*", cut in 0_usize..200) {
            let mut recording = Recording::new("network", b"object", BootId([7; 16]), 2).to_string();
            recording.truncate(cut);
            recording.push_str(&text);
            drop(Recording::parse(&recording));
        }
    }
}
