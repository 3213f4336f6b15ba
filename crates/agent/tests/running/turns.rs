//! A second agent on the same socket and store.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::agent::{Agent, BINARY, draining};

impl Agent {
    /// Starts another one on the same store, and on this socket.
    fn second(&self, config: &tempfile::NamedTempFile, socket: &Path) -> Agent {
        let child = Command::new(BINARY)
            .args(["run", "--observers", "network", "--emit", "none", "--socket"])
            .arg(socket)
            .arg("--config")
            .arg(config.path())
            .env("VAHTI_STORE", self.folder.path().join("store"))
            .env("VAHTI_HTTP", "none")
            .env_remove("VAHTI_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Agent { child, folder: tempfile::tempdir().unwrap(), manager: None }
    }

    /// It runs and does not end for a moment.
    #[track_caller]
    fn waits(&mut self) {
        std::thread::sleep(Duration::from_millis(500));
        assert!(self.child.try_wait().unwrap().is_none(), "it does not wait");
    }
}

#[test]
fn a_second_agent_waits_for_the_first_and_is_refused_by_name() {
    let Some(agent) = Agent::start(&["--observers", "network"], Stdio::null()) else { return };
    let config = draining("1s");
    let mut second = agent.second(&config, Path::new(&agent.socket()));
    second.waits();
    let (code, told) = second.ends_within(Duration::from_secs(10));
    assert_eq!(code, Some(1));
    let expected = format!("another vahti runs already (pid {})", agent.child.id());
    assert!(told.contains(&expected), "{told}");
    assert_eq!(told.matches("waiting for it to end").count(), 1, "{told}");
}

#[test]
fn a_second_agent_takes_over_socket_and_store_when_the_first_ends() {
    let Some(mut agent) = Agent::start(&["--observers", "network"], Stdio::null()) else { return };
    let config = draining("20s");
    let mut second = agent.second(&config, Path::new(&agent.socket()));
    second.waits();
    agent.signal(libc::SIGTERM);
    assert_eq!(agent.ends_within(Duration::from_secs(5)).0, Some(0));
    let begun = Instant::now();
    let pid = || agent.ledger()["pid"].as_u64();
    while pid() != Some(second.child.id().into()) {
        assert!(begun.elapsed() < Duration::from_secs(10), "it does not take over");
        std::thread::sleep(Duration::from_millis(20));
    }
    second.signal(libc::SIGTERM);
    let (code, told) = second.ends_within(Duration::from_secs(5));
    assert_eq!(code, Some(0), "{told}");
    assert!(!told.contains("not kept"), "{told}");
}

#[test]
fn an_agent_that_waits_for_another_ends_when_it_is_told_to() {
    let Some(agent) = Agent::start(&["--observers", "network"], Stdio::null()) else { return };
    let config = draining("30s");
    let own = agent.folder.path().join("own");
    for (socket, signal, what) in [
        (agent.socket().into(), libc::SIGTERM, "the control socket"),
        (own.clone(), libc::SIGINT, "the store"),
    ] {
        let mut second = agent.second(&config, &socket);
        second.waits();
        second.signal(signal);
        let (code, told) = second.ends_within(Duration::from_secs(2));
        assert_eq!(code, Some(0), "{told}");
        assert!(told.contains(&format!("another vahti has {what}; waiting")), "{told}");
    }
    assert!(!own.exists(), "its socket is gone");
    assert!(Path::new(&agent.socket()).exists(), "the other one's is not");
}
