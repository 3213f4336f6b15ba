//! `vahti run`: build, run, drain.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vahti_ebpf::rights;
use vahti_exporters::store::Store;
use vahti_runtime::delivery::{EmitterHandle, EmitterState};
use vahti_runtime::ledger::ObserverLedger;
use vahti_runtime::observer::ObserverRuntime;
use vahti_runtime::shutdown::{self, Shutdown};
use vahti_runtime::supervisor::{Report, Supervisor};

use crate::budget::{Division, Limits};
use crate::cli::RunArgs;
use crate::config::Config;
use crate::config::settings::{self, Overrides};
use crate::control::{self, Control, ControlError, Found, Reply};
use crate::gap::GapObserver;
use crate::health::{self, Pulse};
use crate::losses::NotKept;
use crate::notify::{Manager, Reloading, Status};
use crate::output::{FAILURE, Failed, Outcome, SUCCESS};
use crate::patience::Patience;
use crate::proofs::ProofMakers;
use crate::reload::{InForce, Inbox, Reloader, Requests};
use crate::resident::{self, Resident};
use crate::signals::Signals;
use crate::{emitters, http, log, losses, socket, store_path, wiring};

/// How exactly the beginning of a gap is known, where nothing was committed.
const ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How often it is tried to open a store that could not be opened at the start.
const BEGIN_INTERVAL: Duration = Duration::from_secs(2);
/// How long the end waits for the store to be closed.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// Watches this node until it is told to stop.
pub(crate) fn run(args: &RunArgs) -> Outcome {
    let (config, limits, in_force) = configuration(args)?;
    let _told = log::start(config.log);
    // Before any thread is started, so that all of them have them blocked.
    let signals = Signals::block().map_err(|e| system("block signals", &e))?;
    let running: Arc<OnceLock<Running>> = Arc::default();
    let makers: Arc<ProofMakers> = Arc::default();
    let folder = emitters::store_folder(&config, store_path::default_path)?;
    let (trigger, shutdown) = shutdown::channel();
    let nobody_reads = trigger.clone();
    // Before anything is waited for.
    let (requests, inbox) = Requests::new().map_err(|e| system("make a socket", &e))?;
    let asked = requests.clone();
    signals
        .watch(move || trigger.begin(), move || asked.by_signal())
        .map_err(|e| system("watch signals", &e))?;
    let patience = Patience::of(config.limits.drain_deadline.0, shutdown.clone());
    let _control = control(args, &running, &makers, requests, &patience)?;
    if shutdown.has_begun() {
        return Ok(SUCCESS);
    }
    // Before anything is made on the disk.
    rights::check().map_err(|error| wiring::refusal(&error))?;
    let open = |folder| emitters::open_store(&config, folder, &limits, &patience);
    let store = match folder.map(open).transpose()? {
        // Told to stop before there was anything to end.
        Some(None) => return Ok(SUCCESS),
        store => store.flatten(),
    };
    answer_over_http(&config, &running);
    let mut unless_started = EndUnlessStarted(store.clone());
    let emitters = emitters::start(&config, &limits, store.as_ref(), move || nobody_reads.begin())?;
    let observers = wiring::observers(&config, &limits, &emitters, &makers)?;
    let gap = store.as_ref().map(|store| gap_of(store, &config, &emitters)).transpose()?.flatten();
    let deadline = config.limits.drain_deadline.0;
    let supervisor = observers
        .iter()
        .fold(Supervisor::new(emitters.clone(), deadline), |s, o| s.observer(Arc::clone(o)));
    let supervisor =
        gap.iter().fold(supervisor, |supervisor, gap| supervisor.beside(Arc::clone(&gap.runtime)));
    let enabled = wiring::enabled(&config);
    let accounts = Arc::clone(&running);
    let running = running.get_or_init(|| Running {
        observers,
        emitters,
        enabled,
        gap,
        store,
        store_bytes: Arc::default(),
        in_force,
        pulse: Arc::default(),
        since: Instant::now(),
    });
    if let Some(store) = &running.store {
        store.set_ledger(move || accounts.get().map(Running::ledger).unwrap_or_default());
    }
    let alive = keep_alive(running).map_err(|e| system("start a thread for the store", &e))?;
    let runtime = executor()?;
    running.pulse.beats_on(runtime.handle().clone());
    let reloading = reload_when_asked(args, running, &shutdown, inbox)?;
    unless_started.0 = None;
    let report = runtime.block_on(async {
        let names = emitter_names(&config);
        let told =
            tokio::spawn(announce(running.clone(), names, shutdown.clone(), deadline, reloading));
        let report = supervisor.run(shutdown).await;
        told.abort();
        report
    });
    // Whatever still blocks a thread must not hold up the end.
    runtime.shutdown_background();
    if running.store.is_some() {
        end(alive);
    }
    Ok(conclude(&report, running))
}

/// What applies, with the memory divided.
fn configuration(args: &RunArgs) -> Result<(Config, Limits, Arc<InForce>), Failed> {
    let mut config = settings::resolve(args.overrides(), environment)
        .map_err(|invalid| Failed::usage(invalid.to_string()))?;
    let division =
        Division::of(&config).map_err(|unmet| Failed::usage(unmet.field().to_string()))?;
    let in_force = InForce::new(config.clone(), division.clone());
    division.apply(&mut config);
    Ok((config, division.limits, Arc::new(in_force)))
}

fn environment(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// Goes by what the configuration becomes, from now on.
fn reload_when_asked(
    args: &RunArgs,
    running: &Running,
    shutdown: &Shutdown,
    inbox: Inbox,
) -> Result<Reloading, Failed> {
    let reloading = Reloading::default();
    // The folder that the agent was started in may be another one by then.
    let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    let path = settings::file(&args.overrides(), environment).map(absolute);
    let reloader = Reloader {
        overrides: Overrides { config: path.clone(), again: true, ..args.overrides() },
        path,
        running: running.clone(),
        shutdown: shutdown.clone(),
        reloading: reloading.clone(),
    };
    reloader.begin(inbox).map_err(|e| system("start a thread for reloads", &e))?;
    Ok(reloading)
}

/// Answers for metrics and health, if that is wanted.
fn answer_over_http(config: &Config, running: &Arc<OnceLock<Running>>) {
    if let Some(listen) = config.http.listen.0 {
        let running = Arc::clone(running);
        http::begin(listen, Arc::new(move |ask: &http::Ask<'_>| http::page(ask, &running)));
    }
}

fn executor() -> Result<tokio::runtime::Runtime, Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.map_err(|e| system("start", &e))
}

/// A start that fails is no unclean end: nobody has watched since the last one.
struct EndUnlessStarted(Option<Store>);

impl Drop for EndUnlessStarted {
    fn drop(&mut self) {
        if let Some(store) = self.0.take() {
            store.end();
        }
    }
}

fn system(what: &str, error: &io::Error) -> Failed {
    Failed::failure(format!("cannot {what}: {error}"))
}

/// What runs, for whoever asks, on the control socket or over HTTP.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) observers: Vec<Arc<ObserverRuntime>>,
    pub(crate) emitters: Vec<EmitterHandle>,
    /// The observers that are wanted; some may not run here.
    pub(crate) enabled: Vec<&'static str>,
    /// What tells of the time before the start, if nobody watched then, or if
    /// that is not known yet.
    pub(crate) gap: Option<GapObserver>,
    pub(crate) store: Option<Store>,
    /// What the store's files took when that was looked at last: looking may
    /// take as long as the disk does.
    store_bytes: Arc<AtomicU64>,
    /// The configuration that is gone by.
    pub(crate) in_force: Arc<InForce>,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) since: Instant,
}

impl Running {
    pub(crate) fn store_bytes(&self) -> u64 {
        self.store_bytes.load(Ordering::Relaxed)
    }

    fn ledgers(&self) -> Vec<ObserverLedger> {
        let gap = self.gap.iter().filter(|gap| gap.was_there()).map(|gap| &gap.runtime);
        self.observers.iter().chain(gap).map(|observer| observer.ledger()).collect()
    }

    /// The ledger, and who takes how much memory.
    fn answer(&self) -> Vec<u8> {
        let mut answer = self.accounts();
        answer["memory"] = json!(self.in_force.division());
        answer["memory"]["resident"] = json!(Resident::of_this_process());
        answer.to_string().into_bytes()
    }

    fn ledger(&self) -> Vec<u8> {
        self.accounts().to_string().into_bytes()
    }

    fn accounts(&self) -> Value {
        let observers = self.ledgers();
        let emitters: Vec<_> = self.emitters.iter().map(emitter_state).collect();
        let mut ledger =
            json!({"pid": std::process::id(), "observers": observers, "emitters": emitters});
        if let Some(store) = &self.store {
            let durable = self.emitters.iter().filter(|emitter| emitter.is_durable());
            let lanes = std::iter::once(store.own_line());
            let lanes: Vec<_> = lanes.chain(durable.flat_map(EmitterHandle::lane_lines)).collect();
            let path = store_path::shown(store.folder());
            let (set_aside, open) = (store.set_aside(), store.has_begun());
            ledger["store"] =
                json!({"lanes": lanes, "set_aside": set_aside, "path": path, "open": open});
        }
        ledger
    }

    /// In one line. Whatever is down by its policy is told, and is not stuck:
    /// a new process would be no better.
    pub(crate) fn status(&self) -> Status {
        let mut parts = Vec::new();
        let (well, down): (Vec<_>, Vec<_>) = self.observers.iter().partition(|o| o.is_healthy());
        let names: Vec<&str> = well.iter().map(|o| o.name()).collect();
        parts.push(format!("watching: {}", or_nothing(&names)));
        parts.extend(down.iter().map(|o| format!("down: {} ({})", o.name(), o.health().reason)));
        for name in &self.enabled {
            if !self.observers.iter().any(|o| o.name() == *name) {
                parts.push(format!("can't run here: {name}"));
            }
        }
        let names: Vec<&str> = self.emitters.iter().map(EmitterHandle::name).collect();
        parts.push(format!("emitters: {}", or_nothing(&names)));
        for emitter in &self.emitters {
            if let EmitterState::Failing(why) = emitter.state() {
                parts.push(format!("failing: {} ({why})", emitter.name()));
            }
        }
        if let Some(why) = self.in_force.status().refused {
            parts.push(format!("new configuration refused: {why}"));
        }
        let stuck = self.emitters.iter().find(|e| e.is_stuck());
        let stuck = stuck.map(|e| format!("emitter {}", e.name()));
        Status { text: parts.join("; "), stuck }
    }
}

fn or_nothing(names: &[&str]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

pub(crate) fn emitter_state(emitter: &EmitterHandle) -> serde_json::Value {
    let (state, why) = match emitter.state() {
        EmitterState::Working => ("working", None),
        EmitterState::Failing(why) => ("failing", Some(why)),
        EmitterState::Ended => ("ended", None),
    };
    let mut value = json!({
        "name": emitter.name(),
        "state": state,
        "panics": emitter.panics(),
        "taken_over": emitter.taken_over(),
        "stuck": emitter.is_stuck(),
    });
    if let Some(why) = why {
        value["why"] = why.into();
    }
    value
}

/// Opens the control socket. Without one the agent still does its work, but
/// not beside another agent that keeps it, nor with a path that is a mistake.
fn control(
    args: &RunArgs,
    running: &Arc<OnceLock<Running>>,
    makers: &Arc<ProofMakers>,
    requests: Requests,
    patience: &Patience,
) -> Result<Option<(Option<Found>, Control)>, Failed> {
    let Some(path) = socket::path(args.socket.clone())? else {
        tracing::debug!("no folder for a control socket; `vahti ledger` won't work");
        return Ok(None);
    };
    let (running, makers) = (Arc::clone(running), Arc::clone(makers));
    let answer = move |request: &str, peer| match request.split_once(' ') {
        None if request == "ledger" => Some(Reply::Document(
            running
                .get()
                .map_or_else(|| br#"{"observers":[],"emitters":[]}"#.to_vec(), Running::answer),
        )),
        None if request == "health" => {
            let report = health::Report::of(running.get()).to_json();
            Some(Reply::Document(report.to_string().into_bytes()))
        }
        None if request == "log" => Some(Reply::Document(log::command::answer(None))),
        Some(("log", level)) => Some(Reply::Document(log::command::answer(Some(level)))),
        None if request == "reload" => Some(match requests.by_client() {
            Ok(answer) => Reply::Later(answer),
            Err(error) => {
                let error = json!({"error": format!("can't be asked for now: {error}")});
                Reply::Document(error.to_string().into_bytes())
            }
        }),
        Some(("prove", tgid)) => Some(makers.answer(tgid, peer)),
        _ => None,
    };
    match Control::start(&path, Arc::new(answer), patience) {
        Ok(control) => Ok(Some((be_found(&path), control))),
        Err(error @ ControlError::InUse { .. }) => Err(Failed::failure(error.to_string())),
        Err(error @ ControlError::Taken { .. }) => Err(Failed::usage(error.to_string())),
        // The caller looks at that itself.
        Err(ControlError::Stopped) => Ok(None),
        Err(error) => {
            tracing::warn!(%error, "`vahti ledger` won't work");
            Ok(None)
        }
    }
}

/// Has others find the control socket, to tell of proofs that they make.
fn be_found(path: &Path) -> Option<Found> {
    control::let_be_found(path).unwrap_or_else(|error| {
        tracing::debug!(%error, "others tell this agent of their proofs only if they know where");
        None
    })
}

fn emitter_names(config: &Config) -> String {
    let names: Vec<&str> = config.emitters.0.iter().map(|e| e.name()).collect();
    names.join(",")
}

/// Says so once every observer watches or has failed to: what happens from
/// this line on is seen. Then keeps the service manager informed, if one asks.
async fn announce(
    running: Running,
    emitters: String,
    shutdown: Shutdown,
    deadline: Duration,
    reloading: Reloading,
) {
    let mut watching = Vec::new();
    for observer in &running.observers {
        observer.started().await;
        if observer.is_healthy() {
            watching.push(observer.name());
        }
    }
    let observers = watching.join(",");
    tracing::info!(version = env!("CARGO_PKG_VERSION"), %observers, %emitters, "watching");
    resident::give_back_code();
    if let Some(gap) = &running.gap {
        gap.is_over();
    }
    if let Some(manager) = Manager::from_environment() {
        manager.attend(|| running.status(), shutdown, deadline, &reloading).await;
    }
}

/// What tells of the time before this agent, unless it is known that somebody
/// watched all the time.
fn gap_of(
    store: &Store,
    config: &Config,
    emitters: &[EmitterHandle],
) -> Result<Option<GapObserver>, Failed> {
    let (is_known, from_ns) = (store.has_begun(), store.gap_from_ns());
    if is_known && from_ns.is_none() {
        return Ok(None);
    }
    let gap = GapObserver::new(config, emitters)?;
    if is_known {
        gap.was_since(from_ns);
    }
    Ok(Some(gap))
}

/// Has the store know that the agent is alive, until it is taken away, and the
/// gap what a store that could not be opened at the start knows of it. On a
/// thread of its own: what is too old leaves then, and the disk or another
/// process's lock may hold that up, which must hold up nothing else.
fn keep_alive(running: &Running) -> io::Result<Alive> {
    let alive: Alive = Arc::new(Mutex::new(running.store.clone()));
    if running.store.is_none() {
        return Ok(alive);
    }
    let mut untold = running.gap.clone().filter(|gap| !gap.is_known());
    let (store, bytes) = (Arc::clone(&alive), Arc::clone(&running.store_bytes));
    let thread = std::thread::Builder::new().name("store-alive".to_owned());
    let look = move |store: &Store| {
        bytes.store(size_of_folder(store.folder()), Ordering::Relaxed);
    };
    let ticks = move || loop {
        store.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(&look);
        std::thread::sleep(if untold.is_some() { BEGIN_INTERVAL } else { ALIVE_INTERVAL });
        let store = store.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(store) = &*store else { return };
        store.tick();
        if store.has_begun()
            && let Some(gap) = untold.take()
        {
            tracing::info!("the store could be opened now; events are kept");
            gap.was_since(store.gap_from_ns());
        }
    };
    thread.spawn(ticks).map(|_| alive)
}

/// What the files of a folder take.
fn size_of_folder(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|file| file.len()).sum()
}

/// The store for as long as the agent is alive.
type Alive = Arc<Mutex<Option<Store>>>;

/// Closes the store, unless the disk holds that up for too long.
fn end(store: Alive) {
    let (done, ended) = mpsc::channel::<()>();
    let thread = std::thread::Builder::new().name("store-end".to_owned());
    let closes = thread.spawn(move || {
        // After a sign of life under way, which would have it look as if it
        // had not ended.
        let last = store.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(store) = last {
            store.end();
        }
        drop(done);
    });
    match closes {
        Ok(_) => {
            if ended.recv_timeout(END_PATIENCE) == Err(RecvTimeoutError::Timeout) {
                tracing::warn!(
                    "the store could not be closed in time; what was committed is kept, and the \
                     next start may tell of a gap"
                );
            }
        }
        Err(error) => tracing::warn!(%error, "the store could not be closed"),
    }
}

/// Tells what was not as it should be, and nothing otherwise.
fn conclude(report: &Report, running: &Running) -> u8 {
    log::lift_limit();
    for emitter in &report.stuck_emitters {
        tracing::warn!(emitter, "left behind: it did not end in time");
    }
    let ledgers = running.ledgers();
    for ledger in &ledgers {
        for lost in losses::of(ledger) {
            tracing::warn!("{lost}");
        }
        for difference in losses::differences(ledger) {
            tracing::error!("{difference}");
        }
    }
    let durable = running.emitters.iter().filter(|emitter| emitter.is_durable());
    let durable = durable.map(|emitter| emitter.name().to_owned()).collect();
    match NotKept::of(&ledgers, durable) {
        Some(lost) if lost.is_critical() => tracing::error!("{lost}"),
        Some(lost) => tracing::warn!("{lost}"),
        None => {}
    }
    // Each was told when it happened; this is what they mean for the end.
    for error in &report.failed {
        if report.is_success() {
            tracing::warn!("the others ran on without it: {error}");
        } else {
            tracing::error!("ending with a failure: {error}");
        }
    }
    if report.is_success() { SUCCESS } else { FAILURE }
}

#[cfg(test)]
mod tests {
    use vahti_exporters::store::StoreConfig;
    use vahti_runtime::config::{Config as ObserverConfig, FailurePolicy};
    use vahti_runtime::processor::{EventProcessor, Output, ProcessError, RawRecord};
    use vahti_runtime::testing::record;

    use super::*;

    /// Gives up at the first record.
    struct GivesUp;

    impl EventProcessor for GivesUp {
        fn name(&self) -> &str {
            "network"
        }

        fn process(&self, _: RawRecord<'_>) -> Result<Output, ProcessError> {
            Err(ProcessError::Fatal("no such device".to_owned()))
        }
    }

    #[test]
    fn the_end_waits_for_the_store_but_not_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let open = || {
            let config = StoreConfig::at(folder.path());
            Store::open(config, Vec::new(), Duration::ZERO).unwrap()
        };
        let alive: Alive = Arc::new(Mutex::new(Some(open())));
        end(Arc::clone(&alive));
        assert_eq!(open().gap_from_ns(), None, "it ended as it should");
        let held = alive.lock().unwrap();
        let begun = Instant::now();
        end(Arc::clone(&alive));
        assert!(begun.elapsed() >= END_PATIENCE, "{:?}", begun.elapsed());
        assert!(begun.elapsed() < 5 * END_PATIENCE, "{:?}", begun.elapsed());
        drop(held);
    }

    #[tokio::test]
    async fn an_observer_that_is_down_or_missing_is_named_and_is_not_stuck() {
        let mut config = ObserverConfig::for_observer("network");
        config.failure.policy = FailurePolicy::Isolate;
        let observer = ObserverRuntime::builder(|| GivesUp).config(config).build().unwrap();
        let (_trigger, shutdown) = shutdown::channel();
        let run = tokio::spawn(Arc::clone(&observer).run(shutdown));
        observer.started().await;
        let enabled = vec!["network", "container"];
        let emitters = Vec::new();
        let running = Running {
            observers: vec![observer],
            emitters,
            enabled,
            gap: None,
            store: None,
            store_bytes: Arc::default(),
            in_force: crate::reload::nothing(),
            pulse: Arc::default(),
            since: Instant::now(),
        };
        let now = running.status();
        let well = "watching: network; can't run here: container; emitters: nothing";
        assert_eq!((now.text.as_str(), now.stuck), (well, None));
        assert!(running.observers[0].process_event(record(b"x")).is_err());
        assert!(run.await.unwrap().is_err());
        let now = running.status();
        let down = "watching: nothing; down: network (observer network failed: no such device); \
                    can't run here: container; emitters: nothing";
        assert_eq!((now.text.as_str(), now.stuck), (down, None));
    }
}
