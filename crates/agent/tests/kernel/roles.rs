//! What helper processes do. Each tells what it did as lines of JSON.

mod connect;
mod end;
mod promise;
mod serve;

use std::io::{Read, Write};

use serde_json::Value;

use crate::role::{ARGUMENTS, ROLE};

/// Plays the role that this process was given, if any, and ends it.
pub(crate) fn play() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let arguments: Value = serde_json::from_str(&std::env::var(ARGUMENTS).unwrap()).unwrap();
    // The standard library's handlers would stand in the way of a crash.
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: asks for the default action.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    take_name(&arguments);
    match role.as_str() {
        "connect" => connect::connect(&arguments),
        "speak" => connect::speak(&arguments),
        "serve" => serve::serve(&arguments),
        "be reset" => serve::be_reset(&arguments),
        "reset" => serve::reset(&arguments),
        "end" => end::end(&arguments),
        "promise" => promise::promise(&arguments),
        "promise and end" => promise::promise_and_end(&arguments),
        "take over" => promise::take_over(&arguments),
        "wait" => wait(&arguments),
        role => panic!("{role}"),
    }
    std::process::exit(0);
}

/// Gives this process a name, which may be any bytes.
fn take_name(arguments: &Value) {
    if let Some(name) = arguments["name"].as_array() {
        let name: Vec<u8> = name.iter().map(|b| b.as_u64().unwrap() as u8).collect();
        // Of the process, which is not always the thread that writes this.
        std::fs::write("/proc/self/comm", name).unwrap();
    }
}

/// Has a child do something and never return; its pid.
fn fork(child: impl FnOnce()) -> libc::pid_t {
    // SAFETY: the harness's thread only waits for ours, so no lock is held by
    // a thread that the child has not got.
    match unsafe { libc::fork() } {
        0 => {
            die_with_parent();
            child();
            // SAFETY: ends the child, and runs nothing of its parent's.
            unsafe { libc::_exit(0) }
        }
        pid => {
            assert!(pid > 0, "{}", std::io::Error::last_os_error());
            pid
        }
    }
}

/// Leaves nothing behind where a test fails.
fn die_with_parent() {
    // SAFETY: takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// Waits for a child; its status.
fn wait_for(child: libc::pid_t) -> libc::c_int {
    let mut status = 0;
    // SAFETY: `status` is writable, and `child` is ours.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

/// Tells a fact, on a line that begins as no line of the harness does.
fn tell(fact: &Value) {
    let mut stdout = std::io::stdout();
    stdout.write_all(format!("\n{fact}\n").as_bytes()).unwrap();
    stdout.flush().unwrap();
}

/// Enters `cgroup`, says that it is there, waits until it is let go on, and
/// ends with `code`.
fn wait(arguments: &Value) {
    if let Some(folder) = arguments["cgroup"].as_str() {
        std::fs::write(format!("{folder}/cgroup.procs"), "0").unwrap();
    }
    if arguments["no_core"] == true {
        // SAFETY: takes no pointers.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    }
    tell(&serde_json::json!({"pid": std::process::id()}));
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    std::process::exit(arguments["code"].as_i64().unwrap_or(0) as i32);
}
