//! Which kernel this is.

use std::fmt;

/// A kernel's version: 6.12 is `KernelVersion(6, 12)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion(pub u32, pub u32);

impl KernelVersion {
    /// Of the running kernel; `None` if it calls itself something else.
    #[must_use]
    pub fn running() -> Option<Self> {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
        Self::parse(&release)
    }

    /// Of a release such as `6.12.107+deb13-cloud-amd64`.
    #[must_use]
    pub fn parse(release: &str) -> Option<Self> {
        let mut parts = release.split(|c: char| !c.is_ascii_digit());
        let mut number = || parts.next()?.parse().ok();
        Some(KernelVersion(number()?, number()?))
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        let version = KernelVersion::parse("6.12.107+deb13-cloud-amd64\n").unwrap();
        assert_eq!(version, KernelVersion(6, 12));
        assert!(version > KernelVersion(6, 8) && version < KernelVersion(7, 0));
        assert_eq!(KernelVersion::parse("next"), None);
    }
}
