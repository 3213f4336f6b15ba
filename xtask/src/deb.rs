//! `cargo xtask deb`: a Debian package of the release binary.
//!
//! Needs dpkg-deb, gzip and md5sum, which every Debian has, and nothing of
//! debhelper: what its scripts would do stands in `deploy/debian`. The same
//! binary, commit and maintainer give the same package, byte by byte.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const BINARY: &str = "target/release/vahti";
const STAGE: &str = "target/debian/stage";

/// What is copied as it is: from, to, mode.
const FILES: &[(&str, &str, u32)] = &[
    (BINARY, "usr/bin/vahti", 0o755),
    ("deploy/systemd/vahti.service", "usr/lib/systemd/system/vahti.service", 0o644),
    ("deploy/debian/copyright", "usr/share/doc/vahti/copyright", 0o644),
    ("README.md", "usr/share/doc/vahti/README.md", 0o644),
    ("docs/install.md", "usr/share/doc/vahti/docs/install.md", 0o644),
    ("docs/config.md", "usr/share/doc/vahti/docs/config.md", 0o644),
    ("docs/reload.md", "usr/share/doc/vahti/docs/reload.md", 0o644),
    ("docs/events.md", "usr/share/doc/vahti/docs/events.md", 0o644),
    ("docs/ledger.md", "usr/share/doc/vahti/docs/ledger.md", 0o644),
    ("docs/otlp.md", "usr/share/doc/vahti/docs/otlp.md", 0o644),
    ("docs/polku.md", "usr/share/doc/vahti/docs/polku.md", 0o644),
    ("docs/metrics.md", "usr/share/doc/vahti/docs/metrics.md", 0o644),
    ("docs/health.md", "usr/share/doc/vahti/docs/health.md", 0o644),
    (
        "deploy/prometheus/vahti.rules.yml",
        "usr/share/doc/vahti/deploy/prometheus/vahti.rules.yml",
        0o644,
    ),
    ("deploy/grafana/vahti.json", "usr/share/doc/vahti/deploy/grafana/vahti.json", 0o644),
    ("docs/store.md", "usr/share/doc/vahti/docs/store.md", 0o644),
    ("docs/security.md", "usr/share/doc/vahti/docs/security.md", 0o644),
    ("docs/troubleshoot.md", "usr/share/doc/vahti/docs/troubleshoot.md", 0o644),
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

/// Builds the release binary and packs it.
pub(crate) fn build() -> Result<(), String> {
    let architecture = architecture()?;
    for tool in ["dpkg-deb", "gzip", "md5sum"] {
        is_there(tool)?;
    }
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    run(Command::new(cargo).args(["build", "--release", "-p", "vahti-agent"]))?;
    let stage = Path::new(STAGE);
    if stage.exists() {
        fs::remove_dir_all(stage).map_err(|e| format!("{STAGE}: {e}"))?;
    }
    for (from, to, mode) in FILES {
        let bytes = fs::read(from).map_err(|e| format!("{from}: {e}"))?;
        put(&stage.join(to), &bytes, *mode)?;
    }
    for (arguments, to) in PRINTED {
        put(&stage.join(to), &output(Command::new(BINARY).args(*arguments))?, 0o644)?;
    }
    let date = commit_date();
    let maintainer = maintainer();
    put(&stage.join("usr/share/man/man8/vahti.8.gz"), &gzipped("deploy/debian/vahti.8")?, 0o644)?;
    let changes = stage.join("usr/share/doc/vahti/changelog");
    put(&changes, changelog(&maintainer, &date)?.as_bytes(), 0o644)?;
    let packed = gzipped(&changes.to_string_lossy())?;
    put(&changes.with_extension("gz"), &packed, 0o644)?;
    fs::remove_file(&changes).map_err(|e| e.to_string())?;
    put(&stage.join("DEBIAN/conffiles"), b"/etc/vahti/vahti.yaml\n", 0o644)?;
    put(&stage.join("DEBIAN/md5sums"), sums(stage)?.as_bytes(), 0o644)?;
    let control = control(architecture, &maintainer, stage)?;
    put(&stage.join("DEBIAN/control"), control.as_bytes(), 0o644)?;
    let package = format!("target/debian/vahti_{VERSION}_{architecture}.deb");
    run(Command::new("dpkg-deb")
        .args(["--root-owner-group", "-Zxz", "--build", STAGE, &package])
        .env("SOURCE_DATE_EPOCH", &date)
        .stdout(Stdio::null()))?;
    println!("{package}");
    Ok(())
}

/// Debian's name of what we build for.
fn architecture() -> Result<&'static str, String> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => Err(format!("there are no packages for {other}")),
    }
}

fn is_there(tool: &str) -> Result<(), String> {
    let found = Command::new(tool).arg("--version").stdout(Stdio::null()).status();
    match found {
        Ok(_) => Ok(()),
        Err(error) => Err(format!(
            "{tool} is needed to make a Debian package: {error}; on Debian it is in the packages \
             dpkg, gzip and coreutils"
        )),
    }
}

fn control(architecture: &str, maintainer: &str, stage: &Path) -> Result<String, String> {
    let binary = fs::read(BINARY).map_err(|e| format!("{BINARY}: {e}"))?;
    let depends = depends(&binary)?;
    let size_kib = size(stage)?.div_ceil(1024);
    Ok(format!(
        "Package: vahti\n\
         Version: {VERSION}\n\
         Architecture: {architecture}\n\
         Maintainer: {maintainer}\n\
         Installed-Size: {size_kib}\n\
         Depends: {depends}\n\
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
    ))
}

/// The libraries that the binary was linked with, by what its symbols ask for.
/// Computed here, as dpkg-shlibdeps is not on every Debian.
fn depends(binary: &[u8]) -> Result<String, String> {
    let newest = newest_glibc(binary)
        .ok_or_else(|| format!("{BINARY} names no version of the C library"))?;
    let mut depends = format!("libc6 (>= {}.{})", newest.0, newest.1);
    if contains(binary, b"libgcc_s.so.1\0") {
        depends.push_str(", libgcc-s1 (>= 4.2)");
    }
    Ok(depends)
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

/// The newest `GLIBC_2.n` that stands in the table of names.
fn newest_glibc(binary: &[u8]) -> Option<(u32, u32)> {
    const MARK: &[u8] = b"\0GLIBC_";
    let marks = binary.windows(MARK.len()).enumerate().filter(|(_, window)| *window == MARK);
    marks
        .filter_map(|(at, _)| {
            let rest = &binary[at + MARK.len()..];
            let version = rest.split(|byte| *byte == 0).next()?;
            let (major, minor) = std::str::from_utf8(version).ok()?.split_once('.')?;
            let minor = minor.split('.').next()?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        })
        .max()
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

/// When the commit was made: what is built from it has the same dates.
fn commit_date() -> String {
    let told = output(Command::new("git").args(["log", "-1", "--format=%ct"])).unwrap_or_default();
    let told = String::from_utf8_lossy(&told).trim().to_owned();
    if told.is_empty() { "0".to_owned() } else { told }
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

fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    if let Some(folder) = path.parent() {
        make_folders(folder).map_err(failed)?;
    }
    fs::write(path, bytes).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)
}

/// Whatever the umask: folders of a package are for all to read.
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

/// The package's files but for its scripts, by path.
fn files(stage: &Path) -> Result<Vec<String>, String> {
    let found = output(
        Command::new("find")
            .args([".", "-path", "./DEBIAN", "-prune", "-o", "-type", "f", "-printf", "%P\\n"])
            .current_dir(stage),
    )?;
    let mut files: Vec<String> =
        String::from_utf8_lossy(&found).lines().map(str::to_owned).collect();
    files.sort();
    Ok(files)
}

fn sums(stage: &Path) -> Result<String, String> {
    let sums = output(Command::new("md5sum").args(files(stage)?).current_dir(stage))?;
    Ok(String::from_utf8_lossy(&sums).into_owned())
}

fn size(stage: &Path) -> Result<u64, String> {
    let sizes = files(stage)?.into_iter().map(|file| {
        let path = stage.join(file);
        fs::metadata(&path).map(|m| m.len()).map_err(|e| format!("{}: {e}", path.display()))
    });
    sizes.sum()
}

fn run(command: &mut Command) -> Result<(), String> {
    let status = command.status().map_err(|e| format!("{command:?}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} ended with {status}")) }
}

fn output(command: &mut Command) -> Result<Vec<u8>, String> {
    let output =
        command.stderr(Stdio::inherit()).output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(format!("{command:?} ended with {}", output.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_of_the_c_library_is_found_by_number() {
        let names = b"x\0GLIBC_2.9\0GLIBC_2.34\0GLIBC_2.2.5\0not GLIBC_2.99\0GLIBC_PRIVATE\0";
        assert_eq!(newest_glibc(names), Some((2, 34)));
        assert_eq!(depends(names).unwrap(), "libc6 (>= 2.34)");
        assert!(depends(b"static").is_err());
    }

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
        assert!(FILES.iter().any(|(_, to, _)| format!("/{to}") == program), "{start}");
        let config = rest.rsplit(' ').next().unwrap();
        assert!(PRINTED.iter().any(|(_, to)| format!("/{to}") == config), "{start}");
        assert_eq!(value("Type").as_deref(), Some("notify"));
        assert_eq!(value("CapabilityBoundingSet"), value("AmbientCapabilities"));
        for line in unit.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            assert!(line.starts_with('[') || line.contains('='), "{line}");
        }
    }
}
