//! What durable exporters read: each from a connection of its own, so that no
//! reader holds up the writer.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OpenFlags, params};
use tokio::sync::watch;
use vahti_runtime::durable::{DurableCursor, DurableLog, LogError, Owed, Settled};
use vahti_runtime::event::{Event, Priority, from_json_line};
use vahti_runtime::ledger::{LaneLine, Tally};

use super::books::{Contradiction, Passed, signed, unsigned};
use super::config::{AHEAD, CURSOR_CACHE_KIB};
use super::writer::Trouble;
use super::{Shared, Store};

const NOT_OPEN: &str = "the store is not open; see its own state for why";

impl DurableLog for Store {
    fn cursor(&self, emitter: &str) -> Result<Box<dyn DurableCursor>, LogError> {
        Cursor::open(Arc::clone(&self.shared), emitter)
            .map(|cursor| Box::new(cursor) as Box<dyn DurableCursor>)
            .map_err(LogError)
    }

    fn line(&self, emitter: &str) -> LaneLine {
        let view = self.shared.view();
        let mut counts =
            view.books.exporter(emitter).map(|account| account.counts).unwrap_or_default();
        let (_, in_flight) = view.in_flight.get(emitter).copied().unwrap_or_default();
        for (counts, in_flight) in counts.iter_mut().zip(in_flight) {
            // What left the file while it was in flight was counted as dropped.
            counts.in_flight = least(counts.stored, in_flight);
            counts.stored -= counts.in_flight;
        }
        LaneLine::durable("store", emitter, &counts)
    }

    fn committed(&self) -> watch::Receiver<u64> {
        self.shared.committed.subscribe()
    }
}

fn least(a: Tally, b: Tally) -> Tally {
    Tally { occurrences: a.occurrences.min(b.occurrences), envelopes: a.envelopes.min(b.envelopes) }
}

/// One that was read and is not yet behind the cursor.
struct Read {
    seq: u64,
    id: String,
    count: u64,
    /// `None` once it is settled.
    event: Option<Arc<Event>>,
    rejected: bool,
    /// What it takes in memory until it is settled.
    bytes: usize,
}

/// What was read of an event that is still open takes: the event, beside it the
/// entry itself and its id.
fn bytes_of(event: &Event) -> usize {
    event.size_bytes() + 2 * size_of::<Read>() + 64
}

/// What a cursor knew that ended before it could note what was delivered; the
/// next one notes that, so that nothing is sent again.
pub(super) struct Parked {
    generation: u64,
    windows: [VecDeque<Read>; 2],
    looked_to: [u64; 2],
    reasons: Vec<(u64, String, String)>,
}

/// A connection that reads, which the store may close under its user.
#[derive(Default)]
pub(super) struct Line {
    connection: Mutex<Option<Connection>>,
    is_to_close: AtomicBool,
}

impl Line {
    /// For whoever has the store's lock: whoever closes all of them, and opens
    /// the next file, does so under it.
    pub(super) fn open(
        shared: &Shared,
        file: &Path,
        cache_bytes: usize,
    ) -> Result<Arc<Self>, Trouble> {
        let connection = shared.medium.connect(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let cache_kib = signed(cache_bytes as u64 >> 10);
        connection.pragma_update(None, "cache_size", -cache_kib)?;
        let connection = Mutex::new(Some(connection));
        let line = Arc::new(Line { connection, is_to_close: AtomicBool::new(false) });
        let mut lines = shared.lines();
        lines.retain(|line| line.strong_count() > 0);
        lines.push(Arc::downgrade(&line));
        Ok(line)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_to_close(&self) -> bool {
        self.is_to_close.load(Ordering::Relaxed)
    }

    /// Waits for what is read just now.
    pub(super) fn close(&self) {
        self.is_to_close.store(true, Ordering::Relaxed);
        *self.lock() = None;
    }
}

struct Cursor {
    shared: Arc<Shared>,
    exporter: String,
    /// Which of all cursors it is: one that was left behind has no say any more.
    number: u64,
    /// Closed at first, and wherever the store has closed it.
    line: Arc<Line>,
    /// Goes up with every file.
    generation: u64,
    /// By priority: what was read and not passed yet, in order.
    windows: [VecDeque<Read>; 2],
    /// By priority: up to where was looked.
    looked_to: [u64; 2],
    /// Why some were refused, of those whose settling is not noted yet.
    reasons: Vec<(u64, String, String)>,
    /// What is settled could not be noted.
    is_behind: bool,
}

impl Cursor {
    fn open(shared: Arc<Shared>, exporter: &str) -> Result<Self, String> {
        let generation = shared.file().ok_or_else(|| NOT_OPEN.to_owned())?.1;
        let cursor = shared
            .view()
            .books
            .exporter(exporter)
            .map(|account| account.cursor)
            .ok_or_else(|| format!("{exporter} has no account with the store"))?;
        let mut view = shared.view();
        view.cursors += 1;
        let number = view.cursors;
        // From here on it is this one's to tell.
        view.in_flight.insert(exporter.to_owned(), (number, Default::default()));
        drop(view);
        let parked = shared.parked().remove(exporter).filter(|it| it.generation == generation);
        let is_behind = parked.is_some();
        let mut parked = parked.unwrap_or_else(|| Parked {
            generation,
            windows: Default::default(),
            looked_to: cursor,
            reasons: Vec::new(),
        });
        for (window, cursor) in parked.windows.iter_mut().zip(cursor) {
            // Another one may have come further meanwhile.
            window.retain(|read| read.seq > cursor);
        }
        Ok(Cursor {
            shared,
            exporter: exporter.to_owned(),
            number,
            line: Arc::default(),
            generation,
            windows: parked.windows,
            looked_to: parked.looked_to,
            reasons: parked.reasons,
            is_behind,
        })
    }

    /// Has its connection open; the store may close it again at any time.
    fn connect(&mut self) -> Result<(), Trouble> {
        if self.line.lock().is_some() {
            return Ok(());
        }
        let _inner = self.shared.lock();
        let file = self.shared.file().filter(|(_, generation)| *generation == self.generation);
        let (file, _) = file.ok_or_else(|| Trouble::Later(NOT_OPEN.to_owned()))?;
        self.line = Line::open(&self.shared, &file, CURSOR_CACHE_KIB << 10)?;
        Ok(())
    }

    /// Goes over to the file that is open, where the store has begun another.
    fn follow(&mut self) -> Result<(), LogError> {
        if self.shared.file().is_none() {
            // Whoever has closed it just now may be about to open the next.
            drop(self.shared.lock());
        }
        let view = self.shared.view();
        if view.file.is_none() {
            return Err(LogError(NOT_OPEN.to_owned()));
        }
        if view.generation == self.generation {
            return Ok(());
        }
        let account = view.books.exporter(&self.exporter);
        self.looked_to = account.map(|account| account.cursor).unwrap_or_default();
        self.generation = view.generation;
        drop(view);
        self.windows = Default::default();
        self.reasons.clear();
        self.is_behind = false;
        Ok(())
    }

    /// Reads on where it looked last, at most `limit`.
    fn look(&mut self, priority: Priority, limit: usize) -> Result<(), LogError> {
        let p = priority as usize;
        let (end, gone_to, is_owed) = {
            let view = self.shared.view();
            let account = view.books.exporter(&self.exporter);
            let is_owed = account.is_none_or(|a| a.counts[p].stored.envelopes > 0);
            (view.books.last_seq(), view.books.gone_to[p], is_owed)
        };
        self.windows[p].retain(|read| read.seq > gone_to);
        if !is_owed {
            // No index leads to a priority: all there is would be looked at.
            self.looked_to[p] = end.max(self.looked_to[p]);
        }
        let from = self.looked_to[p].max(gone_to);
        if from >= end || limit == 0 {
            return Ok(());
        }
        let rows = self.connect().and_then(|()| self.rows(priority, from, end, limit));
        let (rows, all) = rows.map_err(|trouble| self.fails(trouble))?;
        // Where fewer came than were asked for, there are no more up to the end.
        self.looked_to[p] = match rows.last() {
            Some(last) if !all || rows.len() >= limit => last.seq,
            None if !all => from,
            _ => end,
        };
        self.windows[p].extend(rows);
        Ok(())
    }

    fn fails(&self, trouble: Trouble) -> LogError {
        let why = trouble.to_string();
        if matches!(trouble, Trouble::Corrupt(_)) {
            // Whoever sets the file aside closes all that is open of it.
            self.shared.found_out(self.generation, trouble);
        }
        LogError(why)
    }

    /// Whether it has looked at all that there is, found nothing more, and is
    /// owed something all the same: a damaged tree may lead past its rows.
    fn misses_some(&self) -> bool {
        let view = self.shared.view();
        let Some(account) = view.books.exporter(&self.exporter) else { return false };
        Priority::ALL.into_iter().any(|priority| {
            let p = priority as usize;
            self.windows[p].is_empty()
                && self.looked_to[p].max(view.books.gone_to[p]) >= view.books.last_seq()
                && account.counts[p].stored.envelopes > 0
        })
    }

    /// Up to `limit` of them, as many as there is room for; whether that is all.
    fn rows(
        &self,
        priority: Priority,
        from: u64,
        end: u64,
        limit: usize,
    ) -> Result<(Vec<Read>, bool), Trouble> {
        // Half of the window is for each priority, so that neither keeps the
        // other out.
        let window = &self.windows[priority as usize];
        let open = window.iter().filter(|read| read.event.is_some());
        let mut bytes: usize = open.map(|read| read.bytes).sum();
        let max_bytes = self.shared.config.memory.window_bytes / 2;
        if bytes >= max_bytes {
            return Ok((Vec::new(), false));
        }
        let line = self.line.lock();
        let Some(connection) = &*line else {
            return Err(Trouble::Later("the store opens its file anew".to_owned()));
        };
        let mut statement = connection.prepare_cached(
            "SELECT seq, id, count, event FROM events
             WHERE priority = ?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq LIMIT ?4",
        )?;
        let limit = signed(limit as u64);
        let mut rows =
            statement.query(params![priority.as_str(), signed(from), signed(end), limit])?;
        let mut read = Vec::new();
        let mut before = from;
        while let Some(row) = rows.next()? {
            let seq = unsigned(row, 0)?;
            if seq <= before || seq > end {
                // A damaged tree leads in circles.
                return Err(Contradiction.into());
            }
            before = seq;
            let line = row.get_ref(3)?.as_bytes_or_null().map_err(rusqlite::Error::from)?;
            let event = from_json_line(line.unwrap_or_default());
            if let Err(error) = &event {
                let exporter = &self.exporter;
                tracing::warn!(%exporter, seq, %error, "an event can't be read back; set aside");
            }
            let event = event.ok().map(Arc::new);
            let its_bytes = event.as_deref().map_or(0, bytes_of);
            bytes += its_bytes;
            read.push(Read {
                seq,
                id: row.get(1)?,
                count: unsigned(row, 2)?,
                rejected: event.is_none(),
                event,
                bytes: its_bytes,
            });
            if bytes >= max_bytes {
                return Ok((read, false));
            }
        }
        Ok((read, true))
    }

    /// Moves the cursor past what is settled at the windows' beginnings.
    fn pass(&mut self) -> Result<(), LogError> {
        let mut passed = Vec::new();
        for priority in Priority::ALL {
            let window = &self.windows[priority as usize];
            let settled = window.iter().take_while(|read| read.event.is_none());
            let settled: Vec<Passed> = settled
                .map(|r| Passed { seq: r.seq, count: r.count, rejected: r.rejected })
                .collect();
            if !settled.is_empty() {
                passed.push((priority, settled));
            }
        }
        if passed.is_empty() && self.reasons.is_empty() {
            self.is_behind = false;
            return Ok(());
        }
        let result = self.shared.settle(&self.exporter, self.generation, &passed, &self.reasons);
        self.is_behind = result.is_err();
        if !result.map_err(LogError)? {
            // Its events are counted as lost; there is nothing to be noted.
            return self.follow();
        }
        self.reasons.clear();
        for (priority, settled) in &passed {
            self.windows[*priority as usize].drain(..settled.len());
        }
        Ok(())
    }

    fn note_in_flight(&self, owed: &[Owed]) {
        let mut in_flight = [Tally::default(); 2];
        for owed in owed {
            in_flight[owed.event.kind.priority() as usize] += Tally::one(owed.event.count);
        }
        let mut view = self.shared.view();
        let (number, noted) = view.in_flight.entry(self.exporter.clone()).or_default();
        if *number <= self.number {
            (*number, *noted) = (self.number, in_flight);
        }
    }
}

impl DurableCursor for Cursor {
    fn read(&mut self, limit: usize) -> Result<Vec<Owed>, LogError> {
        self.follow()?;
        if self.is_behind {
            // Before anything is sent again that has arrived.
            self.pass()?;
        }
        // What can't be read back is settled by that.
        let mut owed = Vec::new();
        for priority in Priority::ALL {
            let p = priority as usize;
            let open = |windows: &[VecDeque<Read>; 2]| {
                windows[p].iter().filter(|read| read.event.is_some()).count()
            };
            let missing = limit.saturating_sub(owed.len() + open(&self.windows));
            let room = (AHEAD * limit).saturating_sub(self.windows[p].len());
            self.look(priority, missing.min(room))?;
            let room = limit - owed.len();
            let waiting = self.windows[p].iter().filter_map(|read| {
                Some(Owed { seq: read.seq, event: Arc::clone(read.event.as_ref()?) })
            });
            owed.extend(waiting.take(room));
        }
        if owed.is_empty() {
            self.pass()?;
            if self.misses_some() {
                return Err(self.fails(Contradiction.into()));
            }
        }
        self.note_in_flight(&owed);
        Ok(owed)
    }

    fn settle(&mut self, settled: Vec<Settled>) -> Result<(), LogError> {
        for settled in settled {
            let find = |window: &VecDeque<Read>| {
                window.binary_search_by_key(&settled.seq, |read| read.seq).ok()
            };
            for window in &mut self.windows {
                let Some(read) = find(window).and_then(|index| window.get_mut(index)) else {
                    continue;
                };
                read.event = None;
                if let Some(reason) = &settled.rejected {
                    read.rejected = true;
                    self.reasons.push((read.seq, read.id.clone(), reason.clone()));
                }
                // Nobody asks for it again; there may be many that wait.
                read.id = String::new();
            }
        }
        self.note_in_flight(&[]);
        self.pass()
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.note_in_flight(&[]);
        let latest = self.shared.view().in_flight.get(&self.exporter).map(|(number, _)| *number);
        if !self.is_behind || latest != Some(self.number) {
            return;
        }
        let parked = Parked {
            generation: self.generation,
            windows: std::mem::take(&mut self.windows),
            looked_to: self.looked_to,
            reasons: std::mem::take(&mut self.reasons),
        };
        self.shared.parked().insert(self.exporter.clone(), parked);
    }
}
