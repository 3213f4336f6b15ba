//! From bytes to a checked record.

use vahti_ebpf::abi::FLAG_PROOF;
use vahti_ebpf::abi::{self, ABI_VERSION, FLAG_PATH_TRUNCATED, Header, Owner, Plain};
use vahti_runtime::event::{Comm, Process, ProcessRef};
use vahti_runtime::processor::{ProcessError, RawRecord};

/// A record's fixed part and the cgroup path behind it.
pub(crate) struct Record<'a, T> {
    pub(crate) fixed: T,
    pub(crate) path: &'a [u8],
}

/// The header, if the bytes are one whole record of this build's programs.
pub(crate) fn header(bytes: &[u8]) -> Result<Header, ProcessError> {
    let (header, _) =
        abi::split::<Header>(bytes).ok_or_else(|| malformed("shorter than a header", bytes))?;
    if header.abi_version != ABI_VERSION {
        return Err(malformed("another ABI version", bytes));
    }
    if header.len as usize != bytes.len() {
        return Err(malformed("a length that is not its own", bytes));
    }
    Ok(header)
}

/// Whether it tells a fact of our own making, which is no failure.
pub(crate) fn is_proof(header: &Header) -> bool {
    header.flags & FLAG_PROOF != 0
}

/// Whether the root end of its path is missing.
pub(crate) fn is_truncated(header: &Header) -> bool {
    header.flags & FLAG_PATH_TRUNCATED != 0
}

/// Splits a record whose path is as long as its fixed part says.
pub(crate) fn split<T: Plain>(
    bytes: &[u8],
    path_len: impl FnOnce(&T) -> u16,
) -> Result<Record<'_, T>, ProcessError> {
    let (fixed, path) =
        abi::split::<T>(bytes).ok_or_else(|| malformed("shorter than its kind", bytes))?;
    if path.len() != usize::from(path_len(&fixed)) {
        return Err(malformed("a path of another length", bytes));
    }
    Ok(Record { fixed, path })
}

pub(crate) fn malformed(what: &'static str, bytes: &[u8]) -> ProcessError {
    ProcessError::Malformed { what, len: bytes.len() }
}

/// The process that a record names; `None` if the kernel side knew none.
pub(crate) fn process(owner: &Owner, record: &RawRecord<'_>) -> Option<Process> {
    (owner.tgid != 0).then(|| Process {
        pid: Some(owner.tgid),
        name: Some(Comm::new(&owner.comm)),
        uid: Some(owner.uid),
        parent_pid: Some(owner.parent_tgid),
        start_ns: Some(record.wall_of(owner.start_boot_ns)),
    })
}

pub(crate) fn process_ref(tgid: u32, comm: &[u8; 16]) -> Option<ProcessRef> {
    (tgid != 0).then(|| ProcessRef { pid: tgid, name: Comm::new(comm) })
}
