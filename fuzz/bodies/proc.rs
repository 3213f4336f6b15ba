//! Files of `/proc` that say whatever they like: an answer, never a panic.

use std::path::PathBuf;
use std::sync::OnceLock;

use vahti_ebpf::cgroup::Hierarchy;
use vahti_ebpf::kernel::KernelVersion;
use vahti_ebpf::rights;

/// A `/proc` of our own, in memory where there is a file system for that.
fn folder() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let memory = PathBuf::from("/dev/shm");
        let root = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let folder = root.join(format!("vahti-fuzz-proc-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("self")).expect("a folder");
        folder
    })
}

/// To be called when nothing is tried any more.
#[allow(dead_code, reason = "the fuzzer never ends")]
pub(crate) fn clean_up() {
    std::fs::remove_dir_all(folder()).expect("it was ours");
}

pub(crate) fn run(bytes: &[u8]) {
    let proc = folder();
    for file in ["cgroups", "self/status"] {
        std::fs::write(proc.join(file), bytes).expect("a file");
    }
    let hierarchy = Hierarchy::detect_in(proc);
    assert_eq!(hierarchy.version, if hierarchy.id == 0 { 2 } else { 1 });
    if let Err(error) = rights::check_in(proc) {
        assert!(!error.to_string().chars().any(char::is_control), "{error}");
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(version) = KernelVersion::parse(text) {
        assert_eq!(KernelVersion::parse(&version.to_string()), Some(version));
    }
}
