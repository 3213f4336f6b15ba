//! Who may call the emitter, and what becomes of a call that never returns.
//!
//! A call that blocks its thread can't be ended: no timer of that thread fires,
//! and threads can't be killed. So the worker takes a seat for each call, and a
//! watcher elsewhere takes the seat over when the call has lasted for too long:
//! a fresh worker with a fresh emitter goes on, on a fresh thread. Whoever has
//! lost the seat changes nothing any more, whatever its call comes to.
//!
//! A log that does not answer the worker of a durable emitter is waited for: a
//! fresh worker would wait for the same log. It is told, and once it has lasted
//! as long as calls of an emitter may until that is stuck, so is this one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::durable::DurableWorker;
use super::sender::Sender;
use super::worker::Worker;
use super::{EmitterConfig, EmitterFactory, EmitterHandle, EmitterState, Shared, thread_name};
use crate::clock::boot_now_ns;
use crate::doorbell::Doorbell;
use crate::emitter::{EventEmitter, Meter};
use crate::event::Event;
use crate::panic::{Panicked, contain};

/// Threads that one emitter may leave behind, at most. When one of them comes
/// back, its place is free again.
const MAX_LEFT_BEHIND: usize = 4;

/// What every worker of an emitter is made of.
pub(super) struct Parts {
    /// Locked while it runs, as it need not be `Sync`.
    pub(super) factory: Mutex<EmitterFactory>,
    config: watch::Sender<EmitterConfig>,
    pub(super) critical: bool,
    pub(super) max_batch: usize,
    pub(super) min_batch: usize,
    pub(super) waits_for_reader: bool,
    pub(super) meter: Option<Meter>,
}

impl Parts {
    pub(super) fn new(
        factory: EmitterFactory,
        emitter: &dyn EventEmitter,
        config: EmitterConfig,
    ) -> Result<Self, Panicked> {
        contain("emitter settings", || {
            let max_batch = emitter.max_batch().max(1);
            Parts {
                factory: Mutex::new(factory),
                config: watch::Sender::new(config),
                critical: emitter.is_critical(),
                max_batch,
                min_batch: emitter.min_batch().clamp(1, max_batch),
                waits_for_reader: emitter.waits_for_reader(),
                meter: emitter.meter(),
            }
        })
    }

    pub(super) fn config(&self) -> EmitterConfig {
        *self.config.borrow()
    }

    pub(super) fn reconfigure(&self, config: EmitterConfig) {
        self.config.send_replace(config);
    }
}

/// A batch that goes on with the next worker: what is critical is tried again.
#[derive(Debug)]
pub(super) struct InHand {
    pub(super) events: Vec<Arc<Event>>,
    pub(super) from: Vec<u32>,
    pub(super) epochs: Vec<u64>,
    /// How often it had failed before this call.
    pub(super) failures: u32,
}

/// What the next worker begins with.
#[derive(Debug)]
pub(super) struct Inheritance {
    pub(super) turn: u64,
    /// Calls in a row that did not return.
    pub(super) row: u32,
    pub(super) in_hand: Option<InHand>,
}

#[derive(Debug, Default)]
struct Call {
    /// Which worker has the seat: goes up when it is taken over.
    turn: u64,
    /// When the call under way began, by the boot clock.
    since_ns: Option<u64>,
    /// How long it may last, as it was when it began.
    limit: Duration,
    in_hand: Option<InHand>,
    /// When the log was asked that has not answered yet, by the boot clock.
    log_since_ns: Option<u64>,
    left_behind: usize,
    /// Taken over one after the other, without a call that returned.
    row: u32,
    taken_over: u64,
    /// Has work, makes no progress, and can't be replaced.
    stuck: bool,
}

#[derive(Debug)]
pub(super) struct Seat {
    call: Mutex<Call>,
    /// Tells the watcher of a call, if it sleeps.
    bell: Doorbell,
}

fn since(began_ns: u64) -> Duration {
    Duration::from_nanos(boot_now_ns().saturating_sub(began_ns))
}

enum Look {
    /// No call is under way.
    Idle,
    /// One is, which has this long left.
    Busy(Duration),
    /// The log has not answered for longer than a call may take.
    WaitsForLog,
    /// A call lasted for longer than this.
    TakenOver(Inheritance, Duration),
    /// Too many threads are left behind already.
    Full,
}

impl Seat {
    pub(super) fn new() -> Self {
        Seat { call: Mutex::default(), bell: Doorbell::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Call> {
        self.call.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call begins, which may last for this long.
    pub(super) fn sit(&self, in_hand: Option<InHand>, limit: Duration) {
        let mut call = self.lock();
        (call.since_ns, call.limit) = (Some(boot_now_ns()), limit);
        call.in_hand = in_hand;
        drop(call);
        self.bell.ring();
    }

    /// The call returned. Whether the seat is still the caller's: if not, what
    /// it was given was accounted for, and somebody else goes on.
    pub(super) fn rise(&self, turn: u64) -> bool {
        let mut call = self.lock();
        if call.turn != turn {
            return false;
        }
        (call.since_ns, call.row, call.stuck) = (None, 0, false);
        let in_hand = call.in_hand.take();
        drop(call);
        // Before the batch's memory is handed back, which only its last owner can.
        drop(in_hand);
        true
    }

    /// The log is asked for something.
    pub(super) fn ask_log(&self) {
        self.lock().log_since_ns = Some(boot_now_ns());
        self.bell.ring();
    }

    /// The log answered.
    pub(super) fn log_answered(&self) {
        self.lock().log_since_ns = None;
    }

    /// For how long the log has not answered.
    pub(super) fn waits_for_log(&self) -> Option<Duration> {
        self.lock().log_since_ns.map(since)
    }

    /// A worker that had lost the seat came back and is gone.
    pub(super) fn came_back(&self) {
        self.lock().left_behind -= 1;
    }

    /// How long the call under way has lasted.
    pub(super) fn busy_for(&self) -> Option<Duration> {
        self.lock().since_ns.map(since)
    }

    pub(super) fn is_stuck(&self, limit: Duration) -> bool {
        let call = self.lock();
        let patience = limit.saturating_mul(MAX_LEFT_BEHIND as u32 + 1);
        call.stuck || call.log_since_ns.is_some_and(|at| since(at) >= patience)
    }

    pub(super) fn taken_over(&self) -> u64 {
        self.lock().taken_over
    }

    /// By the limit that is in force now.
    fn look(&self, limit: Duration) -> Look {
        let mut call = self.lock();
        let (began_ns, limit) = match (call.since_ns, call.log_since_ns) {
            // Its own timer may have been set just before the limit changed or
            // just after, and is to end it first.
            (Some(began_ns), _) => (began_ns, limit.max(call.limit)),
            (None, Some(asked_ns)) => (asked_ns, limit),
            (None, None) => return Look::Idle,
        };
        let left = limit.saturating_sub(since(began_ns));
        if !left.is_zero() {
            return Look::Busy(left);
        }
        if call.since_ns.is_none() {
            return Look::WaitsForLog;
        }
        if call.left_behind >= MAX_LEFT_BEHIND {
            call.stuck = true;
            return Look::Full;
        }
        call.turn += 1;
        call.left_behind += 1;
        call.taken_over += 1;
        call.row = call.row.saturating_add(1);
        (call.since_ns, call.stuck) = (None, false);
        let in_hand = call.in_hand.take();
        Look::TakenOver(Inheritance { turn: call.turn, row: call.row, in_hand }, limit)
    }
}

impl EmitterHandle {
    /// Takes over from a worker whose call does not return: a fresh emitter on
    /// a fresh thread goes on, and what was in flight is tried again if the
    /// emitter is critical, else counted as dropped. Four threads are left
    /// behind at most; then the emitter [is stuck](Self::is_stuck).
    ///
    /// To be run by whoever started the emitter; ends with the emitter, and
    /// sleeps without a timeout while no call is under way.
    /// [`Supervisor::run`](crate::supervisor::Supervisor::run) does it for its
    /// emitters, an observer for those of its own.
    pub fn supervise(&self) -> impl Future<Output = ()> + Send + use<> {
        // Not the handle, whose last one ends the emitter.
        let shared = Arc::clone(&self.shared);
        async move {
            let mut ended = shared.ended.subscribe();
            tokio::select! {
                _ = ended.wait_for(|ended| *ended) => {}
                () = watch(&shared) => {}
            }
        }
    }

    /// Whether it has work, makes no progress, and can't be replaced any more:
    /// only a new process can help. A durable one whose log does not answer is,
    /// after the same time as one whose calls never return.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.shared.seat.is_stuck(self.shared.call_limit())
    }

    /// How often a call did not return and a fresh emitter took over.
    #[must_use]
    pub fn taken_over(&self) -> u64 {
        self.shared.seat.taken_over()
    }
}

async fn watch(shared: &Arc<Shared>) {
    let seat = &shared.seat;
    let mut changed = shared.parts.config.subscribe();
    if shared.parts.waits_for_reader {
        return std::future::pending().await;
    }
    let is_busy = || {
        let call = seat.lock();
        call.since_ns.is_some() || call.log_since_ns.is_some()
    };
    loop {
        seat.bell.wait(is_busy).await;
        changed.mark_unchanged();
        let limit = shared.call_limit();
        match seat.look(limit) {
            Look::Idle => {}
            // The next call may have less time than what this one has left.
            Look::Busy(left) => sleep_unless(&mut changed, left.min(limit)).await,
            Look::WaitsForLog => {
                tracing::error!(emitter = %shared.name, "the store does not answer it: it waits");
                until_the_log_answers(shared, &mut changed).await;
            }
            Look::TakenOver(inheritance, lasted) => take_over(shared, inheritance, lasted),
            Look::Full => {
                let why = "no call returns, and too many threads are left behind";
                tracing::error!(emitter = %shared.name, "{why}: it is stuck");
                shared.set_state(EmitterState::Failing(why.to_owned()));
                wait_for_a_place(shared, &mut changed).await;
            }
        }
    }
}

/// Sleeps for this long, unless the emitter is to be served otherwise.
async fn sleep_unless(changed: &mut watch::Receiver<EmitterConfig>, time: Duration) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        // It is heard as long as the emitter is there.
        _ = changed.changed() => {}
    }
}

async fn until_the_log_answers(shared: &Shared, changed: &mut watch::Receiver<EmitterConfig>) {
    let seat = &shared.seat;
    let asked_ns = seat.lock().log_since_ns;
    while seat.lock().log_since_ns == asked_ns && asked_ns.is_some() {
        sleep_unless(changed, shared.call_limit()).await;
    }
}

/// Rare enough to look now and then.
async fn wait_for_a_place(shared: &Shared, changed: &mut watch::Receiver<EmitterConfig>) {
    loop {
        sleep_unless(changed, shared.call_limit()).await;
        let call = shared.seat.lock();
        if call.since_ns.is_none() || call.left_behind < MAX_LEFT_BEHIND {
            return;
        }
    }
}

fn take_over(shared: &Arc<Shared>, inheritance: Inheritance, lasted: Duration) {
    let why = format!("a call did not return within {lasted:?}");
    tracing::error!(emitter = %shared.name, %why, "its thread is left behind; a fresh one goes on");
    shared.set_state(EmitterState::Failing(why));
    if inheritance.in_hand.is_none() {
        for lane in shared.lock_lanes().iter() {
            lane.give_up_in_flight();
        }
    }
    let sender = Sender::new(Arc::clone(shared), inheritance.turn, None);
    if let Err(error) = start(shared, sender, Some(inheritance)) {
        tracing::error!(emitter = %shared.name, %error, "no thread can be started: it is stuck");
        shared.seat.lock().stuck = true;
    }
}

/// Starts a worker's thread.
pub(super) fn start(
    shared: &Arc<Shared>,
    sender: Sender,
    inheritance: Option<Inheritance>,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = Guard { shared: Arc::clone(shared) };
    let thread = std::thread::Builder::new().name(thread_name("emit", &shared.name));
    match shared.log.clone() {
        None => {
            let worker = Worker::new(sender, inheritance);
            thread.spawn(move || {
                let _guard = guard;
                runtime.block_on(worker.run());
            })
        }
        Some(log) => {
            let worker = DurableWorker::new(sender, inheritance, log);
            thread.spawn(move || {
                let _guard = guard;
                runtime.block_on(worker.run());
            })
        }
    }
    .map(drop)
}

/// Tells if a worker's thread ended by a panic of our own: nobody takes from
/// the lanes any more.
struct Guard {
    shared: Arc<Shared>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.seat.lock().stuck = true;
            self.shared.set_state(EmitterState::Failing("its thread has ended".to_owned()));
        }
    }
}
