//! What the binary is made of, as cargo knows it: which crates of which
//! versions, with which features, for the target that is built. Dependencies of
//! tests and of other packages of the workspace are not among them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::binary::target;
use crate::command::{cargo, output, root};
use crate::stage::read_text;

/// Name and version; there is one source of each.
pub(crate) type Id = (String, String);

/// A crate.
#[derive(Debug)]
pub(crate) struct Package {
    /// Whether its code is in the binary; else it only helped to build it.
    pub(crate) linked: bool,
    pub(crate) features: Vec<String>,
    pub(crate) depends_on: BTreeSet<Id>,
    /// An SPDX expression.
    pub(crate) licence: String,
    pub(crate) repository: Option<String>,
    pub(crate) description: Option<String>,
    /// Where its sources lie.
    pub(crate) folder: PathBuf,
    /// SHA-256 of the archive in the registry; none of our own crates.
    pub(crate) checksum: Option<String>,
}

/// All that the agent is built from, by name and version.
pub(crate) fn of_the_agent() -> Result<BTreeMap<Id, Package>, String> {
    let all = parse_tree(&tree("normal,build")?)?;
    let linked = parse_tree(&tree("normal,no-proc-macro")?)?;
    let metadata = metadata()?;
    let checksums = checksums(&read_text(&root()?.join("Cargo.lock"))?);
    let mut packages = BTreeMap::new();
    for (id, (features, depends_on)) in all {
        let told = metadata.get(&id).ok_or_else(|| format!("cargo metadata lacks {id:?}"))?;
        let text = |key: &str| told[key].as_str().map(|text| text.trim().to_owned());
        let manifest = PathBuf::from(text("manifest_path").unwrap_or_default());
        // Of those that are linked only, the features that the target's build has.
        let features = linked.get(&id).map_or(features, |(features, _)| features.clone());
        let package = Package {
            linked: linked.contains_key(&id),
            features,
            depends_on,
            licence: text("license").ok_or_else(|| format!("{id:?} names no licence"))?,
            repository: text("repository"),
            description: text("description"),
            folder: manifest.parent().unwrap_or(Path::new("")).to_owned(),
            checksum: checksums.get(&id).cloned(),
        };
        packages.insert(id, package);
    }
    Ok(packages)
}

fn tree(edges: &str) -> Result<String, String> {
    let target = target()?;
    let mut tree = cargo();
    tree.args(["tree", "--locked", "--package", "vahti-agent", "--target", target])
        .args(["--edges", edges, "--prefix", "depth", "--format", "|{p}|{f}|"])
        .current_dir(root()?);
    Ok(String::from_utf8_lossy(&output(&mut tree)?).into_owned())
}

fn metadata() -> Result<BTreeMap<Id, Value>, String> {
    let mut metadata = cargo();
    metadata
        .args(["metadata", "--locked", "--format-version", "1", "--filter-platform", target()?])
        .current_dir(root()?);
    let told: Value = serde_json::from_slice(&output(&mut metadata)?)
        .map_err(|e| format!("cargo metadata: {e}"))?;
    let packages = told["packages"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(packages.into_iter().map(|p| ((text(&p["name"]), text(&p["version"])), p)).collect())
}

type Tree = BTreeMap<Id, (Vec<String>, BTreeSet<Id>)>;

/// Reads `2|name v1.2.3 (/path)|feature,feature|`, each line below the last one
/// of a smaller depth. What stands twice has its dependencies where it first
/// stood.
fn parse_tree(tree: &str) -> Result<Tree, String> {
    let mut packages = Tree::new();
    let mut above: Vec<Id> = Vec::new();
    for line in tree.lines() {
        let wrong = || format!("cargo tree said what is not understood: {line}");
        let mut parts = line.split('|');
        let depth: usize = parts.next().and_then(|d| d.parse().ok()).ok_or_else(wrong)?;
        let mut words = parts.next().ok_or_else(wrong)?.split(' ');
        let name = words.next().ok_or_else(wrong)?.to_owned();
        let version = words.next().and_then(|v| v.strip_prefix('v')).ok_or_else(wrong)?.to_owned();
        let features = parts.next().ok_or_else(wrong)?;
        let id = (name, version);
        above.truncate(depth);
        if let Some((_, depends_on)) = above.last().and_then(|a| packages.get_mut(a)) {
            depends_on.insert(id.clone());
        }
        above.push(id.clone());
        let (known, _) = packages.entry(id).or_default();
        // A crate may be built twice, for the build script's sake with others.
        known.extend(features.split(',').filter(|f| !f.is_empty()).map(str::to_owned));
        known.sort();
        known.dedup();
    }
    Ok(packages)
}

/// The checksums of `Cargo.lock`, whose form is TOML of one shape.
fn checksums(lock: &str) -> BTreeMap<Id, String> {
    let packages = lock.split("[[package]]").skip(1);
    let found = packages.filter_map(|package| {
        let value = |key: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(key))?;
            Some(line.strip_prefix(" = \"")?.strip_suffix('"')?.to_owned())
        };
        Some(((value("name")?, value("version")?), value("checksum")?))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str, version: &str) -> Id {
        (name.to_owned(), version.to_owned())
    }

    #[test]
    fn a_tree_is_read_by_depth_and_what_stands_twice_keeps_its_dependencies() {
        let tree = parse_tree(
            "0|agent v0.1.0 (/w/agent)||\n1|a v1.0.0|x,y|\n2|b v2.0.0||\n1|c v3.0.0 (proc-macro)||\n\
             2|a v1.0.0|z| (*)\n",
        )
        .unwrap();
        assert_eq!(tree[&id("agent", "0.1.0")].1, [id("a", "1.0.0"), id("c", "3.0.0")].into());
        assert_eq!(tree[&id("a", "1.0.0")].1, [id("b", "2.0.0")].into());
        assert_eq!(tree[&id("a", "1.0.0")].0, ["x", "y", "z"]);
        assert_eq!(tree[&id("c", "3.0.0")].1, [id("a", "1.0.0")].into());
        assert!(parse_tree("error: no such package\n").is_err());
    }

    #[test]
    fn what_is_linked_is_told_from_what_helps_to_build() {
        let packages = of_the_agent().unwrap();
        let linked = |name: &str| packages.iter().any(|((n, _), p)| n == name && p.linked);
        for name in ["vahti-agent", "vahti-runtime", "aya", "libsqlite3-sys", "ring"] {
            assert!(linked(name), "{name}");
        }
        for name in ["cc", "syn", "serde_derive", "tempfile", "proptest", "xtask", "windows-sys"] {
            assert!(!linked(name), "{name}");
        }
        assert!(packages.keys().any(|(name, _)| name == "cc"));
        assert!(!packages.keys().any(|(name, _)| name == "proptest" || name == "xtask"));
        for ((name, _), package) in &packages {
            assert_eq!(package.checksum.is_none(), name.starts_with("vahti-"), "{name}");
        }
    }
}
