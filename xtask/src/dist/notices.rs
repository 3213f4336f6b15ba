//! The licences of what is in the binary: whoever passes it on passes on these
//! texts, as MIT, BSD, ISC and Apache-2.0 ask for. Taken from the sources that
//! it was built from; texts that are the same stand once.

use std::collections::BTreeMap;
use std::path::Path;

use super::packages::{Id, Package, of_the_agent};
use crate::command::{root, rustc, text};
use crate::stage::{read, read_text};

const BEGINNINGS: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

/// Texts of what is linked and is no crate.
const LIBC: &[(&str, &str)] = &[
    ("glibc, the C library: who holds which part", "deploy/licences/glibc.txt"),
    ("glibc, the C library: LGPL-2.1", "deploy/licences/LGPL-2.1.txt"),
];

/// All of it, as one text.
pub(crate) fn make() -> Result<String, String> {
    let packages = of_the_agent()?;
    let foreign: Vec<(&Id, &Package)> =
        packages.iter().filter(|(_, p)| p.linked && p.checksum.is_some()).collect();
    let mut by_text: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut list = String::new();
    for (id, package) in &foreign {
        let name = format!("{} {}", id.0, id.1);
        list.push_str(&format!("  {name}: {}\n", package.licence));
        for text in texts(id, package, &foreign)? {
            by_text.entry(text).or_default().push(name.clone());
        }
    }
    for (what, file) in LIBC {
        let text = normal(&read_text(&root()?.join(file))?);
        by_text.entry(text).or_default().push((*what).to_owned());
    }
    let mut all = format!(
        "Third-party notices\n\n\
         The program vahti is under Apache-2.0 (LICENSE). It contains the crates below, under the\n\
         licences whose texts follow; Rust's standard library, whose notices stand in\n\
         {RUST}; SQLite, which is in the public domain; parts of GCC's\n\
         runtime library, under GPL-3.0 with the exception that permits this; and the GNU C\n\
         Library, under LGPL-2.1, version as vahti.cdx.json names it. Debian keeps the source\n\
         of each of its versions, as package glibc in its archive of snapshots. Whoever wants\n\
         another one in it builds vahti from its sources, all of which are free: `cargo xtask\n\
         dist binary` takes the C library of the machine that it runs on.\n\n{list}"
    );
    for (text, names) in by_text {
        let line = "-".repeat(80);
        all.push_str(&format!("\n{line}\n{}\n{line}\n\n{text}", wrapped(&names)));
    }
    Ok(all)
}

/// What the notices of Rust's standard library are called beside ours.
pub(crate) const RUST: &str = "rust-standard-library.html";

/// Those notices, as the compiler brings them.
pub(crate) fn of_rust() -> Result<Vec<u8>, String> {
    let sysroot = text(rustc().args(["--print", "sysroot"]))?;
    read(&Path::new(&sysroot).join("share/doc/rust/COPYRIGHT-library.html"))
}

/// The licence texts of one crate: its own; else those of another one from the
/// same repository; else, where Apache-2.0 is all that it names, that text,
/// which names no holder.
fn texts(id: &Id, package: &Package, all: &[(&Id, &Package)]) -> Result<Vec<String>, String> {
    let own = own_texts(&package.folder)?;
    if !own.is_empty() {
        return Ok(own);
    }
    for (_, sibling) in all {
        if package.repository.is_some() && sibling.repository == package.repository {
            let texts = own_texts(&sibling.folder)?;
            if !texts.is_empty() {
                return Ok(texts);
            }
        }
    }
    if package.licence == "Apache-2.0" {
        return Ok(vec![normal(&read_text(&root()?.join("LICENSE"))?)]);
    }
    Err(format!(
        "{} {} ({}) brings no licence text; where to take it from has to be said in {}",
        id.0,
        id.1,
        package.licence,
        file!()
    ))
}

fn own_texts(folder: &Path) -> Result<Vec<String>, String> {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut files: Vec<_> = entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name().to_string_lossy().to_ascii_uppercase();
            BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
        })
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files.iter().map(|file| Ok(normal(&String::from_utf8_lossy(&read(file)?)))).collect()
}

/// Without what differs between copies of one text: line ends, blanks at ends.
fn normal(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let first = lines.iter().position(|line| !line.is_empty()).unwrap_or(0);
    let last = lines.iter().rposition(|line| !line.is_empty()).map_or(0, |at| at + 1);
    format!("{}\n", lines.get(first..last).unwrap_or_default().join("\n"))
}

/// Names in lines of eighty columns at most.
fn wrapped(names: &[String]) -> String {
    let mut text = String::new();
    let mut column = 0;
    for name in names {
        if column > 0 {
            let fits = column + 2 + name.len() < 80;
            text.push_str(if fits { ", " } else { ",\n" });
            column = if fits { column + 2 } else { 0 };
        }
        text.push_str(name);
        column += name.len();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_crate_that_is_linked_has_a_licence_text() {
        let notices = make().unwrap();
        for ((name, version), package) in &of_the_agent().unwrap() {
            let is_there = notices.contains(&format!("{name} {version}"));
            assert_eq!(is_there, package.linked && package.checksum.is_some(), "{name} {version}");
        }
        for text in
            ["Permission is hereby granted", "Apache License", "GNU LESSER GENERAL PUBLIC LICENSE"]
        {
            assert!(notices.contains(text), "{text}");
        }
    }

    #[test]
    fn a_crate_without_a_licence_text_is_refused_rather_than_left_out() {
        let folder = root().unwrap().join("crates/agent/src");
        let package = Package {
            linked: true,
            features: Vec::new(),
            depends_on: std::collections::BTreeSet::new(),
            licence: "MIT".into(),
            repository: Some("https://example.org/other".into()),
            description: None,
            folder,
            checksum: None,
        };
        let id = ("nameless".to_owned(), "1.0.0".to_owned());
        let told = texts(&id, &package, &[]).unwrap_err();
        assert!(told.starts_with("nameless 1.0.0 (MIT) brings no licence text"), "{told}");
        let package = Package { licence: "Apache-2.0".into(), ..package };
        assert!(texts(&id, &package, &[]).unwrap()[0].contains("Apache License"));
    }

    #[test]
    fn copies_of_a_text_with_other_line_ends_are_one() {
        assert_eq!(normal("\r\n a \r\nb\r\n\r\n"), normal(" a\nb"));
        assert_eq!(normal(""), "\n");
    }
}
