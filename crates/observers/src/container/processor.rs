//! Records of `container.bpf.c` to events. Pure: bytes in, event out.

use std::borrow::Cow;

use vahti_ebpf::abi::KIND_PROOF;
use vahti_runtime::event::{
    CONTAINER_EXIT, ErrorInfo, Event, EventData, Exit, ExitClass, OOM_KILL, OomKill as OomKillData,
    OomScope, Outcome, PROCESS_CRASH, Severity, Signal, Unresolved,
};
use vahti_runtime::ids::{BootId, EntityId, SpanId, TraceId};
use vahti_runtime::processor::{EventProcessor, Output, ProcessError, RawRecord, RecordKind};

use super::abi::{KIND_OOM_KILL, KIND_PROCESS_EXIT, OomKill, ProcessExit, SCOPE_CGROUP};
use crate::cgroups::{CgroupNames, Named};
use crate::record::{self, malformed};

/// Tells OOM kills, container exits and crashes.
#[derive(Debug)]
pub struct ContainerProcessor {
    boot_id: BootId,
    cgroups: CgroupNames,
    normal_exits: bool,
}

impl ContainerProcessor {
    /// For records of this boot, with cgroups of this version.
    #[must_use]
    pub fn new(boot_id: BootId, cgroup_version: u8) -> Self {
        ContainerProcessor {
            boot_id,
            cgroups: CgroupNames::new(cgroup_version),
            normal_exits: false,
        }
    }

    /// Tells the normal ends of containers too, which are no failures.
    #[must_use]
    pub fn with_normal_exits(mut self, normal_exits: bool) -> Self {
        self.normal_exits = normal_exits;
        self
    }

    fn oom_kill(&self, record: &RawRecord<'_>) -> Result<Event, ProcessError> {
        let split = record::split(record.bytes, |k: &OomKill| k.path_len)?;
        let kill = split.fixed;
        let victim = &kill.victim;
        let truncated = record::is_truncated(&kill.header);
        let named = self.cgroups.name(victim.cgroup_id, split.path, truncated);
        let scope = scope_of(&kill, &named);
        let is_own = kill.scope_cgroup_id == victim.cgroup_id;
        let mut event = Event::new(&OOM_KILL, Severity::Error);
        event.time_ns = record.wall_ns;
        event.outcome = Outcome::Failure;
        event.error = Some(out_of_memory(scope, is_own));
        event.process = record::process(victim, record);
        event.entity = Some(EntityId::process(&self.boot_id, victim.tgid, victim.start_boot_ns));
        event.trace_id = TraceId::of_process(&self.boot_id, victim.tgid, victim.start_boot_ns);
        event.span_id = Some(SpanId::of_oom_kill(&self.boot_id, victim.tgid, victim.start_boot_ns));
        event.data = EventData::OomKill(memory(&kill, scope));
        give_home(&mut event, named);
        Ok(event)
    }

    fn exit(&self, record: &RawRecord<'_>) -> Result<Option<Event>, ProcessError> {
        let split = record::split(record.bytes, |e: &ProcessExit| e.path_len)?;
        let ended = split.fixed;
        let truncated = record::is_truncated(&ended.header);
        let named = self.cgroups.name(ended.process.cgroup_id, split.path, truncated);
        let exit = exit_of(&ended);
        let container = named.container.as_ref().filter(|_| is_first(&ended, named.is_below));
        let mut event = match container {
            Some(container) => {
                if exit.class == ExitClass::Normal && !self.normal_exits {
                    return Ok(None);
                }
                let mut event = Event::new(&CONTAINER_EXIT, severity_of(exit.class));
                event.entity = Some(EntityId::container(&container.id));
                event.span_id = Some(SpanId::of_container_end(&container.id));
                event
            }
            None if exit.class == ExitClass::Crash => self.crash(&ended),
            None => return Ok(None),
        };
        event.time_ns = record.wall_ns;
        event.error = error_of(&exit);
        event.outcome = match exit.class {
            ExitClass::Normal => Outcome::Success,
            _ => Outcome::Failure,
        };
        event.data = EventData::Exit(exit);
        event.process = record::process(&ended.process, record);
        self.connect(&mut event, &ended);
        give_home(&mut event, named);
        Ok(Some(event))
    }

    fn crash(&self, ended: &ProcessExit) -> Event {
        let process = &ended.process;
        let mut event = Event::new(&PROCESS_CRASH, Severity::Error);
        event.entity = Some(EntityId::process(&self.boot_id, process.tgid, process.start_boot_ns));
        event.span_id =
            Some(SpanId::of_process_end(&self.boot_id, process.tgid, process.start_boot_ns));
        event
    }

    /// The trace is the process's; its OOM kill, if there was one, the parent.
    fn connect(&self, event: &mut Event, ended: &ProcessExit) {
        let process = &ended.process;
        let (tgid, start) = (process.tgid, process.start_boot_ns);
        event.trace_id = TraceId::of_process(&self.boot_id, tgid, start);
        if ended.oom_boot_ns != 0 {
            event.parent_span_id = Some(SpanId::of_oom_kill(&self.boot_id, tgid, start));
        }
    }
}

impl EventProcessor for ContainerProcessor {
    fn name(&self) -> &str {
        "container"
    }

    fn process(&self, record: RawRecord<'_>) -> Result<Output, ProcessError> {
        if record.kind != RecordKind::Kernel {
            return Ok(Output::Nothing);
        }
        let header = record::header(record.bytes)?;
        match header.kind {
            _ if record::is_proof(&header) => Ok(Output::Nothing),
            KIND_OOM_KILL => self.oom_kill(&record).map(Output::One),
            KIND_PROCESS_EXIT => self.exit(&record).map(Output::from),
            KIND_PROOF => Ok(Output::Nothing),
            _ => Err(malformed("a kind that is not of this observer", record.bytes)),
        }
    }
}

fn give_home(event: &mut Event, named: Named) {
    event.cgroup = named.cgroup;
    event.container = named.container;
    event.unresolved = named.unresolved.map(|reason| Unresolved { reason });
}

/// A limit of the container's own cgroup, or of one that the container made
/// below it, is the container's. One further up is not: it may be a pod's or a
/// slice's.
fn scope_of(kill: &OomKill, named: &Named) -> OomScope {
    if kill.scope != SCOPE_CGROUP {
        return OomScope::System;
    }
    match named.container {
        Some(_) if kill.scope_cgroup_id == kill.victim.cgroup_id => OomScope::Container,
        Some(_) if (1..=named.levels_below).contains(&kill.scope_levels) => OomScope::Container,
        _ => OomScope::Cgroup,
    }
}

/// `is_own`: the limit is that of the victim's own cgroup.
fn out_of_memory(scope: OomScope, is_own: bool) -> ErrorInfo {
    ErrorInfo {
        code: Cow::Borrowed("ENOMEM"),
        message: Cow::Borrowed(match scope {
            OomScope::Container => "killed: its container's memory limit was reached",
            OomScope::Cgroup if is_own => "killed: its cgroup's memory limit was reached",
            OomScope::Cgroup => "killed: the memory limit of a cgroup above its own was reached",
            OomScope::System => "killed: the machine's memory ran out",
        }),
        cause: None,
    }
}

fn memory(kill: &OomKill, scope: OomScope) -> OomKillData {
    let rss = [kill.anon_rss_kib, kill.file_rss_kib, kill.shmem_rss_kib];
    let rss_kib = rss.iter().fold(0_u64, |sum, part| sum.saturating_add(*part));
    OomKillData {
        scope,
        usage_bytes: Some(kill.usage_bytes),
        limit_bytes: (kill.limit_bytes != u64::MAX).then_some(kill.limit_bytes),
        victim_rss_bytes: Some(rss_kib.saturating_mul(1024)),
        score_adj: Some(kill.oom_score_adj),
        trigger: record::process_ref(kill.trigger_tgid, &kill.trigger_comm),
    }
}

/// Whether this was the first process of its cgroup: pid 1 of a namespace that
/// was made for it, the first that came in, or, where nobody saw who came in,
/// one whose parent is outside.
///
/// Below a container's own cgroup only pid 1 is: systemd moves itself there,
/// and the first process of each of its services is first in a cgroup of its
/// own, but not in the container.
///
/// Where pid 1 of its namespace is of the same cgroup, that one is the first,
/// whatever was seen: others come in later (`docker exec`, a health check), and
/// may be the first that *we* saw. A container that shares a namespace (a
/// pod's, the machine's) has its pid 1 elsewhere.
fn is_first(ended: &ProcessExit, is_below: bool) -> bool {
    let from_outside = ended.parent_elsewhere != 0;
    let has_namespace = ended.namespace_level > 0;
    if has_namespace && ended.namespace_pid == 1 {
        return from_outside || ended.first_tgid == ended.process.tgid;
    }
    if is_below || has_namespace && ended.init_inside != 0 {
        return false;
    }
    let came_first = ended.first_tgid == ended.process.tgid;
    let unseen = ended.first_tgid == 0 && !has_namespace && from_outside;
    came_first || unseen
}

fn exit_of(ended: &ProcessExit) -> Exit {
    let signal = (ended.status & 0x7f) as u8;
    let code = (ended.status >> 8 & 0xff) as u8;
    let signal = (signal != 0).then_some(signal);
    Exit {
        code: signal.is_none().then_some(code),
        signal: signal.map(Signal),
        class: class_of(signal.map(i32::from), code, ended.oom_boot_ns != 0),
        sender: record::process_ref(ended.sender_tgid, &ended.sender_comm),
    }
}

fn class_of(signal: Option<i32>, code: u8, oom: bool) -> ExitClass {
    match signal {
        Some(libc::SIGKILL) if oom => ExitClass::Oom,
        Some(
            libc::SIGSEGV
            | libc::SIGABRT
            | libc::SIGBUS
            | libc::SIGILL
            | libc::SIGFPE
            | libc::SIGSYS,
        ) => ExitClass::Crash,
        Some(libc::SIGTERM | libc::SIGINT | libc::SIGPIPE | libc::SIGHUP) => ExitClass::Normal,
        Some(_) => ExitClass::Killed,
        None if code == 0 || is_asked_to_end(code) => ExitClass::Normal,
        None => ExitClass::Error,
    }
}

/// What shells, and programs with a handler, return after a signal that asked
/// them to end: 128 and its number.
fn is_asked_to_end(code: u8) -> bool {
    let signal = i32::from(code) - 128;
    matches!(signal, libc::SIGTERM | libc::SIGINT | libc::SIGPIPE | libc::SIGHUP)
}

fn severity_of(class: ExitClass) -> Severity {
    match class {
        ExitClass::Normal => Severity::Info,
        _ => Severity::Error,
    }
}

fn error_of(exit: &Exit) -> Option<ErrorInfo> {
    if exit.class == ExitClass::Normal {
        return None;
    }
    let (code, message) = match (exit.signal, exit.code) {
        (Some(signal), _) => {
            let name = signal.to_string();
            let message = format!("ended by {name}");
            (Cow::Owned(name), message)
        }
        (None, code) => {
            let code = code.unwrap_or(0);
            (Cow::Borrowed("EXIT"), format!("ended with exit code {code}"))
        }
    };
    Some(ErrorInfo {
        code,
        message: Cow::Owned(message),
        cause: (exit.class == ExitClass::Oom).then_some(Cow::Borrowed("oom_kill")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What it says of a process with id 7: its namespace's level and its pid
    /// there, the first of its cgroup, parent outside, pid 1 inside.
    fn first(level: u32, pid: u32, first: u32, outside: bool, init_inside: bool) -> bool {
        is_first(&ended(level, pid, first, outside, init_inside), false)
    }

    fn ended(level: u32, pid: u32, first: u32, outside: bool, init_inside: bool) -> ProcessExit {
        let (mut ended, _) = vahti_ebpf::abi::split::<ProcessExit>(&[0; 128]).unwrap();
        ended.process.tgid = 7;
        ended.namespace_level = level;
        ended.namespace_pid = pid;
        ended.first_tgid = first;
        ended.parent_elsewhere = outside.into();
        ended.init_inside = init_inside.into();
        ended
    }

    #[test]
    fn pid_1_of_a_namespace_is_a_containers_first_whoever_else_was_seen() {
        assert!(first(1, 1, 0, true, true));
        assert!(first(1, 1, 3, true, true));
        assert!(!first(1, 40, 7, true, true), "docker exec, after the first was forgotten");
        assert!(!first(2, 1, 3, false, true), "of a namespace within the container");
    }

    #[test]
    fn in_a_shared_namespace_who_came_first_is_the_first() {
        assert!(first(1, 9, 7, true, false), "pid 1 is the pod's pause");
        assert!(!first(1, 9, 0, true, false));
        assert!(first(0, 900, 7, true, false));
        assert!(!first(0, 900, 3, true, false));
        assert!(first(0, 900, 0, true, false), "nobody saw who came in");
        assert!(!first(0, 900, 0, false, false));
    }

    #[test]
    fn below_a_containers_own_cgroup_only_pid_1_is_the_first() {
        let below = |ended: ProcessExit| is_first(&ended, true);
        assert!(below(ended(1, 1, 0, true, true)), "systemd in init.scope");
        assert!(!below(ended(1, 30, 7, true, false)), "the first of a service");
        assert!(!below(ended(0, 900, 7, true, false)), "the same in the machine's namespace");
        assert!(!below(ended(0, 900, 0, true, false)));
    }

    #[test]
    fn ends_are_classified_as_operators_would() {
        let class = |status: u32, oom| {
            class_of(Some((status & 0x7f) as i32).filter(|s| *s != 0), (status >> 8) as u8, oom)
        };
        assert_eq!(class(0, false), ExitClass::Normal);
        assert_eq!(class(2 << 8, false), ExitClass::Error);
        assert_eq!(class(143 << 8, false), ExitClass::Normal);
        assert_eq!(class(137 << 8, false), ExitClass::Error, "137 alone says nothing of memory");
        assert_eq!(class(15, false), ExitClass::Normal);
        assert_eq!(class(9, false), ExitClass::Killed);
        assert_eq!(class(9, true), ExitClass::Oom);
        assert_eq!(class(11, false), ExitClass::Crash);
        assert_eq!(class(3, false), ExitClass::Killed);
    }
}
