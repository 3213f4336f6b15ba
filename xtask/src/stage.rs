//! Folders of files that become packages and archives, whatever the umask.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::command::output;

/// A folder with nothing in it.
pub(crate) fn fresh(folder: &Path) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("{}: {e}", folder.display());
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(failed)?;
    }
    make_folders(folder).map_err(failed)
}

/// A file, with the folders above it.
pub(crate) fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    if let Some(folder) = path.parent() {
        make_folders(folder).map_err(failed)?;
    }
    fs::write(path, bytes).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)
}

/// A copy.
pub(crate) fn copy(from: &Path, to: &Path, mode: u32) -> Result<(), String> {
    put(to, &read(from)?, mode)
}

/// All of a file; an error names it.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// All of a text file; an error names it.
pub(crate) fn read_text(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// Folders of a package are for all to read.
fn make_folders(folder: &Path) -> std::io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder.parent() {
        make_folders(above)?;
    }
    fs::create_dir(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
}

/// All files below, by path.
pub(crate) fn files(folder: &Path) -> Result<Vec<String>, String> {
    let found = output(
        Command::new("find").args([".", "-type", "f", "-printf", "%P\\n"]).current_dir(folder),
    )?;
    let mut files: Vec<String> =
        String::from_utf8_lossy(&found).lines().map(str::to_owned).collect();
    files.sort();
    Ok(files)
}

/// What `md5sum` or `sha256sum` prints about these files, with paths from `folder`.
pub(crate) fn sums(program: &str, folder: &Path, files: &[String]) -> Result<String, String> {
    let sums = output(Command::new(program).args(files).current_dir(folder))?;
    Ok(String::from_utf8_lossy(&sums).into_owned())
}

/// The SHA-256 of one file, in hexadecimal.
pub(crate) fn sha256(path: &Path) -> Result<String, String> {
    let told = output(Command::new("sha256sum").arg(path))?;
    let told = String::from_utf8_lossy(&told);
    // A backslash stands before it where the path holds one.
    let sum = told.trim_start_matches('\\').split(' ').next().unwrap_or_default();
    Ok(sum.to_owned())
}
