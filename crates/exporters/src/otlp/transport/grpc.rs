//! gRPC, with tonic. Requests come encoded: their size had to be known.

use std::cmp::Ordering;
use std::future::{Future, ready};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::header::{CONTENT_TYPE, HeaderMap};
use ::http::uri::PathAndQuery;
use ::http::{Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use prost::bytes::{Buf, BufMut, Bytes};
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codec::{
    BufferSettings, Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder,
};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{Failure, MAX_ANSWER, Signal, Taken, on_the_way, said};
use crate::otlp::config::Settled;
use crate::remote::advice;
use crate::tls::Trust;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

const LOGS: PathAndQuery =
    PathAndQuery::from_static("/opentelemetry.proto.collector.logs.v1.LogsService/Export");
const TRACES: PathAndQuery =
    PathAndQuery::from_static("/opentelemetry.proto.collector.trace.v1.TraceService/Export");

pub(super) struct Grpc {
    logs: tonic::client::Grpc<Checked>,
    /// `None` where spans go the same way.
    traces: Option<tonic::client::Grpc<Checked>>,
}

impl Grpc {
    pub(super) fn new(settled: &Settled, trust: &Trust) -> Result<Self, String> {
        let to = |uri: &Uri| -> Result<_, String> {
            let endpoint = Endpoint::from(uri.clone())
                .user_agent(concat!("vahti/", env!("CARGO_PKG_VERSION")))
                .map_err(|error| error.to_string())?
                .tcp_nodelay(true);
            let channel =
                endpoint.connect_with_connector_lazy(trust.connector(true, settled.way.timeout));
            let client = tonic::client::Grpc::new(Checked(channel));
            Ok(if settled.way.gzip {
                client.send_compressed(CompressionEncoding::Gzip)
            } else {
                client
            })
        };
        let traces = settled.traces.as_ref().filter(|uri| **uri != settled.logs);
        Ok(Grpc { logs: to(&settled.logs)?, traces: traces.map(to).transpose()? })
    }

    pub(super) async fn send(
        &mut self,
        signal: Signal,
        uri: &Uri,
        headers: &HeaderMap,
        message: Bytes,
    ) -> Result<Taken, Failure> {
        let (client, path) = match signal {
            Signal::Logs => (&mut self.logs, LOGS),
            Signal::Traces => (self.traces.as_mut().unwrap_or(&mut self.logs), TRACES),
        };
        client.ready().await.map_err(|error| Failure::later(on_the_way(uri, &error)))?;
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = MetadataMap::from_headers(headers.clone());
        match client.unary(request, path, Encoded(signal)).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => means(uri, signal, &status),
        }
    }
}

/// What a status says of a request. As the protocol has it
/// (<https://opentelemetry.io/docs/specs/otlp/#failures>), but for what is no
/// fault of the data: who may not send, and who sends too much, is to be heard
/// later.
fn means(uri: &Uri, signal: Signal, status: &Status) -> Result<Taken, Failure> {
    if let Some(error) = std::error::Error::source(status) {
        // It never came to an answer.
        let reason = on_the_way(uri, error);
        return Err(if is_lost(error) && advice(error).is_none() {
            Failure::Lost(reason)
        } else {
            Failure::later(reason)
        });
    }
    let code = status.code();
    let reason = format!("{code:?}: {}", said(status.message()));
    let hint = status.get_details_retry_info().and_then(|info| info.retry_delay);
    Err(match code {
        // An answer without a body, which says that all is well.
        Code::Internal if status.message() == NO_BODY => return Ok(Taken::default()),
        Code::ResourceExhausted | Code::OutOfRange if hint.is_none() && is_about_size(status) => {
            Failure::TooLarge(reason)
        }
        Code::Unimplemented if signal == Signal::Traces => Failure::Unimplemented(reason),
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss
        | Code::ResourceExhausted
        | Code::Unauthenticated
        | Code::PermissionDenied
        | Code::Unimplemented => {
            let after = hint.filter(|hint| *hint > Duration::ZERO);
            Failure::Later { reason, after }
        }
        _ => Failure::Never(reason),
    })
}

/// Whether the connection that was there broke, before an answer came.
fn is_lost(error: &(dyn std::error::Error + 'static)) -> bool {
    let connected = |error: &tonic::transport::Error| {
        let mut next = std::error::Error::source(error);
        while let Some(error) = next {
            if error.is::<tonic::ConnectError>() {
                return false;
            }
            next = error.source();
        }
        true
    };
    matches!(error.downcast_ref(), Some(Unanswered::Transport(error)) if connected(error))
}

/// What tonic says of a stream that ended well without an answer.
const NO_BODY: &str = "Missing response message.";

/// In the words of grpc-go, tonic, grpc-java and grpc-python.
fn is_about_size(status: &Status) -> bool {
    let message = status.message().to_ascii_lowercase();
    ["larger than max", "too large", "exceeds maximum", "max message size"]
        .iter()
        .any(|words| message.contains(words))
}

/// A channel that takes for an answer only what is one, and all of it: whatever
/// else speaks HTTP/2, or breaks off, refuses no event.
struct Checked(Channel);

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Unanswered>> + Send>>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Unanswered {
    #[error(transparent)]
    Transport(#[from] tonic::transport::Error),
    #[error("HTTP {0}, which is no answer of a gRPC server; is endpoint right?")]
    NotGrpc(u16),
    #[error("the answer broke off")]
    BrokenOff(#[source] BoxError),
    #[error("an answer that can't be read: {0}")]
    Garbled(&'static str),
}

impl GrpcService<Body> for Checked {
    type ResponseBody = Body;
    type Error = Unanswered;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Unanswered>> {
        GrpcService::poll_ready(&mut self.0, context).map_err(Unanswered::from)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let answer = GrpcService::call(&mut self.0, request);
        Box::pin(async move {
            let (head, body) = answer.await?.into_parts();
            let content = head.headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
            let is_grpc = content.is_some_and(|content| content.starts_with(b"application/grpc"));
            if !is_grpc && !head.headers.contains_key(STATUS) {
                return Err(Unanswered::NotGrpc(head.status.as_u16()));
            }
            let whole = Limited::new(body, MAX_ANSWER).collect().await;
            let whole = whole.map_err(Unanswered::BrokenOff)?;
            let trailers = whole.trailers().cloned();
            let message = whole.to_bytes();
            let status = trailers.as_ref().and_then(|all| all.get(STATUS));
            match status.or(head.headers.get(STATUS)).map(|status| status.as_bytes()) {
                None => return Err(Unanswered::Garbled("it ended without a status")),
                Some(b"0") => check(&message)?,
                Some(status) if status.iter().all(u8::is_ascii_digit) => {}
                Some(_) => return Err(Unanswered::Garbled("its status is no number")),
            }
            let body = Full::new(message).with_trailers(ready(trailers.map(Ok)));
            Ok(Response::from_parts(head, Body::new(body)))
        })
    }
}

const STATUS: &str = "grpc-status";

/// Whether this is one message, whole and not compressed, or none at all.
fn check(bytes: &[u8]) -> Result<(), Unanswered> {
    let garbled = |why| Err(Unanswered::Garbled(why));
    match bytes {
        [] => Ok(()),
        [0, a, b, c, d, message @ ..] => {
            match message.len().cmp(&(u32::from_be_bytes([*a, *b, *c, *d]) as usize)) {
                Ordering::Less => garbled("its message is shorter than it says"),
                Ordering::Equal => Ok(()),
                Ordering::Greater => garbled("more than a message"),
            }
        }
        [1, ..] => garbled("it is compressed, which was not asked for"),
        _ => garbled("no message of gRPC"),
    }
}

/// Writes what is encoded already; reads the answer to a signal.
struct Encoded(Signal);

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = Taken;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Encoded(self.0)
    }

    fn decoder(&mut self) -> Self {
        Encoded(self.0)
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(item.len());
        out.put(item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for Encoded {
    type Item = Taken;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Taken>, Status> {
        let taken = decode(self.0, bytes.copy_to_bytes(bytes.remaining()));
        taken
            .map(Some)
            .map_err(|error| Status::unavailable(format!("an answer that can't be read: {error}")))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

/// Reads an answer, over whichever way it came.
pub(super) fn decode(signal: Signal, bytes: Bytes) -> Result<Taken, prost::DecodeError> {
    let partial = match signal {
        Signal::Logs => {
            let answer = ExportLogsServiceResponse::decode(bytes)?;
            answer.partial_success.map(|p| (p.rejected_log_records, p.error_message))
        }
        Signal::Traces => {
            let answer = ExportTraceServiceResponse::decode(bytes)?;
            answer.partial_success.map(|p| (p.rejected_spans, p.error_message))
        }
    };
    let (rejected, message) = partial.unwrap_or_default();
    Ok(Taken { rejected: u64::try_from(rejected).unwrap_or(0), message: said(&message) })
}
