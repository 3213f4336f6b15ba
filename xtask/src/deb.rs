//! `cargo xtask deb`: a Debian package of the static binary.
//!
//! Needs dpkg-deb, gzip and md5sum, which every Debian has, and nothing of
//! debhelper: what its scripts would do stands in `deploy/debian`. The same
//! binary, commit and maintainer give the same package, byte by byte.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::command::{commit_date, is_there, output, root, run};
use crate::dist::{self, documents, papers};
use crate::stage::{copy, files, fresh, put, sums};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const STAGE: &str = "target/debian/stage";
const PROGRAM: &str = "usr/bin/vahti";
const DOCUMENTS: &str = "usr/share/doc/vahti";

/// What is copied as it is: from, to, mode. Documents come to these.
const FILES: &[(&str, &str, u32)] = &[
    ("deploy/systemd/vahti.service", "usr/lib/systemd/system/vahti.service", 0o644),
    ("deploy/debian/copyright", "usr/share/doc/vahti/copyright", 0o644),
    ("deploy/debian/lintian-overrides", "usr/share/lintian/overrides/vahti", 0o644),
    ("deploy/debian/postinst", "DEBIAN/postinst", 0o755),
    ("deploy/debian/prerm", "DEBIAN/prerm", 0o755),
    ("deploy/debian/postrm", "DEBIAN/postrm", 0o755),
];

/// What the program itself prints: its arguments, where that goes.
const PRINTED: &[(&[&str], &str)] = &[
    (&["config", "example"], "etc/vahti/vahti.yaml"),
    (&["completions", "bash"], "usr/share/bash-completion/completions/vahti"),
    (&["completions", "zsh"], "usr/share/zsh/vendor-completions/_vahti"),
    (&["completions", "fish"], "usr/share/fish/vendor_completions.d/vahti.fish"),
];

/// Builds the binary and packs it.
pub(crate) fn build() -> Result<(), String> {
    std::env::set_current_dir(root()?).map_err(|e| e.to_string())?;
    println!("{}", pack(&dist::binary::build()?)?.display());
    Ok(())
}

/// Packs this binary, from the root of the repository.
pub(crate) fn pack(binary: &Path) -> Result<PathBuf, String> {
    let architecture = architecture()?;
    for (tool, package) in [("dpkg-deb", "dpkg"), ("gzip", "gzip"), ("md5sum", "coreutils")] {
        is_there(tool, package)?;
    }
    let stage = Path::new(STAGE);
    fresh(stage)?;
    let date = commit_date().unwrap_or_else(|| "0".to_owned());
    let maintainer = maintainer();
    lay(binary, stage)?;
    let changes = stage.join("usr/share/doc/vahti/changelog");
    put(&changes, changelog(&maintainer, &date)?.as_bytes(), 0o644)?;
    let packed = gzipped(&changes.to_string_lossy())?;
    put(&changes.with_extension("gz"), &packed, 0o644)?;
    fs::remove_file(&changes).map_err(|e| e.to_string())?;
    put(&stage.join("DEBIAN/conffiles"), b"/etc/vahti/vahti.yaml\n", 0o644)?;
    let md5 = sums("md5sum", stage, &installed(stage)?)?;
    put(&stage.join("DEBIAN/md5sums"), md5.as_bytes(), 0o644)?;
    let control = control(architecture, &maintainer, size(stage)?);
    put(&stage.join("DEBIAN/control"), control.as_bytes(), 0o644)?;
    let package = format!("target/debian/vahti_{VERSION}_{architecture}.deb");
    run(Command::new("dpkg-deb")
        .args(["--root-owner-group", "-Zxz", "--build", STAGE, &package])
        .env("SOURCE_DATE_EPOCH", &date)
        .stdout(Stdio::null()))?;
    Ok(PathBuf::from(package))
}

/// All that it installs, but for its changelog.
fn lay(binary: &Path, stage: &Path) -> Result<(), String> {
    copy(binary, &stage.join(PROGRAM), 0o755)?;
    for (from, to, mode) in FILES {
        copy(Path::new(from), &stage.join(to), *mode)?;
    }
    let folder = stage.join(DOCUMENTS);
    for (from, to) in documents()? {
        // The unit has another place.
        if !to.starts_with("deploy/systemd") {
            copy(&from, &folder.join(to), 0o644)?;
        }
    }
    papers(&folder, binary)?;
    for (arguments, to) in PRINTED {
        put(&stage.join(to), &output(Command::new(binary).args(*arguments))?, 0o644)?;
    }
    put(&stage.join("usr/share/man/man8/vahti.8.gz"), &gzipped("deploy/debian/vahti.8")?, 0o644)
}

/// Debian's name of what we build for.
fn architecture() -> Result<&'static str, String> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => Err(format!("there are no packages for {other}")),
    }
}

/// It depends on nothing: the binary is static.
fn control(architecture: &str, maintainer: &str, size: u64) -> String {
    let size_kib = size.div_ceil(1024);
    format!(
        "Package: vahti\n\
         Version: {VERSION}\n\
         Architecture: {architecture}\n\
         Maintainer: {maintainer}\n\
         Installed-Size: {size_kib}\n\
         Recommends: ca-certificates\n\
         Section: admin\n\
         Priority: optional\n\
         Description: node agent that sees what fails, why, and with what proof\n \
         Vahti sees failures in the kernel at the moment when they happen: connections\n \
         that are refused, reset, unreachable or time out, OOM kills, crashes,\n \
         containers that end as they should not. Each becomes one event with its owner,\n \
         its cause where that is known, and the kernel's own error as the proof. A\n \
         ledger adds up from the kernel's probe to the output.\n \
         .\n \
         Needs Linux 5.8 or later with BTF.\n"
    )
}

/// Whoever builds the package answers for it: as Debian's tools ask, else as
/// git knows them, else this user on this machine.
fn maintainer() -> String {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let git = |key: &str| {
        let told = output(Command::new("git").args(["config", key])).ok()?;
        let told = String::from_utf8_lossy(&told).trim().to_owned();
        (!told.is_empty()).then_some(told)
    };
    let name = variable("DEBFULLNAME").or_else(|| git("user.name"));
    let mail = variable("DEBEMAIL").or_else(|| git("user.email"));
    let host = || fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let user = || variable("USER").unwrap_or_else(|| "root".to_owned());
    let name = name.unwrap_or_else(user);
    let mail = mail.unwrap_or_else(|| format!("{}@{}", user(), host().trim()));
    format!("{name} <{mail}>")
}

/// In Debian's form; what changed stands in CHANGELOG.md.
fn changelog(maintainer: &str, date: &str) -> Result<String, String> {
    let date = output(Command::new("date").args(["-R", "-u", "-d", &format!("@{date}")]))?;
    let date = String::from_utf8_lossy(&date).trim().to_owned();
    Ok(format!(
        "vahti ({VERSION}) unstable; urgency=medium\n\n  \
         * What changed stands in CHANGELOG.md of the sources.\n\n \
         -- {maintainer}  {date}\n"
    ))
}

fn gzipped(path: &str) -> Result<Vec<u8>, String> {
    output(Command::new("gzip").args(["-9nc", path]))
}

/// The package's files but for its scripts, by path.
fn installed(stage: &Path) -> Result<Vec<String>, String> {
    let mut files = files(stage)?;
    files.retain(|file| !file.starts_with("DEBIAN/"));
    Ok(files)
}

fn size(stage: &Path) -> Result<u64, String> {
    let sizes = installed(stage)?.into_iter().map(|file| {
        let path = stage.join(file);
        fs::metadata(&path).map(|m| m.len()).map_err(|e| format!("{}: {e}", path.display()))
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scripts that are cut short or misspelt would only be found by whoever
    /// installs them.
    #[test]
    fn the_maintainer_scripts_are_good_shell() {
        for script in ["postinst", "prerm", "postrm"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/debian").join(script);
            assert!(
                Command::new("sh").arg("-n").arg(&path).status().unwrap().success(),
                "{script}"
            );
        }
    }

    #[test]
    fn the_unit_runs_what_the_package_installs() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/vahti.service");
        let unit = fs::read_to_string(path).unwrap();
        let value = |key: &str| {
            let mut values =
                unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            values.next().map(str::to_owned)
        };
        let start = value("ExecStart").unwrap();
        let (program, rest) = start.split_once(' ').unwrap();
        assert_eq!(program, format!("/{PROGRAM}"), "{start}");
        let config = rest.rsplit(' ').next().unwrap();
        assert!(PRINTED.iter().any(|(_, to)| format!("/{to}") == config), "{start}");
        assert_eq!(value("Type").as_deref(), Some("notify"));
        assert_eq!(value("CapabilityBoundingSet"), value("AmbientCapabilities"));
        for line in unit.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            assert!(line.starts_with('[') || line.contains('='), "{line}");
        }
    }
}
