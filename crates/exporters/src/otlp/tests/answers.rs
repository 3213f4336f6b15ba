//! What a receiver's answers, or their absence, make of a batch.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::http::{HeaderMap, HeaderValue, StatusCode};
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use proptest::prelude::*;
use prost::Message;
use tonic::codec::CompressionEncoding;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use vahti_runtime::emitter::{EmitOutcome, EventEmitter};
use vahti_runtime::event::{CONNECTION_REFUSED, Event, OOM_KILL, Severity};
use vahti_runtime::ids::{EventId, SpanId, TraceId};
use vahti_runtime::units::{ByteSize, HumanDuration};

use crate::otlp::OtlpEmitter;
use crate::otlp::config::{Compression, HeaderSource, OtlpConfig, Protocol, Secret};
use crate::otlp::transport::{Failure, Signal, http};

type Script<T, A> = Arc<Mutex<dyn FnMut(T) -> Result<A, Status> + Send>>;

/// A receiver over gRPC that answers as it is told.
pub(super) struct Grpc {
    logs: Script<tonic::Request<ExportLogsServiceRequest>, ExportLogsServiceResponse>,
    traces: Script<tonic::Request<ExportTraceServiceRequest>, ExportTraceServiceResponse>,
}

struct Service<T>(T);

#[tonic::async_trait]
impl LogsService
    for Service<Script<tonic::Request<ExportLogsServiceRequest>, ExportLogsServiceResponse>>
{
    async fn export(
        &self,
        request: tonic::Request<ExportLogsServiceRequest>,
    ) -> Result<tonic::Response<ExportLogsServiceResponse>, Status> {
        (self.0.lock().unwrap())(request).map(tonic::Response::new)
    }
}

#[tonic::async_trait]
impl TraceService
    for Service<Script<tonic::Request<ExportTraceServiceRequest>, ExportTraceServiceResponse>>
{
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, Status> {
        (self.0.lock().unwrap())(request).map(tonic::Response::new)
    }
}

impl Grpc {
    /// One that says that all is well.
    pub(super) fn content() -> Self {
        Grpc {
            logs: Arc::new(Mutex::new(|_| Ok(ExportLogsServiceResponse::default()))),
            traces: Arc::new(Mutex::new(|_| Ok(ExportTraceServiceResponse::default()))),
        }
    }

    pub(super) fn logs(
        answer: impl FnMut(
            tonic::Request<ExportLogsServiceRequest>,
        ) -> Result<ExportLogsServiceResponse, Status>
        + Send
        + 'static,
    ) -> Self {
        Grpc { logs: Arc::new(Mutex::new(answer)), ..Grpc::content() }
    }

    pub(super) fn traces(
        self,
        answer: impl FnMut(
            tonic::Request<ExportTraceServiceRequest>,
        ) -> Result<ExportTraceServiceResponse, Status>
        + Send
        + 'static,
    ) -> Self {
        Grpc { traces: Arc::new(Mutex::new(answer)), ..self }
    }

    /// Serves until the test is over; the URL.
    pub(super) fn serve(self) -> String {
        self.serve_at("127.0.0.1:0".parse().unwrap())
    }

    fn serve_at(self, address: SocketAddr) -> String {
        let (tell, told) = channel();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind(address).await.unwrap();
                tell.send(listener.local_addr().unwrap().port()).unwrap();
                let gzip = CompressionEncoding::Gzip;
                let logs = LogsServiceServer::new(Service(self.logs)).accept_compressed(gzip);
                let traces = TraceServiceServer::new(Service(self.traces)).accept_compressed(gzip);
                let incoming = tonic::transport::server::TcpIncoming::from(listener);
                let server = tonic::transport::Server::builder();
                let mut server = server;
                server
                    .add_service(logs)
                    .add_service(traces)
                    .serve_with_incoming(incoming)
                    .await
                    .unwrap();
            });
        });
        format!("http://127.0.0.1:{}", told.recv().unwrap())
    }
}

/// Answers each request over HTTP with the next of these bytes, and then closes
/// the connection; tells what came.
fn answering(answers: Vec<Vec<u8>>) -> (String, Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (tell, told) = channel();
    std::thread::spawn(move || {
        for answer in answers {
            let Ok((stream, _)) = listener.accept() else { return };
            serve_one(stream, &answer, &tell);
        }
    });
    (url, told)
}

fn serve_one(mut stream: TcpStream, answer: &[u8], tell: &Sender<Vec<u8>>) {
    // Whether anybody listens still is not this one's business.
    drop(tell.send(read_request(&mut stream)));
    drop(stream.write_all(answer));
    drop(stream.shutdown(Shutdown::Write));
    drop(stream.read(&mut [0; 4096]));
}

/// A request over HTTP, or what came of it.
pub(super) fn read_request(stream: &mut TcpStream) -> Vec<u8> {
    let mut request = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&request).to_lowercase();
        let length = text.split("content-length: ").nth(1).and_then(|t| t.lines().next());
        if let (Some(length), Some(end)) = (length, text.find("\r\n\r\n"))
            && request.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(end)
                + 4
                + length.parse::<usize>().unwrap()
                <= request.len()
        {
            return request;
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return request,
            Ok(n) => request.extend_from_slice(&chunk[..n]),
        }
    }
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    // As it does: a client that did not know might send the next request there.
    let head = format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// Events with ids, the first ones of a kind that becomes a span.
pub(super) fn batch(spans: u64, plain: u64) -> Vec<Arc<Event>> {
    let event = |n: u64| {
        let kind = if n < spans { &OOM_KILL } else { &CONNECTION_REFUSED };
        Arc::new(Event {
            id: EventId(u128::from(n) + 1),
            trace_id: TraceId(u128::from(n) + 1),
            span_id: Some(SpanId::from_hash(u128::from(n) + 1)),
            time_ns: 5,
            ..Event::new(kind, Severity::Error)
        })
    };
    (0..spans + plain).map(event).collect()
}

pub(super) fn to(url: &str, protocol: Protocol) -> OtlpConfig {
    OtlpConfig {
        protocol: Some(protocol),
        timeout: Some(HumanDuration(Duration::from_millis(1_000))),
        traces: Some(false),
        compression: Some(Compression::None),
        ..OtlpConfig::to(url)
    }
}

pub(super) struct Sending {
    runtime: tokio::runtime::Runtime,
    pub(super) emitter: OtlpEmitter,
}

impl Sending {
    pub(super) fn with(config: &OtlpConfig) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Sending { runtime, emitter: OtlpEmitter::new("otlp", config.target().unwrap()) }
    }

    pub(super) fn send(&mut self, batch: &[Arc<Event>]) -> EmitOutcome {
        self.runtime.block_on(self.emitter.emit(batch))
    }
}

/// Sends three events once.
fn once(config: &OtlpConfig) -> EmitOutcome {
    Sending::with(config).send(&batch(0, 3))
}

/// The outcome as a word, why, and what it is to wait.
pub(super) fn word(outcome: &EmitOutcome) -> (&'static str, &str, Option<Duration>) {
    match outcome {
        EmitOutcome::Delivered => ("delivered", "", None),
        EmitOutcome::Retryable { reason, retry_after } => ("later", reason, *retry_after),
        EmitOutcome::Rejected { reason } => ("never", reason, None),
        EmitOutcome::TooLarge { reason } => ("too large", reason, None),
        EmitOutcome::Each { reason, retry_after, .. } => ("each", reason, *retry_after),
        EmitOutcome::RejectedUnidentified { reason, .. } => ("some", reason, None),
    }
}

#[test]
fn a_status_of_grpc_means_what_the_page_says() {
    let refuse = |status: Status| {
        let url = Grpc::logs(move |_| Err(status.clone())).serve();
        once(&to(&url, Protocol::Grpc))
    };
    for (code, expected) in [
        (Code::Unavailable, "later"),
        (Code::Cancelled, "later"),
        (Code::DeadlineExceeded, "later"),
        (Code::Aborted, "later"),
        (Code::OutOfRange, "later"),
        (Code::DataLoss, "later"),
        (Code::ResourceExhausted, "later"),
        (Code::Unauthenticated, "later"),
        (Code::PermissionDenied, "later"),
        (Code::Unimplemented, "later"),
        (Code::InvalidArgument, "never"),
        (Code::FailedPrecondition, "never"),
        (Code::Internal, "never"),
        (Code::Unknown, "never"),
    ] {
        let outcome = refuse(Status::new(code, "because \u{1b}[31m"));
        let (what, why, _) = word(&outcome);
        assert_eq!(what, expected, "{code:?}: {outcome:?}");
        assert!(why.contains("because") && !why.contains('\u{1b}'), "{why:?}");
    }
    let large = Status::resource_exhausted("grpc: received message larger than max (9 vs. 4)");
    assert_eq!(word(&refuse(large)).0, "too large");
    let patience = ErrorDetails::with_retry_info(Some(Duration::from_secs(7)));
    let later = Status::with_error_details(Code::ResourceExhausted, "slower", patience);
    assert_eq!(word(&refuse(later)).2, Some(Duration::from_secs(7)));
}

#[test]
fn a_status_of_http_means_what_the_page_says() {
    let refuse = |status: &str, headers: &str, body: &[u8]| {
        let (url, _told) = answering(vec![answer(status, headers, body)]);
        once(&to(&url, Protocol::Http))
    };
    for (status, headers, expected, hint) in [
        ("200 OK", "", "delivered", None),
        ("202 Accepted", "content-type: application/json\r\n", "delivered", None),
        ("429 Too Many Requests", "retry-after: 3\r\n", "later", Some(3)),
        ("503 Service Unavailable", "retry-after: soon\r\n", "later", None),
        ("503 Service Unavailable", "retry-after: -1\r\n", "later", None),
        ("429 Slow", "retry-after: 99999999999999999999999\r\n", "later", Some(u64::MAX)),
        ("429 Slow", "retry-after: Sun, 06 Nov 1994 08:49:37 GMT\r\n", "later", None),
        ("502 Bad Gateway", "", "later", None),
        ("504 Gateway Timeout", "", "later", None),
        ("401 Unauthorized", "", "later", None),
        ("403 Forbidden", "", "later", None),
        ("404 Not Found", "", "later", None),
        ("301 Moved", "location: http://elsewhere\r\n", "later", None),
        ("413 Payload Too Large", "", "too large", None),
        ("400 Bad Request", "", "never", None),
        ("500 Internal Server Error", "", "never", None),
    ] {
        let outcome = refuse(status, headers, b"");
        let (what, why, after) = word(&outcome);
        assert_eq!((what, after), (expected, hint.map(Duration::from_secs)), "{status}");
        assert!(expected == "delivered" || why.contains(&status[..3]), "{why}");
    }
    let date = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(100));
    let outcome = refuse("429 Slow", &format!("retry-after: {date}\r\n"), b"");
    let after = word(&outcome).2.unwrap();
    assert!((50..=100).contains(&after.as_secs()), "{after:?}");
    let status = tonic_types::Status { code: 3, message: "no such tenant".into(), details: vec![] };
    let protobuf = "content-type: application/x-protobuf\r\n";
    let outcome = refuse("400 Bad Request", protobuf, &status.encode_to_vec());
    assert!(word(&outcome).1.contains("no such tenant"), "{outcome:?}");
}

#[test]
fn an_answer_may_be_compressed_or_in_chunks_or_come_slowly() {
    let partial = ExportLogsPartialSuccess { rejected_log_records: 2, error_message: "old".into() };
    let plain = ExportLogsServiceResponse { partial_success: Some(partial) }.encode_to_vec();
    let squeezed = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let gzip = "content-type: application/x-protobuf\r\ncontent-encoding: gzip\r\n";
    let length = plain.len();
    let chunks = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n");
    let chunked = [chunks.as_bytes(), &plain, b"\r\n0\r\n\r\n"].concat();
    let expected = EmitOutcome::RejectedUnidentified { rejected: 2, reason: "old".to_owned() };
    for bytes in [answer("200 OK", gzip, &squeezed(&plain)), chunked] {
        let (url, _told) = answering(vec![bytes]);
        assert_eq!(once(&to(&url, Protocol::Http)), expected);
    }
    let (url, _told) = answering(vec![answer("200 OK", gzip, &squeezed(&vec![0; 10 << 20]))]);
    let outcome = once(&to(&url, Protocol::Http));
    assert!(word(&outcome).1.contains("it takes more than 65536 bytes"), "{outcome:?}");
    let slow = Grpc::logs(|_| {
        std::thread::sleep(Duration::from_millis(500));
        Ok(ExportLogsServiceResponse::default())
    });
    assert_eq!(once(&to(&slow.serve(), Protocol::Grpc)), EmitOutcome::Delivered);
}

#[test]
fn what_is_no_answer_is_tried_again() {
    let garbage: Vec<(Vec<u8>, &str)> = vec![
        (answer("200 OK", "content-type: text/html\r\n", b"<html>log in first"), "none of OTLP's"),
        (answer("200 OK", "content-type: application/x-protobuf\r\n", &[0xff; 9]), "can't be read"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\nhalf".to_vec(), "127.0.0.1"),
        (b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), "127.0.0.1"),
        (Vec::new(), "127.0.0.1"),
        (vec![0; 100_000], "127.0.0.1"),
    ];
    for (bytes, why) in garbage {
        for protocol in [Protocol::Http, Protocol::Grpc] {
            let (url, _told) = answering(vec![bytes.clone()]);
            let outcome = once(&to(&url, protocol));
            let (what, reason, after) = word(&outcome);
            assert_eq!((what, after), ("later", None), "{outcome:?}");
            assert!(protocol == Protocol::Grpc || reason.contains(why), "{reason}");
        }
    }
}

proptest! {
    #[test]
    fn whatever_is_answered_is_understood_or_tried_again(
        status in 200_u16..=599,
        content in prop_oneof![
            Just(""), Just("application/x-protobuf"), Just("application/json"), Just("text/plain")
        ],
        hint in "[ -~]{0,20}",
        body in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut headers = HeaderMap::new();
        if !content.is_empty() {
            headers.insert("content-type", HeaderValue::from_static(content));
        }
        headers.insert("retry-after", HeaderValue::from_str(&hint).unwrap());
        for signal in [Signal::Logs, Signal::Traces] {
            let status = StatusCode::from_u16(status).unwrap();
            let answer = http::understood(signal, status, &headers, body.clone().into());
            let (text, is_final) = match answer {
                Ok(taken) => (taken.message, false),
                Err(failure) => {
                    let is_final = matches!(failure, Failure::Never(_));
                    (failure.reason(), is_final)
                }
            };
            prop_assert!(!text.chars().any(char::is_control), "{text:?}");
            prop_assert!(!is_final || status.as_u16() >= 400, "{status} refuses nothing");
        }
    }
}

#[test]
fn a_receiver_that_is_not_there_or_says_nothing_is_tried_again() {
    for protocol in [Protocol::Http, Protocol::Grpc] {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let outcome = once(&to(&format!("http://{closed}"), protocol));
        assert!(word(&outcome).1.contains("refused"), "{outcome:?}");
        let outcome = once(&to("http://no-such-host.invalid:4317", protocol));
        assert!(word(&outcome).1.contains("no-such-host.invalid"), "{outcome:?}");
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let timeout = Some(HumanDuration(Duration::from_millis(50)));
        let outcome = once(&OtlpConfig { timeout, ..to(&url, protocol) });
        assert_eq!(word(&outcome).1, format!("{url}: no answer within 50 ms"));
        // What speaks no TLS is not spoken to without it.
        let (url, told) = answering(vec![answer("200 OK", "", b"")]);
        let outcome = once(&to(&url.replace("http://", "https://"), protocol));
        assert_eq!(word(&outcome).0, "later", "{outcome:?}");
        let sent = told.recv().unwrap_or_default();
        assert!(!String::from_utf8_lossy(&sent).contains("POST"), "in plain text");
    }
}

#[test]
fn a_connection_that_failed_is_made_anew() {
    for protocol in [Protocol::Http, Protocol::Grpc] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut sending = Sending::with(&to(&format!("http://{address}"), protocol));
        drop(listener);
        assert_eq!(word(&sending.send(&batch(0, 3))).0, "later");
        if protocol == Protocol::Http {
            let listener = TcpListener::bind(address).unwrap();
            let (tell, _told) = channel();
            std::thread::spawn(move || {
                serve_one(listener.accept().unwrap().0, &answer("200 OK", "", b""), &tell);
            });
        } else {
            Grpc::content().serve_at(address);
        }
        assert_eq!(sending.send(&batch(0, 3)), EmitOutcome::Delivered);
    }
}

#[test]
fn partial_success_is_counted_and_nobody_says_which_it_was() {
    let url = Grpc::logs(|_| {
        let partial =
            ExportLogsPartialSuccess { rejected_log_records: 2, error_message: "too old".into() };
        Ok(ExportLogsServiceResponse { partial_success: Some(partial) })
    })
    .serve();
    let reason = "too old".to_owned();
    let expected = EmitOutcome::RejectedUnidentified { rejected: 2, reason };
    assert_eq!(once(&to(&url, Protocol::Grpc)), expected);
    let json = br#"{"partialSuccess":{"rejectedLogRecords":"2","errorMessage":"too old"}}"#;
    let (url, _told) =
        answering(vec![answer("200 OK", "content-type: application/json\r\n", json)]);
    assert_eq!(once(&to(&url, Protocol::Http)), expected);
}

#[test]
fn requests_stay_below_their_size() {
    let (sizes, sent) = channel();
    let url = Grpc::logs(move |request| {
        sizes.send(request.into_inner().encoded_len()).unwrap();
        Ok(ExportLogsServiceResponse::default())
    })
    .serve();
    let max_request = Some(ByteSize(64 << 10));
    let config = OtlpConfig { max_request, ..to(&url, Protocol::Grpc) };
    assert_eq!(Sending::with(&config).send(&batch(0, 1_000)), EmitOutcome::Delivered);
    let sizes: Vec<usize> = sent.try_iter().collect();
    assert!(sizes.len() > 1 && sizes.iter().all(|size| *size <= 64 << 10), "{sizes:?}");
}

#[test]
fn a_receiver_that_repeats_what_it_was_sent_is_told_of_without_it() {
    let token = "geheim-0123456789";
    let far = format!("{}{token}", "x".repeat(200 - 8));
    for said in [format!("who is Bearer {token}?"), far] {
        let text = "content-type: text/plain\r\n";
        let (url, _told) = answering(vec![answer("401 Unauthorized", text, said.as_bytes())]);
        let source = HeaderSource::Value(Secret(format!("Bearer {token}")));
        let headers = [("authorization".to_owned(), source)].into();
        let config = OtlpConfig { headers, ..to(&url, Protocol::Http) };
        let outcome = Sending::with(&config).send(&batch(0, 1));
        let why = word(&outcome).1;
        assert!(why.contains("(hidden)") && !why.contains("gehe"), "{why}");
    }
}

#[test]
fn headers_come_from_files_as_they_are_now() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let (url, told) = answering(vec![answer("200 OK", "", b""); 2]);
    let source = HeaderSource::File { file: file.clone(), prefix: "Bearer ".to_owned() };
    let config = OtlpConfig {
        headers: [("authorization".to_owned(), source)].into(),
        compression: Some(Compression::Gzip),
        ..to(&url, Protocol::Http)
    };
    let mut sending = Sending::with(&config);
    let outcome = sending.send(&batch(0, 1));
    assert!(word(&outcome).1.contains("cannot read"), "{outcome:?}");
    for token in ["first", "second one"] {
        std::fs::write(&file, format!("{token}\n")).unwrap();
        assert_eq!(sending.send(&batch(0, 1)), EmitOutcome::Delivered);
        let request = told.recv().unwrap();
        let text = String::from_utf8_lossy(&request);
        assert!(text.contains(&format!("authorization: Bearer {token}\r\n")), "{text}");
        assert!(text.contains("content-encoding: gzip\r\n"), "{text}");
    }
}
