//! Takes events from lanes to one emitter, on a thread of its own.
//!
//! The worker drains its lanes round-robin, critical first, and hands batches
//! to the emitter, one at a time. A slow or dead emitter fills its own lanes
//! and holds up nobody else. What a batch came to is accounted to the lanes
//! that its events came from.

mod durable;
mod seat;
mod sender;
mod worker;

use std::fmt;
use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::ClockPair;
use crate::config::BackpressureConfig;
use crate::doorbell::Doorbell;
use crate::durable::DurableLog;
use crate::emitter::EventEmitter;
use crate::event::{AGENT_GAP, Event};
use crate::lane::Lane;
use crate::latency::{Batch, Histogram};
use crate::ledger::LaneLine;
use crate::metrics::Sample;
use crate::panic::{Panicked, contain};
use crate::pool::EventPool;
use crate::queue::QueueConfig;

use self::sender::Sender;

/// Makes an emitter: one at the start, a fresh one after a panic.
pub type EmitterFactory = Box<dyn Fn() -> Box<dyn EventEmitter> + Send>;

/// How an emitter is served.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmitterConfig {
    /// How often a critical emitter tries a batch again.
    pub max_retries: u32,
    /// How long an event waits at most for a batch to fill.
    pub drain_interval: Duration,
    /// How long one call may take before it counts as failed. One that blocks
    /// its thread a quarter longer is left behind, and a fresh emitter goes on
    /// (see [`EmitterHandle::supervise`]).
    pub emit_timeout: Duration,
    /// How many bytes of events it is handed at once, at most; one event at
    /// least. Of a durable emitter its log decides.
    pub max_batch_bytes: usize,
}

impl Default for EmitterConfig {
    fn default() -> Self {
        let backpressure = BackpressureConfig::default();
        EmitterConfig {
            max_retries: backpressure.max_retries,
            drain_interval: backpressure.drain_interval.0,
            emit_timeout: Duration::from_secs(30),
            max_batch_bytes: 4 << 20,
        }
    }
}

/// How an emitter does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmitterState {
    /// The last batch arrived, or there was none yet.
    Working,
    /// The last batch did not arrive; why.
    Failing(String),
    /// It has ended.
    Ended,
}

/// A call that takes longer than this, or a log that does not answer for so
/// long, is told as a failing emitter.
const STALLED: Duration = Duration::from_secs(5);

struct Shared {
    name: String,
    lanes: Mutex<Vec<Arc<Lane>>>,
    /// Goes up when a lane is added, so that the worker looks again.
    lanes_version: AtomicU64,
    bell: Arc<Doorbell>,
    /// Set when the emitter is to end once its lanes are empty.
    ending: watch::Sender<bool>,
    parts: seat::Parts,
    seat: seat::Seat,
    /// Set when the time to drain is over; ends a wait between tries.
    over: watch::Sender<bool>,
    ended: watch::Sender<bool>,
    state: Mutex<EmitterState>,
    panics: AtomicU64,
    latencies: Latencies,
    /// Where a durable emitter is served from; it has no lanes then.
    log: Option<Arc<dyn DurableLog>>,
}

/// How long after it happened an event was where, of those that were delivered.
#[derive(Debug, Default)]
pub struct Latencies {
    /// Accepted by the observer.
    pub accepted: Histogram,
    /// Delivered by the emitter.
    pub delivered: Histogram,
}

impl Latencies {
    /// Counts events that are delivered now; a summary by what it tells of last.
    fn count<'a>(&self, events: impl Iterator<Item = &'a Event>) {
        let now = ClockPair::now().wall_ns;
        let (mut accepted, mut delivered) = (Batch::default(), Batch::default());
        // A gap begins long before anybody could tell of it.
        for event in events.filter(|event| *event.kind != AGENT_GAP) {
            let happened = event.time_ns.max(event.last_ns);
            accepted.add(event.observed_ns.saturating_sub(happened));
            delivered.add(now.saturating_sub(happened));
        }
        self.accepted.add(&accepted);
        self.delivered.add(&delivered);
    }
}

/// One emitter and its worker, shared by the observers that emit to it.
///
/// Dropping the last handle ends the worker once its lanes are closed and
/// empty; [`end`](EmitterHandle::end) waits for that.
#[derive(Debug, Clone)]
pub struct EmitterHandle {
    shared: Arc<Shared>,
    /// Dropped with the last handle; the worker holds `shared` only.
    _last: Arc<EndOnDrop>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emitter").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct EndOnDrop {
    shared: Arc<Shared>,
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.shared.begin_end();
    }
}

/// Why an emitter could not be started.
#[derive(Debug, thiserror::Error)]
pub enum EmitterStartError {
    /// Making it panicked.
    #[error("the emitter could not be made")]
    Panicked(#[from] Panicked),
    /// Its thread or event loop could not be started.
    #[error("the emitter's thread could not be started")]
    Thread(#[from] std::io::Error),
}

impl EmitterHandle {
    /// Makes the emitter and starts its worker.
    ///
    /// # Errors
    /// The factory panicked, or the thread could not be started.
    pub fn start(
        factory: impl Fn() -> Box<dyn EventEmitter> + Send + 'static,
        config: EmitterConfig,
    ) -> Result<Self, EmitterStartError> {
        Self::start_served(Box::new(factory), config, None)
    }

    /// Makes an emitter that is served from a log instead of lanes: what it
    /// fails to take is tried again until it is acknowledged, or the log gives
    /// it up. `max_retries` and `drain_interval` do not apply.
    ///
    /// # Errors
    /// The factory panicked, or the thread could not be started.
    pub fn start_durable(
        factory: impl Fn() -> Box<dyn EventEmitter> + Send + 'static,
        config: EmitterConfig,
        log: Arc<dyn DurableLog>,
    ) -> Result<Self, EmitterStartError> {
        Self::start_served(Box::new(factory), config, Some(log))
    }

    fn start_served(
        factory: EmitterFactory,
        config: EmitterConfig,
        log: Option<Arc<dyn DurableLog>>,
    ) -> Result<Self, EmitterStartError> {
        let emitter = contain("emitter factory", &factory)?;
        let name = contain("emitter name", || emitter.name().to_owned())?;
        let parts = seat::Parts::new(factory, &*emitter, config)?;
        let shared = Arc::new(Shared {
            name,
            lanes: Mutex::new(Vec::new()),
            lanes_version: AtomicU64::new(0),
            bell: Arc::new(Doorbell::new()),
            ending: watch::Sender::new(false),
            parts,
            seat: seat::Seat::new(),
            over: watch::Sender::new(false),
            ended: watch::Sender::new(false),
            state: Mutex::new(EmitterState::Working),
            panics: AtomicU64::new(0),
            latencies: Latencies::default(),
            log,
        });
        seat::start(&shared, Sender::new(Arc::clone(&shared), 0, Some(emitter)), None)?;
        let last = Arc::new(EndOnDrop { shared: Arc::clone(&shared) });
        Ok(EmitterHandle { shared, _last: last })
    }

    /// How it is served.
    #[must_use]
    pub fn config(&self) -> EmitterConfig {
        self.shared.parts.config()
    }

    /// Serves it otherwise, from the next try and the next batch on; what waited
    /// for a batch to fill is sent.
    ///
    /// ```
    /// use std::time::Duration;
    /// use vahti_runtime::delivery::{EmitterConfig, EmitterHandle};
    /// use vahti_runtime::testing::CapturingEmitter;
    ///
    /// let (make, _captured) = CapturingEmitter::new("capture");
    /// let emitter = EmitterHandle::start(move || Box::new(make()), EmitterConfig::default())?;
    /// emitter.reconfigure(EmitterConfig { max_retries: 7, ..emitter.config() });
    /// assert_eq!(emitter.config().max_retries, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reconfigure(&self, config: EmitterConfig) {
        self.shared.parts.reconfigure(config);
        self.shared.bell.ring();
    }

    /// The emitter's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Adds an observer's lane.
    pub(crate) fn add_lane(
        &self,
        observer: &str,
        backpressure: &BackpressureConfig,
        pool: &Arc<EventPool>,
    ) -> Arc<Lane> {
        let config = QueueConfig::of(backpressure);
        let lane = Arc::new(Lane::new(observer, &self.shared.name, config, Arc::clone(pool)));
        let mut lanes = self.shared.lock_lanes();
        if *self.shared.ending.borrow() {
            lane.close();
        }
        lanes.push(Arc::clone(&lane));
        drop(lanes);
        self.shared.lanes_version.fetch_add(1, Ordering::Release);
        lane
    }

    pub(crate) fn bell(&self) -> Arc<Doorbell> {
        Arc::clone(&self.shared.bell)
    }

    /// How it does.
    #[must_use]
    pub fn state(&self) -> EmitterState {
        if let Some(waits) = self.shared.seat.waits_for_log()
            && waits >= STALLED.min(self.shared.call_limit())
        {
            let seconds = waits.as_secs();
            return EmitterState::Failing(format!(
                "has been waiting for the store for {seconds} s"
            ));
        }
        if let Some(busy) = self.shared.seat.busy_for()
            && busy >= STALLED
        {
            let seconds = busy.as_secs();
            return EmitterState::Failing(format!("has been sending a batch for {seconds} s"));
        }
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says that it fails before it was handed anything, as whoever made it knows.
    /// The first batch that arrives says otherwise.
    pub fn begins_failing(&self, why: String) {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *state == EmitterState::Working {
            *state = EmitterState::Failing(why);
        }
    }

    /// How often it panicked and was made anew.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.shared.panics.load(Ordering::Relaxed)
    }

    /// How long events took until they were delivered.
    #[must_use]
    pub fn latencies(&self) -> &Latencies {
        &self.shared.latencies
    }

    /// What it counts of its own.
    #[must_use]
    pub fn samples(&self) -> Vec<Sample> {
        self.shared.parts.meter.as_ref().map_or_else(Vec::new, |meter| meter())
    }

    /// Whether it is served from a log, rather than from lanes.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.shared.log.is_some()
    }

    /// The lane lines of all observers that emit to it; of a durable emitter,
    /// the account that the log keeps of it.
    #[must_use]
    pub fn lane_lines(&self) -> Vec<LaneLine> {
        if let Some(log) = &self.shared.log {
            return vec![log.line(&self.shared.name)];
        }
        self.shared.lock_lanes().iter().map(|lane| lane.line()).collect()
    }

    /// Ends it: what its closed lanes still hold is delivered until the
    /// deadline; what is left then is counted as dropped at shutdown. Returns
    /// whether the worker came to its end in time (one that blocks its thread
    /// is left behind).
    pub async fn end(&self, deadline: tokio::time::Instant) -> bool {
        self.shared.begin_end();
        let mut ended = self.shared.ended.subscribe();
        if tokio::time::timeout_at(deadline, ended.wait_for(|ended| *ended)).await.is_ok() {
            return true;
        }
        self.give_up();
        // A worker that only waited between two tries ends at once.
        let grace = Duration::from_millis(50);
        tokio::time::timeout(grace, ended.wait_for(|ended| *ended)).await.is_ok()
    }

    /// Begins its end: what its lanes hold is still delivered.
    pub(crate) fn begin_end(&self) {
        self.shared.begin_end();
    }

    fn give_up(&self) {
        for lane in self.shared.lock_lanes().iter() {
            lane.give_up();
        }
        self.shared.over.send_replace(true);
        self.shared.bell.ring();
    }
}

impl Shared {
    /// After how long a call is taken over. One that waits without blocking its
    /// thread ends by its own timer first.
    fn call_limit(&self) -> Duration {
        let timeout = self.parts.config().emit_timeout;
        timeout + timeout / 4
    }

    fn lock_lanes(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Lane>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin_end(&self) {
        let lanes = self.lock_lanes();
        self.ending.send_replace(true);
        for lane in lanes.iter() {
            lane.close();
        }
        drop(lanes);
        self.bell.ring();
    }

    fn set_state(&self, state: EmitterState) {
        let mut current = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let emitter = &self.name;
        match (&*current, &state) {
            (EmitterState::Working, EmitterState::Failing(why)) => {
                tracing::warn!(%emitter, %why, "the emitter fails; the ledger counts what that costs");
            }
            (EmitterState::Failing(_), EmitterState::Working) => {
                tracing::info!(%emitter, "the emitter works again");
            }
            _ => {}
        }
        *current = state;
    }

    fn has_work(&self) -> bool {
        self.lock_lanes().iter().any(|lane| lane.has_work())
    }

    /// Whether it is to end, or nothing more comes: who is told to stop closes
    /// the lanes first, and waits for what they hold.
    fn ends(&self) -> bool {
        let lanes = self.lock_lanes();
        *self.ending.borrow() || (!lanes.is_empty() && lanes.iter().all(|lane| lane.is_closed()))
    }

    /// Waits until it is to end.
    async fn comes_to_its_end(&self) {
        let mut ending = self.ending.subscribe();
        let lanes = self.lock_lanes().clone();
        let closed = async {
            for lane in &lanes {
                lane.closed().await;
            }
            if !self.ends() {
                // There are none, or more by now.
                pending::<()>().await;
            }
        };
        tokio::select! {
            () = closed => {}
            // It lives as long as this does.
            _ = ending.wait_for(|ending| *ending) => {}
        }
    }

    fn waiting(&self) -> usize {
        self.lock_lanes().iter().map(|lane| lane.waiting().0.items).sum()
    }

    /// Whether there is enough for a batch that is worth its price, or more than
    /// lanes should be kept waiting with.
    fn has_enough(&self) -> bool {
        let (mut items, mut bytes) = (0, 0);
        for lane in self.lock_lanes().iter() {
            let (fill, half_full) = lane.waiting();
            if half_full {
                return true;
            }
            items += fill.items;
            bytes += fill.bytes;
        }
        items >= self.parts.min_batch || bytes >= self.parts.config().max_batch_bytes
    }
}

/// A thread's name: the kernel keeps 15 bytes of it.
pub(crate) fn thread_name(role: &str, name: &str) -> String {
    let name: String = name.chars().filter(|c| !c.is_control()).take(40).collect();
    format!("{role}-{name}")
}
