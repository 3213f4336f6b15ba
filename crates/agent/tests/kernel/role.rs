//! Helper processes: this test program once more, playing a role.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

use serde_json::Value;

use crate::namespace::Namespace;

/// The variables that tell a process its role.
pub(crate) const ROLE: &str = "VAHTI_TEST_ROLE";
pub(crate) const ARGUMENTS: &str = "VAHTI_TEST_ARGUMENTS";

/// A process that plays a role. Killed when dropped.
pub(crate) struct Role {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
}

impl Role {
    /// Starts one in this network namespace.
    pub(crate) fn start(role: &str, arguments: &Value) -> Self {
        Self::spawn(&mut Self::command(role, arguments))
    }

    /// Starts one in another network namespace.
    pub(crate) fn start_in(namespace: &Namespace, role: &str, arguments: &Value) -> Self {
        let mut command = Self::command(role, arguments);
        namespace.enter(&mut command);
        Self::spawn(&mut command)
    }

    /// What starts one.
    pub(crate) fn command(role: &str, arguments: &Value) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            // On one thread, the main one: some roles end it.
            .args(["--exact", "plays_a_role", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(ARGUMENTS, arguments.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        // SAFETY: prctl is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        command
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let stdin = child.stdin.take();
        Role { child, stdin, lines }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next thing that it tells.
    #[track_caller]
    pub(crate) fn tells(&mut self) -> Value {
        self.next().expect("it ended without a word")
    }

    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        while self.lines.read_line(&mut line).unwrap() > 0 {
            // The test harness prints lines of its own.
            if line.starts_with('{') {
                return Some(serde_json::from_str(&line).unwrap());
            }
            line.clear();
        }
        None
    }

    /// Lets it go on, if it waits, and waits for its end.
    pub(crate) fn ends(mut self) -> ExitStatus {
        drop(self.stdin.take());
        self.child.wait().unwrap()
    }

    /// Waits for its end by a signal that was sent to it.
    pub(crate) fn dies(mut self) -> ExitStatus {
        // It waits still: with its input closed it could end by itself before
        // the signal is seen.
        self.child.wait().unwrap()
    }

    /// What a `connect` role was told by the kernel, by name, how often.
    #[track_caller]
    pub(crate) fn outcomes(mut self) -> BTreeMap<String, u64> {
        let told = self.tells();
        assert!(self.ends().success());
        serde_json::from_value(told["outcomes"].clone()).unwrap()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
