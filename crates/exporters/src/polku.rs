//! Events to a POLKU gateway, over gRPC: one stream of batches, each of which is
//! waited for until the gateway has acknowledged it.
//!
//! *Does the gateway have it?* Its acknowledgement is a receipt of arrival: what
//! it does with an event afterwards is its own business, and it does not tell.
//! An event that no acknowledgement names has not arrived. docs/polku.md says
//! what is sent.
//!
//! Minimum kernel: any that Rust's standard library runs on.

mod message;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ::http::uri::PathAndQuery;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::Streaming;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;
use vahti_runtime::config::{InvalidConfig, InvalidField};
use vahti_runtime::emitter::{Delivery, Emission, EmitOutcome, EventEmitter};
use vahti_runtime::event::{Event, escape_text};

use self::message::{Ack, EventPayload, IngestBatch, Payload};
use crate::remote::{self, causes};
use crate::tls::{TlsConfig, Trust};

const STREAM: PathAndQuery = PathAndQuery::from_static("/polku.v1.Gateway/StreamEvents");

/// What the gateway takes at once, measured: beyond it the stream ends without
/// an acknowledgement.
const GATEWAY_BYTES: usize = 4 << 20;

/// Where a gateway is, and how it is spoken to.
#[derive(Debug, Clone)]
pub struct PolkuTarget {
    endpoint: ::http::Uri,
    cluster: String,
    tls: TlsConfig,
    timeout: Duration,
    max_bytes: usize,
}

impl PolkuTarget {
    /// The gateway at this URL, for events of this cluster. `timeout` is how
    /// long an acknowledgement is waited for.
    ///
    /// # Errors
    /// The URL is none, or a certificate has no key.
    pub fn new(
        endpoint: &str,
        cluster: &str,
        tls: TlsConfig,
        timeout: Duration,
    ) -> Result<Self, InvalidConfig> {
        let parsed = remote::endpoint_without_path(endpoint, "http://localhost:50051");
        let wrong = parsed.as_ref().err().map(|bound| InvalidField {
            path: "endpoint".to_owned(),
            value: escape_text(&remote::shown(endpoint)).into_owned(),
            bound: bound.clone(),
        });
        let fields: Vec<InvalidField> = wrong.into_iter().chain(tls.wrong()).collect();
        let endpoint = match parsed {
            Ok(endpoint) if fields.is_empty() => endpoint,
            _ => return Err(InvalidConfig { fields }),
        };
        Ok(PolkuTarget {
            endpoint,
            cluster: cluster.to_owned(),
            tls,
            timeout,
            max_bytes: GATEWAY_BYTES - (64 << 10),
        })
    }
}

/// Sends events to a POLKU gateway.
pub struct PolkuEmitter {
    name: String,
    critical: bool,
    target: PolkuTarget,
    open: Option<Open>,
}

/// A stream, both ways.
struct Open {
    batches: mpsc::Sender<IngestBatch>,
    acks: Streaming<Ack>,
}

/// What became of some of a batch.
enum Sent {
    /// By event: acknowledged, or refused and why.
    Known(Vec<(Delivery, Option<String>)>),
    /// Not a word about them.
    Nothing(String),
    /// Not a word about them, as the connection broke.
    Lost(String),
}

impl PolkuEmitter {
    /// How many events are sent at once, at most.
    pub const MAX_BATCH: usize = 1_000;

    /// One that connects when the first event comes.
    #[must_use]
    pub fn new(name: &str, target: PolkuTarget) -> Self {
        PolkuEmitter { name: name.to_owned(), critical: false, target, open: None }
    }

    /// Whether what it fails to send is tried again.
    #[must_use]
    pub fn critical(mut self, critical: bool) -> Self {
        self.critical = critical;
        self
    }

    async fn deliver(&mut self, batch: &[Arc<Event>]) -> EmitOutcome {
        let mut deliveries = Vec::with_capacity(batch.len());
        let mut reason = String::new();
        while deliveries.len() < batch.len() {
            let rest = &batch[deliveries.len()..];
            let (request, count) = self.request(rest);
            if request.encoded_len() > self.target.max_bytes {
                reason = format!("it takes more than {} bytes", self.target.max_bytes);
                deliveries.push(Delivery::Rejected);
                continue;
            }
            match self.send_patiently(request, &rest[..count]).await {
                Sent::Known(known) => {
                    for (delivery, why) in known {
                        reason = why.unwrap_or(reason);
                        deliveries.push(delivery);
                    }
                }
                Sent::Nothing(why) | Sent::Lost(why) => {
                    self.open = None;
                    if deliveries.is_empty() {
                        return EmitOutcome::Retryable { reason: why, retry_after: None };
                    }
                    deliveries.resize(batch.len(), Delivery::Retryable);
                    reason = why;
                }
            }
        }
        if deliveries.iter().all(|delivery| *delivery == Delivery::Delivered) {
            return EmitOutcome::Delivered;
        }
        EmitOutcome::Each { deliveries, reason, retry_after: None }
    }

    /// Waits for acknowledgements as long as is configured.
    async fn send_patiently(&mut self, request: IngestBatch, events: &[Arc<Event>]) -> Sent {
        let timeout = self.target.timeout;
        let had_stream = self.open.is_some();
        let sent = async {
            let sent = self.send(request, events).await;
            if had_stream && let Sent::Lost(why) = &sent {
                // It was open for a while, and closed just as it was used.
                tracing::debug!(%why, "sends again over a fresh stream");
                let (request, _) = self.request(events);
                return self.send(request, events).await;
            }
            sent
        };
        let sent = tokio::time::timeout(timeout, sent).await;
        sent.unwrap_or_else(|_| {
            let place = remote::place(&self.target.endpoint);
            Sent::Nothing(format!("{place}: no acknowledgement within {} ms", timeout.as_millis()))
        })
    }

    /// As many events as the gateway takes at once, one at least.
    fn request(&self, events: &[Arc<Event>]) -> (IngestBatch, usize) {
        let mut room = self.target.max_bytes - (self.target.cluster.len() + (1 << 10));
        let mut taken = Vec::with_capacity(events.len());
        for event in events {
            let event = message::event(event);
            let bytes = event.encoded_len() + 6;
            if bytes > room && !taken.is_empty() {
                break;
            }
            room = room.saturating_sub(bytes);
            taken.push(event);
        }
        let count = taken.len();
        let batch = IngestBatch {
            source: "vahti".to_owned(),
            cluster: self.target.cluster.clone(),
            payload: Some(Payload::Events(EventPayload { events: taken })),
        };
        (batch, count)
    }

    async fn send(&mut self, request: IngestBatch, events: &[Arc<Event>]) -> Sent {
        let open = match self.open.take() {
            Some(open) => match open.batches.send(request).await {
                Ok(()) => Ok(open),
                // It ended since the last batch, without having seen this one.
                Err(mpsc::error::SendError(request)) => self.connect(request).await,
            },
            None => self.connect(request).await,
        };
        let mut open = match open {
            Ok(open) => open,
            Err(nothing) => return nothing,
        };
        let places = events.iter().enumerate().map(|(i, event)| (event.id.to_string(), i));
        let places: HashMap<String, usize> = places.collect();
        let mut known: Vec<Option<(Delivery, Option<String>)>> = vec![None; events.len()];
        while known.contains(&None) {
            match open.acks.message().await {
                Ok(Some(ack)) => note(&ack, &places, &mut known),
                // What it has acknowledged so far has arrived all the same.
                Ok(None) => return rest(known, "the gateway ended the stream".to_owned()),
                Err(status) if known.iter().all(Option::is_none) => return self.broke(&status),
                Err(status) => return rest(known, told(&status)),
            }
        }
        self.open = Some(open);
        Sent::Known(known.into_iter().flatten().collect())
    }

    /// Begins a stream with its first batch: a gateway may answer only then.
    async fn connect(&self, first: IngestBatch) -> Result<Open, Sent> {
        let mut client = self.client().map_err(Sent::Nothing)?;
        client.ready().await.map_err(|error| {
            Sent::Nothing(remote::on_the_way(&self.target.endpoint, &error, shown))
        })?;
        let (batches, outgoing) = mpsc::channel(1);
        // There is room for one.
        batches.send(first).await.map_err(|error| Sent::Nothing(error.to_string()))?;
        let request = Request::new(ReceiverStream::new(outgoing));
        let answer = client.streaming(request, STREAM, ProstCodec::default()).await;
        let acks = answer.map_err(|status| self.broke(&status))?.into_inner();
        Ok(Open { batches, acks })
    }

    fn client(&self) -> Result<tonic::client::Grpc<Channel>, String> {
        let is_tls = self.target.endpoint.scheme_str() == Some("https");
        let trust = Trust::load(&self.target.tls, is_tls)?;
        let endpoint = Endpoint::from(self.target.endpoint.clone())
            .user_agent(concat!("vahti/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| error.to_string())?
            .tcp_nodelay(true);
        let connector = trust.connector(true, self.target.timeout);
        let channel: Channel = endpoint.connect_with_connector_lazy(connector);
        Ok(tonic::client::Grpc::new(channel))
    }

    /// What a stream that ended badly says of events that nothing is known of.
    fn broke(&self, status: &Status) -> Sent {
        match std::error::Error::source(status) {
            Some(error) => Sent::Lost(remote::on_the_way(&self.target.endpoint, error, shown)),
            None => Sent::Nothing(told(status)),
        }
    }
}

/// Takes note of an acknowledgement. What it says of others is of an earlier
/// try, and does not count twice.
fn note(
    ack: &Ack,
    places: &HashMap<String, usize>,
    known: &mut [Option<(Delivery, Option<String>)>],
) {
    for id in &ack.event_ids {
        if let Some(place) = places.get(id) {
            known[*place].get_or_insert((Delivery::Delivered, None));
        }
    }
    for error in &ack.errors {
        if let Some(place) = places.get(&error.event_id) {
            let delivery =
                if may_pass(&error.code) { Delivery::Retryable } else { Delivery::Rejected };
            let why = format!("{}: {}", error.code, error.message);
            known[*place] = Some((delivery, Some(escape_text(&why).into_owned())));
        }
    }
}

/// Whether what an error's code names may be over when it is tried again.
fn may_pass(code: &str) -> bool {
    let code = code.to_ascii_lowercase();
    ["full", "exhausted", "unavailable", "overload", "timeout", "retry"]
        .iter()
        .any(|word| code.contains(word))
}

/// No more is said of those of which nothing is known yet.
fn rest(known: Vec<Option<(Delivery, Option<String>)>>, why: String) -> Sent {
    if known.iter().all(Option::is_none) {
        return Sent::Nothing(why);
    }
    let missing = (Delivery::Retryable, Some(why));
    Sent::Known(known.into_iter().map(|it| it.unwrap_or_else(|| missing.clone())).collect())
}

/// What somebody else says, as it may be shown.
fn shown(text: &str) -> String {
    escape_text(text).into_owned()
}

fn told(status: &Status) -> String {
    let text = match std::error::Error::source(status) {
        Some(error) => causes(error),
        None if status.code() == Code::Unimplemented => {
            format!("{}; is it a POLKU gateway?", status.message())
        }
        None => format!("{:?}: {}", status.code(), status.message()),
    };
    shown(&text)
}

impl EventEmitter for PolkuEmitter {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_critical(&self) -> bool {
        self.critical
    }

    fn max_batch(&self) -> usize {
        Self::MAX_BATCH
    }

    fn min_batch(&self) -> usize {
        Self::MAX_BATCH / 2
    }

    fn emit<'a>(&'a mut self, batch: &'a [Arc<Event>]) -> Emission<'a, EmitOutcome> {
        Box::pin(self.deliver(batch))
    }
}
