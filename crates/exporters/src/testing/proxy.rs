//! What stands between an emitter and a receiver, and cuts connections.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// Forwards connections until it is told to cut them.
pub(crate) struct Proxy {
    pub(crate) url: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    connections: AtomicUsize,
    /// Of so many first ones nothing is forwarded any more: as soon as anything
    /// is sent over them, they are closed.
    cut: AtomicUsize,
    /// Of so many first ones no answer is forwarded any more.
    unanswered: AtomicUsize,
    clients: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    pub(crate) fn before(url: &str) -> Self {
        let upstream = url.strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let nth = shared.connections.fetch_add(1, Relaxed) + 1;
                let server = TcpStream::connect(&upstream).unwrap();
                shared.clients.lock().unwrap().push(client.try_clone().unwrap());
                forward(Arc::clone(&shared), nth, client, server);
            }
        });
        Proxy { url, state }
    }

    /// Cuts the connections that there are.
    pub(crate) fn cuts_what_is_open(&self) {
        self.state.cut.store(self.connections(), Relaxed);
    }

    pub(crate) fn cuts_all(&self) {
        self.state.cut.store(usize::MAX, Relaxed);
    }

    /// Keeps to itself what is answered over the connections that there are.
    pub(crate) fn keeps_answers(&self) {
        self.state.unanswered.store(self.connections(), Relaxed);
    }

    /// Cuts all connections that there are, whatever is under way.
    pub(crate) fn cuts_now(&self) {
        for client in self.state.clients.lock().unwrap().drain(..) {
            // It may have gone away by itself.
            drop(client.shutdown(Shutdown::Both));
        }
    }

    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Relaxed)
    }
}

fn forward(state: Arc<State>, nth: usize, client: TcpStream, server: TcpStream) {
    let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    let shared = Arc::clone(&state);
    std::thread::spawn(move || {
        let mut bytes = [0; 65_536];
        // Whoever goes away first: it is the end.
        while let Ok(n @ 1..) = from.read(&mut bytes) {
            let is_kept = nth <= shared.unanswered.load(Relaxed);
            if !is_kept && to.write_all(&bytes[..n]).is_err() {
                break;
            }
        }
        drop(to.shutdown(Shutdown::Both));
    });
    std::thread::spawn(move || {
        let (mut client, mut server) = (client, server);
        let mut bytes = [0; 65_536];
        while let Ok(n @ 1..) = client.read(&mut bytes) {
            if nth <= state.cut.load(Relaxed) || server.write_all(&bytes[..n]).is_err() {
                break;
            }
        }
        drop(client.shutdown(Shutdown::Both));
        drop(server.shutdown(Shutdown::Both));
    });
}
