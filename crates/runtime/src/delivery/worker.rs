//! The worker: gather, emit, account, try again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;

use super::seat::{InHand, Inheritance};
use super::sender::Sender;
use super::{EmitterState, Shared};
use crate::backoff::{Jitter, emit_delay};
use crate::emitter::{Delivery, EmitOutcome};
use crate::event::{Event, Priority};
use crate::lane::{Lane, Room, Settlement};
use crate::ledger::{DropReason, Tally};

pub(super) struct Worker {
    shared: Arc<Shared>,
    sender: Sender,
    /// What it took over, until it has come to it.
    inheritance: Option<Inheritance>,
    lanes: Vec<Arc<Lane>>,
    lanes_version: u64,
    /// Which lane is served first next time.
    first_lane: usize,
    batch: Batch,
    /// Memory on its way back to the observers.
    spare: Vec<Arc<Event>>,
    /// Batches given up one after the other.
    given_up_in_row: u32,
    jitter: Jitter,
    over: watch::Receiver<bool>,
}

/// Events and where each came from.
#[derive(Default)]
struct Batch {
    events: Vec<Arc<Event>>,
    /// The lane of each event.
    from: Vec<u32>,
    /// What each lane's events are settled with.
    epochs: Vec<u64>,
}

impl Worker {
    /// One that goes on with what another was left behind with, if that is
    /// given.
    pub(super) fn new(sender: Sender, inheritance: Option<Inheritance>) -> Self {
        let shared = Arc::clone(&sender.shared);
        Worker {
            jitter: Jitter::new(&shared.name),
            over: shared.over.subscribe(),
            shared,
            sender,
            inheritance,
            lanes: Vec::new(),
            lanes_version: 0,
            first_lane: 0,
            batch: Batch::default(),
            spare: Vec::new(),
            given_up_in_row: 0,
        }
    }

    pub(super) async fn run(mut self) {
        if self.work().await {
            self.sender.close().await;
        } else {
            let sender = self.sender;
            drop((self.batch, self.spare));
            sender.come_back();
        }
    }

    /// Works until the end; `false` if it was left behind meanwhile.
    async fn work(&mut self) -> bool {
        self.look_for_lanes();
        if let Some(inheritance) = self.inheritance.take()
            && !self.take_up(inheritance).await
        {
            return false;
        }
        loop {
            self.look_for_lanes();
            self.gather_with_patience().await;
            if !self.batch.events.is_empty() {
                if !self.deliver(0).await {
                    return false;
                }
                continue;
            }
            if self.is_over() {
                return true;
            }
            let shared = Arc::clone(&self.shared);
            let known = self.lanes_version;
            let has_news = || {
                shared.has_work()
                    || *shared.ending.borrow()
                    || shared.lanes_version.load(Ordering::Acquire) != known
            };
            self.shared.bell.wait(has_news).await;
        }
    }

    /// Goes on with what somebody else was left behind with, not at once.
    async fn take_up(&mut self, inheritance: Inheritance) -> bool {
        self.given_up_in_row = inheritance.row - 1;
        let Some(InHand { events, from, mut epochs, failures }) = inheritance.in_hand else {
            self.hold_back(None).await;
            return true;
        };
        // Lanes are only ever added, at the end.
        epochs.resize(self.lanes.len(), 0);
        self.batch = Batch { events, from, epochs };
        if self.tries_again(failures, None).await { self.deliver(failures + 1).await } else { true }
    }

    fn is_over(&self) -> bool {
        *self.shared.ending.borrow()
            && (*self.over.borrow() || self.lanes.iter().all(|lane| lane.is_settled()))
    }

    fn look_for_lanes(&mut self) {
        let version = self.shared.lanes_version.load(Ordering::Acquire);
        if version != self.lanes_version {
            self.lanes = self.shared.lock_lanes().clone();
            self.lanes_version = version;
        }
    }

    /// Takes what is there; an emitter whose requests are dear waits for more,
    /// `drain_interval` at the longest.
    async fn gather_with_patience(&mut self) {
        let patient = self.shared.parts.min_batch > 1 && !*self.shared.ending.borrow();
        if patient && self.shared.has_work() && !self.shared.has_enough() {
            let interval = self.shared.parts.config().drain_interval;
            let until = tokio::time::Instant::now() + interval;
            let shared = Arc::clone(&self.shared);
            // An hour that is a second now is not waited for.
            let is_over =
                || *shared.ending.borrow() || shared.parts.config().drain_interval != interval;
            let full = async {
                while !shared.has_enough() && !is_over() {
                    let before = shared.waiting();
                    shared.bell.wait(|| shared.waiting() != before || is_over()).await;
                }
            };
            if tokio::time::timeout_at(until, full).await.is_err() {
                tracing::trace!(emitter = %self.shared.name, "sends what there is");
            }
        }
        self.gather();
    }

    /// Round-robin between observers, critical first.
    fn gather(&mut self) {
        let Batch { events, from, epochs } = &mut self.batch;
        let lanes = self.lanes.len();
        epochs.clear();
        epochs.resize(lanes, 0);
        let mut bytes = self.shared.parts.config().max_batch_bytes;
        for priority in Priority::ALL {
            for offset in 0..lanes {
                let room = self.shared.parts.max_batch - events.len();
                if room == 0 {
                    break;
                }
                let index = (self.first_lane + offset) % lanes;
                // A fair share of what is left, so that a noisy observer can't
                // keep another out of the batch.
                let share = Room {
                    items: room.div_ceil(lanes - offset),
                    bytes: bytes.div_ceil(lanes - offset),
                };
                let before = events.len();
                let (epoch, taken_bytes) = self.lanes[index].take(priority, share, events);
                bytes -= taken_bytes;
                let taken = events.len() - before;
                if taken > 0 {
                    // Once a lane was given up, nothing more comes from it.
                    epochs[index] = epoch;
                    from.extend(std::iter::repeat_n(index as u32, taken));
                }
            }
        }
        self.first_lane = if lanes == 0 { 0 } else { (self.first_lane + 1) % lanes };
    }

    /// Emits the batch until nothing of it is left; `false` if it was left
    /// behind meanwhile.
    async fn deliver(&mut self, mut failures: u32) -> bool {
        loop {
            let in_hand = self.shared.parts.critical.then(|| InHand {
                events: self.batch.events.clone(),
                from: self.batch.from.clone(),
                epochs: self.batch.epochs.clone(),
                failures,
            });
            let Some(answer) = self.sender.emit(&self.batch.events, in_hand).await else {
                return false;
            };
            let (hint, reason) = self.account(answer.outcome);
            if self.batch.events.is_empty() {
                self.given_up_in_row = 0;
                self.note(reason);
                return true;
            }
            let reason = reason.unwrap_or_else(|| "no reason given".to_owned());
            self.shared.set_state(EmitterState::Failing(reason));
            if !self.tries_again(failures, hint).await {
                return true;
            }
            failures = failures.saturating_add(1);
        }
    }

    /// Waits until the batch may be tried again, after it had failed this often
    /// before and has now once more; `false` if nothing of it is left to try.
    async fn tries_again(&mut self, failures: u32, hint: Option<Duration>) -> bool {
        let critical = self.shared.parts.critical;
        let retries = if critical { self.shared.parts.config().max_retries } else { 0 };
        if failures >= retries {
            let why = if critical { DropReason::RetriesExhausted } else { DropReason::TriedOnce };
            self.drop_rest(why);
            self.hold_back(hint).await;
            return false;
        }
        // What is not tried before the end is lost: there is no time for patience.
        let hint = hint.filter(|_| !self.shared.ends());
        let delay = emit_delay(failures.saturating_add(1), hint, &mut self.jitter);
        if self.sleep_unless_over(delay).await {
            // What is in flight was given up and counted already.
            self.batch.events.clear();
            self.batch.from.clear();
            return false;
        }
        true
    }

    /// The breaker: after a batch that was given up, nothing is taken from the
    /// lanes for a while, longer each time, so that they serve as the buffer
    /// that they are. Not at the end: then there is no time to wait for.
    async fn hold_back(&mut self, hint: Option<Duration>) {
        self.given_up_in_row = self.given_up_in_row.saturating_add(1);
        let delay = emit_delay(self.given_up_in_row, hint, &mut self.jitter);
        let shared = Arc::clone(&self.shared);
        if tokio::time::timeout(delay, shared.comes_to_its_end()).await.is_ok() {
            tracing::debug!(emitter = %self.shared.name, "ends; what waits is tried once");
        }
    }

    fn note(&self, reason: Option<String>) {
        self.shared.set_state(match reason {
            None => EmitterState::Working,
            Some(reason) => EmitterState::Failing(reason),
        });
    }

    /// Returns whether it is over. That it is to end soon ends the wait, too.
    async fn sleep_unless_over(&mut self, delay: Duration) -> bool {
        let ends_already = self.shared.ends();
        let shared = Arc::clone(&self.shared);
        tokio::select! {
            () = tokio::time::sleep(delay) => false,
            over = self.over.wait_for(|over| *over) => over.is_ok(),
            () = shared.comes_to_its_end(), if !ends_already => *shared.over.borrow(),
        }
    }

    /// Accounts for what the emitter answered; what may be tried again stays
    /// in the batch. Returns the hint, and why something did not arrive.
    fn account(&mut self, outcome: EmitOutcome) -> (Option<Duration>, Option<String>) {
        let total = self.batch.events.len();
        let (deliveries, hint, reason) = match outcome {
            EmitOutcome::Delivered => {
                self.shared.latencies.count(self.batch.events.iter().map(|event| &**event));
                self.settle_all(|settlement| &mut settlement.delivered, DropReason::Closed);
                return (None, None);
            }
            EmitOutcome::Retryable { reason, retry_after } => {
                return (retry_after, Some(reason));
            }
            EmitOutcome::Rejected { reason } | EmitOutcome::TooLarge { reason } => {
                self.settle_all(|settlement| &mut settlement.rejected, DropReason::Closed);
                return (None, Some(reason));
            }
            EmitOutcome::Each { mut deliveries, reason, retry_after } => {
                deliveries.resize(total, Delivery::Retryable);
                let all = deliveries.iter().all(|d| *d == Delivery::Delivered);
                (deliveries, retry_after, (!all).then_some(reason))
            }
            EmitOutcome::RejectedUnidentified { rejected, reason } => {
                // Nobody knows which: the number is true, the choice is not.
                let rejected = usize::try_from(rejected).unwrap_or(total).min(total);
                let mut deliveries = vec![Delivery::Delivered; total];
                deliveries[..rejected].fill(Delivery::Rejected);
                (deliveries, None, (rejected > 0).then_some(reason))
            }
        };
        self.settle(&deliveries);
        (hint, reason)
    }

    /// Settles what is delivered or rejected with the lanes; keeps the rest.
    fn settle(&mut self, deliveries: &[Delivery]) {
        let mut settlements = vec![Settlement::default(); self.lanes.len()];
        for ((event, lane), delivery) in
            self.batch.events.iter().zip(&self.batch.from).zip(deliveries)
        {
            let settlement = &mut settlements[*lane as usize];
            let part = match delivery {
                Delivery::Delivered => &mut settlement.delivered,
                Delivery::Rejected => &mut settlement.rejected,
                Delivery::Retryable => continue,
            };
            part[event.kind.priority() as usize] += Tally::one(event.count);
        }
        let arrived = self.batch.events.iter().zip(deliveries);
        let arrived = arrived.filter(|(_, delivery)| **delivery == Delivery::Delivered);
        self.shared.latencies.count(arrived.map(|(event, _)| &**event));
        // Nothing was dropped, so the reason does not matter.
        self.apply(&settlements, DropReason::Closed);
        let mut keep = deliveries.iter().map(|d| *d == Delivery::Retryable);
        self.batch.events.retain(|_| keep.next().unwrap_or(true));
        let mut keep = deliveries.iter().map(|d| *d == Delivery::Retryable);
        self.batch.from.retain(|_| keep.next().unwrap_or(true));
    }

    fn drop_rest(&mut self, reason: DropReason) {
        self.settle_all(|settlement| &mut settlement.dropped, reason);
    }

    /// Settles the whole batch one way, and hands its memory back.
    fn settle_all(
        &mut self,
        part: impl Fn(&mut Settlement) -> &mut [Tally; 2],
        reason: DropReason,
    ) {
        let mut settlements = vec![Settlement::default(); self.lanes.len()];
        for (event, lane) in self.batch.events.iter().zip(&self.batch.from) {
            let part = part(&mut settlements[*lane as usize]);
            part[event.kind.priority() as usize] += Tally::one(event.count);
        }
        self.apply(&settlements, reason);
        self.give_back();
    }

    /// Events of one lane lie together but for the two priorities.
    fn give_back(&mut self) {
        let Batch { events, from, .. } = &mut self.batch;
        let mut spare = std::mem::take(&mut self.spare);
        while let Some(lane) = from.last().copied() {
            let start = from.iter().rposition(|l| *l != lane).map_or(0, |before| before + 1);
            spare.extend(events.drain(start..));
            from.truncate(start);
            self.lanes[lane as usize].pool.give_back(&mut spare);
        }
        events.clear();
        self.spare = spare;
    }

    fn apply(&self, settlements: &[Settlement], reason: DropReason) {
        let lanes = self.lanes.iter().zip(&self.batch.epochs).zip(settlements);
        for ((lane, epoch), settlement) in lanes {
            if *settlement != Settlement::default() {
                lane.settle(*epoch, settlement, reason);
            }
        }
    }
}
