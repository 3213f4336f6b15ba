//! Processes that end, in every way there is.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use serde_json::{Value, json};

/// Has a child end, and tells its pid as it is here, and its wait status.
///
/// It enters `cgroup` by itself or, `helped`, is forked by a helper that was
/// moved there and goes, as runc does it; is the first of a pid namespace, if
/// `pid_namespace`; and ends, with `threads` more threads, by `how`: `exit` as
/// a whole or `exit each` thread for itself, with `code`; a `fault` of one
/// thread, or `faults` of all of them; `abort`; or by `hunger` for memory.
pub(super) fn end(arguments: &Value) {
    // A child, so that the thread that plays is its first.
    let child = if arguments["helped"] == true {
        with_help(arguments)
    } else {
        isolate(arguments);
        super::fork(|| {
            enter(arguments);
            end_here(arguments);
        })
    };
    super::tell(&json!({"pid": child}));
    let status = super::wait_for(child);
    super::tell(&json!({"status": status}));
}

/// Has a helper enter, fork and go; the child, which is ours from then on.
fn with_help(arguments: &Value) -> libc::pid_t {
    // SAFETY: takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
    let (mut told, mut tell) = std::io::pipe().unwrap();
    let (mut helped, helping) = std::io::pipe().unwrap();
    let helper = super::fork(|| {
        enter(arguments);
        isolate(arguments);
        let child = super::fork(|| {
            // Outlives its parent, on purpose, and ends by itself.
            // SAFETY: takes no pointers.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) };
            let holds_it_too = &helping;
            // SAFETY: closes this process's copy, which it uses no more.
            unsafe { libc::close(holds_it_too.as_raw_fd()) };
            // Until the helper has gone.
            helped.read_to_end(&mut Vec::new()).unwrap();
            end_here(arguments);
        });
        tell.write_all(&child.to_ne_bytes()).unwrap();
    });
    drop(helping);
    let mut child = [0; 4];
    told.read_exact(&mut child).unwrap();
    super::wait_for(helper);
    libc::pid_t::from_ne_bytes(child)
}

fn isolate(arguments: &Value) {
    if arguments["pid_namespace"] == true {
        // SAFETY: takes no pointers; only children are moved.
        let result = unsafe { libc::unshare(libc::CLONE_NEWPID) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
}

fn enter(arguments: &Value) {
    if let Some(folder) = arguments["cgroup"].as_str() {
        std::fs::write(format!("{folder}/cgroup.procs"), "0").unwrap();
    }
}

fn end_here(arguments: &Value) -> ! {
    super::take_name(arguments);
    // SAFETY: takes no pointers. A process that can't be dumped leaves no
    // core, whatever the limits and the pattern say.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
    let code = arguments["code"].as_i64().unwrap_or(0) as i32;
    let threads = arguments["threads"].as_u64().unwrap_or(0) as usize;
    let how = arguments["how"].as_str().unwrap().to_owned();
    let all_there = Arc::new(Barrier::new(threads + 1));
    for _ in 0..threads {
        let (all_there, how) = (Arc::clone(&all_there), how.clone());
        std::thread::spawn(move || {
            all_there.wait();
            match how.as_str() {
                "exit each" => exit_thread(code),
                "faults" => fault(),
                "hunger" => eat(),
                _ => loop {
                    std::thread::sleep(Duration::from_secs(60));
                },
            }
        });
    }
    all_there.wait();
    match how.as_str() {
        // SAFETY: ends the process, as it should, and runs nothing else.
        "exit" => unsafe { libc::_exit(code) },
        "exit each" => exit_thread(code),
        "fault" | "faults" => fault(),
        // SAFETY: takes nothing, and ends the process.
        "abort" => unsafe { libc::abort() },
        "hunger" => eat(),
        how => panic!("{how}"),
    }
}

/// Ends the calling thread and no other.
fn exit_thread(code: i32) -> ! {
    loop {
        // SAFETY: the thread holds nothing that another one waits for.
        unsafe { libc::syscall(libc::SYS_exit, code) };
    }
}

/// Reads where nothing is mapped.
fn fault() -> ! {
    loop {
        let nowhere = std::hint::black_box(std::ptr::without_provenance::<u8>(8));
        // SAFETY: there is none: the process is to be killed for it. Nothing
        // is mapped on the first page.
        std::hint::black_box(unsafe { nowhere.read_volatile() });
    }
}

fn eat() -> ! {
    let mut eaten = Vec::new();
    loop {
        eaten.push(vec![1_u8; 1 << 20]);
        std::hint::black_box(&eaten);
    }
}
