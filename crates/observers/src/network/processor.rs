//! Records of `network.bpf.c` to events. Pure: bytes in, event out.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vahti_ebpf::abi::{FLAG_ERROR_TAKEN, FLAG_TOLD_LATE, Header, KIND_PROOF};
use vahti_runtime::event::{
    CONNECTION_ABANDONED, CONNECTION_REFUSED, CONNECTION_RESET, CONNECTION_TIMEOUT,
    CONNECTION_UNREACHABLE, Endpoint, ErrorInfo, Event, EventData, EventKind, Network, NetworkType,
    Outcome, Severity, Transport, Unresolved,
};
use vahti_runtime::ids::{BootId, EntityId, TraceId};
use vahti_runtime::processor::{EventProcessor, Output, ProcessError, RawRecord, RecordKind};

use super::abi::{Connection, KIND_CONNECTION_END, owner_kind};
use crate::cgroups::CgroupNames;
use crate::errno;
use crate::record::{self, malformed};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const TCP_SYN_SENT: u8 = 2;
const TCP_CLOSE: u8 = 7;

/// Tells failed TCP connections, and whose they were.
#[derive(Debug)]
pub struct NetworkProcessor {
    boot_id: BootId,
    cgroups: CgroupNames,
}

impl NetworkProcessor {
    /// For records of this boot, with cgroups of this version.
    #[must_use]
    pub fn new(boot_id: BootId, cgroup_version: u8) -> Self {
        NetworkProcessor { boot_id, cgroups: CgroupNames::new(cgroup_version) }
    }

    fn connection(&self, record: &RawRecord<'_>) -> Result<Event, ProcessError> {
        let split = record::split(record.bytes, |c: &Connection| c.path_len)?;
        let connection = split.fixed;
        let network = network(&connection).ok_or_else(|| {
            malformed("an address family that is neither IPv4 nor IPv6", record.bytes)
        })?;
        let ending = ending(connection.old_state, connection.err);
        let mut event = Event::new(ending.kind, ending.severity);
        event.time_ns = record.wall_ns;
        event.outcome = ending.outcome;
        event.error = error_of(&connection, &ending);
        event.duration_ns = duration(&connection);
        event.data = EventData::Network(network);
        self.attribute(&mut event, &connection, split.path, record);
        Ok(event)
    }

    /// Whose it was: process, cgroup, container, and the trace of that process.
    fn attribute(
        &self,
        event: &mut Event,
        connection: &Connection,
        path: &[u8],
        record: &RawRecord<'_>,
    ) {
        let owner = &connection.owner;
        event.process = record::process(owner, record);
        let truncated = record::is_truncated(&connection.header);
        let named = self.cgroups.name(owner.cgroup_id, path, truncated);
        event.cgroup = named.cgroup;
        event.container = named.container;
        if event.process.is_some() && connection.owner_kind != owner_kind::LISTEN {
            let entity = EntityId::process(&self.boot_id, owner.tgid, owner.start_boot_ns);
            event.entity = Some(entity);
            // A process's incarnation is its own trace: the same hash.
            event.trace_id = TraceId::from_hash(entity.0);
        }
        let reason = match connection.owner_kind {
            owner_kind::LISTEN => Some("owner_is_listener"),
            _ if event.process.is_none() => Some("owner_unknown"),
            _ => doubt(&connection.header).or(named.unresolved),
        };
        event.unresolved = reason.map(|reason| Unresolved { reason });
    }
}

impl EventProcessor for NetworkProcessor {
    fn name(&self) -> &str {
        "network"
    }

    fn process(&self, record: RawRecord<'_>) -> Result<Output, ProcessError> {
        if record.kind != RecordKind::Kernel {
            return Ok(Output::Nothing);
        }
        let header = record::header(record.bytes)?;
        match header.kind {
            _ if record::is_proof(&header) => Ok(Output::Nothing),
            KIND_CONNECTION_END => self.connection(&record).map(Output::One),
            KIND_PROOF => Ok(Output::Nothing),
            _ => Err(malformed("a kind that is not of this observer", record.bytes)),
        }
    }
}

/// What of the end itself is not known.
fn doubt(header: &Header) -> Option<&'static str> {
    let has = |flag| header.flags & flag != 0;
    match (has(FLAG_TOLD_LATE), has(FLAG_ERROR_TAKEN)) {
        (true, true) => Some("told_late_error_inferred"),
        (true, false) => Some("told_late"),
        (false, true) => Some("error_inferred"),
        (false, false) => None,
    }
}

struct Ending {
    kind: &'static EventKind,
    severity: Severity,
    outcome: Outcome,
    message: &'static str,
}

/// What the socket's error means, and before the connection stood or after.
fn ending(old_state: u8, err: i32) -> Ending {
    let failed = |kind, message| Ending {
        kind,
        severity: Severity::Error,
        outcome: Outcome::Failure,
        message,
    };
    let connecting = old_state == TCP_SYN_SENT;
    if old_state == TCP_CLOSE {
        return failed(&CONNECTION_UNREACHABLE, "no route leads to the peer");
    }
    match err {
        0 => Ending {
            kind: &CONNECTION_ABANDONED,
            severity: Severity::Warning,
            outcome: Outcome::Timeout,
            message: "given up by its own process while the peer did not answer",
        },
        libc::ECONNREFUSED => failed(&CONNECTION_REFUSED, "refused by the peer"),
        libc::ETIMEDOUT => Ending {
            outcome: Outcome::Timeout,
            ..failed(
                &CONNECTION_TIMEOUT,
                if connecting { "the peer did not answer" } else { "the peer stopped answering" },
            )
        },
        libc::ECONNRESET => failed(&CONNECTION_RESET, "reset by the peer"),
        _ => failed(&CONNECTION_UNREACHABLE, "the peer could not be reached"),
    }
}

/// The socket's error by name. An abandoned connection has none of its own;
/// what ICMP said meanwhile is told as its cause.
fn error_of(connection: &Connection, ending: &Ending) -> Option<ErrorInfo> {
    let soft = (connection.err_soft != 0).then(|| errno::name(connection.err_soft));
    if connection.err == 0 {
        return soft.map(|code| ErrorInfo {
            code,
            message: Cow::Borrowed(ending.message),
            cause: None,
        });
    }
    Some(ErrorInfo {
        code: errno::name(connection.err),
        message: Cow::Borrowed(ending.message),
        cause: soft.filter(|_| connection.err_soft != connection.err),
    })
}

/// How long the attempt took; how long a connection stood is not a failure's.
/// Nor is it known of an end that was told late.
fn duration(connection: &Connection) -> Option<u64> {
    let begun = connection.begin_boot_ns != 0 && connection.old_state == TCP_SYN_SENT;
    let on_time = connection.header.flags & FLAG_TOLD_LATE == 0;
    (begun && on_time).then(|| {
        let end = connection.header.boot_ns;
        end.saturating_sub(connection.begin_boot_ns)
    })
}

fn network(connection: &Connection) -> Option<Network> {
    let address = |bytes: &[u8; 16]| address(connection.family, bytes);
    let local = address(&connection.local_addr)?;
    let peer = address(&connection.peer_addr)?;
    let network_type = match peer {
        IpAddr::V4(_) => NetworkType::Ipv4,
        IpAddr::V6(_) => NetworkType::Ipv6,
    };
    // A connect() that the routing table refused has no port of its own yet,
    // and perhaps no address.
    let endpoint = |address: IpAddr, port| Endpoint {
        address: (!address.is_unspecified()).then_some(address),
        port: (port != 0).then_some(port),
    };
    Some(Network {
        transport: Transport::Tcp,
        network_type,
        local: endpoint(local, connection.local_port),
        peer: endpoint(peer, connection.peer_port),
    })
}

/// IPv4-mapped addresses are IPv4 on the wire.
fn address(family: u16, bytes: &[u8; 16]) -> Option<IpAddr> {
    match family {
        AF_INET => {
            let [a, b, c, d, ..] = *bytes;
            Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
        }
        AF_INET6 => Some(IpAddr::V6(Ipv6Addr::from(*bytes)).to_canonical()),
        _ => None,
    }
}
