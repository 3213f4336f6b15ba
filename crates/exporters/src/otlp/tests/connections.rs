//! Connections that were open, and are gone when they are needed.

use std::io::Write;
use std::net::{TcpListener, TcpStream};

use vahti_runtime::emitter::EmitOutcome;

use super::answers::{Grpc, Sending, batch, read_request, to, word};
use crate::otlp::config::Protocol;
use crate::testing::proxy::Proxy;

/// A receiver over HTTP that answers all requests of a connection; its URL.
fn content() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || answer_all(stream));
        }
    });
    url
}

fn answer_all(mut stream: TcpStream) {
    while !read_request(&mut stream).is_empty() {
        // A client may go away when it likes.
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
    }
}

/// A receiver that is content over each protocol, behind something that cuts.
fn receivers() -> [(Protocol, Proxy); 2] {
    let grpc = Proxy::before(&Grpc::content().serve());
    [(Protocol::Grpc, grpc), (Protocol::Http, Proxy::before(&content()))]
}

#[test]
fn a_connection_that_is_closed_just_as_it_is_used_costs_one_that_tries_once_nothing() {
    for (protocol, proxy) in receivers() {
        let mut sending = Sending::with(&to(&proxy.url, protocol));
        for n in 1..=5 {
            assert_eq!(sending.send(&batch(0, 3)), EmitOutcome::Delivered, "{protocol:?}, {n}");
            assert_eq!(proxy.connections(), n, "{protocol:?}");
            proxy.cuts_what_is_open();
        }
    }
}

#[test]
fn a_connection_that_breaks_is_not_replaced_again_and_again() {
    for (protocol, proxy) in receivers() {
        let mut sending = Sending::with(&to(&proxy.url, protocol));
        assert_eq!(sending.send(&batch(0, 3)), EmitOutcome::Delivered);
        proxy.cuts_all();
        for connections in [2, 3, 4] {
            let outcome = sending.send(&batch(0, 3));
            assert_eq!(word(&outcome).0, "later", "{outcome:?}");
            assert_eq!(proxy.connections(), connections, "{protocol:?}");
        }
    }
}
