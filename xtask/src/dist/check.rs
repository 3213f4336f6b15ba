//! What a release promises, tried: that the binary is static and tells nothing
//! of this machine, that the bill is complete and valid, that packing twice
//! gives the same bytes, that pages lead nowhere else, and that it runs where
//! nothing else is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{archive, binary, empty_root, name, packages, sbom};
use crate::stage::{files, fresh, read, read_text};

const FOLDER: &str = "target/dist-check";

/// All of it, each told with what was found.
pub(super) fn all() -> Result<(), String> {
    let program = binary::build()?;
    binary::check(&program)?;
    let bytes = read(&program)?;
    println!(
        "    static, {:.1} MiB, names no folder of this machine",
        bytes.len() as f64 / 1048576.0
    );
    let named = bill_is_complete(&bytes)?;
    println!("    the bill has all {named} crates that the binary itself names");
    println!("    {}", bill_is_valid(&program)?);
    packs_the_same_twice(&program)?;
    println!("    packed twice, the archive is the same");
    if is_root() {
        empty_root::check(&program)?;
        println!("    in an empty root it watches, tells, is ready, and finds names");
    } else {
        println!("    not tried in an empty root: that takes root");
    }
    Ok(())
}

fn is_root() -> bool {
    // SAFETY: asks for a number; no memory is involved.
    unsafe { libc::geteuid() == 0 }
}

/// What the binary says it was made of is in the bill.
fn bill_is_complete(bytes: &[u8]) -> Result<usize, String> {
    let named = binary::crates_named(bytes);
    let packages = packages::of_the_agent()?;
    let linked: Vec<String> = packages
        .iter()
        .filter(|(_, package)| package.linked)
        .map(|((name, version), _)| format!("{name}-{version}"))
        .collect();
    let missing: Vec<&String> = named.iter().filter(|name| !linked.contains(name)).collect();
    if !missing.is_empty() {
        return Err(format!("the bill lacks {missing:?}, whose code is in the binary"));
    }
    // Any program of this size panics somewhere in a crate of others.
    if named.is_empty() {
        return Err("the binary names no crate: how it names them has changed".to_owned());
    }
    Ok(named.len())
}

const VALIDATE: &str = "\
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read())
sys.exit(0 if error is None else repr(error)[:2000])
";

/// The official schema decides, where its package is there.
fn bill_is_valid(program: &Path) -> Result<String, String> {
    let python = std::env::var_os("VAHTI_PYTHON").map(PathBuf::from);
    let python = python.unwrap_or_else(|| PathBuf::from("target/receivers/bin/python"));
    let there = Command::new(&python)
        .args(["-c", "import cyclonedx.validation.json, jsonschema"])
        .stderr(Stdio::null())
        .status();
    if !there.is_ok_and(|status| status.success()) {
        return Ok(format!(
            "the bill was not compared with CycloneDX's schema: {} has no \
             cyclonedx-python-lib[json-validation]",
            python.display()
        ));
    }
    let bill = sbom::make(program, Some("0"))?;
    let mut child = Command::new(&python)
        .args(["-c", VALIDATE])
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{}: {e}", python.display()))?;
    let mut stdin = child.stdin.take().ok_or("python has no input")?;
    std::io::Write::write_all(&mut stdin, bill.as_bytes()).map_err(|e| e.to_string())?;
    drop(stdin);
    let status = child.wait().map_err(|e| e.to_string())?;
    if status.success() {
        return Ok("the bill fits CycloneDX's own schema, 1.6".to_owned());
    }
    Err("the bill does not fit CycloneDX's schema".to_owned())
}

/// Laid in two folders, at two times, and packed.
fn packs_the_same_twice(program: &Path) -> Result<(), String> {
    let name = name()?;
    let mut archives = Vec::new();
    for round in ["one", "two"] {
        let above = Path::new(FOLDER).join(round);
        fresh(&above)?;
        let folder = above.join(&name);
        archive::lay(program, &folder)?;
        if round == "one" {
            links_lead_somewhere(&folder)?;
            age(&folder)?;
        }
        let archive = above.join("archive.tar.gz");
        archive::compress(&above, &name, &archive)?;
        archives.push(read(&archive)?);
    }
    fs::remove_dir_all(FOLDER).map_err(|e| format!("{FOLDER}: {e}"))?;
    if archives[0] == archives[1] {
        return Ok(());
    }
    Err("two archives of the same binary differ".to_owned())
}

/// Another date on every file, so that one that is packed is seen.
fn age(folder: &Path) -> Result<(), String> {
    let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(86_400);
    for file in files(folder)? {
        let path = folder.join(file);
        let aged = fs::File::open(&path).and_then(|file| file.set_modified(long_ago));
        aged.map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

/// Every relative link of a page leads to what is in the archive, too.
fn links_lead_somewhere(folder: &Path) -> Result<(), String> {
    let mut dead = Vec::new();
    for file in files(folder)?.iter().filter(|file| file.ends_with(".md")) {
        let page = folder.join(file);
        for link in links(&read_text(&page)?) {
            if !page.parent().unwrap_or(folder).join(&link).exists() {
                dead.push(format!("{file}: {link}"));
            }
        }
    }
    if dead.is_empty() { Ok(()) } else { Err(format!("links lead nowhere: {}", dead.join(", "))) }
}

/// Targets in the same repository, without what stands behind a hash.
fn links(page: &str) -> Vec<String> {
    let targets = page.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets
        .filter_map(|target| target.split('#').next())
        .filter(|target| {
            !target.is_empty() && !target.contains("://") && !target.contains([' ', '`'])
        })
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_those_into_the_repository() {
        let page = "[a](docs/a.md), [b](https://example.org/), [c](#here), [d](../d.md#x) `f](`";
        assert_eq!(links(page), ["docs/a.md", "../d.md"]);
    }

    #[test]
    fn what_the_bill_lacks_is_told() {
        let named = bill_is_complete(b"/cargo/registry/src/i/left-out-9.9.9/src/lib.rs");
        assert!(named.unwrap_err().contains("left-out-9.9.9"));
        assert!(bill_is_complete(b"").is_err());
    }
}
