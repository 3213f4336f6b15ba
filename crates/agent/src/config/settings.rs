//! What applies in the end: command line before file before environment
//! before defaults.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use vahti_exporters::Format;
use vahti_runtime::config::bounds::Bound;
use vahti_runtime::event::{escape, escape_text};

use super::load::{self, Loaded};
use super::problem::{InvalidConfig, Problem, nearest, one_of};
use super::{
    Config, EmitterConfig, EmitterType, Emitters, Listen, LogFormat, LogLevel, NODE_NAME, OBSERVERS,
};

/// What the command line says; `None` where it says nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overrides {
    pub(crate) config: Option<PathBuf>,
    /// Whether another configuration is in force already.
    pub(crate) again: bool,
    pub(crate) observers: Option<Vec<Observer>>,
    pub(crate) emit: Option<Vec<Emit>>,
    pub(crate) format: Option<Format>,
    pub(crate) log: Option<LogLevel>,
    pub(crate) log_format: Option<LogFormat>,
    pub(crate) store: Option<PathBuf>,
    pub(crate) http: Option<Listen>,
}

/// An observer, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Observer(&'static str);

impl FromStr for Observer {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = OBSERVERS.into_iter().find(|known| *known == name);
        known.map(Observer).ok_or_else(|| {
            let meant = nearest(name, &OBSERVERS)
                .map(|word| format!("; did you mean {word}?"))
                .unwrap_or_default();
            format!("must be {}{meant}", one_of(&OBSERVERS))
        })
    }
}

/// An emitter, as `--emit` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Emit {
    Stdout,
    File(PathBuf),
    Otlp(String),
    Polku(String),
    None,
}

impl FromStr for Emit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "stdout" => Ok(Emit::Stdout),
            None if text == "none" => Ok(Emit::None),
            Some(("file", path)) if !path.is_empty() => Ok(Emit::File(path.into())),
            Some(("otlp", url)) if !url.is_empty() => Ok(Emit::Otlp(url.to_owned())),
            Some(("polku", url)) if !url.is_empty() => Ok(Emit::Polku(url.to_owned())),
            _ => Err("must be stdout, file=PATH, otlp=URL, polku=URL or none".to_owned()),
        }
    }
}

impl Emit {
    fn to_config(&self) -> EmitterConfig {
        match self {
            Emit::Stdout => EmitterConfig::of(EmitterType::Stdout),
            Emit::None => EmitterConfig::of(EmitterType::None),
            Emit::File(path) => {
                EmitterConfig { path: Some(path.clone()), ..EmitterConfig::of(EmitterType::File) }
            }
            Emit::Otlp(url) | Emit::Polku(url) => {
                let is_otlp = matches!(self, Emit::Otlp(_));
                let kind = if is_otlp { EmitterType::Otlp } else { EmitterType::Polku };
                EmitterConfig { endpoint: Some(url.clone()), ..EmitterConfig::of(kind) }
            }
        }
    }
}

/// The configuration that applies.
///
/// # Errors
/// The file, a variable or the result of all is wrong; says everything that
/// is.
pub(crate) fn resolve(
    overrides: Overrides,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Config, InvalidConfig> {
    let environment = |name: &str| environment(name).filter(|value| !value.is_empty());
    let mut loaded = match file(&overrides, environment) {
        Some(path) if overrides.again => load::again_from_file(&path)?,
        Some(path) => load::from_file(&path)?,
        None => Loaded::nothing(),
    };
    apply_environment(&mut loaded, environment)?;
    let mut config = loaded.config;
    if let Some(observers) = overrides.observers {
        enable(&mut config, &observers);
    }
    if let Some(emit) = overrides.emit {
        config.emitters = named_apart(&emit);
    }
    if let Some(store) = overrides.store {
        config.store.path = Some(store);
    }
    if let Some(listen) = overrides.http {
        config.http.listen = listen;
    }
    config.log.level = overrides.log.unwrap_or(config.log.level);
    config.log.format = overrides.log_format.unwrap_or(config.log.format);
    for emitter in &mut config.emitters.0 {
        if emitter.kind == EmitterType::Stdout && overrides.format.is_some() {
            emitter.format = overrides.format;
        }
    }
    let problems: Vec<Problem> = config
        .validate()
        .iter()
        .map(|field| Problem { at: None, text: field.to_string() })
        .collect();
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(InvalidConfig { source_name: "command line".to_owned(), problems })
    }
}

/// The file that is read: the command line goes before the environment.
pub(crate) fn file(
    overrides: &Overrides,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Option<PathBuf> {
    let set = || environment("VAHTI_CONFIG").filter(|path| !path.is_empty());
    overrides.config.clone().or_else(|| set().map(PathBuf::from))
}

fn apply_environment(
    loaded: &mut Loaded,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<(), InvalidConfig> {
    // A variable whose field the file sets has no say, right or wrong.
    let value = |name: &str, path: &str| {
        let value = environment(name).filter(|_| !loaded.sets(path));
        value.map(|value| text(name, value)).transpose()
    };
    // A path may hold any bytes.
    let store = environment("VAHTI_STORE").filter(|_| !loaded.sets("store.path"));
    let node_name = value("VAHTI_NODE_NAME", "node_name")?;
    let log = value("VAHTI_LOG", "log.level")?;
    let log_format = value("VAHTI_LOG_FORMAT", "log.format")?;
    let emit = value("VAHTI_EMIT", "emitters")?;
    let observers = value("VAHTI_OBSERVERS", "observers")?;
    let listen = value("VAHTI_HTTP", "http.listen")?;
    if let Some(store) = store {
        loaded.config.store.path = Some(store.into());
    }
    if let Some(name) = node_name {
        if !NODE_NAME.allows(&name) {
            let bound = Bound::Text(NODE_NAME).to_string();
            return Err(refused("VAHTI_NODE_NAME", &name, &bound));
        }
        loaded.config.node_name = Some(name);
    }
    if let Some(level) = log {
        loaded.config.log.level =
            level.parse().map_err(|bound: String| refused("VAHTI_LOG", &level, &bound))?;
    }
    if let Some(format) = log_format {
        loaded.config.log.format =
            format.parse().map_err(|bound: String| refused("VAHTI_LOG_FORMAT", &format, &bound))?;
    }
    if let Some(listen) = listen {
        loaded.config.http.listen =
            listen.parse().map_err(|bound: String| refused("VAHTI_HTTP", &listen, &bound))?;
    }
    if let Some(text) = emit {
        let emit = list("VAHTI_EMIT", &text)?;
        loaded.config.emitters = named_apart(&emit);
    }
    if let Some(text) = observers {
        let observers: Vec<Observer> = list("VAHTI_OBSERVERS", &text)?;
        enable(&mut loaded.config, &observers);
    }
    Ok(())
}

fn list<T: FromStr<Err = String>>(variable: &str, text: &str) -> Result<Vec<T>, InvalidConfig> {
    let item = |item: &str| {
        item.trim().parse().map_err(|bound: String| refused(variable, item.trim(), &bound))
    };
    text.split(',').map(item).collect()
}

/// A variable may hold any bytes but zero.
fn text(variable: &str, value: OsString) -> Result<String, InvalidConfig> {
    value.into_string().map_err(|value| {
        let shown = escape(value.as_encoded_bytes());
        wrong_environment(format!("{variable} is \"{shown}\", which is not UTF-8"))
    })
}

fn refused(variable: &str, value: &str, bound: &str) -> InvalidConfig {
    // A URL with a password, in what was to be one.
    let value = if value.contains('@') { "(hidden)".into() } else { escape_text(value) };
    let bound = bound.strip_prefix("must be ").unwrap_or(bound);
    wrong_environment(format!("{variable} is \"{value}\", but must be {bound}"))
}

fn wrong_environment(text: String) -> InvalidConfig {
    let problems = vec![Problem { at: None, text }];
    InvalidConfig { source_name: "environment".to_owned(), problems }
}

fn enable(config: &mut Config, observers: &[Observer]) {
    let named = |name| observers.contains(&Observer(name));
    config.observers.network.enabled = named("network");
    config.observers.container.enabled = named("container");
}

/// Emitters called after their types; where a type comes again, with a number.
fn named_apart(emit: &[Emit]) -> Emitters {
    let mut emitters: Vec<EmitterConfig> = Vec::new();
    for emit in emit {
        let mut emitter = emit.to_config();
        let alike = emitters.iter().filter(|e| e.kind == emitter.kind).count();
        if alike > 0 {
            emitter.name = Some(format!("{}-{}", emitter.kind.as_str(), alike + 1));
        }
        emitters.push(emitter);
    }
    Emitters(emitters)
}
