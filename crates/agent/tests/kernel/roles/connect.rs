//! Clients, and what the kernel tells them.

use std::collections::BTreeMap;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use serde_json::{Value, json};

use crate::agent::within;

/// Connects `count` times to `peers` in turn, `at_once` at a time, and tells
/// with which error each attempt ended.
///
/// `how`: `block`; `poll`, which waits for each without blocking; `give up`,
/// which closes at once; or `give up later`, after a SYN was sent again.
pub(super) fn connect(arguments: &Value) {
    raise_file_limit();
    let peers: Vec<SocketAddr> = serde_json::from_value(arguments["peers"].clone()).unwrap();
    let number = |key: &str| arguments[key].as_u64().unwrap();
    let how = arguments["how"].as_str().unwrap();
    let mut peers = peers.iter().cycle();
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    let mut left = number("count");
    while left > 0 {
        let wave = left.min(number("at_once"));
        left -= wave;
        let mut begun = Vec::new();
        for peer in peers.by_ref().take(wave as usize) {
            match begin(*peer, how == "block") {
                Ok(socket) => begun.push(socket),
                Err(error) => *outcomes.entry(error).or_default() += 1,
            }
        }
        for socket in begun {
            let outcome = match how {
                "give up" => "gave up".to_owned(),
                "give up later" => wait_for_retransmit(&socket),
                _ => wait_for_error(&socket),
            };
            *outcomes.entry(outcome).or_default() += 1;
        }
    }
    super::tell(&json!({"outcomes": outcomes}));
}

/// Has `count` datagrams to `peer` refused.
pub(super) fn speak(arguments: &Value) {
    let peer = arguments["peer"].as_str().unwrap();
    for _ in 0..arguments["count"].as_u64().unwrap() {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        assert!(socket.connect(peer).is_err());
        assert!(socket.send_to(b"?", peer).is_err());
    }
    super::tell(&json!({}));
}

/// Hundreds of sockets at once are more than the usual soft limit.
fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for both calls.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
}

/// Begins to connect; the error by name, if the kernel tells it at once.
fn begin(peer: SocketAddr, blocking: bool) -> Result<OwnedFd, String> {
    let family = if peer.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let flags = if blocking { 0 } else { libc::SOCK_NONBLOCK };
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | flags, 0) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: just made, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let result = match peer {
        SocketAddr::V4(peer) => connect_to(&socket, &v4(peer)),
        SocketAddr::V6(peer) => connect_to(&socket, &v6(peer)),
    };
    match result {
        0 => panic!("somebody listens on {peer}"),
        _ => match last_errno() {
            libc::EINPROGRESS => Ok(socket),
            errno => Err(name(errno)),
        },
    }
}

/// `T` is a socket address of the socket's family.
fn connect_to<T>(socket: &OwnedFd, address: &T) -> libc::c_int {
    let size = size_of::<T>() as libc::socklen_t;
    // SAFETY: `address` is readable for its own size.
    unsafe { libc::connect(socket.as_raw_fd(), std::ptr::from_ref(address).cast(), size) }
}

fn v4(peer: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: peer.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(peer.ip().octets()) },
        sin_zero: [0; 8],
    }
}

fn v6(peer: SocketAddrV6) -> libc::sockaddr_in6 {
    libc::sockaddr_in6 {
        sin6_family: libc::AF_INET6 as libc::sa_family_t,
        sin6_port: peer.port().to_be(),
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr { s6_addr: peer.ip().octets() },
        sin6_scope_id: 0,
    }
}

fn last_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

fn wait_for_error(socket: &OwnedFd) -> String {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one entry, as said.
    while unsafe { libc::poll(&mut poll, 1, -1) } != 1 {}
    name(option(socket, libc::SOL_SOCKET, libc::SO_ERROR))
}

fn wait_for_retransmit(socket: &OwnedFd) -> String {
    let sent_again = || {
        // SAFETY: plain data.
        let empty: libc::tcp_info = unsafe { std::mem::zeroed() };
        let info = option_or(socket, libc::IPPROTO_TCP, libc::TCP_INFO, empty);
        info.tcpi_total_retrans > 0
    };
    assert!(within(Duration::from_secs(30), sent_again), "no SYN was sent again");
    "gave up".to_owned()
}

fn option(socket: &OwnedFd, level: i32, option: i32) -> i32 {
    option_or(socket, level, option, 0)
}

/// `T` is plain data, and what the option is made of.
fn option_or<T>(socket: &OwnedFd, level: i32, option: i32, mut value: T) -> T {
    let mut size = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is writable for `size` bytes.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut size)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    value
}

fn name(errno: i32) -> String {
    match errno {
        libc::ECONNREFUSED => "ECONNREFUSED".to_owned(),
        libc::ECONNRESET => "ECONNRESET".to_owned(),
        libc::ETIMEDOUT => "ETIMEDOUT".to_owned(),
        libc::ENETUNREACH => "ENETUNREACH".to_owned(),
        libc::EHOSTUNREACH => "EHOSTUNREACH".to_owned(),
        libc::EACCES => "EACCES".to_owned(),
        libc::EINVAL => "EINVAL".to_owned(),
        libc::EPERM => "EPERM".to_owned(),
        errno => format!("errno {errno}"),
    }
}
