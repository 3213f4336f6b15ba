//! What of this process is resident, and giving back what is not needed.

use serde::Serialize;

/// What a process has in memory, in bytes, as the kernel tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Resident {
    /// What it made itself: what the budget is about, but for the maps.
    anonymous_bytes: u64,
    /// Files that are mapped: its code, and the rings of the kernel twice.
    file_bytes: u64,
    /// Memory that is shared without a file.
    shared_bytes: u64,
}

impl Resident {
    /// Of this process; `None` where `/proc` does not tell.
    pub(crate) fn of_this_process() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/self/status").ok()?)
    }

    fn parse(status: &str) -> Option<Self> {
        let bytes = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1 << 10)
        };
        Some(Resident {
            anonymous_bytes: bytes("RssAnon:")?,
            file_bytes: bytes("RssFile:")?,
            shared_bytes: bytes("RssShmem:")?,
        })
    }
}

/// Has the kernel forget which pages of the program's code are resident. Its
/// start touches most of them, for the configuration and to load programs; what
/// is needed later comes again from the page cache, a few microseconds each.
pub(crate) fn give_back_code() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let Some((start, end)) = code(&maps, give_back_code as fn() as usize) else { return };
    let start = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: the pages are mapped from a file, for reading and executing only,
    // so none differs from what comes again from there.
    let given_back = unsafe { libc::madvise(start, end - start.addr(), libc::MADV_DONTNEED) };
    if given_back != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, "code that only the start needed stays resident");
    }
}

/// From where to where the code lies that an address is in, if it is of a file
/// and can't have been written to.
fn code(maps: &str, address: usize) -> Option<(usize, usize)> {
    maps.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        let is_code = fields.next()? == "r-xp" && fields.nth(2)? != "0";
        (is_code && range.contains(&address)).then_some((range.start, range.end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_tells_of_a_process_is_read() {
        let status = "Name:\tvahti\nVmRSS:\t9 kB\nRssAnon:\t    2048 kB\nRssFile:\t 16416 kB\n\
                      RssShmem:\t       0 kB\n";
        let resident = Resident::parse(status).unwrap();
        assert_eq!((resident.anonymous_bytes, resident.file_bytes), (2 << 20, 16_416 << 10));
        assert_eq!(Resident::parse("Name:\tkthreadd\n"), None);
        assert!(Resident::of_this_process().is_some_and(|r| r.anonymous_bytes > 0));
    }

    #[test]
    fn only_code_of_a_file_is_given_back() {
        let maps = "1000-3000 r-xp 00001000 fe:00 42 /usr/bin/vahti\n\
                    3000-4000 rwxp 00003000 fe:00 42 /usr/bin/vahti\n\
                    5000-6000 r-xp 00000000 00:00 0\n\
                    nonsense\n";
        assert_eq!(code(maps, 0x2fff), Some((0x1000, 0x3000)));
        for address in [0xfff, 0x3000, 0x5000, 0x9000] {
            assert_eq!(code(maps, address), None, "{address:#x}");
        }
        give_back_code();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(code(&maps, give_back_code as fn() as usize).is_some(), "and code still runs");
    }
}
