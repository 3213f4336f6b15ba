//! What goes wrong, by chance: each part asks its trouble what to do now, and
//! notes itself what it did.
#![allow(unreachable_pub)]

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use vahti_runtime::emitter::{Delivery, Emission, EmitOutcome, EventEmitter};
use vahti_runtime::event::{ErrorInfo, Event, EventKind, Priority, Severity};
use vahti_runtime::processor::{EventProcessor, LifecycleError, Output, ProcessError, RawRecord};
use vahti_runtime::source::{
    Interrupt, ReadOutcome, RecordBatch, Source, SourceError, SourceLedger,
};
use vahti_runtime::testing::FakeSource;

use crate::misbehaving::{CRITICAL, NORMAL, STORM};

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
/// generators, 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// How often a part misbehaves, for now.
pub struct Trouble {
    percent: AtomicU64,
    random: Mutex<Random>,
}

impl Trouble {
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Trouble { percent: AtomicU64::new(0), random: Mutex::new(Random(seed)) })
    }

    pub fn set(&self, percent: u64) {
        self.percent.store(percent, Ordering::SeqCst);
    }

    /// What to do wrong now, if anything.
    fn meets(&self) -> Option<u64> {
        let mut random = self.random.lock().unwrap();
        let wrong = random.percent(self.percent.load(Ordering::SeqCst));
        wrong.then(|| random.next() >> 8)
    }
}

/// Longer than emitters, sources and processors may take here.
pub const TOO_LONG: Duration = Duration::from_millis(200);

/// What an event is known by. The code names the record that it comes from,
/// once, but for storms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    pub id: String,
    pub code: String,
    pub critical: bool,
    pub count: u64,
}

impl Fact {
    fn of(event: &Event) -> Self {
        Fact {
            id: event.id.to_string(),
            code: event.error.as_ref().map_or_else(String::new, |e| e.code.to_string()),
            critical: event.kind.priority() == Priority::Critical,
            count: event.count,
        }
    }

    pub fn is_storm(&self) -> bool {
        self.code.starts_with("storm")
    }

    /// `c-1-17`: of which observer, and its place there.
    pub fn place(&self) -> (u64, u64) {
        let mut parts = self.code.split('-').skip(1).map(|part| part.parse().unwrap());
        (parts.next().unwrap(), parts.next().unwrap())
    }
}

/// What an emitter knows by itself.
#[derive(Default)]
pub struct Notes {
    met: BTreeSet<String>,
    /// In the order in which they came the first time.
    pub firsts: Vec<Fact>,
    pub has: BTreeMap<String, Fact>,
    /// Never to be taken, or alone with it when it panicked.
    pub refused: BTreeSet<String>,
    /// Occurrences that arrived, each time that they did.
    pub arrived: u64,
}

impl Notes {
    fn meet(&mut self, facts: &[Fact]) {
        for fact in facts {
            if self.met.insert(fact.id.clone()) {
                self.firsts.push(fact.clone());
            }
        }
    }

    fn take(&mut self, fact: &Fact) -> Delivery {
        self.arrived += fact.count;
        self.has.insert(fact.id.clone(), fact.clone());
        Delivery::Delivered
    }

    fn take_all(&mut self, facts: &[Fact]) {
        for fact in facts {
            self.take(fact);
        }
    }

    fn refuse(&mut self, fact: &Fact) -> Delivery {
        self.refused.insert(fact.id.clone());
        Delivery::Rejected
    }
}

/// An emitter in any mood; the other side always refuses some.
#[derive(Clone)]
pub struct Fickle {
    pub name: &'static str,
    pub critical: bool,
    pub trouble: Arc<Trouble>,
    pub notes: Arc<Mutex<Notes>>,
}

impl Fickle {
    pub fn notes(&self) -> MutexGuard<'_, Notes> {
        // It panics on purpose without the lock.
        self.notes.lock().unwrap()
    }

    fn answer(&self, facts: &[Fact], mood: u64) -> EmitOutcome {
        let reason = || "on purpose".to_owned();
        let each =
            |deliveries| EmitOutcome::Each { deliveries, reason: reason(), retry_after: None };
        match mood % 8 {
            0 => {
                let retry_after = Some(Duration::from_millis(1));
                EmitOutcome::Retryable { reason: reason(), retry_after }
            }
            1 => {
                let mut notes = self.notes();
                let turn = |(n, fact): (usize, &Fact)| match n % 3 {
                    0 => Delivery::Retryable,
                    _ => notes.take(fact),
                };
                each(facts.iter().enumerate().map(turn).collect())
            }
            2 => {
                let mut notes = self.notes();
                each(facts[..facts.len() / 2].iter().map(|fact| notes.take(fact)).collect())
            }
            3 => {
                let mut notes = self.notes();
                notes.refuse(&facts[0]);
                notes.take_all(&facts[1..]);
                EmitOutcome::RejectedUnidentified { rejected: 1, reason: reason() }
            }
            4 if facts.len() > 1 => EmitOutcome::TooLarge { reason: reason() },
            5 => {
                if let [alone] = facts {
                    self.notes().refuse(alone);
                }
                panic!("the emitter panics on purpose");
            }
            6 => {
                std::thread::sleep(TOO_LONG);
                self.take_all(facts, mood)
            }
            _ => self.take_all(facts, mood),
        }
    }

    fn take_all(&self, facts: &[Fact], mood: u64) -> EmitOutcome {
        let reason = "never".to_owned();
        let is_poison = |fact: &Fact| !fact.is_storm() && fact.place().1 % 61 == 7;
        let mut notes = self.notes();
        if !facts.iter().any(is_poison) {
            notes.take_all(facts);
            return EmitOutcome::Delivered;
        }
        if (mood / 8).is_multiple_of(2) || facts.len() == 1 {
            let each = |fact| if is_poison(fact) { notes.refuse(fact) } else { notes.take(fact) };
            let deliveries = facts.iter().map(each).collect();
            return EmitOutcome::Each { deliveries, reason, retry_after: None };
        }
        EmitOutcome::Rejected { reason }
    }
}

impl EventEmitter for Fickle {
    fn name(&self) -> &str {
        self.name
    }

    fn is_critical(&self) -> bool {
        self.critical
    }

    fn max_batch(&self) -> usize {
        48
    }

    fn emit<'a>(&'a mut self, batch: &'a [Arc<Event>]) -> Emission<'a, EmitOutcome> {
        let facts: Vec<Fact> = batch.iter().map(|event| Fact::of(event)).collect();
        self.notes().meet(&facts);
        let outcome = match self.trouble.meets() {
            // Hangs without blocking its thread.
            Some(mood) if mood % 8 == 7 => {
                return Box::pin(async {
                    tokio::time::sleep(10 * TOO_LONG).await;
                    EmitOutcome::Delivered
                });
            }
            Some(mood) => self.answer(&facts, mood),
            None => self.take_all(&facts, 0),
        };
        Box::pin(std::future::ready(outcome))
    }
}

/// A source that fails, and goes on when it is asked again.
pub struct Faulty {
    pub inner: FakeSource,
    pub trouble: Arc<Trouble>,
}

impl Source for Faulty {
    fn name(&self) -> &str {
        "faulty"
    }

    fn start(&mut self) -> Result<(), LifecycleError> {
        self.inner.start()
    }

    fn read(
        &mut self,
        batch: &mut RecordBatch,
        timeout: Option<Duration>,
    ) -> Result<ReadOutcome, SourceError> {
        match self.trouble.meets().map(|mood| mood % 200) {
            Some(0) => panic!("the source panics on purpose"),
            Some(1..25) => std::thread::sleep(TOO_LONG),
            Some(_) => {
                let what = "reading on purpose".to_owned();
                return Err(SourceError { source_name: "faulty".into(), what, error: None });
            }
            None => {}
        }
        self.inner.read(batch, timeout)
    }

    fn stop(&mut self) {
        self.inner.stop();
    }

    fn interrupter(&self) -> Arc<dyn Interrupt> {
        self.inner.interrupter()
    }

    fn ledger(&self) -> Option<Arc<dyn SourceLedger>> {
        self.inner.ledger()
    }
}

/// Does what a record says: `c-1-17` is a critical event of that code.
pub struct Obedient(pub &'static str);

impl EventProcessor for Obedient {
    fn name(&self) -> &str {
        self.0
    }

    fn process(&self, record: RawRecord<'_>) -> Result<Output, ProcessError> {
        let text = std::str::from_utf8(record.bytes).unwrap();
        match text {
            "none" => return Ok(Output::Nothing),
            "bad" => return Err(ProcessError::Malformed { what: "bad on purpose", len: 3 }),
            "fatal" => return Err(ProcessError::Fatal("fatal on purpose".into())),
            "panic" => panic!("the processor panics on purpose"),
            "hang" => {
                std::thread::sleep(TOO_LONG);
                return Ok(Output::Nothing);
            }
            _ => {}
        }
        Ok(match text.split_once('-') {
            Some(("c", _)) => event(&CRITICAL, text).into(),
            Some(("n", _)) => event(&NORMAL, text).into(),
            Some(("both", place)) => Output::Several(vec![
                event(&NORMAL, &format!("n-{place}")),
                event(&CRITICAL, &format!("c-{place}")),
            ]),
            _ => event(&STORM, text).into(),
        })
    }
}

fn event(kind: &'static EventKind, code: &str) -> Event {
    let code: Cow<'static, str> = code.to_owned().into();
    let error = ErrorInfo { code, message: "on purpose".into(), cause: None };
    Event { error: Some(error), ..Event::new(kind, Severity::Info) }
}
