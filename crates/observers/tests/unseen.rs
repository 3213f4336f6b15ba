//! Connections whose end no program saw. Few kernels do that by themselves;
//! here it is made so, as `connection_end` is not attached: what is told is
//! told of the socket alone, when it is disconnected or closed. Needs root and
//! BTF; says so where it has not got them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends so")]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use aya::maps::PerCpuArray;
use vahti_ebpf::cgroup::Hierarchy;
use vahti_ebpf::loader::open;
use vahti_ebpf::manager::AyaManager;
use vahti_ebpf::ring::RingReader;
use vahti_observers::network::{self, NetworkProcessor};
use vahti_runtime::ebpf::EbpfManager as _;
use vahti_runtime::event::{
    CONNECTION_REFUSED, CONNECTION_TIMEOUT, CONNECTION_UNREACHABLE, Event, EventData, EventKind,
};
use vahti_runtime::ids::BootId;
use vahti_runtime::processor::{EventProcessor as _, Output, RawRecord, RecordKind};
use vahti_runtime::testing::not_run;

/// How many of each.
const COUNT: usize = 50;

/// Sees no end before its socket is destroyed.
const AT_THE_CLOSE: &[&str] = &["connection_destroy", "connection_begin", "connection_receive"];
/// Sees what is reported as well: errors, and that a socket is disconnected.
const BY_REPORT: &[&str] =
    &["connection_destroy", "connection_begin", "connection_receive", "connection_error"];

/// The network observer without `connection_end`.
struct Blind {
    manager: AyaManager,
    ring: RingReader,
    processor: NetworkProcessor,
    /// How many records were read.
    received: u64,
    events: Vec<Event>,
}

impl Blind {
    /// `None`, having said why, where it can't be had.
    fn with(programs: &[&str]) -> Option<Self> {
        let hierarchy = Hierarchy::detect();
        let manager = match open(&[network::OBJECT], hierarchy) {
            Ok(mut opened) => opened.remove(0).unwrap(),
            Err(error) => {
                let lacks = matches!(error, vahti_ebpf::EbpfError::NoKernelBtf { .. });
                assert!(error.is_permission() || lacks, "{error}");
                not_run(error);
                return None;
            }
        };
        let ring = manager.ring("ring").unwrap();
        let processor = NetworkProcessor::new(BootId([7; 16]), hierarchy.version);
        let mut blind = Blind { manager, ring, processor, received: 0, events: Vec::new() };
        programs.iter().all(|program| blind.attach(program)).then_some(blind)
    }

    /// Whether it could, having said why not.
    fn attach(&mut self, program: &str) -> bool {
        let probe = network::PROBES.iter().find(|p| p.program == program).unwrap();
        let attached = self.manager.attach_raw_tracepoint(program, probe.tracepoint);
        attached.map_err(not_run).is_ok()
    }

    fn read(&mut self) {
        let Blind { ring, processor, received, events, .. } = self;
        ring.read(|bytes| {
            *received += 1;
            let record = RawRecord {
                kind: RecordKind::Kernel,
                boot_ns: 1,
                wall_ns: 2,
                cpu: 0,
                seq: 1,
                bytes,
            };
            if let Output::One(event) = processor.process(record).unwrap() {
                events.push(event);
            }
            true
        });
    }

    /// What was told with this port at either end: as many, and a moment later
    /// no more.
    #[track_caller]
    fn expect(&mut self, count: usize, port: u16) -> Vec<Event> {
        let begun = Instant::now();
        loop {
            self.read();
            let found: Vec<Event> =
                self.events.iter().filter(|e| is_on(e, port)).cloned().collect();
            let patience = Duration::from_millis(if found.len() < count { 5_000 } else { 200 });
            if begun.elapsed() > patience {
                assert_eq!(found.len(), count, "{found:#?}");
                return found;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Blind {
    /// Every test ends so: what the programs wrote is what was read, and what
    /// they tried is that and what is counted as lost.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let stats: PerCpuArray<_, [u64; 3]> = self.manager.per_cpu_array("stats").unwrap();
        let begun = Instant::now();
        loop {
            // Others on this machine go on: exact as soon as nothing moves.
            self.read();
            let slots = (0..vahti_ebpf::ledger::SLOTS).flat_map(|slot| {
                stats.get(&slot, 0).unwrap().iter().copied().collect::<Vec<[u64; 3]>>()
            });
            let [attempted, submitted, lost] =
                slots.fold([0; 3], |sum, cpu| [0, 1, 2].map(|i| sum[i] + cpu[i]));
            if attempted == submitted + lost && submitted == self.received {
                break;
            }
            let found = format!("{attempted} = {submitted} + {lost}, {} read", self.received);
            assert!(begun.elapsed() < Duration::from_secs(10), "{found}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn is_on(event: &Event, port: u16) -> bool {
    let EventData::Network(network) = &event.data else { return false };
    [network.local.port, network.peer.port].contains(&Some(port))
}

/// Told of the right process and peer, and without a duration if it is said
/// that this was late.
#[track_caller]
fn all_are(events: &[Event], kind: &'static EventKind, peer: SocketAddr, reason: Option<&str>) {
    for event in events {
        assert_eq!(event.kind, kind, "{event:#?}");
        assert_eq!(event.process.and_then(|p| p.pid), Some(std::process::id()), "{event:#?}");
        let EventData::Network(network) = &event.data else { panic!("{event:#?}") };
        assert_eq!(network.peer.address, Some(peer.ip()), "{event:#?}");
        assert_eq!(network.peer.port, Some(peer.port()), "{event:#?}");
        assert!(network.local.port.is_some(), "{event:#?}");
        assert_eq!(event.unresolved.as_ref().map(|u| u.reason), reason, "{event:#?}");
        assert_eq!(event.duration_ns.is_none(), reason.is_some(), "{event:#?}");
    }
}

/// Of an address on which nobody listens; nobody else can have its port.
fn closed_port(address: std::net::IpAddr) -> (OwnedFd, SocketAddr) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let peer = listener.local_addr().unwrap();
    drop(listener);
    (socket(0), peer)
}

fn socket(flags: i32) -> OwnedFd {
    // SAFETY: takes no pointers; the descriptor is owned by nobody else.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | flags, 0);
        OwnedFd::from_raw_fd(fd)
    }
}

fn set_option<T>(socket: &impl std::os::fd::AsRawFd, level: i32, name: i32, value: T) {
    let len = size_of::<T>() as libc::socklen_t;
    let value = (&raw const value).cast();
    // SAFETY: `value` is readable for its own size.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, len) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// connect() to an address, or to none (`AF_UNSPEC`): disconnects.
fn connect(socket: &impl std::os::fd::AsRawFd, peer: Option<SocketAddr>) -> std::io::Result<()> {
    // SAFETY: plain data.
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    if let Some(SocketAddr::V4(v4)) = peer {
        address.sin_family = libc::AF_INET as libc::sa_family_t;
        address.sin_port = v4.port().to_be();
        address.sin_addr.s_addr = u32::from(*v4.ip()).to_be();
    }
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: `address` is readable for its own size.
    match unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Begins to connect; waits until it is known how that ended.
fn poll_connect(peer: SocketAddr, syn_retries: i32) -> OwnedFd {
    let socket = socket(libc::SOCK_NONBLOCK);
    set_option(&socket, libc::IPPROTO_TCP, libc::TCP_SYNCNT, syn_retries);
    drop(connect(&socket, Some(peer)));
    wait(&socket);
    socket
}

fn wait(socket: &OwnedFd) {
    let mut entry = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one entry, writable.
    assert_eq!(unsafe { libc::poll(&raw mut entry, 1, 10_000) }, 1);
}

/// `SO_ERROR`, which is gone then.
fn take_error(socket: &OwnedFd) -> i32 {
    let (mut error, mut len) = (0_i32, size_of::<i32>() as libc::socklen_t);
    // SAFETY: `error` is writable for its own size.
    let result = unsafe {
        let error = (&raw mut error).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR, error, &raw mut len)
    };
    assert_eq!(result, 0);
    error
}

const LATE: Option<&str> = Some("told_late");
const LATE_AND_INFERRED: Option<&str> = Some("told_late_error_inferred");

#[test]
fn a_refusal_that_no_program_saw_is_told_when_the_socket_is_closed() {
    let Some(mut blind) = Blind::with(AT_THE_CLOSE) else { return };
    for address in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        let (_holder, peer) = closed_port(address);
        for _ in 0..COUNT {
            assert!(TcpStream::connect(peer).is_err());
        }
        let events = blind.expect(COUNT, peer.port());
        all_are(&events, &CONNECTION_REFUSED, peer, LATE_AND_INFERRED);
    }
}

#[test]
fn an_end_that_only_its_report_shows_is_told_in_time() {
    let Some(mut blind) = Blind::with(BY_REPORT) else { return };
    let (_holder, peer) = closed_port(Ipv4Addr::LOCALHOST.into());
    for _ in 0..COUNT {
        assert!(TcpStream::connect(peer).is_err());
    }
    all_are(&blind.expect(COUNT, peer.port()), &CONNECTION_REFUSED, peer, None);
}

#[test]
fn an_end_that_no_program_saw_is_told_when_the_socket_is_disconnected() {
    let Some(mut blind) = Blind::with(AT_THE_CLOSE) else { return };
    let (_holder, peer) = closed_port(Ipv4Addr::LOCALHOST.into());
    let failed: Vec<OwnedFd> = (0..COUNT).map(|_| poll_connect(peer, 1)).collect();
    assert!(failed.iter().all(|socket| take_error(socket) == libc::ECONNREFUSED));
    if !blind.attach("connection_error") {
        return;
    }
    for socket in &failed {
        // The kernel disconnects it, and says no more than that.
        let error = connect(socket, Some(peer)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED));
    }
    let events = blind.expect(COUNT, peer.port());
    all_are(&events, &CONNECTION_REFUSED, peer, LATE_AND_INFERRED);
    drop(failed);
    blind.expect(COUNT, peer.port());
}

#[test]
fn an_error_that_is_still_there_at_the_close_is_told_as_it_is() {
    let Some(mut blind) = Blind::with(AT_THE_CLOSE) else { return };
    let (_holder, peer) = closed_port(Ipv4Addr::LOCALHOST.into());
    for _ in 0..COUNT {
        drop(poll_connect(peer, 1));
    }
    all_are(&blind.expect(COUNT, peer.port()), &CONNECTION_REFUSED, peer, LATE);
    let (_holder, peer) = closed_port(Ipv4Addr::LOCALHOST.into());
    for _ in 0..COUNT {
        assert_eq!(take_error(&poll_connect(peer, 1)), libc::ECONNREFUSED);
    }
    let events = blind.expect(COUNT, peer.port());
    all_are(&events, &CONNECTION_REFUSED, peer, LATE_AND_INFERRED);
}

#[test]
fn a_timeout_that_no_program_saw_is_told_as_one() {
    let Some(mut blind) = Blind::with(AT_THE_CLOSE) else { return };
    // It answers nobody: its queue is full.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    // SAFETY: takes no pointers. A second listen() changes the length of the queue.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let peer = listener.local_addr().unwrap();
    let _filling = TcpStream::connect(peer).unwrap();
    let blocking = std::thread::spawn(move || {
        let socket = socket(0);
        set_option(&socket, libc::IPPROTO_TCP, libc::TCP_SYNCNT, 1);
        let error = connect(&socket, Some(peer)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
    });
    let polling = std::thread::spawn(move || {
        assert_eq!(take_error(&poll_connect(peer, 1)), libc::ETIMEDOUT);
    });
    // It takes seconds, in which what others do could fill the ring.
    while !(blocking.is_finished() && polling.is_finished()) {
        blind.read();
        std::thread::sleep(Duration::from_millis(10));
    }
    blocking.join().unwrap();
    polling.join().unwrap();
    let events = blind.expect(2, peer.port());
    all_are(&events, &CONNECTION_TIMEOUT, peer, LATE_AND_INFERRED);
}

#[test]
fn a_missing_neighbour_that_no_program_saw_is_told_as_one() {
    let Some(mut blind) = Blind::with(AT_THE_CLOSE) else { return };
    let peer = SocketAddr::from(([192, 0, 2, 99], 4711));
    let connecting = std::thread::spawn(move || {
        // SAFETY: takes no pointers; only this thread moves.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err("a network namespace can't be made");
        }
        // Asks once, and not for long.
        let script = "ip link add cable type veth peer name other && ip link set lo up &&
             ip link set other up && ip link set cable up &&
             ip address add 192.0.2.1/24 dev cable &&
             echo 50 > /proc/sys/net/ipv4/neigh/cable/retrans_time_ms &&
             echo 1 > /proc/sys/net/ipv4/neigh/cable/mcast_solicit";
        let made = Command::new("sh").args(["-c", script]).status();
        if !made.is_ok_and(|status| status.success()) {
            return Err("no cable can be laid");
        }
        for _ in 0..3 {
            let error = TcpStream::connect(peer).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EHOSTUNREACH));
            assert_eq!(take_error(&poll_connect(peer, 1)), libc::EHOSTUNREACH);
        }
        Ok(())
    });
    if let Err(why) = connecting.join().unwrap() {
        return not_run(why);
    }
    blind.read();
    let own = |e: &&Event| e.process.and_then(|p| p.pid) == Some(std::process::id());
    let events: Vec<Event> =
        blind.events.iter().filter(|e| is_on(e, 4711)).filter(own).cloned().collect();
    assert_eq!(events.len(), 6, "{events:#?}");
    all_are(&events, &CONNECTION_UNREACHABLE, peer, LATE_AND_INFERRED);
}

#[test]
fn a_socket_that_is_used_again_after_a_failure_is_told_once() {
    let Some(mut blind) = Blind::with(BY_REPORT) else { return };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (_holder, closed) = closed_port(Ipv4Addr::LOCALHOST.into());
    for _ in 0..COUNT {
        let socket = socket(0);
        assert!(connect(&socket, Some(closed)).is_err());
        connect(&socket, Some(listener.local_addr().unwrap())).unwrap();
        drop(listener.accept().unwrap());
    }
    let events = blind.expect(COUNT, closed.port());
    all_are(&events, &CONNECTION_REFUSED, closed, None);
    blind.expect(0, listener.local_addr().unwrap().port());
}

/// In words, and in deeds at the client's end and the server's.
type Way = (&'static str, fn(TcpStream, TcpStream));

/// How a connection that stood may end.
const WAYS: [Way; 9] = [
    ("closed by the client", |client, accepted| {
        drop(client);
        drop(accepted);
    }),
    ("closed by the server", |client, accepted| {
        drop(accepted);
        drop(client);
    }),
    ("used, and closed", |mut client, mut accepted| {
        client.write_all(b"?").unwrap();
        accepted.read_exact(&mut [0]).unwrap();
        accepted.write_all(b"!").unwrap();
        client.read_exact(&mut [0]).unwrap();
    }),
    ("shut down by both, and closed", |client, accepted| {
        client.shutdown(std::net::Shutdown::Write).unwrap();
        accepted.shutdown(std::net::Shutdown::Write).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }),
    ("read to its end after the peer's reset", |mut client, mut accepted| {
        accepted.write_all(b"!").unwrap();
        client.write_all(b"?").unwrap();
        drop(accepted);
        client.read_to_end(&mut Vec::new()).unwrap_or_default();
        client.read_to_end(&mut Vec::new()).unwrap_or_default();
    }),
    ("reset by the client", |client, accepted| {
        reset_on_close(&client);
        drop(client);
        drop(accepted);
    }),
    ("reset by the server", |client, accepted| {
        reset_on_close(&accepted);
        drop(accepted);
        drop(client);
    }),
    ("disconnected", |client, accepted| {
        connect(&client, None).unwrap();
        drop(accepted);
    }),
    ("disconnected after the server's reset", |client, accepted| {
        reset_on_close(&accepted);
        drop(accepted);
        connect(&client, None).unwrap();
    }),
];

fn reset_on_close(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set_option(stream, libc::SOL_SOCKET, libc::SO_LINGER, linger);
}

#[test]
fn a_connection_that_stood_is_never_told_as_one_that_failed() {
    for programs in [AT_THE_CLOSE, BY_REPORT] {
        let Some(mut blind) = Blind::with(programs) else { return };
        for address in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
            let listener = TcpListener::bind::<(std::net::IpAddr, u16)>((address, 0)).unwrap();
            let peer = listener.local_addr().unwrap();
            for (_, end) in WAYS.iter().cycle().take(WAYS.len() * COUNT) {
                let client = TcpStream::connect(peer).unwrap();
                end(client, listener.accept().unwrap().0);
            }
            blind.expect(0, peer.port());
        }
    }
}

#[test]
fn an_administrators_end_is_not_told_as_a_failure() {
    for programs in [AT_THE_CLOSE, BY_REPORT] {
        let Some(mut blind) = Blind::with(programs) else { return };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let peer = listener.local_addr().unwrap();
        let open: Vec<_> = (0..COUNT)
            .map(|_| (TcpStream::connect(peer).unwrap(), listener.accept().unwrap().0))
            .collect();
        let filter = format!("( sport = :{0} or dport = :{0} )", peer.port());
        let killed = Command::new("ss").args(["-K", "-t", &filter]).output();
        if !killed.is_ok_and(|output| output.status.success()) {
            return not_run("`ss -K` can't be had");
        }
        drop(open);
        blind.expect(0, peer.port());
    }
}

#[test]
fn a_connection_that_stood_and_was_reset_unseen_is_counted_as_lost() {
    let Some(blind) = Blind::with(AT_THE_CLOSE) else { return };
    let slot = network::PROBES.iter().find(|p| p.program == "connection_destroy").unwrap().slot;
    let stats: PerCpuArray<_, [u64; 3]> = blind.manager.per_cpu_array("stats").unwrap();
    let lost = || stats.get(&slot, 0).unwrap().iter().map(|cpu| cpu[2]).sum::<u64>();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let before = lost();
    for _ in 0..COUNT {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        reset_on_close(&accepted);
        drop(accepted);
        drop(client);
    }
    // Tests beside this one have their connections, too.
    assert!(lost() - before >= COUNT as u64);
}

#[test]
fn sockets_that_never_connected_are_not_told() {
    let Some(mut blind) = Blind::with(AT_THE_CLOSE) else { return };
    for _ in 0..COUNT {
        drop(socket(0));
        drop(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    }
    blind.read();
    let own = |e: &&Event| e.process.and_then(|p| p.pid) == Some(std::process::id());
    let unnamed = |e: &&Event| {
        let EventData::Network(network) = &e.data else { return false };
        network.peer.port.is_none()
    };
    assert_eq!(blind.events.iter().filter(own).filter(unnamed).count(), 0);
}

#[test]
fn a_process_that_ends_with_its_connections_open_is_not_told() {
    for programs in [AT_THE_CLOSE, BY_REPORT] {
        let Some(mut blind) = Blind::with(programs) else { return };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let peer = listener.local_addr().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "plays_a_role", "--nocapture"])
            .env("VAHTI_TEST_PEER", peer.to_string())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let open: Vec<TcpStream> = (0..COUNT).map(|_| listener.accept().unwrap().0).collect();
        assert!(child.wait().unwrap().success());
        drop(open);
        blind.expect(0, peer.port());
    }
}

/// Not a test: the process that ends with its connections open.
#[test]
fn plays_a_role() {
    let Ok(peer) = std::env::var("VAHTI_TEST_PEER") else { return };
    let open: Vec<TcpStream> = (0..COUNT).map(|_| TcpStream::connect(&peer).unwrap()).collect();
    std::mem::forget(open);
    std::process::exit(0);
}
