//! The bill of materials, in CycloneDX 1.6: what is in the binary, and what
//! built it. The same binary, sources and compiler give the same bytes, so it has
//! no random number, and no date but the commit's.

use std::path::Path;
use std::process::Command;

use serde_json::{Map, Value, json};

use super::packages::{Id, Package, of_the_agent};
use crate::command::{root, rustc, text};
use crate::stage::{read, read_text, sha256};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Objects that the kernel runs; they lie in the binary as data.
const OBJECTS: &[&str] = &[
    "crates/observers/src/container/container.bpf.o",
    "crates/observers/src/network/network.bpf.o",
];

/// What is linked that cargo does not know: component, and which crate needs it.
struct Extra {
    component: Value,
    needed_by: &'static str,
}

/// The bill of this binary.
pub(crate) fn make(binary: &Path, date: Option<&str>) -> Result<String, String> {
    let packages = of_the_agent()?;
    let extras = extras(binary, packages.iter())?;
    let mut components: Vec<Value> =
        packages.iter().filter(|(id, _)| id.0 != "vahti-agent").map(component).collect();
    components.extend(extras.iter().map(|extra| extra.component.clone()));
    let mut dependencies: Vec<Value> = packages
        .iter()
        .map(|(id, package)| {
            let mut on: Vec<String> = package.depends_on.iter().map(reference).collect();
            let own = extras.iter().filter(|extra| extra.needed_by == id.0);
            on.extend(own.map(|extra| text_of(&extra.component["bom-ref"])));
            json!({ "ref": reference(id), "dependsOn": on })
        })
        .collect();
    dependencies.extend(extras.iter().map(|e| json!({ "ref": e.component["bom-ref"] })));
    let mut metadata = Map::new();
    if let Some(date) = date {
        let stamp =
            text(Command::new("date").args(["-u", "-d", &format!("@{date}")]).arg("+%FT%TZ"))?;
        metadata.insert("timestamp".into(), stamp.into());
    }
    metadata.insert(
        "component".into(),
        json!({
            "type": "application",
            "bom-ref": reference(&("vahti-agent".into(), VERSION.into())),
            "name": "vahti",
            "version": VERSION,
            "hashes": [{ "alg": "SHA-256", "content": sha256(binary)? }],
            "licenses": [{ "expression": "Apache-2.0" }],
        }),
    );
    let bill = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": metadata,
        "components": components,
        "dependencies": dependencies,
    });
    Ok(format!("{bill:#}\n"))
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// How a crate is named within the bill.
fn reference((name, version): &Id) -> String {
    format!("{name}@{version}")
}

fn component((id, package): (&Id, &Package)) -> Value {
    let mut component = Map::new();
    let mut put = |key: &str, value: Value| component.insert(key.to_owned(), value);
    put("type", "library".into());
    put("bom-ref", reference(id).into());
    put("name", id.0.clone().into());
    put("version", id.1.clone().into());
    if let Some(description) = &package.description {
        put("description", description.clone().into());
    }
    put("scope", if package.linked { "required" } else { "excluded" }.into());
    if let Some(checksum) = &package.checksum {
        put("hashes", json!([{ "alg": "SHA-256", "content": checksum }]));
    }
    // A slash is how old manifests say "or".
    put("licenses", json!([{ "expression": package.licence.replace('/', " OR ") }]));
    // Ours are in no registry.
    if package.checksum.is_some() {
        put("purl", format!("pkg:cargo/{}@{}", id.0, id.1).into());
    }
    if let Some(repository) = &package.repository {
        put("externalReferences", json!([{ "type": "vcs", "url": repository }]));
    }
    if !package.features.is_empty() {
        let features = package.features.join(",");
        put("properties", json!([{ "name": "cargo:features", "value": features }]));
    }
    Value::Object(component)
}

fn extras<'a>(
    binary: &Path,
    mut packages: impl Iterator<Item = (&'a Id, &'a Package)>,
) -> Result<Vec<Extra>, String> {
    let sqlite = packages.find(|(id, _)| id.0 == "libsqlite3-sys");
    let (_, sqlite) = sqlite.ok_or("the binary has no SQLite")?;
    let header = read_text(&sqlite.folder.join("sqlite3/sqlite3.h"))?;
    let mut extras = vec![
        Extra {
            component: library(
                "sqlite",
                sqlite_version(&header)?,
                "blessing",
                "SQLite, from the C \
                source in libsqlite3-sys",
            ),
            needed_by: "libsqlite3-sys",
        },
        Extra {
            component: library(
                "glibc",
                &glibc_version(binary)?,
                "LGPL-2.1-or-later",
                "the C library",
            ),
            needed_by: "vahti-agent",
        },
        Extra {
            component: library(
                "rust-std",
                &rust_version()?,
                "MIT OR Apache-2.0",
                "Rust's standard \
                library, as it comes with the compiler",
            ),
            needed_by: "vahti-agent",
        },
    ];
    for object in OBJECTS {
        let hash = sha256(&root()?.join(object))?;
        let component = json!({
            "type": "file",
            "bom-ref": object,
            "name": object,
            "description": "eBPF programs, compiled from the source beside them",
            "scope": "required",
            "hashes": [{ "alg": "SHA-256", "content": hash }],
            "licenses": [{ "expression": "GPL-2.0-only OR Apache-2.0" }],
        });
        extras.push(Extra { component, needed_by: "vahti-observers" });
    }
    Ok(extras)
}

fn library(name: &str, version: &str, licence: &str, description: &str) -> Value {
    json!({
        "type": "library",
        "bom-ref": format!("{name}@{version}"),
        "name": name,
        "version": version,
        "description": description,
        "scope": "required",
        "licenses": [{ "expression": licence }],
        "purl": format!("pkg:generic/{name}@{version}"),
    })
}

fn sqlite_version(header: &str) -> Result<&str, String> {
    let line = header.lines().find(|line| line.starts_with("#define SQLITE_VERSION "));
    let version = line.and_then(|line| line.split('"').nth(1));
    version.ok_or_else(|| "sqlite3.h names no version".to_owned())
}

fn rust_version() -> Result<String, String> {
    let told = text(rustc().arg("--version"))?;
    let version = told.split(' ').nth(1).map(str::to_owned);
    version.ok_or_else(|| format!("rustc names no version: {told}"))
}

/// As the library says it of itself, Debian's revision included, in a text
/// that is in each program that is linked with it.
fn glibc_version(binary: &Path) -> Result<String, String> {
    let bytes = read(binary)?;
    let texts = bytes.split(|byte| matches!(byte, 0 | b'\n'));
    let mut versions = texts.filter_map(|text| glibc_in(std::str::from_utf8(text).ok()?));
    let version = versions.next().map(str::to_owned);
    version.ok_or_else(|| format!("{}: names no version of its C library", binary.display()))
}

fn glibc_in(text: &str) -> Option<&str> {
    let (packaged, stable) =
        text.strip_prefix("GNU C Library (")?.split_once(") stable release")?;
    let stable = stable.strip_prefix(" version ")?.trim_end_matches('.');
    // Another distribution may name no revision of its own.
    packaged.split(' ').next_back().filter(|word| word.starts_with(stable)).or(Some(stable))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_where_they_stand() {
        let header = "#define SQLITE_VERSION_X 1\n#define SQLITE_VERSION        \"3.54.1\"\n";
        assert_eq!(sqlite_version(header).unwrap(), "3.54.1");
        assert!(sqlite_version("").is_err());
        let debian = "GNU C Library (Debian GLIBC 2.36-9+deb12u14) stable release version 2.36.";
        assert_eq!(glibc_in(debian), Some("2.36-9+deb12u14"));
        assert_eq!(glibc_in("GNU C Library (GNU libc) stable release version 2.41."), Some("2.41"));
        assert_eq!(glibc_in("GNU C Library"), None);
    }
}
