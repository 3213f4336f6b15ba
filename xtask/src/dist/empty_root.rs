//! The static binary where nothing else is: a folder with that one file, in a
//! mount namespace of its own, with what the kernel shows mounted as a
//! container has it. It has to watch, tell, and find an endpoint by its name.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use crate::stage::{copy, fresh, put};

/// Mounts in a namespace of its own, then runs what is left of the arguments.
/// Read-only as in a container, but for the proofs, which are no files.
const ENTER: &str = r#"
set -e
cd "$1"; shift
mkdir -p proc sys run var/lib/vahti
mount --rbind /proc proc
mount --rbind /sys sys
mount -o remount,bind,ro sys
mount -t tmpfs tmpfs run
exec chroot . /vahti "$@"
"#;

const FOLDER: &str = "target/empty-root";
/// No other program here is known by these.
const BY_FILE: &str = "by-file.vahti.test";
const BY_DNS: &str = "by-dns.vahti.test";
const NAME_SERVER: &str = "127.77.9.53";

/// Tries it; whoever lacks the rights is told what was not tried.
pub(super) fn check(binary: &Path) -> Result<(), String> {
    let root = Path::new(FOLDER);
    fresh(root)?;
    copy(binary, &root.join("vahti"), 0o755)?;
    let version = said(vahti(&["--version"]))?;
    if version.trim() != format!("vahti {}", env!("CARGO_PKG_VERSION")) {
        return Err(format!("in an empty root it says that it is {version}"));
    }
    said(vahti(&["doctor", "--store", "/var/lib/vahti"]))?;
    watches(root)?;
    fs::remove_dir_all(root).map_err(|e| format!("{FOLDER}: {e}"))
}

fn vahti(arguments: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", ENTER, "sh", FOLDER])
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null());
    command
}

fn said(mut command: Command) -> Result<String, String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        return Ok(out.into_owned());
    }
    Err(format!("in an empty root, {command:?} ended with {}\n{out}{err}", output.status))
}

/// It tells of a refused connection on standard output, answers `/readyz`, and
/// connects to two endpoints, whose names a file and a name server know.
fn watches(root: &Path) -> Result<(), String> {
    let listening = || TcpListener::bind("127.0.0.1:0").map_err(|e| format!("127.0.0.1: {e}"));
    let (file, dns, http) = (listening()?, listening()?, listening()?);
    let port = |listener: &TcpListener| listener.local_addr().map_or(0, |a| a.port());
    let config = format!(
        "http: {{listen: \"127.0.0.1:{}\"}}\nstore: {{path: /var/lib/vahti}}\nemitters:\n\
         - {{type: stdout, format: json}}\n\
         - {{type: otlp, name: file, endpoint: \"http://{BY_FILE}:{}\"}}\n\
         - {{type: otlp, name: dns, endpoint: \"http://{BY_DNS}:{}\"}}\n",
        port(&http),
        port(&file),
        port(&dns)
    );
    let http = address(http)?;
    put(&root.join("vahti.yaml"), config.as_bytes(), 0o644)?;
    put(&root.join("etc/hosts"), format!("127.0.0.1 {BY_FILE}\n").as_bytes(), 0o644)?;
    put(&root.join("etc/resolv.conf"), format!("nameserver {NAME_SERVER}\n").as_bytes(), 0o644)?;
    // What a program may not load that brings its own C library.
    put(&root.join("etc/nsswitch.conf"), b"hosts: vahti_test [!SUCCESS=return]\n", 0o644)?;
    serve_names()?;
    let (called, calls) = channel();
    for (name, listener) in [("a file", file), ("a name server", dns)] {
        let called = called.clone();
        thread::spawn(move || listener.accept().is_ok().then(|| called.send(name)));
    }
    let mut agent = Agent::start(&["run", "--config", "/vahti.yaml"])?;
    agent.waits(|| answers_ready(http), "/readyz does not say 200")?;
    let pid = std::process::id();
    agent.tells(pid)?;
    arrives(&calls, &mut agent)?;
    agent.ends()
}

/// Where this listened, which is free now.
fn address(listener: TcpListener) -> Result<SocketAddr, String> {
    listener.local_addr().map_err(|e| e.to_string())
}

fn answers_ready(at: SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(at)?;
        std::io::Write::write_all(&mut stream, b"GET /readyz HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.split(' ').nth(1) == Some("200"))
}

/// Both endpoints are called, in either order.
fn arrives(calls: &Receiver<&'static str>, agent: &mut Agent) -> Result<(), String> {
    let mut names = vec!["a file", "a name server"];
    while !names.is_empty() {
        match calls.recv_timeout(Duration::from_secs(30)) {
            Ok(name) => names.retain(|n| *n != name),
            Err(_) => {
                let why =
                    format!("in an empty root, a name from {} is not found", names.join(", "));
                return Err(agent.blamed(&why));
            }
        }
    }
    Ok(())
}

/// The agent in its root.
struct Agent {
    child: Child,
    lines: Receiver<String>,
}

impl Agent {
    fn start(arguments: &[&str]) -> Result<Self, String> {
        let mut child = vahti(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("unshare: {e}"))?;
        let stdout = child.stdout.take().ok_or("it has no output")?;
        let (line, lines) = channel();
        thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).all(|l| line.send(l).is_ok())
        });
        Ok(Agent { child, lines })
    }

    fn waits(&mut self, is_so: impl Fn() -> bool, else_say: &str) -> Result<(), String> {
        for _ in 0..300 {
            if is_so() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(100));
        }
        Err(self.blamed(&format!("in an empty root, {else_say}")))
    }

    /// A connection of this process that is refused comes out as a line.
    fn tells(&mut self, pid: u32) -> Result<(), String> {
        // Bound and not listening: whoever connects is refused.
        let socket = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
        let closed = address(socket)?;
        drop(TcpStream::connect(closed));
        let is_it = |line: &str| {
            serde_json::from_str::<serde_json::Value>(line).is_ok_and(|event| {
                event["subtype"] == "connection_refused" && event["process"]["pid"] == pid
            })
        };
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(30)) {
            if is_it(&line) {
                return Ok(());
            }
        }
        Err(self.blamed("in an empty root it does not tell of a refused connection"))
    }

    fn ends(mut self) -> Result<(), String> {
        let pid = i32::try_from(self.child.id()).map_err(|e| e.to_string())?;
        // SAFETY: no memory is involved; our own child, not reaped yet.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let status = self.child.wait().map_err(|e| e.to_string())?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("in an empty root it ended with {status}"))
        }
    }

    /// The reason, and what the agent said itself.
    fn blamed(&mut self, why: &str) -> String {
        drop(self.child.kill());
        let mut log = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            drop(stderr.read_to_string(&mut log));
        }
        format!("{why}; its log:\n{log}")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A name server that knows one name, at an address of loopback that nobody
/// else has. Its thread ends with this process.
fn serve_names() -> Result<(), String> {
    let socket = UdpSocket::bind((NAME_SERVER, 53))
        .map_err(|e| format!("{NAME_SERVER}:53, for a name server: {e}"))?;
    thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut question) {
            drop(socket.send_to(&answer(&question[..len]), from));
        }
    });
    Ok(())
}

/// An answer as in RFC 1035, 4.1: A is 127.0.0.1 for our name; there is nothing
/// else.
fn answer(question: &[u8]) -> Vec<u8> {
    const HEADER: usize = 12;
    let Some(rest) = question.get(HEADER..) else { return Vec::new() };
    let end = rest.iter().position(|byte| *byte == 0).map_or(rest.len(), |at| at + 5);
    let asked = &rest[..end.min(rest.len())];
    let wanted: Vec<u8> = BY_DNS
        .split('.')
        .flat_map(|label| std::iter::once(label.len() as u8).chain(label.bytes()))
        .chain([0, 0, 1, 0, 1])
        .collect();
    let is_known = asked.eq_ignore_ascii_case(&wanted);
    let mut answer = question[..2].to_vec();
    // A response, recursion available; one question, and answers if it is known.
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_known), 0, 0, 0, 0]);
    answer.extend(asked);
    if is_known {
        // The question's name, A, IN, 60 s, 4 bytes.
        answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    answer
}
