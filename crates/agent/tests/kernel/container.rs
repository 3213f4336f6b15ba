//! Control groups that are named as container runtimes name theirs.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::agent::within;
use vahti_runtime::testing::not_run;

/// A control group that looks like a container's. Removed when dropped.
pub(crate) struct Container {
    /// The container's id: 64 hexadecimal digits.
    pub(crate) id: String,
    /// Folders that were made for it, outermost first.
    made: Vec<PathBuf>,
    version: u8,
}

impl Container {
    /// Named as Docker does. `None`, having said why, where it can't be made.
    pub(crate) fn docker() -> Option<Self> {
        let id = fresh_id();
        Self::create(&["docker".to_owned(), id])
    }

    /// Named as the kubelet does, in a pod of its own.
    pub(crate) fn of_a_pod() -> Option<Self> {
        let id = fresh_id();
        let uid = |from: usize, to: usize| &id[from..to];
        let pod = format!(
            "pod{}-{}-{}-{}-{}",
            uid(0, 8),
            uid(8, 12),
            uid(12, 16),
            uid(16, 20),
            uid(20, 32)
        );
        Self::create(&["kubepods".to_owned(), "burstable".to_owned(), pod, id])
    }

    /// Named as Docker does, with cgroups that it made below its own: in the
    /// innermost its processes are.
    pub(crate) fn with_services() -> Option<Self> {
        let id = fresh_id();
        let below = ["docker", &id, "init.scope", "sub"].map(str::to_owned);
        let mut container = Self::create(&below)?;
        container.id = id;
        Some(container)
    }

    /// Named as no runtime does.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::create(&[name.to_owned()])
    }

    fn create(names: &[String]) -> Option<Self> {
        let Some((root, version)) = memory_hierarchy() else {
            not_run("no cgroup hierarchy with the memory controller is mounted");
            return None;
        };
        let id = names.last().unwrap().clone();
        let mut container = Container { id, made: Vec::new(), version };
        let mut result = Ok(());
        // Another test may remove an outer one, empty as it is, meanwhile.
        for _ in 0..100 {
            result = container.make(root.clone(), names);
            match &result {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                _ => break,
            }
        }
        if let Err(error) = result {
            not_run(format!("no cgroup can be made in {}: {error}", root.display()));
            return None;
        }
        Some(container)
    }

    fn make(&mut self, root: PathBuf, names: &[String]) -> std::io::Result<()> {
        self.made.clear();
        let mut folder = root;
        for name in names {
            if self.version == 2 {
                fs::write(folder.join("cgroup.subtree_control"), "+memory")?;
            }
            folder.push(name);
            match fs::create_dir(&folder) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => self.made.push(folder.clone()),
            }
        }
        Ok(())
    }

    /// Whether an event is about it.
    pub(crate) fn has(&self) -> impl Fn(&Value) -> bool {
        move |event| event["container"]["id"] == self.id
    }

    /// Its folder.
    pub(crate) fn folder(&self) -> &Path {
        self.made.last().unwrap()
    }

    /// Limits its memory.
    pub(crate) fn limit_memory(&self, bytes: u64) {
        self.limit(self.folder(), bytes);
    }

    /// Limits the memory of the cgroup so many above the innermost.
    pub(crate) fn limit_memory_above(&self, levels: usize, bytes: u64) {
        self.limit(self.folder().ancestors().nth(levels).unwrap(), bytes);
    }

    /// Limits the memory of what it is in.
    pub(crate) fn limit_memory_of_pod(&self, bytes: u64) {
        self.limit(self.folder().parent().unwrap(), bytes);
    }

    fn limit(&self, folder: &Path, bytes: u64) {
        let (limit, swap) = match self.version {
            1 => ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
            _ => ("memory.max", "memory.swap.max"),
        };
        fs::write(folder.join(limit), bytes.to_string()).unwrap();
        let swap = folder.join(swap);
        if swap.exists() {
            // Under v1 this is memory and swap together.
            let bytes = if self.version == 1 { bytes } else { 0 };
            fs::write(swap, bytes.to_string()).unwrap();
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // A process that has just ended may still be counted there.
        let Some((innermost, outer)) = self.made.split_last() else { return };
        within(Duration::from_secs(5), || fs::remove_dir(innermost).is_ok());
        // Others may be in the outer ones: then they stay.
        for outer in outer.iter().rev() {
            if fs::remove_dir(outer).is_err() {
                break;
            }
        }
    }
}

fn fresh_id() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{:08x}{count:08x}{}", std::process::id(), "0123456789abcdef".repeat(3))
}

/// Where the hierarchy with the memory controller is mounted, and its version.
fn memory_hierarchy() -> Option<(PathBuf, u8)> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let mount = PathBuf::from(fields.next()?);
        let (kind, options) = (fields.next()?, fields.next()?);
        let controllers = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
        match kind {
            "cgroup" if options.split(',').any(|o| o == "memory") => Some((mount, 1)),
            "cgroup2" if controllers.split_whitespace().any(|c| c == "memory") => Some((mount, 2)),
            _ => None,
        }
    })
}
