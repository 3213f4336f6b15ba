//! What the kernel tells of this process, under the names that every exporter
//! has for it.

use std::fs;

/// `None` where `/proc` does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Process {
    pub(super) cpu_seconds: Option<f64>,
    pub(super) resident_bytes: Option<f64>,
    /// Since 1970.
    pub(super) start_seconds: Option<f64>,
    pub(super) open_fds: Option<f64>,
}

impl Process {
    pub(super) fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
        // The folder that is read is open itself.
        let fds = fs::read_dir("/proc/self/fd").map(|fds| fds.count().saturating_sub(1));
        // SAFETY: neither call has preconditions.
        let (ticks, page) =
            unsafe { (libc::sysconf(libc::_SC_CLK_TCK), libc::sysconf(libc::_SC_PAGESIZE)) };
        let open_fds = fds.ok().map(|fds| fds as f64);
        Process { open_fds, ..Self::parse(&stat, &boot, ticks as f64, page as f64) }
    }

    /// The fields of proc_pid_stat(5) behind the name, which may hold anything.
    fn parse(stat: &str, boot: &str, ticks: f64, page: f64) -> Self {
        let fields: Vec<&str> = match stat.rsplit_once(')') {
            Some((_, rest)) => rest.split_whitespace().collect(),
            None => Vec::new(),
        };
        // The state is the third field, and the first one here.
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let booted = boot.lines().find_map(|line| line.strip_prefix("btime "));
        let booted = booted.and_then(|text| text.trim().parse::<f64>().ok());
        Process {
            cpu_seconds: field(14).zip(field(15)).map(|(user, system)| (user + system) / ticks),
            start_seconds: booted.zip(field(22)).map(|(booted, since)| booted + since / ticks),
            resident_bytes: field(24).map(|pages| pages * page),
            open_fds: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_numbers_are_in_base_units() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 13 14 15 16 17 18 1000 20 3 22";
        let read = Process::parse(stat, "cpu 1\nbtime 1700000000\n", 100.0, 4096.0);
        assert_eq!(read.cpu_seconds, Some(2.0));
        assert_eq!(read.start_seconds, Some(1_700_000_010.0));
        assert_eq!(read.resident_bytes, Some(12_288.0));
        assert_eq!(Process::parse("", "", 100.0, 4096.0), Process::default());
    }

    #[test]
    fn this_process_has_all_of_them() {
        let read = Process::read();
        assert!(read.resident_bytes.unwrap() > 1e5 && read.open_fds.unwrap() >= 3.0, "{read:?}");
        assert!(read.start_seconds.unwrap() > 1.5e9 && read.cpu_seconds.is_some(), "{read:?}");
    }
}
