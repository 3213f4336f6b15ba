//! Cgroups by the path that the kernel captured, shared between events.

use std::hash::{BuildHasherDefault, Hasher};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;
use vahti_runtime::event::{Cgroup, Container};

use crate::container::id::{Class, classify};

/// As many as the kernel side keeps.
const KEPT: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);

/// How many bytes all of them may take. A path is at most 768 bytes, and stands
/// here as the kernel wrote it and as it is shown; those of pods have some 200.
pub const MAX_BYTES: usize = 768 << 10;

/// The kernfs id of a hierarchy's root, which has no name.
const ROOT_ID: u64 = 1;

/// Remembers what was made of a cgroup's path: the same cgroup fails again and
/// again, and its events share one copy.
///
/// Only saves work: what it returns follows from its arguments alone.
#[derive(Debug)]
pub(crate) struct CgroupNames {
    version: u8,
    known: Mutex<Cache>,
}

#[derive(Debug)]
struct Cache {
    by_id: LruCache<u64, Known, BuildHasherDefault<IdHasher>>,
    bytes: usize,
}

impl Cache {
    /// Remembers one more, and forgets what was used longest ago for it.
    fn put(&mut self, id: u64, known: Known) {
        self.bytes += known.bytes();
        if let Some((_, gone)) = self.by_id.push(id, known) {
            self.bytes -= gone.bytes();
        }
        while self.bytes > MAX_BYTES
            && let Some((_, gone)) = self.by_id.pop_lru()
        {
            self.bytes -= gone.bytes();
        }
    }
}

/// Spreads ids that the kernel counts up; nobody chooses them, so a keyed hash
/// would only cost time, once an event.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, id: u64) {
        // 2^64 / golden ratio; the high bits are the best mixed.
        self.0 = (self.0 ^ id).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_right(32);
    }
}

#[derive(Debug)]
struct Known {
    /// As the kernel wrote it; an id may come to mean another cgroup.
    raw: Box<[u8]>,
    truncated: bool,
    named: Named,
}

impl Known {
    /// With the blocks that it consists of, and its place in the cache.
    fn bytes(&self) -> usize {
        const BLOCKS: usize = 6 * 16 + 4 * size_of::<usize>();
        let place = size_of::<(u64, Known)>() + 5 * size_of::<usize>();
        let cgroup = self.named.cgroup.as_ref().map_or(0, |c| size_of::<Cgroup>() + c.path.len());
        let container =
            self.named.container.as_ref().map_or(0, |c| size_of::<Container>() + c.id.len());
        place + BLOCKS + self.raw.len() + cgroup + container
    }
}

/// A cgroup and the container that it is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Named {
    pub(crate) cgroup: Option<Arc<Cgroup>>,
    pub(crate) container: Option<Arc<Container>>,
    /// Whether the cgroup is below the container's own.
    pub(crate) is_below: bool,
    /// How many levels it is below the container's own.
    pub(crate) levels_below: u8,
    /// Why this is not all, in a documented word.
    pub(crate) unresolved: Option<&'static str>,
}

impl CgroupNames {
    pub(crate) fn new(version: u8) -> Self {
        CgroupNames {
            version,
            known: Mutex::new(Cache {
                by_id: LruCache::with_hasher(KEPT, BuildHasherDefault::default()),
                bytes: 0,
            }),
        }
    }

    /// `raw`: names from the leaf to the root, each followed by a NUL.
    pub(crate) fn name(&self, id: u64, raw: &[u8], truncated: bool) -> Named {
        if id == 0 {
            return Named::default();
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.by_id.get(&id)
            && *known.raw == *raw
            && known.truncated == truncated
        {
            return known.named.clone();
        }
        let named = self.make(id, raw, truncated);
        let fresh = Known { raw: raw.into(), truncated, named: named.clone() };
        known.put(id, fresh);
        named
    }

    fn make(&self, id: u64, raw: &[u8], truncated: bool) -> Named {
        let path = path_of(raw, truncated);
        let class = classify(&path);
        let unresolved = match (raw.is_empty(), truncated, &class) {
            (true, _, _) if id != ROOT_ID => Some("cgroup_path_unknown"),
            (_, true, _) => Some("cgroup_path_truncated"),
            (_, _, Class::Unknown) => Some("container_layout_unknown"),
            _ => None,
        };
        let (container, is_below, levels_below) = match class {
            Class::Container(found) => {
                let container = Container { id: found.id.into(), runtime: found.runtime };
                (Some(Arc::new(container)), found.is_below, found.levels_below)
            }
            Class::Monitor | Class::Host | Class::Unknown => (None, false, 0),
        };
        let cgroup = Some(Arc::new(Cgroup { id, path, version: self.version }));
        Named { cgroup, container, is_below, levels_below, unresolved }
    }
}

/// Puts the names the right way round: `c\0b\0a\0` is `/a/b/c`. Where the root
/// end is missing, the path starts with an ellipsis instead of a slash.
fn path_of(raw: &[u8], truncated: bool) -> Box<[u8]> {
    let mut path = Vec::with_capacity(raw.len() + 5);
    if truncated {
        path.extend_from_slice(b"...");
    }
    let names = raw.strip_suffix(b"\0").unwrap_or(raw);
    if names.is_empty() {
        path.push(b'/');
        return path.into();
    }
    for name in names.rsplit(|b| *b == 0) {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_leaf_first_and_paths_root_first() {
        assert_eq!(&*path_of(b"c\0b\0a\0", false), b"/a/b/c");
        assert_eq!(&*path_of(b"c\0", true), b".../c");
        assert_eq!(&*path_of(b"", false), b"/");
    }

    #[test]
    fn an_id_that_comes_to_mean_another_cgroup_is_named_anew() {
        let names = CgroupNames::new(2);
        let path = |named: Named| named.cgroup.unwrap().path.clone();
        assert_eq!(&*path(names.name(7, b"a\0", false)), b"/a");
        assert_eq!(&*path(names.name(7, b"b\0", false)), b"/b");
    }

    #[test]
    fn events_of_one_cgroup_share_its_name() {
        let names = CgroupNames::new(2);
        let one = names.name(7, b"a\0", false).cgroup.unwrap();
        let two = names.name(7, b"a\0", false).cgroup.unwrap();
        assert!(Arc::ptr_eq(&one, &two));
    }

    #[test]
    fn the_longest_paths_stay_under_the_bytes_and_the_latest_are_kept() {
        let names = CgroupNames::new(2);
        let raw = |n: u64| format!("{n:0>255}\0{n:0>255}\0{n:0>255}\0").into_bytes();
        for n in 2..2_000 {
            names.name(n, &raw(n), false);
        }
        let cache = names.known.lock().unwrap();
        let bytes: usize = cache.by_id.iter().map(|(_, known)| known.bytes()).sum();
        assert_eq!(cache.bytes, bytes);
        assert!((MAX_BYTES - 4_096..=MAX_BYTES).contains(&bytes), "{bytes}");
        assert!(cache.by_id.contains(&1_999) && !cache.by_id.contains(&2));
    }

    #[test]
    fn an_id_that_changes_its_name_takes_what_its_name_takes() {
        let names = CgroupNames::new(2);
        for raw in [&b"a\0"[..], b"abcdef\0", b"b\0"] {
            names.name(7, raw, false);
        }
        let cache = names.known.lock().unwrap();
        assert_eq!(cache.bytes, cache.by_id.peek(&7).unwrap().bytes());
    }

    #[test]
    fn a_path_that_the_kernel_did_not_find_is_not_taken_for_the_root() {
        let names = CgroupNames::new(2);
        assert_eq!(names.name(1, b"", false).unresolved, None);
        assert_eq!(names.name(9, b"", false).unresolved, Some("cgroup_path_unknown"));
    }
    #[test]
    fn a_layout_that_is_not_known_is_said_to_be_and_a_host_path_is_nothing() {
        let pod = b"some-new-name\0pod5f1c2ab3-9d4e-4c11-8a77-0b1c2d3e4f50\0kubepods\0";
        let names = CgroupNames::new(2);
        let named = names.name(7, pod, false);
        assert_eq!(named.unresolved, Some("container_layout_unknown"));
        assert!(named.container.is_none());
        assert_eq!(names.name(8, pod, true).unresolved, Some("cgroup_path_truncated"));
        for host in [&b"shop.service\0system.slice\0"[..], b"init.scope\0", b"user.slice\0", b""] {
            assert_eq!(names.name(ROOT_ID, host, false).unresolved, None);
        }
    }
}
