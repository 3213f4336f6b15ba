//! Processes that say of themselves that what fails for them is a proof.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

/// As the user `uid`: asks the agent at `socket` to take what fails for `tgid`,
/// or for this process, for proofs; fails to connect to `during`; takes it
/// back; and fails to connect to `after`. Tells what the agent answered.
pub(super) fn promise(arguments: &Value) {
    let uid = arguments["uid"].as_u64().unwrap() as libc::uid_t;
    // SAFETY: takes no pointers.
    assert_eq!(unsafe { libc::setuid(uid) }, 0, "{}", std::io::Error::last_os_error());
    let answered = ask(arguments);
    fail(&arguments["during"]);
    let answer = match answered {
        Ok((stream, answer)) => {
            stream.shutdown(Shutdown::Write).unwrap();
            (&stream).read_to_end(&mut Vec::new()).unwrap();
            answer
        }
        Err(error) => json!({"error": error.to_string()}),
    };
    fail(&arguments["after"]);
    super::tell(&answer);
}

fn ask(arguments: &Value) -> std::io::Result<(UnixStream, Value)> {
    let stream = UnixStream::connect(arguments["socket"].as_str().unwrap())?;
    let tgid = arguments["tgid"].as_u64().unwrap_or(std::process::id().into());
    writeln!(&stream, "prove {tgid}")?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    Ok((stream, serde_json::from_str(&line).unwrap()))
}

/// Where nobody listens, or no route leads.
fn fail(peer: &Value) {
    use std::io::ErrorKind::{ConnectionRefused, NetworkUnreachable};

    let peer: SocketAddr = serde_json::from_value(peer.clone()).unwrap();
    let error = TcpStream::connect(peer).unwrap_err();
    assert!(matches!(error.kind(), ConnectionRefused | NetworkUnreachable), "{error}");
}

/// Promises the same, and ends; a child keeps the connection for a while.
pub(super) fn promise_and_end(arguments: &Value) {
    let (stream, answer) = ask(arguments).unwrap();
    super::fork(|| {
        // SAFETY: takes no pointers. It outlives its parent on purpose.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) };
        std::thread::sleep(Duration::from_secs(10));
        drop(stream);
    });
    super::tell(&answer);
}

/// Has a child with the id `pid`, which must be free, fail to connect to
/// `after`. Tells what went wrong, if anything did.
pub(super) fn take_over(arguments: &Value) {
    let pid: libc::pid_t = serde_json::from_value(arguments["pid"].clone()).unwrap();
    // SAFETY: every field may be zero.
    let mut how: libc::clone_args = unsafe { std::mem::zeroed() };
    how.exit_signal = libc::SIGCHLD as u64;
    how.set_tid = (&raw const pid) as u64;
    how.set_tid_size = 1;
    // SAFETY: like fork(), as no flag and no stack is given: the harness's
    // thread only waits for ours. `how` and `pid` live through the call.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut how, size_of_val(&how)) } {
        -1 => super::tell(&json!({"error": std::io::Error::last_os_error().to_string()})),
        0 => {
            super::die_with_parent();
            fail(&arguments["after"]);
            // SAFETY: ends the child, and runs nothing of its parent's.
            unsafe { libc::_exit(0) };
        }
        child => {
            assert_eq!(child, libc::c_long::from(pid));
            assert_eq!(super::wait_for(pid), 0);
            super::tell(&json!({}));
        }
    }
}
