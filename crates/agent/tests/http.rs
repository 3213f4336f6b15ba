//! Metrics and health of an agent that runs on this machine's kernel, asked as
//! probes and Prometheus ask. Needs the rights to load programs; says so where
//! they are missing.

// Helpers outside test functions fail as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use vahti_runtime::testing::not_run;

#[path = "http/scrape.rs"]
mod scrape;

const BINARY: &str = env!("CARGO_BIN_EXE_vahti");
const PATIENCE: Duration = Duration::from_secs(20);

/// A process of ours, ended with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

struct Agent {
    process: Process,
    folder: tempfile::TempDir,
    address: SocketAddr,
}

/// A port that nobody listens on now.
fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Agent {
    /// Starts one and waits until it is ready; `None`, having said why, where
    /// the rights are missing.
    fn start(arguments: &[&str]) -> Option<Self> {
        let mut agent = Self::spawn(free_port(), arguments);
        let begun = Instant::now();
        while agent.get("/readyz").is_none_or(|answer| !answer.is_ok()) {
            if let Some(status) = agent.process.0.try_wait().unwrap() {
                let mut told = String::new();
                agent.process.0.stderr.take().unwrap().read_to_string(&mut told).unwrap();
                assert_eq!(status.code(), Some(77), "{told}");
                not_run(format_args!("{told}"));
                return None;
            }
            assert!(begun.elapsed() < PATIENCE, "{:?}", agent.get("/readyz"));
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(agent)
    }

    fn spawn(address: SocketAddr, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let is_configured = arguments.contains(&"--config");
        let emit: &[&str] = if is_configured { &[] } else { &["--emit", "none"] };
        let child = Command::new(BINARY)
            .args(["run", "--http", &address.to_string(), "--socket"])
            .arg(folder.path().join("s"))
            .args(emit)
            .args(arguments)
            .env("VAHTI_STORE", folder.path().join("store"))
            .env_remove("VAHTI_CONFIG")
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Agent { process: Process(child), folder, address }
    }

    /// What it answers; `None` if it does not listen yet.
    fn get(&self, path: &str) -> Option<Answer> {
        ask(self.address, path, "*/*")
    }

    fn health(&self, arguments: &[&str]) -> Output {
        let socket = self.folder.path().join("s");
        let mut command = Command::new(BINARY);
        command.arg("health").args(arguments).arg("--socket").arg(socket).output().unwrap()
    }
}

#[derive(Debug)]
struct Answer {
    head: String,
    body: String,
}

impl Answer {
    fn is_ok(&self) -> bool {
        self.head.starts_with("HTTP/1.1 200 ")
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

fn ask(address: SocketAddr, path: &str, accept: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).ok()?;
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: a\r\naccept: {accept}\r\nconnection: close\r\n\r\n");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some(Answer { head: head.to_owned(), body: body.to_owned() })
}

/// Has a connection refused.
fn refuse() {
    let refused = TcpStream::connect(free_port()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

/// The value of a series in Prometheus text, by how its line begins.
fn value(metrics: &str, series: &str) -> Option<f64> {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series))?;
    line.trim().parse().ok()
}

#[test]
fn an_agent_that_watches_is_alive_ready_and_healthy_and_says_so_everywhere() {
    let Some(agent) = Agent::start(&[]) else { return };
    let get = |path: &str| agent.get(path).unwrap();
    assert_eq!(get("/livez").body, "ok\n");
    assert_eq!(get("/readyz").body, "ok\n");
    assert_eq!(
        get("/readyz?verbose").body,
        "[+]network ok\n[+]container ok\n[+]configuration ok: generation 1\nok\n"
    );
    let alive = get("/livez?verbose").body;
    assert_eq!(alive, "[+]supervisor ok\n[+]store ok\n[+]none ok\nok\n");
    let health = get("/health").json();
    assert_ne!(health["status"], "unhealthy", "{health}");
    let network = get("/health/network").json();
    assert_eq!(network["observer"], "network");
    for key in ["status", "reason", "last_check", "events", "drops", "uptime_seconds"] {
        assert!(network.get(key).is_some(), "{key}: {network}");
    }
    assert!(get("/health/nobody").head.starts_with("HTTP/1.1 404"));
    let told = agent.health(&[]);
    assert_eq!(told.status.code(), Some(0), "{told:?}");
    let text = String::from_utf8(told.stdout).unwrap();
    assert!(text.contains("\n  observer network "), "{text}");
    let json = agent.health(&["--live", "--json"]);
    assert_eq!(json.status.code(), Some(0), "{json:?}");
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&json["live"], &json["ready"]), (&true.into(), &true.into()));
}

#[test]
fn nobody_is_ready_where_nobody_runs() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    for live in [&[][..], &["--live"]] {
        let mut command = Command::new(BINARY);
        let output = command.arg("health").args(live).arg("--socket").arg(&socket).output();
        assert_eq!(output.unwrap().status.code(), Some(1));
    }
}

#[test]
fn every_metric_of_the_page_is_there_and_a_fault_is_counted() {
    // Its spans have a metric, whether or not anybody is there.
    let otlp = ["--emit", "otlp=http://127.0.0.1:9"];
    let Some(agent) = Agent::start(&otlp) else { return };
    let page = include_str!("../../../docs/metrics.md");
    let (_, table) = page.split_once("## All metrics").unwrap();
    let (table, _) = table.split_once("## All labels").unwrap();
    let names: Vec<&str> =
        table.lines().filter_map(|row| row.strip_prefix("| `")?.split('`').next()).collect();
    let metrics = agent.get("/metrics").unwrap().body;
    for name in &names {
        let series = |line: &&str| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ', '_']))
        };
        assert!(metrics.lines().any(|line| series(&line)), "{name}: {metrics}");
    }
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let ends = ["", "_bucket", "_sum", "_count"];
        let is_known =
            ends.iter().any(|end| name.strip_suffix(end).is_some_and(|name| names.contains(&name)));
        assert!(is_known, "{name} is not in the page");
    }
    let series = "vahti_events_seen_total{observer=\"network\",type=\"network\",\
                  subtype=\"connection_refused\",severity=\"error\",outcome=\"failure\"}";
    let before = value(&metrics, series).expect(series);
    refuse();
    let arrived = "vahti_event_latency_seconds_count{emitter=\"none\",stage=\"delivered\"}";
    let begun = Instant::now();
    loop {
        let metrics = agent.get("/metrics").unwrap().body;
        if value(&metrics, series) > Some(before) && value(&metrics, arrived) > Some(0.0) {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{metrics}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let open = ask(agent.address, "/metrics", "application/openmetrics-text").unwrap();
    assert!(open.head.contains("application/openmetrics-text"), "{}", open.head);
    assert!(open.body.ends_with("\n# EOF\n"));
}

#[test]
fn a_configuration_that_was_refused_is_told_and_makes_it_no_less_ready() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("vahti.yaml");
    let labels = |labels: &str| {
        format!("observers: {{network: {{metrics: {{allowed_labels: [{labels}]}}}}}}\n")
    };
    std::fs::write(&file, labels("type, subtype")).unwrap();
    let config = file.to_str().unwrap();
    let arguments = ["--observers", "network", "--config", config];
    let Some(agent) = Agent::start(&arguments) else { return };
    let reload = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let socket = agent.folder.path().join("s");
        Command::new(BINARY).args(["reload", "--socket"]).arg(socket).output().unwrap()
    };
    let metrics = || agent.get("/metrics").unwrap().body;
    let seen = |metrics: &str| {
        let lines = metrics.lines().filter(|line| line.starts_with("vahti_events_seen_total{"));
        let lines: Vec<_> = lines.map(str::to_owned).collect();
        let sum: f64 =
            lines.iter().map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum();
        (lines, sum)
    };
    (0..20).for_each(|_| refuse());
    let begun = Instant::now();
    while seen(&metrics()).1 < 20.0 {
        assert!(begun.elapsed() < PATIENCE, "{}", metrics());
        std::thread::sleep(Duration::from_millis(20));
    }
    let before = seen(&metrics());
    assert!(before.0[0].contains("subtype="), "{before:?}");
    let reloaded = reload(&labels("type"));
    assert_eq!(reloaded.status.code(), Some(0), "{reloaded:?}");
    let after = seen(&metrics());
    assert!(after.1 >= before.1, "{after:?} after {before:?}");
    assert!(after.0.iter().all(|line| !line.contains("subtype=")), "{after:?}");
    assert_eq!(reload("log: loud\n").status.code(), Some(1));
    let metrics = metrics();
    for (series, expected) in [
        ("vahti_config_generation", 2.0),
        ("vahti_config_last_reload_successful", 0.0),
        ("vahti_config_restart_needed", 0.0),
    ] {
        assert_eq!(value(&metrics, &format!("{series} ")), Some(expected), "{series}: {metrics}");
    }
    let refused = "vahti_config_reloads_total{result=\"refused\"} ";
    assert!(value(&metrics, refused) >= Some(1.0), "{metrics}");
    assert_eq!(agent.get("/readyz").unwrap().body, "ok\n");
    let verbose = agent.get("/readyz?verbose").unwrap().body;
    let note = "[+]configuration ok: generation 2; a new one was refused: ";
    assert!(verbose.contains(note) && verbose.contains(":1:6: log.level is "), "{verbose}");
    let health = agent.get("/health").unwrap();
    assert!(health.is_ok());
    let health = health.json();
    assert_eq!(health["configuration"]["generation"], 2, "{health}");
    assert_eq!(health["configuration"]["last_reload_successful"], false, "{health}");
    let told = agent.health(&[]);
    assert_eq!(told.status.code(), Some(0), "{told:?}");
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("config   generation 2"), "{told}");
}

#[test]
fn slow_clients_hold_up_no_probe() {
    let Some(agent) = Agent::start(&["--observers", "network"]) else { return };
    let mut slow = Vec::new();
    for n in 0..100 {
        let mut stream = TcpStream::connect(agent.address).unwrap();
        let request: &[u8] = if n % 2 == 0 { b"GET /met" } else { b"GET /metrics HTTP/1.1\r\n" };
        // It may have had to give way already.
        drop(stream.write_all(request));
        slow.push(stream);
    }
    let begun = Instant::now();
    for _ in 0..20 {
        assert!(agent.get("/livez").unwrap().is_ok());
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn a_port_that_is_taken_stops_nobody_from_watching() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut agent = Agent::spawn(taken.local_addr().unwrap(), &["--observers", "network"]);
    let begun = Instant::now();
    while agent.health(&[]).status.code() != Some(0) {
        if agent.process.0.try_wait().unwrap().is_some_and(|status| status.code() == Some(77)) {
            not_run("rights are missing");
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{:?}", agent.health(&[]));
        std::thread::sleep(Duration::from_millis(20));
    }
    // Once it is free, it is used.
    drop(taken);
    while agent.get("/livez").is_none_or(|answer| !answer.is_ok()) {
        assert!(begun.elapsed() < 2 * PATIENCE, "it does not listen");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn promtool_finds_nothing_wrong() {
    let Some(agent) = Agent::start(&[]) else { return };
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/prometheus/vahti.rules.yml");
    match Command::new("promtool").args(["check", "rules", rules]).output() {
        Err(error) => return not_run(format_args!("promtool: {error}")),
        Ok(output) => assert!(output.status.success(), "{output:?}"),
    }
    let metrics = agent.get("/metrics").unwrap().body;
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut promtool = promtool.unwrap();
    promtool.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_real_prometheus_scrapes_it_and_takes_the_rules() {
    if let Err(error) = Command::new("prometheus").arg("--version").output() {
        return not_run(format_args!("prometheus: {error}"));
    }
    let Some((agent, _config)) = scrape::agent() else { return };
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/prometheus/vahti.rules.yml");
    let config = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [\"{rules}\"]\n\
         scrape_configs: [{{job_name: vahti, static_configs: [{{targets: [\"{}\"]}}]}}]\n",
        agent.address
    );
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("c.yml"), config).unwrap();
    let address = free_port();
    let child = Command::new("prometheus")
        .arg(format!("--config.file={}", folder.path().join("c.yml").display()))
        .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
        .arg(format!("--web.listen-address={address}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _prometheus = Process(child.unwrap());
    let found = |query: &str| {
        let answer = ask(address, &format!("/api/v1/query?query={query}"), "*/*");
        // It may begin to listen before it answers, and answer in chunks.
        answer.is_some_and(|a| a.is_ok() && a.body.contains("\"value\":["))
    };
    let all = [
        "up==1",
        "vahti_observer_up==1",
        "vahti_event_latency_seconds_count",
        "process_open_fds",
        "vahti_log_lines_total",
        // It takes a while to be one, but it has begun.
        "ALERTS%7Balertname=%22VahtiEmitterDown%22,emitter=%22down%22,alertstate=%22pending%22%7D",
    ];
    let begun = Instant::now();
    while !all.iter().all(|query| found(query)) {
        refuse();
        assert!(begun.elapsed() < 3 * PATIENCE, "{:?}", ask(address, "/api/v1/targets", "*/*"));
        std::thread::sleep(Duration::from_millis(200));
    }
    let rules = ask(address, "/api/v1/rules", "*/*").unwrap().body;
    assert!(rules.contains("NodeOomKill"), "{rules}");
}
