//! Events to whatever speaks OTLP: the OpenTelemetry Collector, Jaeger, Tempo,
//! Loki, and vendors' back ends.
//!
//! *Does my back end have it, in the words that it knows?* Every event becomes a
//! log record; those that chains of causes are made of become spans as well,
//! under the ids that they have, so that any trace back end draws the chain.
//! docs/otlp.md has the table of attributes.
//!
//! An event counts as delivered when its record, and its span where it has one,
//! were acknowledged. What it never does: send to an `http://` what was
//! configured for `https://`, follow a redirect, or show a header's value.
//!
//! Minimum kernel: any that Rust's standard library runs on.

mod attributes;
mod config;
mod encode;
mod record;
mod spans;
mod transport;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vahti_runtime::emitter::{Delivery, Emission, EmitOutcome, EventEmitter, Meter};
use vahti_runtime::event::Event;
use vahti_runtime::ids::EventId;

pub use self::config::{Compression, HeaderSource, OtlpConfig, OtlpTarget, Protocol, Secret};
use self::encode::{Encoder, Portion};
use self::spans::SpanCounts;
use self::transport::{Failure, Signal, Taken, Transport};

/// How often the same trouble with spans is told.
const TELL_INTERVAL: Duration = Duration::from_secs(300);

/// Sends events over OTLP.
pub struct OtlpEmitter {
    name: String,
    critical: bool,
    transport: Transport,
    encoder: Encoder,
    /// Those of the last batch whose records arrived and whose spans did not:
    /// only the spans are sent again.
    logged: HashSet<EventId>,
    spans: Arc<SpanCounts>,
    told: Option<Instant>,
}

impl OtlpEmitter {
    /// How many events are sent at once, at most.
    pub const MAX_BATCH: usize = 1_000;

    /// One that sends there; it connects when the first event comes.
    #[must_use]
    pub fn new(name: &str, target: OtlpTarget) -> Self {
        OtlpEmitter {
            name: name.to_owned(),
            critical: false,
            transport: Transport::new(target.settled),
            encoder: Encoder::default(),
            logged: HashSet::new(),
            spans: target.spans,
            told: None,
        }
    }

    /// Whether what it fails to send is tried again.
    #[must_use]
    pub fn critical(mut self, critical: bool) -> Self {
        self.critical = critical;
        self
    }

    async fn export(&mut self, batch: &[Arc<Event>]) -> EmitOutcome {
        let mut sent = Sent::of(batch.len());
        let logged = std::mem::take(&mut self.logged);
        let open: Vec<usize> =
            (0..batch.len()).filter(|i| !logged.contains(&batch[*i].id)).collect();
        if let Err(outcome) = self.send(Signal::Logs, batch, &open, &mut sent).await {
            if open.len() == batch.len() {
                return outcome;
            }
            // Tried again without those whose spans alone are missing.
            sent.wait(&open, "refused together with others".to_owned(), None);
        }
        if self.transport.sends_traces() {
            let is_open = |i: &usize| sent.is_delivered(*i) && record::is_span(&batch[*i]);
            let spans: Vec<usize> = (0..batch.len()).filter(is_open).collect();
            self.send_spans(batch, &spans, &mut sent).await;
        }
        sent.outcome()
    }

    async fn send_spans(&mut self, batch: &[Arc<Event>], spanned: &[usize], sent: &mut Sent) {
        let mut spans = Sent::of(batch.len());
        match self.send(Signal::Traces, batch, spanned, &mut spans).await {
            Ok(()) => {}
            // The records arrived, whatever becomes of the spans.
            Err(EmitOutcome::Rejected { reason } | EmitOutcome::TooLarge { reason }) => {
                self.spans.count(spanned.len() as u64, spanned.len() as u64);
                self.tell(&reason);
                return;
            }
            Err(_) => return,
        }
        let settled = spanned.iter().filter(|i| spans.is_delivered(**i)).count();
        self.spans.count(settled as u64, spans.unidentified);
        if let Some(why) = spans.refused.take() {
            self.tell(&why);
        }
        if let Some((reason, after)) = spans.later.take() {
            for i in spanned.iter().filter(|i| !spans.is_delivered(**i)) {
                sent.deliveries[*i] = Delivery::Retryable;
                self.logged.insert(batch[*i].id);
            }
            sent.later = Some((reason, after));
        }
    }

    /// Sends what is asked for of a batch, in as many requests as that takes,
    /// until one fails.
    async fn send(
        &mut self,
        signal: Signal,
        batch: &[Arc<Event>],
        which: &[usize],
        sent: &mut Sent,
    ) -> Result<(), EmitOutcome> {
        let mut rest = which;
        while !rest.is_empty() {
            let max = self.transport.max_request();
            let Portion { request, count } = self.encoder.encode(signal, batch, rest, max);
            let (these, after) = rest.split_at(count);
            match self.transport.send(signal, request).await {
                Ok(Taken { rejected: 0, message }) => {
                    if !message.is_empty() {
                        tracing::debug!(emitter = %self.name, says = %message, "the receiver took it");
                    }
                }
                Ok(Taken { rejected, message }) => sent.refuse(signal, these, rejected, message),
                Err(Failure::Later { reason, after }) => {
                    sent.wait(rest, reason, after);
                    return Ok(());
                }
                Err(Failure::Unimplemented(reason)) => {
                    sent.refused = Some(format!("{reason}; set traces: false"));
                    sent.unidentified += rest.len() as u64;
                    return Ok(());
                }
                Err(failure) if these.len() == which.len() => return Err(failure.into()),
                // Halves of the batch are sent, each as one request.
                Err(failure) if rest.len() == which.len() => {
                    return Err(EmitOutcome::TooLarge { reason: failure.reason() });
                }
                // Next time it comes first.
                Err(failure) => {
                    sent.wait(rest, failure.reason(), None);
                    return Ok(());
                }
            }
            rest = after;
        }
        Ok(())
    }

    /// Says that spans were refused, not with every batch.
    fn tell(&mut self, why: &str) {
        if self.told.is_none_or(|told| told.elapsed() >= TELL_INTERVAL) {
            self.told = Some(Instant::now());
            tracing::warn!(emitter = %self.name, why, "spans are refused; the records arrive");
        }
    }
}

impl From<Failure> for EmitOutcome {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Later { reason, after } => {
                EmitOutcome::Retryable { reason, retry_after: after }
            }
            Failure::Lost(reason) => EmitOutcome::Retryable { reason, retry_after: None },
            Failure::TooLarge(reason) => EmitOutcome::TooLarge { reason },
            Failure::Unimplemented(reason) | Failure::Never(reason) => {
                EmitOutcome::Rejected { reason }
            }
        }
    }
}

/// What became of a batch so far.
struct Sent {
    deliveries: Vec<Delivery>,
    later: Option<(String, Option<Duration>)>,
    refused: Option<String>,
    /// How many were refused, nobody knows which.
    unidentified: u64,
}

impl Sent {
    fn of(len: usize) -> Self {
        Sent {
            deliveries: vec![Delivery::Delivered; len],
            later: None,
            refused: None,
            unidentified: 0,
        }
    }

    fn is_delivered(&self, i: usize) -> bool {
        self.deliveries[i] == Delivery::Delivered
    }

    /// The rest of a batch is to be tried again.
    fn wait(&mut self, rest: &[usize], reason: String, after: Option<Duration>) {
        for i in rest {
            self.deliveries[*i] = Delivery::Retryable;
        }
        self.later = Some((reason, after));
    }

    /// Some of a request were refused for good: all of it, where that is how
    /// many there are, else nobody knows which.
    fn refuse(&mut self, signal: Signal, these: &[usize], rejected: u64, message: String) {
        let message = if message.is_empty() { "refused".to_owned() } else { message };
        self.refused = Some(message);
        let rejected = usize::try_from(rejected).unwrap_or(usize::MAX).min(these.len());
        self.unidentified += rejected as u64;
        if signal == Signal::Traces {
            return;
        }
        // The number is true, the choice is not: the protocol has no other.
        for i in &these[..rejected] {
            self.deliveries[*i] = Delivery::Rejected;
        }
    }

    fn outcome(self) -> EmitOutcome {
        if self.later.is_none() && self.unidentified == 0 {
            return EmitOutcome::Delivered;
        }
        let (later, after) = self.later.map_or((None, None), |(why, after)| (Some(why), after));
        let reason = later.or(self.refused).unwrap_or_default();
        if self.deliveries.iter().all(|d| *d == Delivery::Retryable) {
            return EmitOutcome::Retryable { reason, retry_after: after };
        }
        if after.is_none() && !self.deliveries.contains(&Delivery::Retryable) {
            return EmitOutcome::RejectedUnidentified { rejected: self.unidentified, reason };
        }
        EmitOutcome::Each { deliveries: self.deliveries, reason, retry_after: after }
    }
}

impl EventEmitter for OtlpEmitter {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_critical(&self) -> bool {
        self.critical
    }

    fn max_batch(&self) -> usize {
        Self::MAX_BATCH
    }

    /// What a request costs hardly depends on what is in it, so full ones are
    /// waited for, as long as the emitter may and lanes have room.
    fn min_batch(&self) -> usize {
        Self::MAX_BATCH
    }

    fn meter(&self) -> Option<Meter> {
        self.transport.sends_traces().then(|| self.spans.meter(&self.name))
    }

    fn emit<'a>(&'a mut self, batch: &'a [Arc<Event>]) -> Emission<'a, EmitOutcome> {
        Box::pin(self.export(batch))
    }
}
