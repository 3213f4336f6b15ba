//! Puts an `ObserverRuntime` together.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::work::Seat;
use super::{ObserverRuntime, Stage, checks};
use crate::causality::CausalityTracker;
use crate::config::{Config, InvalidConfig};
use crate::current::Current;
use crate::delivery::{EmitterConfig, EmitterHandle, EmitterStartError};
use crate::emitter::EventEmitter;
use crate::event::Origin;
use crate::fold::{FoldLimits, Folder};
use crate::health::HealthChecker;
use crate::ids::{BootId, EventIds};
use crate::ledger::ObserverCounts;
use crate::memory::CacheLimits;
use crate::metrics::Registry;
use crate::panic::{Panicked, contain};
use crate::pipeline::Pipeline;
use crate::pool::EventPool;
use crate::processor::ProcessorFactory;
use crate::sampler::Sampler;
use crate::source::Source;

/// Where the kernel tells which boot this is.
const BOOT_ID_PATH: &str = "/proc/sys/kernel/random/boot_id";
const HOSTNAME_PATH: &str = "/proc/sys/kernel/hostname";

type MakeEmitter = Box<dyn Fn() -> Box<dyn EventEmitter> + Send>;

/// Builds an [`ObserverRuntime`].
pub struct ObserverRuntimeBuilder {
    factory: Box<dyn ProcessorFactory>,
    config: Option<Config>,
    source: Option<Box<dyn Source>>,
    own: Vec<MakeEmitter>,
    shared: Vec<EmitterHandle>,
    node: Option<String>,
    boot_id: Option<BootId>,
    concurrency: usize,
    drain_deadline: Duration,
    sampling_disabled: bool,
    folding_disabled: bool,
    caches: CacheLimits,
}

/// Why a runtime could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A value is out of its bounds.
    #[error("configuration of observer {observer}")]
    Config {
        /// The observer.
        observer: String,
        /// Which values, and their bounds.
        #[source]
        invalid: InvalidConfig,
    },
    /// The factory of the processor panicked.
    #[error("the processor could not be made")]
    Processor(#[source] Panicked),
    /// An emitter could not be started.
    #[error("an emitter of observer {observer} could not be started")]
    Emitter {
        /// The observer.
        observer: String,
        /// Why.
        #[source]
        error: EmitterStartError,
    },
}

impl std::fmt::Debug for ObserverRuntimeBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObserverRuntimeBuilder")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl ObserverRuntimeBuilder {
    pub(super) fn new(factory: Box<dyn ProcessorFactory>) -> Self {
        ObserverRuntimeBuilder {
            factory,
            config: None,
            source: None,
            own: Vec::new(),
            shared: Vec::new(),
            node: None,
            boot_id: None,
            concurrency: 1,
            drain_deadline: Duration::from_secs(5),
            sampling_disabled: false,
            folding_disabled: false,
            caches: CacheLimits::default(),
        }
    }

    /// What it is configured with; the defaults under the processor's name
    /// otherwise.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = Some(config);
        self
    }

    /// Where records come from. Without one they come through `process_event`.
    #[must_use]
    pub fn source(mut self, source: impl Source + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// Adds an emitter of its own: made now, made anew after a panic, ended
    /// with the runtime.
    #[must_use]
    pub fn emitter<F, E>(mut self, make: F) -> Self
    where
        F: Fn() -> E + Send + 'static,
        E: EventEmitter + 'static,
    {
        self.own.push(Box::new(move || Box::new(make())));
        self
    }

    /// Adds an emitter that other observers emit to as well; whoever started
    /// it ends it. A durable one is served from its log and gets no lane.
    #[must_use]
    pub fn shared_emitter(mut self, emitter: &EmitterHandle) -> Self {
        self.shared.push(emitter.clone());
        self
    }

    /// The node's name in events; the host's name otherwise.
    #[must_use]
    pub fn node(mut self, name: &str) -> Self {
        self.node = Some(name.to_owned());
        self
    }

    /// Which boot the records come from; this one's otherwise. For replay.
    #[must_use]
    pub fn boot_id(mut self, boot_id: BootId) -> Self {
        self.boot_id = Some(boot_id);
        self
    }

    /// How many threads may be inside the processor at once through
    /// `process_event`; 1 unless set. A source is read by one thread always.
    #[must_use]
    pub fn concurrency(mut self, threads: usize) -> Self {
        self.concurrency = threads.max(1);
        self
    }

    /// How long the drain may take once the shutdown has begun; 5 s unless set.
    #[must_use]
    pub fn drain_deadline(mut self, deadline: Duration) -> Self {
        self.drain_deadline = deadline;
        self
    }

    /// How much it may keep in its caches.
    #[must_use]
    pub fn caches(mut self, limits: CacheLimits) -> Self {
        self.caches = limits;
        self
    }

    /// Keeps everything, whatever the configuration says. For tests.
    #[must_use]
    pub fn sampling_disabled(mut self) -> Self {
        self.sampling_disabled = true;
        self
    }

    /// Folds no storms. For recordings, where every event counts.
    #[must_use]
    pub fn folding_disabled(mut self) -> Self {
        self.folding_disabled = true;
        self
    }

    /// Checks the configuration, makes the emitters and puts it together.
    ///
    /// # Errors
    /// A value out of bounds, a factory that panics, a thread that can't be
    /// started.
    pub fn build(self) -> Result<Arc<ObserverRuntime>, BuildError> {
        let processor =
            contain("processor factory", || self.factory.make()).map_err(BuildError::Processor)?;
        let name = contain("processor name", || processor.name().to_owned())
            .map_err(BuildError::Processor)?;
        contain("processor drop", || drop(processor)).map_err(BuildError::Processor)?;
        let config = self.config.unwrap_or_else(|| Config::for_observer(&name));
        let name = if config.name.is_empty() { name } else { config.name.clone() };
        let config = Config { name: name.clone(), ..config };
        config
            .validate()
            .map_err(|invalid| BuildError::Config { observer: name.clone(), invalid })?;
        let owned = start_all(self.own, &config)?;
        let emitters: Vec<EmitterHandle> = owned
            .iter()
            .cloned()
            .chain(self.shared)
            .filter(|emitter| !emitter.is_durable())
            .collect();
        let pool = Arc::new(EventPool::default());
        let lanes = emitters
            .iter()
            .map(|e| (e.add_lane(&name, &config.backpressure, &pool), e.bell()))
            .collect();
        let node = self.node.unwrap_or_else(|| first_line(HOSTNAME_PATH));
        let keeps_all = self.sampling_disabled;
        let sampler = if keeps_all { Sampler::disabled() } else { Sampler::new(&config.sampling) };
        let limits = FoldLimits::of(&self.caches);
        let max_keys = if self.folding_disabled { 0 } else { limits.max_keys };
        let pipeline = Pipeline {
            origin: Origin::shared(&name, &node),
            ids: EventIds::new(&self.boot_id.unwrap_or_else(this_boot), &name),
            sampler: Current::new(sampler),
            causality: CausalityTracker::new(self.caches.entities),
            folder: Mutex::new(Folder::new(FoldLimits { max_keys, ..limits })),
            lanes,
            pool,
            counts: ObserverCounts::default(),
            metrics: Registry::new(&config.metrics).within(self.caches.metrics_bytes),
            kinds: Mutex::default(),
        };
        let health = Arc::new(HealthChecker::new(config.health.clone(), &name));
        let runtime = Arc::new(ObserverRuntime {
            name,
            factory: self.factory,
            concurrency: self.concurrency,
            drain_deadline: self.drain_deadline,
            pipeline,
            emitters,
            owned,
            source: Mutex::new(self.source),
            source_ledger: OnceLock::new(),
            stage: Mutex::new(Stage::New),
            stage_changed: Notify::new(),
            incarnation: RwLock::new(None),
            seat: Arc::new(Seat::default()),
            fold_bell: Notify::new(),
            restarts: AtomicU64::new(0),
            up_since: Mutex::new(None),
            scratches: Mutex::new(Vec::new()),
            health,
            config: watch::Sender::new(Arc::new(config)),
            changing: Mutex::default(),
            sampling_disabled: keeps_all,
        });
        checks::add_to(&runtime);
        Ok(runtime)
    }
}

fn start_all(own: Vec<MakeEmitter>, config: &Config) -> Result<Vec<EmitterHandle>, BuildError> {
    let emitter_config = EmitterConfig {
        max_retries: config.backpressure.max_retries,
        drain_interval: config.backpressure.drain_interval.0,
        ..EmitterConfig::default()
    };
    own.into_iter()
        .map(|make| {
            EmitterHandle::start(make, emitter_config)
                .map_err(|error| BuildError::Emitter { observer: config.name.clone(), error })
        })
        .collect()
}

/// This machine's boot, or zeros where the kernel does not tell.
fn this_boot() -> BootId {
    BootId::parse(&first_line(BOOT_ID_PATH)).unwrap_or_default()
}

fn first_line(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}
