//! Where the store is.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vahti_exporters::store::ReadError;
use vahti_runtime::event::escape;

use crate::output::Failed;

/// The folder that root's agent has, where the rights allow it.
const SYSTEM: &str = "/var/lib/vahti";

/// Where the store is written if nobody says otherwise: below /var/lib, or in
/// the user's own state folder without the right to that; `None` where there
/// is neither.
pub(crate) fn default_path() -> Option<PathBuf> {
    if may_write(Path::new(SYSTEM)) {
        return Some(SYSTEM.into());
    }
    user_path()
}

fn user_path() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let state = set("XDG_STATE_HOME").map(PathBuf::from).and_then(absolute);
    let home = || set("HOME").map(|home| Path::new(&home).join(".local/state"));
    Some(state.or_else(home)?.join("vahti"))
}

/// Whether the folder, or the nearest that exists above it, may be written to.
pub(crate) fn may_write(path: &Path) -> bool {
    let Ok(path) = std::path::absolute(path) else { return false };
    let there = path.ancestors().find(|path| path.exists());
    there.is_some_and(|path| {
        use std::os::unix::ffi::OsStrExt;
        let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
        // SAFETY: `path` is a string that ends with NUL.
        unsafe { libc::access(path.as_ptr(), libc::W_OK) == 0 }
    })
}

/// The store that is read: as given, from VAHTI_STORE, or the one there is.
///
/// # Errors
/// There is no place where it could be.
pub(crate) fn to_read(given: Option<PathBuf>) -> Result<PathBuf, Failed> {
    let set = || std::env::var_os("VAHTI_STORE").filter(|path| !path.is_empty());
    if let Some(path) = given.or_else(|| set().map(PathBuf::from)) {
        return Ok(path);
    }
    let is_there = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|meta| meta.ino() != 0);
    let places = [Some(PathBuf::from(SYSTEM)), user_path()];
    let found = places.into_iter().flatten().find(is_there);
    found.or_else(default_path).ok_or_else(|| {
        Failed::usage("where the store is isn't known: give --store PATH, or set VAHTI_STORE")
    })
}

/// Whether there may be a store where there is none yet: an agent makes the file
/// first and what is in it afterwards.
pub(crate) fn is_yet_to_be(error: &ReadError) -> bool {
    matches!(error, ReadError::Missing(_) | ReadError::Empty(_))
}

/// A folder's path from the root, as an agent tells it to others.
pub(crate) fn shown(folder: &Path) -> String {
    let path = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let path = path.canonicalize().unwrap_or(path);
    escape(path.as_os_str().as_encoded_bytes()).into_owned()
}

/// What to say where a store can't be read, and what to do.
pub(crate) fn why_unreadable(store: &Path, error: &ReadError) -> Failed {
    let shown = escape(store.as_os_str().as_encoded_bytes());
    if store == Path::new("none") {
        return Failed::usage("there is no store to read: none is set with --store or VAHTI_STORE");
    }
    if store.is_file() {
        return Failed::usage(format!("{shown} is a file; a store is a folder: name that"));
    }
    let text = error.to_string();
    // SAFETY: has no preconditions.
    let is_root = unsafe { libc::geteuid() } == 0;
    match error {
        ReadError::Missing(_) => Failed::failure(format!(
            "there is no store in {shown}: no `vahti run` has kept events there; name another \
             folder with --store or VAHTI_STORE"
        )),
        ReadError::Sqlite { .. }
            if !is_root
                && (text.contains("ermission denied") || text.contains("unable to open")) =>
        {
            Failed::no_permission(format!(
                "the store {shown} is for its owner alone: ask as root, or as the user whose \
                 agent writes it"
            ))
        }
        ReadError::Sqlite { .. } if text.contains("unable to open") => Failed::failure(format!(
            "{text}: SQLite has to write beside it, also to read; copy events.db* elsewhere and \
             name that folder with --store"
        )),
        // An agent that was killed at once leaves an empty one.
        ReadError::Empty(_) => Failed::failure(format!("the store {shown} has no event yet")),
        ReadError::Sqlite { .. } | ReadError::Foreign(_) => {
            Failed::failure(format!("{text}; `vahti doctor` tells what to do"))
        }
        _ => Failed::failure(text),
    }
}
