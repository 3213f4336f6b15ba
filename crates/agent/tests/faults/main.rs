//! What becomes of events where a receiver of OTLP has a fault: the running
//! agent against receivers that refuse, hang, break off, talk nonsense or are
//! somebody else, over gRPC and HTTP, for an emitter that tries once, a critical
//! one and a durable one each. Needs the rights to load programs; says so where
//! they are missing.

// Helpers outside test functions fail as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code, reason = "the tests of the running agent use all of it")]
#[path = "../running/agent.rs"]
mod agent;
mod cases;
mod harness;
mod names;
mod receiver;
mod trust;

use vahti_runtime::testing::not_run;

use crate::harness::{flicker, rage, search, settle};
use crate::names::NameServer;

#[test]
fn receivers_that_are_not_there_or_say_nothing_cost_no_event_that_is_owed() {
    rage(cases::silent());
}

#[test]
fn receivers_that_ask_for_patience_get_it_and_no_more() {
    rage(cases::impatient());
}

#[test]
fn answers_that_break_off_are_no_answers() {
    rage(cases::broken());
}

#[test]
fn garbage_is_no_answer() {
    rage(cases::garbage());
}

#[test]
fn nobody_is_sent_anything_who_is_not_believed() {
    rage(cases::untrusted());
}

#[test]
fn what_a_receiver_refuses_in_part_is_counted_as_it_says_and_never_more_than_it_was_sent() {
    settle(cases::partial(), |case, taken, requests| match case {
        "all" => taken,
        "one" => requests,
        _ => 0,
    });
}

#[test]
fn receivers_that_come_and_go_get_all_that_is_owed() {
    flicker(cases::resetting());
}

#[test]
fn a_resolver_that_is_silent_or_knows_no_such_name_is_asked_again_until_it_does() {
    match NameServer::start() {
        Some(names) => search(cases::named(), &names),
        None => not_run(format_args!("no right to the port of a name server")),
    }
}
