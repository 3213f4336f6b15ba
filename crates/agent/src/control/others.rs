//! Where the agents of this machine answer.
//!
//! Those with a socket of their own leave a link to it beside the default
//! one, so that others find them: to be told of proofs, nothing else.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{ControlError, default_path, make_folder, problem, resolve_path};

/// As many agents are looked for at most.
const MAX_AGENTS: usize = 16;

const PREFIX: &str = "agent-";

/// The sockets of all agents that can be found: the one at this path, or where
/// `vahti ledger` would look; the default one; and those with a link beside it.
pub(crate) fn all(given: Option<PathBuf>) -> Vec<PathBuf> {
    let named = resolve_path(given).into_iter().chain(default_path());
    let mut all: Vec<PathBuf> = Vec::new();
    for path in named.chain(default_path().iter().flat_map(|path| links(path))) {
        if !all.contains(&path) && all.len() < MAX_AGENTS {
            all.push(path);
        }
    }
    all
}

/// The link to an agent's socket. Removed when dropped.
pub(crate) struct Found(PathBuf);

impl Drop for Found {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::debug!(%error, "the link to the control socket stays behind");
        }
    }
}

/// Has others find the socket at `path`; `None` where they look there anyway.
///
/// # Errors
/// No link can be made.
pub(crate) fn let_be_found(path: &Path) -> Result<Option<Found>, ControlError> {
    match default_path() {
        Some(default) if default != path => link(path, &default).map(Some),
        _ => Ok(None),
    }
}

fn link(path: &Path, default: &Path) -> Result<Found, ControlError> {
    make_folder(default)?;
    for stale in links(default).into_iter().filter(|link| is_stale(link)) {
        drop(Found(stale));
    }
    let socket = std::path::absolute(path).map_err(|error| problem("find", path, error))?;
    // Agents of several pid namespaces may share the folder.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let link = default.with_file_name(format!("{PREFIX}{}-{now}", std::process::id()));
    symlink(socket, &link).map_err(|error| problem("link", &link, error))?;
    Ok(Found(link))
}

/// The links beside the default socket.
fn links(default: &Path) -> Vec<PathBuf> {
    let Some(Ok(entries)) = default.parent().map(fs::read_dir) else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let is_ours = entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes());
            (is_ours && entry.file_type().ok()?.is_symlink()).then(|| entry.path())
        })
        .collect()
}

/// Whether nobody answers there any more. An agent that answers has bound its
/// socket before it made the link.
fn is_stale(link: &Path) -> bool {
    let refused = [ErrorKind::NotFound, ErrorKind::ConnectionRefused];
    UnixStream::connect(link).is_err_and(|error| refused.contains(&error.kind()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn an_agent_elsewhere_is_found_until_it_ends_however_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let default = folder.path().join("vahti/vahti.sock");
        let elsewhere = folder.path().join("s");
        let socket = UnixListener::bind(&elsewhere).unwrap();
        let found = link(&elsewhere, &default).unwrap();
        let links_now = links(&default);
        assert_eq!(links_now.len(), 1);
        assert_eq!(fs::canonicalize(&links_now[0]).unwrap(), elsewhere);
        // It was killed, and the next one clears up.
        std::mem::forget(found);
        drop(socket);
        let other = folder.path().join("t");
        let _socket = UnixListener::bind(&other).unwrap();
        let found = link(&other, &default).unwrap();
        assert_eq!(links(&default), std::slice::from_ref(&found.0));
        drop(found);
        assert!(links(&default).is_empty());
    }
}
