//! The manager on a real kernel, with programs of each sort.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::ffi::CString;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use aya::Ebpf;
use vahti_ebpf::cgroup::Hierarchy;
use vahti_ebpf::error::EbpfError;
use vahti_ebpf::loader::{self, Object};
use vahti_ebpf::manager::{AttachedProgram, AyaManager, count_runs};
use vahti_runtime::ebpf::EbpfManager as _;
use vahti_runtime::shutdown::channel;
use vahti_runtime::testing::not_run;

const OBJECT: Object =
    Object { name: "probes", bytes: vahti_ebpf::include_bytes_aligned!("probes.bpf.o") };

/// A raw tracepoint that nothing here makes fire.
const RARE: &str = "mark_victim";
const SOON: Duration = Duration::from_millis(50);
const LATE: Duration = Duration::from_secs(20);

/// `None`, having said so, where the rights are missing.
fn opened() -> Option<AyaManager> {
    match loader::open(&[OBJECT], Hierarchy::detect()) {
        Ok(mut managers) => Some(managers.remove(0).unwrap()),
        Err(error @ EbpfError::NoKernelBtf { .. }) => {
            not_run(error);
            None
        }
        Err(error) if error.is_permission() => {
            not_run(error);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Mounts tracefs for this thread alone. `false`, having said so, where it
/// can't be.
fn with_tracefs() -> bool {
    let text = |text: &str| CString::new(text).unwrap();
    let (tracefs, root, target) = (text("tracefs"), text("/"), text("/sys/kernel/tracing"));
    let none = std::ptr::null();
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: all strings live through the calls; the thread gets mounts of its
    // own first, which are kept from those of the others.
    let is_mounted = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(none, root.as_ptr(), none, private, none.cast()) == 0
            && libc::mount(none, target.as_ptr(), tracefs.as_ptr(), 0, none.cast()) == 0
    };
    let error = std::io::Error::last_os_error();
    if !is_mounted && !Path::new("/sys/kernel/tracing/events").exists() {
        not_run(format_args!("no tracefs is mounted, and none can be: {error}"));
        return false;
    }
    true
}

/// Runs it once, with this for every argument.
fn tell(program: &AttachedProgram, value: u64) {
    program.test_run(&[value; 12]).unwrap();
}

/// Whether it runs when a program is executed.
fn sees_an_exec(program: &AttachedProgram) -> bool {
    let _counting = count_runs().unwrap();
    let before = program.counters().unwrap().runs;
    assert!(std::process::Command::new("true").status().unwrap().success());
    program.counters().unwrap().runs > before
}

fn value(record: &[u8]) -> u64 {
    u64::from_ne_bytes(record.try_into().unwrap())
}

#[test]
fn nothing_attached_is_not_ready() {
    let Some(mut manager) = opened() else { return };
    assert!(matches!(manager.wait_for_ready(SOON), Err(EbpfError::NothingAttached)));
    manager.close().unwrap();
    manager.close().unwrap();
    assert!(matches!(manager.wait_for_ready(SOON), Err(EbpfError::Closed)));
}

#[test]
fn ready_is_what_has_run() {
    let Some(mut manager) = opened() else { return };
    manager.attach_raw_tracepoint("told", RARE).unwrap();
    match manager.wait_for_ready(SOON) {
        Err(EbpfError::NotProven { programs, .. }) => assert_eq!(programs, ["told"]),
        other => panic!("{other:?}"),
    }
    let program = manager.attached()[0].clone();
    let (stop, stopped) = mpsc::channel::<()>();
    let running = std::thread::spawn(move || {
        let pause = Duration::from_millis(1);
        while stopped.recv_timeout(pause) == Err(mpsc::RecvTimeoutError::Timeout) {
            tell(&program, 0);
        }
    });
    let ready = manager.wait_for_ready(LATE);
    drop(stop);
    running.join().unwrap();
    ready.unwrap();
}

#[test]
fn what_is_in_the_ring_when_the_shutdown_begins_is_handed_over() {
    let Some(mut manager) = opened() else { return };
    manager.open_ring_buffer("ring").unwrap();
    manager.attach_raw_tracepoint("told", RARE).unwrap();
    let program = manager.attached()[0].clone();
    let (trigger, shutdown) = channel();
    (1..=3).for_each(|value| tell(&program, value));
    trigger.begin();
    let mut values = Vec::new();
    manager.read_events(&shutdown, &mut |record| values.push(value(record))).unwrap();
    assert_eq!(values, [1, 2, 3]);
}

#[test]
fn what_comes_with_the_shutdown_is_handed_over() {
    let Some(mut manager) = opened() else { return };
    manager.open_ring_buffer("ring").unwrap();
    manager.attach_raw_tracepoint("told", RARE).unwrap();
    let program = manager.attached()[0].clone();
    let (trigger, shutdown) = channel();
    let mut trigger = Some(trigger);
    let mut values = Vec::new();
    tell(&program, 1);
    // While a record is handed over, another comes and the shutdown begins.
    let mut take = |record: &[u8]| {
        values.push(value(record));
        if let Some(trigger) = trigger.take() {
            tell(&program, 2);
            trigger.begin();
        }
    };
    manager.read_events(&shutdown, &mut take).unwrap();
    assert_eq!(values, [1, 2]);
}

#[test]
fn reading_needs_a_ring() {
    let Some(mut manager) = opened() else { return };
    let (_trigger, shutdown) = channel();
    let error = manager.read_events(&shutdown, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("no ring buffer is open"), "{error}");
    assert!(manager.open_ring_buffer("nothing").is_err());
}

#[test]
fn a_program_of_the_object_is_attached_to_a_tracepoint_until_it_is_closed() {
    let Some(mut manager) = opened() else { return };
    if !with_tracefs() {
        return;
    }
    manager.attach_tracepoint("point", "sched", "sched_process_exec").unwrap();
    let program = manager.attached()[0].clone();
    assert_eq!(program.name(), "point");
    assert!(sees_an_exec(&program));
    manager.close().unwrap();
    assert!(!sees_an_exec(&program));
}

#[test]
fn a_program_that_the_caller_holds_is_proven_and_detached_like_the_others() {
    let Some(mut manager) = opened() else { return };
    if !with_tracefs() {
        return;
    }
    let mut held = Ebpf::load(OBJECT.bytes).unwrap();
    let program = held.program_mut("point").unwrap();
    manager.attach_tracepoint_with_program(program, "sched", "sched_process_exec").unwrap();
    let attached = manager.attached()[0].clone();
    assert!(sees_an_exec(&attached));
    manager.close().unwrap();
    assert!(!sees_an_exec(&attached), "its holder still has the program");
    let closed = manager.attach_tracepoint_with_program(program, "sched", "sched_process_exec");
    assert!(matches!(closed, Err(EbpfError::Closed)));
}

#[test]
fn what_can_not_be_attached_is_an_error_that_names_the_program() {
    let Some(mut manager) = opened() else { return };
    for refused in [
        manager.attach_tracepoint("point", "sched", "no_such_tracepoint"),
        manager.attach_tracepoint("no_such_program", "sched", "sched_process_exec"),
        manager.attach_tracepoint("told", "sched", "sched_process_exec"),
        manager.attach_raw_tracepoint("told", "no_such_tracepoint"),
    ] {
        assert!(matches!(refused, Err(EbpfError::Program { .. })), "{refused:?}");
    }
    assert!(manager.attached().is_empty());
}

#[test]
fn a_kernel_function_is_probed_at_its_entry_and_its_return() {
    let Some(mut manager) = opened() else { return };
    if !Path::new("/sys/bus/event_source/devices/kprobe").exists() {
        not_run("this kernel has no kprobes (CONFIG_KPROBE_EVENTS)");
        return;
    }
    manager.attach_kprobe("entered", "wake_up_new_task").unwrap();
    manager.attach_kretprobe("returned", "wake_up_new_task").unwrap();
    for program in manager.attached() {
        assert!(sees_an_exec(program), "{}", program.name());
    }
}
