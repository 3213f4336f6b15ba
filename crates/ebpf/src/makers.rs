//! Which other processes make proofs of life at this moment.
//!
//! A program knows its own agent's proofs by itself. Those of an agent or a
//! doctor beside it are announced to userland, which says here whose they are.

use std::io;
use std::path::Path;

use aya::maps::{HashMap, MapData, MapError};

use crate::abi::TICK_NS;
use crate::error::EbpfError;
use crate::loader::chain;

/// A process, in one incarnation: whoever has its id later is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Maker {
    tgid: u32,
    began_boot_ns: u64,
}

impl Maker {
    /// The process that is `pid` to this `/proc`, and `tgid` to the kernel:
    /// its thread group id in the initial pid namespace.
    ///
    /// # Errors
    /// There is none, or it can't be read.
    pub fn find(proc: &Path, pid: u32, tgid: u32) -> io::Result<Self> {
        let stat = std::fs::read(proc.join(pid.to_string()).join("stat"))?;
        let ticks = start_ticks(&stat)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no start time"))?;
        Ok(Maker { tgid, began_boot_ns: ticks.saturating_mul(TICK_NS) })
    }

    /// Its thread group id, as the kernel knows it.
    #[must_use]
    pub fn tgid(self) -> u32 {
        self.tgid
    }
}

/// Field 22 of proc(5)'s `stat`, counted from behind the name, which may hold
/// anything.
fn start_ticks(stat: &[u8]) -> Option<u64> {
    let name_end = stat.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// What the programs of one object take for makers of proofs. Outlives the
/// programs: then it changes nothing.
#[derive(Debug)]
pub struct Makers(HashMap<MapData, u32, u64>);

impl Makers {
    pub(crate) fn new(map: HashMap<MapData, u32, u64>) -> Self {
        Makers(map)
    }

    /// From now on what fails for `maker` is marked as a proof.
    ///
    /// # Errors
    /// There are [`MAX_MAKERS`](crate::abi::MAX_MAKERS) already.
    pub fn insert(&mut self, maker: Maker) -> Result<(), EbpfError> {
        self.0.insert(maker.tgid, maker.began_boot_ns, 0).map_err(|error| failed(&error))
    }

    /// From now on what fails for it is a failure again.
    ///
    /// # Errors
    /// It was none.
    pub fn remove(&mut self, maker: Maker) -> Result<(), EbpfError> {
        self.0.remove(&maker.tgid).map_err(|error| failed(&error))
    }
}

fn failed(error: &MapError) -> EbpfError {
    EbpfError::Map { map: "makers".to_owned(), what: chain(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_when_it_began_whatever_its_name() {
        let stat = b"7 (a) b (c) S 7 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 0 0";
        assert_eq!(start_ticks(stat), Some(12345));
        assert_eq!(start_ticks(b"7 (a"), None);
        let proc = Path::new("/proc");
        let found = Maker::find(proc, std::process::id(), 9).unwrap();
        assert_eq!((found.tgid(), found.began_boot_ns % TICK_NS), (9, 0));
        assert!(Maker::find(proc, u32::MAX, 9).is_err());
    }
}
