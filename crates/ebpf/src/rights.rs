//! Whether this process may load and attach programs.

use std::path::Path;

use crate::error::{EbpfError, is_refusal};
use crate::sys;

const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Names the capability that is missing, if one is; then tries.
///
/// # Errors
/// [`EbpfError::MissingCapability`], [`EbpfError::Refused`], or `/proc` can't
/// be read.
pub fn check() -> Result<(), EbpfError> {
    check_in(Path::new("/proc"))?;
    match sys::try_to_load() {
        Err(error) if is_refusal(&error) => {
            Err(refused("loading a program".to_owned(), error.to_string()))
        }
        // Whatever else is wrong, the real programs tell it better.
        _ => Ok(()),
    }
}

/// A refusal that no capability explains, and what most likely does.
pub(crate) fn refused(operation: String, error: String) -> EbpfError {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cause = cause(&read("/proc/self/uid_map"), &read("/proc/self/status"));
    EbpfError::Refused { operation, error, cause }
}

fn cause(uid_map: &str, status: &str) -> &'static str {
    if !is_identity(uid_map) {
        return "this is a user namespace, in which nobody may load programs; \
                run vahti outside of it";
    }
    if status.lines().any(|line| line.trim_end() == "Seccomp:\t2") {
        return "a seccomp filter is set, which may forbid it; allow bpf(2) and perf_event_open(2)";
    }
    "a security module may forbid it, or, before Linux 5.11, the limit on locked memory; \
     see the kernel's log"
}

/// Whether every user id is mapped to itself, as in the first user namespace;
/// so it is where nothing can be read.
fn is_identity(uid_map: &str) -> bool {
    uid_map.is_empty() || uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Names the missing capability from a given `/proc`.
///
/// # Errors
/// [`EbpfError::MissingCapability`], or `/proc` can't be read.
pub fn check_in(proc: &Path) -> Result<(), EbpfError> {
    let status = std::fs::read_to_string(proc.join("self/status"))
        .map_err(|error| EbpfError::System { operation: "reading /proc/self/status", error })?;
    match missing(effective(&status)) {
        Some(missing) => Err(EbpfError::MissingCapability { missing }),
        None => Ok(()),
    }
}

fn effective(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .unwrap_or(0)
}

fn missing(effective: u64) -> Option<&'static str> {
    let has = |capability: u32| effective & (1 << capability) != 0;
    if has(CAP_SYS_ADMIN) {
        None
    } else if !has(CAP_BPF) {
        Some("CAP_BPF")
    } else if !has(CAP_PERFMON) {
        Some("CAP_PERFMON")
    } else {
        None
    }
}

/// Lets maps take more locked memory than the default of 64 KiB; kernels
/// before 5.11 bill them there. Harmless where it is refused.
pub fn raise_memlock_limit() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` is a valid rlimit for the length of the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) } != 0 {
        tracing::debug!("RLIMIT_MEMLOCK stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_missing_capability_is_named() {
        for (set, expected) in [
            ("0000000000000000", Some("CAP_BPF")),
            ("0000008000000000", Some("CAP_PERFMON")),
            ("000000c000000000", None),
            ("0000000000200000", None),
        ] {
            let status = format!("Name:\tx\nCapEff:\t{set}\n");
            assert_eq!(missing(effective(&status)), expected, "{set}");
        }
    }

    #[test]
    fn a_refusal_names_the_namespace_or_the_filter() {
        let identity = "         0          0 4294967295\n";
        let filtered = "NoNewPrivs:\t0\nSeccomp:\t2\n";
        for (uid_map, status, expected) in [
            ("         0       1000          1\n", filtered, "this is a user namespace"),
            (identity, filtered, "a seccomp filter"),
            (identity, "Seccomp:\t0\n", "a security module"),
            ("", "", "a security module"),
        ] {
            assert!(cause(uid_map, status).starts_with(expected), "{uid_map}{status}");
        }
    }

    #[test]
    fn an_unreadable_status_grants_nothing() {
        assert_eq!(missing(effective("")), Some("CAP_BPF"));
    }
}
