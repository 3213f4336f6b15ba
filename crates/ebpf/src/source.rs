//! An observer's ring buffer as a [`Source`] of the runtime.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vahti_runtime::ebpf::EbpfManager as _;
use vahti_runtime::processor::{LifecycleError, RawRecord, RecordKind};
use vahti_runtime::source::{
    Interrupt, ReadOutcome, RecordBatch, Source, SourceError, SourceLedger,
};

use crate::abi::{self, FLAG_PROOF, Header};
use crate::eventfd::EventFd;
use crate::kernel::KernelVersion;
use crate::ledger::RingLedger;
use crate::loader::chain;
use crate::makers::Makers;
use crate::manager::{AyaManager, poll, poll_entry};
use crate::proof::{
    Announce, PROOF_PERIOD, PROOF_RETRY, Probe, ProbeState, ProbeStates, ProofOfLife,
};
use crate::ring::RingReader;
use crate::wall::WallClock;

/// A read that brought more than this is taken for a storm.
const STORM_RECORDS: usize = 8;
/// How long records gather in a storm. A single fault never waits for this.
const STORM_WAIT: Duration = Duration::from_millis(2);

/// Attaches an observer's probes, has them prove themselves, reads their ring.
pub struct RingSource {
    name: &'static str,
    manager: AyaManager,
    reader: RingReader,
    proof: Box<dyn ProofOfLife>,
    announce: Option<Arc<dyn Announce>>,
    probes: Arc<ProbeStates>,
    ledger: Arc<RingLedger>,
    interrupt: Arc<EventFd>,
    clock: WallClock,
    next_proof: Option<Instant>,
    /// The last read brought a storm.
    busy: bool,
    stopped: bool,
}

impl std::fmt::Debug for RingSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RingSource")
            .field("name", &self.name)
            .field("probes", &self.probes)
            .finish_non_exhaustive()
    }
}

impl RingSource {
    /// Takes an opened object with a ring called `ring` and a per-CPU array
    /// called `stats`. Nothing is loaded into the kernel before
    /// [`start`](Source::start).
    ///
    /// # Errors
    /// A map is missing or can't be mapped.
    pub fn new(
        name: &'static str,
        manager: AyaManager,
        probes: &[Probe],
        proof: Box<dyn ProofOfLife>,
    ) -> Result<Self, crate::EbpfError> {
        let reader = manager.ring("ring")?;
        let probes = Arc::new(ProbeStates::new(probes));
        let ring = Arc::clone(reader.ring());
        let ledger = Arc::new(RingLedger::new(&manager, ring, Arc::clone(&probes))?);
        let interrupt = EventFd::new()
            .map_err(|error| crate::EbpfError::System { operation: "making an eventfd", error })?;
        Ok(RingSource {
            name,
            manager,
            reader,
            proof,
            announce: None,
            probes,
            ledger,
            interrupt: Arc::new(interrupt),
            clock: WallClock::new(),
            next_proof: None,
            busy: false,
            stopped: false,
        })
    }

    /// Announces each proof to the other agents of this machine.
    #[must_use]
    pub fn announcing(mut self, announce: Arc<dyn Announce>) -> Self {
        self.announce = Some(announce);
        self
    }

    /// What its programs take for makers of proofs, besides us.
    ///
    /// # Errors
    /// The object has no map for that.
    pub fn makers(&self) -> Result<Makers, crate::EbpfError> {
        self.manager.hash_map("makers").map(Makers::new)
    }

    /// How its probes stand, for `doctor` and health.
    #[must_use]
    pub fn probes(&self) -> Arc<ProbeStates> {
        Arc::clone(&self.probes)
    }

    /// Its counters, with what each program cost.
    #[must_use]
    pub fn ring_ledger(&self) -> Arc<RingLedger> {
        Arc::clone(&self.ledger)
    }

    fn attach(&mut self, probe: &Probe) -> bool {
        let attached = self.manager.attach_raw_tracepoint(probe.program, probe.tracepoint);
        let state = match attached {
            Ok(()) => ProbeState::Attached,
            Err(error) => {
                let cause = chain(&error);
                tracing::warn!(observer = self.name, error = cause, "can't tell {}", probe.signal);
                ProbeState::Refused(reason(probe, &error))
            }
        };
        let is_attached = state == ProbeState::Attached;
        self.probes.set(probe.slot, state);
        is_attached
    }

    fn provoke(&mut self) {
        let tgid = self.proof.introduce(&mut self.manager);
        let announced = self.announce.as_ref().zip(tgid).map(|(a, tgid)| a.announce(tgid));
        let provoked = self.proof.provoke(&mut self.manager);
        drop(announced);
        let period = if provoked.is_ok() { PROOF_PERIOD } else { PROOF_RETRY };
        self.next_proof = Instant::now().checked_add(period);
        if let Err(error) = provoked {
            let error = chain(&error);
            tracing::warn!(observer = self.name, error, "no proof of life could be made");
        }
    }

    /// How long a read may wait: no longer than until the next proof is due.
    fn wait_time(&self, timeout: Option<Duration>) -> Option<Duration> {
        let proof = self.next_proof.map(|at| at.saturating_duration_since(Instant::now()));
        match (timeout, proof) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Waits for records or an interrupt. In a storm, lets records gather, so
    /// that one wake-up serves many.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let interrupt = poll_entry(self.interrupt.as_fd());
        if std::mem::take(&mut self.busy) {
            let gather = timeout.map_or(STORM_WAIT, |t| t.min(STORM_WAIT));
            poll(&mut [interrupt], Some(gather))?;
            return Ok(());
        }
        let ring = poll_entry(self.reader.ring().as_fd());
        poll(&mut [interrupt, ring], timeout).map(drop)
    }

    fn drain(&mut self, batch: &mut RecordBatch) -> usize {
        let clock = self.clock.now();
        let (probes, proof) = (&self.probes, &self.proof);
        self.reader.read(|bytes| {
            let header = abi::split::<Header>(bytes).map(|(header, _)| header);
            let boot_ns = header.map_or(clock.boot_ns, |h| h.boot_ns);
            let taken = batch.push(RawRecord {
                kind: RecordKind::Kernel,
                boot_ns,
                wall_ns: clock.wall_of(boot_ns),
                cpu: header.map_or(0, |h| h.cpu),
                seq: header.map_or(0, |h| h.seq),
                bytes,
            });
            if taken && header.is_some_and(|h| h.flags & FLAG_PROOF != 0) {
                probes.prove(proof.proven_by(bytes), boot_ns);
            }
            taken
        })
    }
}

/// Why the kernel refused; where it is too old for it, just that.
fn reason(probe: &Probe, error: &crate::EbpfError) -> String {
    match KernelVersion::running() {
        Some(version) if version < probe.since => {
            format!("{} needs Linux {}, this is {version}", probe.tracepoint, probe.since)
        }
        _ => chain(error),
    }
}

impl Source for RingSource {
    fn name(&self) -> &str {
        self.name
    }

    /// Attaches probe by probe. One that the kernel refuses is reported and
    /// left out; only if none is left, this fails.
    fn start(&mut self) -> Result<(), LifecycleError> {
        let probes = self.probes.all();
        let mut attached = 0;
        for report in &probes {
            attached += usize::from(self.attach(&report.probe));
        }
        if attached == 0 {
            let reasons = self.probes.degraded().join("; ");
            return Err(LifecycleError::new(format!("no probe works: {reasons}")));
        }
        self.ledger.watch(self.manager.attached());
        self.provoke();
        Ok(())
    }

    fn read(
        &mut self,
        batch: &mut RecordBatch,
        timeout: Option<Duration>,
    ) -> Result<ReadOutcome, SourceError> {
        if !self.stopped && self.next_proof.is_some_and(|at| at <= Instant::now()) {
            self.provoke();
        }
        if !self.stopped && (self.busy || self.reader.ring().is_empty()) {
            let timeout = self.wait_time(timeout);
            self.wait(timeout).map_err(|error| SourceError {
                source_name: self.name.to_owned(),
                what: "waiting for the ring buffer".to_owned(),
                error: Some(error),
            })?;
        }
        self.interrupt.clear();
        let taken = self.drain(batch);
        self.busy = taken > STORM_RECORDS && batch.has_room(0);
        Ok(match taken {
            0 if self.stopped => ReadOutcome::Ended,
            0 => ReadOutcome::Idle,
            _ => ReadOutcome::Read,
        })
    }

    fn stop(&mut self) {
        if std::mem::replace(&mut self.stopped, true) {
            return;
        }
        // Closing detaches; the ring stays mapped and can be read to its end.
        if let Err(error) = self.manager.close() {
            let error = chain(&error);
            tracing::warn!(observer = self.name, error, "could not close the programs");
        }
    }

    fn interrupter(&self) -> Arc<dyn Interrupt> {
        Arc::clone(&self.interrupt) as Arc<dyn Interrupt>
    }

    fn ledger(&self) -> Option<Arc<dyn SourceLedger>> {
        Some(Arc::clone(&self.ledger) as Arc<dyn SourceLedger>)
    }
}

impl Drop for RingSource {
    fn drop(&mut self) {
        self.stop();
        self.ledger.close();
    }
}
