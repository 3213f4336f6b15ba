//! Another configuration while the agent runs.
//!
//! It is read again when SIGHUP comes, when `vahti reload` asks for it, and when
//! the file is another one. It is resolved as at the start, so that the command
//! line still goes before the file, and judged as a whole: one that is wrong
//! anywhere changes nothing. What of a good one needs a restart is told and stays
//! as it is; all else is gone by from then on ([`table`]). One thread does it all,
//! one reload after the other, and sleeps while there is nothing to do: a file
//! that can't be read in time holds up nothing else.

mod command;
mod in_force;
mod plan;
mod requests;
mod table;
mod watch;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vahti_runtime::config::InvalidField;
use vahti_runtime::config::change::Change;
use vahti_runtime::event::escape;
use vahti_runtime::panic::contain_and_log;
use vahti_runtime::shutdown::Shutdown;

pub(crate) use self::command::reload;
pub(crate) use self::in_force::{InForce, Outcome, Status};
use self::plan::Plan;
pub(crate) use self::requests::{Inbox, Requests};
use self::watch::Watch;
use crate::config::Config;
use crate::config::problem::{InvalidConfig, Problem};
use crate::config::settings::{self, Overrides};
use crate::notify::Reloading;
use crate::run::Running;
use crate::{emitters, log};

/// How long a file is let be after it was written to, and how long at the most:
/// a half-written one is not to be judged.
const SETTLES: Duration = Duration::from_millis(100);
const SETTLES_AT_MOST: Duration = Duration::from_secs(1);

/// How often it is tried to watch a file that can't be watched.
const WATCH_INTERVAL: Duration = Duration::from_secs(10);

/// So many changes are told, each in its line.
const MAX_TOLD: usize = 50;

/// Reloads for as long as the agent runs.
pub(crate) struct Reloader {
    pub(crate) overrides: Overrides,
    /// The file, if there is one.
    pub(crate) path: Option<PathBuf>,
    pub(crate) running: Running,
    pub(crate) shutdown: Shutdown,
    pub(crate) reloading: Reloading,
}

/// Who wants a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Somebody, who wants an answer.
    Asked,
    /// The file is another one.
    File,
    /// It may be another one than at the start.
    Start,
}

impl Reloader {
    /// Begins, on a thread of its own; what was asked for before is done first.
    ///
    /// # Errors
    /// The thread can't be started.
    pub(crate) fn begin(self, inbox: Inbox) -> std::io::Result<()> {
        let thread = std::thread::Builder::new().name("reload".to_owned());
        thread.spawn(move || self.run(&inbox)).map(drop)
    }

    fn run(&self, inbox: &Inbox) {
        let mut watch = self.path.as_deref().and_then(|path| watch(path, true));
        if watch.is_some() {
            // It was not watched until now.
            self.reload_contained(Cause::Start);
        }
        loop {
            let can_watch = watch.is_some() || self.path.is_none();
            let limit = (!can_watch).then_some(WATCH_INTERVAL);
            let is_asked = inbox.wait(watch.as_ref().map(Watch::fd), limit);
            if !can_watch && !is_asked {
                watch = self.path.as_deref().and_then(|path| self::watch(path, false));
                if watch.is_some() {
                    tracing::info!("changes of the configuration file are noticed again");
                    self.reload_contained(Cause::Start);
                }
                continue;
            }
            let is_another = watch.as_mut().is_some_and(Watch::has_news);
            if is_another && !is_asked {
                settle(inbox, watch.as_mut());
            }
            let asked = inbox.take();
            // Dropped when all is answered: that takes the kernel some time.
            let mut before = None;
            if is_another || !asked.is_empty() {
                // The way to it may be another one, also unnoticed, as where
                // something is mounted; it is watched before the file is read.
                before = watch.take();
                watch = self.path.as_deref().and_then(|path| self::watch(path, true));
            }
            if !asked.is_empty() || is_another {
                let cause = if asked.is_empty() { Cause::File } else { Cause::Asked };
                asked.answer(&self.reload_contained(cause));
            }
            drop(before);
        }
    }

    /// A configuration that brings a bug to light must not end this thread.
    fn reload_contained(&self, cause: Cause) -> Value {
        let reloaded = contain_and_log(
            "reload",
            || self.reload(cause),
            |panicked| tracing::error!(error = %panicked, "the configuration can't be read"),
        );
        reloaded.unwrap_or_else(|_| json!({"error": "a bug in vahti: its log tells"}))
    }

    /// Reads the configuration, and goes by it if it is good.
    fn reload(&self, cause: Cause) -> Value {
        if self.shutdown.has_begun() {
            tracing::info!("the agent ends: its configuration is not read any more");
            return json!({"error": "the agent ends: its configuration is not read any more"});
        }
        let Some(path) = &self.path else {
            tracing::info!(
                "there is no configuration file to read: the command line, the environment and \
                 the defaults go on to apply"
            );
            return json!({"error": "the agent was started without a configuration file, so there \
                                    is nothing to read: start it with --config FILE"});
        };
        let _told = (cause != Cause::Start).then(|| self.reloading.begins(&self.running));
        match self.read(path) {
            // Nobody has asked, and there is nothing to tell.
            Ok((wanted, _)) if cause == Cause::Start && self.running.in_force.is(&wanted) => {
                Value::Null
            }
            Ok((wanted, plan)) => self.accept(wanted, plan, cause),
            Err(invalid) => self.refuse(&invalid),
        }
    }

    /// What is wanted, and what is to be done for it.
    fn read(&self, path: &Path) -> Result<(Config, Plan), InvalidConfig> {
        let environment = |name: &str| std::env::var_os(name);
        let wanted = settings::resolve(self.overrides.clone(), environment)?;
        let plan = self.running.in_force.plan(&wanted).map_err(|wrong| {
            let fields: Vec<_> = wrong.iter().map(InvalidField::to_string).collect();
            let why = "needs a restart: with what can't change before that";
            InvalidConfig {
                source_name: escape(path.as_os_str().as_encoded_bytes()).into_owned(),
                problems: vec![Problem { at: None, text: format!("{why}, {}", fields.join("; ")) }],
            }
        })?;
        Ok((wanted, plan))
    }

    fn accept(&self, wanted: Config, plan: Plan, cause: Cause) -> Value {
        let changes = plan.changes.clone();
        let (before, log) = (self.running.in_force.log(), plan.config.log);
        let (from, to) = (before.level, log.level);
        let was_refused = self.running.in_force.status().refused.is_some();
        self.go_by(&plan);
        let (outcome, status) = self.running.in_force.accept(wanted, plan);
        let generation = status.generation;
        // Told by whichever level tells more. One that somebody asked for with
        // `vahti log` stays unless the file has another one than before.
        if from != to {
            log::set_level(from.max(to));
        }
        if before.format != log.format {
            log::set_format(log.format);
        }
        tell(&changes, outcome);
        match outcome {
            Outcome::Changed => tracing::info!(
                generation,
                changed = changes.len(),
                need_restart = status.needs_restart.len(),
                "configuration is in force"
            ),
            _ if cause == Cause::Asked || was_refused => {
                tracing::info!(generation, "nothing is new in the configuration");
            }
            _ => tracing::debug!(generation, "nothing is new in the configuration"),
        }
        if from != to {
            log::set_level(to);
        }
        json!({"result": outcome.as_str(), "generation": generation, "changes": changes})
    }

    fn go_by(&self, plan: &Plan) {
        let mut config = plan.config.clone();
        plan.division.apply(&mut config);
        for observer in &self.running.observers {
            let settings = match observer.name() {
                "container" => config.observers.container.to_runtime(),
                _ => config.observers.network.to_runtime(),
            };
            // It was judged before anything was changed.
            if let Err(invalid) = observer.reconfigure(settings) {
                tracing::error!(observer = observer.name(), %invalid, "a bug in vahti");
            }
        }
        emitters::serve_otherwise(&config, &plan.division.limits, &self.running.emitters);
        if let Some(store) = &self.running.store {
            store.set_bounds(config.store.max_bytes, config.store.max_age);
        }
    }

    fn refuse(&self, invalid: &InvalidConfig) -> Value {
        let status = self.running.in_force.refuse(invalid);
        let text = invalid.to_string();
        let problems: Vec<&str> = text.lines().collect();
        for problem in &problems {
            tracing::error!("configuration refused: {problem}");
        }
        let generation = status.generation;
        tracing::warn!("generation {generation} of the configuration stays in force");
        json!({"result": Outcome::Refused.as_str(), "generation": generation,
               "problems": problems})
    }
}

fn tell(changes: &[Change], outcome: Outcome) {
    for change in changes.iter().take(MAX_TOLD) {
        match (change.applied, outcome) {
            (true, _) => tracing::info!("configuration: {change}, applied"),
            // It was told when it came.
            (false, Outcome::Unchanged) => {
                tracing::info!("configuration: {change}, needs a restart still");
            }
            (false, _) => tracing::warn!("configuration: {change}, needs a restart"),
        }
    }
    if let Some(more @ 1..) = changes.len().checked_sub(MAX_TOLD) {
        tracing::info!("configuration: {more} changes more");
    }
}

fn watch(path: &Path, warns: bool) -> Option<Watch> {
    let watch = Watch::new(path);
    let warn = |error: &std::io::Error| {
        if !warns {
            return;
        }
        let path = escape(path.as_os_str().as_encoded_bytes());
        tracing::warn!(%path, %error, "changes of this file are not noticed; SIGHUP and `vahti \
                                       reload` have it read");
    };
    watch.inspect_err(warn).ok()
}

/// Waits until whoever writes the file seems to be through with it, or somebody
/// asks, who knows that it is good.
fn settle(inbox: &Inbox, watch: Option<&mut Watch>) {
    let Some(watch) = watch else { return };
    let begun = Instant::now();
    let mut last = begun;
    while begun.elapsed() < SETTLES_AT_MOST {
        let left = SETTLES.saturating_sub(last.elapsed());
        if left.is_zero() || inbox.wait(Some(watch.fd()), Some(left)) {
            return;
        }
        // What happens to others in the folder says nothing of this one.
        if watch.has_news() {
            last = Instant::now();
        }
    }
}

/// For whom there is nothing to reload, in a test.
#[cfg(test)]
pub(crate) fn nothing() -> std::sync::Arc<InForce> {
    let config = Config::default();
    let division = crate::budget::Division::of(&config);
    std::sync::Arc::new(InForce::new(config, division.unwrap_or_else(|_| unreachable!())))
}
