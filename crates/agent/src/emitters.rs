//! From the configuration to emitters that run.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use vahti_exporters::{FileEmitter, NoneEmitter, StdoutEmitter};
use vahti_runtime::delivery::EmitterHandle;
use vahti_runtime::emitter::EventEmitter;

use crate::config::{Config, EmitterConfig, EmitterType};
use crate::output::Failed;

type Make = Box<dyn Fn() -> Box<dyn EventEmitter> + Send>;

/// Starts every emitter. `nobody_reads` is called if standard output is the
/// only place where events go, and its reader is gone.
///
/// # Errors
/// One can't be started; the message says which and why.
pub(crate) fn start(
    config: &Config,
    nobody_reads: impl Fn() + Send + Sync + 'static,
) -> Result<Vec<EmitterHandle>, Failed> {
    let emitters = &config.emitters.0;
    let sole = emitters.iter().all(|e| matches!(e.kind, EmitterType::Stdout | EmitterType::None));
    let nobody_reads = Arc::new(move || {
        if sole {
            nobody_reads();
        }
    });
    emitters
        .iter()
        .map(|emitter| {
            let failed = |why: String| {
                Failed::failure(format!("emitter {} can't be started: {why}", emitter.name()))
            };
            let make = factory(emitter, &nobody_reads).map_err(failed)?;
            EmitterHandle::start(make, served(config)).map_err(|e| failed(e.to_string()))
        })
        .collect()
}

/// How emitters are served. Retries are set per observer and lanes are, too,
/// but an emitter is shared: it takes what the most patient observer asks for.
fn served(config: &Config) -> vahti_runtime::delivery::EmitterConfig {
    let observers = &config.observers;
    let all = [&observers.network.backpressure, &observers.container.backpressure];
    let mut served = vahti_runtime::delivery::EmitterConfig::default();
    served.max_retries = all.iter().map(|b| b.max_retries).max().unwrap_or(served.max_retries);
    served.drain_interval =
        all.iter().map(|b| b.drain_interval.0).min().unwrap_or(served.drain_interval);
    served
}

/// Makes the emitter: now, where it may fail, and again after a panic.
fn factory(
    emitter: &EmitterConfig,
    nobody_reads: &Arc<impl Fn() + Send + Sync + 'static>,
) -> Result<Make, String> {
    let (name, critical) = (emitter.name().to_owned(), emitter.critical);
    match emitter.kind {
        EmitterType::None => Ok(Box::new(move || Box::new(NoneEmitter::new(&name)))),
        EmitterType::Stdout => {
            let output = duplicate_stdout().map_err(|e| e.to_string())?;
            let (format, nobody_reads) = (emitter.format, Arc::clone(nobody_reads));
            Ok(Box::new(move || {
                let tell = Arc::clone(&nobody_reads);
                let stdout = StdoutEmitter::writing_to(Arc::clone(&output), &name, format);
                Box::new(stdout.critical(critical).on_closed(move || tell()))
            }))
        }
        EmitterType::File => {
            let config = emitter.to_file();
            let first = FileEmitter::open(&name, config.clone()).map_err(|e| e.to_string())?;
            let first = Mutex::new(Some(first));
            Ok(Box::new(move || {
                let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
                let file = first.unwrap_or_else(|| FileEmitter::deferred(&name, config.clone()));
                Box::new(file.critical(critical))
            }))
        }
    }
}

fn duplicate_stdout() -> io::Result<Arc<File>> {
    Ok(Arc::new(File::from(io::stdout().as_fd().try_clone_to_owned()?)))
}
