//! What a scrape of a real agent holds, against the page that tells what it may
//! hold: with a store, emitters that work and that don't, and faults meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Agent, PATIENCE, ask, free_port, refuse};

const PAGE: &str = include_str!("../../../../docs/metrics.md");
const OPEN_METRICS: &str = "application/openmetrics-text";

/// A metric of the page.
struct Row {
    name: &'static str,
    kind: &'static str,
    labels: BTreeSet<&'static str>,
}

fn quoted(text: &'static str) -> BTreeSet<&'static str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn rows() -> Vec<Row> {
    let (_, table) = PAGE.split_once("## All metrics").unwrap();
    let (table, _) = table.split_once("## All labels").unwrap();
    let row = |line: &'static str| {
        let cells: Vec<_> = line.split(" | ").collect();
        let name = cells[0].trim_start_matches("| ").trim_matches('`');
        Row { name, kind: cells[1], labels: quoted(cells[2]) }
    };
    table.lines().filter(|line| line.starts_with("| `")).map(row).collect()
}

/// The words that each label may have.
fn words() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let (_, table) = PAGE.split_once("## All labels").unwrap();
    let lines = table.lines().filter(|line| line.starts_with("| `"));
    let cells = lines.map(|line| line.split(" | ").collect::<Vec<_>>());
    cells.map(|cells| (cells[0].trim_matches(['|', ' ', '`']), quoted(cells[1]))).collect()
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    /// With what a histogram puts behind its name.
    name: String,
    labels: BTreeMap<String, String>,
}

impl Series {
    fn is(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.name == name
            && labels.iter().all(|(key, value)| self.labels.get(*key).is_some_and(|v| v == value))
    }

    /// Whether its value may only rise.
    fn rises(&self) -> bool {
        ["_total", "_count", "_sum", "_bucket"].iter().any(|end| self.name.ends_with(end))
    }
}

/// A scrape: by family its kind, and its series.
#[derive(Default)]
struct Scrape {
    kinds: BTreeMap<String, String>,
    families: BTreeMap<String, BTreeSet<Series>>,
    values: BTreeMap<Series, f64>,
}

fn labels(text: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    while let Some((key, after)) = rest.split_once("=\"") {
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().expect("a value that ends") {
                (at, '"') => break at,
                (_, '\\') => value.push(chars.next().unwrap().1),
                (_, c) => value.push(c),
            }
        };
        assert!(labels.insert(key.to_owned(), value).is_none(), "{key} twice: {text}");
        rest = after[end + 1..].trim_start_matches(',');
    }
    labels
}

impl Scrape {
    fn of(agent: &Agent, accept: &str) -> Self {
        let answer = ask(agent.address, "/metrics", accept).unwrap();
        assert!(answer.is_ok(), "{}", answer.head);
        let mut scrape = Scrape::default();
        let mut family = String::new();
        for line in answer.body.lines().filter(|line| *line != "# EOF") {
            if let Some(typed) = line.strip_prefix("# TYPE ") {
                let (name, kind) = typed.split_once(' ').unwrap();
                family = name.to_owned();
                let twice = scrape.kinds.insert(family.clone(), kind.to_owned());
                assert_eq!(twice, None, "{family}");
            } else if let Some(help) = line.strip_prefix("# HELP ") {
                assert!(help.ends_with('.'), "{help}");
            } else {
                scrape.add(&family, line);
            }
        }
        scrape
    }

    fn add(&mut self, family: &str, line: &str) {
        assert!(!line.starts_with('#') && line.starts_with(family), "{line} below {family}");
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, rest) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels(rest.strip_suffix('}').unwrap());
        let series = Series { name: name.to_owned(), labels };
        self.families.entry(family.to_owned()).or_default().insert(series.clone());
        let twice = self.values.insert(series, value.parse().unwrap());
        assert_eq!(twice, None, "{line}");
    }

    /// The sum of all series with this name and these labels.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let of = self.values.iter().filter(|(series, _)| series.is(name, labels));
        of.map(|(_, value)| value).sum()
    }

    /// The lines of the ledger that do not add up, each with what is missing.
    fn differences(&self) -> Vec<(String, f64)> {
        let of_records = self.values.keys().filter(|s| s.name == "vahti_records_total");
        let observers: BTreeSet<&str> = of_records.map(|s| &*s.labels["observer"]).collect();
        let lines = observers.into_iter().flat_map(|observer| {
            let of = |name: &str, key: &str, words: &[&str]| -> f64 {
                let each = words.iter().map(|word| [("observer", observer), (key, *word)]);
                each.map(|labels| self.sum(name, &labels)).sum()
            };
            let out = |name: &str, words: &[&str]| of(name, "outcome", words);
            let level = |name: &str, words: &[&str]| of(name, "state", words);
            let (kernel, ring) = ("vahti_kernel_total", "vahti_ring_total");
            let (records, events) = ("vahti_records_total", "vahti_events_total");
            let in_ring = level("vahti_ring_records", &["in_ring"]);
            let processing = level("vahti_observer_records", &["processing"]);
            let open = level("vahti_observer_events", &["waiting", "folding"]);
            [
                ("kernel", out(kernel, &["attempted"]) - out(kernel, &["submitted", "lost"])),
                ("ring", {
                    let read = out(ring, &["received", "abandoned"]);
                    out(ring, &["submitted"]) - read - in_ring
                }),
                ("records", {
                    let done = out(records, &["ignored", "failed", "processed"]);
                    out(records, &["received"]) - done - processing
                }),
                ("events", {
                    let done = out(events, &["sampled_out", "routed"]);
                    out(events, &["produced"]) - done - open
                }),
            ]
            .map(|(line, difference)| (format!("{observer} {line}"), difference))
        });
        let wrong = lines.filter(|(_, difference)| *difference != 0.0);
        wrong.chain(self.lane_differences()).collect()
    }

    /// Those of lanes, which are said to add up at any moment.
    fn lane_differences(&self) -> Vec<(String, f64)> {
        let of_lanes = self.values.keys().filter(|s| s.name == "vahti_lane_total");
        let lanes: BTreeSet<_> =
            of_lanes.map(|s| (&*s.labels["observer"], &*s.labels["emitter"])).collect();
        assert!(lanes.len() >= 6, "{lanes:?}");
        let difference = |(observer, emitter): (&str, &str)| {
            let lane = [("observer", observer), ("emitter", emitter)];
            let total = |outcome| {
                self.sum("vahti_lane_total", &[&lane[..], &[("outcome", outcome)]].concat())
            };
            let settled = total("delivered") + total("rejected") + total("dropped");
            let on_the_way = self.sum("vahti_lane_events", &lane);
            (format!("{observer} {emitter}"), total("routed") - settled - on_the_way)
        };
        let all = lanes.into_iter().map(difference);
        all.filter(|(_, difference)| *difference != 0.0).collect()
    }
}

/// An agent with emitters that work, that are down, and that are owed.
pub(super) fn agent() -> Option<(Agent, tempfile::NamedTempFile)> {
    let config = tempfile::NamedTempFile::new().unwrap();
    let (down, owed) = (free_port(), free_port());
    let yaml = format!(
        "emitters:\n- {{type: none}}\n- {{type: otlp, name: down, endpoint: \"http://{down}\"}}\n\
         - {{type: otlp, name: owed, durable: true, endpoint: \"http://{owed}\"}}\n"
    );
    std::fs::write(config.path(), yaml).unwrap();
    let agent = Agent::start(&["--config", config.path().to_str().unwrap()])?;
    Some((agent, config))
}

/// Whether a label may have this value: a word of the page, or a name.
fn is_known(words: &BTreeSet<&str>, label: &str, value: &str) -> bool {
    let is_emitter = |name: &str| ["store", "(store)", "none", "down", "owed"].contains(&name);
    match label {
        "emitter" => is_emitter(value),
        "line" => {
            let of = value.strip_prefix("lane ").or_else(|| value.strip_prefix("routed to "));
            of.map_or_else(|| words.contains(value), is_emitter)
        }
        "program" => {
            value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        }
        "version" => value == env!("CARGO_PKG_VERSION"),
        _ => words.contains(value),
    }
}

#[test]
fn a_scrape_has_what_the_page_says_and_nothing_else() {
    let Some((agent, _config)) = agent() else { return };
    refuse();
    let words = words();
    for accept in ["text/plain", OPEN_METRICS] {
        let scrape = Scrape::of(&agent, accept);
        let mut untold: BTreeSet<&str> = scrape.kinds.keys().map(String::as_str).collect();
        for Row { name, kind, labels } in rows() {
            let (family, told) = match (kind, accept == OPEN_METRICS) {
                ("counter", true) => (name.trim_end_matches("_total"), "counter"),
                ("info", true) => (name.trim_end_matches("_info"), "info"),
                ("info", false) => (name, "gauge"),
                (kind, _) => (name, kind),
            };
            assert_eq!(scrape.kinds.get(family).map(String::as_str), Some(told), "{family}");
            untold.remove(family);
            let series = scrape.families.get(family);
            for Series { name: full, labels: of } in series.unwrap_or_else(|| panic!("no {name}")) {
                let is_of = full == name || kind == "histogram" && full.starts_with(name);
                assert!(is_of, "{full} is none of {name}");
                let le = if full.ends_with("_bucket") { Some("le") } else { None };
                for (label, value) in of.iter().filter(|(label, _)| Some(&***label) != le) {
                    assert!(labels.contains(&**label), "{name} has no label {label}");
                    assert!(is_known(&words[&**label], label, value), "{name}: {label}={value}");
                }
            }
        }
        assert!(untold.is_empty(), "the page does not know {untold:?}");
    }
    let used: BTreeSet<&str> = rows().into_iter().flat_map(|row| row.labels).collect();
    assert_eq!(used, words.keys().copied().collect(), "labels of the page");
}

#[test]
fn counters_only_rise_and_the_ledger_adds_up_within_each_scrape() {
    let Some((agent, _config)) = agent() else { return };
    let (mut last, is_over) = (BTreeMap::new(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                refuse();
            }
        });
        for round in 0..40 {
            let accept = if round % 2 == 0 { "text/plain" } else { OPEN_METRICS };
            let scrape = Scrape::of(&agent, accept);
            let wrong = scrape.lane_differences();
            assert!(wrong.is_empty(), "round {round}: {wrong:?}");
            for (series, value) in scrape.values.iter().filter(|(series, _)| series.rises()) {
                let before = last.insert(series.clone(), *value).unwrap_or(0.0);
                assert!(*value >= before, "{series:?} was {before} and is {value}");
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let begun = Instant::now();
    loop {
        // Others on this machine may have faults of their own meanwhile.
        let scrape = Scrape::of(&agent, "text/plain");
        let (wrong, told) = (scrape.differences(), "vahti_ledger_difference");
        let told = scrape.values.iter().find(|(s, value)| s.name == told && **value != 0.0);
        let lane =
            |name, emitter, key, what| scrape.sum(name, &[("emitter", emitter), (key, what)]);
        let is_all_there = [
            scrape.sum("vahti_events_seen_total", &[("subtype", "connection_refused")]),
            lane("vahti_lane_total", "none", "outcome", "delivered"),
            lane("vahti_lane_total", "down", "outcome", "dropped"),
            lane("vahti_lane_events", "owed", "state", "stored"),
        ];
        let has_failed = scrape.sum("vahti_emitter_up", &[("emitter", "down")]) == 0.0;
        if wrong.is_empty()
            && told.is_none()
            && has_failed
            && is_all_there.iter().all(|n| *n > 50.0)
        {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{wrong:?}, {told:?}, {is_all_there:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
