//! From setup to drain: one processor after the other, as the policy says.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::work::{End, Orders, Thread, Work};
use super::{Incarnation, ObserverRuntime, SharedSource, Stage};
use crate::backoff::{Jitter, restart_delay};
use crate::clock::boot_now_ns;
use crate::config::FailurePolicy;
use crate::delivery::thread_name;
use crate::error::describe;
use crate::ledger::FailReason;
use crate::panic::{contain, contain_future, contain_with_timeout};
use crate::pipeline::{Failure, Scratch};
use crate::processor::{EventProcessor, LifecycleError};
use crate::shutdown::Shutdown;
use crate::source::{Source, SourceLedger};

/// How often a degraded observer is tried again.
const DEGRADED_RETRY: Duration = Duration::from_secs(3_600);

/// Why an observer's run ended, other than by a shutdown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// It ran before.
    #[error("observer {observer} was run before: build a new one")]
    AlreadyRan {
        /// The observer.
        observer: String,
    },
    /// It could not be set up or its source not be started.
    #[error("observer {observer} could not be started: {why}")]
    Start {
        /// The observer.
        observer: String,
        /// What failed, with all that brought it about.
        why: String,
        /// Its policy.
        policy: FailurePolicy,
    },
    /// It failed, and its policy is not to start it again.
    #[error("observer {observer} failed: {why}")]
    Failed {
        /// The observer.
        observer: String,
        /// What failed.
        why: String,
        /// Its policy.
        policy: FailurePolicy,
    },
}

impl RunError {
    /// The observer.
    #[must_use]
    pub fn observer(&self) -> &str {
        match self {
            RunError::AlreadyRan { observer }
            | RunError::Start { observer, .. }
            | RunError::Failed { observer, .. } => observer,
        }
    }

    /// Whether the policy asks the whole program to end.
    #[must_use]
    pub fn is_fail_fast(&self) -> bool {
        matches!(
            self,
            RunError::Start { policy: FailurePolicy::FailFast, .. }
                | RunError::Failed { policy: FailurePolicy::FailFast, .. }
        )
    }
}

/// Why an incarnation ended.
enum Outcome {
    /// The shutdown began.
    Shutdown,
    /// The source has no more records.
    Drained,
    /// It failed; this is left to do.
    Failed(String, VecDeque<Work>),
    /// It hangs, with a thread inside that is left behind; this is left to do.
    Hung(String, VecDeque<Work>),
}

/// What a thread is at. It makes progress while this changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// A piece of work, and which record of it.
    Record(u64, usize),
    /// Its source, where records wait, after this many that it has read.
    Unread(u64),
}

/// What does not return.
enum Hung {
    /// The processor; this is left to do.
    Processor(VecDeque<Work>),
    /// The source's read.
    Source,
}

/// Starts within a period, and when to try next.
struct Restarts {
    recent: VecDeque<Instant>,
    row: u32,
    /// Failed too often: tried hourly, until a run lasts for a whole period.
    degraded: bool,
    jitter: Jitter,
}

impl ObserverRuntime {
    /// Sets the processor up, starts the source, and runs until the shutdown
    /// begins, the source ends, or the observer fails for good. Drains before
    /// it returns: what was accepted is delivered, or counted as dropped.
    ///
    /// # Errors
    /// It ran before; it could not be started; it failed and its policy is not
    /// to start it again.
    pub async fn run(self: Arc<Self>, shutdown: Shutdown) -> Result<(), RunError> {
        {
            let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
            if *stage != Stage::New {
                return Err(RunError::AlreadyRan { observer: self.name.clone() });
            }
            *stage = Stage::Starting;
        }
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner).take();
        let source = match source.map(attach).transpose() {
            Ok(source) => source,
            Err(why) => {
                self.set_stage(Stage::Ended);
                return Err(self.start_error(why));
            }
        };
        let checks = tokio::spawn(Arc::clone(&self.health).run(shutdown.clone()));
        let folds = tokio::spawn(Arc::clone(&self).end_storms());
        // Until the end, the drain included: dropped with this function.
        let mut watchers = JoinSet::new();
        for emitter in &self.owned {
            watchers.spawn(emitter.supervise());
        }
        let result = self.run_incarnations(source, &shutdown).await;
        self.set_stage(Stage::Ended);
        folds.abort();
        checks.abort();
        // A little less than all of it: the emitters are ended after this.
        self.drain(shutdown.begun_at() + self.drain_deadline.mul_f64(0.9)).await;
        if let Err(error) = &result {
            self.health.mark_unhealthy(error.to_string());
        }
        result
    }

    async fn run_incarnations(
        self: &Arc<Self>,
        source: Option<SharedSource>,
        shutdown: &Shutdown,
    ) -> Result<(), RunError> {
        let mut todo = VecDeque::new();
        let mut restarts = Restarts {
            recent: VecDeque::new(),
            row: 0,
            degraded: false,
            jitter: Jitter::new(&self.name),
        };
        let mut first = true;
        let result = loop {
            let began = Instant::now();
            let outcome = match self.incarnate(shutdown).await {
                Ok((incarnation, failures)) => {
                    let outcome = self
                        .run_once(&incarnation, failures, source.as_ref(), todo, first, shutdown)
                        .await;
                    incarnation.go_down();
                    if matches!(outcome, Ok(Outcome::Hung(..))) {
                        // Whoever hangs inside may hold what teardown needs.
                        tracing::warn!(observer = %self.name, "not torn down: it hangs");
                    } else {
                        self.teardown(&**incarnation.processor).await;
                    }
                    outcome
                }
                Err(why) if first => Err(self.start_error(why)),
                Err(why) => Ok(Outcome::Failed(why, todo)),
            };
            first = false;
            match outcome {
                Ok(Outcome::Shutdown | Outcome::Drained) => break Ok(()),
                Err(error) => break Err(error),
                Ok(Outcome::Failed(why, left) | Outcome::Hung(why, left)) => {
                    let policy = self.config().failure.policy;
                    tracing::error!(observer = %self.name, %why, ?policy, "observer failed");
                    // There is one source, and none is used again after a panic.
                    let is_lost = source.as_ref().is_some_and(SharedSource::has_panicked);
                    if policy != FailurePolicy::Restart || is_lost {
                        self.give_up(left);
                        break Err(RunError::Failed { observer: self.name.clone(), why, policy });
                    }
                    todo = left;
                    let lasted = began.elapsed();
                    if self.wait_to_restart(&mut restarts, lasted, &why, shutdown).await
                        || self.wait_for_source(source.as_ref(), shutdown).await
                    {
                        self.give_up(todo);
                        break Ok(());
                    }
                }
            }
        };
        if let Some(source) = source {
            self.close_source(&source);
        }
        result
    }

    fn start_error(&self, why: String) -> RunError {
        let policy = self.config().failure.policy;
        // Now: the report comes when all has ended, which may be in a year.
        tracing::error!(observer = %self.name, %why, ?policy, "observer could not be started");
        RunError::Start { observer: self.name.clone(), why, policy }
    }

    /// What is left of the time to drain for what did not end by itself when
    /// the shutdown began.
    async fn half_of_the_drain(&self, shutdown: &Shutdown) {
        shutdown.begun().await;
        tokio::time::sleep_until(shutdown.begun_at() + self.drain_deadline / 2).await;
    }

    /// Makes a processor and sets it up.
    async fn incarnate(
        &self,
        shutdown: &Shutdown,
    ) -> Result<(Arc<Incarnation>, mpsc::UnboundedReceiver<Failure>), String> {
        let processor = contain("processor factory", || self.factory.make())
            .map_err(|panicked| panicked.to_string())?;
        let config = self.config();
        let set_up = match contain("processor setup", || processor.setup(&config)) {
            Ok(future) => tokio::select! {
                result = contain_future("processor setup", future) => result,
                () = self.half_of_the_drain(shutdown) => {
                    Ok(Err(LifecycleError::new("did not end before the shutdown")))
                }
            },
            Err(panicked) => Err(panicked),
        };
        let problem = match set_up {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("setup: {}", describe(&error))),
            Err(panicked) => Some(panicked.to_string()),
        };
        if let Some(problem) = problem {
            self.teardown(&*processor).await;
            return Err(problem);
        }
        let (failures, receiver) = mpsc::unbounded_channel();
        let incarnation = Incarnation::new(processor, self.concurrency == 1, failures);
        Ok((Arc::new(incarnation), receiver))
    }

    async fn teardown(&self, processor: &dyn EventProcessor) {
        let limit = self.drain_deadline / 4;
        let teardown =
            contain_with_timeout("processor teardown", limit, |_| processor.teardown()).await;
        match teardown {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(observer = %self.name, error = %describe(&error), "teardown failed");
            }
            Err(error) => {
                tracing::warn!(observer = %self.name, %error, "teardown failed");
            }
        }
    }

    /// Runs one processor until it fails, the source ends or the shutdown
    /// begins.
    async fn run_once(
        self: &Arc<Self>,
        incarnation: &Arc<Incarnation>,
        mut failures: mpsc::UnboundedReceiver<Failure>,
        source: Option<&SharedSource>,
        todo: VecDeque<Work>,
        first: bool,
        shutdown: &Shutdown,
    ) -> Result<Outcome, RunError> {
        let orders = Arc::new(Orders::default());
        let mut thread = match source {
            None => None,
            Some(source) => {
                let records = todo.iter().map(Work::len).sum();
                let started = tokio::select! {
                    started = self.start_thread(incarnation, source, &orders, todo, first) => {
                        started
                    }
                    () = self.half_of_the_drain(shutdown) => {
                        Err("its source did not start before the shutdown".to_owned())
                    }
                };
                match started {
                    Ok(thread) => Some(thread),
                    Err(why) if first => return Err(self.start_error(why)),
                    Err(why) => {
                        // They went with the thread that could not be started.
                        self.give_up_records(records);
                        return Ok(Outcome::Failed(why, VecDeque::new()));
                    }
                }
            }
        };
        let current = Some(Arc::clone(incarnation));
        *self.incarnation.write().unwrap_or_else(PoisonError::into_inner) = current;
        self.set_stage(Stage::Running);
        self.health.mark_healthy();
        *self.up_since.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(std::time::Instant::now());
        let failed = tokio::select! {
            () = shutdown.begun() => None,
            end = ended(&mut thread) => {
                thread = None;
                Some(self.outcome_of(end))
            }
            hung = self.hang(source) => {
                // The thread is left behind; it can't be ended.
                thread = None;
                Some(match hung {
                    Hung::Processor(left) => Outcome::Hung(self.hang_message(), left),
                    Hung::Source => {
                        // Should it come back, it is to touch nothing more.
                        orders.quit.store(true, Ordering::Release);
                        let why = "records wait, and its source's read does not return";
                        Outcome::Failed(why.to_owned(), VecDeque::new())
                    }
                })
            }
            Some(Failure::Fatal(why)) = failures.recv() => Some(Outcome::Failed(why, VecDeque::new())),
        };
        match failed {
            Some(Outcome::Hung(why, left)) => Ok(Outcome::Hung(why, left)),
            Some(Outcome::Failed(why, mut left)) => {
                // A failure through process_event: the thread has work of its own.
                left.extend(self.stop_thread(thread, &orders, source).await);
                Ok(Outcome::Failed(why, left))
            }
            Some(outcome) => Ok(outcome),
            None => {
                self.drain_source(thread, &orders, source, shutdown.begun_at()).await;
                Ok(Outcome::Shutdown)
            }
        }
    }

    fn outcome_of(&self, end: Option<End>) -> Outcome {
        match end {
            Some(End::Drained | End::Superseded) => Outcome::Drained,
            Some(End::Quit(left)) => Outcome::Failed("told to end".to_owned(), left),
            Some(End::SourceFailed(why, left)) => Outcome::Failed(why, left),
            Some(End::Failed(Failure::Fatal(why), left)) => Outcome::Failed(why, left),
            Some(End::Failed(Failure::Panicked(panicked), left)) => {
                tracing::debug!(observer = %self.name, backtrace = %panicked.backtrace, "backtrace");
                Outcome::Failed(panicked.to_string(), left)
            }
            None => {
                Outcome::Failed("the observer's thread ended unexpectedly".into(), VecDeque::new())
            }
        }
    }

    /// Starts the thread; the first one starts the source, on the thread, so
    /// that observers start side by side.
    async fn start_thread(
        self: &Arc<Self>,
        incarnation: &Arc<Incarnation>,
        source: &SharedSource,
        orders: &Arc<Orders>,
        todo: VecDeque<Work>,
        first: bool,
    ) -> Result<oneshot::Receiver<End>, String> {
        let thread = Thread {
            runtime: Arc::clone(self),
            incarnation: Arc::clone(incarnation),
            source: source.clone(),
            seat: Arc::clone(&self.seat),
            orders: Arc::clone(orders),
            todo,
        };
        let (started, has_started) = oneshot::channel();
        let (ended, has_ended) = oneshot::channel();
        let spawned =
            std::thread::Builder::new().name(thread_name("obs", &self.name)).spawn(move || {
                let result = if first { start(&thread.source) } else { Ok(None) };
                let failed = result.is_err();
                if started.send(result).is_err() || failed {
                    return;
                }
                let runtime = Arc::clone(&thread.runtime);
                // Nobody waits any more where the thread was left behind.
                if let Err(End::Quit(left) | End::Failed(_, left) | End::SourceFailed(_, left)) =
                    ended.send(thread.run())
                {
                    runtime.give_up(left);
                }
            });
        spawned.map_err(|error| format!("its thread could not be started: {error}"))?;
        let ledger = match has_started.await {
            Ok(result) => result?,
            Err(_gone) => return Err("the source panicked when it was started".into()),
        };
        if let Some(ledger) = ledger
            && self.source_ledger.set(ledger).is_err()
        {
            tracing::debug!(observer = %self.name, "the source was started twice");
        }
        Ok(has_ended)
    }

    /// Waits until the thread has had work and made no progress for too long:
    /// a record that it is at, or records that wait unread in its source.
    async fn hang(&self, source: Option<&SharedSource>) -> Hung {
        let mut config = self.config.subscribe();
        let mut before = None;
        let mut since = Instant::now();
        let mut woken = false;
        loop {
            let limit = config.borrow_and_update().health.hang_timeout.0;
            // Idle costs one wake-up per limit; work is looked at twice as often.
            let pause = if before.is_some() { limit / 2 } else { limit };
            // Whose limit was an hour looks anew with one of a second.
            if tokio::time::timeout(pause, config.changed()).await.is_ok() {
                continue;
            }
            let now = self.at();
            if now.is_none() || now != before {
                (before, since, woken) = (now, Instant::now(), false);
                continue;
            }
            if since.elapsed() < limit {
                continue;
            }
            match (now, source) {
                (Some(At::Unread(_)), Some(source)) if !woken => {
                    // Whatever its read waits for, records are there.
                    source.interrupt();
                    (since, woken) = (Instant::now(), true);
                }
                (Some(At::Unread(_)), _) => return Hung::Source,
                _ => {
                    if let Some((left, at_a_record)) = self.seat.take_over() {
                        self.count_hung(at_a_record);
                        return Hung::Processor(left);
                    }
                }
            }
        }
    }

    /// What the thread has to do; `None` if that is nothing.
    fn at(&self) -> Option<At> {
        if let Some((beat, record)) = self.seat.progress() {
            return Some(At::Record(beat, record));
        }
        let ledger = self.source_ledger.get()?;
        let counts = contain("source ledger", || ledger.counts()).ok()?;
        let received = self.pipeline.counts.received_from_source.load(Ordering::Relaxed);
        (counts.in_ring > 0).then_some(At::Unread(received))
    }

    fn count_hung(&self, at_a_record: bool) {
        if !at_a_record {
            return;
        }
        self.pipeline.fail(FailReason::Hang, 1);
        self.pipeline.counts.processing.fetch_sub(1, Ordering::Relaxed);
    }

    fn hang_message(&self) -> String {
        let limit = self.config().health.hang_timeout;
        format!("had a record and made no progress for {limit}: its thread is left behind")
    }

    /// Ends the thread at once; returns what it leaves to do.
    async fn stop_thread(
        &self,
        thread: Option<oneshot::Receiver<End>>,
        orders: &Orders,
        source: Option<&SharedSource>,
    ) -> VecDeque<Work> {
        let (Some(thread), Some(source)) = (thread, source) else { return VecDeque::new() };
        orders.quit.store(true, Ordering::Release);
        source.interrupt();
        match tokio::time::timeout(self.drain_deadline / 2, thread).await {
            Ok(Ok(End::Quit(left) | End::Failed(_, left) | End::SourceFailed(_, left))) => left,
            Ok(_) => VecDeque::new(),
            Err(_late) => self.take_from_hung(),
        }
    }

    fn take_from_hung(&self) -> VecDeque<Work> {
        match self.seat.take_over() {
            Some((left, at_a_record)) => {
                self.count_hung(at_a_record);
                left
            }
            None => VecDeque::new(),
        }
    }

    /// Stops the source and lets the thread read what is left, for half of the
    /// time that there is to drain: the emitters need theirs.
    async fn drain_source(
        &self,
        thread: Option<oneshot::Receiver<End>>,
        orders: &Orders,
        source: Option<&SharedSource>,
        begun: Instant,
    ) {
        let (Some(thread), Some(source)) = (thread, source) else { return };
        orders.drain.store(true, Ordering::Release);
        source.interrupt();
        let until = begun + self.drain_deadline / 2;
        match tokio::time::timeout_at(until, thread).await {
            Ok(Ok(End::Failed(_, left) | End::SourceFailed(_, left) | End::Quit(left))) => {
                tracing::error!(observer = %self.name, "failed while it drained");
                self.give_up(left);
            }
            Ok(_) => {}
            Err(_late) => {
                orders.quit.store(true, Ordering::Release);
                source.interrupt();
                tracing::error!(observer = %self.name, "did not drain in time");
                self.give_up(self.take_from_hung());
            }
        }
    }

    fn close_source(&self, source: &SharedSource) {
        if source.has_panicked() {
            return;
        }
        // A thread that was left behind inside `read` still holds it.
        match source.source.try_lock() {
            Ok(mut source) => {
                if let Err(panicked) = contain("source stop", || source.stop()) {
                    tracing::warn!(observer = %self.name, error = %panicked, "source panicked");
                }
            }
            Err(_) => tracing::warn!(observer = %self.name, "its source is still in use"),
        }
    }

    /// Waits until the next start; `true` if the shutdown began meanwhile.
    async fn wait_to_restart(
        &self,
        restarts: &mut Restarts,
        lasted: Duration,
        why: &str,
        shutdown: &Shutdown,
    ) -> bool {
        // Nobody reads the source now, so nobody else ends its storms.
        self.fold_bell.notify_one();
        let config = self.config();
        let retry = &config.failure.retry;
        let now = Instant::now();
        restarts.recent.retain(|at| now.duration_since(*at) < retry.period.0);
        if lasted >= retry.period.0 {
            (restarts.row, restarts.degraded) = (0, false);
        }
        restarts.degraded |= restarts.recent.len() >= retry.max_attempts as usize;
        let delay = if restarts.degraded {
            self.health.mark_degraded(format!("failed too often, tried hourly: {why}"));
            DEGRADED_RETRY
        } else {
            self.health.mark_unhealthy(format!("restarts: {why}"));
            restart_delay(restarts.row, retry, &mut restarts.jitter)
        };
        restarts.row = restarts.row.saturating_add(1);
        restarts.recent.push_back(now);
        tracing::info!(observer = %self.name, ?delay, "restarts");
        let is_over = tokio::time::timeout(delay, shutdown.begun()).await.is_ok();
        self.restarts.fetch_add(u64::from(!is_over), Ordering::Relaxed);
        is_over
    }

    /// Waits until no thread that was left behind is inside the source any more:
    /// another one would only wait behind it. `true` if the shutdown began.
    async fn wait_for_source(&self, source: Option<&SharedSource>, shutdown: &Shutdown) -> bool {
        while source.is_some_and(SharedSource::is_in_use) {
            self.health.mark_unhealthy("waits for its source, whose read does not return");
            let pause = self.config().health.hang_timeout.0;
            if tokio::time::timeout(pause, shutdown.begun()).await.is_ok() {
                return true;
            }
        }
        false
    }

    /// Ends the windows of storms that came through `process_event`, and of all
    /// while the observer is down; else those from the source are ended by its
    /// thread.
    async fn end_storms(self: Arc<Self>) {
        let mut scratch = Scratch::default();
        loop {
            match self.pipeline.next_fold_ns() {
                None => self.fold_bell.notified().await,
                Some(end) => {
                    let wait = Duration::from_nanos(end.saturating_sub(boot_now_ns()));
                    tokio::time::sleep(wait.max(Duration::from_millis(1))).await;
                    self.pipeline.fold_until(Some(boot_now_ns()), &mut scratch);
                }
            }
        }
    }

    /// Ends all storms, closes the lanes and waits until they are empty; what
    /// is left at the deadline is counted as dropped.
    async fn drain(&self, deadline: Instant) {
        self.pipeline.fold_until(None, &mut Scratch::default());
        for (lane, bell) in &self.pipeline.lanes {
            lane.close();
            bell.ring();
        }
        for (lane, bell) in &self.pipeline.lanes {
            if tokio::time::timeout_at(deadline, lane.settled()).await.is_err() {
                lane.give_up();
                bell.ring();
            }
        }
        for emitter in &self.owned {
            if !emitter.end(deadline).await {
                tracing::warn!(emitter = emitter.name(), "did not end in time; left behind");
            }
        }
    }
}

fn attach(source: Box<dyn Source>) -> Result<SharedSource, String> {
    let interrupter = contain("source interrupter", || source.interrupter())
        .map_err(|panicked| panicked.to_string())?;
    Ok(SharedSource { source: Arc::new(Mutex::new(source)), interrupter })
}

/// Starts the source, and asks it for its counters while nobody reads from it.
fn start(source: &SharedSource) -> Result<Option<Arc<dyn SourceLedger>>, String> {
    let start = || {
        let mut source = source.lock();
        source.start().map(|()| source.ledger())
    };
    match contain("source start", start) {
        Ok(Ok(ledger)) => Ok(ledger),
        Ok(Err(error)) => Err(describe(&error)),
        Err(panicked) => Err(panicked.to_string()),
    }
}

async fn ended(thread: &mut Option<oneshot::Receiver<End>>) -> Option<End> {
    match thread {
        Some(thread) => thread.await.ok(),
        None => std::future::pending().await,
    }
}
