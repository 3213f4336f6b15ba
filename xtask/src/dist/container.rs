//! What the Dockerfile and the DaemonSet say of the repository must be so; that
//! an image can be built of it is seen only where there is a registry.

use std::path::Path;

use crate::command::root;
use crate::stage::read_text;

const DOCKERFILE: &str = "deploy/container/Dockerfile";

fn text(path: &str) -> String {
    read_text(&root().unwrap().join(path)).unwrap()
}

/// Sources of `COPY`, with the stage that they are from, if not the context.
fn copied(dockerfile: &str) -> Vec<(bool, &str)> {
    let copies = dockerfile.lines().filter_map(|line| line.strip_prefix("COPY "));
    copies
        .flat_map(|copy| {
            let from_build = copy.starts_with("--from=build ");
            let words: Vec<&str> = copy.split(' ').filter(|w| !w.starts_with("--")).collect();
            words[..words.len() - 1].iter().map(|w| (from_build, *w)).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn what_is_copied_is_there_and_not_ignored() {
    let (dockerfile, ignored) = (text(DOCKERFILE), text(".dockerignore"));
    let is_sent = |path: &str| {
        ignored
            .lines()
            .filter_map(|line| line.strip_prefix('!'))
            .any(|kept| Path::new(path).starts_with(kept))
    };
    for (from_build, path) in copied(&dockerfile) {
        if from_build {
            // Made by an earlier stage, or by a package that it installs.
            let is_made =
                dockerfile.contains(&format!(" {path} ")) || path.starts_with("/etc/ssl/");
            assert!(is_made, "{path}");
        } else if path != "." {
            assert!(root().unwrap().join(path).exists(), "{path}");
            assert!(is_sent(path), "{path} is not sent to the builder");
        }
    }
}

#[test]
fn every_crate_stands_in_for_itself_while_dependencies_are_built() {
    let dockerfile = text(DOCKERFILE);
    for entry in std::fs::read_dir(root().unwrap().join("crates")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let copy = format!("COPY crates/{name}/Cargo.toml crates/{name}/\n");
        assert!(dockerfile.contains(&copy), "{DOCKERFILE} lacks {copy}");
        // Cargo refuses a manifest whose benchmark is not there.
        for line in text(&format!("crates/{name}/Cargo.toml")).split("[[bench]]\n").skip(1) {
            let bench = line.split('"').nth(1).unwrap();
            let made = dockerfile.lines().find(|line| line.contains("for bench in ")).unwrap();
            assert!(made.split([' ', ';']).any(|word| word == bench), "{bench} is not made");
        }
    }
}

#[test]
fn versions_are_those_of_the_workspace() {
    let (version, rust) = (env!("CARGO_PKG_VERSION"), env!("CARGO_PKG_RUST_VERSION"));
    let dockerfile = text(DOCKERFILE);
    assert!(dockerfile.contains(&format!("\nARG VERSION={version}\n")), "{version}");
    assert!(dockerfile.contains(&format!("library/rust:{rust}.")), "{rust}");
    assert!(text("deploy/kubernetes/vahti.yaml").contains(&format!("image: vahti:{version}\n")));
    let page = text("docs/install.md");
    assert!(page.contains(&format!("vahti-{version}-x86_64-linux.tar.gz")));
    assert!(page.contains(&format!("vahti_{version}_amd64.deb")));
}

/// Each right in the manifest and on the page stands in docs/security.md.
#[test]
fn a_container_is_given_the_same_rights_everywhere() {
    let (manifest, page) = (text("deploy/kubernetes/vahti.yaml"), text("docs/install.md"));
    assert!(manifest.contains("drop: [\"ALL\"]\n            add: [\"BPF\", \"PERFMON\"]\n"));
    assert!(page.contains("--cap-drop ALL --cap-add BPF --cap-add PERFMON --security-opt"));
    let security = text("docs/security.md");
    let rows = security.split("## As a container").nth(1).unwrap();
    assert!(rows.contains("| CAP_BPF |") && rows.contains("| CAP_PERFMON |"));
}
