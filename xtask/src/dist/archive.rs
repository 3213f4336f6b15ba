//! The archive: one folder with the program, its papers and pages, and what a
//! machine or a cluster is told about it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{documents, name, papers};
use crate::command::{commit_date, output, run};
use crate::stage::{copy, fresh, put};

/// What the program itself prints: its arguments, where that goes.
pub(super) const PRINTED: &[(&[&str], &str)] = &[
    (&["config", "example"], "vahti.example.yaml"),
    (&["completions", "bash"], "completions/vahti.bash"),
    (&["completions", "zsh"], "completions/_vahti"),
    (&["completions", "fish"], "completions/vahti.fish"),
];

/// Lays the folder below `target/dist-stage` and packs it into `into`.
pub(super) fn pack(binary: &Path, into: &Path) -> Result<PathBuf, String> {
    let name = name()?;
    let above = Path::new("target/dist-stage");
    let folder = above.join(&name);
    fresh(above)?;
    lay(binary, &folder)?;
    let archive = into.join(format!("{name}.tar.gz"));
    compress(above, &name, &archive)?;
    Ok(archive)
}

/// All that is in it.
pub(super) fn lay(binary: &Path, folder: &Path) -> Result<(), String> {
    copy(binary, &folder.join("vahti"), 0o755)?;
    papers(folder, binary)?;
    for (from, to) in documents()? {
        copy(&from, &folder.join(to), 0o644)?;
    }
    copy(Path::new("deploy/debian/vahti.8"), &folder.join("man/vahti.8"), 0o644)?;
    for (arguments, to) in PRINTED {
        let printed = output(Command::new(folder.join("vahti")).args(*arguments))?;
        put(&folder.join(to), &printed, 0o644)?;
    }
    Ok(())
}

/// Sorted, owned by root, all of one date, and gzip's header without a name
/// and a time: nothing that differs from one day or machine to the next.
pub(super) fn compress(above: &Path, name: &str, archive: &Path) -> Result<(), String> {
    let date = commit_date().unwrap_or_else(|| "0".to_owned());
    let mut tar = Command::new("tar")
        .args(["--create", "--format=ustar", "--sort=name", "--owner=0", "--group=0"])
        .args(["--numeric-owner", &format!("--mtime=@{date}"), "--file=-", "--directory"])
        .arg(above)
        .arg(name)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("tar could not be started: {e}"))?;
    let from = tar.stdout.take().ok_or("tar has no output")?;
    let to = File::create(archive).map_err(|e| format!("{}: {e}", archive.display()))?;
    let packed = run(Command::new("gzip").arg("-9n").stdin(from).stdout(to));
    let status = tar.wait().map_err(|e| format!("tar: {e}"))?;
    if !status.success() {
        return Err(format!("tar ended with {status}"));
    }
    packed
}
