use std::ffi::OsString;
use std::path::Path;
use std::sync::LazyLock;

use vahti_runtime::config::bounds::Bound;

use super::load::{from_file, from_text};
use super::settings::{Emit, Overrides, resolve};
use super::*;

fn problems(yaml: &str) -> Vec<String> {
    let told = from_text(yaml, "f", Config::validate_alone).unwrap_err().to_string();
    told.lines().map(str::to_owned).collect()
}

fn config(yaml: &str) -> Config {
    from_text(yaml, "f", Config::validate_alone).unwrap().config
}

#[test]
fn an_empty_file_means_the_defaults() {
    for yaml in ["", "\n", "# nothing\n", "---\n", "observers:\n  network:\n"] {
        assert_eq!(config(yaml), Config::default(), "{yaml:?}");
    }
}

#[test]
fn the_example_passes_its_own_check_and_equals_the_defaults() {
    assert_eq!(config(&example::example()), Config::default());
}

#[test]
fn the_example_in_the_documentation_is_the_generated_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/config.example.yaml");
    let committed = std::fs::read_to_string(path).unwrap();
    assert!(
        committed == example::example(),
        "docs/config.example.yaml is out of date: `vahti config example > docs/config.example.yaml`"
    );
}

/// The example with everything in it that an emitter of this type may have.
fn uncommented(kind: EmitterType) -> Config {
    let mut yaml = String::new();
    for line in example::example().lines() {
        // A commented key is a comment whose text is a key and a value.
        let (indent, text) = line.split_at(line.len() - line.trim_start().len());
        let bare = text.strip_prefix("# ").unwrap_or_default();
        let key = bare.trim_start_matches(['-', ' ']).split(": ").next().unwrap();
        let value = bare.split_once(": ").map(|(_, value)| value);
        let is_value =
            |value: &str| value.starts_with('{') || (!value.contains(' ') && !value.ends_with('.'));
        let is_key = value.is_some_and(is_value)
            && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
            && OF_TYPES.iter().all(|(of_types, of)| *of_types != key || of.contains(&kind));
        let shown = if is_key { bare } else { text };
        yaml.push_str(&format!("{indent}{shown}\n"));
    }
    let kind = format!("type: {}", kind.as_str());
    config(&yaml.replacen("type: stdout", &kind, 1).replacen("rules: []", "rules:", 1))
}

#[test]
fn what_the_example_comments_out_works_without_the_comment() {
    let file = uncommented(EmitterType::File);
    assert_eq!(file.node_name.as_deref(), Some("node-1"));
    assert_eq!(file.emitters.0[0].name(), "audit");
    assert_eq!(file.emitters.0[0].keep, Some(5));
    assert_eq!(file.observers.network.sampling.rules[0].event_type, "network");
    let polku = uncommented(EmitterType::Polku).emitters.0.remove(0);
    assert_eq!(polku.cluster.as_deref(), Some("production"));
    let otlp = uncommented(EmitterType::Otlp).emitters.0.remove(0);
    assert_eq!(otlp.endpoint.as_deref(), Some("https://collector.example:4317"));
    assert_eq!(otlp.headers.len(), 1);
    assert!(otlp.tls.is_some_and(|tls| tls.ca.is_some()));
}

#[test]
fn the_json_schema_takes_what_the_types_take() {
    let schema = example::schema();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let defaults = serde_json::to_value(Config::default()).unwrap();
    assert!(validator.is_valid(&defaults));
    assert!(!validator.is_valid(&serde_json::json!({"nonsense": 1})));
}

#[test]
fn everything_that_is_wrong_is_told_at_once_with_its_place() {
    let yaml = "\
node_name: \"a b\"
loog: info
log: warning
observers:
  network:
    enabled: yes
    smapling: {}
    sampling:
      default_rate: .nan
      rules:
        - subtype: x
        - event_type: network
          rate: 1.5
    backpressure:
      drain_interval: 100
      queue_size: -1
      max_bytes: 1B
      drop_policy: oldestt
emitters:
  - name: a
  - type: stdout
    path: /x
  - type: file
  - type: file
    name: stdout
    path: /var/x
    keep: 5000000000
";
    let expected = "\
f:1:12: node_name is \"a b\", but must be 1 to 253 letters, digits, dots, hyphens and underscores
f:2:1: loog is not a known key; did you mean log?
f:3:6: log.level is \"warning\", but must be off, error, warn, info, debug or trace; did you mean warn?
f:6:14: observers.network.enabled is \"yes\", but must be true or false
f:7:5: observers.network.smapling is not a known key; did you mean sampling?
f:9:21: observers.network.sampling.default_rate is NaN, but must be a number from 0.0 to 1.0
f:11:11: observers.network.sampling.rules[0] lacks the key event_type
f:13:17: observers.network.sampling.rules[1].rate is 1.5, but must be a number from 0.0 to 1.0
f:15:23: observers.network.backpressure.drain_interval: \"100\" is not a duration: a whole number and one of ms, s, m, h, d (such as 500ms)
f:16:19: observers.network.backpressure.queue_size is -1, but must be a whole number from 1 to 10,000,000
f:17:18: observers.network.backpressure.max_bytes is 1B, but must be 4KiB to 16GiB
f:18:20: observers.network.backpressure.drop_policy is \"oldestt\", but must be oldest, newest or random; did you mean oldest?
f:20:5: emitters[0] lacks the key type
f:22:11: emitters[1].path is set, but must be left out for an emitter of type stdout
f:23:5: emitters[2].path is not set, but must be the path of a file
f:25:11: emitters[3].name is \"stdout\", but must be a name that no other emitter has
f:27:11: emitters[3].keep is 5000000000, but must be a whole number from 0 to 1,000";
    assert_eq!(problems(yaml).join("\n"), expected);
}

#[test]
fn a_key_that_stands_twice_is_refused() {
    assert_eq!(
        problems("log: info\nobservers:\n  network: {}\n  network: {}\nlog: warn\n"),
        [
            "f:4:3: observers.network stands twice; the first is in line 3",
            "f:5:1: log stands twice; the first is in line 1",
        ]
    );
}

#[test]
fn what_is_no_yaml_is_told_with_its_place() {
    assert_eq!(problems("a: 1\nb: [\n"), ["f:2:4: not valid YAML: unclosed bracket '['"]);
    for yaml in ["\tx: 1", "a: b: c", "a: 'x", "- a\nb", "%", "a: *b", "? [", "{", "\0"] {
        let told = problems(yaml);
        assert!(!told.is_empty() && told.iter().all(|t| t.len() < 200), "{yaml:?}: {told:?}");
    }
}

#[test]
fn what_is_no_configuration_is_told_and_does_no_harm() {
    assert!(
        problems("just text")[0]
            .ends_with("the configuration is \"just text\", but must be a map of keys")
    );
    assert!(problems("- 1\n- 2\n")[0].contains("but must be a map of keys"));
    assert!(problems("log: \"a\\e[31m\\n\"")[0].contains(r"\x1b[31m\x0a"));
    // Each level is ten times the one before.
    let mut bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for (this, before) in ('b'..='j').zip('a'..) {
        let ten = vec![format!("*{before}"); 10].join(",");
        bomb.push_str(&format!("{this}: &{this} [{ten}]\n"));
    }
    let begun = std::time::Instant::now();
    for (yaml, told) in [
        (bomb, "keys and values, aliases written out, but may have at most 100000"),
        ("[".repeat(100_000), "has more than 16 levels, one within the other"),
        ("a: {".repeat(1_000), "levels, one within the other"),
        ("- x\n".repeat(150_000), "keys and values, aliases written out, but may have"),
    ] {
        let problems = problems(&yaml);
        assert!(problems[0].contains(told), "{problems:?}");
        assert!(!problems[0].contains("breach") && !problems[0].contains('='), "{problems:?}");
    }
    assert!(begun.elapsed().as_secs() < 5);
}

#[test]
fn a_list_of_mistakes_has_an_end() {
    let yaml: String = (0..1_000).map(|i| format!("key{i}: 1\n")).collect();
    assert_eq!(problems(&yaml).len(), 50);
}

#[test]
fn anchors_may_be_used_and_errors_point_at_their_use() {
    let yaml = "\
observers:
  network:
    sampling: &s {enabled: true, default_rate: 2}
  container:
    sampling: *s
";
    let told = problems(yaml);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("f:3:48: observers.network.sampling.default_rate is 2"));
    assert!(told[1].contains(": observers.container.sampling.default_rate is 2"));
}

#[test]
fn a_name_that_looks_like_a_number_is_a_name() {
    assert_eq!(config("node_name: 007").node_name.as_deref(), Some("007"));
    assert_eq!(config("node_name: 1.10").node_name.as_deref(), Some("1.10"));
    assert_eq!(config("node_name: true").node_name.as_deref(), Some("true"));
    assert_eq!(config("node_name:").node_name, None);
}

#[test]
fn a_level_alone_is_short_for_the_log_with_that_level() {
    let json = LogFormat::Json;
    for (yaml, level, format) in [
        ("log: debug", LogLevel::Debug, LogFormat::Text),
        ("log: off", LogLevel::Off, LogFormat::Text),
        ("log: {level: warn, format: json}", LogLevel::Warn, json),
        ("log:\n  format: json\n", LogLevel::Info, json),
        ("log:", LogLevel::Info, LogFormat::Text),
    ] {
        assert_eq!(config(yaml).log, LogSettings { level, format }, "{yaml}");
    }
    for log in [
        serde_json::json!("debug"),
        serde_json::json!({"level": "off", "format": "json"}),
        serde_json::json!({}),
    ] {
        assert!(schema_takes(&serde_json::json!({ "log": log })), "{log}");
    }
    for (yaml, told) in [
        ("log: 5", "f:1:6: log.level is \"5\", but must be off, error,"),
        ("log: [info]", "f:1:6: log is a list, but must be a map of keys"),
        ("log: {level: info, json: true}", "f:1:20: log.json is not a known key; known here are"),
        ("log: {format: jsno}", "log.format is \"jsno\", but must be text or json; did you mean"),
    ] {
        let problems = problems(yaml);
        assert!(problems.len() == 1 && problems[0].contains(told), "{problems:?}");
    }
    for wrong in [serde_json::json!("loud"), serde_json::json!({"level": 5}), serde_json::json!(1)]
    {
        assert!(!schema_takes(&serde_json::json!({ "log": wrong })), "{wrong}");
    }
}

#[test]
fn files_that_cannot_be_read_are_told_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let told = |name: &str| from_file(&folder.path().join(name)).unwrap_err().to_string();
    assert!(told("none").ends_with("`vahti config example` prints one to start from"));
    assert!(told("").ends_with("is a folder; name the file in it"));
    std::fs::write(folder.path().join("latin1"), b"log: info\nn: \xe4").unwrap();
    assert!(told("latin1").ends_with("latin1:2:4: not UTF-8 from here on; save the file as UTF-8"));
    std::fs::write(folder.path().join("huge"), vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(told("huge").ends_with("is larger than 1MiB, which no configuration needs to be"));
    let endless = from_file(Path::new("/dev/zero")).unwrap_err().to_string();
    assert!(endless.contains("larger than 1MiB"), "{endless}");
}

fn resolved(overrides: Overrides, environment: &[(&str, &str)]) -> Result<Config, String> {
    let lookup = |name: &str| {
        let found = environment.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| OsString::from(value))
    };
    resolve(overrides, lookup).map_err(|e| e.to_string())
}

#[test]
fn the_command_line_goes_before_the_file_before_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.yaml");
    std::fs::write(&file, "log: warn\nemitters: [{type: none}]\n").unwrap();
    let environment = [
        ("VAHTI_CONFIG", file.to_str().unwrap()),
        ("VAHTI_LOG", "trace"),
        ("VAHTI_LOG_FORMAT", "json"),
        ("VAHTI_NODE_NAME", "node-7"),
        ("VAHTI_EMIT", "stdout"),
        ("VAHTI_OBSERVERS", "container"),
    ];
    let config = resolved(Overrides::default(), &environment).unwrap();
    assert_eq!(config.log.level, LogLevel::Warn, "file before environment");
    assert_eq!(config.log.format, LogFormat::Json, "the file does not say");
    assert_eq!(config.emitters.0[0].kind, EmitterType::None);
    assert_eq!(config.node_name.as_deref(), Some("node-7"), "environment before default");
    assert!(!config.observers.network.enabled && config.observers.container.enabled);

    let overrides = Overrides {
        emit: Some(vec![Emit::Stdout, Emit::File("/a".into()), Emit::File("/b".into())]),
        observers: Some(vec!["network".parse().unwrap()]),
        log: Some(LogLevel::Off),
        log_format: Some(LogFormat::Text),
        format: Some(Format::Json),
        ..Overrides::default()
    };
    let config = resolved(overrides, &environment).unwrap();
    let names: Vec<&str> = config.emitters.0.iter().map(EmitterConfig::name).collect();
    assert_eq!(names, ["stdout", "file", "file-2"]);
    assert_eq!(config.emitters.0[0].format, Some(Format::Json));
    assert_eq!(config.log, LogSettings { level: LogLevel::Off, format: LogFormat::Text });
    assert!(config.observers.network.enabled && !config.observers.container.enabled);
}

#[test]
fn wrong_variables_are_told_with_what_they_may_be() {
    for (name, value, told) in [
        (
            "VAHTI_HTTP",
            "localhost",
            "environment: VAHTI_HTTP is \"localhost\", but must be an address and port, such as \
             127.0.0.1:9464 or [::1]:9464, or none",
        ),
        (
            "VAHTI_LOG",
            "loud",
            "VAHTI_LOG is \"loud\", but must be off, error, warn, info, debug or trace",
        ),
        ("VAHTI_LOG_FORMAT", "JSON", "VAHTI_LOG_FORMAT is \"JSON\", but must be text or json"),
        (
            "VAHTI_EMIT",
            "stdout,syslog",
            "VAHTI_EMIT is \"syslog\", but must be stdout, file=PATH, otlp=URL, polku=URL or none",
        ),
        ("VAHTI_NODE_NAME", "a b", "VAHTI_NODE_NAME is \"a b\", but must be 1 to 253 letters"),
        (
            "VAHTI_OBSERVERS",
            "netwrok",
            "VAHTI_OBSERVERS is \"netwrok\", but must be network or container; did you mean network?",
        ),
        ("VAHTI_CONFIG", "/no/such", "/no/such: there is no such file"),
    ] {
        let error = resolved(Overrides::default(), &[(name, value)]).unwrap_err();
        assert!(error.contains(told), "{error}");
    }
    assert!(resolved(Overrides::default(), &[("VAHTI_LOG", "")]).is_ok(), "empty is not set");
}

#[test]
fn a_variable_that_is_not_utf_8_is_refused_by_name_unless_the_file_sets_its_field() {
    use std::os::unix::ffi::OsStringExt;
    for variable in
        ["VAHTI_NODE_NAME", "VAHTI_LOG", "VAHTI_LOG_FORMAT", "VAHTI_EMIT", "VAHTI_OBSERVERS"]
    {
        let lookup =
            |name: &str| (name == variable).then(|| OsString::from_vec(b"n\xf6de\n".to_vec()));
        let told = resolve(Overrides::default(), lookup).unwrap_err().to_string();
        let expected = format!("environment: {variable} is \"n\\xf6de\\x0a\", which is not UTF-8");
        assert_eq!(told, expected);
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "node_name: n\n").unwrap();
    let lookup = |name: &str| match name {
        "VAHTI_CONFIG" => Some(file.path().into()),
        "VAHTI_NODE_NAME" => Some(OsString::from_vec(vec![0xf6])),
        _ => None,
    };
    let config = resolve(Overrides::default(), lookup).unwrap();
    assert_eq!(config.node_name.as_deref(), Some("n"));
}

#[test]
fn one_mistake_is_told_once() {
    for (yaml, told) in [
        (
            "emitters: [{type: oltp}]",
            "f:1:19: emitters[0].type is \"oltp\", but must be stdout, file, otlp, polku or none; did you mean otlp?",
        ),
        ("emitters:\n- keep: 5\n", "f:2:3: emitters[0] lacks the key type"),
        ("emitters: [file]", "f:1:12: emitters[0] is \"file\", but must be a map of keys"),
        (
            "observers: {network: {sampling: {rules: [{event_type: []}]}}}",
            "f:1:55: observers.network.sampling.rules[0].event_type is a list, but must be text",
        ),
        (
            "observers: {network: {sampling: {rules: [{event_type: \"\"}]}}}",
            "f:1:55: observers.network.sampling.rules[0].event_type is \"\", but must be the type \
             of an event, such as \"network\"",
        ),
    ] {
        assert_eq!(problems(yaml), [told]);
    }
    assert_eq!(
        problems("emitters: []"),
        ["f:1:11: emitters is a list of 0, but must be a list of 1 to 16"]
    );
}

#[test]
fn a_number_that_its_type_cannot_hold_is_told_with_its_fields_bound() {
    let yaml = "\
observers:
  network:
    backpressure:
      queue_size: 99999999999999999999999
      max_retries: -1
      max_bytes: 99999999999GiB
      drain_interval: 213503982335d
    metrics: {max_series: 1.5}
    failure: {retry: {multiplier: big}}
emitters:
- {type: file, path: /a, keep: 99999999999999999999999999999999999999999999}
";
    let expected = "\
f:4:19: observers.network.backpressure.queue_size is 99999999999999999999999, but must be a whole number from 1 to 10,000,000
f:5:20: observers.network.backpressure.max_retries is -1, but must be a whole number from 0 to 1,000
f:6:18: observers.network.backpressure.max_bytes is \"99999999999GiB\", but must be 4KiB to 16GiB
f:7:23: observers.network.backpressure.drain_interval is \"213503982335d\", but must be 1ms to 1h
f:8:27: observers.network.metrics.max_series is 1.5, but must be a whole number from 1 to 100,000
f:9:35: observers.network.failure.retry.multiplier is \"big\", but must be a number from 1.0 to 100.0
f:11:32: emitters[0].keep is 99999999999999999999999999999999999999999999, but must be a whole number from 0 to 1,000";
    assert_eq!(problems(yaml).join("\n"), expected);
}

#[test]
fn two_documents_are_refused_in_our_words() {
    let told = problems("log: info\n---\nlog: warn\n").join("\n");
    assert!(told.contains("holds several documents"), "{told}");
}

#[test]
fn only_files_are_durable() {
    let yaml = "emitters: [{type: stdout, durable: true}, {type: none, durable: true}]";
    let told = problems(yaml).join("\n");
    assert!(told.contains("emitters[0].durable is true, but must be false"), "{told}");
    assert!(told.contains("emitters[1].durable is true, but must be false"), "{told}");
}

#[test]
fn emitters_share_no_file() {
    let yaml = "\
emitters:
- {type: file, path: /var/log/a}
- {type: file, name: b, path: /var/./log//a}
- {type: file, name: c, path: /var/log/c}
";
    assert_eq!(
        problems(yaml),
        ["f:3:31: emitters[1].path is \"/var/./log//a\", but must be another file than that of \
          emitters[0]"]
    );
}

#[test]
fn a_file_that_watches_nothing_is_refused_unless_the_command_line_names_an_observer() {
    let yaml = "observers: {network: {enabled: false}, container: {enabled: false}}";
    assert_eq!(
        problems(yaml),
        ["f:1:12: observers is without any that is enabled, but must be with one at least: \
          network or container"]
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), yaml).unwrap();
    let overrides = Overrides {
        config: Some(file.path().into()),
        observers: Some(vec!["network".parse().unwrap()]),
        ..Overrides::default()
    };
    assert!(resolved(overrides, &[]).unwrap().observers.network.enabled);
}

#[test]
fn where_is_listened_is_said_by_the_command_line_before_the_file_before_the_environment() {
    let environment = [("VAHTI_HTTP", "none")];
    let listen = |overrides, environment: &[(&str, &str)]| {
        resolved(overrides, environment).unwrap().http.listen.to_string()
    };
    assert_eq!(listen(Overrides::default(), &[]), "127.0.0.1:9464");
    assert_eq!(listen(Overrides::default(), &environment), "none");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "http: {listen: '[::1]:80'}").unwrap();
    let with_file = || Overrides { config: Some(file.path().into()), ..Overrides::default() };
    assert_eq!(listen(with_file(), &environment), "[::1]:80");
    let http = Some("127.0.0.1:81".parse().unwrap());
    assert_eq!(listen(Overrides { http, ..with_file() }, &environment), "127.0.0.1:81");
    let told = problems("http: {listen: 9464}");
    assert!(told[0].starts_with("f:1:16: http.listen: \"9464\" is not "), "{told:?}");
    let told = problems("http: {listen: localhost:9464}");
    assert!(told[0].contains("an address and port, such as 127.0.0.1:9464"), "{told:?}");
}

#[test]
fn a_sampling_rule_names_events_that_exist() {
    let yaml = "\
observers:
  network:
    sampling:
      rules:
      - event_type: netwrok
      - {event_type: network, subtype: conection_refused}
      - {event_type: container, subtype: oom_kill}
      - {event_type: container, subtype: connection_reset}
";
    let rules = "observers.network.sampling.rules";
    let expected = [
        format!(
            "f:5:21: {rules}[0].event_type is \"netwrok\", but must be network or container; \
             did you mean network?"
        ),
        format!(
            "f:6:40: {rules}[1].subtype is \"conection_refused\", but must be connection_refused, connection_timeout, connection_unreachable, connection_reset or connection_abandoned; did you mean connection_refused?"
        ),
        format!(
            "f:8:42: {rules}[3].subtype is \"connection_reset\", but must be oom_kill, container_exit or process_crash"
        ),
    ];
    assert_eq!(problems(yaml), expected);
}

fn schema_takes(config: &serde_json::Value) -> bool {
    static SCHEMA: LazyLock<jsonschema::Validator> =
        LazyLock::new(|| jsonschema::draft202012::new(&example::schema()).unwrap());
    SCHEMA.is_valid(config)
}

/// A configuration of one field, from its path.
fn only(path: &str, value: serde_json::Value) -> serde_json::Value {
    let field = |key: &str| match key.strip_suffix("[]") {
        Some(list) => (list.to_owned(), true),
        None => (key.to_owned(), false),
    };
    let needed = serde_json::json!({"emitters": {"type": "file", "path": "/e"}, "rules": {"event_type": "network"}});
    path.rsplit('.').fold(value, |inner, key| {
        let (key, is_list) = field(key);
        if !is_list {
            return serde_json::json!({ key: inner });
        }
        let mut item = inner;
        if let (Some(item), Some(needed)) = (item.as_object_mut(), needed[&key].as_object()) {
            for (key, value) in needed {
                item.entry(key).or_insert(value.clone());
            }
        }
        serde_json::json!({ key: [item] })
    })
}

/// Values at, in and beyond a bound.
fn around(bound: &Bound) -> Vec<serde_json::Value> {
    use serde_json::json;
    match bound {
        Bound::Whole(low, high) => vec![
            json!(*low as i64 - 1),
            json!(low),
            json!(high),
            json!(high + 1),
            json!(99_999_999_999_u64),
        ],
        Bound::Number(low, high) => {
            vec![json!(low - 0.1), json!(low), json!(high), json!(high + 0.1)]
        }
        Bound::Duration(..) => [
            "0s", "1ms", "99ms", "100ms", "1s", "999ms", "1h", "3601s", "61m", "24h", "25h", "10m",
            "601s", "366d", "367d", "1.5s", "1",
        ]
        .map(|text| json!(text))
        .to_vec(),
        Bound::Size(..) => ["1B", "4095B", "4KiB", "16GiB", "17GiB", "1024GiB", "1025GiB", "4MB"]
            .map(|text| json!(text))
            .to_vec(),
        Bound::Items(..) => vec![],
        Bound::Text(_) => ["", "a", "A", "a b", "a_b", "a-b", "a.b", "9a", "é"]
            .iter()
            .map(|text| json!(text))
            .chain([63, 64, 253, 254].map(|len| json!("a".repeat(len))))
            .collect(),
        Bound::Filled(_) => vec![json!(""), json!("network"), json!("x")],
        Bound::File => vec![json!(""), json!("/"), json!(".."), json!("e")],
    }
}

#[test]
fn the_json_schema_has_the_bounds_that_the_check_has() {
    let rows = Checked::of(&Config::sample()).rows;
    let mut tried = 0;
    for (path, bound) in rows.iter().filter(|(path, _)| {
        // The runtime's name of an observer stands in no file.
        !["observers.network.name", "observers.container.name"].contains(&path.as_str())
    }) {
        for value in around(bound) {
            let config = only(path, value);
            let checked = from_text(&config.to_string(), "f", Config::validate);
            // Its bound by other fields is in no schema.
            let told = checked.as_ref().map_or_else(|e| e.to_string(), |_| String::new());
            let between = told.lines().count() == 1
                && (told.contains("initial_delay, which") || told.contains("is divided among"));
            assert_eq!(schema_takes(&config), checked.is_ok() || between, "{config}: {checked:?}");
            tried += 1;
        }
    }
    assert!(tried > 200, "{tried}");
    let emitters = |count: usize| {
        let each = (0..count).map(|i| serde_json::json!({"type": "none", "name": format!("e{i}")}));
        schema_takes(&serde_json::json!({"emitters": each.collect::<Vec<_>>()}))
    };
    assert_eq!([0, 1, 16, 17].map(emitters), [false, true, true, false]);
}

#[test]
fn every_number_and_text_of_the_json_schema_has_a_bound() {
    fn look(schema: &serde_json::Value, path: &str, unbounded: &mut Vec<String>) {
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{key}");
            let leaf = if property["items"].is_object() { &property["items"] } else { property };
            let is = |kind: &str| {
                leaf["type"] == kind
                    || leaf["type"].as_array().is_some_and(|t| t.contains(&kind.into()))
            };
            let has = |word: &str| !leaf[word].is_null();
            let bounded = if is("integer") || is("number") {
                has("minimum") && has("maximum")
            } else if is("string") {
                has("pattern") || has("enum") || has("minLength") || has("oneOf")
            } else {
                true
            };
            if !bounded {
                unbounded.push(path);
            }
        }
    }
    let schema = example::schema();
    let mut unbounded = Vec::new();
    look(&schema, "", &mut unbounded);
    for (name, definition) in schema["$defs"].as_object().unwrap() {
        look(definition, name, &mut unbounded);
    }
    // Its choices depend on the type of the event, and stand in `oneOf`.
    assert_eq!(unbounded, ["SamplingRule.subtype"]);
}

#[test]
fn the_json_schema_knows_which_keys_are_for_which_emitter_and_which_events_there_are() {
    use serde_json::json;
    let emitter = |emitter: serde_json::Value| schema_takes(&json!({"emitters": [emitter]}));
    assert!(emitter(json!({"type": "stdout", "format": "json"})));
    assert!(!emitter(json!({"type": "stdout", "path": "/e"})));
    assert!(emitter(json!({"type": "file", "path": "/e", "keep": 1})));
    assert!(!emitter(json!({"type": "file"})));
    assert!(!emitter(json!({"type": "file", "path": "/e", "format": "json"})));
    assert!(emitter(json!({"type": "none"})) && !emitter(json!({"type": "oltp"})));
    let rule = |event_type: &str, subtype: &str| {
        let rule = json!({"event_type": event_type, "subtype": subtype});
        schema_takes(&json!({"observers": {"network": {"sampling": {"rules": [rule]}}}}))
    };
    assert!(rule("network", "") && rule("network", "connection_reset"));
    assert!(!rule("netwrok", "") && !rule("network", "oom_kill"));
}
