//! Events on standard output: a readable line each on a terminal, JSON lines
//! where another program reads.

use std::fs::File;
use std::future::ready;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vahti_runtime::emitter::{Delivery, Emission, EmitOutcome, EventEmitter};
use vahti_runtime::event::{Event, to_json_line};

use crate::lines::{DEFAULT_BYTES, Lines, outcome, write_all};
use crate::text::to_text_line;

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One readable line an event, for people.
    Text,
    /// One line of JSON an event, for programs.
    Json,
}

/// Writes events to standard output.
///
/// It may stall as long as its reader does; only its own lane fills up
/// meanwhile. A reader that is gone is for good: what comes then is rejected,
/// and whoever asked with [`StdoutEmitter::on_closed`] is told.
pub struct StdoutEmitter {
    name: String,
    critical: bool,
    format: Format,
    colour: bool,
    output: Arc<File>,
    is_terminal: bool,
    lines: Lines,
    /// The last write broke off within a line.
    torn: bool,
    closed: bool,
    on_closed: Option<Box<dyn FnOnce() + Send>>,
}

impl StdoutEmitter {
    /// Writes to this process's standard output.
    ///
    /// Without a format: text on a terminal, JSON elsewhere. Colour only in
    /// text on a terminal, and not if `NO_COLOR` is set or `TERM` is `dumb`.
    ///
    /// # Errors
    /// The descriptor could not be duplicated.
    pub fn new(name: &str, format: Option<Format>) -> io::Result<Self> {
        // A duplicate of the descriptor, since std's own handle would write
        // line by line, under a lock that others may hold.
        let output = io::stdout().as_fd().try_clone_to_owned()?;
        Ok(Self::writing_to(Arc::new(output.into()), name, format))
    }

    /// Writes to this, as it would to standard output. Can't fail, so that an
    /// emitter can be made anew after a panic.
    #[must_use]
    pub fn writing_to(output: Arc<File>, name: &str, format: Option<Format>) -> Self {
        let is_terminal = output.is_terminal();
        let automatic = if is_terminal { Format::Text } else { Format::Json };
        StdoutEmitter {
            name: name.to_owned(),
            critical: false,
            format: format.unwrap_or(automatic),
            colour: is_terminal && wants_colour(),
            output,
            is_terminal,
            lines: Lines::new(DEFAULT_BYTES),
            torn: false,
            closed: false,
            on_closed: None,
        }
    }

    /// Whether what it fails to take is retried.
    #[must_use]
    pub fn critical(mut self, critical: bool) -> Self {
        self.critical = critical;
        self
    }

    /// How many bytes of lines are made at once, at most; one line at least.
    #[must_use]
    pub fn lines_bytes(mut self, max_bytes: usize) -> Self {
        self.lines = Lines::new(max_bytes);
        self
    }

    /// Calls this once, from the emitter's thread, when the reader turns out
    /// to be gone. Must not block.
    #[must_use]
    pub fn on_closed(mut self, callback: impl FnOnce() + Send + 'static) -> Self {
        self.on_closed = Some(Box::new(callback));
        self
    }

    fn write(&mut self, batch: &[Arc<Event>]) -> EmitOutcome {
        if self.closed {
            return rejected("standard output is closed");
        }
        let mut delivered = 0;
        while let Some(rest) = batch.get(delivered..).filter(|rest| !rest.is_empty()) {
            let (written, result) = self.write_some(rest);
            delivered += written;
            if let Err(error) = result {
                return self.failed(delivered, batch.len(), &error);
            }
        }
        EmitOutcome::Delivered
    }

    /// Writes the beginning of a batch, as much as is rendered at once; returns
    /// how many lines arrived.
    fn write_some(&mut self, batch: &[Arc<Event>]) -> (usize, io::Result<()>) {
        let (format, colour) = (self.format, self.colour);
        let count = self.lines.render(batch, |event, out| match format {
            Format::Text => to_text_line(event, colour, out),
            Format::Json => to_json_line(event, out),
        });
        if self.torn {
            match write_all(&self.output, b"\n") {
                Ok(()) => self.torn = false,
                Err((_, error)) => return (0, Err(error)),
            }
        }
        match write_all(&self.output, self.lines.slice(0, count)) {
            Ok(()) => (count, Ok(())),
            Err((written, error)) => {
                let whole = self.lines.fitting(0, written as u64);
                self.torn = self.lines.slice(0, whole).len() != written;
                (whole, Err(error))
            }
        }
    }

    fn failed(&mut self, delivered: usize, batch: usize, error: &io::Error) -> EmitOutcome {
        let reason = format!("cannot write to standard output: {error}");
        if !self.is_final(error) {
            return outcome(delivered, batch, Delivery::Retryable, reason);
        }
        self.closed = true;
        if let Some(tell) = self.on_closed.take() {
            tell();
        }
        outcome(delivered, batch, Delivery::Rejected, reason)
    }

    /// Whether nobody will ever read this again: the reader closed its end, or
    /// the terminal was hung up.
    fn is_final(&self, error: &io::Error) -> bool {
        match error.raw_os_error() {
            Some(libc::EPIPE | libc::EBADF) => true,
            Some(libc::EIO) => self.is_terminal,
            _ => false,
        }
    }
}

fn rejected(reason: &str) -> EmitOutcome {
    EmitOutcome::Rejected { reason: reason.to_owned() }
}

/// Whether text on a terminal may have colours. <https://no-color.org>: set and
/// not empty means no.
#[must_use]
pub fn wants_colour() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    !refused && !dumb
}

impl EventEmitter for StdoutEmitter {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_critical(&self) -> bool {
        self.critical
    }

    fn waits_for_reader(&self) -> bool {
        true
    }

    fn emit<'a>(&'a mut self, batch: &'a [Arc<Event>]) -> Emission<'a, EmitOutcome> {
        let outcome = self.write(batch);
        self.lines.release();
        Box::pin(ready(outcome))
    }
}

#[cfg(test)]
mod tests;
