//! A name server that is silent, knows nothing, or knows every name.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use crate::agent::BINARY;

/// What it does with a question.
#[derive(Clone, Copy)]
pub(crate) enum Mood {
    Silent,
    /// There is no such name.
    Denies,
    /// Every name is this machine's, as IPv6 has it and as IPv4 does.
    Knows,
}

pub(crate) struct NameServer {
    address: Ipv4Addr,
    state: Arc<State>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    mood: AtomicU8,
    questions: AtomicUsize,
    is_over: std::sync::atomic::AtomicBool,
}

impl NameServer {
    /// One that is silent; `None` without the right to its port.
    pub(crate) fn start() -> Option<Self> {
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, high, low, 53);
        let socket = UdpSocket::bind((address, 53)).ok()?;
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let state = Arc::new(State::default());
        let known = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            while !known.is_over.load(Relaxed) {
                known.answer(&socket);
            }
        });
        Some(NameServer { address, state, thread: Some(thread) })
    }

    pub(crate) fn is(&self, mood: Mood) {
        self.state.mood.store(mood as u8, Relaxed);
    }

    pub(crate) fn questions(&self) -> usize {
        self.state.questions.load(Relaxed)
    }

    /// The program, in a world of its own where this answers for names.
    pub(crate) fn vahti(&self, folder: &std::path::Path) -> Command {
        let settings = folder.join("resolv.conf");
        std::fs::write(&settings, format!("nameserver {}\n", self.address)).unwrap();
        let mut command = Command::new("unshare");
        // The same process, so that it can be signalled.
        let script = r#"mount --bind "$1" /etc/resolv.conf && shift && exec "$@""#;
        command.args(["--mount", "sh", "-c", script, "sh"]).arg(settings).arg(BINARY);
        command
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.state.is_over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok() || std::thread::panicking(), "it failed");
        }
    }
}

impl State {
    fn answer(&self, socket: &UdpSocket) {
        let mut question = [0; 512];
        let Ok((length, from)) = socket.recv_from(&mut question) else { return };
        self.questions.fetch_add(1, Relaxed);
        let mood = self.mood.load(Relaxed);
        if mood == Mood::Silent as u8 {
            return;
        }
        // The header, and then the name as labels, ended by an empty one.
        let end = 12 + question[12..length].iter().position(|byte| *byte == 0).unwrap() + 5;
        let is_ipv6 = question[end - 3] == 28;
        let knows = mood == Mood::Knows as u8;
        let mut answer = question[..end].to_vec();
        answer[2..4].copy_from_slice(&[0x81, if knows { 0x80 } else { 0x83 }]);
        answer[4..12].copy_from_slice(&[0, 1, 0, u8::from(knows), 0, 0, 0, 0]);
        if knows {
            let ipv6 = std::net::Ipv6Addr::LOCALHOST.octets();
            let address = if is_ipv6 { &ipv6[..] } else { &[127, 0, 0, 1] };
            let length = u8::try_from(address.len()).unwrap();
            answer.extend([0xc0, 12, 0, question[end - 3], 0, 1, 0, 0, 0, 1, 0, length]);
            answer.extend(address);
        }
        // Who asked may not wait any more.
        drop(socket.send_to(&answer, from));
    }
}
