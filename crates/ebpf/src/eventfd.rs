//! What wakes a poll from another thread.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::task::Wake;

use vahti_runtime::source::Interrupt;

/// An eventfd(2): readable from [`interrupt`](Interrupt::interrupt) on, until
/// it is cleared. As a waker, it lets a poll wait for a future too.
#[derive(Debug)]
pub(crate) struct EventFd {
    fd: OwnedFd,
}

impl EventFd {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(EventFd { fd })
    }

    pub(crate) fn clear(&self) {
        let mut count = 0_u64;
        // SAFETY: `count` is writable for 8 bytes. There is nothing to clear
        // most of the time, which is no error.
        unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Interrupt for EventFd {
    fn interrupt(&self) {
        let one = 1_u64;
        // SAFETY: `one` is readable for 8 bytes. It fails only if 2^64 - 2
        // interrupts are pending: then the poll is woken anyway.
        unsafe { libc::write(self.fd.as_raw_fd(), (&raw const one).cast(), 8) };
    }
}

impl Wake for EventFd {
    fn wake(self: Arc<Self>) {
        self.interrupt();
    }
}
