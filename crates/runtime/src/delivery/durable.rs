//! Serves a durable emitter from a log of committed events.
//!
//! What it fails to take stays in the log and is tried again, later each time,
//! until it is acknowledged or the log gives it up for its own bounds. An event
//! that the other side refuses for good, or that the emitter panics at, is
//! found by halving the batch, set aside and counted, and blocks nothing.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::seat::Inheritance;
use super::sender::Sender;
use super::{EmitterState, Shared};
use crate::backoff::{Jitter, emit_delay};
use crate::durable::{DurableCursor, DurableLog, LogError, Owed, Settled};
use crate::emitter::{Delivery, EmitOutcome};
use crate::event::Event;
use crate::panic::contain;

pub(super) struct DurableWorker {
    shared: Arc<Shared>,
    sender: Sender,
    max_batch: usize,
    log: Arc<dyn DurableLog>,
    cursor: Option<Box<dyn DurableCursor>>,
    committed: watch::Receiver<u64>,
    ending: watch::Receiver<bool>,
    over: watch::Receiver<bool>,
    jitter: Jitter,
    /// Tries that failed one after the other.
    failures: u32,
    /// The last of them as the log failed, not the emitter.
    log_failed: bool,
    /// How many events are sent at once: fewer while one is being looked for
    /// that can't be sent.
    limit: usize,
    /// Whether a batch was too large: it is felt for how many are not.
    feels: bool,
    /// At which event alone it panicked last: the first time may have been
    /// chance, the second time the event is set aside.
    panicked_at: Option<u64>,
}

/// What a try came to.
enum Tried {
    /// All of it is settled.
    Settled,
    /// Some of it is to be tried again, at once.
    Again,
    /// Some of it is to be tried again, not before a while.
    Later { hint: Option<Duration>, reason: String },
}

impl DurableWorker {
    /// One that goes on after another, which was left behind with what it had
    /// read: that is read again.
    pub(super) fn new(
        sender: Sender,
        inheritance: Option<Inheritance>,
        log: Arc<dyn DurableLog>,
    ) -> Self {
        let shared = Arc::clone(&sender.shared);
        let max_batch = shared.parts.max_batch;
        DurableWorker {
            committed: log.committed(),
            ending: shared.ending.subscribe(),
            over: shared.over.subscribe(),
            jitter: Jitter::new(&shared.name),
            failures: inheritance.map_or(0, |inheritance| inheritance.row),
            log_failed: false,
            limit: max_batch,
            feels: false,
            panicked_at: None,
            cursor: None,
            shared,
            sender,
            max_batch,
            log,
        }
    }

    pub(super) async fn run(mut self) {
        let stays = self.work().await;
        // What was in flight is stored, not in flight, from here on.
        self.cursor = None;
        if stays {
            self.sender.close().await;
        } else {
            self.sender.come_back();
        }
    }

    /// Works until the end; `false` if it was left behind meanwhile.
    async fn work(&mut self) -> bool {
        if self.failures > 0 && self.wait_a_while(None).await {
            return true;
        }
        while !*self.over.borrow() {
            // Looked at before the log is: what is committed later wakes us.
            self.committed.mark_unchanged();
            let tried = match self.read() {
                Ok(owed) if owed.is_empty() => {
                    if *self.ending.borrow() {
                        return true;
                    }
                    if self.log_failed {
                        // It works again, and nothing is left to try.
                        self.is_well();
                    }
                    self.wait_for_news().await;
                    continue;
                }
                Ok(owed) => match self.send(owed).await {
                    Some(tried) => tried,
                    None => return false,
                },
                Err(error) => self.log_fails(&error),
            };
            match tried {
                Tried::Settled => {
                    self.grow();
                    self.is_well();
                }
                Tried::Again => {}
                Tried::Later { hint, reason } => {
                    self.shared.set_state(EmitterState::Failing(reason));
                    self.failures = self.failures.saturating_add(1);
                    // It is kept; a shutdown need not wait for it.
                    if *self.ending.borrow() || self.wait_a_while(hint).await {
                        return true;
                    }
                }
            }
        }
        true
    }

    fn log_fails(&mut self, error: &LogError) -> Tried {
        self.log_failed = true;
        Tried::Later { hint: None, reason: error.to_string() }
    }

    fn is_well(&mut self) {
        self.failures = 0;
        self.log_failed = false;
        self.shared.set_state(EmitterState::Working);
    }

    fn grow(&mut self) {
        let more = if self.feels { (self.limit / 8).max(1) } else { self.limit };
        self.limit = self.limit.saturating_add(more).min(self.max_batch);
        self.feels &= self.limit < self.max_batch;
    }

    fn read(&mut self) -> Result<Vec<Owed>, LogError> {
        let shared = Arc::clone(&self.shared);
        ask(&shared, || {
            let mut cursor = match self.cursor.take() {
                Some(cursor) => cursor,
                None => self.log.cursor(&shared.name)?,
            };
            let owed = cursor.read(self.limit)?;
            self.cursor = Some(cursor);
            Ok(owed)
        })
    }

    async fn wait_for_news(&mut self) {
        let closed = async |receiver: &mut watch::Receiver<u64>| {
            if receiver.changed().await.is_err() {
                // The log is gone, so nothing comes any more.
                pending::<()>().await;
            }
        };
        tokio::select! {
            () = closed(&mut self.committed) => {}
            _ = self.ending.changed() => {}
            _ = self.over.changed() => {}
        }
    }

    /// Returns whether it is over.
    async fn wait_a_while(&mut self, hint: Option<Duration>) -> bool {
        let delay = emit_delay(self.failures, hint, &mut self.jitter);
        // A shutdown ends the wait: what is owed is tried once more then.
        let ends = async {
            tokio::select! {
                _ = self.ending.wait_for(|ending| *ending) => {}
                _ = self.over.wait_for(|over| *over) => {}
            }
        };
        let ended = tokio::time::timeout(delay, ends).await.is_ok();
        ended && *self.over.borrow()
    }

    /// `None` if it was left behind meanwhile.
    async fn send(&mut self, owed: Vec<Owed>) -> Option<Tried> {
        let seqs: Vec<u64> = owed.iter().map(|owed| owed.seq).collect();
        let events: Vec<Arc<Event>> = owed.into_iter().map(|owed| owed.event).collect();
        let answer = self.sender.emit(&events, None).await?;
        self.log_failed = false;
        Some(if answer.panicked {
            self.look_for_poison(&seqs, None)
        } else {
            self.take_note(&seqs, &events, answer.outcome)
        })
    }

    fn take_note(&mut self, seqs: &[u64], events: &[Arc<Event>], outcome: EmitOutcome) -> Tried {
        let settled = |seq: &u64, rejected| Settled { seq: *seq, rejected };
        let (settled, rest) = match outcome {
            EmitOutcome::Delivered => (seqs.iter().map(|s| settled(s, None)).collect(), None),
            EmitOutcome::Retryable { reason, retry_after } => {
                return Tried::Later { hint: retry_after, reason };
            }
            EmitOutcome::TooLarge { reason } => {
                self.feels = true;
                return self.look_for_poison(seqs, Some(reason));
            }
            EmitOutcome::Rejected { reason } => {
                return self.look_for_poison(seqs, Some(reason));
            }
            EmitOutcome::Each { mut deliveries, reason, retry_after } => {
                deliveries.resize(seqs.len(), Delivery::Retryable);
                let known =
                    seqs.iter().zip(&deliveries).filter_map(|(seq, delivery)| match delivery {
                        Delivery::Delivered => Some(settled(seq, None)),
                        Delivery::Rejected => Some(settled(seq, Some(reason.clone()))),
                        Delivery::Retryable => None,
                    });
                let known: Vec<Settled> = known.collect();
                let rest = (known.len() < seqs.len())
                    .then_some(Tried::Later { hint: retry_after, reason });
                (known, rest)
            }
            EmitOutcome::RejectedUnidentified { rejected, reason } => {
                // Nobody knows which: the number is true, the choice is not.
                let rejected = usize::try_from(rejected).unwrap_or(usize::MAX);
                let all = seqs.iter().enumerate();
                let all = all.map(|(i, s)| settled(s, (i < rejected).then(|| reason.clone())));
                (all.collect(), None)
            }
        };
        let arrived = delivered(&settled, seqs, events);
        if let Err(error) = self.settle(settled) {
            return self.log_fails(&error);
        }
        self.shared.latencies.count(arrived.into_iter());
        rest.unwrap_or(Tried::Settled)
    }

    fn settle(&mut self, settled: Vec<Settled>) -> Result<(), LogError> {
        let Some(mut cursor) = self.cursor.take() else {
            return Err(LogError("the log was closed".to_owned()));
        };
        // Where that fails, a fresh one reads again what it can't know to be
        // settled.
        ask(&self.shared, || cursor.settle(settled))?;
        self.cursor = Some(cursor);
        Ok(())
    }

    /// Something in the batch can't be sent: halves it until that stands
    /// alone, and then sets it aside. Without a reason the emitter panicked.
    fn look_for_poison(&mut self, seqs: &[u64], reason: Option<String>) -> Tried {
        let [seq] = seqs else {
            self.limit = (seqs.len() / 2).max(1);
            return Tried::Again;
        };
        let panicked = reason.is_none();
        let reason = reason.unwrap_or_else(|| "the emitter panics at it".to_owned());
        if panicked && self.panicked_at.replace(*seq) != Some(*seq) {
            return Tried::Later { hint: None, reason };
        }
        let emitter = &self.shared.name;
        tracing::warn!(%emitter, seq, %reason, "an event is set aside; the ledger counts it");
        match self.settle(vec![Settled { seq: *seq, rejected: Some(reason) }]) {
            Ok(()) => Tried::Settled,
            Err(error) => self.log_fails(&error),
        }
    }
}

/// Those of the events that were delivered; in the order of both.
fn delivered<'a>(settled: &[Settled], seqs: &[u64], events: &'a [Arc<Event>]) -> Vec<&'a Event> {
    let mut settled = settled.iter().peekable();
    let mut is_delivered = |seq: &u64| {
        settled.next_if(|s| s.seq == *seq).is_some_and(|settled| settled.rejected.is_none())
    };
    let all = seqs.iter().zip(events);
    all.filter(|(seq, _)| is_delivered(seq)).map(|(_, event)| &**event).collect()
}

/// Asks the log, which may take as long as its disk does: meanwhile that is to
/// be seen.
fn ask<T>(shared: &Shared, question: impl FnOnce() -> Result<T, LogError>) -> Result<T, LogError> {
    shared.seat.ask_log();
    let result = contain("durable log", question);
    shared.seat.log_answered();
    result.unwrap_or_else(|panicked| Err(LogError(panicked.to_string())))
}
