//! Receivers that are not ours: `otlp.py` beside this file, with the
//! Python packages of OpenTelemetry and gRPC, alone and behind rotel, a
//! collector that decodes and encodes everything again.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vahti_runtime::testing::not_run;

/// A process that ends with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A receiver in Python, and what it prints.
struct Script {
    _process: Process,
    lines: Receiver<Value>,
    /// Its first line.
    ports: Value,
}

impl Script {
    fn start(python: &Path, name: &str, arguments: &[&str]) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../exporters/tests/receivers");
        let mut command = Command::new(python);
        command.arg(folder.join(name)).args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = channel();
        // At once: a receiver whose output is not read would stand still.
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if tell.send(serde_json::from_str(&line).unwrap()).is_err() {
                    return;
                }
            }
        });
        let ports = next(&lines);
        Script { _process: Process(child), lines, ports }
    }
}

/// The one of OpenTelemetry.
pub(crate) struct Decoder {
    script: Script,
    python: PathBuf,
}

/// A gateway of POLKU.
pub(crate) struct Gateway(Script);

impl Gateway {
    /// One that behaves as the script knows. `None`, having said why, where the
    /// packages are missing.
    pub(crate) fn start(behaviour: &[&str]) -> Option<Self> {
        Some(Gateway(Script::start(&python()?, "gateway.py", behaviour)))
    }

    pub(crate) fn url(&self) -> String {
        format!("http://localhost:{}", self.0.ports["grpc"])
    }

    /// The next event.
    pub(crate) fn receives(&self) -> Value {
        let event = next(&self.0.lines);
        assert_eq!(event["unknown"], 0, "fields that the messages do not have: {event}");
        event
    }

    /// The events since the last look, without waiting for more.
    pub(crate) fn received(&self) -> Vec<Value> {
        self.0.lines.try_iter().collect()
    }
}

/// A record or a span as it was decoded.
pub(crate) struct Sent {
    pub(crate) is_span: bool,
    pub(crate) fields: Value,
    pub(crate) attributes: BTreeMap<String, Value>,
}

impl Decoder {
    /// `None`, having said why, where the packages are missing.
    pub(crate) fn start() -> Option<Self> {
        Self::start_at(0)
    }

    /// The same, with this port for gRPC.
    pub(crate) fn start_at(port: u16) -> Option<Self> {
        let python = python()?;
        let script = Script::start(&python, "otlp.py", &[&port.to_string()]);
        Some(Decoder { script, python })
    }

    /// Where it listens, by the protocol's name: `grpc`, `http`.
    pub(crate) fn url(&self, protocol: &str) -> String {
        format!("http://localhost:{}", self.script.ports[protocol])
    }

    /// The records or spans of the next request.
    pub(crate) fn receives(&self) -> Vec<Sent> {
        let line = next(&self.script.lines);
        assert_eq!(line["unknown"], false, "fields that the protocol does not have: {line}");
        let is_span = line["signal"] == "traces";
        let [resources, scopes, items] = if is_span {
            ["resourceSpans", "scopeSpans", "spans"]
        } else {
            ["resourceLogs", "scopeLogs", "logRecords"]
        };
        let mut all = Vec::new();
        for resource in list(&line["request"][resources]) {
            let node = object(&resource["resource"]["attributes"]);
            assert_eq!(node["service.name"], "vahti");
            assert!(node.contains_key("host.name"));
            for scope in list(&resource[scopes]) {
                assert_eq!(scope["scope"]["name"], "vahti");
                assert!(scope["schemaUrl"].is_string(), "{scope}");
                all.extend(list(&scope[items]).map(|item| Sent {
                    is_span,
                    attributes: object(&item["attributes"]),
                    fields: item.clone(),
                }));
            }
        }
        all
    }
}

fn next(lines: &Receiver<Value>) -> Value {
    lines.recv_timeout(Duration::from_secs(60)).expect("a line of the decoder")
}

/// Where the packages are; CI makes this folder.
fn python() -> Option<PathBuf> {
    let set = std::env::var_os("VAHTI_PYTHON").map(PathBuf::from);
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/receivers/bin/python");
    let python = set.unwrap_or(here);
    let imports =
        "import grpc_tools, rotel, opentelemetry.proto.collector.logs.v1.logs_service_pb2";
    let works = Command::new(&python).args(["-c", imports]).stderr(Stdio::null()).status();
    if works.is_ok_and(|status| status.success()) {
        return Some(python);
    }
    not_run(
        "no Python with rotel, grpcio-tools and opentelemetry-proto; VAHTI_PYTHON may name one",
    );
    None
}

/// A collector that sends all that it gets on to a decoder.
pub(crate) struct Rotel {
    _process: Process,
    ports: [u16; 2],
}

impl Rotel {
    pub(crate) fn before(decoder: &Decoder) -> Self {
        let ports = [(); 2].map(|()| free_port());
        let find = "import rotel, os; print(os.path.dirname(rotel.__file__))";
        let folder = Command::new(&decoder.python).args(["-c", find]).output().unwrap();
        let folder = PathBuf::from(String::from_utf8(folder.stdout).unwrap().trim());
        let mut command = Command::new(folder.join("rotel-agent"));
        command
            .arg("start")
            .args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{}", ports[0])])
            .args(["--otlp-http-endpoint", &format!("127.0.0.1:{}", ports[1])])
            .args(["--exporter", "otlp", "--disable-batching"])
            .args(["--otlp-exporter-endpoint", &decoder.url("grpc")])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = Process(command.spawn().unwrap());
        for port in ports {
            let until = Instant::now() + Duration::from_secs(60);
            while TcpStream::connect(("127.0.0.1", port)).is_err() {
                assert!(Instant::now() < until, "rotel does not listen");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Rotel { _process: process, ports }
    }

    /// Where it listens, by the protocol's name: `grpc`, `http`.
    pub(crate) fn url(&self, protocol: &str) -> String {
        format!("http://127.0.0.1:{}", self.ports[usize::from(protocol == "http")])
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn object(attributes: &Value) -> BTreeMap<String, Value> {
    list(attributes).map(|p| (p["key"].as_str().unwrap().to_owned(), plain(&p["value"]))).collect()
}

/// A value in protobuf's JSON, where 64-bit integers are text and what has its
/// default is absent.
fn plain(value: &Value) -> Value {
    let Some((kind, value)) = value.as_object().and_then(|o| o.iter().next()) else {
        return json!(null);
    };
    match kind.as_str() {
        "intValue" => json!(value.as_str().unwrap().parse::<i64>().unwrap()),
        "arrayValue" => list(&value["values"]).map(plain).collect(),
        "kvlistValue" => Value::Object(object(&value["values"]).into_iter().collect()),
        _ => value.clone(),
    }
}

/// Bytes, which protobuf's JSON has in base64, in hexadecimal.
pub(crate) fn hex(value: &Value) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let text = value.as_str().unwrap_or_default().trim_end_matches('=');
    let (mut bits, mut held, mut out) = (0_usize, 0, String::new());
    for digit in text.bytes() {
        bits = (bits << 6 | DIGITS.iter().position(|d| *d == digit).unwrap()) & 0xffff;
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push_str(&format!("{:02x}", bits >> held & 0xff));
        }
    }
    out
}
