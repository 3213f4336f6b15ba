//! What answers over HTTP: metrics, and whether all is well.
//!
//! It listens on loopback unless told otherwise, serves reads only, one request
//! a connection, and few connections at once: neither a slow client nor a flood
//! of them takes more than that, nor holds up anything but each other.

mod exposition;

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use vahti_runtime::panic::contain;

pub(crate) use self::exposition::{Exposition, Family, Format, Kind};

/// How many are served at once; who comes beyond is hung up on.
const CONNECTIONS: usize = 16;
/// How long a connection lasts at the most, from its begin to its end.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much of a request's head is read.
const MAX_HEAD: usize = 16 << 10;

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
pub(crate) struct Page {
    pub(crate) status: StatusCode,
    pub(crate) content: &'static str,
    pub(crate) body: Vec<u8>,
}

/// Answers a question; `None` where there is no such page. Must not wait.
pub(crate) type Pages = dyn Fn(&Ask<'_>) -> Option<Page> + Send + Sync;

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
    let room = Arc::new(Semaphore::new(CONNECTIONS));
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
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
        let pages = Arc::clone(&pages);
        tokio::spawn(async move {
            let answers = service_fn(|request| {
                let response = answer(&request, &*pages);
                async { Ok::<_, Infallible>(response) }
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
            drop(permit);
        });
    }
}

fn answer(request: &Request<Incoming>, pages: &Pages) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let page = Page::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        let mut response = page.into_response();
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let ask = Ask {
        path: request.uri().path(),
        query: request.uri().query().unwrap_or_default(),
        format: Format::of(accept.unwrap_or_default()),
    };
    let page = match contain("a page", || pages(&ask)) {
        Ok(Some(page)) => page,
        Ok(None) => Page::text(
            StatusCode::NOT_FOUND,
            "there are /metrics, /livez, /readyz, /health and /health/OBSERVER\n",
        ),
        Err(panicked) => {
            tracing::error!(error = %panicked, "a page could not be made");
            Page::text(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be made\n")
        }
    };
    page.into_response()
}

impl Page {
    pub(crate) fn text(status: StatusCode, body: impl Into<Vec<u8>>) -> Self {
        Page { status, content: "text/plain; charset=utf-8", body: body.into() }
    }

    pub(crate) fn json(status: StatusCode, body: &serde_json::Value) -> Self {
        Page { status, content: "application/json", body: format!("{body:#}\n").into() }
    }

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
    use std::time::Instant;

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
    fn slow_clients_end_and_hold_up_nobody_but_each_other() {
        let address = start();
        let begun = Instant::now();
        // Some ask for nothing, others read nothing of what they asked for.
        let slow: Vec<TcpStream> = (0..CONNECTIONS)
            .map(|n| {
                let mut stream = TcpStream::connect(address).unwrap();
                if n % 2 == 0 {
                    stream.write_all(b"GET /long HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
                }
                stream
            })
            .collect();
        loop {
            let mut stream = TcpStream::connect(address).unwrap();
            // Hung up on until one of the others was given up.
            drop(stream.write_all(b"GET /good HTTP/1.1\r\nhost: a\r\n\r\n"));
            let mut answer = String::new();
            if stream.read_to_string(&mut answer).is_ok() && answer.contains("200 OK") {
                break;
            }
            assert!(begun.elapsed() < 6 * PATIENCE, "nobody is served any more");
            std::thread::sleep(Duration::from_millis(100));
        }
        drop(slow);
    }
}
