//! What can go wrong between here and the kernel.

use std::io;

/// Why an operation on programs, maps or the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum EbpfError {
    /// A capability that loading programs needs is missing.
    #[error(
        "missing capability {missing}: eBPF needs CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN); \
         run as root or grant them"
    )]
    MissingCapability {
        /// Which.
        missing: &'static str,
    },
    /// The kernel, or what stands before it, refuses although no capability is
    /// missing.
    #[error(
        "eBPF is refused here although no capability is missing: {cause} ({operation}: {error})"
    )]
    Refused {
        /// What was tried.
        operation: String,
        /// What the system said.
        error: String,
        /// What it most likely is, and what to do.
        cause: &'static str,
    },
    /// The kernel does not describe its types.
    #[error("no kernel BTF ({path}): needs Linux 5.8 or later with CONFIG_DEBUG_INFO_BTF")]
    NoKernelBtf {
        /// Where it should be.
        path: &'static str,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// The kernel describes its types in a way that is not understood.
    #[error("kernel BTF is not understood: {what}")]
    KernelBtf {
        /// What is wrong with it.
        what: String,
    },
    /// An object could not be opened: its maps could not be made, or it does
    /// not fit this kernel's types.
    #[error("object {object} does not load: {error}")]
    Object {
        /// The object's name.
        object: String,
        /// What aya said.
        error: String,
    },
    /// A program could not be loaded or attached.
    #[error("program {program}: {operation} failed: {error}{log}")]
    Program {
        /// What was tried.
        operation: &'static str,
        /// With which program.
        program: String,
        /// What the kernel said.
        error: String,
        /// The verifier's log, or nothing.
        log: VerifierLog,
    },
    /// A map is missing, of another type, or refused an operation.
    #[error("map {map}: {what}")]
    Map {
        /// The map's name.
        map: String,
        /// What is wrong.
        what: String,
    },
    /// A system call failed.
    #[error("{operation} failed")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// An attached program did not run within the time given.
    #[error("not proven within {waited_ms} ms: {}", programs.join(", "))]
    NotProven {
        /// Which of them.
        programs: Vec<String>,
        /// How long was waited.
        waited_ms: u128,
    },
    /// Nothing is attached, so there is nothing that could be proven.
    #[error("no program is attached, so none is ready")]
    NothingAttached,
    /// The manager was closed.
    #[error("the programs are closed")]
    Closed,
}

impl EbpfError {
    /// Whether the kernel refused for lack of rights.
    #[must_use]
    pub fn is_permission(&self) -> bool {
        matches!(self, EbpfError::MissingCapability { .. } | EbpfError::Refused { .. })
    }
}

/// Whether the system's answer, anywhere in what brought an error about, is
/// that this may not be done.
pub(crate) fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// What the verifier said; shown on lines of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifierLog(pub String);

impl std::fmt::Display for VerifierLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        write!(f, "\nverifier: {}", self.0.trim_end())
    }
}
