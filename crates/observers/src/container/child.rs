//! A child of our own that crashes, harmlessly.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// Makes a child, kills it with SIGSEGV, and waits for its end.
///
/// No core is written, no fault is logged, and the process that dies has done
/// nothing but wait.
pub(super) fn crash() -> io::Result<()> {
    let (ready, tell) = pipe()?;
    // SAFETY: between fork and its end the child calls nothing but functions
    // that are safe after a fork of a process with threads.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: as above.
        0 => unsafe { wait_to_die(tell.as_raw_fd()) },
        pid => {
            drop(tell);
            let told = read_byte(&ready);
            // SAFETY: `pid` is our child and not yet waited for, so it is nobody else.
            unsafe { libc::kill(pid, libc::SIGSEGV) };
            reap(pid)?;
            told
        }
    }
}

/// What the child does.
///
/// # Safety
/// Only in a child that was just forked.
unsafe fn wait_to_die(tell: libc::c_int) -> ! {
    let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: async-signal-safe functions with valid arguments.
    unsafe {
        // What others have open at this moment must not stay open in here: a
        // listener would keep its port.
        close_all_but(tell);
        // The standard library's handler for stack overflows would catch it.
        libc::signal(libc::SIGSEGV, libc::SIG_DFL);
        libc::setrlimit(libc::RLIMIT_CORE, &no_core);
        // A core that is piped to a program ignores the limit; this does not.
        libc::prctl(libc::PR_SET_DUMPABLE, 0);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::write(tell, b"!".as_ptr().cast(), 1);
        loop {
            libc::pause();
        }
    }
}

/// Closes every descriptor but the standard three and this one.
///
/// # Safety
/// Only in a child that was just forked.
unsafe fn close_all_but(kept: libc::c_int) {
    let close = |from: libc::c_int, to: libc::c_long| {
        // SAFETY: descriptors of a process that only waits for its end.
        let closed = unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
        if closed != 0 && from <= kept.saturating_add(1) {
            // Before Linux 5.9: one by one, as many as a process has by default.
            for fd in from..libc::c_int::try_from(to).unwrap_or(1024).min(1024) {
                // SAFETY: as above.
                unsafe { libc::close(fd) };
            }
        }
    };
    if kept > 3 {
        close(3, libc::c_long::from(kept - 1));
    }
    close(kept + 1, libc::c_long::from(libc::c_int::MAX));
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, owned by nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

fn read_byte(fd: &OwnedFd) -> io::Result<()> {
    let mut byte = 0_u8;
    loop {
        // SAFETY: `byte` is writable for one byte.
        match unsafe { libc::read(fd.as_raw_fd(), (&raw mut byte).cast(), 1) } {
            1 => return Ok(()),
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            _ => retry_if_interrupted()?,
        }
    }
}

fn reap(pid: libc::pid_t) -> io::Result<()> {
    // SAFETY: the status is not asked for.
    while unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) } < 0 {
        retry_if_interrupted()?;
    }
    Ok(())
}

fn retry_if_interrupted() -> io::Result<()> {
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::Interrupted {
        return Ok(());
    }
    Err(error)
}
