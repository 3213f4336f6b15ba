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
    /// `shutdown` begins, and what is in them then. Blocks.
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
    /// Which of them gave no proof in time, or none is attached.
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

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Attaches what its test says, and counts how often it is closed.
    #[derive(Debug, Default)]
    struct Fake {
        attached: Vec<String>,
        /// No program of this name exists, none of it is proven, or the
        /// manager can't be closed.
        broken: &'static str,
        closed: Arc<AtomicU32>,
    }

    impl Fake {
        fn unless_broken(&self, what: &str) -> Result<(), std::io::Error> {
            if self.broken == what { Err(std::io::Error::other(what.to_owned())) } else { Ok(()) }
        }
    }

    impl EbpfManager for Fake {
        type Program = ();
        type Map = ();
        type Error = std::io::Error;

        fn attach_kprobe(&mut self, program: &str, _: &str) -> Result<(), Self::Error> {
            self.unless_broken(program)?;
            self.attached.push(program.to_owned());
            Ok(())
        }

        fn attach_kretprobe(&mut self, program: &str, symbol: &str) -> Result<(), Self::Error> {
            self.attach_kprobe(program, symbol)
        }

        fn attach_tracepoint(
            &mut self,
            program: &str,
            group: &str,
            _: &str,
        ) -> Result<(), Self::Error> {
            self.attach_kprobe(program, group)
        }

        fn attach_tracepoint_with_program(
            &mut self,
            (): &mut (),
            group: &str,
            name: &str,
        ) -> Result<(), Self::Error> {
            self.attach_kprobe(name, group)
        }

        fn attach_raw_tracepoint(&mut self, program: &str, at: &str) -> Result<(), Self::Error> {
            self.attach_kprobe(program, at)
        }

        fn attach_btf_tracepoint(&mut self, program: &str, at: &str) -> Result<(), Self::Error> {
            self.attach_kprobe(program, at)
        }

        fn open_ring_buffer(&mut self, _: &str) -> Result<(), Self::Error> {
            Ok(())
        }

        fn read_events(
            &mut self,
            _: &Shutdown,
            _: &mut dyn FnMut(&[u8]),
        ) -> Result<(), Self::Error> {
            Ok(())
        }

        fn map(&mut self, _: &str) -> Result<(), Self::Error> {
            Ok(())
        }

        fn close(&mut self) -> Result<(), Self::Error> {
            self.closed.fetch_add(1, Ordering::SeqCst);
            self.unless_broken("close")
        }

        fn wait_for_ready(&mut self, _: Duration) -> Result<(), Self::Error> {
            self.unless_broken("proof")
        }
    }

    fn runtime(broken: &'static str) -> (EbpfRuntime<Fake>, Arc<AtomicU32>) {
        let fake = Fake { broken, ..Fake::default() };
        let closed = Arc::clone(&fake.closed);
        (EbpfRuntime::new(fake), closed)
    }

    fn start(runtime: &EbpfRuntime<Fake>) -> Result<(), String> {
        let attach = |fake: &mut Fake| fake.attach_raw_tracepoint("probe", "mark_victim");
        runtime.start(Duration::ZERO, attach).map_err(|error| crate::error::describe(&error))
    }

    #[test]
    fn programs_are_started_once_and_stopped_as_often_as_you_like() {
        let (runtime, closed) = runtime("");
        assert!(!runtime.is_healthy() && runtime.with(|_| ()).is_none(), "not started yet");
        start(&runtime).unwrap();
        assert!(runtime.is_healthy());
        assert_eq!(runtime.with(|fake| fake.attached.clone()), Some(vec!["probe".to_owned()]));
        let again = start(&runtime).unwrap_err();
        assert_eq!(again, "eBPF programs can be started once; they are running");
        assert!(runtime.is_healthy(), "a second start harms nothing");
        for _ in 0..2 {
            runtime.stop().unwrap();
            assert!(!runtime.is_healthy() && runtime.with(|_| ()).is_none());
            assert_eq!(closed.load(Ordering::SeqCst), 1, "closed once");
        }
        assert!(start(&runtime).unwrap_err().ends_with("they are stopped"));
    }

    #[test]
    fn a_start_that_fails_closes_all_and_is_final() {
        for (broken, why) in [("probe", "probe"), ("proof", "proof")] {
            let (runtime, closed) = runtime(broken);
            assert_eq!(start(&runtime), Err(format!("eBPF programs are not ready: {why}")));
            assert!(!runtime.is_healthy());
            assert_eq!(closed.load(Ordering::SeqCst), 1);
            assert!(start(&runtime).unwrap_err().ends_with("they are stopped"));
            runtime.stop().unwrap();
            assert_eq!(closed.load(Ordering::SeqCst), 1);
        }
    }

    #[test]
    fn what_can_not_be_closed_is_told_once_and_counts_as_stopped() {
        let (runtime, _) = runtime("close");
        start(&runtime).unwrap();
        assert!(runtime.stop().is_err());
        assert!(!runtime.is_healthy());
        runtime.stop().unwrap();
    }

    #[test]
    fn what_was_never_started_is_closed_when_it_is_stopped() {
        let (runtime, closed) = runtime("");
        runtime.stop().unwrap();
        assert_eq!(closed.load(Ordering::SeqCst), 1);
        assert!(start(&runtime).is_err());
    }
}
