//! Where the control socket is, if a socket can be there.

use std::path::PathBuf;

use vahti_runtime::event::escape;

use crate::control;
use crate::output::Failed;

/// The longest path that an agent's socket can have, in bytes: an address
/// holds 108, the last of them a zero (unix(7)), and the socket is made six
/// further down, in `PATH.new/s`, before it is moved to its place.
const MAX_LEN: usize = 108 - 1 - ".new/s".len();

/// What to say where there is no folder for a socket.
pub(crate) const NOT_KNOWN: &str = "where the agent's socket is isn't known: give --socket PATH";

/// The socket's path, for who can do nothing without one.
///
/// # Errors
/// There is no folder for one, or no socket can have a path that long.
pub(crate) fn known(given: Option<PathBuf>) -> Result<PathBuf, Failed> {
    path(given)?.ok_or_else(|| Failed::failure(NOT_KNOWN))
}

/// The socket's path: as given, or from VAHTI_SOCKET, or the default; `None`
/// where there is no folder for one.
///
/// # Errors
/// No socket can have a path that long.
pub(crate) fn path(given: Option<PathBuf>) -> Result<Option<PathBuf>, Failed> {
    let path = control::resolve_path(given);
    let too_long = path.as_ref().filter(|path| path.as_os_str().len() > MAX_LEN);
    match too_long {
        None => Ok(path),
        Some(path) => Err(Failed::usage(format!(
            "the socket's path is {} bytes long, but must be at most {MAX_LEN}: {}: give a shorter \
             one with --socket",
            path.as_os_str().len(),
            escape(path.as_os_str().as_encoded_bytes())
        ))),
    }
}
