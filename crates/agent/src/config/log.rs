//! What can be set about the agent's own log.

use std::str::FromStr;

use schemars::{JsonSchema, Schema};
use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StrDeserializer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::problem::one_of;

/// How much vahti tells about itself on standard error, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LogSettings {
    /// How much is told. `vahti log LEVEL` changes it while the agent runs.
    pub(crate) level: LogLevel,
    /// How it is written.
    pub(crate) format: LogFormat,
}

/// How much is told.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogLevel {
    /// Nothing.
    Off,
    /// What failed.
    Error,
    /// And what is not as it should be.
    Warn,
    /// And what was started and stopped.
    #[default]
    Info,
    /// And details for developers.
    Debug,
    /// And more of them.
    Trace,
}

/// How the log is written. The same wherever it goes: what reads it is not to
/// depend on how the agent was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// One readable line a record, for people.
    #[default]
    Text,
    /// One line of JSON a record, for programs.
    Json,
}

impl LogLevel {
    /// All of them, the quietest first.
    pub(crate) const ALL: [LogLevel; 6] = [
        LogLevel::Off,
        LogLevel::Error,
        LogLevel::Warn,
        LogLevel::Info,
        LogLevel::Debug,
        LogLevel::Trace,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            LogLevel::Off => "off",
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

impl LogFormat {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        word(text).ok_or_else(|| one_of(&LogLevel::ALL.map(LogLevel::as_str)))
    }
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        word(text).ok_or_else(|| "text or json".to_owned())
    }
}

fn word<'de, T: Deserialize<'de>>(text: &'de str) -> Option<T> {
    let text: StrDeserializer<'de, ValueError> = text.into_deserializer();
    T::deserialize(text).ok()
}

/// Adds that a level may stand for all of it: `log: debug`.
pub(super) fn or_level(schema: &mut Schema) {
    let settings = schema.remove("$ref").map(|settings| json!({"$ref": settings}));
    let level = json!({"type": "string", "enum": LogLevel::ALL});
    let either: Vec<Value> = settings.into_iter().chain([level]).collect();
    schema.insert("anyOf".to_owned(), json!(either));
}
