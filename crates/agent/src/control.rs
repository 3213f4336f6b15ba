//! The local socket on which a running agent answers questions.
//!
//! A request is one line of at most 4 KiB; the answer is one JSON document.
//! Who may ask is a matter of file rights: the socket is 0600, and its folder,
//! where it is ours to make, 0700. Whatever stands at its path and is no socket
//! stays. A client may be slow or hostile: it has a second to ask and five to
//! read, and of 32 who has been silent for longest gives way to the next.
//! Without clients nothing runs and nothing wakes up.

mod client;
mod others;
mod peer;
mod server;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vahti_runtime::event::escape;

use crate::patience::Patience;

pub(crate) use client::{Announcements, ask};
pub(crate) use others::{Found, all as all_agents, let_be_found};
pub(crate) use peer::Peer;
pub(crate) use server::{Answer, Reply};

/// Where the socket is if nobody says otherwise: below /run for root, in the
/// user's runtime folder else; `None` where there is no such folder.
pub(crate) fn default_path() -> Option<PathBuf> {
    // SAFETY: has no preconditions.
    if unsafe { libc::geteuid() } == 0 {
        return Some("/run/vahti/vahti.sock".into());
    }
    let folder = std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty())?;
    Some(Path::new(&folder).join("vahti/vahti.sock"))
}

/// The socket's path: as given, or from VAHTI_SOCKET, or the default.
pub(crate) fn resolve_path(given: Option<PathBuf>) -> Option<PathBuf> {
    let set = std::env::var_os("VAHTI_SOCKET").filter(|path| !path.is_empty());
    given.or_else(|| set.map(PathBuf::from)).or_else(default_path)
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// Another agent has it.
    #[error(
        "another vahti runs already{}: stop it, or give this one a socket of its own with \
         --socket", pid.as_ref().map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    InUse {
        /// The other's process id, where it can be read.
        pid: Option<u32>,
    },
    /// This agent was told to stop while it waited for another to end.
    #[error("told to stop while it waited for another vahti to end")]
    Stopped,
    /// Something else has its place.
    #[error(
        "{} is {what}, which vahti does not replace: give another path with --socket",
        escape(path.as_os_str().as_encoded_bytes())
    )]
    Taken {
        /// Where.
        path: PathBuf,
        /// What it is, or is not.
        what: &'static str,
    },
    /// It can't be made.
    #[error("cannot {operation} {}: {error}", escape(path.as_os_str().as_encoded_bytes()))]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// What went wrong.
        error: io::Error,
    },
}

/// The socket of this agent. Dropping it removes it.
pub(crate) struct Control {
    path: PathBuf,
    /// Its end ends the thread that answers.
    _stop: UnixStream,
    /// Held, not read: it says that this agent is alive.
    _lock: File,
}

impl Control {
    /// Makes the socket and answers on it, on a thread of its own. A socket
    /// that a dead agent left behind is replaced; an agent that may be about
    /// to end is waited for.
    ///
    /// # Errors
    /// Another agent has it and keeps it, or it can't be made.
    pub(crate) fn start(
        path: &Path,
        answer: Arc<Answer>,
        patience: &Patience,
    ) -> Result<Self, ControlError> {
        refuse_unless_socket(path)?;
        make_folder(path)?;
        let in_use = |error: &ControlError| match error {
            ControlError::InUse { pid } => Some(*pid),
            _ => None,
        };
        let lock = patience.wait_for("the control socket", || lock(path), in_use)?;
        let lock = lock.ok_or(ControlError::Stopped)?;
        let listener = bind(path)?;
        let wake = |error| problem("make a way to stop", path, error);
        listener.set_nonblocking(true).map_err(wake)?;
        let (stop, stopped) = UnixStream::pair().map_err(wake)?;
        std::thread::Builder::new()
            .name("control".to_owned())
            .stack_size(256 << 10)
            .spawn(move || server::serve(&listener, &stopped, &*answer))
            .map_err(|error| problem("start a thread for", path, error))?;
        Ok(Control { path: path.to_owned(), _stop: stop, _lock: lock })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let removed = refuse_unless_socket(&self.path).and_then(|()| {
            fs::remove_file(&self.path).map_err(|error| problem("remove", &self.path, error))
        });
        if let Err(error) = removed {
            tracing::debug!(%error, "the control socket stays behind");
        }
    }
}

fn problem(operation: &'static str, path: &Path, error: io::Error) -> ControlError {
    ControlError::Io { operation, path: path.to_owned(), error }
}

/// A mistyped path must not cost anybody a file.
fn refuse_unless_socket(path: &Path) -> Result<(), ControlError> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => Ok(()),
        Ok(_) => Err(ControlError::Taken { path: path.to_owned(), what: "no socket" }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(problem("look at", path, error)),
    }
}

fn make_folder(path: &Path) -> Result<(), ControlError> {
    let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else {
        return Ok(());
    };
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if is_writable_by_others(folder) {
                let folder = escape(folder.as_os_str().as_encoded_bytes());
                tracing::warn!(%folder, "others may write to the control socket's folder");
            }
            Ok(())
        }
        result => result.map_err(|error| problem("create the folder", folder, error)),
    }
}

fn is_writable_by_others(folder: &Path) -> bool {
    fs::metadata(folder).is_ok_and(|folder| folder.permissions().mode() & 0o022 != 0)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// A lock, not the socket, says whether an agent is alive: the kernel frees it
/// however the agent ends, and two that start at once can't both have it.
fn lock(path: &Path) -> Result<File, ControlError> {
    let path = beside(path, ".lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(|error| problem("open", &path, error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let pid = read_id(&mut file).and_then(|id| id.trim().parse().ok());
            return Err(ControlError::InUse { pid });
        }
        Err(TryLockError::Error(error)) => return Err(problem("lock", &path, error)),
    }
    // Cargo.lock, beside a socket called Cargo, is not ours to write to.
    if read_id(&mut file).is_none() {
        return Err(ControlError::Taken { path, what: "no lock of an agent" });
    }
    file.rewind()
        .and_then(|()| file.set_len(0))
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(|error| problem("write", &path, error))?;
    Ok(file)
}

/// What a lock holds: a process id and nothing else, or nothing at all.
fn read_id(file: &mut File) -> Option<String> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().bytes().all(|b| b.is_ascii_digit()).then_some(text)
}

/// Binds in a folder that only we can enter and moves the socket to its place,
/// so that there is no moment in which others could connect, and a stale one
/// is replaced in one step.
fn bind(path: &Path) -> Result<UnixListener, ControlError> {
    let folder = beside(path, ".new");
    let inside = folder.join("s");
    let failed = |error| problem("create the socket", path, error);
    // Left behind by an agent that was killed right here.
    remove_folder(&folder, &inside)?;
    DirBuilder::new().mode(0o700).create(&folder).map_err(failed)?;
    let bound = UnixListener::bind(&inside).and_then(|listener| {
        fs::set_permissions(&inside, Permissions::from_mode(0o600))?;
        fs::rename(&inside, path)?;
        Ok(listener)
    });
    let removed = remove_folder(&folder, &inside);
    let listener = bound.map_err(failed)?;
    removed?;
    Ok(listener)
}

/// Removes what `bind` makes, and nothing that anybody else put there.
fn remove_folder(folder: &Path, inside: &Path) -> Result<(), ControlError> {
    match fs::symlink_metadata(folder) {
        Ok(there) if there.is_dir() => {}
        Ok(_) => return Err(ControlError::Taken { path: folder.to_owned(), what: "no folder" }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(problem("look at", folder, error)),
    }
    refuse_unless_socket(inside)?;
    match fs::remove_file(inside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(problem("remove", inside, error));
        }
        _ => {}
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            Err(ControlError::Taken { path: folder.to_owned(), what: "a folder with files in it" })
        }
        result => result.map_err(|error| problem("remove", folder, error)),
    }
}

#[cfg(test)]
mod tests;
