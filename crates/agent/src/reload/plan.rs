//! What of a new configuration can be gone by now, and what it comes to.

use vahti_runtime::config::InvalidField;
use vahti_runtime::config::change::{Change, changes};
use vahti_runtime::event::escape_text;

use super::table::{When, row_of};
use crate::budget::Division;
use crate::config::{Config, EmitterConfig};

/// A configuration that is to be gone by, and how that was found.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Everything of the new one that can change now, and the rest as it is.
    pub(crate) config: Config,
    pub(crate) division: Division,
    /// All that is another in the new one than what is in force.
    pub(crate) changes: Vec<Change>,
}

impl Plan {
    /// From what is in force to what is wanted, which is good as a whole.
    ///
    /// # Errors
    /// What would be gone by does not fit together, as part of what is wanted
    /// needs a restart.
    pub(crate) fn of(
        in_force: &Config,
        division: &Division,
        wanted: &Config,
    ) -> Result<Self, Vec<InvalidField>> {
        let mut config = in_force.clone();
        change_now(&mut config, wanted);
        let division = divide(&mut config, division, wanted);
        let wrong = config.validate();
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let division = match division {
            Some(division) => division,
            None => Division::of(&config).map_err(|unmet| vec![unmet.field()])?,
        };
        let mut changes = told(in_force, wanted);
        for change in &mut changes {
            change.applied = match row_of(&change.path).map(|row| row.when) {
                Some(When::Now) => true,
                Some(When::Depends) => config.limits.memory == wanted.limits.memory,
                // A field that nobody thought of is not taken for changed.
                Some(When::Restart) | None => false,
            };
        }
        Ok(Plan { config, division, changes })
    }
}

/// What changes while it runs, as the table has it.
fn change_now(config: &mut Config, wanted: &Config) {
    config.log = wanted.log;
    let (network, theirs) = (&mut config.observers.network, &wanted.observers.network);
    network.sampling = theirs.sampling.clone();
    network.backpressure = theirs.backpressure.clone();
    network.health = theirs.health.clone();
    network.failure = theirs.failure.clone();
    network.metrics = theirs.metrics.clone();
    let (container, theirs) = (&mut config.observers.container, &wanted.observers.container);
    container.sampling = theirs.sampling.clone();
    container.backpressure = theirs.backpressure.clone();
    container.health = theirs.health.clone();
    container.failure = theirs.failure.clone();
    container.metrics = theirs.metrics.clone();
    config.store.max_bytes = wanted.store.max_bytes;
    config.store.max_age = wanted.store.max_age;
    if are_the_same(&config.emitters.0, &wanted.emitters.0) {
        for (emitter, theirs) in config.emitters.0.iter_mut().zip(&wanted.emitters.0) {
            emitter.max_retries = theirs.max_retries;
            emitter.drain_interval = theirs.drain_interval;
        }
    }
}

/// Whether a list has the emitters of another one, whatever is set of them.
fn are_the_same(ours: &[EmitterConfig], theirs: &[EmitterConfig]) -> bool {
    let known = |emitter: &EmitterConfig| (emitter.name().to_owned(), emitter.kind);
    ours.iter().map(known).eq(theirs.iter().map(known))
}

/// The division of another budget, where it leaves everything as it was made
/// but for the lanes.
fn divide(config: &mut Config, in_force: &Division, wanted: &Config) -> Option<Division> {
    let before = std::mem::replace(&mut config.limits.memory, wanted.limits.memory);
    match Division::of(config) {
        Ok(division) if division.leaves_as_made(in_force) => Some(division),
        _ => {
            config.limits.memory = before;
            None
        }
    }
}

/// All that differs, without what must not be seen.
fn told(from: &Config, to: &Config) -> Vec<Change> {
    let same = are_the_same(&from.emitters.0, &to.emitters.0);
    let (mut bare_from, mut bare_to) = (bare(from), bare(to));
    let mut more = Vec::new();
    if same {
        more.extend(hidden(from, to));
    } else {
        bare_from.emitters.0.clear();
        bare_to.emitters.0.clear();
        let path = "emitters".to_owned();
        let names = |config: &Config| {
            let name = |emitter: &EmitterConfig| match (emitter.name(), emitter.kind.as_str()) {
                (name, kind) if name == kind => name.to_owned(),
                (name, kind) => format!("{name} ({kind})"),
            };
            let names: Vec<String> = config.emitters.0.iter().map(name).collect();
            names.join(", ")
        };
        more.push(Change { path, from: names(from), to: names(to), applied: false });
    }
    let mut all = changes(&bare_from, &bare_to);
    all.extend(more);
    all
}

/// What can be shown of it, in texts.
fn bare(config: &Config) -> Config {
    let mut config = config.clone();
    // A path may hold any bytes, which no text can.
    config.store.path = config.store.path.map(|path| path.to_string_lossy().into_owned().into());
    for emitter in &mut config.emitters.0 {
        emitter.headers.clear();
        emitter.tls = None;
        emitter.endpoint = None;
    }
    config
}

/// What differs and is not shown.
fn hidden(from: &Config, to: &Config) -> impl Iterator<Item = Change> {
    let pairs = from.emitters.0.iter().zip(&to.emitters.0).enumerate();
    pairs.flat_map(|(n, (from, to))| {
        let at = |emitter: &EmitterConfig| {
            let shown = emitter.endpoint.as_deref().map(vahti_exporters::shown_endpoint);
            shown.map_or_else(|| "not set".to_owned(), |shown| escape_text(&shown).into_owned())
        };
        let not_shown = || "not shown".to_owned();
        let other = |from: String, to: String| {
            if from == to { "another path, not shown".into() } else { to }
        };
        let differ = [
            ("headers", from.headers != to.headers, not_shown(), not_shown()),
            ("tls", from.tls != to.tls, not_shown(), not_shown()),
            ("endpoint", from.endpoint != to.endpoint, at(from), other(at(from), at(to))),
        ];
        differ.into_iter().filter(|differ| differ.1).map(move |(key, _, from, to)| Change {
            path: format!("emitters[{n}].{key}"),
            from,
            to,
            applied: false,
        })
    })
}
