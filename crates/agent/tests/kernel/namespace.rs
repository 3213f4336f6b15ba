//! Network namespaces of our own, so that no fault leaves the machine or
//! touches its network.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use vahti_runtime::testing::not_run;

/// A network namespace. It goes, with all that is in it, when dropped.
pub(crate) struct Namespace {
    holder: Child,
    file: File,
}

impl Namespace {
    /// A fresh one with its loopback up. `None`, having said why, where the
    /// tools or rights are missing.
    pub(crate) fn new() -> Option<Self> {
        has("ip")?;
        let mut command = Command::new("sleep");
        // SAFETY: both are async-signal-safe.
        unsafe {
            command.arg("infinity").pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                match libc::unshare(libc::CLONE_NEWNET) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let holder = match command.spawn() {
            Ok(holder) => holder,
            Err(error) => {
                not_run(format!("no network namespace can be made: {error}"));
                return None;
            }
        };
        let file = File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
        let namespace = Namespace { holder, file };
        namespace.sh("ip link set lo up");
        Some(namespace)
    }

    /// Has a command start inside.
    pub(crate) fn enter(&self, command: &mut Command) {
        let fd = self.file.as_raw_fd();
        // SAFETY: setns is async-signal-safe; `self` outlives the spawn.
        unsafe {
            command.pre_exec(move || match libc::setns(fd, libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
    }

    /// Runs a script inside.
    #[track_caller]
    pub(crate) fn sh(&self, script: &str) {
        let mut command = Command::new("sh");
        command.args(["-ec", script]);
        self.enter(&mut command);
        let output = command.output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {told}");
    }
}

/// `None`, having said so, where there is no such tool.
fn has(tool: &str) -> Option<()> {
    let asked = Command::new(tool).arg("-V").stdout(Stdio::null()).status();
    asked.map_err(|_| not_run(format!("there is no `{tool}`"))).is_ok().then_some(())
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}

/// Two namespaces with a cable between them.
pub(crate) struct Cabled {
    /// Has 192.0.2.1 and 2001:db8::1.
    pub(crate) near: Namespace,
    /// Has 192.0.2.2 and 2001:db8::2.
    pub(crate) far: Namespace,
}

impl Cabled {
    /// Such that [`FIREWALL`] works.
    pub(crate) fn with_firewalls() -> Option<Self> {
        has("nft")?;
        Self::new()
    }

    /// `None`, having said why, where it can't be made.
    pub(crate) fn new() -> Option<Self> {
        let cabled = Cabled { near: Namespace::new()?, far: Namespace::new()? };
        let far = cabled.far.holder.id();
        cabled.near.sh(&format!("ip link add cable type veth peer name cable netns {far}"));
        for (namespace, number) in [(&cabled.near, 1), (&cabled.far, 2)] {
            namespace.sh(&format!(
                "ip address add 192.0.2.{number}/24 dev cable
                 ip address add 2001:db8::{number}/64 dev cable nodad
                 ip link set cable up"
            ));
        }
        // One answer a packet, however many there are.
        cabled.far.sh("echo 0 > /proc/sys/net/ipv4/icmp_ratelimit
             echo 0 > /proc/sys/net/ipv6/icmp/ratelimit");
        Some(cabled)
    }
}

/// What a firewall's `table inet` needs before its rules.
pub(crate) const FIREWALL: &str = "
    nft add table inet test
    nft add chain inet test in '{ type filter hook input priority 0; }'
    nft add chain inet test out '{ type filter hook output priority 0; }'
";
