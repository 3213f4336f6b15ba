//! A batch as lines, and writing it so that we know which lines arrived.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vahti_runtime::emitter::{Delivery, EmitOutcome};
use vahti_runtime::event::Event;

/// What a buffer keeps of its memory between batches, in bytes.
const KEPT_CAPACITY: usize = 64 << 10;

/// How many bytes of lines are made at once, unless it is told.
pub(crate) const DEFAULT_BYTES: usize = 512 << 10;

/// The lines of a batch, one an event, in a buffer that is used again.
#[derive(Debug)]
pub(crate) struct Lines {
    bytes: Vec<u8>,
    /// Where each line ends.
    ends: Vec<usize>,
    /// How long all of them may be; one line at least. The buffer grows by
    /// doubling, so it takes up to twice that.
    max_bytes: usize,
}

impl Lines {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Lines { bytes: Vec::new(), ends: Vec::new(), max_bytes }
    }

    /// Renders the beginning of a batch, as much as there is room for; forgets
    /// what was rendered before. Returns how many events that is.
    pub(crate) fn render(
        &mut self,
        batch: &[Arc<Event>],
        line: impl Fn(&Event, &mut Vec<u8>),
    ) -> usize {
        self.bytes.clear();
        self.ends.clear();
        for event in batch {
            let before = self.bytes.len();
            line(event, &mut self.bytes);
            if before > 0 && self.bytes.len() > self.max_bytes {
                self.bytes.truncate(before);
                break;
            }
            self.ends.push(self.bytes.len());
        }
        self.ends.len()
    }

    /// Gives back what a large batch took.
    pub(crate) fn release(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_CAPACITY);
    }

    fn start(&self, line: usize) -> usize {
        match line.checked_sub(1) {
            Some(before) => self.ends.get(before).copied().unwrap_or(self.bytes.len()),
            None => 0,
        }
    }

    /// The bytes of lines `from` up to, not including, `to`.
    pub(crate) fn slice(&self, from: usize, to: usize) -> &[u8] {
        self.bytes.get(self.start(from)..self.start(to)).unwrap_or_default()
    }

    /// The number of the line that would be the first not to fit, if lines
    /// from `from` on may take `room` bytes.
    pub(crate) fn fitting(&self, from: usize, room: u64) -> usize {
        let start = self.start(from);
        let fits = |end: &usize| end.saturating_sub(start) as u64 <= room;
        let rest = self.ends.get(from..).unwrap_or_default();
        from + rest.partition_point(fits)
    }
}

/// Writes everything, in as few calls as the other side allows.
///
/// # Errors
/// How many bytes arrived before the error, and the error.
pub(crate) fn write_all(mut file: &File, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match file.write(rest) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(n) => written += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // Whoever we share the descriptor with may have made it
            // non-blocking.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                wait_until_writable(file).map_err(|e| (written, e))?;
            }
            Err(e) => return Err((written, e)),
        }
    }
    Ok(())
}

fn wait_until_writable(file: &File) -> io::Result<()> {
    let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: `poll` is one valid pollfd for the length of the call, and its
    // descriptor is open as long as `file` is borrowed.
    match unsafe { libc::poll(&raw mut poll, 1, -1) } {
        -1 => match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::Interrupted => Ok(()),
            e => Err(e),
        },
        _ => Ok(()),
    }
}

/// What became of a batch of which the first `delivered` arrived and the rest
/// did not, all for the same reason.
pub(crate) fn outcome(
    delivered: usize,
    batch: usize,
    rest: Delivery,
    reason: String,
) -> EmitOutcome {
    if delivered >= batch {
        return EmitOutcome::Delivered;
    }
    if delivered > 0 {
        let mut deliveries = vec![Delivery::Delivered; delivered];
        deliveries.resize(batch, rest);
        return EmitOutcome::Each { deliveries, reason, retry_after: None };
    }
    match rest {
        Delivery::Rejected => EmitOutcome::Rejected { reason },
        _ => EmitOutcome::Retryable { reason, retry_after: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_fit() {
        let lines = Lines { bytes: b"ab\ncd\ne\n".to_vec(), ends: vec![3, 6, 8], max_bytes: 9 };
        for (from, room, next) in
            [(0, 2, 0), (0, 3, 1), (0, 7, 2), (0, 99, 3), (1, 4, 2), (2, 1, 2), (3, 9, 3)]
        {
            assert_eq!(lines.fitting(from, room), next, "from {from}, {room} bytes");
        }
        assert_eq!(lines.slice(1, 3), b"cd\ne\n");
        assert_eq!(lines.slice(3, 4), b"");
    }

    #[test]
    fn as_many_are_rendered_as_there_is_room_for_and_one_at_least() {
        use vahti_runtime::event::{OOM_KILL, Severity};
        let event = || Arc::new(Event::new(&OOM_KILL, Severity::Error));
        let batch: Vec<_> = std::iter::repeat_with(event).take(5).collect();
        let five_bytes = |_: &Event, out: &mut Vec<u8>| out.extend_from_slice(b"line\n");
        for (max_bytes, rendered) in [(1, 1), (5, 1), (9, 1), (10, 2), (99, 5)] {
            let mut lines = Lines::new(max_bytes);
            assert_eq!(lines.render(&batch, five_bytes), rendered, "{max_bytes}");
            assert_eq!(lines.slice(0, rendered), b"line\n".repeat(rendered));
        }
    }

    #[test]
    fn each_answer_says_exactly_what_arrived() {
        let after = |n| outcome(n, 3, Delivery::Retryable, "full".into());
        assert_eq!(after(3), EmitOutcome::Delivered);
        assert!(matches!(after(0), EmitOutcome::Retryable { .. }));
        let EmitOutcome::Each { deliveries, .. } = after(1) else {
            panic!("{:?}", after(1));
        };
        use Delivery::{Delivered, Retryable};
        assert_eq!(deliveries, [Delivered, Retryable, Retryable]);
    }
}
