//! The static binary: one file that needs no library, and in which no path of
//! the machine stands that it was built on.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{cargo, output, root, run, text};
use crate::stage::read;

/// What we build for: this machine's architecture. It is named to cargo, so that
/// our flags are not those of build scripts.
pub(crate) fn target() -> Result<&'static str, String> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("x86_64-unknown-linux-gnu"),
        "aarch64" => Ok("aarch64-unknown-linux-gnu"),
        other => Err(format!("there is no static binary for {other}")),
    }
}

/// Where it lies, from the root of the repository.
pub(crate) fn path() -> Result<PathBuf, String> {
    Ok(PathBuf::from(format!("target/{}/release/vahti", target()?)))
}

/// Builds it.
pub(crate) fn build() -> Result<PathBuf, String> {
    let target = target()?;
    is_possible()?;
    let (root, home) = (root()?, cargo_home()?);
    let maps = [(root.as_path(), "/vahti"), (home.as_path(), "/cargo")];
    let mut build = cargo();
    build
        .args(["build", "--release", "--locked", "--package", "vahti-agent", "--target", target])
        .args(["--target-dir", "target"])
        .current_dir(&root)
        // In place of whatever RUSTFLAGS says: what is released depends on no habit.
        .env_remove("RUSTFLAGS")
        // Nothing in it has a date; build scripts that look at this would run
        // anew for each commit.
        .env_remove("SOURCE_DATE_EPOCH")
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags(&maps))
        .env(format!("CFLAGS_{}", target.replace('-', "_")), c_flags(&maps));
    run(&mut build)?;
    path()
}

/// Says what to install rather than have the linker fail.
pub(crate) fn is_possible() -> Result<(), String> {
    let library = static_library()?;
    if library.is_file() {
        return Ok(());
    }
    Err("there is no static C library to link with; on Debian it is in the package libc6-dev"
        .to_owned())
}

/// The C library's archive, as the compiler finds it; its bare name where it is
/// not there.
fn static_library() -> Result<PathBuf, String> {
    let found = text(Command::new("cc").arg("-print-file-name=libc.a"));
    found.map(PathBuf::from).map_err(|error| {
        format!("the C compiler that compiles SQLite and ring is needed: {error}; on Debian it is in the package gcc")
    })
}

fn cargo_home() -> Result<PathBuf, String> {
    let set = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = set.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    home.ok_or_else(|| "neither CARGO_HOME nor HOME is set".to_owned())
}

/// Cargo separates flags with this, so that paths may hold spaces.
const SEPARATOR: &str = "\x1f";

fn rust_flags(maps: &[(&Path, &str)]) -> String {
    let map = |(from, to): &(&Path, &str)| format!("--remap-path-prefix={}={to}", from.display());
    let flags =
        std::iter::once("-Ctarget-feature=+crt-static".to_owned()).chain(maps.iter().map(map));
    flags.collect::<Vec<_>>().join(SEPARATOR)
}

fn c_flags(maps: &[(&Path, &str)]) -> String {
    let flags = maps.iter().map(|(from, to)| format!("-ffile-prefix-map={}={to}", from.display()));
    flags.collect::<Vec<_>>().join(" ")
}

/// That it needs no other file to run, and names no folder of this machine.
pub(crate) fn check(binary: &Path) -> Result<(), String> {
    let headers = output(Command::new("readelf").args(["-lWd"]).arg(binary))?;
    let headers = String::from_utf8_lossy(&headers);
    for sign in ["INTERP", "(NEEDED)"] {
        if headers.contains(sign) {
            return Err(format!("{} is not static: {sign} in\n{headers}", binary.display()));
        }
    }
    let bytes = read(binary)?;
    for folder in [root()?, cargo_home()?] {
        if let Some(found) = mentioned(&bytes, &folder) {
            return Err(format!("{} tells where it was built: {found}", binary.display()));
        }
    }
    Ok(())
}

/// The text around a folder's path, where one stands in these bytes.
fn mentioned(bytes: &[u8], folder: &Path) -> Option<String> {
    let path = format!("{}/", folder.display());
    let at = bytes.windows(path.len()).position(|window| window == path.as_bytes())?;
    let rest = &bytes[at..bytes.len().min(at + 120)];
    let end = rest.iter().position(|byte| !(0x20..0x7f).contains(byte)).unwrap_or(rest.len());
    Some(String::from_utf8_lossy(&rest[..end]).into_owned())
}

/// The crates whose sources the binary names, where it tells of a panic: proof
/// from the binary itself of what it was made of.
pub(crate) fn crates_named(bytes: &[u8]) -> Vec<String> {
    const MARK: &[u8] = b"/cargo/registry/src/";
    let marks = bytes.windows(MARK.len()).enumerate().filter(|(_, window)| *window == MARK);
    let mut names: Vec<String> = marks
        .filter_map(|(at, _)| {
            let rest = &bytes[at + MARK.len()..];
            // The registry's folder, then the crate's.
            let name = rest.split(|byte| *byte == b'/').nth(1)?;
            String::from_utf8(name.to_vec()).ok()
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_the_machine_is_found_in_a_binary() {
        let bytes = b"\0\x01at /build/me/src/main.rs\0";
        assert_eq!(mentioned(bytes, Path::new("/build/me")).unwrap(), "/build/me/src/main.rs");
        assert_eq!(mentioned(bytes, Path::new("/build/m")), None);
    }

    #[test]
    fn crates_are_named_by_the_folders_of_their_sources() {
        let bytes = b"x/cargo/registry/src/index-1/aya-0.14.0/src/lib.rs\0y/cargo/registry/src/\
                      index-1/aya-0.14.0/src/bpf.rs/cargo/registry/src/index-1/lru-0.19.1/src/lib.rs";
        assert_eq!(crates_named(bytes), ["aya-0.14.0", "lru-0.19.1"]);
    }

    #[test]
    fn flags_keep_paths_with_spaces_whole() {
        let maps = [(Path::new("/a b"), "/vahti"), (Path::new("/c"), "/cargo")];
        assert_eq!(
            rust_flags(&maps),
            "-Ctarget-feature=+crt-static\x1f--remap-path-prefix=/a b=/vahti\x1f--remap-path-prefix=/c=/cargo"
        );
    }
}
