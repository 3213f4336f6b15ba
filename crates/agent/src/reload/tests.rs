use std::collections::BTreeSet;

use serde_json::Value;
use vahti_runtime::units::{ByteSize, HumanDuration};

use super::plan::Plan;
use super::table::{TABLE, When, row_of};
use crate::budget::Division;
use crate::config::load;
use crate::config::{Config, EmitterConfig, EmitterType, example};

/// The fields of a schema, those of lists as `list[].field`.
fn fields(schema: &Value, root: &Value, path: &str, all: &mut BTreeSet<String>) {
    let schema = match schema["$ref"].as_str().and_then(|to| to.strip_prefix('#')) {
        Some(to) => root.pointer(to).unwrap(),
        None => schema,
    };
    let either = schema["anyOf"].as_array().into_iter().chain(schema["oneOf"].as_array());
    let inner: Vec<&Value> = either.flatten().filter(|one| one["type"] != "null").collect();
    if let ([one], true) = (&inner[..], schema["properties"].is_null()) {
        return fields(one, root, path, all);
    }
    if let Some(properties) = schema["properties"].as_object() {
        for (key, schema) in properties {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            fields(schema, root, &path, all);
        }
    } else if schema["items"].is_object() && path == "emitters" {
        fields(&schema["items"], root, &format!("{path}[]"), all);
    } else {
        all.insert(path.to_owned());
    }
}

fn all_fields() -> BTreeSet<String> {
    let schema = example::schema();
    let mut all = BTreeSet::new();
    fields(&schema, &schema, "", &mut all);
    all
}

fn config(yaml: &str) -> Config {
    load::from_text(yaml, "test", Config::validate).unwrap().config
}

const SECTION: &str = "## Field by field\n";

/// The section of docs/reload.md that is made from the table.
fn reference() -> String {
    let mut out = format!("{SECTION}\n| field | when | |\n|---|---|---|\n");
    for row in TABLE {
        let when = match row.when {
            When::Now => "at once",
            When::Restart => "with a restart",
            When::Depends => "it depends",
        };
        out.push_str(&format!("| `{}` | {when} | {} |\n", row.path, row.remark));
    }
    out
}

#[test]
fn the_page_of_reloads_is_the_generated_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reload.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (by_hand, section) = page.split_at(page.find(SECTION).unwrap_or(page.len()));
    if std::env::var_os("VAHTI_WRITE_DOCS").is_some() {
        std::fs::write(path, format!("{by_hand}{}", reference())).unwrap();
        return;
    }
    assert!(
        section == reference(),
        "docs/reload.md is out of date: VAHTI_WRITE_DOCS=1 cargo test -p vahti-agent --bins \
         the_page_of_reloads"
    );
}

/// What of a change from one to the other is applied, and what is not.
fn planned(from: &Config, to: &Config) -> (Plan, Vec<String>) {
    let plan = Plan::of(from, &Division::of(from).unwrap(), to).unwrap();
    let told = plan.changes.iter().map(|change| {
        let when = if change.applied { "now" } else { "restart" };
        format!("{change}, {when}")
    });
    let told = told.collect();
    (plan, told)
}

#[test]
fn every_field_has_a_row_and_every_row_a_field() {
    let all = all_fields();
    assert!(all.len() > 60, "{all:?}");
    for field in &all {
        assert!(row_of(field).is_some(), "{field}");
    }
    for row in TABLE {
        let is_there = all.iter().any(|field| {
            let field = field.replacen(".network.", ".*.", 1).replacen(".container.", ".*.", 1);
            field.starts_with(row.path)
        });
        assert!(is_there, "{}", row.path);
    }
    for (path, when) in [
        ("observers.network.sampling.rules[12].rate", When::Now),
        ("observers.container.enabled", When::Restart),
        ("emitters[3].max_retries", When::Now),
        ("emitters[0].endpoint", When::Restart),
        ("emitters", When::Restart),
        ("limits.memory", When::Depends),
    ] {
        assert_eq!(row_of(path).unwrap().when, when, "{path}");
    }
    assert!(row_of("logs").is_none() && row_of("observers").is_none());
}

/// Another configuration, whose every field is another one.
fn another() -> Config {
    config(
        "node_name: b
log: warn
observers:
  network: &o
    enabled: false
    sampling: {enabled: true, default_rate: 0.5, rules: [{event_type: network, rate: 0.1}]}
    backpressure: {queue_size: 9, max_bytes: 1MiB, drop_policy: newest, max_retries: 4, drain_interval: 9ms}
    health: {enabled: false, check_interval: 9s, hang_timeout: 9s}
    failure: {policy: restart, retry: {max_attempts: 9, initial_delay: 9ms, max_delay: 9s, multiplier: 9.0, period: 9s}}
    metrics: {enabled: false, allowed_labels: [type], max_series: 9}
  container:
    enabled: false
    export_normal_exits: true
    sampling: {enabled: true, default_rate: 0.5, rules: [{event_type: network, rate: 0.1}]}
    backpressure: {queue_size: 9, max_bytes: 1MiB, drop_policy: newest, max_retries: 4, drain_interval: 9ms}
    health: {enabled: false, check_interval: 9s, hang_timeout: 9s}
    failure: {policy: restart, retry: {max_attempts: 9, initial_delay: 9ms, max_delay: 9s, multiplier: 9.0, period: 9s}}
    metrics: {enabled: false, allowed_labels: [type], max_series: 9}
emitters:
  - {type: file, name: a, path: /tmp/b, critical: true, durable: true, max_retries: 9, drain_interval: 9ms, max_size: 9MiB, max_age: 9h, keep: 9}
  - {type: otlp, endpoint: 'http://b:1', protocol: http, headers: {a: b}, compression: gzip, timeout: 9s, max_request: 1MiB, traces: false}
  - {type: stdout, format: text}
  - {type: polku, endpoint: 'https://b:1', cluster: b, tls: {ca: /b, cert: /c, key: /d}}
store: {path: /b, max_bytes: 9MiB, max_age: 9h}
http: {listen: 'none'}
limits: {drain_deadline: 9s, memory: 128MiB}
"
        .replace(" &o", "")
        .as_str(),
    )
}

fn of_four_emitters() -> Config {
    let mut config = config("node_name: a\n");
    let named = |name: &str, kind| EmitterConfig {
        name: Some(name.to_owned()).filter(|name| !name.is_empty()),
        ..EmitterConfig::of(kind)
    };
    let file = EmitterConfig { path: Some("/tmp/a".into()), ..named("a", EmitterType::File) };
    let polku =
        EmitterConfig { endpoint: Some("https://a:1".into()), ..named("", EmitterType::Polku) };
    let (otlp, stdout) = (named("", EmitterType::Otlp), named("", EmitterType::Stdout));
    config.emitters.0 = vec![file, otlp, stdout, polku];
    config
}

#[test]
fn what_is_said_to_be_applied_is_and_nothing_else() {
    let (from, to) = (of_four_emitters(), another());
    let (plan, _) = planned(&from, &to);
    let mut missed = all_fields();
    for change in &plan.changes {
        let path = change.path.replace("[0]", "[]").replace("[1]", "[]");
        let path = path.replace("[2]", "[]").replace("[3]", "[]");
        let is_hidden = path == "emitters[].tls";
        missed.retain(|field| {
            let is_told = path.starts_with(field.as_str());
            !is_told && (!is_hidden || !field.starts_with(&path))
        });
        // Alone, and applied: what is gone by then has it; else it has not.
        let (again, _) = planned(&plan.config, &to);
        let differs = again.changes.iter().any(|other| other.path == change.path);
        assert_eq!(differs, !change.applied, "{change}");
    }
    // The names are what emitters are known by, and types what they are.
    missed.retain(|field| !["emitters[].name", "emitters[].type"].contains(&field.as_str()));
    assert!(missed.is_empty(), "this test changes all but {missed:?}");
    let (again, _) = planned(&to, &to);
    assert!(again.changes.is_empty() && again.config == to);
}

#[test]
fn what_is_secret_is_told_to_be_another_one_and_not_shown() {
    let with = |header: &str| {
        config(&format!(
            "emitters: [{{type: otlp, endpoint: 'https://a:1', \
             headers: {{authorization: {header}}}, tls: {{ca: /{header}}}}}]"
        ))
    };
    let (from, to) = (with("hunter1"), with("hunter2"));
    let (_, told) = planned(&from, &to);
    let expected =
        ["headers", "tls"].map(|key| format!("emitters[0].{key}: not shown → not shown, restart"));
    assert_eq!(told, expected);
}

#[test]
fn other_emitters_are_told_by_their_names_and_wait_for_a_restart() {
    let from = config("emitters: [{type: stdout}]");
    let to = config("log: warn\nemitters: [{type: stdout, max_retries: 9}, {type: none}]");
    let (plan, told) = planned(&from, &to);
    let expected =
        ["log.level: \"info\" → \"warn\", now", "emitters: stdout → stdout, none, restart"];
    assert_eq!(told, expected);
    assert_eq!(plan.config.emitters, from.emitters);
}

#[test]
fn a_budget_changes_where_only_lanes_differ_and_else_waits() {
    let with = |memory: u64| {
        let mut config = Config::default();
        config.limits.memory = ByteSize::mib(memory);
        config
    };
    for (from, to, applied) in [(64, 128, true), (128, 64, true), (64, 40, false), (40, 64, false)]
    {
        let (plan, _) = planned(&with(from), &with(to));
        assert_eq!(plan.changes[0].applied, applied, "{from} → {to}");
        let budget = if applied { to } else { from };
        assert_eq!(plan.config.limits.memory, ByteSize::mib(budget));
        assert_eq!(plan.division.budget, budget << 20);
        assert!(plan.division.leaves_as_made(&Division::of(&with(from)).unwrap()));
        let parts: u64 = plan.division.parts.iter().map(|part| part.bytes).sum();
        assert!(parts <= plan.division.budget);
    }
}

#[test]
fn what_fits_only_after_a_restart_is_refused_until_then() {
    let from = Config::default();
    let mut to = Config::default();
    to.observers.container.enabled = false;
    to.observers.network.backpressure.max_bytes = Some(ByteSize::mib(18));
    assert_eq!(to.validate(), []);
    let wrong = Plan::of(&from, &Division::of(&from).unwrap(), &to).unwrap_err();
    assert_eq!(wrong[0].path, "limits.memory");
    to.store.max_age = HumanDuration(std::time::Duration::from_secs(60));
    to.observers.network.backpressure.max_bytes = Some(ByteSize::mib(8));
    assert!(Plan::of(&from, &Division::of(&from).unwrap(), &to).is_ok());
}
