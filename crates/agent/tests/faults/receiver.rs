//! A receiver of OTLP, over gRPC and HTTP, that has a fault until it is well.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message;
use prost::bytes::Bytes;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt;

/// What is wrong with a receiver.
#[derive(Clone)]
pub(crate) enum Fault {
    /// Nobody listens.
    Refuses,
    /// Packets that ask for a connection are dropped.
    Swallows,
    /// Whatever comes, these bytes are written, and then that.
    Speaks(Arc<Vec<u8>>, Then),
    /// As HTTP has it.
    Answers(Answer),
    /// It is somebody else, or asks who comes.
    Tls(Arc<ServerConfig>),
}

/// What follows.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Then {
    Closes,
    Resets,
    Hangs,
    /// The bytes came one by one, and go on so.
    Drips,
    /// The last 64 KiB of the bytes come again and again.
    Floods,
}

/// An answer to a request that was read.
#[derive(Clone, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(&'static str, String)>,
    /// Whether it breaks off there.
    pub(crate) breaks_off: bool,
    /// Whether it has taken the request's events all the same.
    pub(crate) takes: bool,
}

/// What a receiver saw.
#[derive(Default)]
pub(crate) struct Seen {
    connections: AtomicUsize,
    requests: AtomicUsize,
    /// The ids of the events that it took, in their order.
    taken: Mutex<Vec<String>>,
    /// How often it was spoken to since it is well, until it took something.
    until_taken: AtomicUsize,
}

pub(crate) struct Receiver {
    pub(crate) port: u16,
    pub(crate) seen: Arc<Seen>,
    fault: watch::Sender<Option<Fault>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Receiver {
    /// One with this fault. Once it is well it speaks TLS as this, if given.
    pub(crate) fn with(fault: Fault, tls: Option<Arc<ServerConfig>>) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let port = socket.local_addr().unwrap().port();
        let seen = Arc::new(Seen::default());
        let (fault, faults) = watch::channel(Some(fault));
        let server = Server { seen: Arc::clone(&seen), faults, tls };
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(server.serve(socket));
        });
        Receiver { port, seen, fault, thread: Some(thread) }
    }

    pub(crate) fn is_well_now(&self) {
        self.fault.send_replace(None);
    }

    pub(crate) fn fails_now(&self, fault: Fault) {
        self.fault.send_replace(Some(fault));
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // It ends when nobody can tell it anything any more.
        self.fault = watch::Sender::new(None);
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok() || std::thread::panicking(), "the receiver failed");
        }
    }
}

impl Seen {
    /// How often somebody tried to send something.
    pub(crate) fn attempts(&self) -> usize {
        self.connections.load(Relaxed).max(self.requests.load(Relaxed))
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Relaxed) as u64
    }

    pub(crate) fn until_taken(&self) -> usize {
        self.until_taken.load(Relaxed)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.taken.lock().unwrap().is_empty()
    }

    pub(crate) fn has_all(&self, ids: &HashSet<String>) -> bool {
        let taken = self.taken.lock().unwrap();
        taken.len() >= ids.len() && ids.is_subset(&taken.iter().cloned().collect())
    }

    pub(crate) fn taken(&self) -> Vec<String> {
        self.taken.lock().unwrap().clone()
    }
}

#[derive(Clone)]
struct Server {
    seen: Arc<Seen>,
    faults: watch::Receiver<Option<Fault>>,
    tls: Option<Arc<ServerConfig>>,
}

impl Server {
    async fn serve(mut self, socket: TcpSocket) {
        let refuses = matches!(*self.faults.borrow_and_update(), Some(Fault::Refuses));
        if refuses && self.faults.changed().await.is_err() {
            return;
        }
        let listener = socket.listen(0).unwrap();
        let mut full = Vec::new();
        if matches!(*self.faults.borrow_and_update(), Some(Fault::Swallows)) {
            full = fill(&listener).await;
            if self.faults.changed().await.is_err() {
                return;
            }
        }
        // SAFETY: changes how many may wait at our own listener.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 128) }, 0);
        let waiting = full.len();
        drop(full);
        let mut skipped = 0;
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => accepted.unwrap().0,
                changed = self.faults.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            if skipped < waiting && is_closed(&stream).await {
                skipped += 1;
                continue;
            }
            self.seen.connections.fetch_add(1, Relaxed);
            self.count();
            tokio::spawn(self.clone().attend(stream));
        }
    }

    fn count(&self) {
        if self.faults.borrow().is_none() && self.seen.taken.lock().unwrap().is_empty() {
            self.seen.until_taken.fetch_add(1, Relaxed);
        }
    }

    /// Serves a connection until it ends, or what is wrong changes.
    async fn attend(mut self, stream: TcpStream) {
        let fault = self.faults.borrow_and_update().clone();
        let mut changes = self.faults.clone();
        let served: Pin<Box<dyn Future<Output = ()> + Send>> = match fault {
            Some(Fault::Speaks(bytes, then)) => Box::pin(speak(stream, bytes, then)),
            Some(Fault::Tls(other)) => Box::pin(self.over_tls(other, stream)),
            _ => match self.tls.clone() {
                Some(tls) => Box::pin(self.over_tls(tls, stream)),
                None => Box::pin(self.speak_http(stream)),
            },
        };
        tokio::select! {
            () = served => {}
            _ = changes.changed() => {}
        }
    }

    async fn over_tls(self, tls: Arc<ServerConfig>, stream: TcpStream) {
        // Who does not believe us goes away.
        if let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await {
            self.speak_http(stream).await;
        }
    }

    async fn speak_http(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(move |request| self.clone().answer(request));
        let server = auto::Builder::new(TokioExecutor::new());
        // A client may go away when it likes.
        drop(server.serve_connection(TokioIo::new(stream), service).await);
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
        self.seen.requests.fetch_add(1, Relaxed);
        let content = request.headers().get(CONTENT_TYPE);
        let is_grpc = content.is_some_and(|c| c.as_bytes().starts_with(b"application/grpc"));
        let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
        let fault = self.faults.borrow().clone();
        if let Some(Fault::Answers(answer)) = fault {
            if answer.takes {
                self.take(&body, is_grpc);
            }
            return Ok(answer.response());
        }
        self.take(&body, is_grpc);
        Ok(Answer::well(is_grpc).response())
    }

    fn take(&self, body: &[u8], is_grpc: bool) {
        let message = if is_grpc { &body[5..] } else { body };
        let request = ExportLogsServiceRequest::decode(message).unwrap();
        let logs = request.resource_logs.iter().flat_map(|r| &r.scope_logs);
        let id = |record: &opentelemetry_proto::tonic::logs::v1::LogRecord| {
            let id = record.attributes.iter().find(|a| a.key == "log.record.uid").unwrap();
            match id.value.as_ref().and_then(|v| v.value.as_ref()) {
                Some(Value::StringValue(id)) => id.clone(),
                other => panic!("{other:?}"),
            }
        };
        let ids = logs.flat_map(|s| &s.log_records).map(id);
        self.seen.taken.lock().unwrap().extend(ids);
    }
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

impl Answer {
    /// One that says that all is well.
    fn well(is_grpc: bool) -> Self {
        if is_grpc {
            Answer::grpc(&[0; 5], &[("grpc-status", "0".to_owned())])
        } else {
            Answer::http(200)
        }
    }

    pub(crate) fn http(status: u16) -> Self {
        Answer { status, ..Answer::default() }
    }

    pub(crate) fn grpc(body: &[u8], trailers: &[(&'static str, String)]) -> Self {
        Answer { body: body.to_vec(), trailers: trailers.to_vec(), ..Answer::http(200) }
            .header("content-type", "application/grpc")
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn response(&self) -> Response<Body> {
        let mut frames = vec![Ok(Frame::data(Bytes::from(self.body.clone())))];
        if self.breaks_off {
            frames.push(Err(io::Error::other("on purpose")));
        }
        if !self.trailers.is_empty() {
            frames.push(Ok(Frame::trailers(all(&self.trailers))));
        }
        let slowly = tokio_stream::iter(frames).then(async |frame| {
            if frame.is_err() {
                // What comes before it is on its way by then.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            frame
        });
        let body = BodyExt::boxed_unsync(StreamBody::new(slowly));
        let mut response = Response::new(body);
        *response.status_mut() = self.status.try_into().unwrap();
        *response.headers_mut() = all(&self.headers);
        response
    }
}

fn all(headers: &[(&'static str, String)]) -> HeaderMap {
    let pair = |(name, value): &(&'static str, String)| {
        (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
    };
    headers.iter().map(pair).collect()
}

/// Connects until nobody is let in any more.
async fn fill(listener: &TcpListener) -> Vec<TcpStream> {
    let address = listener.local_addr().unwrap();
    let mut full = Vec::new();
    while let Ok(stream) =
        tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
    {
        full.push(stream.unwrap());
    }
    full
}

/// Whether it is one of those that only filled the queue.
async fn is_closed(stream: &TcpStream) -> bool {
    let mut byte = [0];
    let peeked = stream.peek(&mut byte);
    matches!(tokio::time::timeout(Duration::from_millis(50), peeked).await, Ok(Ok(0) | Err(_)))
}

async fn speak(mut stream: TcpStream, bytes: Arc<Vec<u8>>, then: Then) {
    let mut heard = [0; 65_536];
    // A client that says nothing is answered all the same.
    let first = tokio::time::timeout(Duration::from_millis(300), stream.read(&mut heard)).await;
    if matches!(first, Ok(Ok(0) | Err(_))) {
        return;
    }
    let mut told = match then {
        Then::Drips => drip(&mut stream, &bytes).await,
        _ => stream.write_all(&bytes).await,
    };
    let again = bytes.len().saturating_sub(65_536);
    while then == Then::Floods && told.is_ok() {
        told = stream.write_all(&bytes[again..]).await;
    }
    match then {
        Then::Closes => drop(stream.shutdown().await),
        Then::Resets => return stream.set_zero_linger().unwrap(),
        Then::Hangs | Then::Drips | Then::Floods => {}
    }
    while stream.read(&mut heard).await.is_ok_and(|n| n > 0) {}
}

async fn drip(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    for byte in bytes {
        stream.write_all(&[*byte]).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// How often each is in there.
pub(crate) fn twice(ids: &[String]) -> Vec<&String> {
    let mut times: HashMap<&String, usize> = HashMap::new();
    for id in ids {
        *times.entry(id).or_default() += 1;
    }
    times.into_iter().filter(|(_, times)| *times > 1).map(|(id, _)| id).collect()
}
