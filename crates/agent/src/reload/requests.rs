//! Who wants the configuration read now: signals, and clients of the control
//! socket, who get an answer. Asking waits for nobody.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

/// How many wait for an answer at once: a file on a disk that hangs may keep them
/// waiting for long.
const MAX_CLIENTS: usize = 64;

/// Where reloads are asked for; cheap to clone.
#[derive(Clone)]
pub(crate) struct Requests {
    asked: Arc<Mutex<Asked>>,
    bell: Arc<UnixStream>,
}

/// Where they arrive.
pub(crate) struct Inbox {
    asked: Arc<Mutex<Asked>>,
    bell: UnixStream,
}

/// All who want the same reload.
#[derive(Default)]
pub(crate) struct Asked {
    by_signal: bool,
    clients: Vec<UnixStream>,
}

impl Requests {
    /// # Errors
    /// There is no descriptor left.
    pub(crate) fn new() -> io::Result<(Self, Inbox)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        let asked: Arc<Mutex<Asked>> = Arc::default();
        let requests = Requests { asked: Arc::clone(&asked), bell: Arc::new(ours) };
        Ok((requests, Inbox { asked, bell: theirs }))
    }

    /// Wants a reload, and no answer.
    pub(crate) fn by_signal(&self) {
        self.ask(|asked| asked.by_signal = true);
    }

    /// Wants a reload; what came of it can be read from what is returned, up to
    /// its end.
    ///
    /// # Errors
    /// Too many wait already, or there is no descriptor left.
    pub(crate) fn by_client(&self) -> io::Result<UnixStream> {
        let waiting = self.asked.lock().unwrap_or_else(PoisonError::into_inner).clients.len();
        if waiting >= MAX_CLIENTS {
            return Err(io::Error::other("a reload takes long, and others wait for it already"));
        }
        let (answer, client) = UnixStream::pair()?;
        client.set_nonblocking(true)?;
        answer.set_write_timeout(Some(Duration::from_secs(1)))?;
        self.ask(|asked| asked.clients.push(answer));
        Ok(client)
    }

    fn ask(&self, how: impl FnOnce(&mut Asked)) {
        how(&mut self.asked.lock().unwrap_or_else(PoisonError::into_inner));
        // Where there is no room for it, it has been rung often enough.
        if let Err(error) = (&*self.bell).write(&[1])
            && error.kind() != io::ErrorKind::WouldBlock
        {
            tracing::debug!(%error, "nobody reloads any more");
        }
    }
}

impl Inbox {
    /// Waits until a reload is asked for, or something else has news; no longer
    /// than this, if it is given. Whether one is asked for.
    pub(super) fn wait(&self, other: Option<RawFd>, limit: Option<Duration>) -> bool {
        // Entries with a negative descriptor are passed over.
        let mut entries = [self.bell.as_raw_fd(), other.unwrap_or(-1)].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        let limit = limit.map_or(-1, |limit| i32::try_from(limit.as_millis()).unwrap_or(i32::MAX));
        // SAFETY: `entries` is writable for its length.
        let count =
            unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, limit) };
        let error = io::Error::last_os_error();
        if count < 0 && error.kind() != io::ErrorKind::Interrupted {
            tracing::warn!(%error, "reloads can't be waited for");
            std::thread::sleep(Duration::from_secs(1));
        }
        count > 0 && entries[0].revents != 0
    }

    /// All who have asked until now.
    pub(super) fn take(&self) -> Asked {
        let mut rung = [0; 64];
        // First: who asks after this rings again.
        while matches!((&self.bell).read(&mut rung), Ok(1..)) {}
        std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Asked {
    pub(crate) fn is_empty(&self) -> bool {
        !self.by_signal && self.clients.is_empty()
    }

    pub(crate) fn answer(self, answer: &Value) {
        let document = answer.to_string();
        for mut client in self.clients {
            if let Err(error) = client.write_all(document.as_bytes()) {
                tracing::debug!(%error, "who asked for a reload went away");
            }
        }
    }
}
