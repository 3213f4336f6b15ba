//! Events per second from a lane to an OTLP receiver in another process that
//! only counts, by how much CPU time of the emitter's thread they took, and of
//! this whole process, which makes them.
//! `cargo xtask bench otlp` runs it.
#![allow(clippy::unwrap_used, reason = "a benchmark ends so")]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use tonic::codec::CompressionEncoding;
use vahti_exporters::otlp::{Compression, OtlpConfig, OtlpEmitter};
use vahti_runtime::config::Config;
use vahti_runtime::event::{
    Cgroup, Comm, Container, Endpoint, ErrorInfo, Event, EventData, EventKind, Network,
    NetworkType, Priority, Process, Severity, Transport,
};
use vahti_runtime::observer::ObserverRuntime;
use vahti_runtime::processor::{EventProcessor, Output, ProcessError, RawRecord, RecordKind};
use vahti_runtime::shutdown;
use vahti_runtime::units::ByteSize;

const ROUNDS: usize = 5;
const EVENTS: u64 = 300_000;

/// As a refused connection, which would fold.
static REFUSED: EventKind = EventKind::custom(
    "vahti.network.connection.refused",
    "network",
    "connection_refused",
    Priority::Normal,
);

fn main() {
    if std::env::args().any(|argument| argument == "--receive") {
        return receive();
    }
    println!("otlp over gRPC: events, all attributes, lane to receiver (median of {ROUNDS})");
    let rotel = rotel();
    for compression in [Compression::None, Compression::Gzip] {
        let (mut ours, mut whole, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
        let mut wall = Vec::new();
        let mut rss = 0;
        for _ in 0..ROUNDS {
            let mut receiver = Receiver::start();
            let took = round(compression, receiver.port);
            assert_eq!(receiver.count(), EVENTS, "all of them arrive");
            ours.push(EVENTS as f64 / took.from_lane);
            whole.push(EVENTS as f64 / took.whole);
            wall.push(EVENTS as f64 / took.wall);
            rss = rss.max(peak_kib());
            theirs.extend(rotel.as_ref().map(|rotel| EVENTS as f64 / forward(rotel, compression)));
        }
        let whole = median(whole);
        println!(
            "  {compression:?}: {:.0} events/s per core, with making them {whole:.0}, {:.0} by the \
             clock, RSS {:.1} MiB",
            median(ours),
            median(wall),
            rss as f64 / 1024.0
        );
        if !theirs.is_empty() {
            let theirs = median(theirs);
            println!(
                "    rotel, forwarding the same records: {theirs:.0} per core; {:.1} times",
                whole / theirs
            );
        }
    }
}

/// The collector that it is compared with, where it is installed.
fn rotel() -> Option<PathBuf> {
    let set = std::env::var_os("VAHTI_PYTHON").map(PathBuf::from);
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/receivers/bin/python");
    let find = "import rotel, os; print(os.path.dirname(rotel.__file__))";
    let found = Command::new(set.unwrap_or(here)).args(["-c", find]).output().ok()?;
    let folder = String::from_utf8(found.stdout).ok()?;
    found.status.success().then(|| Path::new(folder.trim()).join("rotel-agent"))
}

/// Has rotel forward all events, decoded and encoded once; its CPU time, in
/// seconds.
fn forward(rotel: &Path, compression: Compression) -> f64 {
    let mut receiver = Receiver::start();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let word = if compression == Compression::Gzip { "gzip" } else { "none" };
    let mut command = Command::new(rotel);
    command
        .args(["start", "--exporter", "otlp", "--disable-batching"])
        .args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{port}")])
        .args(["--otlp-exporter-compression", word])
        .args(["--otlp-exporter-endpoint", &format!("http://127.0.0.1:{}", receiver.port)])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let before = cpu_seconds_of(child.id());
    round(compression, port);
    let until = Instant::now() + Duration::from_secs(60);
    while receiver.so_far() < EVENTS && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = cpu_seconds_of(child.id()) - before;
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(receiver.count(), EVENTS, "all of them arrive");
    took
}

/// The CPU time of another process so far: fields 14 and 15 of its `stat`.
fn cpu_seconds_of(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |n: usize| fields[n].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / 100.0
}

/// Seconds of CPU time and of the clock.
struct Took {
    /// The emitter's thread: from the lane on.
    from_lane: f64,
    /// This process, which makes the events, too.
    whole: f64,
    wall: f64,
}

/// Sends all events.
fn round(compression: Compression, port: u16) -> Took {
    let config = OtlpConfig {
        compression: Some(compression),
        traces: Some(false),
        ..OtlpConfig::to(format!("http://127.0.0.1:{port}"))
    };
    let mut settings = Config::for_observer("bench");
    settings.backpressure.queue_size = 20_000;
    settings.backpressure.max_bytes = Some(ByteSize::mib(24));
    let observer = ObserverRuntime::builder(|| Refuses(example()))
        .config(settings)
        .emitter(move || OtlpEmitter::new("otlp", config.target().unwrap()))
        .build()
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (trigger, shutdown) = shutdown::channel();
    let took = runtime.block_on(async {
        let run = tokio::spawn(Arc::clone(&observer).run(shutdown));
        observer.started().await;
        let (start, cpu) = (Instant::now(), cpu_seconds());
        feed(&observer);
        while delivered(&observer) < EVENTS {
            std::thread::sleep(Duration::from_millis(1));
        }
        let took = Took {
            from_lane: emitter_seconds(),
            whole: cpu_seconds() - cpu,
            wall: start.elapsed().as_secs_f64(),
        };
        trigger.begin();
        run.await.unwrap().unwrap();
        took
    });
    assert!(observer.ledger().is_exact());
    took
}

fn delivered(observer: &ObserverRuntime) -> u64 {
    observer.ledger().lanes[0].delivered.envelopes
}

/// As fast as the lane empties; nothing is dropped.
fn feed(observer: &ObserverRuntime) {
    let mut made = 0;
    while made < EVENTS {
        while made - delivered(observer) > 8_000 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let records: Vec<RawRecord<'_>> = (made..EVENTS.min(made + 1_000))
            .map(|seq| RawRecord {
                kind: RecordKind::Kernel,
                boot_ns: seq + 1,
                wall_ns: 1_700_000_000_000_000_000 + seq,
                cpu: 0,
                seq,
                bytes: &[7; 64],
            })
            .collect();
        observer.process_batch(&records).unwrap();
        made += records.len() as u64;
    }
}

/// Tells the same of every record.
struct Refuses(Event);

impl EventProcessor for Refuses {
    fn name(&self) -> &str {
        "bench"
    }

    fn process(&self, _: RawRecord<'_>) -> Result<Output, ProcessError> {
        Ok(self.0.clone().into())
    }
}

/// A refused connection of a container, with everything that one has.
fn example() -> Event {
    let endpoint = |last, port| Endpoint {
        address: Some(std::net::Ipv4Addr::new(10, 42, 0, last).into()),
        port: Some(port),
    };
    let id = "4f1c2ab39d014f1c2ab39d014f1c2ab39d014f1c2ab39d014f1c2ab39d01abcd";
    Event {
        duration_ns: Some(70_000),
        outcome: vahti_runtime::event::Outcome::Failure,
        error: Some(ErrorInfo {
            code: "ECONNREFUSED".into(),
            message: "nobody listens there".into(),
            cause: None,
        }),
        process: Some(Process {
            pid: Some(4_242),
            name: Some(Comm::new(b"shop-frontend")),
            uid: Some(1_000),
            parent_pid: Some(4_200),
            start_ns: Some(1_700_000_000_000_000_000),
        }),
        cgroup: Some(Arc::new(Cgroup {
            id: 4_711,
            path: format!("/system.slice/docker-{id}.scope").into_bytes().into(),
            version: 2,
        })),
        container: Some(Arc::new(Container { id: id.into(), runtime: Some("docker") })),
        data: EventData::Network(Network {
            transport: Transport::Tcp,
            network_type: NetworkType::Ipv4,
            local: endpoint(7, 40_000),
            peer: endpoint(9, 5_432),
        }),
        ..Event::new(&REFUSED, Severity::Error)
    }
}

/// A receiver in a process of its own.
struct Receiver {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    port: u16,
}

impl Receiver {
    fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--receive").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let port = line(&mut output).parse().unwrap();
        Receiver { child, output, port }
    }

    /// How many records came so far.
    fn so_far(&mut self) -> u64 {
        writeln!(self.child.stdin.as_mut().unwrap()).unwrap();
        line(&mut self.output).parse().unwrap()
    }

    /// How many records came; ends it.
    fn count(&mut self) -> u64 {
        drop(self.child.stdin.take());
        let count = line(&mut self.output).parse().unwrap();
        self.child.wait().unwrap();
        count
    }
}

fn line(output: &mut impl BufRead) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// Tells how many came whenever it is asked with a line, and at the end of its
/// standard input.
fn receive() {
    let count = Arc::new(AtomicU64::new(0));
    let counting = Arc::clone(&count);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            println!("{}", listener.local_addr().unwrap().port());
            std::io::stdout().flush().unwrap();
            let service = LogsServiceServer::new(Counts(counting))
                .accept_compressed(CompressionEncoding::Gzip);
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
    });
    for _asked in std::io::stdin().lines() {
        println!("{}", count.load(Ordering::Relaxed));
    }
    println!("{}", count.load(Ordering::Relaxed));
}

struct Counts(Arc<AtomicU64>);

#[tonic::async_trait]
impl LogsService for Counts {
    async fn export(
        &self,
        request: tonic::Request<ExportLogsServiceRequest>,
    ) -> Result<tonic::Response<ExportLogsServiceResponse>, tonic::Status> {
        let logs = &request.get_ref().resource_logs;
        let records = logs.iter().flat_map(|r| &r.scope_logs).map(|s| s.log_records.len() as u64);
        self.0.fetch_add(records.sum(), Ordering::Relaxed);
        Ok(tonic::Response::new(ExportLogsServiceResponse::default()))
    }
}

/// The CPU time of this process so far.
fn cpu_seconds() -> f64 {
    // SAFETY: `usage` is plain memory of the right size, valid for the call.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &raw mut usage), 0);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// The CPU time of the emitter's thread, which each round starts: the first field of `schedstat`,
/// in nanoseconds.
fn emitter_seconds() -> f64 {
    let threads =
        std::fs::read_dir("/proc/self/task").unwrap().map(|thread| thread.unwrap().path());
    let name = |thread: &Path| std::fs::read_to_string(thread.join("comm")).unwrap_or_default();
    let emitter = threads.into_iter().find(|thread| name(thread).trim() == "emit-otlp").unwrap();
    let stat = std::fs::read_to_string(emitter.join("schedstat")).unwrap();
    stat.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// The most that this process had resident.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
