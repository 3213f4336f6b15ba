//! What the agent tells about itself, on standard error.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use vahti_runtime::event::escape;

use crate::config::LogLevel;

/// What changes the level.
type SetTargets = Box<dyn Fn(Targets) + Send + Sync>;

static SET: OnceLock<SetTargets> = OnceLock::new();

/// Starts logging at this level. Once per process.
pub(crate) fn start(level: LogLevel) {
    let (layer, handle) = reload::Layer::new(targets(level));
    let started = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_ansi(false)
        .with_target(false)
        .log_internal_errors(false)
        .with_writer(|| OneLine)
        .finish()
        .with(layer)
        .try_init();
    // Somebody else logs already, in a test.
    if started.is_ok() {
        SET.get_or_init(|| Box::new(move |targets| drop(handle.reload(targets))));
    }
}

/// Tells as much as this from now on.
pub(crate) fn set_level(level: LogLevel) {
    if let Some(set) = SET.get() {
        set(targets(level));
    }
}

fn targets(level: LogLevel) -> Targets {
    let filter = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // What libraries tell of their connections is for their developers, and may
    // hold what others must not see: only what is not as it should be.
    Targets::new().with_default(filter.min(LevelFilter::WARN)).with_target("vahti", filter)
}

/// The longest line, in bytes: a pipe that can be written to at all takes that
/// much at once.
const MAX_LINE: usize = libc::PIPE_BUF;

/// How many records were not written since the last one that was.
static HELD_BACK: AtomicU64 = AtomicU64::new(0);

/// Writes each record as one line, whatever names and messages hold, and never
/// waits: whoever does not read standard error must not hold up an observer or
/// the shutdown. What can't be written at once is counted and said later.
struct OneLine;

impl Write for OneLine {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let held = HELD_BACK.load(Ordering::Relaxed);
        let mut line = String::new();
        if held > 0 {
            line.push_str(&format!("({held} lines before this one were not written) "));
        }
        line.push_str(&escape_but_backslashes(record.strip_suffix(b"\n").unwrap_or(record)));
        let end = line.floor_char_boundary(MAX_LINE - 1);
        line.truncate(end);
        line.push('\n');
        if write_now(line.as_bytes()) {
            HELD_BACK.fetch_sub(held, Ordering::Relaxed);
        } else {
            HELD_BACK.fetch_add(1, Ordering::Relaxed);
        }
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Standard error, as it is written to without waiting.
struct Stderr {
    file: File,
    is_socket: bool,
}

impl Stderr {
    /// Pipes and terminals are opened anew: what is set not to wait is then
    /// ours alone, and not what others have in common with us. Files never
    /// wait, and opened anew they would be written to at another place than
    /// standard output's.
    fn open() -> io::Result<Self> {
        let shared = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let kind = shared.metadata()?.file_type();
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let own = if kind.is_fifo() || kind.is_char_device() {
            options.open("/proc/self/fd/2").ok()
        } else {
            None
        };
        Ok(Stderr { file: own.unwrap_or(shared), is_socket: kind.is_socket() })
    }

    fn write_now(&self, line: &[u8]) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        let mut poll = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
        // SAFETY: `poll` is one valid pollfd for the length of the call.
        if unsafe { libc::poll(&raw mut poll, 1, 0) } != 1 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if !self.is_socket {
            return (&self.file).write(line).map(drop);
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: `line` is readable for its length.
        match unsafe { libc::send(fd, line.as_ptr().cast(), line.len(), flags) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

/// Writes a line to standard error if that takes no time. Takes no lock:
/// whoever held it could be stuck.
fn write_now(line: &[u8]) -> bool {
    static STDERR: OnceLock<Option<Stderr>> = OnceLock::new();
    let stderr = STDERR.get_or_init(|| Stderr::open().ok());
    stderr.as_ref().is_some_and(|stderr| stderr.write_now(line).is_ok())
}

/// Names that were escaped before stay as they are.
fn escape_but_backslashes(line: &[u8]) -> String {
    match std::str::from_utf8(line) {
        Ok(text) => vahti_runtime::event::escape_text(text).into_owned(),
        Err(_) => escape(line).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_stays_one_line() {
        assert_eq!(escape_but_backslashes(b"a\nb\x1b[0m \\x1b"), r"a\x0ab\x1b[0m \x1b");
        assert_eq!(escape_but_backslashes(b"\xff"), r"\xff");
    }
}
