//! The records of `container.bpf.c`. The layout is checked against
//! `container.h` when this compiles.

use vahti_ebpf::abi::{Header, Owner};
use vahti_ebpf::{abi_constant, abi_struct};

/// The C header.
pub const FILE: &str = include_str!("container.h");

/// The kind of an [`OomKill`].
pub const KIND_OOM_KILL: u16 = abi_constant!(FILE, "VAHTI_KIND_OOM_KILL") as u16;
/// The kind of a [`ProcessExit`].
pub const KIND_PROCESS_EXIT: u16 = abi_constant!(FILE, "VAHTI_KIND_PROCESS_EXIT") as u16;
/// [`OomKill::scope`]: a cgroup was at its limit.
pub const SCOPE_CGROUP: u8 = abi_constant!(FILE, "VAHTI_OOM_SCOPE_CGROUP") as u8;

/// Slots in `stats`.
pub mod slot {
    use super::FILE;
    use vahti_ebpf::abi_constant;

    /// `oom_kill`
    pub const OOM_KILL: u32 = abi_constant!(FILE, "VAHTI_SLOT_OOM_KILL") as u32;
    /// `process_exit`
    pub const EXIT: u32 = abi_constant!(FILE, "VAHTI_SLOT_PROCESS_EXIT") as u32;
    /// `signal_sent`
    pub const SIGNAL: u32 = abi_constant!(FILE, "VAHTI_SLOT_SIGNAL_SENT") as u32;
    /// `cgroup_attach`
    pub const ATTACH: u32 = abi_constant!(FILE, "VAHTI_SLOT_CGROUP_ATTACH") as u32;
    /// `process_exec`
    pub const EXEC: u32 = abi_constant!(FILE, "VAHTI_SLOT_PROCESS_EXEC") as u32;
}

abi_struct! {
    /// A process that the OOM killer killed. Its cgroup path follows.
    pub struct OomKill as "container_oom_kill" in FILE {
        /// Kind [`KIND_OOM_KILL`].
        header: Header,
        /// Who was killed.
        victim: Owner,
        /// Of the memory cgroup at its limit; system-wide: of the victim's.
        usage_bytes: u64,
        /// The same; all ones: no limit.
        limit_bytes: u64,
        /// Which cgroup was at its limit; 0: none.
        scope_cgroup_id: u64,
        /// The victim's address space.
        total_vm_kib: u64,
        /// The victim's anonymous memory.
        anon_rss_kib: u64,
        /// The victim's file mappings.
        file_rss_kib: u64,
        /// The victim's shared memory.
        shmem_rss_kib: u64,
        /// Whose allocation it was that failed.
        trigger_comm: [u8; 16],
        /// The same.
        trigger_tgid: u32,
        /// The victim's.
        oom_score_adj: i16,
        /// [`SCOPE_CGROUP`], or the whole system.
        scope: u8,
        /// How far above the victim's cgroup the one at its limit is.
        scope_levels: u8,
        /// Zero.
        reserved: [u8; 2],
        /// Bytes of cgroup path that follow.
        path_len: u16,
        /// Zero.
        reserved2: u32,
    }
}

abi_struct! {
    /// A process whose end may be a failure. Its cgroup path follows.
    pub struct ProcessExit as "container_exit" in FILE {
        /// Kind [`KIND_PROCESS_EXIT`].
        header: Header,
        /// Who ended.
        process: Owner,
        /// When the OOM killer chose it; 0: it did not.
        oom_boot_ns: u64,
        /// As wait() reports it.
        status: u32,
        /// Its pid in its own namespace.
        namespace_pid: u32,
        /// How deep that namespace is; 0: the initial one.
        namespace_level: u32,
        /// The first process of its cgroup; 0: unknown.
        first_tgid: u32,
        /// Another process that sent the fatal signal; 0: none.
        sender_tgid: u32,
        /// 1: its parent is in another cgroup.
        parent_elsewhere: u8,
        /// 1: pid 1 of its pid namespace is in the same cgroup.
        init_inside: u8,
        /// Bytes of cgroup path that follow.
        path_len: u16,
        /// The sender's name.
        sender_comm: [u8; 16],
    }
}
