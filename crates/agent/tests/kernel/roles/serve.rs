//! Servers and clients that reset each other's connections.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use serde_json::{Value, json};

/// Listens at `address` and tells where; then, by `how`, with every connection:
/// `reset`: resets it; `read`: reads until it ends; `fork`: has a child of its
/// own do that; `hold`: says that it has it, and never reads.
pub(super) fn serve(arguments: &Value) {
    let address: IpAddr = serde_json::from_value(arguments["address"].clone()).unwrap();
    let listener = TcpListener::bind((address, 0)).unwrap();
    super::tell(&json!({"listens": listener.local_addr().unwrap()}));
    let mut held = Vec::new();
    loop {
        let (mut accepted, _) = listener.accept().unwrap();
        match arguments["how"].as_str().unwrap() {
            "reset" => reset_on_close(&accepted),
            "read" => read_to_reset(&mut accepted),
            "fork" => fork_to_read(accepted),
            "hold" => {
                accepted.write_all(b"!").unwrap();
                held.push(accepted);
            }
            how => panic!("{how}"),
        }
    }
}

/// Has `count` connections to `peer` reset by the server.
pub(super) fn be_reset(arguments: &Value) {
    for _ in 0..arguments["count"].as_u64().unwrap() {
        match try_connect(arguments) {
            Ok(mut client) => read_to_reset(&mut client),
            // The reset may come before connect() has returned.
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    super::tell(&json!({}));
}

/// Resets `count` connections to `peer` once the server has answered a byte.
pub(super) fn reset(arguments: &Value) {
    for _ in 0..arguments["count"].as_u64().unwrap() {
        let mut client = try_connect(arguments).unwrap();
        client.write_all(b"?").unwrap();
        client.read_exact(&mut [0]).unwrap();
        reset_on_close(&client);
    }
    super::tell(&json!({}));
}

fn try_connect(arguments: &Value) -> std::io::Result<TcpStream> {
    let peer: SocketAddr = serde_json::from_value(arguments["peer"].clone()).unwrap();
    TcpStream::connect(peer)
}

/// Answers what it reads, until the other side resets.
fn read_to_reset(stream: &mut TcpStream) {
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(0) => panic!("an orderly end"),
            Ok(_) => stream.write_all(&byte).unwrap(),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                return;
            }
        }
    }
}

fn fork_to_read(mut accepted: TcpStream) {
    let child = super::fork(|| {
        super::take_name(&json!({"name": b"server's child"}));
        read_to_reset(&mut accepted);
    });
    drop(accepted);
    super::tell(&json!({"pid": child}));
    super::wait_for(child);
}

fn reset_on_close(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: `linger` is readable for the length given.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of_val(&linger) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
