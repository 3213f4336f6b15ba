//! The programs of one object, from open to close.

use std::fmt;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData, PerCpuArray};
use aya::programs::trace_point::TracePointLink;
use aya::programs::{Program, ProgramError};
use aya::{Btf, Ebpf};
use vahti_runtime::ebpf::EbpfManager;
use vahti_runtime::shutdown::Shutdown;

use crate::error::{EbpfError, VerifierLog};
use crate::eventfd::EventFd;
use crate::loader::chain;
use crate::ring::RingReader;
use crate::sys::{self, ProgramCounters};

/// Loads, attaches and reads the programs of one object, on aya.
///
/// Dropping it, or closing it, detaches everything.
pub struct AyaManager {
    object: &'static str,
    ebpf: Option<Ebpf>,
    attached: Vec<AttachedProgram>,
    /// Of programs that callers hold.
    links: Vec<TracePointLink>,
    rings: Vec<RingReader>,
}

/// A program that was loaded and attached.
#[derive(Debug, Clone)]
pub struct AttachedProgram {
    name: Arc<str>,
    fd: Arc<OwnedFd>,
}

impl AttachedProgram {
    fn of(name: &str, program: &Program) -> Result<Self, ProgramError> {
        let fd = program.fd()?.as_fd().try_clone_to_owned()?;
        Ok(AttachedProgram { name: name.into(), fd: Arc::new(fd) })
    }

    /// Its name in the object.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the kernel counted for it.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn counters(&self) -> std::io::Result<ProgramCounters> {
        sys::program_counters(self.fd.as_fd())
    }

    /// Runs it once with `arguments`, as the calling process. Raw tracepoint
    /// programs only; needs Linux 5.10.
    ///
    /// # Errors
    /// The kernel can't.
    pub fn test_run(&self, arguments: &[u64; 12]) -> std::io::Result<()> {
        sys::test_run(self.fd.as_fd(), arguments)
    }
}

impl fmt::Debug for AyaManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AyaManager")
            .field("object", &self.object)
            .field("attached", &self.attached)
            .field("closed", &self.ebpf.is_none())
            .finish_non_exhaustive()
    }
}

impl AyaManager {
    pub(crate) fn new(object: &'static str, ebpf: Ebpf) -> Self {
        AyaManager {
            object,
            ebpf: Some(ebpf),
            attached: Vec::new(),
            links: Vec::new(),
            rings: Vec::new(),
        }
    }

    /// The object's name.
    #[must_use]
    pub fn object(&self) -> &'static str {
        self.object
    }

    /// What is attached.
    #[must_use]
    pub fn attached(&self) -> &[AttachedProgram] {
        &self.attached
    }

    /// Maps a ring buffer for a reader outside the manager.
    ///
    /// # Errors
    /// No such map, or it is no ring buffer.
    pub fn ring(&self, name: &str) -> Result<RingReader, EbpfError> {
        let Map::RingBuf(data) = self.find_map(name)? else {
            return Err(map_error(name, "is no ring buffer"));
        };
        let size = data.info().map_err(|e| map_error(name, chain(&e)))?.max_entries();
        let fd = clone_fd(name, data)?;
        RingReader::map(fd, size).map_err(|e| map_error(name, format!("can't be mapped: {e}")))
    }

    /// A per-CPU array, by a handle that outlives the manager.
    ///
    /// # Errors
    /// No such map, or of another type.
    pub fn per_cpu_array<T: aya::Pod>(
        &self,
        name: &str,
    ) -> Result<PerCpuArray<MapData, T>, EbpfError> {
        let map = clone_map(name, self.find_map(name)?)?;
        PerCpuArray::try_from(map).map_err(|e| map_error(name, chain(&e)))
    }

    /// A hash map, by a handle that outlives the manager.
    ///
    /// # Errors
    /// No such map, or of another type.
    pub fn hash_map<K: aya::Pod, V: aya::Pod>(
        &self,
        name: &str,
    ) -> Result<HashMap<MapData, K, V>, EbpfError> {
        let map = clone_map(name, self.find_map(name)?)?;
        HashMap::try_from(map).map_err(|e| map_error(name, chain(&e)))
    }

    fn find_map(&self, name: &str) -> Result<&Map, EbpfError> {
        let ebpf = self.ebpf.as_ref().ok_or(EbpfError::Closed)?;
        ebpf.map(name).ok_or_else(|| map_error(name, "does not exist"))
    }

    /// Loads a program, if it isn't loaded yet, and attaches it.
    fn attach(
        &mut self,
        name: &str,
        load: impl FnOnce(&mut Program) -> Result<(), ProgramError>,
        attach: impl FnOnce(&mut Program) -> Result<(), ProgramError>,
    ) -> Result<(), EbpfError> {
        let ebpf = self.ebpf.as_mut().ok_or(EbpfError::Closed)?;
        let failed = |operation, error| program_error(name, operation, &error);
        let program = ebpf.program_mut(name).ok_or_else(|| EbpfError::Program {
            operation: "looking it up",
            program: name.to_owned(),
            error: "no such program in the object".to_owned(),
            log: VerifierLog::default(),
        })?;
        if program.fd().is_err() {
            load(program).map_err(|e| failed("loading", e))?;
        }
        attach(program).map_err(|e| failed("attaching", e))?;
        let attached = AttachedProgram::of(name, program).map_err(|e| failed("attaching", e))?;
        self.attached.push(attached);
        Ok(())
    }

    fn unproven(&self) -> Vec<String> {
        self.attached
            .iter()
            .filter(|p| p.counters().map_or(true, |c| c.runs == 0))
            .map(|p| p.name.to_string())
            .collect()
    }
}

fn map_error(map: &str, what: impl Into<String>) -> EbpfError {
    EbpfError::Map { map: map.to_owned(), what: what.into() }
}

fn program_error(program: &str, operation: &'static str, error: &ProgramError) -> EbpfError {
    let (error, log) = match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            (io_error.to_string(), verifier_log.to_string())
        }
        other => (chain(other), String::new()),
    };
    EbpfError::Program { operation, program: program.to_owned(), error, log: VerifierLog(log) }
}

fn clone_fd(name: &str, data: &MapData) -> Result<OwnedFd, EbpfError> {
    let fd = data.fd().as_fd().try_clone_to_owned();
    fd.map_err(|e| map_error(name, e.to_string()))
}

fn clone_map(name: &str, map: &Map) -> Result<Map, EbpfError> {
    let fd = clone_fd(name, map_data(name, map)?)?;
    MapData::from_fd(fd).and_then(Map::from_map_data).map_err(|e| map_error(name, chain(&e)))
}

fn map_data<'a>(name: &str, map: &'a Map) -> Result<&'a MapData, EbpfError> {
    match map {
        Map::Array(d)
        | Map::HashMap(d)
        | Map::LruHashMap(d)
        | Map::PerCpuArray(d)
        | Map::PerCpuHashMap(d)
        | Map::PerCpuLruHashMap(d)
        | Map::RingBuf(d) => Ok(d),
        _ => Err(map_error(name, "is of a type without handles")),
    }
}

fn load_plain(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::KProbe(p) => p.load(),
        Program::TracePoint(p) => p.load(),
        Program::RawTracePoint(p) => p.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Waits for a ring to have something, or for the waker.
fn wait_for(rings: &[RingReader], woken: &EventFd) -> Result<(), EbpfError> {
    let rings = rings.iter().map(|r| poll_entry(r.ring().as_fd()));
    let mut polled: Vec<libc::pollfd> = rings.chain([poll_entry(woken.as_fd())]).collect();
    poll(&mut polled, None)
        .map(drop)
        .map_err(|error| EbpfError::System { operation: "waiting for a ring buffer", error })
}

pub(crate) fn poll_entry(fd: BorrowedFd<'_>) -> libc::pollfd {
    libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }
}

/// poll(2) with nanoseconds; an interrupted wait counts as one that timed out.
pub(crate) fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> std::io::Result<bool> {
    let timeout = timeout.map(|t| libc::timespec {
        tv_sec: libc::time_t::try_from(t.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: t.subsec_nanos().into(),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `fds` is writable for its length, `timeout` is null or valid, no signal mask.
    let ready = unsafe {
        libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout, std::ptr::null())
    };
    if ready >= 0 {
        return Ok(ready > 0);
    }
    let error = std::io::Error::last_os_error();
    if error.kind() == std::io::ErrorKind::Interrupted {
        return Ok(false);
    }
    Err(error)
}

const PROOF_PERIOD: Duration = Duration::from_millis(5);

impl EbpfManager for AyaManager {
    type Program = Program;
    type Map = Map;
    type Error = EbpfError;

    fn attach_kprobe(&mut self, program: &str, symbol: &str) -> Result<(), EbpfError> {
        self.attach(program, load_plain, |program| match program {
            Program::KProbe(p) => p.attach(symbol, 0).map(drop),
            _ => Err(ProgramError::UnexpectedProgramType),
        })
    }

    /// The same call as for the entry: the object's section says which it is.
    fn attach_kretprobe(&mut self, program: &str, symbol: &str) -> Result<(), EbpfError> {
        self.attach_kprobe(program, symbol)
    }

    fn attach_tracepoint(
        &mut self,
        program: &str,
        group: &str,
        name: &str,
    ) -> Result<(), EbpfError> {
        self.attach(program, load_plain, |program| match program {
            Program::TracePoint(p) => p.attach(group, name).map(drop),
            _ => Err(ProgramError::UnexpectedProgramType),
        })
    }

    /// The program has no name here but its tracepoint's. It is attached until
    /// this is closed, even if its holder lets go of it before.
    fn attach_tracepoint_with_program(
        &mut self,
        program: &mut Program,
        group: &str,
        name: &str,
    ) -> Result<(), EbpfError> {
        if self.ebpf.is_none() {
            return Err(EbpfError::Closed);
        }
        let failed = |operation, error| program_error(name, operation, &error);
        if program.fd().is_err() {
            load_plain(program).map_err(|e| failed("loading", e))?;
        }
        let link = match program {
            Program::TracePoint(p) => p.attach(group, name).and_then(|id| p.take_link(id)),
            _ => Err(ProgramError::UnexpectedProgramType),
        }
        .map_err(|e| failed("attaching", e))?;
        let attached = AttachedProgram::of(name, program).map_err(|e| failed("attaching", e))?;
        self.links.push(link);
        self.attached.push(attached);
        Ok(())
    }

    fn attach_raw_tracepoint(&mut self, program: &str, tracepoint: &str) -> Result<(), EbpfError> {
        self.attach(program, load_plain, |program| match program {
            Program::RawTracePoint(p) => p.attach(tracepoint).map(drop),
            _ => Err(ProgramError::UnexpectedProgramType),
        })
    }

    /// Needs the whole of the kernel's types once more, as the kernel asks for
    /// the number of one.
    fn attach_btf_tracepoint(&mut self, program: &str, tracepoint: &str) -> Result<(), EbpfError> {
        let load = |program: &mut Program| match program {
            Program::BtfTracePoint(p) => p.load(tracepoint, &Btf::from_sys_fs()?),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        self.attach(program, load, |program| match program {
            Program::BtfTracePoint(p) => p.attach().map(drop),
            _ => Err(ProgramError::UnexpectedProgramType),
        })
    }

    fn open_ring_buffer(&mut self, map: &str) -> Result<(), EbpfError> {
        let ring = self.ring(map)?;
        self.rings.push(ring);
        Ok(())
    }

    fn read_events(
        &mut self,
        shutdown: &Shutdown,
        handler: &mut dyn FnMut(&[u8]),
    ) -> Result<(), EbpfError> {
        if self.rings.is_empty() {
            return Err(map_error("(none)", "no ring buffer is open"));
        }
        let woken = EventFd::new()
            .map_err(|error| EbpfError::System { operation: "making an eventfd", error })?;
        let woken = Arc::new(woken);
        let waker = Waker::from(Arc::clone(&woken));
        let mut begun = std::pin::pin!(shutdown.begun());
        // The wait ends by a record or by the shutdown, and by no timer. Each
        // look at the future asks anew to be woken. What is there when the
        // shutdown begins is still handed over.
        loop {
            let is_over = begun.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
            if !is_over {
                wait_for(&self.rings, &woken)?;
                woken.clear();
            }
            for ring in &mut self.rings {
                ring.read(|record| {
                    handler(record);
                    true
                });
            }
            if is_over {
                return Ok(());
            }
        }
    }

    /// A second handle to the map: it stays usable after `close`.
    fn map(&mut self, name: &str) -> Result<Map, EbpfError> {
        clone_map(name, self.find_map(name)?)
    }

    fn close(&mut self) -> Result<(), EbpfError> {
        self.rings.clear();
        self.attached.clear();
        self.links.clear();
        // Links are closed with their programs; closing one can't fail.
        self.ebpf = None;
        Ok(())
    }

    /// Proof here is that each attached program ran; [`RingSource`] has a
    /// stronger one, through the ring.
    ///
    /// Makes the kernel count the runs of *all* programs of the machine while
    /// it waits ([`count_runs`]), other people's too: each costs some 20 ns
    /// more a run until this returns. [`RingSource`] does not.
    ///
    /// [`RingSource`]: crate::source::RingSource
    fn wait_for_ready(&mut self, timeout: Duration) -> Result<(), EbpfError> {
        if self.ebpf.is_none() {
            return Err(EbpfError::Closed);
        }
        if self.attached.is_empty() {
            return Err(EbpfError::NothingAttached);
        }
        let _counting = count_runs()?;
        let start = Instant::now();
        loop {
            let programs = self.unproven();
            if programs.is_empty() {
                return Ok(());
            }
            if start.elapsed() >= timeout {
                return Err(EbpfError::NotProven { programs, waited_ms: timeout.as_millis() });
            }
            std::thread::sleep(PROOF_PERIOD);
        }
    }
}

/// Makes the kernel count runs and time of all programs, as long as what it
/// returns is held. Costs every program some 20 ns a run.
///
/// # Errors
/// The kernel can't (before 5.8), or may not.
pub fn count_runs() -> Result<OwnedFd, EbpfError> {
    aya::sys::enable_stats(aya::sys::Stats::RunTime).map_err(|e| EbpfError::System {
        operation: "enabling program statistics",
        error: std::io::Error::other(chain(&e)),
    })
}
