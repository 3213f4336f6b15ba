//! Which cgroup hierarchy names processes: v2 where it has the memory
//! controller, else v1 memory.

use std::path::Path;

/// The hierarchy whose ids and paths records carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hierarchy {
    /// 1 or 2.
    pub version: u8,
    /// Its number; v2 is 0.
    pub id: u32,
}

impl Hierarchy {
    /// Asks the running kernel.
    #[must_use]
    pub fn detect() -> Self {
        Self::detect_in(Path::new("/proc"))
    }

    /// Asks a given `/proc`.
    ///
    /// A controller that is in no v1 hierarchy is v2's, whether or not v2 is
    /// mounted anywhere that we see. (`/proc/cgroups` lists it with hierarchy
    /// 0, or, since 6.14, not at all.)
    #[must_use]
    pub fn detect_in(proc: &Path) -> Self {
        let controllers = std::fs::read_to_string(proc.join("cgroups")).unwrap_or_default();
        let id = memory_hierarchy(&controllers).unwrap_or(0);
        let version = if id == 0 { 2 } else { 1 };
        Hierarchy { version, id }
    }
}

fn memory_hierarchy(controllers: &str) -> Option<u32> {
    controllers.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        (fields.next()? == "memory").then(|| fields.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_under_v1_is_found_by_its_number() {
        let controllers =
            "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t5\t1\nmemory\t4\t9\t1\n";
        assert_eq!(memory_hierarchy(controllers), Some(4));
    }

    #[test]
    fn without_a_line_of_its_own_memory_is_v2() {
        let proc = Path::new("/nonexistent");
        assert_eq!(Hierarchy::detect_in(proc), Hierarchy { version: 2, id: 0 });
    }
}
