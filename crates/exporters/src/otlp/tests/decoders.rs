//! What decoders that are not ours make of it: the Python packages of
//! OpenTelemetry and gRPC, alone and behind rotel, a collector in Rust that
//! decodes and encodes everything again.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vahti_runtime::emitter::{EmitOutcome, EventEmitter};
use vahti_runtime::event::Event;
use vahti_runtime::ids::{EventId, SpanId, TraceId};
use vahti_runtime::testing::not_run;

use super::mapping::{attributes_match, everything, json_of};
use crate::otlp::OtlpEmitter;
use crate::otlp::config::{Compression, OtlpConfig, Protocol};

/// Where the packages are; CI makes this folder.
fn python() -> Option<PathBuf> {
    let set = std::env::var_os("VAHTI_PYTHON").map(PathBuf::from);
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/receivers/bin/python");
    let python = set.unwrap_or_else(|| here.into());
    let imports = "import grpc, rotel, opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc";
    let works = Command::new(&python).args(["-c", imports]).stderr(Stdio::null()).status();
    if works.is_ok_and(|status| status.success()) {
        return Some(python);
    }
    not_run(
        "no Python with rotel, grpcio and opentelemetry-proto: `pip install` them, and set VAHTI_PYTHON",
    );
    None
}

/// A process that ends with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

struct Decoder {
    _process: Process,
    lines: Receiver<Value>,
    grpc: u64,
    http: u64,
}

impl Decoder {
    fn start(python: &PathBuf) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/receivers/otlp.py");
        let mut command = Command::new(python);
        command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let (tell, told) = channel();
        // At once: a receiver whose output is not read would stand still.
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap();
                if tell.send(value).is_err() {
                    return;
                }
            }
        });
        let ports = next(&told);
        let port = |name: &str| ports[name].as_u64().unwrap();
        Decoder { _process: Process(child), grpc: port("grpc"), http: port("http"), lines: told }
    }
}

fn next(lines: &Receiver<Value>) -> Value {
    lines.recv_timeout(Duration::from_secs(20)).expect("a line of the decoder")
}

/// Events with ids of their own, all in one trace.
fn events() -> Vec<Arc<Event>> {
    let all = everything().into_iter().zip(1_u64..);
    all.map(|(event, n)| {
        Arc::new(Event {
            id: EventId(u128::from(n)),
            trace_id: TraceId(77),
            span_id: Some(SpanId::from_hash(u128::from(n))),
            time_ns: event.time_ns.max(1_000_000),
            observed_ns: event.observed_ns.max(1_000_000),
            ..event
        })
    })
    .collect()
}

/// Sends all of it, and looks at every record and span that comes out.
fn arrives(url: &str, protocol: Protocol, gzip: bool, lines: &Receiver<Value>) {
    let compression = if gzip { Compression::Gzip } else { Compression::None };
    let config = OtlpConfig {
        protocol: Some(protocol),
        compression: Some(compression),
        ..OtlpConfig::to(url)
    };
    let events = events();
    let mut emitter = OtlpEmitter::new("otlp", config.target().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(runtime.block_on(emitter.emit(&events)), EmitOutcome::Delivered);
    let spans = events.iter().filter(|event| crate::otlp::record::is_span(event)).count();
    let (mut records_left, mut spans_left) = (events.len(), spans);
    while records_left + spans_left > 0 {
        let line = next(lines);
        assert_eq!(line["unknown"], false, "{line}");
        let request = &line["request"];
        if line["signal"] == "logs" {
            for record in inner(request, "resourceLogs", "scopeLogs", "logRecords") {
                check_record(&events, record);
                records_left -= 1;
            }
        } else {
            for span in inner(request, "resourceSpans", "scopeSpans", "spans") {
                check_span(&events, span);
                spans_left -= 1;
            }
        }
    }
}

fn inner<'a>(request: &'a Value, a: &'a str, b: &'a str, c: &'a str) -> Vec<&'a Value> {
    let list = |value: &'a Value| value.as_array().into_iter().flatten();
    list(&request[a])
        .inspect(|resource| {
            let attributes = object(&resource["resource"]["attributes"]);
            assert_eq!(attributes["service.name"], "vahti");
            assert!(attributes.contains_key("host.name"));
        })
        .flat_map(|resource| list(&resource[b]))
        .inspect(|scope| {
            assert_eq!(scope["scope"]["name"], "vahti");
            assert_eq!(scope["schemaUrl"], crate::otlp::record::CONVENTIONS_URL);
        })
        .flat_map(|scope| list(&scope[c]))
        .collect()
}

fn object(attributes: &Value) -> BTreeMap<String, Value> {
    let pairs = attributes.as_array().into_iter().flatten();
    pairs.map(|p| (p["key"].as_str().unwrap().to_owned(), plain(&p["value"]))).collect()
}

/// A value in protobuf's JSON, where 64-bit integers are text and what has its
/// default is absent.
fn plain(value: &Value) -> Value {
    let Some((kind, value)) = value.as_object().and_then(|o| o.iter().next()) else {
        return json!(null);
    };
    match kind.as_str() {
        "intValue" => json!(value.as_str().unwrap().parse::<i64>().unwrap()),
        "arrayValue" => value["values"].as_array().into_iter().flatten().map(plain).collect(),
        "kvlistValue" => Value::Object(object(&value["values"]).into_iter().collect()),
        _ => value.clone(),
    }
}

fn of(events: &[Arc<Event>], attributes: &BTreeMap<String, Value>) -> Arc<Event> {
    let id = EventId::parse(attributes["log.record.uid"].as_str().unwrap()).unwrap();
    Arc::clone(events.iter().find(|event| event.id == id).unwrap())
}

fn check_record(events: &[Arc<Event>], record: &Value) {
    let attributes = object(&record["attributes"]);
    let event = of(events, &attributes);
    let json = json_of(&event);
    assert_eq!(record["eventName"], json["name"]);
    assert_eq!(record["timeUnixNano"], event.time_ns.to_string());
    assert_eq!(record["observedTimeUnixNano"], event.observed_ns.to_string());
    assert_eq!(record["severityText"], json["severity"]);
    assert_eq!(hex(&record["traceId"]), json["trace_id"].as_str().unwrap());
    assert_eq!(hex(&record["spanId"]), json["span_id"].as_str().unwrap());
    attributes_match(&event, attributes);
}

fn check_span(events: &[Arc<Event>], span: &Value) {
    let attributes = object(&span["attributes"]);
    let event = of(events, &attributes);
    let json = json_of(&event);
    assert_eq!(span["name"], json["name"]);
    assert_eq!(hex(&span["traceId"]), json["trace_id"].as_str().unwrap());
    assert_eq!(hex(&span["spanId"]), json["span_id"].as_str().unwrap());
    let parent = json["parent_span_id"].as_str().unwrap_or_default();
    assert_eq!(hex(&span["parentSpanId"]), parent);
    assert_eq!(span["links"].as_array().map_or(0, Vec::len), event.links.len());
    attributes_match(&event, attributes);
}

/// Protobuf's JSON has bytes in base64.
fn hex(value: &Value) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let text = value.as_str().unwrap_or_default().trim_end_matches('=');
    let (mut bits, mut held, mut out) = (0_u32, 0, String::new());
    for digit in text.bytes() {
        bits = bits << 6 | DIGITS.iter().position(|d| *d == digit).unwrap() as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push_str(&format!("{:02x}", bits >> held & 0xff));
        }
    }
    out
}

#[test]
fn every_type_of_event_is_read_by_pythons_decoder_as_its_json_line_has_it() {
    let Some(python) = python() else { return };
    let decoder = Decoder::start(&python);
    for gzip in [false, true] {
        let url = format!("http://127.0.0.1:{}", decoder.grpc);
        arrives(&url, Protocol::Grpc, gzip, &decoder.lines);
        let url = format!("http://localhost:{}", decoder.http);
        arrives(&url, Protocol::Http, gzip, &decoder.lines);
    }
}

#[test]
fn every_type_of_event_passes_through_a_collector_unchanged() {
    let Some(python) = python() else { return };
    let decoder = Decoder::start(&python);
    let [grpc, http] = [(); 2].map(|()| free_port());
    let packages = Command::new(&python)
        .args(["-c", "import rotel, os; print(os.path.dirname(rotel.__file__))"])
        .output()
        .unwrap();
    let agent = PathBuf::from(String::from_utf8(packages.stdout).unwrap().trim());
    let mut command = Command::new(agent.join("rotel-agent"));
    command
        .arg("start")
        .args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")])
        .args(["--otlp-http-endpoint", &format!("127.0.0.1:{http}")])
        .args(["--exporter", "otlp", "--disable-batching"])
        .args(["--otlp-exporter-endpoint", &format!("http://127.0.0.1:{}", decoder.grpc)])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _rotel = Process(command.spawn().unwrap());
    for port in [grpc, http] {
        let until = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "rotel does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    for gzip in [false, true] {
        let url = format!("http://127.0.0.1:{grpc}");
        arrives(&url, Protocol::Grpc, gzip, &decoder.lines);
        let url = format!("http://127.0.0.1:{http}");
        arrives(&url, Protocol::Http, gzip, &decoder.lines);
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
