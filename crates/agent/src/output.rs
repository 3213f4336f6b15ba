//! What commands print, and how they end.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use crate::log;

/// It did what it was asked to.
pub(crate) const SUCCESS: u8 = 0;
/// It failed.
pub(crate) const FAILURE: u8 = 1;
/// The command line or the configuration is wrong (`EX_USAGE`).
pub(crate) const USAGE: u8 = 64;
/// A right is missing (`EX_NOPERM`).
pub(crate) const NO_PERMISSION: u8 = 77;

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub(crate) struct Failed {
    code: u8,
    message: String,
}

impl Failed {
    /// It failed in operation.
    pub(crate) fn failure(message: impl Into<String>) -> Self {
        Failed { code: FAILURE, message: message.into() }
    }

    /// It was asked for something that makes no sense.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Failed { code: USAGE, message: message.into() }
    }

    /// The same, behind what was tried before.
    pub(crate) fn after(self, before: &str) -> Self {
        Failed { message: before.to_owned() + &self.message, ..self }
    }

    /// A right is missing.
    pub(crate) fn no_permission(message: impl Into<String>) -> Self {
        Failed { code: NO_PERMISSION, message: message.into() }
    }
}

/// How a command ended: with an exit code of its own, or in failure.
pub(crate) type Outcome = Result<u8, Failed>;

/// Prints on standard output; a reader that has had enough is no failure.
pub(crate) fn print(text: &str) -> Outcome {
    match write(text.as_bytes()) {
        Ok(()) => Ok(SUCCESS),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(SUCCESS),
        Err(error) => Err(Failed::failure(format!("cannot write to standard output: {error}"))),
    }
}

/// Whether somebody still reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Printed {
    All,
    /// The reader has had enough.
    Closed,
}

/// Prints a part of what there is.
pub(crate) fn print_some(bytes: &[u8]) -> Result<Printed, Failed> {
    match write(bytes) {
        Ok(()) => Ok(Printed::All),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Printed::Closed),
        Err(error) => Err(Failed::failure(format!("cannot write to standard output: {error}"))),
    }
}

/// Whether nobody reads standard output any more.
pub(crate) fn is_closed() -> bool {
    let mut poll = libc::pollfd { fd: libc::STDOUT_FILENO, events: 0, revents: 0 };
    // SAFETY: `poll` is one valid pollfd for the length of the call.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready > 0 && poll.revents & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0
}

fn write(bytes: &[u8]) -> io::Result<()> {
    // Not through std's handle, which keeps what could not be written and
    // tries again at exit.
    let mut output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    output.write_all(bytes)
}

/// Tells what failed on standard error, and turns it into the exit code.
pub(crate) fn finish(outcome: Outcome) -> ExitCode {
    let code = match outcome {
        Ok(code) => code,
        Err(failed) => {
            complain(&failed.message);
            failed.code
        }
    };
    ExitCode::from(code)
}

/// Tells something on standard error.
pub(crate) fn complain(message: &str) {
    // Whoever reads the log as JSON is to be able to read this.
    if log::tells_failures_as_json() {
        tracing::error!("{}", message.trim_end());
        return;
    }
    // Nobody is left to tell where standard error is closed.
    let text = format!("vahti: {}\n", message.trim_end());
    drop(io::stderr().write_all(text.as_bytes()));
}
