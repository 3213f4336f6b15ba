//! The words of the contract: one table for writing them and for reading them.

use crate::event::{
    ExitClass, LinkKind, NetworkType, OomScope, Outcome, Priority, Severity, Transport,
};

/// A type of which each value is written as one fixed word.
pub(super) trait Word: Copy + 'static {
    /// All values.
    const ALL: &'static [Self];

    /// How a value is written.
    fn word(self) -> &'static str;
}

impl Word for Severity {
    const ALL: &'static [Self] =
        &[Severity::Debug, Severity::Info, Severity::Warning, Severity::Error, Severity::Fatal];

    fn word(self) -> &'static str {
        self.as_str()
    }
}

impl Word for Outcome {
    const ALL: &'static [Self] =
        &[Outcome::Success, Outcome::Failure, Outcome::Timeout, Outcome::Unknown];

    fn word(self) -> &'static str {
        self.as_str()
    }
}

impl Word for Priority {
    const ALL: &'static [Self] = &Priority::ALL;

    fn word(self) -> &'static str {
        self.as_str()
    }
}

impl Word for LinkKind {
    const ALL: &'static [Self] = &[LinkKind::PossibleCause];

    fn word(self) -> &'static str {
        self.as_str()
    }
}

impl Word for Transport {
    const ALL: &'static [Self] = &[Transport::Tcp, Transport::Udp];

    fn word(self) -> &'static str {
        self.as_str()
    }
}

impl Word for NetworkType {
    const ALL: &'static [Self] = &[NetworkType::Ipv4, NetworkType::Ipv6];

    fn word(self) -> &'static str {
        self.as_str()
    }
}

impl Word for OomScope {
    const ALL: &'static [Self] = &[OomScope::Container, OomScope::Cgroup, OomScope::System];

    fn word(self) -> &'static str {
        self.as_str()
    }
}

impl Word for ExitClass {
    const ALL: &'static [Self] =
        &[ExitClass::Normal, ExitClass::Error, ExitClass::Killed, ExitClass::Oom, ExitClass::Crash];

    fn word(self) -> &'static str {
        self.as_str()
    }
}
