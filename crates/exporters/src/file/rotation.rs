//! `path` → `path.1` → … → `path.keep`, and no further.
//!
//! Each step is one rename, from the oldest to the newest. A crash in between
//! leaves a gap in the numbers, which the next rotation fills; nothing is
//! overwritten but the oldest.

use std::ffi::OsString;
use std::fs::{remove_file, rename};
use std::io;
use std::path::{Path, PathBuf};

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}

fn exists(path: &Path) -> bool {
    // Not `exists()`, which follows symbolic links.
    path.symlink_metadata().is_ok()
}

/// Moves the file at `path` out of the way, keeping `keep` of its kind.
pub(super) fn rotate(path: &Path, keep: u32) -> io::Result<()> {
    if keep == 0 {
        return remove_file(path);
    }
    // The first gap takes what moves up; without one, the oldest gives way.
    let last = (1..keep).find(|number| !exists(&numbered(path, *number))).unwrap_or(keep);
    for number in (1..last).rev() {
        rename(numbered(path, number), numbered(path, number + 1))?;
    }
    rename(path, numbered(path, 1))
}

/// Removes what an earlier, larger `keep` left behind.
pub(super) fn remove_beyond(path: &Path, keep: u32) -> io::Result<()> {
    for number in keep.saturating_add(1).. {
        match remove_file(numbered(path, number)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => break,
            result => result?,
        }
    }
    Ok(())
}
