//! The asking side: what `vahti ledger` does.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vahti_runtime::event::escape;

/// An agent that takes longer to answer has other problems.
const PATIENCE: Duration = Duration::from_secs(10);

/// More than any answer, in bytes.
const MAX_ANSWER: u64 = 64 << 20;

/// Why a running agent did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// There is none.
    #[error(
        "no agent answers at {}: start one with `vahti run`, or name its socket with --socket",
        escape(path.as_os_str().as_encoded_bytes())
    )]
    NotRunning {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// It belongs to somebody else.
    #[error(
        "the agent at {} may only be asked by the user that it runs as",
        escape(path.as_os_str().as_encoded_bytes())
    )]
    NotAllowed {
        /// Where it is.
        path: PathBuf,
    },
    /// It did not answer, or not with JSON.
    #[error(
        "the agent at {} did not answer: {why}",
        escape(path.as_os_str().as_encoded_bytes())
    )]
    NoAnswer {
        /// Where it is.
        path: PathBuf,
        /// What went wrong.
        why: String,
    },
}

/// Asks the agent at `path` one question.
///
/// # Errors
/// There is no agent, it may not be asked, or it does not answer.
pub(crate) fn ask(path: &Path, request: &str) -> Result<serde_json::Value, ClientError> {
    let stream = UnixStream::connect(path).map_err(|error| connect_error(path, &error))?;
    let no_answer = |why: String| ClientError::NoAnswer { path: path.to_owned(), why };
    let text = converse(&stream, request).map_err(|error| no_answer(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| no_answer(format!("no JSON: {error}")))
}

fn connect_error(path: &Path, error: &io::Error) -> ClientError {
    let path = path.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ClientError::NotRunning { path }
        }
        io::ErrorKind::PermissionDenied => ClientError::NotAllowed { path },
        _ => ClientError::NoAnswer { path, why: error.to_string() },
    }
}

fn converse(mut stream: &UnixStream, request: &str) -> io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    writeln!(stream, "{request}")?;
    let mut text = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut text)?;
    Ok(text)
}
