//! Other programs, and what they say.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Runs it; its output is the user's.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let status = command.status().map_err(|e| format!("{command:?}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} ended with {status}")) }
}

/// What it prints.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>, String> {
    let output =
        command.stderr(Stdio::inherit()).output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(format!("{command:?} ended with {}", output.status))
}

/// What it prints, as text without the last line's end.
pub(crate) fn text(command: &mut Command) -> Result<String, String> {
    Ok(String::from_utf8_lossy(&output(command)?).trim_end().to_owned())
}

/// The cargo that runs this.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
}

/// The rustc that this cargo calls.
pub(crate) fn rustc() -> Command {
    Command::new(std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into()))
}

/// An error that names the Debian package, where this program is not there.
pub(crate) fn is_there(program: &str, package: &str) -> Result<(), String> {
    match Command::new(program).arg("--version").stdout(Stdio::null()).status() {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(format!("{program} is needed: {error}; on Debian it is in the package {package}"))
        }
    }
}

/// When the commit was made, in seconds: what is built from it has the same
/// dates. `SOURCE_DATE_EPOCH` goes before, as reproducible-builds.org has it;
/// sources without a history have no date.
pub(crate) fn commit_date() -> Option<String> {
    let set = std::env::var("SOURCE_DATE_EPOCH").ok();
    let date = set.filter(|date| !date.is_empty()).or_else(|| {
        let git = Command::new("git")
            .args(["log", "-1", "--format=%ct"])
            .stderr(Stdio::null())
            .output()
            .ok()?;
        Some(String::from_utf8_lossy(&git.stdout).trim().to_owned())
    })?;
    date.parse::<u64>().is_ok().then_some(date)
}

/// The repository's folder, as the system knows it.
pub(crate) fn root() -> Result<PathBuf, String> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.canonicalize().map_err(|e| format!("{}: {e}", root.display()))
}
