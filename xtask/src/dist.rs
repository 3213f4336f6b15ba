//! `cargo xtask dist`: what a release is made of, in `target/dist`: archive,
//! Debian package, bill of materials, checksums. All of it has the same static
//! binary; the same binary and commit give the same bytes.

mod archive;
pub(crate) mod binary;
mod check;
#[cfg(test)]
mod container;
mod empty_root;
mod kubernetes;
mod notices;
mod packages;
mod sbom;

use std::path::{Path, PathBuf};

use crate::command::{commit_date, is_there, root};
use crate::stage::{copy, files, fresh, put, sums};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const FOLDER: &str = "target/dist";

/// What the texts about licences and contents are called.
const NOTICES: &str = "THIRD-PARTY-NOTICES.txt";
/// The bill of materials.
const SBOM: &str = "vahti.cdx.json";

/// `dist [binary | papers FOLDER | check | kubernetes]`.
pub(crate) fn run(arguments: &[&str]) -> Result<(), String> {
    match arguments {
        [] => all(),
        ["binary"] => {
            println!("{}", binary::build()?.display());
            Ok(())
        }
        ["papers", folder] => papers(Path::new(folder), &binary::path()?),
        ["check"] => in_ci(),
        ["kubernetes"] => kubernetes::cannot().map_or_else(kubernetes::check, Err),
        _ => {
            Err("usage: cargo xtask dist [binary | papers FOLDER | check | kubernetes]".to_owned())
        }
    }
}

fn all() -> Result<(), String> {
    for (program, package) in
        [("tar", "tar"), ("gzip", "gzip"), ("readelf", "binutils"), ("sha256sum", "coreutils")]
    {
        is_there(program, package)?;
    }
    std::env::set_current_dir(root()?).map_err(|e| e.to_string())?;
    let folder = Path::new(FOLDER);
    fresh(folder)?;
    let binary = binary::build()?;
    binary::check(&binary)?;
    let archive = archive::pack(&binary, folder)?;
    let package = crate::deb::pack(&binary)?;
    copy(&package, &folder.join(name_of(&package)), 0o644)?;
    let bill = sbom::make(&binary, commit_date().as_deref())?;
    put(&folder.join(format!("{}.cdx.json", name()?)), bill.as_bytes(), 0o644)?;
    let all = sums("sha256sum", folder, &files(folder)?)?;
    put(&folder.join("SHA256SUMS"), all.as_bytes(), 0o644)?;
    print!("{all}");
    println!("{} and what belongs to it is in {FOLDER}", name_of(&archive));
    Ok(())
}

/// What archive and folder are called: `vahti-0.1.0-x86_64-linux`.
fn name() -> Result<String, String> {
    let architecture = binary::target()?.split('-').next().unwrap_or_default().to_owned();
    Ok(format!("vahti-{VERSION}-{architecture}-linux"))
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What has to go with the binary wherever it goes: licences, notices, the bill.
pub(crate) fn papers(folder: &Path, binary: &Path) -> Result<(), String> {
    let root = root()?;
    for file in ["LICENSE", "LICENSE-GPL-2.0", "LICENSES.md"] {
        copy(&root.join(file), &folder.join(file), 0o644)?;
    }
    put(&folder.join(NOTICES), notices::make()?.as_bytes(), 0o644)?;
    put(&folder.join(notices::RUST), &notices::of_rust()?, 0o644)?;
    let bill = sbom::make(binary, commit_date().as_deref())?;
    put(&folder.join(SBOM), bill.as_bytes(), 0o644)
}

/// The pages for operators, and the files that they speak of: from where, to
/// where below a folder of documents.
pub(crate) fn documents() -> Result<Vec<(PathBuf, PathBuf)>, String> {
    let root = root()?;
    let mut all: Vec<PathBuf> =
        ["README.md", "CHANGELOG.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "deny.toml"]
            .map(PathBuf::from)
            .into();
    for folder in ["docs", "deploy", "proto"] {
        let found = files(&root.join(folder))?.into_iter();
        all.extend(found.map(|file| Path::new(folder).join(file)));
    }
    // How packages are made concerns nobody who has one.
    all.retain(|file| !file.starts_with("deploy/debian") && !file.starts_with("deploy/licences"));
    Ok(all.into_iter().map(|file| (root.join(&file), file)).collect())
}

/// What the checks before a change lands try of it.
pub(crate) fn in_ci() -> Result<(), String> {
    if let Err(why) = binary::is_possible() {
        println!("==> release: skipped; {why}");
        return Ok(());
    }
    std::env::set_current_dir(root()?).map_err(|e| e.to_string())?;
    check::all()?;
    match kubernetes::cannot() {
        None => kubernetes::check()?,
        Some(why) => println!("    not tried in a cluster: {why}"),
    }
    Ok(())
}
