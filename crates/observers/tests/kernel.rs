//! The observers on a real kernel: faults made here, and exactly the events
//! that they must give. Needs root and BTF; says so where it has not got them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends so")]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use aya::maps::{HashMap, PerCpuArray, PerCpuValues};
use vahti_ebpf::cgroup::Hierarchy;
use vahti_ebpf::ledger::RingLedger;
use vahti_ebpf::loader::{Object, open};
use vahti_ebpf::manager::AyaManager;
use vahti_ebpf::source::RingSource;
use vahti_observers::container::{self, ContainerProcessor};
use vahti_observers::network::{self, NetworkProcessor};
use vahti_runtime::ebpf::EbpfManager as _;
use vahti_runtime::event::{
    CONNECTION_ABANDONED, CONNECTION_REFUSED, CONNECTION_RESET, CONNECTION_TIMEOUT,
    CONNECTION_UNREACHABLE, CONTAINER_EXIT, Event, EventData, EventKind, OOM_KILL, PROCESS_CRASH,
};
use vahti_runtime::ids::BootId;
use vahti_runtime::processor::{EventProcessor, Output};
use vahti_runtime::source::{RecordBatch, Source as _, SourceCounts, SourceLedger as _};
use vahti_runtime::testing::not_run;

/// What all tests of this file share: both observers, and what they told.
struct Watch {
    ledgers: Vec<Arc<RingLedger>>,
    /// Records that were read, by ledger.
    received: Vec<Arc<AtomicU64>>,
    events: &'static Mutex<Vec<Event>>,
}

static EVENTS: Mutex<Vec<Event>> = Mutex::new(Vec::new());
static WATCH: LazyLock<Result<Watch, String>> = LazyLock::new(watch);

/// The watch, or `None` after telling why there is none.
fn watching() -> Option<&'static Watch> {
    match &*WATCH {
        Ok(watch) => Some(watch),
        Err(why) => {
            not_run(why);
            None
        }
    }
}

fn watch() -> Result<Watch, String> {
    let hierarchy = Hierarchy::detect();
    let opened = match open(&[network::OBJECT, container::OBJECT], hierarchy) {
        Ok(opened) => opened,
        Err(error) if is_for_lack_of(&error) => return Err(error.to_string()),
        Err(error) => panic!("{error}"),
    };
    let mut opened = opened.into_iter().map(Result::unwrap);
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let boot = BootId::parse(&boot).unwrap();
    let network = network::source(opened.next().unwrap()).unwrap();
    let container = container::source(opened.next().unwrap(), hierarchy).unwrap();
    let ledgers = vec![network.ring_ledger(), container.ring_ledger()];
    let received = vec![
        follow(network, NetworkProcessor::new(boot, hierarchy.version)),
        follow(container, ContainerProcessor::new(boot, hierarchy.version)),
    ];
    Ok(Watch { ledgers, received, events: &EVENTS })
}

/// An object of a test's own, not yet loaded; `None` after telling why.
fn opened(object: Object) -> Option<AyaManager> {
    match open(&[object], Hierarchy::detect()) {
        Ok(mut opened) => Some(opened.remove(0).unwrap()),
        Err(error) if is_for_lack_of(&error) => {
            not_run(error);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn is_for_lack_of(error: &vahti_ebpf::EbpfError) -> bool {
    error.is_permission() || matches!(error, vahti_ebpf::EbpfError::NoKernelBtf { .. })
}

fn follow(mut source: RingSource, processor: impl EventProcessor + 'static) -> Arc<AtomicU64> {
    source.start().unwrap();
    let received = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&received);
    std::thread::spawn(move || {
        let mut batch = RecordBatch::new(256, 1 << 20);
        loop {
            batch.clear();
            source.read(&mut batch, None).unwrap();
            for record in batch.iter() {
                if let Output::One(event) = processor.process(record).unwrap() {
                    EVENTS.lock().unwrap().push(event);
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    received
}

impl Watch {
    fn matching(&self, wanted: impl Fn(&Event) -> bool) -> Vec<Event> {
        let events = self.events.lock().unwrap();
        events.iter().filter(|e| wanted(e)).cloned().collect()
    }

    /// Waits for as many events, then a moment more for those that must not
    /// come.
    #[track_caller]
    fn expect(&self, count: usize, wanted: impl Fn(&Event) -> bool) -> Vec<Event> {
        let begin = Instant::now();
        while self.matching(&wanted).len() < count && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(50));
        let found = self.matching(&wanted);
        assert_eq!(found.len(), count, "{found:#?}");
        self.expect_exact();
        found
    }

    /// Both observers' counters add up as soon as nothing moves, and nothing
    /// was lost: that is why the numbers of events can be exact.
    #[track_caller]
    fn expect_exact(&self) {
        for (ledger, received) in self.ledgers.iter().zip(&self.received) {
            let begin = Instant::now();
            loop {
                // Other tests go on: what is read in between is no difference.
                let before = received.load(Ordering::Relaxed);
                let counts = ledger.counts();
                let after = received.load(Ordering::Relaxed);
                assert_eq!(counts.lost, 0, "{counts:?}");
                if before == after && adds_up(&counts, after) {
                    break;
                }
                assert!(begin.elapsed() < Duration::from_secs(10), "{counts:?}, read {after}");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

fn adds_up(counts: &SourceCounts, received: u64) -> bool {
    let SourceCounts { attempted, submitted, lost, in_ring, .. } = *counts;
    attempted == submitted + lost && submitted == received + in_ring
}

fn peer_port(event: &Event) -> Option<u16> {
    match &event.data {
        EventData::Network(network) => network.peer.port,
        _ => None,
    }
}

fn local_port(event: &Event) -> Option<u16> {
    match &event.data {
        EventData::Network(network) => network.local.port,
        _ => None,
    }
}

fn is_of(event: &Event, pid: u32) -> bool {
    event.process.and_then(|p| p.pid) == Some(pid)
}

#[track_caller]
fn all_are(events: &[Event], kind: &'static EventKind, pid: u32, name: &[u8]) {
    for event in events {
        assert_eq!(event.kind, kind, "{event:#?}");
        assert!(is_of(event, pid), "{event:#?}");
        let found = event.process.and_then(|p| p.name).unwrap();
        assert_eq!(found.as_bytes(), name, "{event:#?}");
        assert!(event.cgroup.is_some() && event.unresolved.is_none(), "{event:#?}");
    }
}

fn own_name() -> Vec<u8> {
    let name = std::fs::read("/proc/self/comm").unwrap();
    name.strip_suffix(b"\n").unwrap().to_vec()
}

/// A port that is ours and where nobody listens.
fn closed_port(address: std::net::IpAddr) -> (OwnedFd, SocketAddr) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let peer = listener.local_addr().unwrap();
    drop(listener);
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: takes no pointers; the descriptor is owned by nobody else.
    let holder = unsafe { OwnedFd::from_raw_fd(libc::socket(family, libc::SOCK_STREAM, 0)) };
    (holder, peer)
}

fn set_option<T>(socket: &impl std::os::fd::AsRawFd, level: i32, name: i32, value: T) {
    // SAFETY: `value` is readable for its own size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn reset_on_close(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set_option(stream, libc::SOL_SOCKET, libc::SO_LINGER, linger);
}

#[test]
fn every_probe_proves_itself() {
    let Some(watch) = watching() else { return };
    let begin = Instant::now();
    let too_old = |complaint: &String| complaint.contains(" needs Linux ");
    let degraded = || -> Vec<String> {
        let complaints = watch.ledgers.iter().flat_map(|l| l.degraded());
        complaints.filter(|c| !too_old(c)).collect()
    };
    while !degraded().is_empty() && begin.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(degraded(), Vec::<String>::new());
}

#[test]
fn a_thousand_refused_connects_are_a_thousand_events() {
    let Some(watch) = watching() else { return };
    for address in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        let (_holder, peer) = closed_port(address);
        for _ in 0..1000 {
            assert!(TcpStream::connect(peer).is_err());
        }
        let to_peer = |e: &Event| peer_port(e) == Some(peer.port());
        let events = watch.expect(1000, to_peer);
        all_are(&events, &CONNECTION_REFUSED, std::process::id(), &own_name());
        for event in events {
            let EventData::Network(network) = event.data else { panic!("{event:?}") };
            assert_eq!(network.peer.address, Some(address));
            assert!(event.duration_ns.unwrap() < 1_000_000_000);
        }
    }
}

/// Kernels before 6.1 run a program that a softirq has just interrupted. That
/// can't be made to happen; the state that the second run finds can.
#[test]
fn who_interrupts_a_record_is_counted_as_lost_and_tears_nothing() {
    let Some(mut manager) = opened(network::OBJECT) else { return };
    manager.attach_raw_tracepoint("connection_end", "inet_sock_set_state").unwrap();
    let slot = network::PROBES.iter().find(|p| p.program == "connection_end").unwrap().slot;
    let mut busy: PerCpuArray<_, [u32; 2]> = manager.map("busy").unwrap().try_into().unwrap();
    let stats: PerCpuArray<_, [u64; 3]> = manager.per_cpu_array("stats").unwrap();
    let counts = || {
        let cpus = stats.get(&slot, 0).unwrap();
        cpus.iter().fold([0; 3], |sum, cpu| [0, 1, 2].map(|i| sum[i] + cpu[i]))
    };
    let cpus = stats.get(&slot, 0).unwrap().len();
    let (_holder, peer) = closed_port(Ipv4Addr::LOCALHOST.into());
    for (in_use, lost) in [(1, 1), (0, 0)] {
        let row = PerCpuValues::try_from(vec![[in_use, 0]; cpus]).unwrap();
        busy.set(slot, row, 0).unwrap();
        let before = counts();
        assert!(TcpStream::connect(peer).is_err());
        let after = counts();
        let [submitted, now_lost] = [1, 2].map(|i| after[i] - before[i]);
        // Tests beside this one fail connections too.
        assert_eq!((submitted == 0, now_lost > 0), (lost == 1, lost == 1));
    }
}

#[test]
fn a_manager_reads_until_it_is_told_to_stop() {
    let Some(mut manager) = opened(network::OBJECT) else { return };
    manager.open_ring_buffer("ring").unwrap();
    manager.attach_raw_tracepoint("connection_end", "inet_sock_set_state").unwrap();
    let (trigger, shutdown) = vahti_runtime::shutdown::channel();
    let (tell, told) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || {
        let mut told = |record: &[u8]| tell.send(record.len()).unwrap_or_default();
        manager.read_events(&shutdown, &mut told).unwrap();
    });
    let (_holder, peer) = closed_port(Ipv4Addr::LOCALHOST.into());
    for _ in 0..3 {
        assert!(TcpStream::connect(peer).is_err());
        assert!(told.recv_timeout(Duration::from_secs(5)).unwrap() > 0);
    }
    trigger.begin();
    reading.join().unwrap();
}

#[test]
fn a_thousand_resets_of_each_family_are_told_to_whom_they_happen_and_only_once() {
    let Some(watch) = watching() else { return };
    for address in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        let listener = TcpListener::bind::<(std::net::IpAddr, u16)>((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        for connecting_side_resets in [true, false] {
            for _ in 0..1000 {
                let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                let (mut accepted, _) = listener.accept().unwrap();
                client.write_all(b"?").unwrap();
                accepted.read_exact(&mut [0]).unwrap();
                let (resets, is_reset) =
                    if connecting_side_resets { (client, accepted) } else { (accepted, client) };
                reset_on_close(&resets);
                drop(resets);
                drop(is_reset);
            }
            let own_port = if connecting_side_resets { local_port } else { peer_port };
            let events = watch.expect(1000, |e| own_port(e) == Some(port));
            all_are(&events, &CONNECTION_RESET, std::process::id(), &own_name());
        }
    }
}

#[test]
fn connections_that_end_in_order_are_no_events() {
    let Some(watch) = watching() else { return };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    for _ in 0..100 {
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        client.write_all(b"?").unwrap();
        accepted.read_exact(&mut [0]).unwrap();
        accepted.write_all(b"!").unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
    watch.expect(0, |e| peer_port(e) == Some(port) || local_port(e) == Some(port));
}

/// A listener that answers nobody: its queue is full.
fn silent() -> (TcpListener, Vec<TcpStream>, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    // SAFETY: takes no pointers. A second listen() changes the length of the queue.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let peer = listener.local_addr().unwrap();
    let filling = vec![TcpStream::connect(peer).unwrap()];
    (listener, filling, peer)
}

/// Begins to connect and does not wait.
fn begin_connect(peer: SocketAddr, syn_retries: i32) -> OwnedFd {
    let SocketAddr::V4(v4) = peer else { panic!("{peer}") };
    // SAFETY: takes no pointers; the descriptor is owned by nobody else.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0);
        OwnedFd::from_raw_fd(fd)
    };
    set_option(&socket, libc::IPPROTO_TCP, libc::TCP_SYNCNT, syn_retries);
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: v4.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: `address` is readable for its own size.
    unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        );
    }
    socket
}

#[test]
fn a_client_that_gives_up_at_once_is_no_event_and_later_it_is_one() {
    let Some(watch) = watching() else {
        return;
    };
    let (_listener, _filling, peer) = silent();
    let to_peer = |e: &Event| peer_port(e) == Some(peer.port());
    for _ in 0..100 {
        drop(begin_connect(peer, 3));
    }
    watch.expect(0, to_peer);
    let patient: Vec<OwnedFd> = (0..10).map(|_| begin_connect(peer, 3)).collect();
    // The first SYN is sent again after a second (TCP_TIMEOUT_INIT).
    std::thread::sleep(Duration::from_millis(1500));
    drop(patient);
    let events = watch.expect(10, to_peer);
    all_are(&events, &CONNECTION_ABANDONED, std::process::id(), &own_name());
}

#[test]
fn a_peer_that_never_answers_is_a_timeout() {
    let Some(watch) = watching() else { return };
    let (_listener, _filling, peer) = silent();
    let sockets: Vec<OwnedFd> = (0..10).map(|_| begin_connect(peer, 1)).collect();
    let events = watch.expect(10, |e| peer_port(e) == Some(peer.port()));
    drop(sockets);
    all_are(&events, &CONNECTION_TIMEOUT, std::process::id(), &own_name());
    for event in events {
        assert!(event.duration_ns.unwrap() > 1_000_000_000, "{event:#?}");
    }
}

#[test]
fn a_peer_without_a_route_is_unreachable() {
    let Some(watch) = watching() else { return };
    const PORT: u16 = 4711;
    let connecting = std::thread::spawn(|| {
        // SAFETY: takes no pointers; only this thread moves.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        raise_loopback()?;
        for _ in 0..100 {
            let error = TcpStream::connect((Ipv4Addr::new(192, 0, 2, 1), PORT)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH));
        }
        Ok(())
    });
    if let Err(error) = connecting.join().unwrap() {
        not_run(error.to_string());
        return;
    }
    // Others on this machine may try the same port.
    let own = std::process::id();
    let events = watch.expect(100, |e| peer_port(e) == Some(PORT) && is_of(e, own));
    all_are(&events, &CONNECTION_UNREACHABLE, std::process::id(), &own_name());
}

/// Gives a fresh network namespace its first routes: before, it has no table
/// in which one could be missing.
fn raise_loopback() -> std::io::Result<()> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: an ifreq is plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: `request` is valid for the length of the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Runs a role of this file in a process of its own.
fn helper(role: &str, argument: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "plays_a_role", "--nocapture"])
        .env("VAHTI_TEST_ROLE", role)
        .env("VAHTI_TEST_ARGUMENT", argument)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

/// Not a test: what the helpers of the others do.
#[test]
fn plays_a_role() {
    let Ok(role) = std::env::var("VAHTI_TEST_ROLE") else { return };
    let argument = std::env::var("VAHTI_TEST_ARGUMENT").unwrap();
    match role.as_str() {
        "connect" => {
            let port: u16 = argument.parse().unwrap();
            assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
            std::process::exit(0);
        }
        "exit" => {
            enter(Path::new(&argument));
            for _ in 0..8 {
                std::thread::spawn(|| std::thread::sleep(Duration::from_secs(60)));
            }
            std::process::exit(2);
        }
        "hunger" => {
            enter(Path::new(&argument));
            let mut eaten = Vec::new();
            loop {
                eaten.push(vec![1_u8; 1 << 20]);
                std::hint::black_box(&eaten);
            }
        }
        role => panic!("{role}"),
    }
}

fn enter(cgroup: &Path) {
    std::fs::write(cgroup.join("cgroup.procs"), "0").unwrap();
}

#[test]
fn processes_that_live_for_one_connect_are_all_named() {
    let Some(watch) = watching() else { return };
    let (_holder, peer) = closed_port(Ipv4Addr::LOCALHOST.into());
    let port = peer.port().to_string();
    let mut pids: Vec<u32> = Vec::new();
    for _ in 0..60 {
        let mut child = helper("connect", &port);
        pids.push(child.id());
        assert!(child.wait().unwrap().success());
    }
    let events = watch.expect(60, |e| peer_port(e) == Some(peer.port()));
    let mut told: Vec<u32> = events.iter().map(|e| e.process.unwrap().pid.unwrap()).collect();
    told.sort_unstable();
    pids.sort_unstable();
    assert_eq!(told, pids);
}

#[test]
fn a_crash_is_told_once_with_its_sender() {
    let Some(watch) = watching() else { return };
    let script = "ulimit -c 0; sleep 60 & echo $!; kill -SEGV $!; wait; :";
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).stdout(std::process::Stdio::piped());
    let shell = shell.spawn().unwrap();
    let sender = shell.id();
    let output = shell.wait_with_output().unwrap();
    let victim: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    let events = watch.expect(1, |e| is_of(e, victim));
    assert_eq!(events[0].kind, &PROCESS_CRASH);
    let EventData::Exit(exit) = events[0].data else { panic!("{events:?}") };
    assert_eq!(exit.signal.unwrap().to_string(), "SIGSEGV");
    assert_eq!(exit.sender.unwrap().pid, sender);
}

/// Runs a script that says when it is ready; then sends it SIGABRT, and tells
/// it to go on.
fn aborted_by_itself(script: &str) -> u32 {
    let mut shell = Command::new("sh")
        .args(["-c", script])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 2];
    shell.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    // SAFETY: takes no pointers; the child was not waited for yet.
    assert_eq!(unsafe { libc::kill(shell.id() as libc::pid_t, libc::SIGABRT) }, 0);
    shell.stdin.as_mut().unwrap().write_all(b"on\n").unwrap();
    shell.wait().unwrap();
    shell.id()
}

#[test]
fn who_sent_a_signal_that_was_lived_through_is_not_who_sent_the_last() {
    let Some(watch) = watching() else { return };
    let handled = "ulimit -c 0; trap 'caught=1' ABRT; echo +; \
                   while [ -z \"$caught\" ]; do sleep 0.01; done; trap - ABRT; kill -ABRT $$";
    let ignored = "ulimit -c 0; trap '' ABRT; echo +; read go; trap - ABRT; kill -ABRT $$";
    for script in [handled, ignored] {
        let pid = aborted_by_itself(script);
        let events = watch.expect(1, |e| is_of(e, pid));
        assert_eq!(events[0].kind, &PROCESS_CRASH);
        let EventData::Exit(exit) = events[0].data else { panic!("{events:?}") };
        assert_eq!(exit.signal.unwrap().to_string(), "SIGABRT");
        assert_eq!(exit.sender, None, "{script}");
    }
}

#[test]
fn ordinary_ends_are_no_events() {
    let Some(watch) = watching() else { return };
    let mut pids = Vec::new();
    for script in ["exit 1", "kill -TERM $$", "kill -INT $$", "kill -PIPE $$", "kill -HUP $$"] {
        let mut child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        pids.push(child.id());
        child.wait().unwrap();
    }
    watch.expect(0, |e| pids.iter().any(|pid| is_of(e, *pid)));
}

/// A cgroup that is named as Docker names a container's; removed in the end.
struct FakeContainer {
    id: String,
    folder: PathBuf,
}

impl FakeContainer {
    fn new(fill: char) -> Option<Self> {
        let id: String = format!("{:08x}", std::process::id()).chars().chain([fill; 56]).collect();
        let Some(root) = memory_root() else {
            not_run("the memory cgroups are not mounted");
            return None;
        };
        let folder = root.join("docker").join(&id);
        if let Err(error) = std::fs::create_dir_all(&folder) {
            not_run(format!("{}: {error}", folder.display()));
            return None;
        }
        // Under v1 every cgroup has the controller of its hierarchy; under v2
        // the parents must hand it down.
        for parent in [root.clone(), root.join("docker")] {
            let control = parent.join("cgroup.subtree_control");
            if control.exists() {
                drop(std::fs::write(control, "+memory"));
            }
        }
        Some(FakeContainer { id, folder })
    }

    fn limit(&self, bytes: u64) {
        let (limit, swap) = match Hierarchy::detect().version {
            1 => ("memory.limit_in_bytes", None),
            _ => ("memory.max", Some("memory.swap.max")),
        };
        std::fs::write(self.folder.join(limit), bytes.to_string()).unwrap();
        if let Some(swap) = swap.map(|s| self.folder.join(s)).filter(|s| s.exists()) {
            std::fs::write(swap, "0").unwrap();
        }
    }

    fn run(&self, role: &str) -> u32 {
        let mut child = helper(role, self.folder.to_str().unwrap());
        let pid = child.id();
        child.wait().unwrap();
        pid
    }
}

impl Drop for FakeContainer {
    fn drop(&mut self) {
        // A process that has just ended may still be counted there.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.folder).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // Others may use the parent; then it stays.
        if let Some(parent) = self.folder.parent() {
            drop(std::fs::remove_dir(parent));
        }
    }
}

fn memory_root() -> Option<PathBuf> {
    let wanted = match Hierarchy::detect().version {
        1 => |kind: &str, options: &str| kind == "cgroup" && options.contains("memory"),
        _ => |kind: &str, _: &str| kind == "cgroup2",
    };
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        wanted(fields[2], fields[3]).then(|| PathBuf::from(fields[1]))
    })
}

#[test]
fn a_containers_first_process_with_eight_threads_ends_once() {
    let Some(watch) = watching() else { return };
    let Some(container) = FakeContainer::new('e') else { return };
    let pid = container.run("exit");
    let events = watch.expect(1, |e| is_of(e, pid));
    assert_eq!(events[0].kind, &CONTAINER_EXIT);
    assert_eq!(*events[0].container.as_ref().unwrap().id, *container.id);
    let EventData::Exit(exit) = events[0].data else { panic!("{events:?}") };
    assert_eq!((exit.code, exit.signal), (Some(2), None));
}

#[test]
fn who_comes_in_beside_others_is_not_taken_for_the_first() {
    let Some(mut manager) = opened(container::OBJECT) else { return };
    let Some(container) = FakeContainer::new('d') else { return };
    let sleeper = || {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        std::fs::write(container.folder.join("cgroup.procs"), child.id().to_string()).unwrap();
        child
    };
    let id = std::fs::metadata(&container.folder).unwrap().ino();
    let firsts: HashMap<_, u64, u32> = manager.map("firsts").unwrap().try_into().unwrap();
    let mut unseen = sleeper();
    manager.attach_raw_tracepoint("cgroup_attach", "cgroup_attach_task").unwrap();
    let mut later = sleeper();
    assert!(firsts.get(&id, 0).is_err(), "{:?}", firsts.get(&id, 0));
    for child in [&mut unseen, &mut later] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let mut alone = sleeper();
    let first = firsts.get(&id, 0);
    alone.kill().unwrap();
    alone.wait().unwrap();
    assert_eq!(first.unwrap(), alone.id());
}

#[test]
fn an_oom_kill_is_told_once_with_the_kernel_logs_figures_and_causes_the_exit() {
    let Some(watch) = watching() else { return };
    let Some(container) = FakeContainer::new('f') else { return };
    container.limit(64 << 20);
    let pid = container.run("hunger");
    let events = watch.expect(2, |e| is_of(e, pid));
    let [kill, exit] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((kill.kind, exit.kind), (&OOM_KILL, &CONTAINER_EXIT));
    assert_eq!(exit.parent_span_id, kill.span_id);
    assert_eq!(exit.trace_id, kill.trace_id);
    assert_eq!(*kill.container.as_ref().unwrap().id, *container.id);
    let EventData::OomKill(oom) = kill.data else { panic!("{kill:?}") };
    assert_eq!(oom.limit_bytes, Some(64 << 20));
    let log = match kernel_log() {
        Ok(log) => log,
        Err(error) => return not_run(format!("the figures: /dev/kmsg: {error}")),
    };
    let (usage, limit) = logged(&log, pid).expect("the kernel logs an OOM kill and its figures");
    assert!(oom.usage_bytes.unwrap().abs_diff(usage) <= 1 << 20, "{oom:?}, logged {usage}");
    assert!(oom.limit_bytes.unwrap().abs_diff(limit) <= 1 << 20, "{oom:?}, logged {limit}");
}

/// All that the kernel log holds, a line a record.
fn kernel_log() -> std::io::Result<String> {
    let mut options = std::fs::OpenOptions::new();
    let mut log = options.read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
    let (mut text, mut record) = (String::new(), [0; 8192]);
    loop {
        match log.read(&mut record) {
            Ok(len) => text.push_str(&String::from_utf8_lossy(&record[..len])),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(text),
            // It was overwritten meanwhile; the next read has the oldest that is left.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Usage and limit in bytes, as logged before the line that tells of this
/// victim.
fn logged(log: &str, victim: u32) -> Option<(u64, u64)> {
    let before = &log[..log.find(&format!("Killed process {victim} "))?];
    let line = before.lines().rev().find(|l| l.contains("memory: usage "))?;
    let kib = |key: &str| -> Option<u64> {
        let (_, rest) = line.split_once(key)?;
        rest.split_once("kB")?.0.parse().ok()
    };
    Some((kib("usage ")? * 1024, kib("limit ")? * 1024))
}
