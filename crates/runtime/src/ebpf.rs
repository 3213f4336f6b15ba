//! The life of eBPF programs, as traits: no eBPF library inside.
//!
//! The crate `vahti-ebpf` implements [`EbpfManager`] for a real kernel; tests
//! of an observer's life cycle may implement it with whatever they like.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use crate::shutdown::Shutdown;

/// Loads, attaches and reads the programs of one observer.
///
/// Attaching is per program: one that fails degrades one signal, by name, and
/// the rest go on.
pub trait EbpfManager: Send {
    /// A loaded program.
    type Program;
    /// A handle to a map.
    type Map;
    /// Why an operation failed: the operation, the program, what the kernel
    /// said, and the verifier's log where there is one.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Attaches a program to the entry of a kernel function.
    ///
    /// # Errors
    /// No such program, or the kernel refuses it.
    fn attach_kprobe(&mut self, program: &str, symbol: &str) -> Result<(), Self::Error>;

    /// Attaches a program to the return of a kernel function.
    ///
    /// # Errors
    /// No such program, or the kernel refuses it.
    fn attach_kretprobe(&mut self, program: &str, symbol: &str) -> Result<(), Self::Error>;

    /// Attaches a program to a tracepoint by group and name. Needs tracefs.
    ///
    /// # Errors
    /// No such program or tracepoint, or the kernel refuses it.
    fn attach_tracepoint(
        &mut self,
        program: &str,
        group: &str,
        name: &str,
    ) -> Result<(), Self::Error>;

    /// Attaches a program that the caller holds to a tracepoint.
    ///
    /// # Errors
    /// No such tracepoint, or the kernel refuses it.
    fn attach_tracepoint_with_program(
        &mut self,
        program: &mut Self::Program,
        group: &str,
        name: &str,
    ) -> Result<(), Self::Error>;

    /// Attaches a program to a raw tracepoint: no tracefs, any kernel since
    /// 4.17.
    ///
    /// # Errors
    /// No such program or tracepoint, or the kernel refuses it.
    fn attach_raw_tracepoint(&mut self, program: &str, tracepoint: &str)
    -> Result<(), Self::Error>;

    /// Attaches a program to a BTF-typed raw tracepoint (kernel 5.5 with BTF).
    ///
    /// # Errors
    /// No such program or tracepoint, or the kernel refuses it.
    fn attach_btf_tracepoint(&mut self, program: &str, tracepoint: &str)
    -> Result<(), Self::Error>;

    /// Maps a ring buffer, to be read by [`read_events`](Self::read_events).
    ///
    /// # Errors
    /// No such map, or it is no ring buffer.
    fn open_ring_buffer(&mut self, map: &str) -> Result<(), Self::Error>;

    /// Hands every record of the opened ring buffers to `handler`, until
    /// `shutdown` begins. Blocks.
    ///
    /// # Errors
    /// No ring buffer is open, or waiting for it failed.
    fn read_events(
        &mut self,
        shutdown: &Shutdown,
        handler: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Self::Error>;

    /// A map by name.
    ///
    /// # Errors
    /// No such map.
    fn map(&mut self, name: &str) -> Result<Self::Map, Self::Error>;

    /// Detaches all and lets go of the maps. Closing twice is fine.
    ///
    /// # Errors
    /// What could not be detached.
    fn close(&mut self) -> Result<(), Self::Error>;

    /// Waits until every attached program was proven to see a fact.
    ///
    /// # Errors
    /// Which of them gave no proof in time.
    fn wait_for_ready(&mut self, timeout: Duration) -> Result<(), Self::Error>;
}

/// Owns a manager from start to stop.
///
/// Stopping twice, or before the start, is fine; starting twice is an error.
#[derive(Debug)]
pub struct EbpfRuntime<M: EbpfManager> {
    state: Mutex<State<M>>,
}

#[derive(Debug)]
enum State<M> {
    New(M),
    Running(M),
    Stopped,
}

/// Why the programs of an observer could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum EbpfRuntimeError<E: std::error::Error + 'static> {
    /// Started twice, or after it was stopped.
    #[error("eBPF programs can be started once; they are {0}")]
    NotNew(&'static str),
    /// The manager failed.
    #[error("eBPF programs are not ready")]
    Manager(#[source] E),
}

impl<M: EbpfManager> EbpfRuntime<M> {
    /// Takes a manager whose programs are to be attached by `start`.
    pub fn new(manager: M) -> Self {
        EbpfRuntime { state: Mutex::new(State::New(manager)) }
    }

    /// Runs `attach`, then waits until all that it attached is proven.
    ///
    /// # Errors
    /// It was started or stopped before, or the manager failed: then all is
    /// closed again.
    pub fn start(
        &self,
        ready_timeout: Duration,
        attach: impl FnOnce(&mut M) -> Result<(), M::Error>,
    ) -> Result<(), EbpfRuntimeError<M::Error>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut manager = match std::mem::replace(&mut *state, State::Stopped) {
            State::New(manager) => manager,
            State::Running(manager) => {
                *state = State::Running(manager);
                return Err(EbpfRuntimeError::NotNew("running"));
            }
            State::Stopped => return Err(EbpfRuntimeError::NotNew("stopped")),
        };
        let started = attach(&mut manager).and_then(|()| manager.wait_for_ready(ready_timeout));
        if let Err(error) = started {
            if let Err(close) = manager.close() {
                tracing::warn!(error = %close, "could not close after a failed start");
            }
            return Err(EbpfRuntimeError::Manager(error));
        }
        *state = State::Running(manager);
        Ok(())
    }

    /// Runs `f` on the manager, if it is running.
    pub fn with<T>(&self, f: impl FnOnce(&mut M) -> T) -> Option<T> {
        match &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Running(manager) => Some(f(manager)),
            State::New(_) | State::Stopped => None,
        }
    }

    /// Detaches all. Idempotent.
    ///
    /// # Errors
    /// What could not be detached; it counts as stopped all the same.
    pub fn stop(&self) -> Result<(), EbpfRuntimeError<M::Error>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, State::Stopped) {
            State::New(mut manager) | State::Running(mut manager) => {
                manager.close().map_err(EbpfRuntimeError::Manager)
            }
            State::Stopped => Ok(()),
        }
    }

    /// Whether the programs are started and not stopped.
    pub fn is_healthy(&self) -> bool {
        matches!(*self.state.lock().unwrap_or_else(PoisonError::into_inner), State::Running(_))
    }
}
