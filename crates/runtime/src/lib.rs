//! The observer runtime: write one [`EventProcessor`], get everything else.
//!
//! **The question it answers:** what became of each record that an observer was
//! given: which event, kept or not, delivered to whom, or lost where and why?
//! **Where its data comes from:** the [`Source`] that an observer brings, or
//! whoever calls [`process_event`]; nothing else. **What it never does:** attach
//! to the kernel, talk to a cluster, speak a wire format, or lose anything
//! uncounted; there is no eBPF, no Kubernetes and no exporter in here.
//! **Minimum kernel:** none. **Its metrics:** `vahti_events_seen_total` (observer,
//! type, subtype, severity, outcome; before sampling) and
//! `vahti_metrics_series_overflow_total`, and the ledger's lines
//! ([`ObserverLedger::samples`](ledger::ObserverLedger::samples)).
//!
//! # The way of an event
//!
//! ```text
//! source     processor       causality    sampling         lanes               emitter
//! bytes  →   bytes → event → its cause →  keep? weight  →  one per emitter  →  batch, retry
//!            (pure logic)                 storms folded    bounded, two        → wire, file
//!                                                          priorities
//! ```
//!
//! One observer is one source, one processor and one [`ObserverRuntime`], on a
//! thread of its own. Observers share nothing but emitters, so a slow emitter
//! holds up no other, and a noisy observer evicts nobody else's events.
//!
//! # A processor
//!
//! Bytes in, events out, and nothing besides: no I/O, no clock, no global. Time
//! comes with the record, so the same bytes give the same events anywhere.
//! Events of a kind that [folds](event::EventKind::folding) become one summary
//! with the exact count when they come in storms.
//!
//! ```
//! use vahti_runtime::event::{Event, EventKind, Priority, Severity};
//! use vahti_runtime::processor::{EventProcessor, Output, ProcessError, RawRecord};
//!
//! static DOOR_OPENED: EventKind =
//!     EventKind::custom("example.door.opened", "door", "opened", Priority::Critical);
//!
//! struct Door;
//!
//! impl EventProcessor for Door {
//!     fn name(&self) -> &str {
//!         "door"
//!     }
//!
//!     fn process(&self, record: RawRecord<'_>) -> Result<Output, ProcessError> {
//!         match record.bytes {
//!             b"open" => Ok(Event::new(&DOOR_OPENED, Severity::Warning).into()),
//!             b"close" => Ok(Output::Nothing),
//!             other => Err(ProcessError::Malformed { what: "door", len: other.len() }),
//!         }
//!     }
//! }
//!
//! // Pure logic is tested without a runtime.
//! let record = vahti_runtime::testing::record(b"open");
//! assert!(matches!(Door.process(record), Ok(Output::One(_))));
//! ```
//!
//! # A source
//!
//! Reads bytes and understands nothing. It copies what it has into the batch
//! and lets go of it, so that a slow processor never holds the kernel's ring.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//! use vahti_runtime::clock::ClockPair;
//! use vahti_runtime::processor::{RawRecord, RecordKind};
//! use vahti_runtime::source::{Interrupt, ReadOutcome, RecordBatch, Source, SourceError};
//!
//! /// Plays what was recorded.
//! struct Recording {
//!     lines: std::vec::IntoIter<&'static [u8]>,
//!     seq: u64,
//! }
//!
//! impl Source for Recording {
//!     fn name(&self) -> &str {
//!         "recording"
//!     }
//!
//!     fn read(
//!         &mut self,
//!         batch: &mut RecordBatch,
//!         _timeout: Option<Duration>,
//!     ) -> Result<ReadOutcome, SourceError> {
//!         let Some(bytes) = self.lines.next() else { return Ok(ReadOutcome::Ended) };
//!         self.seq += 1;
//!         let ClockPair { boot_ns, wall_ns } = ClockPair::now();
//!         let kind = RecordKind::Fact;
//!         batch.push(RawRecord { kind, boot_ns, wall_ns, cpu: 0, seq: self.seq, bytes });
//!         Ok(ReadOutcome::Read)
//!     }
//!
//!     fn stop(&mut self) {
//!         self.lines = Vec::new().into_iter();
//!     }
//!
//!     fn interrupter(&self) -> Arc<dyn Interrupt> {
//!         // Its reads never wait. One that waits returns what wakes it up.
//!         Arc::new(())
//!     }
//! }
//! ```
//!
//! # An emitter
//!
//! Gets batches on a thread of its own, and answers for each event: delivered,
//! to be tried again, or rejected for good. It may block, fail or panic; that
//! fills its own lanes and nobody else's.
//!
//! ```
//! use std::io::Write;
//! use std::sync::Arc;
//! use vahti_runtime::emitter::{Emission, EmitOutcome, EventEmitter};
//! use vahti_runtime::event::{Event, to_json_line};
//!
//! struct Lines<W>(W);
//!
//! impl<W: Write + Send> EventEmitter for Lines<W> {
//!     fn name(&self) -> &str {
//!         "lines"
//!     }
//!
//!     fn emit<'a>(&'a mut self, batch: &'a [Arc<Event>]) -> Emission<'a, EmitOutcome> {
//!         let mut lines = Vec::new();
//!         batch.iter().for_each(|event| to_json_line(event, &mut lines));
//!         let outcome = match self.0.write_all(&lines) {
//!             Ok(()) => EmitOutcome::Delivered,
//!             Err(error) => {
//!                 EmitOutcome::Retryable { reason: error.to_string(), retry_after: None }
//!             }
//!         };
//!         Box::pin(std::future::ready(outcome))
//!     }
//! }
//! ```
//!
//! An emitter that [is critical](emitter::EventEmitter::is_critical) is tried
//! again up to `max_retries` times; any other once.
//!
//! # Running it
//!
//! [`ObserverRuntime::run`] sets the processor up, reads until the shutdown
//! begins or the source ends, and drains before it returns. Several observers
//! run side by side under one [`Supervisor`](supervisor::Supervisor). The example
//! `hello_observer` is a whole observer on one page.
//!
//! # Configuration
//!
//! [`Config`](config::Config) is plain data with serde: unknown fields are
//! refused, and [`validate`](config::Config::validate) names the field, the
//! value and the bound.
//!
//! ```
//! use vahti_runtime::config::Config;
//!
//! let text = r#"{"backpressure": {"queue_size": 0, "drop_policy": "newest"}}"#;
//! let config = Config { name: "door".into(), ..serde_json::from_str(text)? };
//! let problem = config.validate().unwrap_err().to_string();
//! let bound = "a whole number from 1 to 10,000,000";
//! assert_eq!(problem, format!("backpressure.queue_size is 0, but must be {bound}"));
//! # Ok::<(), serde_json::Error>(())
//! ```
//!
//! # When it fails
//!
//! A panic, a [`Fatal`](processor::ProcessError::Fatal), a hang or a source that
//! can't be read triggers the [`FailurePolicy`](config::FailurePolicy):
//! *isolate* (this observer is down, the others run on), *restart* (a fresh
//! processor, later each time) or *fail_fast* (the program drains and ends).
//! State is never used again after a panic; one record is lost and counted.
//!
//! # Health, metrics, ledger
//!
//! [`health`](observer::ObserverRuntime::health) says how it does and why not better; add
//! checks of your own to its [`HealthChecker`](health::HealthChecker).
//! [`metrics`](observer::ObserverRuntime::metrics) counts events by the labels that the
//! configuration allows. The [`ledger`] adds up, exactly, whenever nothing
//! moves: what was received is in exactly one place.
//!
//! # Testing an observer
//!
//! [`testing`] has a source that plays what it is fed and an emitter that keeps
//! what it gets.
//!
//! ```
//! use std::sync::Arc;
//! use vahti_runtime::observer::ObserverRuntime;
//! use vahti_runtime::testing::{CapturingEmitter, FakeSource};
//! # use vahti_runtime::event::{Event, EventKind, Priority, Severity};
//! # use vahti_runtime::processor::{EventProcessor, Output, ProcessError, RawRecord};
//! # static DOOR_OPENED: EventKind =
//! #     EventKind::custom("example.door.opened", "door", "opened", Priority::Critical);
//! # struct Door;
//! # impl EventProcessor for Door {
//! #     fn name(&self) -> &str { "door" }
//! #     fn process(&self, record: RawRecord<'_>) -> Result<Output, ProcessError> {
//! #         match record.bytes {
//! #             b"open" => Ok(Event::new(&DOOR_OPENED, Severity::Warning).into()),
//! #             b"close" => Ok(Output::Nothing),
//! #             other => Err(ProcessError::Malformed { what: "door", len: other.len() }),
//! #         }
//! #     }
//! # }
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//!
//! let (source, feed) = FakeSource::new();
//! let (emitter, captured) = CapturingEmitter::new("capture");
//! let door = ObserverRuntime::builder(|| Door).source(source).emitter(emitter).build()?;
//! for bytes in ["open", "close", "kicked in"] {
//!     feed.push(bytes.as_bytes());
//! }
//! feed.end();
//! let (_trigger, shutdown) = vahti_runtime::shutdown::channel();
//! Arc::clone(&door).run(shutdown).await?;
//!
//! assert_eq!(captured.events()[0].kind, &DOOR_OPENED);
//! let ledger = door.ledger();
//! assert!(ledger.is_exact());
//! let records = &ledger.records;
//! assert_eq!((records.received, records.processed, records.ignored), (3, 1, 1));
//! assert_eq!(ledger.lanes[0].delivered.occurrences, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`EventProcessor`]: processor::EventProcessor
//! [`Source`]: source::Source
//! [`ObserverRuntime`]: observer::ObserverRuntime
//! [`ObserverRuntime::run`]: observer::ObserverRuntime::run
//! [`process_event`]: observer::ObserverRuntime::process_event

pub mod causality;
pub mod clock;
pub mod config;
pub mod delivery;
pub mod durable;
pub mod ebpf;
pub mod emitter;
pub mod error;
pub mod event;
pub mod health;
pub mod ids;
pub mod latency;
pub mod ledger;
pub mod memory;
pub mod metrics;
pub mod observer;
pub mod panic;
pub mod processor;
pub mod queue;
pub mod sampler;
pub mod shutdown;
pub mod source;
pub mod supervisor;
pub mod testing;
pub mod units;

mod backoff;
mod current;
mod doorbell;
mod fold;
mod lane;
mod pipeline;
mod pool;
mod sync;

#[cfg(all(test, shuttle))]
mod shuttle_tests;
