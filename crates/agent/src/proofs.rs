//! Proofs of life beside each other: whoever makes some tells every agent of
//! the machine, and an agent believes those who may say so.
//!
//! On the control socket, `prove TGID` is a promise that what fails for that
//! process was made by it on purpose. It holds while the connection does. An
//! agent takes it from its own user and from root, who could also end it; and
//! only for the process that connected, in the incarnation that `/proc` shows.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vahti_ebpf::abi::MAX_MAKERS;
use vahti_ebpf::makers::{Maker, Makers};
use vahti_ebpf::proof::Announce;
use vahti_runtime::event::escape_text;

use crate::control::{Announcements, Peer, Reply, all_agents};

/// The inode of the initial pid namespace: PROC_PID_INIT_INO in the kernel's
/// include/linux/proc_ns.h.
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Who makes proofs beside this agent.
#[derive(Default)]
pub(crate) struct ProofMakers(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// Of each observer.
    maps: Vec<Makers>,
    /// One for each connection.
    announced: Vec<Maker>,
}

impl ProofMakers {
    /// Tells the programs of an observer who makes proofs, from now on.
    pub(crate) fn tell(&self, mut makers: Makers) {
        let mut known = self.lock();
        for maker in &known.announced {
            warn_if(makers.insert(*maker));
        }
        known.maps.push(makers);
    }

    /// Answers `prove TGID`.
    pub(crate) fn answer(self: &Arc<Self>, tgid: &str, peer: Peer) -> Reply {
        match self.announce(tgid, peer) {
            Ok(announced) => {
                let document = serde_json::json!({"proving": announced.maker.tgid()});
                Reply::Held(document.to_string().into_bytes(), Box::new(announced))
            }
            Err(why) => Reply::Document(serde_json::json!({"error": why}).to_string().into_bytes()),
        }
    }

    fn announce(self: &Arc<Self>, tgid: &str, peer: Peer) -> Result<Announced, String> {
        let tgid = tgid.parse().ok().filter(|tgid| *tgid != 0).ok_or("prove needs a process id")?;
        check(tgid, peer, is_in_initial_namespace())?;
        let maker = Maker::find(Path::new("/proc"), peer.pid, tgid)
            .map_err(|error| format!("the process can't be looked at: {error}"))?;
        let mut known = self.lock();
        if known.announced.len() >= MAX_MAKERS {
            return Err("too many make proofs already".to_owned());
        }
        for map in &mut known.maps {
            warn_if(map.insert(maker));
        }
        known.announced.push(maker);
        Ok(Announced { makers: Arc::clone(self), maker })
    }

    fn forget(&self, maker: Maker) {
        let mut known = self.lock();
        if let Some(index) = known.announced.iter().position(|other| *other == maker) {
            known.announced.swap_remove(index);
        }
        // It may have announced itself twice: each observer does it for itself.
        if known.announced.iter().any(|other| other.tgid() == maker.tgid()) {
            return;
        }
        for map in &mut known.maps {
            warn_if(map.remove(maker));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn warn_if(result: Result<(), vahti_ebpf::EbpfError>) {
    if let Err(error) = result {
        tracing::warn!(%error, "proofs of a process beside us are told as failures, or too long not");
    }
}

/// A process that makes proofs, until this is dropped.
struct Announced {
    makers: Arc<ProofMakers>,
    maker: Maker,
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.makers.forget(self.maker);
    }
}

/// Whether a peer may say that `tgid` makes proofs. In the initial pid
/// namespace that must be itself. Elsewhere the number can't be compared, but
/// counts only together with the peer's own start time.
fn check(tgid: u32, peer: Peer, in_initial_namespace: bool) -> Result<(), &'static str> {
    // SAFETY: has no preconditions.
    if peer.uid != 0 && peer.uid != unsafe { libc::geteuid() } {
        return Err("only root and the agent's user may make proofs");
    }
    if peer.pid == 0 {
        return Err("the agent is in another pid namespace, and can't tell who makes proofs");
    }
    if in_initial_namespace && peer.pid != tgid {
        return Err("only a process itself may say that it makes proofs");
    }
    Ok(())
}

fn is_in_initial_namespace() -> bool {
    std::fs::metadata("/proc/self/ns/pid").is_ok_and(|ns| ns.ino() == INITIAL_PID_NAMESPACE)
}

/// Announces our own proofs to every agent that can be found.
pub(crate) struct ToAgents {
    socket: Option<PathBuf>,
    untold: Mutex<Vec<String>>,
}

impl ToAgents {
    /// To the one at this socket, too.
    pub(crate) fn new(socket: Option<PathBuf>) -> Arc<Self> {
        Arc::new(ToAgents { socket, untold: Mutex::default() })
    }

    /// Which agents are there and did not understand, and why.
    pub(crate) fn untold(&self) -> Vec<String> {
        std::mem::take(&mut self.untold.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Announce for ToAgents {
    fn announce(&self, tgid: u32) -> Box<dyn Send> {
        let agents = all_agents(self.socket.clone());
        Box::new(Announcements::make(&agents, tgid, |error| {
            let why = escape_text(&error.to_string()).into_owned();
            tracing::debug!("our proofs will be told as failures: {why}");
            let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
            if !untold.contains(&why) && untold.len() < MAX_MAKERS {
                untold.push(why);
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(pid: u32, uid: u32) -> Peer {
        Peer { pid, uid }
    }

    #[test]
    fn who_makes_proofs_is_believed_of_itself_and_by_its_user() {
        // SAFETY: has no preconditions.
        let me = unsafe { libc::geteuid() };
        assert_eq!(check(7, peer(7, me), true), Ok(()));
        assert_eq!(check(7, peer(7, 0), true), Ok(()));
        assert!(check(7, peer(7, 65_534), true).is_err(), "another user");
        assert!(check(8, peer(7, me), true).is_err(), "another process");
        assert_eq!(check(8, peer(7, me), false), Ok(()), "which is 8 to the kernel");
        assert!(check(8, peer(0, me), false).is_err(), "from elsewhere");
    }

    #[test]
    fn an_announcement_ends_with_its_connection_and_there_is_room_for_some() {
        let makers: Arc<ProofMakers> = Arc::default();
        let pid = std::process::id();
        // SAFETY: has no preconditions.
        let me = peer(pid, unsafe { libc::geteuid() });
        let announce = || makers.announce(&pid.to_string(), me);
        assert!(makers.announce("", me).is_err() && makers.announce("0", me).is_err());
        let all: Vec<_> = (0..MAX_MAKERS).map(|_| announce().ok().unwrap()).collect();
        assert!(announce().is_err());
        drop(all);
        assert!(makers.lock().announced.is_empty());
        assert!(announce().is_ok());
    }
}
