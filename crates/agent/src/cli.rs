//! The command line. Parsing touches no port, no file and no kernel.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use vahti_exporters::Format;
use vahti_runtime::event::EventKind;

use crate::config::problem::nearest;
use crate::config::settings::{Emit, Observer, Overrides};
use crate::config::{Listen, LogFormat, LogLevel};
use crate::history::Moment;

const ABOUT: &str = "Sees what fails on this node, why, and with what proof";

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed; the reason stands on standard error
  64   the command line or the configuration is wrong
  77   a right is missing; the message names it
  130  aborted by a second SIGINT, 143 by a second SIGTERM

Examples:
  vahti run                    show what fails, as it fails
  vahti run | jq .subtype      the same, for programs
  vahti doctor                 what can be seen here, and what can't";

/// Sees what fails on this node, why, and with what proof.
#[derive(Debug, Parser)]
#[command(name = "vahti", version, about = ABOUT, long_about = None)]
#[command(after_help = EXIT_CODES, max_term_width = 80, subcommand_required = true)]
#[command(disable_help_subcommand = true, arg_required_else_help = false)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What vahti can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Watches this node and emits what fails, until it is told to stop.
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Tells what can be seen on this node, how, and what is in the way.
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor(DoctorArgs),
    /// Makes harmless faults on this node and shows them being found.
    #[command(after_help = DEMO_EXAMPLES)]
    Demo {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Checks configurations, and prints one to start from.
    #[command(after_help = CONFIG_EXAMPLES)]
    Config {
        /// What to do.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Prints JSON Schemas.
    #[command(after_help = SCHEMA_EXAMPLES)]
    Schema {
        /// Of what.
        #[command(subcommand)]
        command: SchemaCommand,
    },
    /// Shows what failed on this node, whether the agent runs or not.
    #[command(after_help = EVENTS_EXAMPLES)]
    Events(EventsArgs),
    /// Shows what caused an event, and what it caused.
    #[command(after_help = WHY_EXAMPLES)]
    Why(WhyArgs),
    /// Prints the accounting: nothing lost unaccounted. Of a stopped agent, as
    /// its store has it.
    #[command(after_help = LEDGER_EXAMPLES)]
    Ledger(LedgerArgs),
    /// Tells whether the agent that runs does what it should, and why not.
    #[command(after_help = HEALTH_EXAMPLES)]
    Health(HealthArgs),
    /// Shows how much the agent that runs tells about itself, or changes that.
    #[command(after_help = LOG_EXAMPLES)]
    Log(LogArgs),
    /// Has the agent that runs read its configuration now, and tells what came of
    /// it.
    #[command(after_help = RELOAD_EXAMPLES)]
    Reload(ReloadArgs),
    /// Prints completions for a shell.
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

const RUN_EXAMPLES: &str = "\
Environment: VAHTI_CONFIG, VAHTI_NODE_NAME, VAHTI_OBSERVERS, VAHTI_EMIT,
VAHTI_STORE, VAHTI_HTTP, VAHTI_LOG, VAHTI_LOG_FORMAT, VAHTI_SOCKET. The command
line goes before the configuration file, the file before the environment, the
environment before the defaults.

SIGTERM and SIGINT deliver what was accepted, within limits.drain_deadline,
and end; a second one ends at once. SIGHUP, and a change of the configuration
file, have that read again.

Examples:
  vahti run
  vahti run --observers network --format json
  vahti run --emit stdout --emit file=/var/log/vahti/events.jsonl
  vahti run --config /etc/vahti/vahti.yaml";

const DOCTOR_EXAMPLES: &str = "\
Exits with 0 if every signal can be seen and the store can be used, else with 1.
Environment: VAHTI_CONFIG, VAHTI_STORE, VAHTI_SOCKET.

Examples:
  vahti doctor
  vahti doctor --json | jq '.signals[] | select(.state != \"works\")'";

const DEMO_EXAMPLES: &str = "\
Examples:
  vahti demo
  vahti demo --json";

const CONFIG_EXAMPLES: &str = "\
Examples:
  vahti config example > vahti.yaml
  vahti config check vahti.yaml
  vahti config schema > vahti.schema.json";

const SCHEMA_EXAMPLES: &str = "\
Examples:
  vahti schema event > event.schema.json";

const EVENTS_EXAMPLES: &str = "\
Moments: how long ago (30s, 5m, 2h, 7d), or a day or moment in UTC (2026-11-22,
2026-11-22T14:00:00Z). A time is when it happened, not when it was stored.

Oldest first, by time. With --follow, the newest so many first, then what is
committed from now on, in that order, until Ctrl-C or until nobody reads. A
store that an agent is about to begin is waited for.

Environment: VAHTI_STORE, VAHTI_SOCKET.

Examples:
  vahti events --since 1h
  vahti events --subtype oom_kill --container 3f2a
  vahti events --peer 10.0.0.7:5432 --limit 0 --format json | jq .process
  vahti events --severity error --severity fatal --follow";

const WHY_EXAMPLES: &str = "\
The line that begins with > is the event that was asked for; what it caused
stands below it. `vahti events --trace` shows all of a trace, causes or not.

Environment: VAHTI_STORE.

Examples:
  vahti why 01KAMPTY1R5GMXS4QZVXJ1GFCW
  vahti events --since 5m --format json | jq -r .id | head -1 | xargs vahti why";

const LEDGER_EXAMPLES: &str = "\
With --follow, what comes after the accounting is one line for each event that
is committed: its id, its priority and its subtype. Environment: VAHTI_SOCKET,
VAHTI_STORE.

Examples:
  vahti ledger
  vahti ledger --follow
  vahti ledger --json | jq '.observers[].lanes[].difference'";

const HEALTH_EXAMPLES: &str = "\
Exits with 0 if every observer that is wanted watches, else with 1; with --live
if every stage makes progress. Environment: VAHTI_SOCKET.

Examples:
  vahti health
  vahti health --live
  vahti health --json | jq '.observers[] | select(.status != \"healthy\")'";

const LOG_EXAMPLES: &str = "\
A level holds until another is set, the configuration file has another one than
before, or the agent ends. Environment: VAHTI_SOCKET.

Examples:
  vahti log
  vahti log debug
  vahti log --json | jq .held_back";

const RELOAD_EXAMPLES: &str = "\
The agent does so by itself when its file changes, and on SIGHUP. What of the
configuration needs a restart is told, and stays as it is. One that is wrong is
refused as a whole: exits with 1, and what was in force stays in force.
Environment: VAHTI_SOCKET.

Examples:
  vahti reload
  vahti reload --json | jq '.changes[] | select(.applied | not)'";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  vahti completions bash > /etc/bash_completion.d/vahti
  vahti completions fish > ~/.config/fish/completions/vahti.fish";

/// What `vahti config` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Tells everything that is wrong in a configuration file.
    #[command(after_help = "Examples:\n  vahti config check /etc/vahti/vahti.yaml")]
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Prints a commented configuration with every key and its default.
    #[command(after_help = "Examples:\n  vahti config example > vahti.yaml")]
    Example,
    /// Prints the JSON Schema of the configuration.
    #[command(after_help = "Examples:\n  vahti config schema > vahti.schema.json")]
    Schema,
}

/// What `vahti schema` can print.
#[derive(Debug, Subcommand)]
pub(crate) enum SchemaCommand {
    /// The JSON Schema of an event: every key, its meaning and its unit.
    #[command(after_help = "Examples:\n  vahti schema event > event.schema.json")]
    Event,
}

/// The arguments of `vahti doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Prints JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// The configuration file of the agent: how its memory is divided, where
    /// its store is and how large it may become.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The store's folder, or none; that of the configuration if not given.
    #[arg(long, value_name = "PATH")]
    store: Option<PathBuf>,
    /// The socket of an agent that runs beside it, and that can't be found
    /// by itself: it is told which faults are made on purpose.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

impl DoctorArgs {
    /// What it says about the configuration.
    pub(crate) fn overrides(&self) -> Overrides {
        let (config, store) = (self.config.clone(), self.store.clone());
        Overrides { config, store, ..Overrides::default() }
    }
}

/// The arguments of `vahti events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// From this moment on.
    #[arg(long, value_name = "MOMENT")]
    pub(crate) since: Option<Moment>,
    /// Before this moment.
    #[arg(long, value_name = "MOMENT", conflicts_with = "follow")]
    pub(crate) until: Option<Moment>,
    /// Of this type, such as network.
    #[arg(long = "type", value_name = "TYPE", value_parser = event_type)]
    pub(crate) event_type: Option<String>,
    /// Of this subtype, such as connection_refused.
    #[arg(long, value_name = "SUBTYPE", value_parser = subtype)]
    pub(crate) subtype: Option<String>,
    /// Of this severity: debug, info, warning, error or fatal. May be given
    /// several times.
    #[arg(long, value_name = "SEVERITY", value_delimiter = ',')]
    pub(crate) severity: Vec<SeverityName>,
    /// Of this pod, namespace/name; no event has one in this version.
    #[arg(long, value_name = "POD")]
    pub(crate) pod: Option<String>,
    /// Of this container: its id, or how it begins.
    #[arg(long, value_name = "ID")]
    pub(crate) container: Option<String>,
    /// Of this process: its name, or its id.
    #[arg(long, value_name = "PROCESS")]
    pub(crate) process: Option<String>,
    /// With this peer: its address, or its address and port.
    #[arg(long, value_name = "PEER", value_parser = peer)]
    pub(crate) peer: Option<String>,
    /// Of this trace: 32 hexadecimal digits.
    #[arg(long, value_name = "TRACE", value_parser = trace)]
    pub(crate) trace: Option<String>,
    /// The newest so many; 0 for all.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) limit: u64,
    /// Goes on with what is committed from now on.
    #[arg(long)]
    pub(crate) follow: bool,
    /// text or json; text on a terminal and json elsewhere, if not given.
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub(crate) format: Option<Format>,
    /// The store's folder; /var/lib/vahti, or the user's own, if not given.
    #[arg(long, value_name = "PATH")]
    pub(crate) store: Option<PathBuf>,
}

/// A severity's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SeverityName(&'static str);

impl fmt::Display for SeverityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl FromStr for SeverityName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        use vahti_runtime::event::Severity::{Debug, Error, Fatal, Info, Warning};
        let known = [Debug, Info, Warning, Error, Fatal].map(|severity| severity.as_str());
        let known = known.into_iter().find(|known| *known == text).map(SeverityName);
        known.ok_or("must be debug, info, warning, error or fatal")
    }
}

/// The arguments of `vahti why`.
#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// The event's id, or how it begins.
    pub(crate) id: String,
    /// Prints JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// The store's folder; /var/lib/vahti, or the user's own, if not given.
    #[arg(long, value_name = "PATH")]
    pub(crate) store: Option<PathBuf>,
}

/// The arguments of `vahti ledger`.
#[derive(Debug, Args)]
pub(crate) struct LedgerArgs {
    /// Prints JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Goes on with the id of every event as it is committed.
    #[arg(long)]
    pub(crate) follow: bool,
    /// The socket of the agent; /run/vahti/vahti.sock as root.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// The store's folder; /var/lib/vahti, or the user's own, if not given.
    #[arg(long, value_name = "PATH")]
    pub(crate) store: Option<PathBuf>,
}

/// The arguments of `vahti health`.
#[derive(Debug, Args)]
pub(crate) struct HealthArgs {
    /// Prints JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Asks only whether it is alive: whether a new process would be better.
    #[arg(long)]
    pub(crate) live: bool,
    /// The socket of the agent; /run/vahti/vahti.sock as root.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

/// The arguments of `vahti log`.
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// What it is to tell from now on: off, error, warn, info, debug or trace.
    pub(crate) level: Option<LogLevel>,
    /// Prints JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// The socket of the agent; /run/vahti/vahti.sock as root.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

/// The arguments of `vahti reload`.
#[derive(Debug, Args)]
pub(crate) struct ReloadArgs {
    /// Prints JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// The socket of the agent; /run/vahti/vahti.sock as root.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

/// The arguments of `vahti run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The configuration file, YAML.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The observers that run: network, container. All if not given.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    observers: Option<Vec<Observer>>,
    /// Where events go: stdout, file=PATH, otlp=URL, polku=URL or none. May be given several times.
    #[arg(long, value_name = "WHERE")]
    emit: Option<Vec<Emit>>,
    /// How events are written on stdout: text or json. Text on a terminal and
    /// json elsewhere, if not given.
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    format: Option<Format>,
    /// The store's folder, or none for no store; /var/lib/vahti as root.
    #[arg(long, value_name = "PATH")]
    store: Option<PathBuf>,
    /// Where metrics and health can be asked for over HTTP, or none;
    /// 127.0.0.1:9464 if not given.
    #[arg(long, value_name = "ADDRESS")]
    http: Option<Listen>,
    /// How much vahti tells about itself on standard error: off, error, warn,
    /// info, debug or trace.
    #[arg(long, value_name = "LEVEL")]
    log: Option<LogLevel>,
    /// How it does: text or json; text if not given.
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// The socket that `vahti ledger` asks; /run/vahti/vahti.sock as root.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

impl RunArgs {
    /// What it says about the configuration.
    pub(crate) fn overrides(&self) -> Overrides {
        Overrides {
            again: false,
            config: self.config.clone(),
            observers: self.observers.clone(),
            emit: self.emit.clone(),
            format: self.format,
            log: self.log,
            log_format: self.log_format,
            store: self.store.clone(),
            http: self.http,
        }
    }
}

fn format(text: &str) -> Result<Format, String> {
    match text {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        _ => Err("must be text or json".to_owned()),
    }
}

fn event_type(text: &str) -> Result<String, String> {
    one_of(text, EventKind::ALL.iter().map(|kind| kind.event_type()).collect())
}

fn subtype(text: &str) -> Result<String, String> {
    one_of(text, EventKind::ALL.iter().map(|kind| kind.subtype()).collect())
}

/// One that there is: a name with a mistake in it would find nothing, and that
/// looks like a quiet machine.
fn one_of(text: &str, mut known: Vec<&'static str>) -> Result<String, String> {
    known.dedup();
    if known.contains(&text) {
        return Ok(text.to_owned());
    }
    let meant = nearest(text, &known).map(|word| format!("; did you mean {word}?"));
    Err(format!("must be one of {}{}", known.join(", "), meant.unwrap_or_default()))
}

/// In the form in which the store has it.
fn peer(text: &str) -> Result<String, String> {
    if let Ok(peer) = text.parse::<SocketAddr>() {
        return Ok(peer.to_string());
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().map(|address| address.to_string()).map_err(|_| {
        "must be an address, or an address and port: 10.0.0.7, 10.0.0.7:5432, [2001:db8::1]:443"
            .to_owned()
    })
}

fn trace(text: &str) -> Result<String, String> {
    let is_whole = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_whole.then(|| text.to_ascii_lowercase()).ok_or("must be 32 hexadecimal digits".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        fn check(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:"), "{} has none", command.get_name());
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
