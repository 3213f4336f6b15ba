//! The hot path's thread: read, process, commit.
//!
//! A batch belongs to whoever claims it first: the thread when it has processed
//! it, or the watcher when the thread hangs. So a hung thread that wakes up
//! later changes nothing any more, and the records that it had not come to, as
//! well as those whose events it had not routed yet, go on with a fresh
//! processor; only the record that it hangs at is lost, and counted.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Incarnation, ObserverRuntime, SharedSource};
use crate::clock::boot_now_ns;
use crate::error::describe;
use crate::ledger::{FailReason, add};
use crate::panic::contain;
use crate::pipeline::{Failure, Scratch};
use crate::source::{ReadOutcome, RecordBatch};

/// The thread waits for its turn at the processor.
const AT_THE_GATE: usize = usize::MAX;

/// Records read at once, at most.
pub(crate) const BATCH_RECORDS: usize = 256;
pub(crate) const BATCH_BYTES: usize = 256 << 10;

/// Records that were read and are still to be processed.
pub(super) struct Work {
    records: Arc<RecordBatch>,
    range: Range<usize>,
    /// Index within the range, or [`AT_THE_GATE`]. Not the thread's: one that was left behind and
    /// wakes up later must not move its successor's.
    at: AtomicUsize,
    claimed: AtomicBool,
}

impl Work {
    fn new(records: Arc<RecordBatch>, range: Range<usize>) -> Self {
        Work { records, range, at: AtomicUsize::new(AT_THE_GATE), claimed: AtomicBool::new(false) }
    }

    /// Whether the caller is the first to claim it.
    fn claim(&self) -> bool {
        !self.claimed.swap(true, Ordering::AcqRel)
    }

    pub(super) fn len(&self) -> usize {
        self.range.len()
    }
}

/// What the thread is at, for the watcher.
#[derive(Default)]
pub(super) struct Seat {
    /// What the thread works at, and what it has to do after that.
    work: Mutex<Option<(Arc<Work>, VecDeque<Work>)>>,
    /// Goes up with every piece of work.
    beat: AtomicU64,
}

impl Seat {
    fn sit(&self, work: &Arc<Work>, todo: VecDeque<Work>) {
        self.beat.fetch_add(1, Ordering::Relaxed);
        let seated = Some((Arc::clone(work), todo));
        *self.work.lock().unwrap_or_else(PoisonError::into_inner) = seated;
    }

    /// Gives back what is to do next.
    fn rise(&self) -> VecDeque<Work> {
        let seated = self.work.lock().unwrap_or_else(PoisonError::into_inner).take();
        seated.map(|(_, todo)| todo).unwrap_or_default()
    }

    /// What changes while there is progress; `None` while there is no work.
    pub(super) fn progress(&self) -> Option<(u64, usize)> {
        let seated = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let (work, _) = seated.as_ref()?;
        Some((self.beat.load(Ordering::Relaxed), work.at.load(Ordering::Relaxed)))
    }

    /// Has a thread at work that is none.
    #[cfg(all(test, not(shuttle)))]
    pub(super) fn sit_at_nothing(&self) {
        let none = Work::new(Arc::new(RecordBatch::new(0, 0)), 0..0);
        self.sit(&Arc::new(none), VecDeque::new());
    }

    /// Takes the work from a thread that hangs: what came before the record
    /// that it hangs at, and all that comes after; and whether there is such a
    /// record, or it only waits for another caller. `None` if it was faster.
    pub(super) fn take_over(&self) -> Option<(VecDeque<Work>, bool)> {
        let mut seated = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let (work, _) = seated.as_ref()?;
        // A thread that was faster takes what is to do next with it.
        if !work.claim() {
            return None;
        }
        let (work, mut left) = seated.take()?;
        let at = work.at.load(Ordering::Relaxed);
        if at == AT_THE_GATE {
            left.push_front(Work::new(Arc::clone(&work.records), work.range.clone()));
            return Some((left, false));
        }
        let hung = work.range.start + at;
        left.push_front(Work::new(Arc::clone(&work.records), hung + 1..work.range.end));
        left.push_front(Work::new(Arc::clone(&work.records), work.range.start..hung));
        Some((left, true))
    }
}

/// What the thread is told.
#[derive(Default)]
pub(super) struct Orders {
    /// Stop the source, read what is left, and end.
    pub(super) drain: AtomicBool,
    /// End now.
    pub(super) quit: AtomicBool,
}

/// How the thread ended.
pub(super) enum End {
    /// The source has ended and all was processed.
    Drained,
    /// It was told to end now.
    Quit(VecDeque<Work>),
    /// The processor failed; what is left to do.
    Failed(Failure, VecDeque<Work>),
    /// The source failed.
    SourceFailed(String, VecDeque<Work>),
    /// Its work was taken over; it has changed nothing since.
    Superseded,
}

pub(super) struct Thread {
    pub(super) runtime: Arc<ObserverRuntime>,
    pub(super) incarnation: Arc<Incarnation>,
    pub(super) source: SharedSource,
    pub(super) seat: Arc<Seat>,
    pub(super) orders: Arc<Orders>,
    pub(super) todo: VecDeque<Work>,
}

impl Thread {
    pub(super) fn run(mut self) -> End {
        let mut scratch = Scratch::default();
        let mut spare = RecordBatch::new(BATCH_RECORDS, BATCH_BYTES);
        let mut stopped = false;
        loop {
            if self.orders.quit.load(Ordering::Acquire) {
                return End::Quit(self.todo);
            }
            if let Some(work) = self.todo.pop_front() {
                match self.process(Arc::new(work), &mut scratch) {
                    Ok(Some(batch)) => spare = batch,
                    Ok(None) => {}
                    Err(end) => return *end,
                }
                continue;
            }
            if self.orders.drain.load(Ordering::Acquire) && !stopped {
                stopped = true;
                if let Err(panicked) = contain("source stop", || self.source.lock().stop()) {
                    return End::SourceFailed(panicked.to_string(), self.todo);
                }
            }
            let batch = std::mem::replace(&mut spare, RecordBatch::new(BATCH_RECORDS, BATCH_BYTES));
            match self.read(batch, stopped) {
                Ok((ReadOutcome::Ended, _)) => return End::Drained,
                Ok((_, batch)) => {
                    self.runtime.pipeline.fold_until(Some(boot_now_ns()), &mut scratch);
                    spare = batch;
                }
                Err(what) => return End::SourceFailed(what, self.todo),
            }
        }
    }

    /// Reads into `todo`, until the next storm's window ends at the latest.
    fn read(
        &mut self,
        mut batch: RecordBatch,
        stopped: bool,
    ) -> Result<(ReadOutcome, RecordBatch), String> {
        batch.clear();
        let timeout = if stopped { Some(Duration::ZERO) } else { self.patience() };
        let source = &self.source;
        let outcome = contain("source read", || source.lock().read(&mut batch, timeout))
            .map_err(|panicked| panicked.to_string())?
            .map_err(|error| describe(&error))?;
        if batch.is_empty() {
            return Ok((outcome, batch));
        }
        let counts = &self.runtime.pipeline.counts;
        let received = batch.len() as u64;
        add(&counts.received, received);
        add(&counts.received_from_source, received);
        add(&counts.processing, received);
        let all = 0..batch.len();
        self.todo.push_back(Work::new(Arc::new(batch), all));
        // Whatever it said, there is work first.
        Ok((ReadOutcome::Read, RecordBatch::new(BATCH_RECORDS, BATCH_BYTES)))
    }

    fn patience(&self) -> Option<Duration> {
        let end = self.runtime.pipeline.next_fold_ns()?;
        Some(Duration::from_nanos(end.saturating_sub(boot_now_ns())))
    }

    /// Processes one piece of work; gives its memory back if nobody else has it.
    fn process(
        &mut self,
        work: Arc<Work>,
        scratch: &mut Scratch,
    ) -> Result<Option<RecordBatch>, Box<End>> {
        let pipeline = &self.runtime.pipeline;
        self.seat.sit(&work, std::mem::take(&mut self.todo));
        let Some(inside) = self.incarnation.enter() else {
            return Err(Box::new(self.wait_for_the_end(&work)));
        };
        // The gate is passed: the first record is next.
        work.at.store(0, Ordering::Relaxed);
        let records = work.range.clone().filter_map(|index| work.records.get(index));
        let done = pipeline.process(&**self.incarnation.processor, records, &work.at, scratch);
        drop(inside);
        if !work.claim() {
            return Err(Box::new(End::Superseded));
        }
        self.todo = self.seat.rise();
        pipeline.commit(&done, scratch);
        pipeline.counts.processing.fetch_sub(done.records(), Ordering::Relaxed);
        match done.failure {
            Some(failure) => {
                let next = work.range.start + work.at.load(Ordering::Relaxed) + 1;
                let rest = Work::new(Arc::clone(&work.records), next..work.range.end);
                self.todo.push_front(rest);
                Err(Box::new(End::Failed(failure, std::mem::take(&mut self.todo))))
            }
            None => {
                let work = Arc::into_inner(work);
                Ok(work.and_then(|work| Arc::into_inner(work.records)))
            }
        }
    }

    /// The processor failed in somebody else's hands. Whoever it was tells
    /// `run` why, which ends this thread.
    fn wait_for_the_end(&mut self, work: &Work) -> End {
        if !work.claim() {
            return End::Superseded;
        }
        self.todo = self.seat.rise();
        self.todo.push_front(Work::new(Arc::clone(&work.records), work.range.clone()));
        let told = |order: &AtomicBool| order.load(Ordering::Acquire);
        while !told(&self.orders.quit) && !told(&self.orders.drain) {
            std::thread::sleep(Duration::from_millis(1));
        }
        End::Quit(std::mem::take(&mut self.todo))
    }
}

impl ObserverRuntime {
    /// Counts what nobody will process any more.
    pub(super) fn give_up(&self, todo: VecDeque<Work>) {
        self.give_up_records(todo.iter().map(Work::len).sum());
    }

    pub(super) fn give_up_records(&self, records: usize) {
        self.pipeline.fail(FailReason::Down, records as u64);
        self.pipeline.counts.processing.fetch_sub(records as u64, Ordering::Relaxed);
    }
}
