//! The records of `network.bpf.c`. The layout is checked against `network.h`
//! when this compiles.

use vahti_ebpf::abi::{Header, Owner};
use vahti_ebpf::{abi_constant, abi_struct};

/// The C header.
pub const FILE: &str = include_str!("network.h");

/// The kind of a [`Connection`].
pub const KIND_CONNECTION_END: u16 = abi_constant!(FILE, "VAHTI_KIND_CONNECTION_END") as u16;

/// Slots in `stats`.
pub mod slot {
    use super::FILE;
    use vahti_ebpf::abi_constant;

    /// `connection_begin`
    pub const BEGIN: u32 = abi_constant!(FILE, "VAHTI_SLOT_CONNECTION_BEGIN") as u32;
    /// `connection_end`
    pub const END: u32 = abi_constant!(FILE, "VAHTI_SLOT_CONNECTION_END") as u32;
    /// `connection_receive`
    pub const RECEIVE: u32 = abi_constant!(FILE, "VAHTI_SLOT_CONNECTION_RECEIVE") as u32;
    /// `connection_error`
    pub const ERROR: u32 = abi_constant!(FILE, "VAHTI_SLOT_CONNECTION_ERROR") as u32;
    /// `connection_destroy`
    pub const DESTROY: u32 = abi_constant!(FILE, "VAHTI_SLOT_CONNECTION_DESTROY") as u32;
    /// `route_v4`
    pub const ROUTE_V4: u32 = abi_constant!(FILE, "VAHTI_SLOT_ROUTE_V4") as u32;
    /// `route_v6`
    pub const ROUTE_V6: u32 = abi_constant!(FILE, "VAHTI_SLOT_ROUTE_V6") as u32;
}

/// How the owner of a socket was learned; 0 where it was not.
pub mod owner_kind {
    use super::FILE;
    use vahti_ebpf::abi_constant;

    /// It called connect().
    pub const CONNECT: u8 = abi_constant!(FILE, "VAHTI_OWNER_CONNECT") as u8;
    /// It received from the accepted socket.
    pub const RECEIVE: u8 = abi_constant!(FILE, "VAHTI_OWNER_RECEIVE") as u8;
    /// It called listen().
    pub const LISTEN: u8 = abi_constant!(FILE, "VAHTI_OWNER_LISTEN") as u8;
}

abi_struct! {
    /// A TCP connection that ended by an error, or was given up, or that the
    /// routing table refused. The owner's cgroup path follows.
    pub struct Connection as "network_connection" in FILE {
        /// Kind [`KIND_CONNECTION_END`].
        header: Header,
        /// Whose socket it was.
        owner: Owner,
        /// When connect() sent the first SYN; 0: not seen.
        begin_boot_ns: u64,
        /// Network order; IPv4 in the first four bytes.
        local_addr: [u8; 16],
        /// The same of the other end.
        peer_addr: [u8; 16],
        /// Host order.
        local_port: u16,
        /// Host order.
        peer_port: u16,
        /// `AF_INET` or `AF_INET6`.
        family: u16,
        /// What the socket was until now, as `include/net/tcp_states.h` numbers it.
        old_state: u8,
        /// One of [`owner_kind`].
        owner_kind: u8,
        /// A positive errno; 0: closed by its own process.
        err: i32,
        /// What ICMP said while the kernel still hoped.
        err_soft: i32,
        /// Segments sent again, SYNs included.
        retransmits: u32,
        /// Inode number of the network namespace.
        netns: u32,
        /// Bytes of cgroup path that follow.
        path_len: u16,
        /// Zero.
        reserved: [u16; 3],
    }
}
