//! Whose cgroup is this? Container id and runtime from a cgroup path.
//!
//! A pure function over bytes. The layouts, and where each was seen, stand in
//! `cgroup-paths.tsv`; a path that looks as if it should be a container's and
//! is not understood is [`Class::Unknown`], to be counted, never guessed.

use std::borrow::Cow;

/// What a cgroup path says about who lives there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Class<'a> {
    /// A container.
    Container(ContainerId<'a>),
    /// What watches a container from outside, such as conmon.
    Monitor,
    /// Nothing to do with containers.
    Host,
    /// Looks like a container runtime's, in a layout that is not known.
    Unknown,
}

/// A container, as its cgroup's path names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerId<'a> {
    /// The full id, or the name where a runtime has no ids.
    pub id: Cow<'a, str>,
    /// The runtime; `None` where several share the layout.
    pub runtime: Option<&'static str>,
    /// The Kubernetes pod's uid, where the path has it.
    pub pod_uid: Option<String>,
    /// Whether the path goes on below the container's own cgroup, as a
    /// service's does where systemd runs in a container.
    pub is_below: bool,
    /// How many levels the path goes on below the container's own cgroup.
    pub levels_below: u8,
}

/// What runtimes call the cgroup that they make below a container's for all
/// that runs in it: crun (`container`, `ctr`) and systemd-nspawn.
const PAYLOADS: [&str; 3] = ["container", "ctr", "payload"];

/// Prefixes of a name before 64 hex digits, and whose they are.
const PREFIXES: [(&str, &str); 6] = [
    ("docker", "docker"),
    ("cri-containerd", "containerd"),
    ("containerd", "containerd"),
    ("nerdctl", "containerd"),
    ("crio", "cri-o"),
    ("libpod", "podman"),
];

/// Classifies a path from its hierarchy's root, such as `/docker/4f1c...`.
#[must_use]
pub fn classify(path: &[u8]) -> Class<'_> {
    let Ok(path) = std::str::from_utf8(path) else {
        return Class::Host;
    };
    // Within a cgroup namespace a path may climb: /../../docker/...
    let names = || path.split('/').filter(|name| !name.is_empty() && *name != "..");
    let mut unknown = false;
    let (mut levels_below, mut first_below) = (0_u8, "");
    // The innermost container is the one: containers run in containers (kind),
    // and have cgroups of their own below (systemd in a container).
    let mut inner = names().rev().peekable();
    while let Some(name) = inner.next() {
        let parent = inner.peek().copied().unwrap_or("");
        match class_of(name, parent) {
            Some(Found::Container { id, runtime }) => {
                let runtime = runtime.or_else(|| runtime_by_ancestors(inner));
                let pod_uid = names().rev().find_map(pod_uid);
                let is_payload = levels_below == 1 && PAYLOADS.contains(&first_below);
                let is_below = levels_below > 0 && !is_payload;
                return Class::Container(ContainerId {
                    id,
                    runtime,
                    pod_uid,
                    is_below,
                    levels_below,
                });
            }
            Some(Found::Monitor) => return Class::Monitor,
            Some(Found::Unknown) => unknown = true,
            None => {}
        }
        (levels_below, first_below) = (levels_below.saturating_add(1), name);
    }
    if unknown { Class::Unknown } else { Class::Host }
}

enum Found<'a> {
    Container { id: Cow<'a, str>, runtime: Option<&'static str> },
    Monitor,
    Unknown,
}

fn container<'a>(id: &'a str, runtime: Option<&'static str>) -> Option<Found<'a>> {
    let id = Cow::Borrowed(id);
    Some(Found::Container { id, runtime })
}

fn class_of<'a>(name: &'a str, parent: &str) -> Option<Found<'a>> {
    if is_id(name) {
        let runtime = (parent == "docker" || parent == "actions_job").then_some("docker");
        return container(name, runtime);
    }
    if parent == "ecs" || parent.is_empty() && name == "ecs" {
        // A task, in which containers lie.
        return None;
    }
    prefixed(name)
        .or_else(|| colons(name))
        .or_else(|| lxc(name, parent))
        .or_else(|| machine(name, parent))
        .or_else(|| fargate(name))
        .or_else(|| kubernetes(name))
}

/// 64 hex digits, as Docker, containerd, CRI-O and Podman make them.
fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(is_hex)
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// `docker-<id>.scope` of the systemd driver, `crio-<id>` of the other.
fn prefixed(name: &str) -> Option<Found<'_>> {
    let stem = name.strip_suffix(".scope").unwrap_or(name);
    let (prefix, id) = stem.rsplit_once('-')?;
    let of = |wanted: &str| PREFIXES.iter().find(|(p, _)| *p == wanted);
    if let Some((_, runtime)) = of(prefix) {
        if is_id(id) {
            return container(id, Some(runtime));
        }
        // docker-proxy.scope, crio-foo: a scope of that prefix with another id.
        return (stem != name).then_some(Found::Unknown);
    }
    let watched = prefix.strip_suffix("-conmon")?;
    (of(watched).is_some() && is_id(id)).then_some(Found::Monitor)
}

/// `kubepods-...-pod<uid>.slice:cri-containerd:<id>`: systemd's notation, taken
/// for a name by a runtime that was not told of systemd.
fn colons(name: &str) -> Option<Found<'_>> {
    let mut parts = name.rsplitn(3, ':');
    let (id, prefix, slice) = (parts.next()?, parts.next()?, parts.next()?);
    if !slice.ends_with(".slice") || !is_id(id) {
        return None;
    }
    let (_, runtime) = PREFIXES.iter().find(|(p, _)| *p == prefix)?;
    container(id, Some(runtime))
}

/// `lxc.payload.<name>`, `lxc/<name>`; `lxc.monitor.<name>` is what watches it.
fn lxc<'a>(name: &'a str, parent: &str) -> Option<Found<'a>> {
    if let Some(container_name) = name.strip_prefix("lxc.payload.") {
        if container_name.is_empty() {
            return Some(Found::Unknown);
        }
        return container(container_name, Some("lxc"));
    }
    if name.starts_with("lxc.monitor.") || parent == "lxc.monitor" {
        return Some(Found::Monitor);
    }
    (parent == "lxc" || parent == "lxc.payload").then(|| container(name, Some("lxc")))?
}

/// What systemd-machined knows: containers of systemd-nspawn and of libvirt.
/// Virtual machines are machines too, but run no processes of this kernel's.
fn machine<'a>(name: &'a str, parent: &str) -> Option<Found<'a>> {
    if parent != "machine.slice" {
        return None;
    }
    if let Some(rest) = name.strip_prefix("systemd-nspawn@") {
        return nspawn(rest.strip_suffix(".service")?);
    }
    let stem = name.strip_prefix("machine-")?.strip_suffix(".scope")?;
    if stem.starts_with("qemu\\x2d") {
        return None;
    }
    match stem.strip_prefix("lxc\\x2d") {
        Some(rest) => {
            let (_, escaped) = rest.split_once("\\x2d")?;
            let id = unescape(escaped)?;
            Some(Found::Container { id, runtime: Some("libvirt-lxc") })
        }
        None => nspawn(stem),
    }
}

fn nspawn(escaped: &str) -> Option<Found<'_>> {
    let id = unescape(escaped)?;
    Some(Found::Container { id, runtime: Some("systemd-nspawn") })
}

/// Undoes systemd's escaping of unit names; `None` for an empty name.
fn unescape(escaped: &str) -> Option<Cow<'_, str>> {
    if escaped.is_empty() {
        return None;
    }
    if !escaped.contains("\\x") {
        return Some(Cow::Borrowed(escaped));
    }
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some((front, back)) = rest.split_once("\\x") {
        bytes.extend_from_slice(front.as_bytes());
        let byte = back.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match byte {
            Some(byte) => {
                bytes.push(byte);
                rest = &back[2..];
            }
            None => {
                bytes.extend_from_slice(b"\\x");
                rest = back;
            }
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    Some(Cow::Owned(String::from_utf8(bytes).ok()?))
}

/// A container of AWS Fargate: the task's 32 hex digits, a dash, decimal ones.
fn fargate(name: &str) -> Option<Found<'_>> {
    let (task, number) = name.split_once('-')?;
    let is_task = task.len() == 32 && task.bytes().all(is_hex);
    let is_number = number.len() >= 8 && number.bytes().all(|b| b.is_ascii_digit());
    (is_task && is_number).then(|| container(name, Some("ecs")))?
}

/// A pod's own cgroup without a container below: somebody's new layout, or a
/// process that was put there by hand.
fn kubernetes(name: &str) -> Option<Found<'_>> {
    pod_uid(name).map(|_| Found::Unknown)
}

/// `/ecs/<task>/<id>` is Docker's layout with another root.
fn runtime_by_ancestors<'a>(ancestors: impl Iterator<Item = &'a str>) -> Option<&'static str> {
    ancestors.last().and_then(|root| (root == "ecs").then_some("ecs"))
}

/// `pod<uid>`, `kubepods-burstable-pod<uid_with_underscores>.slice`.
fn pod_uid(name: &str) -> Option<String> {
    let name = name.split(':').next().unwrap_or(name);
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod").map(|(_, uid)| uid)?,
        None => name.strip_prefix("pod")?,
    };
    let is_uuid = uid.len() == 36
        && uid.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-' || b == b'_',
            _ => is_hex(b),
        });
    // Static pods have the hash of their manifest.
    let is_hash = uid.len() == 32 && uid.bytes().all(is_hex);
    (is_uuid || is_hash).then(|| uid.replace('_', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CORPUS: &str = include_str!("cgroup-paths.tsv");

    fn told(path: &[u8]) -> [String; 4] {
        let word = |s: &str| s.to_owned();
        match classify(path) {
            Class::Container(c) => [
                word("container"),
                c.id.into_owned(),
                word(c.runtime.unwrap_or("-")),
                c.pod_uid.unwrap_or(word("-")),
            ],
            Class::Monitor => [word("monitor"), word("-"), word("-"), word("-")],
            Class::Host => [word("host"), word("-"), word("-"), word("-")],
            Class::Unknown => [word("unknown"), word("-"), word("-"), word("-")],
        }
    }

    #[test]
    fn every_path_of_the_corpus_is_told_as_it_says() {
        let mut count = 0;
        for line in CORPUS.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
            let fields: Vec<&str> = line.split('\t').collect();
            assert_eq!(fields.len(), 6, "path, class, id, runtime, pod, source: {line}");
            assert!(!fields[5].is_empty(), "no source: {line}");
            assert_eq!(told(fields[0].as_bytes()).as_slice(), &fields[1..5], "{line}");
            count += 1;
        }
        assert!(count >= 40, "the corpus shrank to {count}");
    }

    #[test]
    fn what_a_container_made_of_its_cgroup_lies_below_it() {
        let id = "0123456789abcdef".repeat(4);
        for (path, expected) in [
            (format!("/docker/{id}"), false),
            (format!("/docker/{id}/init.scope"), true),
            (format!("/docker/{id}/system.slice/web.service"), true),
            (format!("/docker/{id}/docker/{id}"), false),
            (format!("/machine.slice/libpod-{id}.scope/container"), false),
            (format!("/machine.slice/libpod-{id}.scope/container/init.scope"), true),
            (format!("/libpod_parent/libpod-{id}/ctr"), false),
            ("/machine.slice/systemd-nspawn@web.service/payload".to_owned(), false),
            ("/lxc.payload.web/system.slice/nginx.service".to_owned(), true),
        ] {
            let Class::Container(found) = classify(path.as_bytes()) else {
                panic!("{path} is a container's");
            };
            assert_eq!(found.is_below, expected, "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(path in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(classify(&path));
        }

        #[test]
        fn no_names_make_it_panic(
            path in r"(/(docker|lxc|machine\.slice|ecs|kubepods|pod|machine-|(\\x|é|-|:|\.scope|\.slice|[0-9a-f]{1,8}){0,9})){0,6}"
        ) {
            drop(classify(path.as_bytes()));
        }

        #[test]
        fn sixty_three_digits_are_no_id(id in "[0-9a-f]{63}") {
            let path = format!("/docker/{id}");
            prop_assert_eq!(classify(path.as_bytes()), Class::Host);
        }
    }
}
