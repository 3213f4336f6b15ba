//! The faults, and how each is recognised.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vahti_runtime::event::{Event, EventData};

use super::unanswered;

/// A fault that can be made without harm.
pub(super) struct Fault {
    /// The subtype of its event.
    pub(super) subtype: &'static str,
    /// In words.
    pub(super) what: &'static str,
    /// Makes it.
    pub(super) make: fn() -> io::Result<Trace>,
}

/// What a fault's event must carry.
pub(super) enum Trace {
    /// A connection to this peer.
    Peer(SocketAddr),
    /// This process.
    Process(u32),
    /// This container.
    Container(String),
}

impl Trace {
    /// Whether the event is about this fault.
    pub(super) fn is_of(&self, event: &Event) -> bool {
        match self {
            Trace::Peer(peer) => match &event.data {
                EventData::Network(network) => {
                    let shown = &network.peer;
                    (shown.address, shown.port) == (Some(peer.ip()), Some(peer.port()))
                }
                _ => false,
            },
            Trace::Process(pid) => event.process.is_some_and(|p| p.pid == Some(*pid)),
            Trace::Container(id) => event.container.as_ref().is_some_and(|c| *c.id == **id),
        }
    }
}

/// In the order in which they are shown.
pub(super) const FAULTS: [Fault; 9] = [
    Fault {
        subtype: "connection_refused",
        what: "a connection over IPv4 to a port where nobody listens",
        make: || refused(Ipv4Addr::LOCALHOST.into()),
    },
    Fault {
        subtype: "connection_refused",
        what: "a connection over IPv6 to a port where nobody listens",
        make: || refused(Ipv6Addr::LOCALHOST.into()),
    },
    Fault { subtype: "connection_reset", what: "a connection that its peer resets", make: reset },
    Fault {
        subtype: "connection_unreachable",
        what: "a connection to where no route leads",
        make: || unanswered::unreachable().map(Trace::Peer),
    },
    Fault {
        subtype: "connection_abandoned",
        what: "a connection that is given up after a second without an answer",
        make: || unanswered::abandoned().map(Trace::Peer),
    },
    Fault {
        subtype: "connection_timeout",
        what: "a connection that nobody answers for three seconds",
        make: || unanswered::timeout().map(Trace::Peer),
    },
    Fault { subtype: "process_crash", what: "a process that ends by SIGSEGV", make: crash },
    Fault {
        subtype: "container_exit",
        what: "a container that ends with exit code 3",
        make: container_exit,
    },
    Fault {
        subtype: "oom_kill",
        what: "a container that asks for more than its 16 MiB",
        make: out_of_memory,
    },
];

fn refused(address: IpAddr) -> io::Result<Trace> {
    let listener = TcpListener::bind((address, 0))?;
    let peer = listener.local_addr()?;
    drop(listener);
    match TcpStream::connect(peer) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Trace::Peer(peer)),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other("somebody listens there after all")),
    }
}

fn reset() -> io::Result<Trace> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let mut client = TcpStream::connect(address)?;
    let (mut peer, _) = listener.accept()?;
    client.write_all(b"?")?;
    peer.read_exact(&mut [0])?;
    reset_on_close(&peer)?;
    drop(peer);
    match client.read(&mut [0]) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Trace::Peer(address)),
        other => Err(io::Error::other(format!("no reset came but {other:?}"))),
    }
}

fn reset_on_close(stream: &TcpStream) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: `linger` is readable for the length given.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of_val(&linger) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs a script in a grandchild: what befalls our own children is taken for
/// a proof of life, which is never shown.
fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", r#"sh -c "$1"; true"#, "sh", script]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn crash() -> io::Result<Trace> {
    let mut shell = shell("echo $$; ulimit -c 0; kill -SEGV $$");
    let output = shell.stdout(Stdio::piped()).output()?;
    let pid = String::from_utf8_lossy(&output.stdout).trim().parse();
    pid.map(Trace::Process).map_err(|_| io::Error::other("the shell did not tell its pid"))
}

fn container_exit() -> io::Result<Trace> {
    let container = Container::create("e")?;
    container.run("exit 3")?;
    Ok(Trace::Container(container.id.clone()))
}

fn out_of_memory() -> io::Result<Trace> {
    let container = Container::create("f")?;
    container.limit_memory(16 << 20)?;
    // Holds its input until a line ends, which never comes.
    container.run("exec tail /dev/zero")?;
    Ok(Trace::Container(container.id.clone()))
}

/// A control group that looks like a container's. Removed when dropped.
struct Container {
    id: String,
    folder: PathBuf,
    version: u8,
}

impl Container {
    fn create(letter: &str) -> io::Result<Self> {
        let (mount, version) = memory_hierarchy()?;
        // Docker's layout; nobody's id, but one of its form.
        let id = format!("{:0>8x}{}", std::process::id(), letter.repeat(56));
        let parent = mount.join("docker");
        fs::create_dir_all(&parent)?;
        if version == 2 {
            for folder in [&mount, &parent] {
                fs::write(folder.join("cgroup.subtree_control"), "+memory")?;
            }
        }
        let folder = parent.join(&id);
        fs::create_dir(&folder)?;
        Ok(Container { id, folder, version })
    }

    fn limit_memory(&self, bytes: u64) -> io::Result<()> {
        let file = if self.version == 2 { "memory.max" } else { "memory.limit_in_bytes" };
        fs::write(self.folder.join(file), bytes.to_string())
    }

    /// Runs a script as the container's first process, to its end.
    fn run(&self, script: &str) -> io::Result<()> {
        let enter = self.folder.join("cgroup.procs");
        // The group's path holds nothing that a shell would understand.
        let script = format!("echo $$ > {} && {script}", enter.display());
        let mut child = shell(&script).spawn()?;
        let begun = Instant::now();
        while child.try_wait()?.is_none() {
            if begun.elapsed() > Duration::from_secs(5) {
                child.kill()?;
                child.wait()?;
                return Err(io::Error::other("it did not end by itself"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.folder) {
            tracing::warn!(%error, "the demo's control group stays behind");
        }
        // Docker's own folder stays: it is not empty then.
        if let Some(parent) = self.folder.parent() {
            drop(fs::remove_dir(parent));
        }
    }
}

/// Where the hierarchy with the memory controller is mounted, and its version.
fn memory_hierarchy() -> io::Result<(PathBuf, u8)> {
    find_memory_hierarchy(&fs::read_to_string("/proc/self/mountinfo")?, |mount| {
        let controllers = fs::read_to_string(mount.join("cgroup.controllers"));
        controllers.is_ok_and(|text| text.split_whitespace().any(|c| c == "memory"))
    })
    .ok_or_else(|| io::Error::other("no cgroup hierarchy with the memory controller is mounted"))
}

fn find_memory_hierarchy(
    mountinfo: &str,
    has_memory: impl Fn(&Path) -> bool,
) -> Option<(PathBuf, u8)> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mount = PathBuf::from(before.split(' ').nth(4)?);
        let mut after = after.split(' ');
        let (kind, options) = (after.next()?, after.nth(1)?);
        match kind {
            "cgroup" if options.split(',').any(|option| option == "memory") => Some((mount, 1)),
            "cgroup2" if has_memory(&mount) => Some((mount, 2)),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_with_the_memory_controller_is_found() {
        let v1 = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n";
        let v2 = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let hybrid = format!("{v2}{v1}");
        let memory = |has: bool| move |_: &Path| has;
        let found = find_memory_hierarchy(&hybrid, memory(false));
        assert_eq!(found, Some(("/sys/fs/cgroup/memory".into(), 1)));
        let found = find_memory_hierarchy(v2, memory(true));
        assert_eq!(found, Some(("/sys/fs/cgroup/unified".into(), 2)));
        assert_eq!(find_memory_hierarchy(v2, memory(false)), None);
        assert_eq!(find_memory_hierarchy("nonsense\n - \n", memory(true)), None);
    }
}
