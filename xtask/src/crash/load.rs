//! Faults from outside processes: what there is to be lost.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::bench::faults;

/// Processes that make faults until this is dropped.
pub(super) struct Load(Vec<Child>);

impl Load {
    /// Children that crash, which is critical, and refused connects, each to
    /// another address, which is not.
    pub(super) fn start(ends_per_second: u64, refused_per_second: u64) -> Result<Self, String> {
        let mut load = Load(Vec::new());
        for (what, per_second) in [("ends", ends_per_second), ("refused", refused_per_second)] {
            if per_second > 0 {
                load.0.push(spawn(what, per_second)?);
            }
        }
        Ok(load)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn spawn(what: &str, per_second: u64) -> Result<Child, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new(program);
    command.args(["load", what, &per_second.to_string()]).stdin(Stdio::null());
    // SAFETY: prctl is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command.spawn().map_err(|e| e.to_string())
}

/// Makes as many faults a second, for as long as it is let.
pub(super) fn make(what: &str, per_second: u64) -> Result<(), String> {
    let fault: fn(u32) = match what {
        "ends" => crash,
        "refused" => |n| {
            faults::be_refused(faults::closed_port(n));
        },
        _ => return Err(format!("there is no load {what}")),
    };
    let begun = Instant::now();
    let mut made = 0_u64;
    loop {
        let due = begun.elapsed().as_millis() as u64 * per_second / 1_000;
        // What could not be made in time is left out, rather than made at once.
        made = made.max(due.saturating_sub(per_second / 10));
        while made < due {
            made += 1;
            fault(made as u32);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Has a child end by SIGABRT or SIGSEGV.
fn crash(n: u32) {
    // SAFETY: this process has one thread; the child makes system calls only,
    // and ends. It can't be dumped, so it leaves no core.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            let signal = if n.is_multiple_of(2) { libc::SIGABRT } else { libc::SIGSEGV };
            libc::prctl(libc::PR_SET_DUMPABLE, 0);
            // The standard library has a handler of its own for the latter.
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
            libc::_exit(0);
        }
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
}
