//! Which file is open: begun, gone on with, set aside, or closed until the trouble
//! with it is over.

use std::sync::Arc;
use std::time::Duration;

use vahti_runtime::clock::ClockPair;

use super::books::Books;
use super::folder::{self, Aside, Lock};
use super::notice::Sight;
use super::writer::{self, Before, Opened, Trouble, Writer};
use super::{Inner, Shared, StoreError, schema, shown};

impl Shared {
    pub(super) fn lock_folder(
        &self,
        inner: &mut Inner,
        patience: Duration,
    ) -> Result<(), StoreError> {
        folder::make(&self.config.path)?;
        inner.lock = Some(Lock::take(&self.config.path, patience)?);
        folder::look_at_rights(&self.config.path);
        Ok(())
    }

    /// Has a file open to write to: the one that stands in the folder.
    pub(super) fn ready(&self, inner: &mut Inner) -> Result<(), String> {
        self.hold_lock(inner)?;
        self.look(inner, false)?;
        if inner.writer.is_some() {
            return Ok(());
        }
        let (writer, goes_on) = match self.begin(inner) {
            Ok(begun) => begun,
            Err(trouble @ (Trouble::Later(_) | Trouble::Gone)) => return Err(trouble.why()),
            Err(Trouble::Corrupt(why)) => {
                self.set_aside(inner, &why)?;
                self.begin(inner).map_err(Trouble::why)?
            }
        };
        if let Some(Err(error)) = inner.lock.as_mut().map(Lock::sign) {
            tracing::debug!(%error, "the store's lock can't be signed");
        }
        let is_same = goes_on
            && !inner.have_others_written(writer.books.last_seq())
            && inner.sight.as_ref().is_some_and(|sight| sight.is_of(&writer.file));
        inner.books = None;
        inner.others_wrote = false;
        let mut view = self.view();
        if !is_same {
            view.generation += 1;
        }
        view.file = Some(writer.file.clone());
        // What a cursor finds there is what this generation's accounts say.
        view.books = writer.books.clone();
        drop(view);
        let unsure = inner.unsure.take();
        if !is_same {
            inner.last = None;
        } else if let Some((mark, last_seq)) = unsure
            && writer.books.last_seq() >= last_seq
            && !writer.holds_another(last_seq, &mark.last.1).unwrap_or(true)
        {
            inner.last = Some(mark);
        }
        inner.sight = None;
        inner.writer = Some(writer);
        self.publish(inner);
        Ok(())
    }

    /// Opens the file and notes that an agent runs; whether it is the one that
    /// was open before, with all that was in it.
    fn begin(&self, inner: &mut Inner) -> Result<(Box<Writer>, bool), Trouble> {
        let mut writer = self.open_file()?;
        let Some(books) = inner.books.clone() else {
            let before = inner.lock.as_ref().map(|lock| Before {
                alive_ns: lock.last_alive_ns(),
                left_the_lock: lock.was_left(),
            });
            let gap = writer.begin(Some(before.unwrap_or_default()))?;
            self.view().gap_from_ns = gap;
            return Ok((writer, false));
        };
        let goes_on = take_over(&mut writer, books)?;
        writer.begin(None)?;
        if !goes_on {
            let lost = writer.books.own.lost().occurrences;
            tracing::error!(
                lost,
                "what was in the store's file is lost, and counted as store_lost"
            );
        }
        Ok((writer, goes_on))
    }

    fn open_file(&self) -> Result<Box<Writer>, Trouble> {
        let known = self.view().file.clone();
        for newer in [false, true] {
            let file = folder::file(&self.config.path, newer);
            if known.as_ref() != Some(&file) || !file.exists() {
                // Not where cursors may have it open: whoever closes a file lets
                // go of all locks that his process has on it, SQLite's too, and
                // the next `sqlite3` that ends would take itself for the last
                // one and remove the log that commits go to.
                folder::make_file(&file)?;
                if let Some(version) = schema::newer_at_a_glance(&file) {
                    let file = shown(&file);
                    tracing::warn!(%file, version, "a newer vahti writes this file; left as it is");
                    continue;
                }
            }
            let bounds = Arc::clone(&self.bounds);
            let opened = Writer::open(
                &file,
                &self.medium,
                (&self.config, bounds),
                &self.exporters,
                self.began,
            )?;
            match opened {
                Opened::Ready(writer) => return Ok(writer),
                Opened::Newer(version) => {
                    let file = shown(&file);
                    tracing::warn!(%file, version, "a newer vahti writes this file; left as it is");
                }
            }
        }
        Err(Trouble::Later("newer versions of vahti have taken both names of the file".to_owned()))
    }

    fn set_aside(&self, inner: &mut Inner, why: &str) -> Result<(), String> {
        let open = inner.sight.as_ref().map(|sight| sight.path().to_owned());
        self.close(inner, true);
        let file = open.unwrap_or_else(|| {
            let first = folder::file(&self.config.path, false);
            let is_newer = schema::newer_at_a_glance(&first).is_some();
            folder::file(&self.config.path, is_newer)
        });
        let aside = folder::set_aside(&file, Aside::Corrupt, ClockPair::now().wall_ns)
            .map_err(|error| error.to_string())?;
        inner.sight = None;
        self.view().set_aside += 1;
        let (file, aside) = (shown(&file), shown(&aside));
        tracing::error!(%file, why, "can't be read; it is {aside} now, and a fresh one is begun");
        Ok(())
    }

    /// Takes note of trouble; afterwards the file is opened anew.
    pub(super) fn note(&self, inner: &mut Inner, trouble: Trouble) {
        let Some(writer) = &inner.writer else { return };
        match trouble {
            Trouble::Later(_) => {
                // Cursors keep what they have open of it.
                inner.books = Some(writer.books.clone());
                inner.writer = None;
            }
            Trouble::Gone => {
                if let Err(error) = self.look(inner, false) {
                    tracing::error!(%error, "a file that is gone can't be done without");
                }
                // It may be back, or have gone before it was looked at first.
                if inner.writer.is_some() {
                    self.close(inner, true);
                }
            }
            Trouble::Corrupt(why) => {
                if let Err(error) = self.set_aside(inner, &why) {
                    tracing::error!(%error, "a file that can't be read can't be set aside");
                }
            }
        }
    }

    /// A reader found that a file can't be read.
    pub(super) fn found_out(&self, generation: u64, trouble: Trouble) {
        let mut inner = self.lock();
        if self.view().generation != generation {
            return;
        }
        if inner.writer.is_none() {
            // Nothing of it can be set aside now.
            inner.check.hurry();
        }
        self.note(&mut inner, trouble);
        if let Err(why) = self.ready(&mut inner) {
            tracing::error!(%why, "a fresh file can't be begun yet");
        }
    }

    pub(super) fn publish(&self, inner: &mut Inner) {
        let Some(writer) = &inner.writer else { return };
        inner.sight = Sight::of(writer, inner.sight.as_ref());
        let seq = writer.books.last_seq();
        self.view().books = writer.books.clone();
        if *self.committed.borrow() != seq {
            self.committed.send_replace(seq);
        }
    }
}

/// After the file was closed for a while, or replaced, the accounts go on;
/// whether it is the same one.
fn take_over(writer: &mut Writer, books: Books) -> Result<bool, Trouble> {
    let there = writer.books.last_seq();
    if there >= books.last_seq() {
        // The same file as before, with all that was written to it.
        writer.books.gone_to = books.gone_to;
        return Ok(true);
    }
    if there > 0 {
        // Somebody took its log away, or put an older copy in its place.
        return Err(writer::older());
    }
    writer.books = books;
    writer.books.lose_all();
    Ok(false)
}
