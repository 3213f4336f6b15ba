//! From the configuration to observers with their sources: the one place that
//! knows every observer.

use std::path::Path;
use std::sync::Arc;

use vahti_ebpf::EbpfError;
use vahti_ebpf::cgroup::Hierarchy;
use vahti_ebpf::loader::{self, Object};
use vahti_ebpf::manager::AyaManager;
use vahti_ebpf::proof::Announce;
use vahti_ebpf::source::RingSource;
use vahti_observers::container::ContainerProcessor;
use vahti_observers::network::NetworkProcessor;
use vahti_observers::{container, network};
use vahti_runtime::config::FailurePolicy;
use vahti_runtime::delivery::EmitterHandle;
pub(crate) use vahti_runtime::error::describe;
use vahti_runtime::ids::BootId;
use vahti_runtime::memory::CacheLimits;
use vahti_runtime::observer::{ObserverRuntime, ObserverRuntimeBuilder};

use crate::budget::Limits;
use crate::config::Config;
use crate::output::Failed;
use crate::proofs::{ProofMakers, ToAgents};

const BOOT_ID_PATH: &str = "/proc/sys/kernel/random/boot_id";

/// An observer's source, or why there is none.
pub(crate) type Opened = Result<RingSource, EbpfError>;

/// The observers whose programs are to be opened, by name.
pub(crate) const ALL: [&str; 2] = crate::config::OBSERVERS;

/// Opens the programs of observers, in this order, for processes named by this
/// hierarchy, whose proofs are announced. Nothing is attached yet.
///
/// # Errors
/// Rights are missing, or the kernel can't run any of it.
pub(crate) fn open(
    observers: &[&str],
    hierarchy: Hierarchy,
    announce: &Arc<ToAgents>,
) -> Result<Vec<Opened>, EbpfError> {
    raise_descriptor_limit();
    let objects: Vec<Object> = observers.iter().map(|name| object(name)).collect();
    let managers = loader::open(&objects, hierarchy)?;
    let sources = observers.iter().zip(managers).map(|(name, manager)| {
        let manager: AyaManager = manager?;
        let source = match *name {
            "container" => container::source(manager, hierarchy),
            _ => network::source(manager),
        };
        Ok(source?.announcing(Arc::clone(announce) as Arc<dyn Announce>))
    });
    Ok(sources.collect())
}

/// Programs, maps and links are descriptors, some eighty in all: more than a
/// low soft limit leaves. The hard limit is what counts.
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for both calls.
    let raised = unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return;
        }
        limit.rlim_cur = limit.rlim_cur.max(limit.rlim_max.min(1024));
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
    };
    if raised != 0 || limit.rlim_cur < 128 {
        tracing::warn!(limit = limit.rlim_cur, "few descriptors: programs may fail to load");
    }
}

/// The compiled programs of an observer.
pub(crate) fn object(name: &str) -> Object {
    match name {
        "container" => container::OBJECT,
        _ => network::OBJECT,
    }
}

/// The observers that are enabled, opened and built. One whose programs do
/// not open is told and left out, and the others run, unless its policy is
/// that all end.
///
/// # Errors
/// Rights are missing, none can run, or one that must can't.
pub(crate) fn observers(
    config: &Config,
    limits: &Limits,
    emitters: &[EmitterHandle],
    makers: &ProofMakers,
) -> Result<Vec<Arc<ObserverRuntime>>, Failed> {
    let enabled = enabled(config);
    if enabled.is_empty() {
        return Err(Failed::usage("no observer is enabled, so there is nothing to watch"));
    }
    let hierarchy = Hierarchy::detect();
    let opened =
        open(&enabled, hierarchy, &ToAgents::new(None)).map_err(|error| refusal(&error))?;
    let mut built = Vec::new();
    for (name, source) in enabled.into_iter().zip(opened) {
        if let Some(source) = unless_isolated(name, of(config, name).1, source)? {
            makers.tell(source.makers().map_err(|error| refusal(&error))?);
            built.push(build(name, config, limits.caches, hierarchy, source, emitters)?);
        }
    }
    if built.is_empty() {
        let advice = "no observer can run here; `vahti doctor` tells why";
        return Err(Failed::failure(advice));
    }
    Ok(built)
}

/// The observers that the configuration asks for.
pub(crate) fn enabled(config: &Config) -> Vec<&'static str> {
    ALL.into_iter().filter(|name| of(config, name).0).collect()
}

/// Whether an observer is enabled, and what happens when it fails.
fn of(config: &Config, name: &str) -> (bool, FailurePolicy) {
    let observers = &config.observers;
    match name {
        "container" => (observers.container.enabled, observers.container.failure.policy),
        _ => (observers.network.enabled, observers.network.failure.policy),
    }
}

/// What was opened, or nothing for an observer that the others run without.
fn unless_isolated<T>(
    name: &str,
    policy: FailurePolicy,
    opened: Result<T, EbpfError>,
) -> Result<Option<T>, Failed> {
    let error = match opened {
        Ok(opened) => return Ok(Some(opened)),
        Err(error) => describe(&error),
    };
    if policy == FailurePolicy::FailFast {
        let why = "and its failure.policy is fail_fast";
        return Err(Failed::failure(format!("observer {name} can't run here, {why}: {error}")));
    }
    tracing::error!(observer = name, %error, "can't run here");
    Ok(None)
}

/// An observer around its source.
///
/// # Errors
/// A value is out of its bounds.
pub(crate) fn build(
    name: &str,
    config: &Config,
    caches: CacheLimits,
    hierarchy: Hierarchy,
    source: RingSource,
    emitters: &[EmitterHandle],
) -> Result<Arc<ObserverRuntime>, Failed> {
    let boot_id = boot_id();
    let version = hierarchy.version;
    let (builder, settings): (ObserverRuntimeBuilder, _) = match name {
        "container" => {
            let normal_exits = config.observers.container.export_normal_exits;
            let make =
                move || ContainerProcessor::new(boot_id, version).with_normal_exits(normal_exits);
            (ObserverRuntime::builder(make), config.observers.container.to_runtime())
        }
        _ => {
            let make = move || NetworkProcessor::new(boot_id, version);
            (ObserverRuntime::builder(make), config.observers.network.to_runtime())
        }
    };
    let mut builder = builder
        .config(settings)
        .source(source)
        .caches(caches)
        .drain_deadline(config.limits.drain_deadline.0);
    if let Some(node) = &config.node_name {
        builder = builder.node(node);
    }
    for emitter in emitters {
        builder = builder.shared_emitter(emitter);
    }
    builder.build().map_err(|error| Failed::failure(describe(&error)))
}

fn boot_id() -> BootId {
    let text = std::fs::read_to_string(Path::new(BOOT_ID_PATH)).unwrap_or_default();
    BootId::parse(&text).unwrap_or_default()
}

/// Why nothing can run, with the exit code that says so.
pub(crate) fn refusal(error: &EbpfError) -> Failed {
    let text = describe(error);
    if error.is_permission() { Failed::no_permission(text) } else { Failed::failure(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observer_that_does_not_open_ends_all_only_if_its_policy_says_so() {
        let opened = || Err::<(), _>(EbpfError::Closed);
        for policy in [FailurePolicy::Isolate, FailurePolicy::Restart] {
            assert!(matches!(unless_isolated("network", policy, opened()), Ok(None)));
        }
        let failed = unless_isolated("network", FailurePolicy::FailFast, opened()).unwrap_err();
        let told = format!("{failed:?}");
        assert!(told.contains("observer network can't run here, and its failure.policy"), "{told}");
        assert!(matches!(unless_isolated("network", FailurePolicy::FailFast, Ok(1)), Ok(Some(1))));
    }
}
