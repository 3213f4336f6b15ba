//! What answers over HTTP: metrics, and whether all is well.
//!
//! It listens on loopback unless told otherwise, serves reads only, one request
//! a connection, and few connections at once: neither a slow client nor a flood
//! of them takes more than that, nor holds up anything but each other.

mod exposition;
mod metrics;
mod pages;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use vahti_runtime::panic::contain;

pub(crate) use self::exposition::Format;
pub(crate) use self::pages::page;

/// How many are served at once; who has been there for longest gives way to who
/// comes beyond.
const CONNECTIONS: usize = 16;
/// How long a connection lasts at the most, from its begin to its end.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much of a request's head is read.
const MAX_HEAD: usize = 8 << 10;
/// What is sent to any of them at once.
const MAX_PAGE: usize = 16 << 10;
/// How many longer pages are sent at once, such as metrics: for most clients the
/// kernel's buffers take all of one.
const LONG_PAGES: usize = 1;
/// After how long who is sent one gives way to who waits for one.
const GIVES_WAY: Duration = Duration::from_millis(500);
/// Metrics but for those with labels of events.
const METRICS: usize = 64 << 10;
/// A thread's stack as far as it is used, and its event loop.
const THREAD: usize = 96 << 10;

/// How much memory all of it takes at the most, where series with labels of
/// events may take this much: as text, where their names are repeated, they take
/// no more than what is reckoned for them.
pub(crate) const fn max_bytes(series_bytes: usize) -> usize {
    CONNECTIONS * (MAX_HEAD + MAX_PAGE) + LONG_PAGES * (METRICS + series_bytes) + THREAD
}

/// How long it waits for an address that is not free.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// What is asked for.
pub(crate) struct Ask<'a> {
    /// Such as `/health/network`.
    pub(crate) path: &'a str,
    /// What stands behind the question mark.
    pub(crate) query: &'a str,
    /// The form that metrics are asked for in.
    pub(crate) format: Format,
}

/// What is answered.
pub(crate) struct Page<B = Vec<u8>> {
    pub(crate) status: StatusCode,
    pub(crate) content: &'static str,
    pub(crate) body: B,
}

/// Answers a question; `None` where there is no such page. Must not wait.
pub(crate) type Pages = dyn Fn(&Ask<'_>) -> Option<Page> + Send + Sync;

/// Answers at this address; where that can't be listened on, warns and tries
/// again: an agent that ends may have it still.
pub(crate) fn begin(listen: SocketAddr, pages: Arc<Pages>) {
    match serve(listen, Arc::clone(&pages)) {
        Ok(address) => {
            tracing::debug!(%address, "metrics and health can be asked for");
            return;
        }
        Err(error) => {
            tracing::warn!(%listen, %error, "metrics and health can't be asked for yet");
        }
    }
    let tries = move || loop {
        std::thread::sleep(RETRY_INTERVAL);
        if serve(listen, Arc::clone(&pages)).is_ok() {
            tracing::info!(%listen, "metrics and health can be asked for now");
            return;
        }
    };
    if let Err(error) = std::thread::Builder::new().name("http-retry".to_owned()).spawn(tries) {
        tracing::warn!(%error, "nor will they be");
    }
}

/// Listens, and answers on a thread of its own for as long as the program runs.
///
/// # Errors
/// The address can't be listened on.
pub(crate) fn serve(listen: SocketAddr, pages: Arc<Pages>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answers = move || {
        runtime.block_on(async {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => accept(listener, pages).await,
                Err(error) => tracing::error!(%error, "metrics and health can't be served"),
            }
        });
    };
    std::thread::Builder::new().name("http".to_owned()).spawn(answers)?;
    Ok(address)
}

async fn accept(listener: tokio::net::TcpListener, pages: Arc<Pages>) {
    let mut clients: VecDeque<AbortHandle> = VecDeque::new();
    let long_pages = Arc::new(LongPages::default());
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // No descriptor is free, say; it would fail again at once.
                tracing::debug!(%error, "a client can't be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        clients.retain(|client| !client.is_finished());
        if clients.len() >= CONNECTIONS
            && let Some(oldest) = clients.pop_front()
        {
            oldest.abort();
        }
        let (pages, long_pages) = (Arc::clone(&pages), Arc::clone(&long_pages));
        let this = Arc::new(OnceLock::new());
        let itself = Arc::clone(&this);
        let client = tokio::spawn(async move {
            let answers = service_fn(|request| async {
                Ok::<_, Infallible>(answer(request, &*pages, &long_pages, &itself).await)
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .max_buf_size(MAX_HEAD)
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), answers);
            match tokio::time::timeout(PATIENCE, connection).await {
                Ok(Err(error)) => tracing::debug!(%error, "a client went away"),
                Err(_late) => tracing::debug!("a client took too long"),
                Ok(Ok(())) => {}
            }
        });
        this.get_or_init(|| client.abort_handle());
        clients.push_back(client.abort_handle());
        // Whoever asks as he should is answered before others come for his place.
        tokio::task::yield_now().await;
    }
}

async fn answer(
    request: Request<Incoming>,
    pages: &Pages,
    long_pages: &LongPages,
    client: &OnceLock<AbortHandle>,
) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let page = Page::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        let mut response = page.into_response();
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let page = make(&request, pages);
    if page.body.len() <= MAX_PAGE {
        return page.into_response();
    }
    // It is made anew once there is room for it.
    drop(page);
    let _room = long_pages.room(client).await;
    let Page { status, content, body } = make(&request, pages);
    let body = Bytes::from_owner(Long { body, _room });
    Page { status, content, body }.into_response()
}

fn make(request: &Request<Incoming>, pages: &Pages) -> Page {
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let ask = Ask {
        path: request.uri().path(),
        query: request.uri().query().unwrap_or_default(),
        format: Format::of(accept.unwrap_or_default()),
    };
    match contain("a page", || pages(&ask)) {
        Ok(Some(page)) => page,
        Ok(None) => Page::text(
            StatusCode::NOT_FOUND,
            "there are /metrics, /livez, /readyz, /health and /health/OBSERVER\n",
        ),
        Err(panicked) => {
            tracing::error!(error = %panicked, "a page could not be made");
            Page::text(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be made\n")
        }
    }
}

/// Who is sent a long page, and since when.
struct LongPages {
    room: Arc<Semaphore>,
    sent: Mutex<Option<(AbortHandle, Instant)>>,
}

impl Default for LongPages {
    fn default() -> Self {
        LongPages { room: Arc::new(Semaphore::new(LONG_PAGES)), sent: Mutex::default() }
    }
}

impl LongPages {
    /// Waits for room; whoever has it and takes too long gives way. First come,
    /// first served.
    async fn room(&self, client: &OnceLock<AbortHandle>) -> Option<OwnedSemaphorePermit> {
        let mut room = pin!(Arc::clone(&self.room).acquire_owned());
        let room = loop {
            match tokio::time::timeout(self.until_it_gives_way(), &mut room).await {
                // It is never closed.
                Ok(room) => break room.ok(),
                Err(_waits) => {}
            }
        };
        *self.sent() = client.get().map(|client| (client.clone(), Instant::now()));
        room
    }

    /// How long to wait for who is sent a page now; who was for long enough has
    /// to go.
    fn until_it_gives_way(&self) -> Duration {
        let sent = self.sent();
        let Some((client, since)) = &*sent else { return GIVES_WAY };
        let left = GIVES_WAY.saturating_sub(since.elapsed());
        if left.is_zero() {
            client.abort();
            return GIVES_WAY;
        }
        left
    }

    fn sent(&self) -> MutexGuard<'_, Option<(AbortHandle, Instant)>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A long page, of which few are sent at once.
struct Long {
    body: Vec<u8>,
    _room: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Long {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Page {
    pub(crate) fn text(status: StatusCode, body: impl Into<Vec<u8>>) -> Self {
        Page { status, content: "text/plain; charset=utf-8", body: body.into() }
    }

    pub(crate) fn json(status: StatusCode, body: &serde_json::Value) -> Self {
        Page { status, content: "application/json", body: format!("{body:#}\n").into() }
    }
}

impl<B: Into<Bytes>> Page<B> {
    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body.into()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn start() -> SocketAddr {
        let pages = |ask: &Ask<'_>| match ask.path {
            "/good" => Some(Page::text(StatusCode::OK, format!("good {}\n", ask.query))),
            "/panics" => panic!("oops"),
            "/long" => Some(Page::text(StatusCode::OK, vec![b'x'; 50 << 20])),
            _ => None,
        };
        serve("127.0.0.1:0".parse().unwrap(), Arc::new(pages)).unwrap()
    }

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn get(address: SocketAddr, path: &str) -> String {
        ask(address, &format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"))
    }

    #[test]
    fn pages_are_read_and_nothing_else_is_done() {
        let address = start();
        let answer = get(address, "/good?verbose");
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert!(answer.ends_with("\r\n\r\ngood verbose\n"), "{answer}");
        assert!(get(address, "/else").starts_with("HTTP/1.1 404"));
        assert!(get(address, "/panics").starts_with("HTTP/1.1 500"));
        let post = "POST /good HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
        assert!(ask(address, post).starts_with("HTTP/1.1 405"));
        let head = ask(address, "HEAD /good HTTP/1.1\r\nhost: a\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200 OK") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[test]
    fn nonsense_and_endless_heads_are_refused() {
        let address = start();
        assert!(ask(address, "\0\0\0\r\n\r\n").starts_with("HTTP/1.1 400"));
        let mut stream = TcpStream::connect(address).unwrap();
        let long = format!("GET /good HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
        // It may be hung up on before all of it is sent.
        drop(stream.write_all(long.as_bytes()));
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer));
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
        assert!(get(address, "/good").starts_with("HTTP/1.1 200"));
    }

    #[test]
    fn slow_clients_give_way_and_hold_up_nobody() {
        let address = start();
        let begun = Instant::now();
        // Some ask for nothing, others read nothing of what they asked for.
        let slow: Vec<TcpStream> = (0..4 * CONNECTIONS)
            .map(|n| {
                let mut stream = TcpStream::connect(address).unwrap();
                if n % 2 == 0 {
                    // It may have had to give way already.
                    drop(stream.write_all(b"GET /long HTTP/1.1\r\nhost: a\r\n\r\n"));
                }
                stream
            })
            .collect();
        for _ in 0..10 {
            assert!(get(address, "/good").starts_with("HTTP/1.1 200"));
        }
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
        drop(slow);
    }

    #[test]
    fn who_does_not_read_a_long_page_gives_way_to_others_who_want_one() {
        let address = start();
        let begun = Instant::now();
        let slow: Vec<TcpStream> = (0..CONNECTIONS / 4)
            .map(|_| {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(b"GET /long HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
                stream
            })
            .collect();
        for _ in 0..2 {
            let answer = get(address, "/long");
            assert!(answer.starts_with("HTTP/1.1 200"));
            assert!(answer.len() > 50 << 20, "all of it: {}", answer.len());
            assert!(get(address, "/good").starts_with("HTTP/1.1 200"));
        }
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
        drop(slow);
    }

    #[test]
    fn a_flood_keeps_nobody_from_being_answered() {
        let address = start();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut held = VecDeque::new();
                while !is_over.load(Ordering::Relaxed) {
                    held.extend(TcpStream::connect(address));
                    held.drain(..held.len().saturating_sub(64));
                }
            });
            let answered = (0..50).filter(|_| {
                let Ok(mut stream) = TcpStream::connect(address) else { return false };
                drop(stream.write_all(b"GET /good HTTP/1.1\r\nhost: a\r\n\r\n"));
                let mut answer = String::new();
                drop(stream.read_to_string(&mut answer));
                answer.starts_with("HTTP/1.1 200")
            });
            let answered = answered.count();
            is_over.store(true, Ordering::Relaxed);
            assert!(answered >= 10, "{answered} of 50");
        });
    }
}
