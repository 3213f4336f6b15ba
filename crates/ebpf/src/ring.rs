//! The consumer of a kernel ring buffer.
//!
//! aya has one too, but it can't tell how many records wait, which the ledger
//! needs. The protocol is that of `include/uapi/linux/bpf.h` and
//! `kernel/bpf/ringbuf.c`: a page that we write (how far we are), one that the
//! kernel writes (how far it is), and the data, mapped twice in a row so that
//! a record is always contiguous.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

const HEADER_SIZE: u64 = 8;
/// The record is reserved and not yet written.
const BUSY: u32 = 1 << 31;
/// The record was given up by its writer.
const DISCARDED: u32 = 1 << 30;

/// The reading end: one a ring.
#[derive(Debug)]
pub struct RingReader {
    ring: Arc<Ring>,
}

/// A mapped ring buffer, for whoever waits for it or counts what is in it.
#[derive(Debug)]
pub struct Ring {
    fd: OwnedFd,
    consumer: Mapping,
    producer: Mapping,
    page: usize,
    size: u64,
}

/// What stopped a walk over the ring.
enum Step {
    /// A record of this many bytes starts here; `true`: it was discarded.
    Record { len: u64, discarded: bool },
    /// Nothing more is written, or what is there makes no sense.
    End { garbage: bool },
}

impl RingReader {
    /// Maps the ring buffer behind `fd`, whose data is `size` bytes long.
    ///
    /// # Errors
    /// It is no ring buffer of that size.
    pub fn map(fd: OwnedFd, size: u32) -> io::Result<Self> {
        let ring = Arc::new(Ring::map(fd, size)?);
        Ok(RingReader { ring })
    }

    /// The ring that this reads from.
    #[must_use]
    pub fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }

    /// Hands records to `take` until it returns `false` (that record stays),
    /// then gives their room back at once. Returns how many were taken.
    pub fn read(&mut self, mut take: impl FnMut(&[u8]) -> bool) -> usize {
        let ring = &*self.ring;
        // Only this reader writes the consumer's position.
        let start = ring.consumer_position().load(Ordering::Relaxed);
        let end = ring.producer_position().load(Ordering::Acquire);
        let mut at = start;
        let mut taken = 0;
        loop {
            match ring.step(at, end) {
                Step::Record { len, discarded } => {
                    if !discarded {
                        if !take(ring.bytes(at, len)) {
                            break;
                        }
                        taken += 1;
                    }
                    at += room_of(len);
                }
                Step::End { garbage: false } => break,
                Step::End { garbage: true } => {
                    // Can't come from the kernel; nothing behind it can be found.
                    at = end;
                    break;
                }
            }
        }
        if at != start {
            ring.release(at);
        }
        taken
    }
}

impl Ring {
    fn map(fd: OwnedFd, size: u32) -> io::Result<Self> {
        let page = page_size();
        if !size.is_power_of_two() || (size as usize) < page {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let consumer = Mapping::new(fd.as_fd(), page, libc::PROT_READ | libc::PROT_WRITE, 0)?;
        let len = page + 2 * size as usize;
        let producer = Mapping::new(fd.as_fd(), len, libc::PROT_READ, page)?;
        Ok(Ring { fd, consumer, producer, page, size: u64::from(size) })
    }

    /// Gives the room before `at` back to the kernel.
    fn release(&self, at: u64) {
        self.consumer_position().store(at, Ordering::Release);
        // The kernel wakes us for a record only if it sees that we had read
        // all before it. Either it sees this store, or whoever looks for its
        // position next (poll(2)) sees the record.
        fence(Ordering::SeqCst);
    }

    /// How many records are written and not yet read. Exact while nobody
    /// writes or reads.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        let mut at = self.consumer_position().load(Ordering::Acquire);
        let end = self.producer_position().load(Ordering::Acquire);
        let mut count = 0;
        while let Step::Record { len, discarded } = self.step(at, end) {
            count += u64::from(!discarded);
            at += room_of(len);
        }
        count
    }

    /// Whether nothing waits, by the two positions alone.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.consumer_position().load(Ordering::Acquire)
            == self.producer_position().load(Ordering::Acquire)
    }

    fn step(&self, at: u64, end: u64) -> Step {
        // A reader may pass a counter by, and then `at` lies behind `end`.
        if at >= end || end - at > self.size {
            return Step::End { garbage: at != end };
        }
        let header = self.header(at).load(Ordering::Acquire);
        if header & BUSY != 0 {
            return Step::End { garbage: false };
        }
        let len = u64::from(header & !(BUSY | DISCARDED));
        if room_of(len) > end - at {
            return Step::End { garbage: true };
        }
        Step::Record { len, discarded: header & DISCARDED != 0 }
    }

    fn consumer_position(&self) -> &AtomicU64 {
        // SAFETY: the mapping starts with the position, aligned to a page, and
        // lives as long as `self`.
        unsafe { self.consumer.address.cast().as_ref() }
    }

    fn producer_position(&self) -> &AtomicU64 {
        // SAFETY: as above; it is never written through this reference.
        unsafe { self.producer.address.cast().as_ref() }
    }

    fn data(&self, at: u64) -> NonNull<u8> {
        let offset = self.page + (at & (self.size - 1)) as usize;
        // SAFETY: the mapping is page + 2 * size long, so this lies in its
        // first half of data.
        unsafe { self.producer.address.add(offset) }
    }

    fn header(&self, at: u64) -> &AtomicU32 {
        // Positions are multiples of 8 by construction; masking keeps a torn
        // count of another thread aligned all the same.
        // SAFETY: in bounds by `data`, aligned to 4, alive as long as `self`.
        unsafe { self.data(at & !7).cast().as_ref() }
    }

    fn bytes(&self, at: u64, len: u64) -> &[u8] {
        // SAFETY: `step` has seen that the record ends before the producer's
        // position, at most `size` further on; so it lies within the two
        // copies of the data. The kernel does not touch it until the
        // consumer's position passes it.
        unsafe {
            std::slice::from_raw_parts(
                self.data(at).add(HEADER_SIZE as usize).as_ptr(),
                len as usize,
            )
        }
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What a record of `len` bytes takes in the ring.
fn room_of(len: u64) -> u64 {
    (len + HEADER_SIZE).next_multiple_of(8)
}

pub(crate) fn page_size() -> usize {
    // SAFETY: asks for a constant.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

#[derive(Debug)]
struct Mapping {
    address: NonNull<u8>,
    len: usize,
}

impl Mapping {
    fn new(fd: BorrowedFd<'_>, len: usize, access: i32, offset: usize) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new mapping, placed by the kernel.
        let address = unsafe {
            libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, fd.as_raw_fd(), offset)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address =
            NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Mapping { address, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and nothing borrows it any more.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.len) };
    }
}

// SAFETY: shared memory; positions and headers are read as atomics, and only the
// one reader looks at bytes, which stay as they are until it releases them.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&self` only loads.
unsafe impl Sync for Mapping {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::fd::FromRawFd as _;
    use std::os::unix::fs::FileExt as _;

    const SIZE: u32 = 4096;

    /// A file laid out as a ring buffer's mappings are.
    fn ring_of(producer: u64, data: &[u8]) -> (RingReader, std::fs::File) {
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"ring".as_ptr(), 0) };
        assert!(fd >= 0);
        // SAFETY: just made, owned by nobody else.
        let file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let page = page_size() as u64;
        file.set_len(2 * page + 2 * u64::from(SIZE)).unwrap();
        file.write_all_at(&producer.to_ne_bytes(), page).unwrap();
        file.write_all_at(data, 2 * page).unwrap();
        let fd = OwnedFd::from(file.try_clone().unwrap());
        (RingReader::map(fd, SIZE).unwrap(), file)
    }

    fn record(len: u32, flags: u32) -> Vec<u8> {
        let mut bytes = (len | flags).to_ne_bytes().to_vec();
        bytes.resize(room_of(u64::from(len)) as usize, 7);
        bytes
    }

    #[test]
    fn discarded_records_are_skipped_and_busy_ones_waited_for() {
        let data = [record(3, 0), record(9, DISCARDED), record(0, 0), record(5, BUSY)].concat();
        let (mut reader, _file) = ring_of(data.len() as u64, &data);
        assert_eq!(reader.ring().waiting(), 2);
        let mut seen = Vec::new();
        assert_eq!(
            reader.read(|r| {
                seen.push(r.to_vec());
                true
            }),
            2
        );
        assert_eq!(seen, [vec![7; 3], vec![]]);
        assert_eq!(reader.ring().waiting(), 0);
        assert_eq!(reader.read(|_| true), 0);
    }

    #[test]
    fn a_record_that_is_not_taken_stays() {
        let data = [record(8, 0), record(8, 0)].concat();
        let (mut reader, _file) = ring_of(data.len() as u64, &data);
        let mut room = 1;
        assert_eq!(
            reader.read(|_| {
                room -= 1;
                room >= 0
            }),
            1
        );
        assert_eq!(reader.ring().waiting(), 1);
        assert_eq!(reader.read(|_| true), 1);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_read_outside_the_ring(
            producer in prop_oneof![any::<u64>(), 0..=u64::from(SIZE)],
            words in proptest::collection::vec(prop_oneof![any::<u32>(), 0_u32..64], 0..1024),
        ) {
            let data: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
            let (mut reader, _file) = ring_of(producer, &data);
            let waiting = reader.ring().waiting();
            let mut sum = 0_u64;
            let taken = reader.read(|r| { sum += r.iter().map(|b| u64::from(*b)).sum::<u64>(); true });
            prop_assert_eq!(taken as u64, waiting);
        }
    }
}
