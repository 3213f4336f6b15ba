//! The command line. Parsing touches no port, no file and no kernel.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use vahti_exporters::Format;

use crate::config::LogLevel;
use crate::config::settings::{Emit, Observer, Overrides};

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
    Doctor {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
        /// The socket of an agent that runs beside it, and that can't be found
        /// by itself: it is told which faults are made on purpose.
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
    },
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
    /// Prints the accounting of the running agent: nothing lost unaccounted.
    #[command(after_help = LEDGER_EXAMPLES)]
    Ledger {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
        /// The socket of the agent.
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
    },
    /// Prints completions for a shell.
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

const RUN_EXAMPLES: &str = "\
Environment: VAHTI_CONFIG, VAHTI_NODE_NAME, VAHTI_OBSERVERS, VAHTI_EMIT,
VAHTI_LOG, VAHTI_SOCKET. The command line goes before the configuration file,
the file before the environment, the environment before the defaults.

SIGTERM and SIGINT deliver what was accepted, within limits.drain_deadline,
and end; a second one ends at once.

Examples:
  vahti run
  vahti run --observers network --format json
  vahti run --emit stdout --emit file=/var/log/vahti/events.jsonl
  vahti run --config /etc/vahti/vahti.yaml";

const DOCTOR_EXAMPLES: &str = "\
Exits with 0 if every signal can be seen, with 1 if one can't.

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

const LEDGER_EXAMPLES: &str = "\
Examples:
  vahti ledger
  vahti ledger --json | jq '.observers[].lanes[].difference'";

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

/// The arguments of `vahti run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The configuration file, YAML.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The observers that run: network, container. All if not given.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    observers: Option<Vec<Observer>>,
    /// Where events go: stdout, file=PATH or none. May be given several times.
    #[arg(long, value_name = "WHERE")]
    emit: Option<Vec<Emit>>,
    /// How events are written on stdout: text or json. Text on a terminal and
    /// json elsewhere, if not given.
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    format: Option<Format>,
    /// How much vahti tells about itself on standard error: off, error, warn,
    /// info, debug or trace.
    #[arg(long, value_name = "LEVEL")]
    log: Option<LogLevel>,
    /// The socket that `vahti ledger` asks; /run/vahti/vahti.sock as root.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

impl RunArgs {
    /// What it says about the configuration.
    pub(crate) fn overrides(&self) -> Overrides {
        Overrides {
            config: self.config.clone(),
            observers: self.observers.clone(),
            emit: self.emit.clone(),
            format: self.format,
            log: self.log,
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
