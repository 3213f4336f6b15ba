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
use crate::remote::causes;
use crate::tls::Trust;

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
            | Failure::Unimplemented(reason)
            | Failure::TooLarge(reason)
            | Failure::Never(reason) => reason,
        }
    }

    /// The same, for other words.
    fn map(self, f: impl FnOnce(String) -> String) -> Self {
        match self {
            Failure::Later { reason, after } => Failure::Later { reason: f(reason), after },
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
    /// `None` until it is needed, and after it has failed.
    open: Option<Open>,
}

struct Open {
    client: Client,
    trust: Trust,
}

enum Client {
    Grpc(Box<grpc::Grpc>),
    Http(Box<http::Http>),
}

impl Transport {
    pub(super) fn new(settled: Settled) -> Self {
        let uris = [Some(&settled.logs), settled.traces.as_ref()].into_iter().flatten();
        let paths = uris.map(|uri| match uri.path() {
            path if path.ends_with("/v1/logs") => path.trim_end_matches("/v1/logs").to_owned(),
            path => path.trim_end_matches("/v1/traces").to_owned(),
        });
        let headers = Headers::new(settled.headers.clone(), paths.collect());
        Transport { settled, headers, open: None }
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
        let timeout = self.settled.timeout;
        let sent = self.send_patiently(signal, request);
        let result = tokio::time::timeout(timeout, sent).await.unwrap_or_else(|_| {
            Err(Failure::later(format!("no answer within {} ms", timeout.as_millis())))
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

    async fn send_patiently(&mut self, signal: Signal, request: Bytes) -> Result<Taken, Failure> {
        let headers = self.headers.resolve().map_err(Failure::later)?;
        let uri = match signal {
            Signal::Logs => &self.settled.logs,
            Signal::Traces => self.settled.traces.as_ref().unwrap_or(&self.settled.logs),
        };
        let open = match &mut self.open {
            Some(open) => open,
            None => self.open.insert(Open::to(&self.settled).map_err(Failure::later)?),
        };
        match &mut open.client {
            Client::Grpc(client) => client.send(signal, uri, headers, request).await,
            Client::Http(client) => client.send(signal, uri, headers, request).await,
        }
    }

    fn trust_is_old(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.trust.has_changed())
    }
}

/// An answer that asks for patience came over a connection that works.
fn result_is_of_connection(result: &Result<Taken, Failure>) -> bool {
    matches!(result, Err(Failure::Later { after: None, .. }))
}

impl Open {
    fn to(settled: &Settled) -> Result<Self, String> {
        let trust = Trust::load(&settled.tls, needs_trust(settled))?;
        let client = match settled.protocol {
            Protocol::Grpc => Client::Grpc(Box::new(grpc::Grpc::new(settled, &trust)?)),
            Protocol::Http => Client::Http(Box::new(http::Http::new(settled, &trust))),
        };
        Ok(Open { client, trust })
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
fn on_the_way(uri: &Uri, error: &(dyn std::error::Error + 'static)) -> Failure {
    let (scheme, authority) = (uri.scheme_str().unwrap_or_default(), uri.authority());
    let authority = authority.map_or("", |authority| authority.as_str());
    Failure::later(format!("{scheme}://{authority}: {}", said(&causes(error))))
}
