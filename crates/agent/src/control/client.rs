//! The asking side: what `vahti ledger` does, and whoever makes proofs.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vahti_runtime::event::escape;

/// An agent that takes longer to answer has other problems.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long agents have to hear of proofs, all together: an observer waits
/// meanwhile.
const TIME_TO_HEAR: Duration = Duration::from_secs(1);

/// More than any answer, in bytes.
const MAX_ANSWER: u64 = 64 << 20;
const MAX_REFUSAL: u64 = 4 << 10;

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

/// Agents that know of our proofs for as long as this is held.
pub(crate) struct Announcements(Vec<UnixStream>);

impl Announcements {
    /// Tells the agents at these paths that the process `tgid`, which is ours,
    /// makes proofs. `untold` hears of each that is there and does not know.
    pub(crate) fn make(paths: &[PathBuf], tgid: u32, mut untold: impl FnMut(ClientError)) -> Self {
        let mut known = Announcements(Vec::new());
        let begun: Vec<_> = paths.iter().map(|path| (path, begin(path, tgid))).collect();
        let deadline = Instant::now() + TIME_TO_HEAR;
        for (path, begun) in begun {
            match begun.and_then(|stream| hear(path, &stream, deadline).map(|()| stream)) {
                Ok(stream) => known.0.push(stream),
                Err(ClientError::NotRunning { .. }) => {}
                Err(error) => untold(error),
            }
        }
        known
    }
}

impl Drop for Announcements {
    /// Waits until they have forgotten: what fails for us from then on is a
    /// failure.
    fn drop(&mut self) {
        let deadline = Instant::now() + TIME_TO_HEAR;
        for stream in &self.0 {
            if let Err(error) = stream.shutdown(Shutdown::Write) {
                tracing::debug!(%error, "an agent that knew of our proofs has ended");
            }
        }
        for stream in &self.0 {
            if let Err(error) = read_until(stream, deadline, &mut Vec::new()) {
                tracing::debug!(%error, "an agent forgets our proofs only later");
            }
        }
    }
}

fn begin(path: &Path, tgid: u32) -> Result<UnixStream, ClientError> {
    let stream = UnixStream::connect(path).map_err(|error| connect_error(path, &error))?;
    let told = stream.set_write_timeout(Some(TIME_TO_HEAR));
    told.and_then(|()| writeln!(&stream, "prove {tgid}"))
        .map_err(|error| ClientError::NoAnswer { path: path.to_owned(), why: error.to_string() })?;
    Ok(stream)
}

/// Whether it knows of our proofs now; if not, why.
fn hear(path: &Path, stream: &UnixStream, deadline: Instant) -> Result<(), ClientError> {
    let no_answer = |why: &str| ClientError::NoAnswer { path: path.to_owned(), why: why.into() };
    let mut line = Vec::new();
    match read_until(stream, deadline, &mut line) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(no_answer("it takes too long"));
        }
        Err(error) => return Err(no_answer(&error.to_string())),
    }
    if line.is_empty() {
        // It ended meanwhile.
        return Err(ClientError::NotRunning { path: path.to_owned() });
    }
    let answer: serde_json::Value = serde_json::from_slice(&line).unwrap_or_default();
    if answer["proving"].is_number() {
        return Ok(());
    }
    Err(no_answer(answer["error"].as_str().unwrap_or("not as expected")))
}

/// Reads a line, or to the end. An agent sends it at once, in one piece.
fn read_until(stream: &UnixStream, deadline: Instant, line: &mut Vec<u8>) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
    BufReader::new(stream.take(MAX_REFUSAL)).read_until(b'\n', line).map(drop)
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
