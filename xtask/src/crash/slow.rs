//! Other sides that take a tenth: of a pipe, of a file, of the store.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, PipeReader, Read};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;

/// How many events the other side may have taken by now.
#[derive(Clone, Default)]
pub(super) struct Allowance(Arc<AtomicU64>);

impl Allowance {
    pub(super) fn set(&self, events: u64) {
        self.0.fetch_max(events, Ordering::Relaxed);
    }

    /// From now on everything is taken.
    pub(super) fn lift(&self) {
        self.set(u64::MAX);
    }

    fn lifted(&self) -> bool {
        self.0.load(Ordering::Relaxed) == u64::MAX
    }

    fn covers(&self, taken: u64) -> bool {
        taken < self.0.load(Ordering::Relaxed)
    }
}

const A_MOMENT: Duration = Duration::from_millis(1);

/// Reads lines from a pipe until it is closed.
pub(super) fn read(mut pipe: PipeReader, allowance: &Allowance) -> Result<(), String> {
    let (mut taken, mut buffer) = (0, vec![0; 16 << 10]);
    loop {
        while !allowance.covers(taken) && !allowance.lifted() {
            std::thread::sleep(A_MOMENT);
        }
        let length = pipe.read(&mut buffer).map_err(|e| e.to_string())?;
        if length == 0 {
            return Ok(());
        }
        taken += buffer[..length].iter().filter(|byte| **byte == b'\n').count() as u64;
    }
}

/// A file system of its own, on a loop device, which is frozen whenever it has
/// taken enough: whoever writes waits, as on a slow disk.
pub(super) struct Disk {
    at: PathBuf,
}

/// linux/fs.h: FIFREEZE and FITHAW.
const FREEZE: libc::c_ulong = 0xc004_5877;
const THAW: libc::c_ulong = 0xc004_5878;

impl Disk {
    pub(super) fn mount(image: &Path, at: &Path) -> Result<Self, String> {
        let sized = File::create(image).and_then(|file| file.set_len(8 << 30));
        sized.and_then(|()| fs::create_dir_all(at)).map_err(|e| e.to_string())?;
        succeed(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image))?;
        succeed(Command::new("mount").args(["-o", "loop"]).arg(image).arg(at))?;
        Ok(Disk { at: at.to_owned() })
    }

    /// Freezes and thaws it until the allowance is lifted; never for long, so
    /// that who reads it in between gets through.
    pub(super) fn slow_down(&self, allowance: &Allowance) -> Result<(), String> {
        let root = File::open(&self.at).map_err(|e| e.to_string())?;
        while !allowance.lifted() {
            if allowance.covers(self.lines()?) {
                std::thread::sleep(A_MOMENT);
                continue;
            }
            let frozen = Frozen::new(&root)?;
            while !allowance.covers(self.lines()?) {
                std::thread::sleep(A_MOMENT);
            }
            drop(frozen);
        }
        Ok(())
    }

    /// How many it has, by the size of the first: they are much alike.
    fn lines(&self) -> Result<u64, String> {
        let mut bytes = 0;
        for entry in fs::read_dir(&self.at).map_err(|e| e.to_string())?.flatten() {
            let metadata = entry.metadata().map_err(|e| e.to_string())?;
            bytes += if metadata.is_file() { metadata.len() } else { 0 };
        }
        if bytes == 0 {
            return Ok(0);
        }
        let Ok(file) = File::open(self.at.join("events.jsonl")) else { return Ok(0) };
        let mut line = String::new();
        drop(BufReader::new(file).read_line(&mut line));
        Ok(bytes / (line.len() as u64).max(256))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(succeed(Command::new("umount").arg("-l").arg(&self.at)));
    }
}

/// A file system that is thawed when this is dropped.
struct Frozen<'a>(&'a File);

impl<'a> Frozen<'a> {
    fn new(root: &'a File) -> Result<Self, String> {
        // SAFETY: the call takes no argument; the descriptor is open.
        let result = unsafe { libc::ioctl(root.as_raw_fd(), FREEZE, 0) };
        if result < 0 { Err(format!("freeze: {}", last_error())) } else { Ok(Frozen(root)) }
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // SAFETY: as for the freeze.
        unsafe { libc::ioctl(self.0.as_raw_fd(), THAW, 0) };
    }
}

fn last_error() -> std::io::Error {
    std::io::Error::last_os_error()
}

/// Holds the store's write lock whenever it has taken enough.
pub(super) fn lock_out(database: &Path, allowance: &Allowance) -> Result<(), String> {
    let connection = Connection::open(database).map_err(|e| e.to_string())?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(|e| e.to_string())?;
    let last = || {
        let sql = "SELECT coalesce(max(seq), 0) FROM events";
        connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map(i64::cast_unsigned)
    };
    while !allowance.lifted() {
        let taken = last().map_err(|e| e.to_string())?;
        if allowance.covers(taken) {
            std::thread::sleep(A_MOMENT);
            continue;
        }
        connection.execute_batch("BEGIN IMMEDIATE").map_err(|e| e.to_string())?;
        let taken = last().map_err(|e| e.to_string())?;
        while !allowance.covers(taken) && !allowance.lifted() {
            std::thread::sleep(A_MOMENT);
        }
        connection.execute_batch("ROLLBACK").map_err(|e| e.to_string())?;
        // The agent looks again only after a while; it has to get its turn.
        let released = Instant::now();
        while last().is_ok_and(|now| now == taken) && released.elapsed() < Duration::from_secs(1) {
            std::thread::sleep(A_MOMENT);
        }
    }
    Ok(())
}

fn succeed(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{:?}: {e}", command.get_program()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {}", said.trim())) }
}
