//! The built program, without what the environment may set.

use std::process::{Command, Stdio};

pub(crate) fn vahti(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vahti"));
    command.args(arguments).stdin(Stdio::null());
    for name in ["CONFIG", "NODE_NAME", "OBSERVERS", "EMIT", "LOG", "SOCKET"] {
        command.env_remove(format!("VAHTI_{name}"));
    }
    command.env("VAHTI_STORE", "none");
    command.env("VAHTI_HTTP", "none");
    command
}
