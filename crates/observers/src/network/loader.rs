//! The network observer's object, its probes, and how they prove themselves.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use vahti_ebpf::abi::{self, SelfFacts};
use vahti_ebpf::error::EbpfError;
use vahti_ebpf::kernel::KernelVersion;
use vahti_ebpf::loader::Object;
use vahti_ebpf::manager::AyaManager;
use vahti_ebpf::proof::{Probe, ProofOfLife};
use vahti_ebpf::source::RingSource;

use super::abi::{Connection, KIND_CONNECTION_END, owner_kind, slot};
use crate::proof::{introduce, test_run_proof, write_self};

/// The compiled programs.
pub const OBJECT: Object =
    Object { name: "network", bytes: vahti_ebpf::include_bytes_aligned!("network.bpf.o") };

/// The programs, in the order in which they are attached. An owner that is
/// still known when its socket is destroyed had an end that was not seen: so
/// none is remembered before its end would be seen, and forgotten.
pub const PROBES: [Probe; 7] = [
    Probe {
        program: "connection_destroy",
        tracepoint: "tcp_destroy_sock",
        signal: "failed connections whose end the kernel showed to no program",
        since: KernelVersion(5, 8),
        slot: slot::DESTROY,
    },
    Probe {
        program: "connection_end",
        tracepoint: "inet_sock_set_state",
        signal: "failed TCP connections",
        since: KernelVersion(5, 8),
        slot: slot::END,
    },
    Probe {
        program: "connection_begin",
        tracepoint: "inet_sock_set_state",
        signal: "which process a failed connection belongs to",
        since: KernelVersion(5, 8),
        slot: slot::BEGIN,
    },
    Probe {
        program: "connection_receive",
        tracepoint: "tcp_rcv_space_adjust",
        signal: "which process an accepted connection belongs to",
        since: KernelVersion(5, 8),
        slot: slot::RECEIVE,
    },
    Probe {
        program: "connection_error",
        tracepoint: "inet_sk_error_report",
        signal: "errors that processes take before their sockets are closed",
        since: KernelVersion(5, 14),
        slot: slot::ERROR,
    },
    Probe {
        program: "route_v4",
        tracepoint: "fib_table_lookup",
        signal: "IPv4 connections to where no route leads",
        since: KernelVersion(5, 8),
        slot: slot::ROUTE_V4,
    },
    Probe {
        program: "route_v6",
        tracepoint: "fib6_table_lookup",
        signal: "IPv6 connections to where no route leads",
        since: KernelVersion(5, 8),
        slot: slot::ROUTE_V6,
    },
];

/// The observer's source, from its opened object.
///
/// # Errors
/// The object has not the maps that it should have.
pub fn source(manager: AyaManager) -> Result<RingSource, EbpfError> {
    RingSource::new("network", manager, &PROBES, Box::new(NetworkProof))
}

/// Connects to itself over loopback: once to a port where nobody listens, once
/// to one where it accepts, receives, and is reset.
#[derive(Debug)]
struct NetworkProof;

impl ProofOfLife for NetworkProof {
    fn introduce(&mut self, manager: &mut AyaManager) -> Option<u32> {
        introduce(manager)
    }

    fn provoke(&mut self, manager: &mut AyaManager) -> Result<(), EbpfError> {
        let failed =
            |error| EbpfError::System { operation: "connecting to ourselves over loopback", error };
        // Nobody else can have this port as long as we hold it.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        write_self(manager, |facts| SelfFacts { proof: port.into(), ..facts })?;
        let deadline = Deadline(Instant::now() + PATIENCE);
        let proven = reset_ourselves(&listener, port, deadline)
            .and_then(|()| {
                drop(listener);
                refuse_ourselves(port, deadline)
            })
            .map_err(failed);
        write_self(manager, |facts| SelfFacts { proof: 0, ..facts })?;
        proven
    }

    fn proven_by(&self, record: &[u8]) -> u32 {
        let Some((connection, _)) = abi::split::<Connection>(record) else {
            return test_run_proof(record);
        };
        if connection.header.kind != KIND_CONNECTION_END {
            return test_run_proof(record);
        }
        1 << slot::END
            | match connection.owner_kind {
                owner_kind::CONNECT => 1 << slot::BEGIN,
                owner_kind::RECEIVE => 1 << slot::RECEIVE,
                _ => 0,
            }
    }
}

/// All that the proof may take, as its observer reads nothing meanwhile. Over
/// loopback it takes microseconds.
const PATIENCE: Duration = Duration::from_millis(100);

/// When to give up. What has come by then is still taken: on a busy machine
/// the time may have gone to others.
#[derive(Debug, Clone, Copy)]
struct Deadline(Instant);

impl Deadline {
    fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }
}

/// Accepts a connection of our own, receives from it, and has it reset.
fn reset_ourselves(listener: &TcpListener, port: u16, deadline: Deadline) -> std::io::Result<()> {
    let peer = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into();
    let mut client = TcpStream::connect_timeout(&peer, deadline.left())?;
    let mut accepted = accept_from(listener, client.local_addr()?, deadline)?;
    accepted.set_read_timeout(Some(deadline.left()))?;
    client.write_all(b"?")?;
    accepted.read_exact(&mut [0])?;
    reset_on_close(&client)?;
    drop(client);
    Ok(())
}

/// Accepts the connection of this peer. Anybody on this machine may connect to
/// our port: those are closed unread.
fn accept_from(
    listener: &TcpListener,
    peer: SocketAddr,
    deadline: Deadline,
) -> std::io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((accepted, from)) if from == peer => {
                accepted.set_nonblocking(false)?;
                return Ok(accepted);
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                wait_readable(listener, deadline)?;
            }
            Err(error) => return Err(error),
        }
        if Instant::now() > deadline.0 {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
    }
}

fn wait_readable(listener: &TcpListener, deadline: Deadline) -> std::io::Result<()> {
    let mut entry = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let timeout = libc::c_int::try_from(deadline.left().as_millis()).unwrap_or(1);
    // SAFETY: one entry, writable.
    match unsafe { libc::poll(&raw mut entry, 1, timeout) } {
        0 => Err(std::io::ErrorKind::TimedOut.into()),
        // An interrupted wait is no reason to give up: whoever waits looks again.
        _ => Ok(()),
    }
}

fn refuse_ourselves(port: u16, deadline: Deadline) -> std::io::Result<()> {
    let peer = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into();
    match TcpStream::connect_timeout(&peer, deadline.left()) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(std::io::Error::other("somebody else took our port")),
    }
}

fn reset_on_close(stream: &TcpStream) -> std::io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: `linger` is readable for the length given.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of_val(&linger) as libc::socklen_t,
        )
    };
    if result == 0 {
        return Ok(());
    }
    Err(std::io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    fn soon() -> Deadline {
        Deadline(Instant::now() + PATIENCE)
    }

    #[test]
    fn a_strangers_connection_is_not_taken_for_ours() {
        let (listener, address) = listener();
        let mut stranger = TcpStream::connect(address).unwrap();
        stranger.write_all(b"!").unwrap();
        let ours = TcpStream::connect(address).unwrap();
        let accepted = accept_from(&listener, ours.local_addr().unwrap(), soon()).unwrap();
        assert_eq!(accepted.peer_addr().unwrap(), ours.local_addr().unwrap());
    }

    #[test]
    fn nobody_who_comes_is_waited_for_only_so_long() {
        let (listener, address) = listener();
        let _stranger = TcpStream::connect(address).unwrap();
        let begin = Instant::now();
        let nobody = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1).into();
        let error = accept_from(&listener, nobody, soon()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
}
