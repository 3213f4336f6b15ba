//! What the agent tells about itself, on standard error.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::level_filters::LevelFilter;
use vahti_runtime::event::escape;

use crate::config::LogLevel;

/// Starts logging at this level. Once per process.
pub(crate) fn start(level: LogLevel) {
    let filter = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let started = tracing_subscriber::fmt()
        .with_max_level(filter)
        .with_ansi(false)
        .with_target(false)
        .log_internal_errors(false)
        .with_writer(|| OneLine)
        .try_init();
    // Somebody else logs already, in a test.
    if started.is_err() {}
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
        // Held across both, or another thread could take the room in between.
        let mut stderr = io::stderr().lock();
        if !is_writable() {
            HELD_BACK.fetch_add(1, Ordering::Relaxed);
            return Ok(record.len());
        }
        let mut line = String::new();
        match HELD_BACK.swap(0, Ordering::Relaxed) {
            0 => {}
            held => line.push_str(&format!("({held} lines before this one were not written) ")),
        }
        line.push_str(&escape_but_backslashes(record.strip_suffix(b"\n").unwrap_or(record)));
        let end = line.floor_char_boundary(MAX_LINE - 1);
        line.truncate(end);
        line.push('\n');
        // Where it is closed there is nobody to tell.
        drop(stderr.write_all(line.as_bytes()));
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn is_writable() -> bool {
    let mut poll = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // SAFETY: `poll` is one valid pollfd for the length of the call.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
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
