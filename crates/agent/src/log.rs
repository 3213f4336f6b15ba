//! What the agent tells about itself, on standard error.

use std::io::{self, Write};

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
        .with_writer(|| OneLine)
        .try_init();
    // Somebody else logs already, in a test.
    if started.is_err() {}
}

/// Writes each record as one line, whatever names and messages hold.
struct OneLine;

impl Write for OneLine {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let line = record.strip_suffix(b"\n").unwrap_or(record);
        let mut shown = escape_but_backslashes(line);
        shown.push('\n');
        io::stderr().write_all(shown.as_bytes())?;
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
