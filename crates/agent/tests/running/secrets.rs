//! What nobody else is to know is told nowhere, whatever goes wrong.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use crate::agent::{Agent, BINARY, refuse};

/// Each of them is configured in another place.
const SECRETS: [&str; 6] = [
    "geheim-in-the-file",
    "geheim-in-a-file-of-its-own",
    "geheim-in-a-variable",
    "geheim-of-opentelemetry",
    "geheim-in-the-key",
    "geheim/in+the=path",
];

/// How a receiver fails.
#[derive(Clone, Copy)]
enum Answer {
    /// It refuses, and repeats what it was sent.
    Refuses(&'static str),
    /// It takes all but so many, and repeats what it was sent.
    Takes(&'static str),
    /// It says what is no HTTP, and repeats what it was sent.
    Garbage,
    /// It ends the connection.
    Nothing,
}

/// What an HTTP/1 receiver answers to this request.
fn answer(how: Answer, request: &str) -> String {
    let short = |text: String| text.replace(['\r', '\n'], " ");
    let head = request.split("\r\n\r\n").next().unwrap();
    let headers = head.lines().filter(|line| line.contains("geheim"));
    let repeated = short(headers.collect::<Vec<_>>().join(" "));
    let whole = |status: &str, kind: &str, body: String| {
        let len = body.len();
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nlocation: http://a/{repeated}\r\n\
             content-length: {len}\r\nconnection: close\r\n\r\n{body}"
        )
    };
    match how {
        Answer::Refuses(status) => whole(status, "text/plain", format!("no: {repeated}")),
        Answer::Takes(but) => {
            let message = format!("but {repeated}");
            let body = serde_json::json!({
                "partialSuccess": {"rejectedLogRecords": but, "errorMessage": message}
            });
            whole("200 OK", "application/json", body.to_string())
        }
        Answer::Garbage => format!("{repeated}\r\n\r\n{repeated}"),
        Answer::Nothing => String::new(),
    }
}

fn receiver(how: Answer) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            std::thread::spawn(move || {
                let mut bytes = [0; 64 << 10];
                let count = stream.read(&mut bytes).unwrap_or(0);
                let request = String::from_utf8_lossy(&bytes[..count]);
                drop(stream.write_all(answer(how, &request).as_bytes()));
            });
        }
    });
    address
}

/// An address that nobody listens on now.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A configuration with a secret in every place that there is for one, and
/// emitters each of which fails in another way.
fn configuration(folder: &Path) -> (String, Vec<String>) {
    let token = folder.join("token");
    fs::write(&token, SECRETS[1]).unwrap();
    let key = folder.join("key.pem");
    let begin = "-----BEGIN PRIVATE KEY-----";
    fs::write(&key, format!("{begin} {} -----END PRIVATE KEY-----\n", SECRETS[4])).unwrap();
    let headers = format!(
        "{{authorization: \"Bearer {}\", x-file: {{file: {}, prefix: \"Token \"}}, \
         x-env: {{env: VAHTI_TEST_TOKEN}}}}",
        SECRETS[0],
        token.display()
    );
    let (key, path) = (key.display(), SECRETS[5]);
    let mut emitters = Vec::new();
    let mut names = Vec::new();
    for (name, how, more) in [
        ("never", Some(Answer::Refuses("400 Bad Request")), "durable: true"),
        ("later", Some(Answer::Refuses("401 Unauthorized")), "critical: true"),
        ("moved", Some(Answer::Refuses("301 Moved Permanently")), "critical: true"),
        ("takes", Some(Answer::Takes("0")), "critical: true"),
        ("partial", Some(Answer::Takes("1")), "durable: true"),
        ("garbage", Some(Answer::Garbage), "critical: true"),
        ("silent", Some(Answer::Nothing), "critical: true"),
        ("down", None, "critical: true"),
    ] {
        let address = how.map_or_else(free, receiver);
        emitters.push(format!(
            "  - {{type: otlp, name: {name}, {more}, protocol: http, headers: {headers},\n     \
             endpoint: \"http://{address}/{path}\"}}"
        ));
        names.push(name.to_owned());
    }
    for how in [None, Some(Answer::Garbage), Some(Answer::Refuses("401 Unauthorized"))] {
        let (name, address) = (format!("grpc-{}", names.len()), how.map_or_else(free, receiver));
        emitters.push(format!(
            "  - {{type: otlp, name: {name}, critical: true, headers: {headers},\n     \
             endpoint: \"http://{address}\"}}"
        ));
        names.push(name);
    }
    let tls = format!("{{cert: {key}, key: {key}, ca: {key}}}");
    emitters.push(format!(
        "  - {{type: otlp, name: tls, critical: true, tls: {tls}, endpoint: \"https://{}\"}}",
        free()
    ));
    emitters.push(format!(
        "  - {{type: polku, critical: true, tls: {tls}, endpoint: \"https://{}\"}}",
        free()
    ));
    let limits = "limits: {drain_deadline: 1s, memory: 256MiB}";
    (format!("{limits}\nemitters:\n{}\n", emitters.join("\n")), names)
}

#[track_caller]
fn tells_no_secret(what: &str, told: &[u8]) {
    let text = String::from_utf8_lossy(told);
    for secret in SECRETS {
        for part in [secret, &secret[..secret.len() - 2], "geheim"] {
            let bytes = format!("{:?}", part.as_bytes());
            let bytes = bytes.trim_matches(['[', ']']);
            assert!(!text.contains(part) && !text.contains(bytes), "{what} tells {part}: {text}");
        }
    }
}

fn get(address: SocketAddr, path: &str, accept: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: a\r\naccept: {accept}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut told = Vec::new();
    stream.read_to_end(&mut told).unwrap();
    assert!(told.len() > 20, "{path}");
    told
}

/// Everything that a running agent answers.
fn all_answers(agent: &Agent, http: SocketAddr, config: &Path) {
    for path in ["/metrics", "/livez?verbose", "/readyz?verbose", "/health", "/health/network"] {
        tells_no_secret(path, &get(http, path, "*/*"));
    }
    tells_no_secret("OpenMetrics", &get(http, "/metrics", "application/openmetrics-text"));
    let socket = agent.socket();
    let store = agent.folder.path().join("store");
    let config = config.to_str().unwrap();
    for arguments in [
        &["health", "--json", "--socket", &socket][..],
        &["health", "--socket", &socket],
        &["ledger", "--json", "--socket", &socket],
        &["ledger", "--socket", &socket],
        &["log", "--json", "--socket", &socket],
        &["doctor", "--config", config, "--store", "none", "--socket", &socket],
        &["doctor", "--json", "--config", config, "--store", "none", "--socket", &socket],
        &["config", "check", config],
        &["events", "--limit", "0", "--format", "json", "--store", store.to_str().unwrap()],
    ] {
        let Output { stdout, stderr, .. } = with_secrets(arguments).output().unwrap();
        assert!(stdout.len() + stderr.len() > 5, "{arguments:?}");
        tells_no_secret(&format!("{arguments:?}"), &[stdout, stderr].concat());
    }
}

fn with_secrets(arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(arguments);
    add_secrets(&mut command);
    command
}

fn add_secrets(command: &mut Command) {
    command.env("VAHTI_TEST_TOKEN", SECRETS[2]);
    command.env("OTEL_EXPORTER_OTLP_HEADERS", format!("x-otel=Basic {}", SECRETS[3]));
}

#[test]
fn a_secret_is_told_nowhere_whatever_receivers_answer() {
    for format in ["text", "json"] {
        let folder = tempfile::tempdir().unwrap();
        let (config, http) = (folder.path().join("c.yaml"), free());
        let (yaml, names) = configuration(folder.path());
        fs::write(&config, yaml).unwrap();
        let log = folder.path().join("log");
        let file = File::create(&log).unwrap();
        let agent = Agent::start_by(|command| {
            command.args(["--observers", "network", "--log", "trace", "--log-format", format]);
            command.arg("--config").arg(&config).env("VAHTI_HTTP", http.to_string()).stderr(file);
            add_secrets(command);
        });
        let Some(mut agent) = agent else { return };
        refuse();
        // That some were refused is in the ledger.
        let mut untold: Vec<String> = names.into_iter().filter(|name| name != "partial").collect();
        untold.extend(["tls".to_owned(), "polku".to_owned()]);
        let mut left = 600;
        while !untold.is_empty() {
            refuse();
            let told = fs::read_to_string(&log).unwrap();
            let pattern = |name: &str| match format {
                "json" => format!("\"emitter\":\"{name}\",\""),
                _ => format!("emitter={name} "),
            };
            untold.retain(|name| !told.contains(&pattern(name)));
            left -= 1;
            assert!(left > 0, "{untold:?} do not tell: {told}");
            std::thread::sleep(Duration::from_millis(50));
        }
        all_answers(&agent, http, &config);
        let told = fs::read_to_string(&log).unwrap();
        // What was repeated came through, but for what is secret.
        assert!(told.contains("(hidden)") && told.contains("authorization: (hidden)"), "{told}");
        agent.signal(libc::SIGTERM);
        assert_eq!(agent.ends_within(Duration::from_secs(20)).0, Some(0));
        tells_no_secret("its log", &fs::read(&log).unwrap());
        for entry in fs::read_dir(agent.folder.path().join("store")).unwrap() {
            let path = entry.unwrap().path();
            tells_no_secret(&path.display().to_string(), &fs::read(&path).unwrap());
        }
    }
}

#[test]
fn a_secret_in_a_wrong_place_is_refused_without_being_told() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("c.yaml");
    let otlp = |what: &str| format!("emitters: [{{type: otlp, {what}}}]");
    for yaml in [
        otlp("headers: {authorization: [geheim]}"),
        otlp("headers: {authorization: {geheim}}"),
        otlp("headers: {authorization: {{ geheim }}}"),
        otlp("headers: {authorization: {value: geheim}}"),
        otlp("headers: {authorization: {file: [geheim]}}"),
        otlp("headers: {authorization: {file: geheim}}"),
        otlp("headers: {authorization: {env: \"Bearer geheim\"}}"),
        otlp("headers: {authorization: {file: /a, env: geheim}}"),
        otlp("headers: {authorization: \"geheim\\n\"}"),
        otlp("headers: {authorization: *geheim}"),
        otlp("headers: {authorization: \"\\qgeheim\"}"),
        otlp("headers: {\"Bearer geheim\": x}"),
        otlp("headers: {\"Bearer geheim\": [x]}"),
        otlp("headers: \"authorization=Bearer geheim\""),
        otlp("headers: [{authorization: geheim}]"),
        otlp("authorization: geheim"),
        otlp("endpoint: \"https://me:geheim@host\""),
        otlp("endpoint: \"me:geheim@host:4317\""),
        otlp("endpoint: \"https://host?key=geheim\""),
        otlp("endpoint: \"https://host/geheim\""),
        otlp("protocol: \"https://me:geheim@host\""),
        otlp("tls: \"-----BEGIN PRIVATE KEY-----\\ngeheim\""),
        otlp("tls: {cert: /c, key: \"-----BEGIN PRIVATE KEY-----\\ngeheim\"}"),
        otlp("tls: {cert: /c, key: [geheim]}"),
        "emitters: [{type: polku, endpoint: \"https://me:geheim@host\"}]".to_owned(),
        "emitters: [\"otlp=https://me:geheim@host\"]".to_owned(),
        "authorization: geheim".to_owned(),
    ] {
        fs::write(&config, &yaml).unwrap();
        for arguments in [&["config", "check"][..], &["run", "--config"], &["doctor", "--config"]] {
            let output = Command::new(BINARY).args(arguments).arg(&config).output().unwrap();
            assert_eq!(output.status.code(), Some(64), "{yaml}: {output:?}");
            let told = [output.stdout, output.stderr].concat();
            assert!(!String::from_utf8_lossy(&told).contains("geheim"), "{yaml}: {told:?}");
        }
    }
    let key = "-----BEGIN PRIVATE KEY-----\ngeheim";
    for (arguments, variables) in [
        (&["--emit", "otpl=https://me:geheim@host"][..], &[][..]),
        (&["--emit", "otlp=https://me:geheim@host"], &[]),
        (&["--emit", "polku=me:geheim@host"], &[]),
        (&["--http", "http://me:geheim@host"], &[]),
        (&[], &[("VAHTI_EMIT", "otpl=me:geheim@host")]),
        (&[], &[("VAHTI_EMIT", "otlp=https://host?geheim")]),
        (&[], &[("VAHTI_HTTP", "https://me:geheim@host")]),
        (&["--emit", "otlp=http://a"], &[("OTEL_EXPORTER_OTLP_HEADERS", "geheim")]),
        (&["--emit", "otlp=http://a"], &[("OTEL_EXPORTER_OTLP_HEADERS", "Bearer geheim=x")]),
        (&["--emit", "otlp=http://a"], &[("OTEL_EXPORTER_OTLP_CLIENT_KEY", key)]),
    ] {
        let mut command = Command::new(BINARY);
        command.arg("run").args(arguments).envs(variables.iter().copied());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{arguments:?} {variables:?}: {output:?}");
        let told = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!told.contains("geheim") && told.contains("must be"), "{told}");
    }
}
