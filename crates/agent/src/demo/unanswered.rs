//! Peers that do not answer, or can't be reached at all, without a packet that
//! leaves the machine and without a tool that sets such a thing up.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// In a network of documentation (RFC 5737), which nobody has.
const NOBODY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 9);

/// Longer than what is waited for takes: a SYN is sent again after a second,
/// and given up after two more.
const PATIENCE: Duration = Duration::from_secs(8);

/// Connects to where no route leads, in a network namespace of its own, so
/// that the machine's routes don't matter; to whom.
pub(super) fn unreachable() -> io::Result<SocketAddr> {
    // Only the thread moves; the namespace goes with it.
    let lonely = std::thread::Builder::new().name("lonely".to_owned()).spawn(|| {
        // SAFETY: takes no pointers.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        raise_loopback()?;
        match TcpStream::connect(NOBODY) {
            Err(error) if error.kind() == io::ErrorKind::NetworkUnreachable => Ok(NOBODY.into()),
            Err(error) => Err(error),
            Ok(_) => Err(io::Error::other("there is a route after all")),
        }
    })?;
    lonely.join().map_err(|_| io::Error::other("its thread panicked"))?
}

/// Gives a fresh network namespace its first routes: before, it has no table
/// in which one could be missing.
fn raise_loopback() -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: an ifreq is plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: `request` is valid for the length of the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Connects to a peer that does not answer, until the kernel gives up; to whom.
pub(super) fn timeout() -> io::Result<SocketAddr> {
    let silent = Silent::listen()?;
    let socket = silent.begin_connect()?;
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one entry, as said.
    match unsafe { libc::poll(&raw mut poll, 1, PATIENCE.as_millis() as libc::c_int) } {
        0 => return Err(io::Error::other("the kernel does not give up in time")),
        1 => {}
        _ => return Err(io::Error::last_os_error()),
    }
    match option(&socket, libc::SOL_SOCKET, libc::SO_ERROR, 0)? {
        libc::ETIMEDOUT => Ok(silent.peer.into()),
        0 => Err(io::Error::other("it was answered after all")),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Connects to a peer that does not answer, and gives up once the kernel had
/// to ask again; to whom.
pub(super) fn abandoned() -> io::Result<SocketAddr> {
    let silent = Silent::listen()?;
    let socket = silent.begin_connect()?;
    let begun = Instant::now();
    loop {
        // SAFETY: plain data.
        let empty: libc::tcp_info = unsafe { std::mem::zeroed() };
        let info = option(&socket, libc::IPPROTO_TCP, libc::TCP_INFO, empty)?;
        if info.tcpi_total_retrans > 0 {
            return Ok(silent.peer.into());
        }
        if begun.elapsed() > PATIENCE {
            return Err(io::Error::other("the kernel does not ask again in time"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A listener that answers nobody: its queue is full.
struct Silent {
    /// Closed before the listener is, so that nobody's connection is reset.
    _filling: TcpStream,
    _listener: TcpListener,
    peer: SocketAddrV4,
}

impl Silent {
    fn listen() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let SocketAddr::V4(peer) = listener.local_addr()? else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        // A second listen() changes the length of the queue; the kernel takes
        // one more than it.
        // SAFETY: takes no pointers.
        if unsafe { libc::listen(listener.as_raw_fd(), 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let filling = TcpStream::connect(peer)?;
        Ok(Silent { _filling: filling, _listener: listener, peer })
    }

    /// Begins to connect, with one SYN to be sent again, and does not wait.
    fn begin_connect(&self) -> io::Result<OwnedFd> {
        let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_INET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, owned by nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let retries: libc::c_int = 1;
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: self.peer.port().to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from(*self.peer.ip()).to_be() },
            sin_zero: [0; 8],
        };
        // SAFETY: both are readable for their own sizes.
        let result = unsafe {
            let size = size_of_val(&retries) as libc::socklen_t;
            let retries = (&raw const retries).cast();
            if libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_SYNCNT, retries, size) != 0 {
                return Err(io::Error::last_os_error());
            }
            let size = size_of_val(&address) as libc::socklen_t;
            libc::connect(fd, (&raw const address).cast(), size)
        };
        let error = io::Error::last_os_error();
        match (result, error.raw_os_error()) {
            (0, _) => Err(io::Error::other("it was answered after all")),
            (_, Some(libc::EINPROGRESS)) => Ok(socket),
            _ => Err(error),
        }
    }
}

/// Reads an option of a socket. `T` is plain data, and what the option is made
/// of.
fn option<T>(
    socket: &OwnedFd,
    level: libc::c_int,
    name: libc::c_int,
    mut value: T,
) -> io::Result<T> {
    let mut size = size_of::<T>() as libc::socklen_t;
    let into = (&raw mut value).cast();
    // SAFETY: `value` is writable for `size` bytes.
    match unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, into, &raw mut size) } {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}
