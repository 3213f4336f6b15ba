//! One emitter, called so that whatever it does stays contained.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::seat::InHand;
use super::{EmitterState, Shared};
use crate::emitter::{Delivery, EmitOutcome, EventEmitter};
use crate::event::Event;
use crate::panic::{ContainError, Foreign, contain, contain_future, contain_with_timeout};

pub(super) struct Sender {
    pub(super) shared: Arc<Shared>,
    /// The worker's turn at the seat.
    turn: u64,
    /// `None` after a panic, until it could be made anew.
    emitter: Option<Foreign<Box<dyn EventEmitter>>>,
}

/// What a batch came to.
pub(super) struct Answer {
    pub(super) outcome: EmitOutcome,
    /// Whether the emitter panicked at it.
    pub(super) panicked: bool,
}

impl Sender {
    /// Around an emitter, or one that makes its emitter itself when it is
    /// first needed, as that may block as well.
    pub(super) fn new(
        shared: Arc<Shared>,
        turn: u64,
        emitter: Option<Box<dyn EventEmitter>>,
    ) -> Self {
        Sender { shared, turn, emitter: emitter.map(Foreign::new) }
    }

    /// Hands a batch to the emitter, in parts where it is too large for it (not
    /// of a log, which can be read again from where a part ended); `None` if
    /// that took so long that somebody else has taken over: nothing may be
    /// accounted for then. Whoever takes over goes on with `in_hand`.
    pub(super) async fn emit(
        &mut self,
        batch: &[Arc<Event>],
        in_hand: Option<InHand>,
    ) -> Option<Answer> {
        self.shared.seat.sit(in_hand, self.shared.call_limit());
        let (outcome, panicked) = match self.emit_whole(batch).await {
            (EmitOutcome::TooLarge { reason }, false) if self.shared.log.is_none() => {
                self.emit_parts(batch, reason).await
            }
            answer => answer,
        };
        self.shared.seat.rise(self.turn).then_some(Answer { outcome, panicked })
    }

    async fn emit_parts(&mut self, batch: &[Arc<Event>], reason: String) -> (EmitOutcome, bool) {
        if batch.len() == 1 {
            return (EmitOutcome::Rejected { reason }, false);
        }
        let mut parts = Parts { deliveries: Vec::with_capacity(batch.len()), reason, hint: None };
        let mut size = batch.len().div_ceil(2);
        let mut panicked = false;
        while let Some(rest) = batch.get(parts.deliveries.len()..).filter(|r| !r.is_empty()) {
            let part = &rest[..size.min(rest.len())];
            let (outcome, panic) = self.emit_whole(part).await;
            match outcome {
                EmitOutcome::TooLarge { .. } if part.len() > 1 => {
                    size = part.len().div_ceil(2);
                    continue;
                }
                outcome => parts.add(outcome, part.len()),
            }
            panicked |= panic;
            if panicked || parts.deliveries.last() == Some(&Delivery::Retryable) {
                // The rest waits its turn behind what did not arrive.
                break;
            }
        }
        let Parts { deliveries, reason, hint } = parts;
        (EmitOutcome::Each { deliveries, reason, retry_after: hint }, panicked)
    }

    async fn emit_whole(&mut self, batch: &[Arc<Event>]) -> (EmitOutcome, bool) {
        let Some(mut emitter) = self.emitter.take().or_else(|| self.make_anew()) else {
            let reason = "it panicked and could not be made anew".to_owned();
            return (EmitOutcome::Retryable { reason, retry_after: None }, false);
        };
        let limit = self.shared.parts.config().emit_timeout;
        let result = contain_with_timeout(&self.shared.name, limit, |_| emitter.emit(batch)).await;
        let error = match result {
            Ok(outcome) => {
                self.emitter = Some(emitter);
                return (outcome, false);
            }
            Err(error) => error,
        };
        let reason = error.to_string();
        let panicked = match error {
            // State is never used again after a panic.
            ContainError::Panicked(panicked) => {
                self.shared.panics.fetch_add(1, Ordering::Relaxed);
                tracing::error!(emitter = %self.shared.name, error = %panicked, "made anew");
                drop(emitter);
                self.emitter = self.make_anew();
                true
            }
            ContainError::TimedOut { .. } => {
                self.emitter = Some(emitter);
                false
            }
        };
        (EmitOutcome::Retryable { reason, retry_after: None }, panicked)
    }

    fn make_anew(&self) -> Option<Foreign<Box<dyn EventEmitter>>> {
        let factory = self.shared.parts.factory.lock().unwrap_or_else(PoisonError::into_inner);
        match contain("emitter factory", &*factory) {
            Ok(fresh) => Some(Foreign::new(fresh)),
            Err(again) => {
                tracing::error!(emitter = %self.shared.name, error = %again, "can't be made anew");
                None
            }
        }
    }

    /// The emitter is dropped, never called again; its place among those that
    /// were left behind is free.
    pub(super) fn come_back(self) {
        let shared = Arc::clone(&self.shared);
        drop(self);
        tracing::info!(emitter = %shared.name, "a call that was left behind came back");
        shared.seat.came_back();
    }

    /// Closes the emitter and says that it has ended.
    pub(super) async fn close(mut self) {
        let result = match &mut self.emitter {
            Some(emitter) => match contain("emitter close", || emitter.close()) {
                Ok(future) => contain_future("emitter close", future).await,
                Err(panicked) => Err(panicked),
            },
            None => Ok(Ok(())),
        };
        match result {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(emitter = %self.shared.name, %error, "could not be closed");
            }
            Err(panicked) => {
                tracing::error!(emitter = %self.shared.name, error = %panicked, "panicked");
            }
        }
        self.shared.set_state(EmitterState::Ended);
        self.shared.ended.send_replace(true);
    }
}

/// The answers for the parts of a batch, together.
struct Parts {
    deliveries: Vec<Delivery>,
    reason: String,
    hint: Option<Duration>,
}

impl Parts {
    fn add(&mut self, outcome: EmitOutcome, len: usize) {
        let to = self.deliveries.len() + len;
        let (all, reason, hint) = match outcome {
            EmitOutcome::Delivered => (Delivery::Delivered, None, None),
            EmitOutcome::Retryable { reason, retry_after } => {
                (Delivery::Retryable, Some(reason), retry_after)
            }
            EmitOutcome::Rejected { reason } | EmitOutcome::TooLarge { reason } => {
                (Delivery::Rejected, Some(reason), None)
            }
            EmitOutcome::Each { mut deliveries, reason, retry_after } => {
                deliveries.truncate(len);
                self.deliveries.append(&mut deliveries);
                (Delivery::Retryable, Some(reason), retry_after)
            }
            EmitOutcome::RejectedUnidentified { rejected, reason } => {
                let rejected = usize::try_from(rejected).unwrap_or(len).min(len);
                self.deliveries.extend(std::iter::repeat_n(Delivery::Rejected, rejected));
                (Delivery::Delivered, Some(reason), None)
            }
        };
        self.deliveries.resize(to, all);
        self.reason = reason.unwrap_or_else(|| std::mem::take(&mut self.reason));
        self.hint = hint.or(self.hint);
    }
}
