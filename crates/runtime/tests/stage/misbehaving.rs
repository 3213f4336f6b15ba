//! Processors and emitters that misbehave on demand.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::panic)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use vahti_runtime::emitter::{Delivery, Emission, EmitOutcome, EventEmitter};
use vahti_runtime::event::{ErrorInfo, Event, EventKind, Priority, Severity};
use vahti_runtime::observer::ObserverRuntime;
use vahti_runtime::processor::{EventProcessor, Output, ProcessError, RawRecord};

pub static NORMAL: EventKind = EventKind::custom("test.normal", "test", "normal", Priority::Normal);
pub static STORM: EventKind =
    EventKind::custom("test.storm", "test", "storm", Priority::Normal).folding();
pub static CRITICAL: EventKind =
    EventKind::custom("test.critical", "test", "critical", Priority::Critical);

/// Lets all through while it is open.
#[derive(Default)]
pub struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub fn wait(&self) {
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.opened.wait(open).unwrap();
        }
    }

    pub fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    pub fn close(&self) {
        *self.open.lock().unwrap() = false;
    }
}

/// Does what a record's first byte says.
pub struct Obedient {
    pub name: &'static str,
    pub hang: Arc<Gate>,
    pub made: Arc<AtomicU64>,
    pub torn_down: Arc<AtomicU64>,
}

#[derive(Clone, Default)]
pub struct Handles {
    pub hang: Arc<Gate>,
    pub made: Arc<AtomicU64>,
    pub torn_down: Arc<AtomicU64>,
}

impl Handles {
    pub fn factory(&self, name: &'static str) -> impl Fn() -> Obedient + Send + Sync + 'static {
        let handles = self.clone();
        move || {
            handles.made.fetch_add(1, Ordering::SeqCst);
            Obedient {
                name,
                hang: Arc::clone(&handles.hang),
                made: Arc::clone(&handles.made),
                torn_down: Arc::clone(&handles.torn_down),
            }
        }
    }
}

impl EventProcessor for Obedient {
    fn name(&self) -> &str {
        self.name
    }

    fn process(&self, record: RawRecord<'_>) -> Result<Output, ProcessError> {
        let event = |kind| Event::new(kind, Severity::Info);
        match record.bytes {
            b"critical" => Ok(event(&CRITICAL).into()),
            [b's', b't', b'o', b'r', b'm', key @ ..] => Ok(storm(key).into()),
            b"failure" => Ok(Event::new(&NORMAL, Severity::Error).into()),
            b"several" => Ok(Output::Several(vec![event(&NORMAL), event(&CRITICAL)])),
            b"none" => Ok(Output::Nothing),
            b"bad" => Err(ProcessError::Malformed { what: "bad on purpose", len: 3 }),
            b"fatal" => Err(ProcessError::Fatal("fatal on purpose".into())),
            b"panic" => panic!("panics on purpose"),
            b"hang" => {
                self.hang.wait();
                Ok(event(&NORMAL).into())
            }
            _ => Ok(event(&NORMAL).into()),
        }
    }

    fn teardown(&self) -> vahti_runtime::processor::Lifecycle<'_> {
        self.torn_down.fetch_add(1, Ordering::SeqCst);
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Part of the storm of this key, the empty one included.
fn storm(key: &[u8]) -> Event {
    let code = String::from_utf8_lossy(key).into_owned().into();
    let error = ErrorInfo { code, message: "stormy".into(), cause: None };
    Event { error: Some(error), ..Event::new(&STORM, Severity::Info) }
}

/// What an emitter does with its nth batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Deliver,
    Retry,
    /// Not for minutes.
    Patience,
    Reject,
    Panic,
    /// Every second event arrives, the rest may be tried again.
    Half,
    /// One is rejected, and the other side does not say which.
    Unidentified,
    /// Answers for fewer events than it was given.
    TooShort,
    /// Takes its time.
    Slow,
}

/// Follows a list of moods, then delivers.
pub struct Moody {
    pub name: String,
    pub critical: bool,
    pub moods: Arc<Mutex<std::collections::VecDeque<Mood>>>,
    pub stalled: Option<Arc<Gate>>,
    pub arrived: Arc<AtomicU64>,
    pub closed: Arc<AtomicBool>,
}

impl EventEmitter for Moody {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_critical(&self) -> bool {
        self.critical
    }

    fn max_batch(&self) -> usize {
        64
    }

    fn emit<'a>(&'a mut self, batch: &'a [Arc<Event>]) -> Emission<'a, EmitOutcome> {
        if let Some(gate) = &self.stalled {
            gate.wait();
        }
        let mood = self.moods.lock().unwrap().pop_front().unwrap_or(Mood::Deliver);
        let reason = || format!("{mood:?} on purpose");
        let arrive = |events: &[Arc<Event>]| {
            let count: u64 = events.iter().map(|e| e.count).sum();
            self.arrived.fetch_add(count, Ordering::SeqCst);
        };
        let outcome = match mood {
            Mood::Deliver => {
                arrive(batch);
                EmitOutcome::Delivered
            }
            Mood::Retry => EmitOutcome::Retryable {
                reason: reason(),
                retry_after: Some(Duration::from_millis(1)),
            },
            Mood::Patience => EmitOutcome::Retryable {
                reason: reason(),
                retry_after: Some(Duration::from_secs(300)),
            },
            Mood::Reject => EmitOutcome::Rejected { reason: reason() },
            Mood::Panic => panic!("emitter panics on purpose"),
            Mood::Half | Mood::TooShort => {
                let answers = if mood == Mood::Half { batch.len() } else { batch.len() / 2 };
                let deliveries: Vec<_> = (0..answers)
                    .map(|n| if n % 2 == 0 { Delivery::Delivered } else { Delivery::Retryable })
                    .collect();
                for (event, delivery) in batch.iter().zip(&deliveries) {
                    if *delivery == Delivery::Delivered {
                        arrive(std::slice::from_ref(event));
                    }
                }
                EmitOutcome::Each { deliveries, reason: reason(), retry_after: None }
            }
            Mood::Unidentified => {
                arrive(&batch[1..]);
                EmitOutcome::RejectedUnidentified { rejected: 1, reason: reason() }
            }
            Mood::Slow => {
                arrive(batch);
                return Box::pin(async {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    EmitOutcome::Delivered
                });
            }
        };
        Box::pin(std::future::ready(outcome))
    }

    fn close(&mut self) -> Emission<'_, Result<(), String>> {
        self.closed.store(true, Ordering::SeqCst);
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Every line of the observer's ledger adds up, the lanes' included.
pub fn assert_exact(observer: &ObserverRuntime) {
    let ledger = observer.ledger();
    assert!(ledger.is_exact(), "{:?}\n{ledger:#?}", ledger.differences());
}

/// Polls until `what` holds.
pub async fn until(what: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it did not come true within 20 s");
}
