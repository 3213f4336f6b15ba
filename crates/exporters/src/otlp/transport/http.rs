//! Protobuf over HTTP, with hyper.

use std::io::{Read, Write};
use std::time::{Duration, SystemTime};

use ::http::header::{
    CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT,
};
use ::http::{Method, Request, StatusCode, Uri};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::TokioExecutor;
use prost::Message;
use prost::bytes::Bytes;

use super::grpc::decode;
use super::{Failure, MAX_ANSWER, Signal, Taken, on_the_way, said};
use crate::otlp::config::{Settled, Way};
use crate::remote::{advice, shown};
use crate::tls::{Connector, Trust};

pub(super) struct Http {
    client: Client<Connector, Full<Bytes>>,
    gzip: bool,
}

impl Http {
    pub(super) fn new(settled: &Settled, trust: &Trust) -> Self {
        let mut builder = Client::builder(TokioExecutor::new());
        // One request at a time.
        builder.pool_max_idle_per_host(1);
        let Way { timeout, gzip, .. } = settled.way;
        Http { client: builder.build(trust.connector(false, timeout)), gzip }
    }

    pub(super) async fn send(
        &mut self,
        signal: Signal,
        uri: &Uri,
        headers: &HeaderMap,
        message: Bytes,
    ) -> Result<Taken, Failure> {
        let request = self.request(uri, headers, message)?;
        let answer = self.client.request(request).await.map_err(|e| unanswered(uri, &e))?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = match body {
            Ok(body) => body.to_bytes(),
            // It has taken the request only if it says so to the end.
            Err(error) if parts.status.is_success() => {
                return Err(Failure::later(on_the_way(uri, &*error)));
            }
            // What it says beside its status is for people.
            Err(_) => Bytes::new(),
        };
        understood(signal, parts.status, &parts.headers, body)
    }

    fn request(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        message: Bytes,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::later(error.to_string());
        let body = if self.gzip { compress(&message).map_err(|e| failed(&e))? } else { message };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri.clone();
        let all = request.headers_mut();
        let agent = HeaderValue::from_static(concat!("vahti/", env!("CARGO_PKG_VERSION")));
        all.insert(USER_AGENT, agent);
        all.extend(headers.clone());
        all.insert(CONTENT_TYPE, HeaderValue::from_static(PROTOBUF));
        if self.gzip {
            all.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        Ok(request)
    }
}

/// What is known to be wrong with a connection is not that it broke.
fn unanswered(uri: &Uri, error: &Error) -> Failure {
    let reason = on_the_way(uri, error);
    if error.is_connect() || advice(error).is_some() {
        Failure::later(reason)
    } else {
        Failure::Lost(reason)
    }
}

const PROTOBUF: &str = "application/x-protobuf";

fn compress(message: &[u8]) -> std::io::Result<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(message.len() / 4), Compression::fast());
    encoder.write_all(message)?;
    encoder.finish().map(Bytes::from)
}

fn content_is(headers: &HeaderMap, kind: &str) -> bool {
    let content = headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
    content.is_some_and(|content| content.starts_with(kind.as_bytes()))
}

/// What an answer says of a request.
pub(in crate::otlp) fn understood(
    signal: Signal,
    status: StatusCode,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Taken, Failure> {
    if status.is_success() {
        read(signal, headers, body)
    } else {
        Err(means(signal, status, headers, body))
    }
}

/// Reads an answer that says that all is well. Some say so in JSON, and some
/// with nothing; a page for people says nothing of events.
fn read(signal: Signal, headers: &HeaderMap, body: Bytes) -> Result<Taken, Failure> {
    if body.is_empty() {
        return Ok(Taken::default());
    }
    let unreadable = |error: &dyn std::fmt::Display| {
        Failure::later(format!("an answer that can't be read: {error}"))
    };
    let body = uncompressed(headers, body).map_err(|error| unreadable(&error))?;
    if content_is(headers, "application/json") {
        return serde_json::from_slice(&body).map(of_json).map_err(|error| unreadable(&error));
    }
    if let Some(content) = headers.get(CONTENT_TYPE)
        && !content_is(headers, PROTOBUF)
    {
        let content = said(&String::from_utf8_lossy(content.as_bytes()));
        let why = format!("an answer that is none of OTLP's but {content}; is endpoint right?");
        return Err(Failure::later(why));
    }
    decode(signal, body).map_err(|error| unreadable(&error))
}

/// Some compress what nobody asked them to.
fn uncompressed(headers: &HeaderMap, body: Bytes) -> std::io::Result<Bytes> {
    if headers.get(CONTENT_ENCODING).is_none_or(|encoding| encoding != "gzip") {
        return Ok(body);
    }
    let mut plain = Vec::new();
    let most = MAX_ANSWER as u64;
    GzDecoder::new(&*body).take(most + 1).read_to_end(&mut plain)?;
    if plain.len() as u64 > most {
        return Err(std::io::Error::other(format!("it takes more than {most} bytes")));
    }
    Ok(plain.into())
}

fn of_json(answer: serde_json::Value) -> Taken {
    let partial = &answer["partialSuccess"];
    // 64-bit numbers are text in OTLP's JSON; not everybody knows.
    let number = |value: &serde_json::Value| {
        value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
    };
    let rejected = number(&partial["rejectedLogRecords"]).max(number(&partial["rejectedSpans"]));
    Taken { rejected, message: said(partial["errorMessage"].as_str().unwrap_or_default()) }
}

/// What a status says of a request. As the protocol has it
/// (<https://opentelemetry.io/docs/specs/otlp/#failures-1>), but for what is no
/// fault of the data: who may not send, or sends to the wrong place, is to be
/// heard later.
fn means(signal: Signal, status: StatusCode, headers: &HeaderMap, body: Bytes) -> Failure {
    let mut reason = format!("HTTP {}", status.as_u16());
    if let Some(why) = status.canonical_reason() {
        reason = format!("{reason} {why}");
    }
    let message = if content_is(headers, PROTOBUF) {
        tonic_types::Status::decode(body).map(|status| status.message).unwrap_or_default()
    } else if content_is(headers, "text/plain") || content_is(headers, "application/json") {
        String::from_utf8_lossy(&body).into_owned()
    } else {
        String::new()
    };
    if !message.trim().is_empty() {
        reason = format!("{reason}: {}", said(&message));
    }
    if status.is_redirection() {
        let to = headers.get("location").and_then(|to| to.to_str().ok()).unwrap_or("elsewhere");
        reason =
            format!("{reason}: it sends us to {}; set endpoint to what is right", said(&shown(to)));
    }
    match status.as_u16() {
        413 => Failure::TooLarge(reason),
        404 | 405 | 501 if signal == Signal::Traces => Failure::Unimplemented(reason),
        429 | 502 | 503 | 504 => Failure::Later { reason, after: retry_after(headers) },
        300..=399 | 401 | 403 | 404 | 405 | 407 | 408 => Failure::later(reason),
        _ => Failure::Never(reason),
    }
}

/// In seconds, or a moment.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More than any number holds is no less than a very long time.
        let seconds = text.parse().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds)).filter(|after| !after.is_zero());
    }
    httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok()
}
