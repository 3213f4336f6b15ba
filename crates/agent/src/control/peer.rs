//! Who is at the other end of a socket, by the kernel's word.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// The process that connected.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    /// Its id in our pid namespace; 0 if it is not in there.
    pub(crate) pid: u32,
    /// Its effective user in our user namespace.
    pub(crate) uid: u32,
}

impl Peer {
    /// As it was when it connected, whatever it became since.
    pub(crate) fn of(stream: &UnixStream) -> io::Result<Self> {
        let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut size = size_of_val(&credentials) as libc::socklen_t;
        // SAFETY: `credentials` is writable for the length given.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut credentials).cast(),
                &raw mut size,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Peer { pid: credentials.pid.unsigned_abs(), uid: credentials.uid })
    }
}
