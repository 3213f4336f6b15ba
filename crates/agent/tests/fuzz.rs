//! What the built binary makes of configurations, of requests and of answers
//! on the control socket that are made of real ones by chance
//! (`fuzz/smoke.rs`): a result or an error, never a panic.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends so")]

mod command;
#[path = "../../../fuzz/smoke.rs"]
mod smoke;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use command::vahti;
use vahti_runtime::testing::not_run;

/// One folder for each test of this process.
fn folder(of: &str) -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let root = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let folder = root.join(format!("vahti-fuzz-{of}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// It ended by itself, without a panic, and smuggles nothing into a terminal.
fn assert_sane(output: &Output, codes: &[i32]) {
    let told = String::from_utf8(output.stderr.clone()).expect("it tells in UTF-8");
    assert!(output.status.code().is_some_and(|code| codes.contains(&code)), "{output:?}");
    assert!(!told.chars().any(|c| c.is_control() && c != '\n'), "{told:?}");
}

fn check(bytes: &[u8]) {
    let file = folder("config").join("vahti.yaml");
    std::fs::write(&file, bytes).unwrap();
    let begun = Instant::now();
    let output = vahti(&["config", "check", file.to_str().unwrap()]).output().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "it takes {:?}", begun.elapsed());
    assert_sane(&output, &[0, 64, 66]);
}

#[test]
fn any_configuration_is_taken_or_refused() {
    let texts: [&[u8]; 8] = [
        b"limits: {memory: 64MiB}\nobservers:\n  network: {sampling: {enabled: true}}\n",
        b"emitters:\n- {type: stdout}\n- {type: file, durable: true, path: /x}\n",
        b"store: &a {path: none, max_bytes: 8MiB}\nother: *a\n",
        b"a: &a [*a, *a]\n? {b: c}\n: !!binary |\n  aGk=\n",
        b"{\"limits\": {\"drain_deadline\": \"1e9999s\", \"memory\": -1}}",
        b"<<: [{a: 1}, {a: 2}]\n--- |\n  text\n...\n",
        b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
        b"\xef\xbb\xbfobservers: {container: {backpressure: {queue_size: .inf}}}\n",
    ];
    smoke::try_inputs(check, &texts.map(<[u8]>::to_vec));
    std::fs::remove_dir_all(folder("config")).unwrap();
}

/// Somebody who answers one request with these bytes.
fn answer(bytes: &[u8]) {
    let path = folder("answers").join("s");
    drop(std::fs::remove_file(&path));
    let listener = UnixListener::bind(&path).unwrap();
    let bytes = bytes.to_vec();
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        drop(BufReader::new(&stream).read_line(&mut String::new()));
        // It may hang up on us.
        drop((&stream).write_all(&bytes));
        drop(stream.shutdown(Shutdown::Both));
    });
    let socket = path.to_str().unwrap();
    let output = vahti(&["ledger", "--socket", socket]).output().unwrap();
    server.join().unwrap();
    assert_sane(&output, &[0, 1, 69]);
}

#[test]
fn any_answer_is_shown_or_refused() {
    let texts: [&[u8]; 5] = [
        b"{\"observers\":[{\"observer\":\"network\",\"kernel\":{\"attempted\":1,\"lost\":0},\"lanes\":[{\"emitter\":\"stdout\",\"routed\":{\"occurrences\":1,\"envelopes\":1},\"dropped\":[{\"stage\":\"queue\",\"reason\":\"queue_items\",\"priority\":\"normal\",\"occurrences\":2}]}]}]}\n",
        b"{\"store\":{\"lanes\":[{\"emitter\":\"a\",\"stored\":{\"occurrences\":18446744073709551615}}]}}\n",
        b"{\"observers\":{\"a\":[null,1e999,\"\\u001b[2J\"]}}\n",
        b"{\"error\":\"unknown request\"}\n",
        b"\xff\n[[[[[[[[[[[[[[[[",
    ];
    smoke::try_inputs(answer, &texts.map(<[u8]>::to_vec));
    std::fs::remove_dir_all(folder("answers")).unwrap();
}

/// An agent that watches.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn socket() -> &'static Path {
    static SOCKET: OnceLock<PathBuf> = OnceLock::new();
    SOCKET.get_or_init(|| folder("requests").join("s"))
}

fn ask(request: &[u8]) -> Option<Vec<u8>> {
    let mut stream = UnixStream::connect(socket()).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // It answers a line that is too long before it has read all of it.
    drop(stream.write_all(request));
    drop(stream.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // What was not read is told as a reset.
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => None,
        _ => Some(answer),
    }
}

fn request(bytes: &[u8]) {
    let answer = ask(bytes).expect("it answers");
    let lines = answer.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    for line in lines {
        let told = String::from_utf8_lossy(line);
        assert!(serde_json::from_slice::<serde_json::Value>(line).is_ok(), "{told}");
        assert!(!told.contains("a bug in vahti"), "{told}");
    }
}

#[test]
fn any_request_is_answered() {
    let mut run = vahti(&["run", "--emit", "none", "--socket", socket().to_str().unwrap()]);
    let mut agent = Agent(run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let begun = Instant::now();
    while ask(b"ledger\n").is_none() {
        if let Some(status) = agent.0.try_wait().unwrap() {
            assert_eq!(status.code(), Some(77), "it does not start");
            return not_run("needs the rights to load eBPF programs");
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "it does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
    let requests: [&[u8]; 7] = [
        b"ledger\n",
        b"prove 1\n",
        b"prove 4294967296\n",
        b"prove -1\nledger\n",
        b"\xff\xfe\n",
        b"\n",
        &[b'x'; 1_000],
    ];
    smoke::try_inputs(request, &requests.map(<[u8]>::to_vec));
    assert!(agent.0.try_wait().unwrap().is_none(), "it runs on");
    drop(agent);
    std::fs::remove_dir_all(folder("requests")).unwrap();
}
