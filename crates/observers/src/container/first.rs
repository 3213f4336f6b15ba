//! Which processes were first in the containers that run already.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use vahti_ebpf::cgroup::Hierarchy;

use super::id::{Class, classify};

/// The earliest process of a container's cgroup whose parent is outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct First {
    pub(super) cgroup_id: u64,
    pub(super) tgid: u32,
}

/// Asks `/proc`, and the cgroup file system for ids. Where that is not
/// mounted, nothing is found: then only what starts from now on is known.
pub(super) fn of_running_containers(hierarchy: Hierarchy) -> Vec<First> {
    let proc = Path::new("/proc");
    let Some(mount) = mount_of(proc, hierarchy) else {
        return Vec::new();
    };
    firsts(processes(proc, hierarchy), |path| {
        let below = path.strip_prefix('/').unwrap_or(path);
        std::fs::metadata(mount.join(below)).ok().map(|m| m.ino())
    })
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Running {
    tgid: u32,
    parent: u32,
    start_ticks: u64,
    cgroup: String,
}

fn firsts(running: Vec<Running>, id_of: impl Fn(&str) -> Option<u64>) -> Vec<First> {
    let homes: HashMap<u32, String> = running.iter().map(|p| (p.tgid, p.cgroup.clone())).collect();
    let mut earliest: HashMap<String, Running> = HashMap::new();
    for process in running {
        let parent_inside = homes.get(&process.parent) == Some(&process.cgroup);
        if parent_inside || !matches!(classify(process.cgroup.as_bytes()), Class::Container(_)) {
            continue;
        }
        match earliest.get(&process.cgroup) {
            Some(known) if known.start_ticks <= process.start_ticks => {}
            _ => drop(earliest.insert(process.cgroup.clone(), process)),
        }
    }
    earliest
        .values()
        .filter_map(|p| Some(First { cgroup_id: id_of(&p.cgroup)?, tgid: p.tgid }))
        .collect()
}

fn processes(proc: &Path, hierarchy: Hierarchy) -> Vec<Running> {
    let Ok(entries) = std::fs::read_dir(proc) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| {
            let tgid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            process(proc, tgid, hierarchy)
        })
        .collect()
}

/// `None` for a process that has gone meanwhile.
fn process(proc: &Path, tgid: u32, hierarchy: Hierarchy) -> Option<Running> {
    let folder = proc.join(tgid.to_string());
    let cgroups = std::fs::read_to_string(folder.join("cgroup")).ok()?;
    let cgroup = path_in(&cgroups, hierarchy)?.to_owned();
    let stat = std::fs::read(folder.join("stat")).ok()?;
    let (parent, start_ticks) = parent_and_start(&stat)?;
    Some(Running { tgid, parent, start_ticks, cgroup })
}

fn path_in(cgroups: &str, hierarchy: Hierarchy) -> Option<&str> {
    cgroups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let id: u32 = fields.next()?.parse().ok()?;
        (id == hierarchy.id).then(|| fields.nth(1))?
    })
}

/// Fields 4 and 22 of proc(5)'s `stat`, counted from behind the name, which
/// may hold anything.
fn parent_and_start(stat: &[u8]) -> Option<(u32, u64)> {
    let name_end = stat.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    let mut fields = rest.split_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let start = fields.nth(17)?.parse().ok()?;
    Some((parent, start))
}

/// Where the hierarchy is mounted, by `mountinfo`.
fn mount_of(proc: &Path, hierarchy: Hierarchy) -> Option<PathBuf> {
    let mounts = std::fs::read_to_string(proc.join("self/mountinfo")).ok()?;
    mount_in(&mounts, hierarchy).map(PathBuf::from)
}

fn mount_in(mounts: &str, hierarchy: Hierarchy) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(3);
        let (root, point) = (front.next()?, front.next()?);
        let mut back = back.split(' ');
        let (kind, options) = (back.next()?, back.nth(1)?);
        let wanted = match hierarchy.version {
            2 => kind == "cgroup2",
            _ => kind == "cgroup" && options.split(',').any(|o| o == "memory"),
        };
        (wanted && root == "/").then_some(point)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn running(tgid: u32, parent: u32, start_ticks: u64, cgroup: &str) -> Running {
        let cgroup = cgroup.to_owned();
        Running { tgid, parent, start_ticks, cgroup }
    }

    #[test]
    fn the_first_is_the_earliest_whose_parent_is_outside() {
        let container = format!("/docker/{ID}");
        let processes = vec![
            running(1, 0, 1, "/init.scope"),
            running(10, 1, 50, &container),
            running(9, 10, 60, &container),
            running(12, 1, 70, &container),
            running(13, 1, 5, "/user.slice"),
        ];
        let found = firsts(processes, |path| (path == container).then_some(77));
        assert_eq!(found, [First { cgroup_id: 77, tgid: 10 }]);
    }

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let stat = b"42 (a) b (c) S 7 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 0 0";
        assert_eq!(parent_and_start(stat), Some((7, 12345)));
    }

    #[test]
    fn a_hybrid_system_has_memory_under_v1() {
        let v1 = Hierarchy { version: 1, id: 4 };
        let mounts = "30 1 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      31 1 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_in(mounts, v1), Some("/sys/fs/cgroup/memory"));
        assert_eq!(path_in("4:memory:/a\n0::/b\n", v1), Some("/a"));
        let v2 = Hierarchy { version: 2, id: 0 };
        assert_eq!(mount_in(mounts, v2), Some("/sys/fs/cgroup/unified"));
        assert_eq!(path_in("4:memory:/a\n0::/b\n", v2), Some("/b"));
    }

    proptest::proptest! {
        // Files of `/proc`, of whoever chose the names in them, cut anywhere.
        #[test]
        fn no_file_of_proc_makes_it_panic(
            words in proptest::collection::vec("[0-9:/ ()\n-]{0,9}|cgroup2?|memory|\\PC{0,5}", 0..40),
            version in 1_u8..3,
        ) {
            let text = words.concat();
            let hierarchy = Hierarchy { version, id: u32::from(version) };
            let parts = text.len();
            proptest::prop_assert!(path_in(&text, hierarchy).is_none_or(|path| path.len() <= parts));
            proptest::prop_assert!(mount_in(&text, hierarchy).is_none_or(|at| at.len() <= parts));
            std::hint::black_box(parent_and_start(text.as_bytes()));
        }
    }
}
