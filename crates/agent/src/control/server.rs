//! The answering side: one thread, and one poll(2) for all clients, so that
//! none waits for another.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use vahti_runtime::panic::contain_and_log;

use super::Peer;

const MAX_REQUEST: usize = 4 << 10;
/// More than may be held ([`Reply::Held`]), so that there is always one that
/// can give way.
pub(super) const MAX_CLIENTS: usize = 32;
const TIME_TO_ASK: Duration = Duration::from_secs(1);
const TIME_TO_READ: Duration = Duration::from_secs(5);
const TIME_TO_HOLD: Duration = Duration::from_secs(30);
/// How long an answer may take that others make; clients wait for ten seconds.
const TIME_TO_ANSWER: Duration = Duration::from_secs(9);
/// More than any answer that others make.
const MAX_ANSWER: u64 = 4 << 20;
/// How long nobody is accepted where that was not possible.
const TIME_TO_RECOVER: Duration = Duration::from_secs(1);

/// What a request is answered with.
pub(crate) enum Reply {
    /// A JSON document.
    Document(Vec<u8>),
    /// The same, and something that is dropped when the client hangs up, dies
    /// or was given its time; only then is the connection closed.
    Held(Vec<u8>, Box<dyn Send>),
    /// A document that comes from there, up to its end; it must not block.
    Later(UnixStream),
}

/// Answers a request's line, or does not know it.
pub(crate) type Answer = dyn Fn(&str, Peer) -> Option<Reply> + Send + Sync;

/// Answers until the other end of `stop` is closed.
pub(super) fn serve(listener: &UnixListener, stop: &UnixStream, answer: &Answer) {
    let mut clients: Vec<Client> = Vec::new();
    let mut closed_until: Option<Instant> = None;
    loop {
        closed_until = closed_until.filter(|until| *until > Instant::now());
        let mut entries = vec![
            entry(stop.as_raw_fd(), libc::POLLIN),
            // Entries with a negative descriptor are passed over.
            entry(if closed_until.is_some() { -1 } else { listener.as_raw_fd() }, libc::POLLIN),
        ];
        entries.extend(clients.iter().map(Client::entry));
        let next = clients.iter().map(Client::deadline).chain(closed_until).min();
        if let Err(error) = poll(&mut entries, next) {
            tracing::warn!(%error, "the control socket can't wait for clients");
            std::thread::sleep(TIME_TO_RECOVER);
            continue;
        }
        let mut ready = entries.iter().map(|entry| entry.revents != 0);
        if ready.next() == Some(true) {
            return;
        }
        let somebody_came = ready.next() == Some(true);
        let now = Instant::now();
        clients.retain_mut(|client| {
            (ready.next() != Some(true) || client.go_on(answer)) && client.deadline() > now
        });
        if somebody_came && let Err(error) = accept(listener, &mut clients, answer) {
            // Out of descriptors, most likely; others may free some.
            tracing::warn!(%error, "the control socket can't take a client");
            closed_until = Some(now + TIME_TO_RECOVER);
        }
    }
}

/// Takes one client; where that is one too many, who has been silent for
/// longest gives way.
fn accept(listener: &UnixListener, clients: &mut Vec<Client>, answer: &Answer) -> io::Result<()> {
    let stream = match listener.accept() {
        Ok((stream, _)) => stream,
        Err(error) if is_for_later(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    let peer = Peer::of(&stream)?;
    stream.set_nonblocking(true)?;
    let mut client =
        Client { stage: Stage::Asking(Vec::new()), since: Instant::now(), peer, stream };
    // Most have asked by now, and need no place.
    if !client.go_on(answer) {
        return Ok(());
    }
    if clients.len() >= MAX_CLIENTS {
        let idle = clients.iter().enumerate().min_by_key(|(_, c)| (c.stage.rank(), c.since));
        if let Some((index, _)) = idle {
            drop(clients.remove(index));
        }
    }
    clients.push(client);
    Ok(())
}

/// Dropped in this order: what was held for a client is let go of before it is
/// told so, by the end of its connection.
struct Client {
    stage: Stage,
    /// When its stage began.
    since: Instant,
    peer: Peer,
    stream: UnixStream,
}

enum Stage {
    /// Has sent so much of its request.
    Asking(Vec<u8>),
    /// Has taken so many bytes of the answer.
    Reading {
        answer: Vec<u8>,
        taken: usize,
        held: Option<Box<dyn Send>>,
    },
    /// Waits with it for an answer that others make.
    Waiting {
        from: UnixStream,
        answer: Vec<u8>,
    },
    Holding {
        _held: Box<dyn Send>,
    },
}

impl Stage {
    fn waits_for(&self) -> libc::c_short {
        match self {
            Stage::Asking(_) | Stage::Waiting { .. } | Stage::Holding { .. } => libc::POLLIN,
            Stage::Reading { .. } => libc::POLLOUT,
        }
    }

    /// Who gives way first.
    fn rank(&self) -> u8 {
        match self {
            Stage::Asking(_) => 0,
            Stage::Reading { held: None, .. } | Stage::Waiting { .. } => 1,
            Stage::Reading { .. } | Stage::Holding { .. } => 2,
        }
    }
}

impl Client {
    fn entry(&self) -> libc::pollfd {
        let fd = match &self.stage {
            Stage::Waiting { from, .. } => from.as_raw_fd(),
            _ => self.stream.as_raw_fd(),
        };
        entry(fd, self.stage.waits_for())
    }

    /// The time is for the whole of a stage, or a client could send a byte a
    /// second for ever.
    fn deadline(&self) -> Instant {
        self.since
            + match self.stage {
                Stage::Asking(_) => TIME_TO_ASK,
                Stage::Reading { .. } => TIME_TO_READ,
                Stage::Waiting { .. } => TIME_TO_ANSWER,
                Stage::Holding { .. } => TIME_TO_HOLD,
            }
    }

    /// Does what can be done without waiting; whether there is more to do.
    fn go_on(&mut self, answer: &Answer) -> bool {
        match self.try_to_go_on(answer) {
            Ok(goes_on) => goes_on,
            Err(error) if is_for_later(&error) => true,
            Err(error) => {
                tracing::debug!(%error, "a client of the control socket went away");
                false
            }
        }
    }

    fn try_to_go_on(&mut self, answer: &Answer) -> io::Result<bool> {
        loop {
            let next = match &mut self.stage {
                Stage::Asking(line) => {
                    if !read_line(&mut self.stream, line)? {
                        continue;
                    }
                    // It only looked whether anybody answers.
                    if line.is_empty() {
                        return Ok(false);
                    }
                    begin_answer(line, self.peer, answer)
                }
                Stage::Reading { answer, taken, held } => {
                    match answer.get(*taken..).filter(|rest| !rest.is_empty()) {
                        Some(rest) => {
                            *taken += self.stream.write(rest)?;
                            continue;
                        }
                        None => match held.take() {
                            Some(held) => Stage::Holding { _held: held },
                            None => return Ok(false),
                        },
                    }
                }
                Stage::Waiting { from, answer } => {
                    // What was read stays where there is no more of it yet.
                    from.take(MAX_ANSWER).read_to_end(answer)?;
                    let mut answer = std::mem::take(answer);
                    answer.push(b'\n');
                    Stage::Reading { answer, taken: 0, held: None }
                }
                // Whatever it sends, or its end: it is through.
                Stage::Holding { .. } => {
                    return self.stream.read(&mut [0]).map(|_| false);
                }
            };
            self.stage = next;
            self.since = Instant::now();
        }
    }
}

/// Reads more of a line; whether that is all of it.
fn read_line(stream: &mut UnixStream, line: &mut Vec<u8>) -> io::Result<bool> {
    let mut bytes = [0; 512];
    let count = stream.read(&mut bytes)?;
    line.extend_from_slice(bytes.get(..count).unwrap_or_default());
    Ok(count == 0 || line.contains(&b'\n') || line.len() >= MAX_REQUEST)
}

fn begin_answer(line: &[u8], peer: Peer, answer: &Answer) -> Stage {
    let line = String::from_utf8_lossy(line);
    let request = line.lines().next().unwrap_or_default().trim();
    // One request that brings a bug to light must not end this thread.
    let answered = contain_and_log(
        "control",
        || answer(request, peer),
        |panicked| tracing::error!(error = %panicked, "a request could not be answered"),
    );
    let (mut document, held) = match answered {
        Ok(Some(Reply::Document(document))) => (document, None),
        Ok(Some(Reply::Held(document, held))) => (document, Some(held)),
        Ok(Some(Reply::Later(from))) => return Stage::Waiting { from, answer: Vec::new() },
        Ok(None) => (
            br#"{"error":"unknown request; known are: ledger, health, log, reload, prove"}"#
                .to_vec(),
            None,
        ),
        Err(_) => (br#"{"error":"a bug in vahti: its log tells"}"#.to_vec(), None),
    };
    document.push(b'\n');
    Stage::Reading { answer: document, taken: 0, held }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn entry(fd: RawFd, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

/// Waits for any of these, until then at most.
fn poll(entries: &mut [libc::pollfd], until: Option<Instant>) -> io::Result<()> {
    let timeout = until.map_or(-1, |until| {
        let left = until.saturating_duration_since(Instant::now()).as_millis() + 1;
        libc::c_int::try_from(left).unwrap_or(libc::c_int::MAX)
    });
    // SAFETY: `entries` is writable for its length.
    if unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout) } >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if is_for_later(&error) => Ok(()),
        error => Err(error),
    }
}
