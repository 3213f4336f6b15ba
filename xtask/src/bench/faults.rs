//! Faults made on purpose, on loopback only.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

/// A loopback address where nobody listens: a different one for each `n`.
pub(crate) fn closed_port(n: u32) -> SocketAddr {
    let [_, b, c, d] = n.to_be_bytes();
    // Port 1 (tcpmux) is closed on any machine that this is run on.
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(127, b.wrapping_add(1), c, d), 1))
}

/// Connects where nobody listens; whether it was refused.
pub(crate) fn be_refused(to: SocketAddr) -> bool {
    match TcpStream::connect(to) {
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        Ok(_) => false,
    }
}

/// Connects `per_second` times a second for so long; how often it was refused.
pub(crate) fn storm(to: SocketAddr, per_second: u64, time: Duration) -> u64 {
    let start = Instant::now();
    let (mut made, mut refused) = (0, 0);
    while start.elapsed() < time {
        let due = (start.elapsed().as_micros() as u64).saturating_mul(per_second) / 1_000_000;
        if made >= due {
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        while made < due {
            made += 1;
            refused += u64::from(be_refused(to));
        }
    }
    refused
}
