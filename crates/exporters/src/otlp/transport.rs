//! The two ways to a receiver, and what its answers mean.

mod grpc;
mod headers;
pub(super) mod http;

use std::time::Duration;

use ::http::Uri;
use prost::bytes::Bytes;
use vahti_runtime::event::escape_text;

use self::headers::Headers;
use super::config::{Protocol, Settled};
use crate::remote;
use crate::tls::Trust;

/// How much of an answer is read; those that there are take some hundred bytes.
const MAX_ANSWER: usize = 64 << 10;

/// What a receiver took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// How many of the request it refused for good; it does not say which.
    pub(super) rejected: u64,
    /// Why, or what else it has to say.
    pub(super) message: String,
}

/// Why a receiver did not take a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// Trying again may help.
    Later { reason: String, after: Option<Duration> },
    /// The connection broke before an answer came.
    Lost(String),
    /// There is nobody at the other end who takes such requests.
    Unimplemented(String),
    /// It is larger than the receiver takes.
    TooLarge(String),
    /// It is refused for good.
    Never(String),
}

impl Failure {
    /// Why.
    pub(super) fn reason(self) -> String {
        match self {
            Failure::Later { reason, .. }
            | Failure::Lost(reason)
            | Failure::Unimplemented(reason)
            | Failure::TooLarge(reason)
            | Failure::Never(reason) => reason,
        }
    }

    /// The same, for other words.
    fn map(self, f: impl FnOnce(String) -> String) -> Self {
        match self {
            Failure::Later { reason, after } => Failure::Later { reason: f(reason), after },
            Failure::Lost(reason) => Failure::Lost(f(reason)),
            Failure::Unimplemented(reason) => Failure::Unimplemented(f(reason)),
            Failure::TooLarge(reason) => Failure::TooLarge(f(reason)),
            Failure::Never(reason) => Failure::Never(f(reason)),
        }
    }

    fn later(reason: impl Into<String>) -> Self {
        Failure::Later { reason: reason.into(), after: None }
    }
}

/// Which kind of request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    Logs,
    Traces,
}

/// A way to a receiver. It connects when it is first needed, and anew where a
/// connection has failed.
pub(super) struct Transport {
    settled: Settled,
    headers: Headers,
    /// The way of spans, where that is another one.
    of_traces: Option<Box<Transport>>,
    /// `None` until it is needed, and after it has failed.
    open: Option<Open>,
    /// Whether somebody has ever answered.
    has_answered: bool,
}

const NEVER_ANSWERED: &str = "nobody has answered there yet: is it the port of this protocol, or \
                              of TLS, or does it ask for a client's certificate?";

struct Open {
    client: Client,
    trust: Trust,
    /// Whether somebody answered there.
    has_answered: bool,
}

enum Client {
    Grpc(Box<grpc::Grpc>),
    Http(Box<http::Http>),
}

impl Transport {
    pub(super) fn new(mut settled: Settled) -> Self {
        let traces_way = settled.traces_way.take();
        let of_traces = traces_way.zip(settled.traces.clone()).map(|(way, uri)| {
            Box::new(Transport::new(Settled {
                logs: uri,
                way,
                traces: None,
                traces_way: None,
                max_request: settled.max_request,
            }))
        });
        let traces = settled.traces.as_ref().filter(|_| of_traces.is_none());
        let uris = [Some(&settled.logs), traces].into_iter().flatten();
        let paths = uris.map(|uri| match uri.path() {
            path if path.ends_with("/v1/logs") => path.trim_end_matches("/v1/logs").to_owned(),
            path => path.trim_end_matches("/v1/traces").to_owned(),
        });
        let headers = Headers::new(settled.way.headers.clone(), paths.collect());
        Transport { settled, headers, of_traces, open: None, has_answered: false }
    }

    /// Whether chains are sent as spans.
    pub(super) fn sends_traces(&self) -> bool {
        self.settled.traces.is_some()
    }

    /// How large a request may be.
    pub(super) fn max_request(&self) -> usize {
        self.settled.max_request
    }

    /// Sends a request, and waits for the answer as long as is configured.
    pub(super) async fn send(&mut self, signal: Signal, request: Bytes) -> Result<Taken, Failure> {
        match &mut self.of_traces {
            Some(other) if signal == Signal::Traces => other.send_here(signal, request).await,
            _ => self.send_here(signal, request).await,
        }
    }

    async fn send_here(&mut self, signal: Signal, request: Bytes) -> Result<Taken, Failure> {
        let timeout = self.settled.way.timeout;
        let sent = self.send_anew(signal, request);
        let result = tokio::time::timeout(timeout, sent).await.unwrap_or_else(|_| {
            let (place, ms) = (remote::place(self.settled.uri(signal)), timeout.as_millis());
            Err(Failure::later(format!("{place}: no answer within {ms} ms")))
        });
        let result = result.map_err(|failure| match failure {
            Failure::Lost(reason) if self.has_answered => Failure::later(reason),
            Failure::Lost(reason) => Failure::later(format!("{reason}; {NEVER_ANSWERED}")),
            other => other,
        });
        let result = match result {
            Ok(Taken { rejected, message }) => {
                Ok(Taken { rejected, message: self.headers.hide(&message) })
            }
            Err(failure) => Err(failure.map(|reason| self.headers.hide(&reason))),
        };
        if let Err(Failure::Later { .. }) = &result {
            // The connection may be dead without anybody knowing it, and the
            // certificates may have been renewed.
            if result_is_of_connection(&result) || self.trust_is_old() {
                self.open = None;
            }
        }
        result
    }

    /// A connection that was open for a while may be closed by the other side
    /// just when it is used: that is no failure, and tried on a fresh one.
    async fn send_anew(&mut self, signal: Signal, request: Bytes) -> Result<Taken, Failure> {
        let has_answered = self.open.as_ref().is_some_and(|open| open.has_answered);
        let result = self.send_once(signal, request.clone()).await;
        if has_answered && let Err(Failure::Lost(why)) = &result {
            tracing::debug!(%why, "sends again over a fresh connection");
            self.open = None;
            return self.send_once(signal, request).await;
        }
        result
    }

    async fn send_once(&mut self, signal: Signal, request: Bytes) -> Result<Taken, Failure> {
        let headers = self.headers.resolve().map_err(Failure::later)?;
        let open = match &mut self.open {
            Some(open) => open,
            None => self.open.insert(Open::to(&self.settled).map_err(Failure::later)?),
        };
        let uri = self.settled.uri(signal);
        let result = match &mut open.client {
            Client::Grpc(client) => client.send(signal, uri, headers, request).await,
            Client::Http(client) => client.send(signal, uri, headers, request).await,
        };
        open.has_answered |= !matches!(result, Err(Failure::Later { .. } | Failure::Lost(_)));
        self.has_answered |= open.has_answered;
        result
    }

    fn trust_is_old(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.trust.has_changed())
    }
}

/// An answer that asks for patience came over a connection that works.
fn result_is_of_connection(result: &Result<Taken, Failure>) -> bool {
    matches!(result, Err(Failure::Later { after: None, .. }))
}

impl Settled {
    fn uri(&self, signal: Signal) -> &Uri {
        match signal {
            Signal::Logs => &self.logs,
            Signal::Traces => self.traces.as_ref().unwrap_or(&self.logs),
        }
    }
}

impl Open {
    fn to(settled: &Settled) -> Result<Self, String> {
        let trust = Trust::load(&settled.way.tls, needs_trust(settled))?;
        let client = match settled.way.protocol {
            Protocol::Grpc => Client::Grpc(Box::new(grpc::Grpc::new(settled, &trust)?)),
            Protocol::Http => Client::Http(Box::new(http::Http::new(settled, &trust))),
        };
        Ok(Open { client, trust, has_answered: false })
    }
}

fn needs_trust(settled: &Settled) -> bool {
    let is_https = |uri: &Uri| uri.scheme_str() == Some("https");
    is_https(&settled.logs) || settled.traces.as_ref().is_some_and(is_https)
}

/// What a receiver says, as it may be shown: it can be anything.
fn said(text: &str) -> String {
    let short: String = text.trim().chars().take(200).collect();
    escape_text(&short).into_owned()
}

/// What went wrong on the way to a receiver, down to the first cause.
fn on_the_way(uri: &Uri, error: &(dyn std::error::Error + 'static)) -> String {
    remote::on_the_way(uri, error, said)
}
