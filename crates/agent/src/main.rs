//! `vahti`, the node agent: what broke, what caused it, and what is the proof?
//!
//! The program is a story of four parts: parse, build, run, drain. Parsing is
//! in [`cli`] and [`config`], building in [`wiring`]; running and draining is
//! what the runtime does.

mod answer;
mod budget;
mod cli;
mod config;
mod control;
mod demo;
mod doctor;
mod emitters;
mod gap;
mod health;
mod history;
mod http;
mod ledger;
mod log;
mod losses;
mod notify;
mod output;
mod patience;
mod proofs;
mod reload;
mod report;
mod resident;
mod run;
mod signals;
mod socket;
mod static_libc;
mod store_path;
mod table;
mod wiring;

use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use vahti_exporters::without_secrets;
use vahti_runtime::event::escape_text;

use crate::cli::{Cli, Command, ConfigCommand, SchemaCommand};
use crate::output::{Failed, Outcome, SUCCESS, finish, print};

fn main() -> ExitCode {
    static_libc::find_names_by_itself();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    finish(match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Demo { json } => demo::demo(json),
        Command::Config { command: ConfigCommand::Check { file } } => check(&file),
        Command::Config { command: ConfigCommand::Example } => print(&config::example::example()),
        Command::Config { command: ConfigCommand::Schema } => {
            print(&format!("{:#}\n", config::example::schema()))
        }
        Command::Schema { command: SchemaCommand::Event } => {
            print(vahti_runtime::event::JSON_SCHEMA)
        }
        Command::Events(args) => history::events(&args),
        Command::Why(args) => history::why(&args),
        Command::Ledger(args) => ledger::ledger(&args),
        Command::Health(args) => health::health(&args),
        Command::Log(args) => log::command::log(&args),
        Command::Reload(args) => reload::reload(&args),
        Command::Completions { shell } => completions(shell),
    })
}

/// Help and version go to standard output and are a success; anything else is
/// wrong usage.
fn refuse(error: &clap::Error) -> ExitCode {
    let mut text = String::new();
    // It repeats arguments, which may hold anything.
    for line in error.render().to_string().trim_start_matches("error: ").lines() {
        text.push_str(&escape_text(&without_secrets(line)));
        text.push('\n');
    }
    if error.use_stderr() { finish(Err(Failed::usage(text))) } else { finish(print(&text)) }
}

fn check(file: &Path) -> Outcome {
    match config::load::check(file) {
        Ok(()) => print("the configuration is good\n"),
        Err(invalid) => Err(Failed::usage(invalid.to_string())),
    }
}

fn completions(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "vahti", &mut script);
    print(&String::from_utf8_lossy(&script)).map(|_| SUCCESS)
}
