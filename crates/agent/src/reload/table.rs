//! The one table of what changes while the agent runs, and what at a restart.
//!
//! The page docs/reload.md is made from it; a test walks every field of the
//! configuration and looks that it is here.

/// When a field that was changed is gone by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// At once.
    Now,
    /// With the next start.
    Restart,
    /// At once where it comes out that way, as the remark says.
    Depends,
}

/// A field, or all below it that have no row of their own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    /// Such as `emitters[].path`; `*` stands for any observer.
    pub(crate) path: &'static str,
    pub(crate) when: When,
    /// For the page.
    #[cfg_attr(not(test), expect(dead_code, reason = "the page is made of it"))]
    pub(crate) remark: &'static str,
}

const fn row(path: &'static str, when: When, remark: &'static str) -> Row {
    Row { path, when, remark }
}

use When::{Depends, Now, Restart};

pub(crate) const TABLE: &[Row] = &[
    row("node_name", Restart, "every event carries it"),
    row("log", Now, ""),
    row("observers.*.enabled", Restart, "programs are loaded at the start"),
    row("observers.*.export_normal_exits", Restart, ""),
    row(
        "observers.*.sampling",
        Now,
        "from the next batch of records on; each event is decided by the rules of one \
         configuration, and carries their threshold and weight",
    ),
    row(
        "observers.*.backpressure",
        Now,
        "a queue that becomes smaller gives nothing up: while it holds more than it may it is \
         full, and its room sinks with what leaves; its policy decides what comes from then on",
    ),
    row("observers.*.health", Now, ""),
    row("observers.*.failure", Now, "from the next failure on"),
    row(
        "observers.*.metrics",
        Now,
        "a label that is not allowed any more is gone at once, and series that are alike then are \
         one, with their sum; a lower max_series takes in no more and puts nothing out",
    ),
    row("emitters", Restart, "how many there are, and all of theirs that has no row of its own"),
    row("emitters[].critical", Restart, ""),
    row("emitters[].durable", Restart, ""),
    row("emitters[].max_retries", Now, "from the next try on"),
    row("emitters[].drain_interval", Now, "what waits for a batch to fill is sent"),
    row("emitters[].headers", Restart, "never shown; a header's file is read again by itself"),
    row("emitters[].tls", Restart, "never shown"),
    row("store.path", Restart, ""),
    row("store.max_bytes", Now, "what is too much leaves with the next commit"),
    row("store.max_age", Now, "what is too old leaves with the next commit"),
    row("http.listen", Restart, ""),
    row("limits.drain_deadline", Restart, ""),
    row(
        "limits.memory",
        Depends,
        "at once where only the lanes' shares come out differently, as between two budgets of \
         64MiB or more with few emitters; else with a restart, as caches and batches are made at \
         the start",
    ),
];

/// The row of a field such as `observers.network.sampling.rules[2].rate`.
pub(crate) fn row_of(path: &str) -> Option<&'static Row> {
    let path = general(path);
    TABLE.iter().filter(|row| is_below(&path, row.path)).max_by_key(|row| row.path.len())
}

/// Without which observer and which item.
fn general(path: &str) -> String {
    let mut out = String::new();
    for (n, part) in path.split('.').enumerate() {
        let (name, index) = part.split_once('[').map_or((part, ""), |(name, _)| (name, "[]"));
        let is_observer = n == 1 && out == "observers";
        if n > 0 {
            out.push('.');
        }
        out.push_str(if is_observer { "*" } else { name });
        out.push_str(index);
    }
    out
}

fn is_below(path: &str, row: &str) -> bool {
    path.strip_prefix(row).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}
