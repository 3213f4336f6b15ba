//! The table of docs/events.md is made from the one table of event kinds.
#![allow(clippy::unwrap_used, reason = "fails as a test does")]

use std::fs;

use vahti_runtime::event::EventKind;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/events.md");
const HEAD: &str = "| subtype | `name` | priority | folds |\n|---|---|---|---|\n";

fn table() -> String {
    let rows = EventKind::ALL.iter().map(|kind| {
        let folds = if kind.folds() { "yes" } else { "no" };
        let (subtype, priority) = (kind.subtype(), kind.priority().as_str());
        format!("| `{subtype}` | `{}` | {priority} | {folds} |\n", kind.name())
    });
    HEAD.to_owned() + &rows.collect::<String>()
}

#[test]
fn the_page_of_events_has_the_generated_table() {
    let page = fs::read_to_string(PAGE).unwrap();
    let start = page.find(HEAD).unwrap();
    let len = page[start..].find("\n\n").unwrap() + 1;
    if std::env::var_os("VAHTI_WRITE_DOCS").is_some() {
        fs::write(PAGE, [&page[..start], &table(), &page[start + len..]].concat()).unwrap();
        return;
    }
    assert!(
        page[start..start + len] == table(),
        "docs/events.md is out of date: VAHTI_WRITE_DOCS=1 cargo test -p vahti-runtime --test \
         events_page"
    );
}
