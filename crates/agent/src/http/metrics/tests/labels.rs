//! Which values each label may have: words of ours, and names from the
//! configuration. None comes from what is watched, so nobody on the node can
//! make a series.

use std::collections::{BTreeMap, BTreeSet};

use vahti_runtime::event::{EventKind, Outcome, Priority, Severity};
use vahti_runtime::ledger::{DropReason, FailReason};

/// What a label's values are.
pub(super) enum Values {
    /// Each of them.
    Words(BTreeSet<&'static str>),
    /// As many as are configured, or as there are in the program.
    Names(&'static str),
}

fn words(words: impl IntoIterator<Item = &'static str>) -> Values {
    Values::Words(words.into_iter().collect())
}

/// All labels.
pub(super) fn all() -> BTreeMap<&'static str, Values> {
    let outcomes = [Outcome::Success, Outcome::Failure, Outcome::Timeout, Outcome::Unknown];
    let of_the_ledger = [
        "attempted",
        "submitted",
        "lost",
        "missed",
        "received",
        "abandoned",
        "ignored",
        "processed",
        "failed",
        "produced",
        "sampled_out",
        "routed",
        "delivered",
        "rejected",
        "dropped",
    ];
    let fails = FailReason::ALL.iter().map(|reason| reason.as_str());
    let drops = DropReason::ALL.iter().map(|reason| reason.as_str());
    let of_the_log = ["rate", "stderr"];
    let severities =
        [Severity::Debug, Severity::Info, Severity::Warning, Severity::Error, Severity::Fatal];
    let states = ["in_ring", "processing", "waiting", "folding", "stored", "queued", "in_flight"];
    let levels = ["error", "warn", "info", "debug", "trace"];
    let stages = DropReason::ALL.iter().map(|reason| reason.stage());
    BTreeMap::from([
        ("version", Values::Names("the agent's version")),
        ("observer", words(["network", "container", "agent", "store"])),
        ("type", words(EventKind::ALL.iter().map(|kind| kind.event_type()))),
        ("subtype", words(EventKind::ALL.iter().map(|kind| kind.subtype()))),
        ("severity", words(severities.map(|severity| severity.as_str()))),
        (
            "outcome",
            words(outcomes.map(|outcome| outcome.as_str()).into_iter().chain(of_the_ledger)),
        ),
        ("reason", words(fails.chain(drops).chain(of_the_log))),
        ("stage", words(stages.chain(["accepted", "delivered"]))),
        ("priority", words(Priority::ALL.map(|priority| priority.as_str()))),
        ("state", words(states)),
        ("result", words(["acknowledged", "refused", "changed", "unchanged"])),
        ("level", words(levels)),
        ("emitter", Values::Names("names of emitters, as configured; `store`, `(store)`")),
        (
            "line",
            Values::Names(
                "`kernel`, `ring`, `records`, `events`; `lane` and `routed to`, each with an emitter's name",
            ),
        ),
        ("program", Values::Names("names of vahti's eBPF programs")),
    ])
}

/// The section of docs/metrics.md that tells of them.
pub(super) fn section() -> String {
    let mut out =
        "## All labels\n\nNone takes a value from what is watched, so nobody on the node \
                   can make a series. `_other` stands for whatever is over a cap.\n\n| label | values |\n|---|---|\n"
            .to_owned();
    for (label, values) in all() {
        let values = match values {
            Values::Words(words) => {
                let words: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
                words.join(", ")
            }
            Values::Names(what) => what.to_owned(),
        };
        out.push_str(&format!("| `{label}` | {values} |\n"));
    }
    out
}
