use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use super::table::Row;
use super::*;

mod labels;
mod storm;

const SECTION: &str = "## All metrics\n";

fn file(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(path)
}

/// The sections of docs/metrics.md that are made from the table.
fn reference() -> String {
    let mut out = format!("{SECTION}\n| metric | kind | labels | meaning |\n|---|---|---|---|\n");
    for Row { family, labels } in TABLE {
        let kind = format!("{:?}", family.kind).to_lowercase();
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        let row = [format!("`{}`", family.name), kind, labels.join(", "), family.help.to_owned()];
        out.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    out + "\n" + &labels::section()
}

#[test]
fn the_page_of_metrics_is_the_generated_one() {
    let path = file("docs/metrics.md");
    let page = fs::read_to_string(&path).unwrap();
    let (by_hand, section) = page.split_at(page.find(SECTION).unwrap());
    if std::env::var_os("VAHTI_WRITE_DOCS").is_some() {
        fs::write(&path, format!("{by_hand}{}", reference())).unwrap();
        return;
    }
    assert!(
        section == reference(),
        "docs/metrics.md is out of date: VAHTI_WRITE_DOCS=1 cargo test -p vahti-agent --bins \
         the_page_of_metrics"
    );
}

#[test]
fn names_say_their_kind_and_none_comes_twice() {
    let mut names = BTreeSet::new();
    for Row { family, labels } in TABLE {
        let name = family.name;
        assert!(names.insert(name), "{name}");
        assert_eq!(family.kind == Kind::Counter, name.ends_with("_total"), "{name}");
        assert_eq!(family.kind == Kind::Info, name.ends_with("_info"), "{name}");
        assert!(family.help.ends_with('.') && !labels.contains(&"le"), "{name}");
    }
}

#[test]
fn the_values_of_every_label_are_known() {
    let known: BTreeSet<_> = labels::all().into_keys().collect();
    let used: BTreeSet<_> = TABLE.iter().flat_map(|row| row.labels.iter().copied()).collect();
    assert_eq!(used, known, "tests/labels.rs says which values each label may have");
}

#[test]
fn before_the_start_there_is_what_is_known_of_the_process() {
    let text = String::from_utf8(text(None, Format::OpenMetrics)).unwrap();
    assert!(text.contains("\nvahti_build_info{version=\""), "{text}");
    assert!(text.contains("\nprocess_resident_memory_bytes "), "{text}");
    assert!(text.ends_with("# EOF\n"));
}

/// Every metric that an expression names, and every label that it is asked for
/// by or grouped by.
fn used(expression: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (mut metrics, mut labels) = (BTreeSet::new(), BTreeSet::new());
    let (mut in_braces, mut in_quotes, mut grouping) = (false, false, None::<bool>);
    let mut word = String::new();
    for c in expression.chars().chain([' ']) {
        if in_quotes {
            in_quotes = c != '"';
            continue;
        }
        if is_word(c) {
            word.push(c);
            continue;
        }
        let done = std::mem::take(&mut word);
        if !done.is_empty() {
            if ["by", "on", "without", "ignoring"].contains(&&*done) {
                grouping = Some(false);
            } else if in_braces || grouping == Some(true) {
                labels.insert(done);
            } else if done.starts_with("vahti_") || done.starts_with("process_") {
                metrics.insert(done);
            }
        }
        match c {
            '{' => in_braces = true,
            '}' => in_braces = false,
            '"' => in_quotes = true,
            '(' if grouping == Some(false) => grouping = Some(true),
            ')' => grouping = grouping.filter(|begun| !begun),
            _ => {}
        }
    }
    (metrics, labels)
}

/// Its row, by its name or one of the names of a histogram's series.
fn row_of(metric: &str) -> Option<&'static Row> {
    let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| metric.strip_suffix(end));
    TABLE.iter().find(|row| {
        row.family.name == metric
            || row.family.kind == Kind::Histogram && Some(row.family.name) == histogram
    })
}

/// Labels that Prometheus gives to what it scrapes, and those of histograms.
const OF_PROMETHEUS: [&str; 3] = ["instance", "job", "le"];

#[track_caller]
fn check(expression: &str) {
    let (metrics, labels) = used(expression);
    let rows: Vec<_> = metrics
        .iter()
        .map(|metric| row_of(metric).unwrap_or_else(|| panic!("{metric}: {expression}")))
        .collect();
    for label in labels.iter().filter(|label| !OF_PROMETHEUS.contains(&&***label)) {
        let is_known = rows.iter().any(|row| row.labels.contains(&&**label));
        assert!(is_known, "{label}: {expression}");
    }
}

#[test]
fn what_an_expression_names_is_found() {
    let (metrics, labels) = used(
        "sum by (instance, emitter) (rate(vahti_lane_total{outcome=\"a{b\"}[5m])) > 0 and on (job) \
         process_open_fds",
    );
    assert_eq!(metrics.iter().collect::<Vec<_>>(), ["process_open_fds", "vahti_lane_total"]);
    let labels: Vec<_> = labels.iter().collect();
    assert_eq!(labels, ["emitter", "instance", "job", "outcome"]);
    for wrong in ["vahti_nothing", "vahti_store_open{emitter=\"x\"}"] {
        assert!(std::panic::catch_unwind(|| check(wrong)).is_err(), "{wrong}");
    }
}

#[test]
fn the_dashboard_asks_for_metrics_that_there_are() {
    fn expressions(value: &serde_json::Value, all: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(members) => {
                let named = members.get("expr").and_then(|expr| expr.as_str());
                all.extend(named.map(str::to_owned));
                members.values().for_each(|value| expressions(value, all));
            }
            serde_json::Value::Array(items) => {
                items.iter().for_each(|value| expressions(value, all));
            }
            _ => {}
        }
    }
    let text = fs::read_to_string(file("deploy/grafana/vahti.json")).unwrap();
    let mut all = Vec::new();
    expressions(&serde_json::from_str(&text).unwrap(), &mut all);
    assert!(all.len() >= 12, "{all:?}");
    all.iter().for_each(|expression| check(expression));
}

#[test]
fn the_alerts_ask_for_metrics_that_there_are() {
    let text = fs::read_to_string(file("deploy/prometheus/vahti.rules.yml")).unwrap();
    let rules: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    let rules = rules["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.len() >= 8);
    for rule in rules {
        check(rule["expr"].as_str().unwrap());
        assert!(rule["annotations"]["summary"].is_string(), "{rule}");
    }
}
