//! Standard error, as it is written to without waiting.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::OnceLock;

/// The file, and what kind it is.
struct Stderr {
    file: File,
    is_socket: bool,
}

impl Stderr {
    /// Pipes and terminals are opened anew: what is set not to wait is then
    /// ours alone, and not what others have in common with us. Files never
    /// wait, and opened anew they would be written to at another place than
    /// standard output's.
    fn open() -> io::Result<Self> {
        let shared = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let kind = shared.metadata()?.file_type();
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let own = if kind.is_fifo() || kind.is_char_device() {
            options.open("/proc/self/fd/2").ok()
        } else {
            None
        };
        Ok(Stderr { file: own.unwrap_or(shared), is_socket: kind.is_socket() })
    }

    fn write_now(&self, line: &[u8]) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        let mut poll = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
        // SAFETY: `poll` is one valid pollfd for the length of the call.
        if unsafe { libc::poll(&raw mut poll, 1, 0) } != 1 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if !self.is_socket {
            return (&self.file).write(line).map(drop);
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: `line` is readable for its length.
        match unsafe { libc::send(fd, line.as_ptr().cast(), line.len(), flags) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

/// Writes a line to standard error if that takes no time. Takes no lock:
/// whoever held it could be stuck.
pub(super) fn write_now(line: &[u8]) -> bool {
    static STDERR: OnceLock<Option<Stderr>> = OnceLock::new();
    let stderr = STDERR.get_or_init(|| Stderr::open().ok());
    stderr.as_ref().is_some_and(|stderr| stderr.write_now(line).is_ok())
}
