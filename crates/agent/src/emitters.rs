//! From the configuration to emitters that run.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vahti_exporters::store::{GATHERING, Store, StoreConfig, StoreError};
use vahti_exporters::{FileEmitter, NoneEmitter, OtlpEmitter, PolkuEmitter, StdoutEmitter};
use vahti_runtime::delivery::EmitterHandle;
use vahti_runtime::emitter::EventEmitter;

use crate::budget::Limits;
use crate::config::{Config, EmitterConfig, EmitterType};
use crate::output::Failed;
use crate::patience::Patience;

type Make = Box<dyn Fn() -> Box<dyn EventEmitter> + Send>;

/// Starts every emitter. `nobody_reads` is called if standard output is the
/// only place where events go, and its reader is gone.
///
/// # Errors
/// One can't be started; the message says which and why.
pub(crate) fn start(
    config: &Config,
    limits: &Limits,
    store: Option<&Store>,
    nobody_reads: impl Fn() + Send + Sync + 'static,
) -> Result<Vec<EmitterHandle>, Failed> {
    let emitters = &config.emitters.0;
    let sole = emitters.iter().all(|e| matches!(e.kind, EmitterType::Stdout | EmitterType::None));
    let nobody_reads = Arc::new(move || {
        if sole {
            nobody_reads();
        }
    });
    let own = store.map(|store| {
        let emitter = store.clone();
        // What can't be committed waits in its lanes, and those decide what goes.
        let served = vahti_runtime::delivery::EmitterConfig {
            max_retries: u32::MAX,
            drain_interval: GATHERING,
            max_batch_bytes: limits.store_batch_bytes,
            ..Default::default()
        };
        EmitterHandle::start(move || Box::new(emitter.emitter()), served)
            .map_err(|error| Failed::failure(format!("the store can't be started: {error}")))
    });
    let others = emitters.iter().map(|emitter| {
        let failed = |why: String| {
            Failed::failure(format!("emitter {} can't be started: {why}", emitter.name()))
        };
        let (make, fails) = factory(emitter, limits.lines_bytes, &nobody_reads).map_err(failed)?;
        let mut served = served(emitter, config);
        served.max_batch_bytes = limits.batch_bytes;
        let started = match store.filter(|_| emitter.durable) {
            Some(store) => EmitterHandle::start_durable(make, served, Arc::new(store.clone())),
            None => EmitterHandle::start(make, served),
        };
        let started = started.map_err(|error| failed(error.to_string()))?;
        if let Some(why) = fails {
            started.begins_failing(why);
        }
        Ok(started)
    });
    own.into_iter().chain(others).collect()
}

/// Serves emitters that run as this configuration has it.
pub(crate) fn serve_otherwise(config: &Config, limits: &Limits, emitters: &[EmitterHandle]) {
    for emitter in &config.emitters.0 {
        let named = emitters.iter().find(|handle| handle.name() == emitter.name());
        if let Some(handle) = named {
            let max_batch_bytes = limits.batch_bytes;
            handle.reconfigure(vahti_runtime::delivery::EmitterConfig {
                max_batch_bytes,
                ..served(emitter, config)
            });
        }
    }
}

/// Where the store is to be; `None` if there is to be none. Where it is not
/// said, that is for `default_path` to say.
///
/// # Errors
/// There is no folder for it, and an emitter can't do without.
pub(crate) fn store_folder(
    config: &Config,
    default_path: impl FnOnce() -> Option<PathBuf>,
) -> Result<Option<PathBuf>, Failed> {
    if config.store.is_off() {
        return Ok(None);
    }
    let path = config.store.path.clone().or_else(default_path);
    if path.is_none() {
        if let Some(emitter) = config.emitters.0.iter().find(|emitter| emitter.durable) {
            return Err(Failed::usage(format!(
                "emitter {} is durable, which takes a store, and there is no folder for one: HOME \
                 is not set; set store.path, or give --store PATH",
                emitter.name()
            )));
        }
        tracing::warn!("there is no folder for a store: HOME is not set; nothing is kept");
    }
    Ok(path)
}

/// Opens the store in its folder. One that can't be used for now is told of,
/// and tried again. `None` if this agent is told to stop while it waits for
/// another one to leave the store.
///
/// # Errors
/// Another agent has it and keeps it.
pub(crate) fn open_store(
    config: &Config,
    path: PathBuf,
    limits: &Limits,
    patience: &Patience,
) -> Result<Option<Store>, Failed> {
    let durable = config.emitters.0.iter().filter(|emitter| emitter.durable);
    let durable: Vec<String> = durable.map(|emitter| emitter.name().to_owned()).collect();
    let settings = StoreConfig { memory: limits.store, ..config.store.to_store(path) };
    // Not with the store's own patience, which no signal ends.
    let open = || Store::open(settings.clone(), durable.clone(), Duration::ZERO);
    let in_use = |error: &StoreError| match error {
        StoreError::InUse { pid, .. } => Some(*pid),
        StoreError::Io { .. } => None,
    };
    let opened = patience.wait_for("the store", open, in_use);
    opened.map_err(|error| Failed::failure(error.to_string()))
}

/// How an emitter is served: as its own entry says, else as the most patient of
/// the observers asks for. Theirs are set per observer, and so are lanes, but an
/// emitter serves all of them; those that are not enabled ask for nothing.
fn served(emitter: &EmitterConfig, config: &Config) -> vahti_runtime::delivery::EmitterConfig {
    let mut served = vahti_runtime::delivery::EmitterConfig::default();
    let asked = config.backpressures().map(|b| b.max_retries).max();
    served.max_retries = emitter.max_retries.or(asked).unwrap_or(served.max_retries);
    let asked = config.backpressures().map(|b| b.drain_interval).min();
    let interval = emitter.drain_interval.or(asked);
    served.drain_interval = interval.map_or(served.drain_interval, |interval| interval.0);
    if matches!(emitter.kind, EmitterType::Otlp | EmitterType::Polku) {
        // It gives up each of a batch's requests by itself.
        let timeout = emitter.timeout.map_or(Duration::ZERO, |timeout| timeout.0);
        served.emit_timeout = served.emit_timeout.max(4 * timeout);
    }
    served
}

/// What makes the emitter, now and again after a panic; and why it can't write
/// yet, if so.
fn factory(
    emitter: &EmitterConfig,
    lines_bytes: usize,
    nobody_reads: &Arc<impl Fn() + Send + Sync + 'static>,
) -> Result<(Make, Option<String>), String> {
    let (name, critical) = (emitter.name().to_owned(), emitter.critical);
    let durable = emitter.durable;
    match emitter.kind {
        EmitterType::None => Ok((Box::new(move || Box::new(NoneEmitter::new(&name))), None)),
        EmitterType::Stdout => {
            let output = duplicate_stdout().map_err(|e| e.to_string())?;
            let (format, nobody_reads) = (emitter.format, Arc::clone(nobody_reads));
            let make: Make = Box::new(move || {
                let tell = Arc::clone(&nobody_reads);
                let stdout = StdoutEmitter::writing_to(Arc::clone(&output), &name, format);
                let stdout = stdout.lines_bytes(lines_bytes).critical(critical);
                Box::new(stdout.on_closed(move || tell()))
            });
            Ok((make, None))
        }
        EmitterType::File => {
            let config = emitter.to_file();
            // What is in the way may go, and the agent watches meanwhile.
            let (first, fails) = match FileEmitter::open(&name, config.clone()) {
                Ok(first) => (Some(first), None),
                Err(error) => (None, Some(error.to_string())),
            };
            if let Some(why) = &fails {
                let until_then = match (durable, critical) {
                    (true, _) => "events are kept for it in the store",
                    (false, true) => "a batch that it fails at is dropped after max_retries",
                    (false, false) => "what comes until then is dropped",
                };
                let emitter = &name;
                tracing::warn!(%emitter, %why, "can't write yet, and tries again; {until_then}");
            }
            let first = Mutex::new(first);
            let make: Make = Box::new(move || {
                let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
                let file = first.unwrap_or_else(|| FileEmitter::deferred(&name, config.clone()));
                Box::new(file.lines_bytes(lines_bytes).critical(critical).synced(durable))
            });
            Ok((make, fails))
        }
        EmitterType::Otlp => {
            let target = emitter.to_otlp().target().map_err(|wrong| wrong.to_string())?;
            let make: Make = Box::new(move || {
                Box::new(OtlpEmitter::new(&name, target.clone()).critical(critical))
            });
            Ok((make, None))
        }
        EmitterType::Polku => {
            let target = emitter.to_polku().map_err(|wrong| wrong.to_string())?;
            let make: Make = Box::new(move || {
                Box::new(PolkuEmitter::new(&name, target.clone()).critical(critical))
            });
            Ok((make, None))
        }
    }
}

fn duplicate_stdout() -> io::Result<Arc<File>> {
    Ok(Arc::new(File::from(io::stdout().as_fd().try_clone_to_owned()?)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vahti_runtime::units::HumanDuration;

    use super::*;

    #[test]
    fn an_emitters_own_entry_wins_and_observers_that_are_off_have_no_say() {
        let mut config = Config::default();
        let observers = &mut config.observers;
        observers.network.backpressure.max_retries = 7;
        observers.network.backpressure.drain_interval = HumanDuration(Duration::from_millis(5));
        observers.container.backpressure.max_retries = 4;
        observers.container.backpressure.drain_interval = HumanDuration(Duration::from_millis(50));
        let mut emitter = EmitterConfig::of(EmitterType::Stdout);
        let told = |emitter: &EmitterConfig, config: &Config| {
            let served = served(emitter, config);
            (served.max_retries, served.drain_interval.as_millis())
        };
        assert_eq!(told(&emitter, &config), (7, 5));
        config.observers.network.enabled = false;
        assert_eq!(told(&emitter, &config), (4, 50));
        emitter.max_retries = Some(0);
        emitter.drain_interval = Some(HumanDuration(Duration::from_secs(1)));
        assert_eq!(told(&emitter, &config), (0, 1_000));
    }

    #[test]
    fn a_durable_emitter_is_refused_where_no_store_can_be() {
        let mut config = Config::default();
        config.store.path = None;
        assert!(matches!(store_folder(&config, || None), Ok(None)), "the others do without");
        config.emitters.0.push(EmitterConfig::of(EmitterType::File));
        config.emitters.0[1].name = Some("audit".to_owned());
        config.emitters.0[1].durable = true;
        let somewhere = || Some(PathBuf::from("/home/a"));
        assert_eq!(store_folder(&config, somewhere).unwrap(), somewhere());
        let refused = format!("{:?}", store_folder(&config, || None).unwrap_err());
        assert!(refused.contains("code: 64") && refused.contains("emitter audit"), "{refused}");
        config.store.path = Some("/elsewhere".into());
        assert_eq!(store_folder(&config, || None).unwrap(), config.store.path);
    }

    #[test]
    fn an_emitters_own_entry_has_the_bounds_that_observers_have() {
        let mut config = Config::default();
        config.emitters.0[0].max_retries = Some(1_001);
        config.emitters.0[0].drain_interval = Some(HumanDuration(Duration::ZERO));
        let wrong: Vec<String> = config.validate().into_iter().map(|field| field.path).collect();
        assert_eq!(wrong, ["emitters[0].max_retries", "emitters[0].drain_interval"]);
    }
}
