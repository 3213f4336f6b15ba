use std::path::Path;

use super::load::{from_file, from_text};
use super::settings::{Emit, Overrides, resolve};
use super::*;

fn problems(yaml: &str) -> Vec<String> {
    let told = from_text(yaml, "f").unwrap_err().to_string();
    told.lines().map(str::to_owned).collect()
}

fn config(yaml: &str) -> Config {
    from_text(yaml, "f").unwrap().config
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

#[test]
fn what_the_example_comments_out_works_without_the_comment() {
    let mut yaml = String::new();
    for line in example::example().lines() {
        // A commented key is a comment whose text is a key and a value.
        let (indent, text) = line.split_at(line.len() - line.trim_start().len());
        let bare = text.strip_prefix("# ").unwrap_or_default();
        let key = bare.trim_start_matches(['-', ' ']).split(": ").next().unwrap();
        let value = bare.split_once(": ").map(|(_, value)| value);
        let is_key = value.is_some_and(|value| !value.contains(' ') && !value.ends_with('.'))
            && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        let shown = if is_key && key != "format" { bare } else { text };
        yaml.push_str(&format!("{indent}{shown}\n"));
    }
    let yaml = yaml.replacen("type: stdout", "type: file", 1).replacen("rules: []", "rules:", 1);
    let config = config(&yaml);
    assert_eq!(config.node_name.as_deref(), Some("node-1"));
    assert_eq!(config.emitters.0[0].name(), "audit");
    assert_eq!(config.emitters.0[0].keep, Some(5));
    assert_eq!(config.observers.network.sampling.rules[0].event_type, "network");
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
f:3:6: log is \"warning\", but must be off, error, warn, info, debug or trace; did you mean warn?
f:6:14: observers.network.enabled is \"yes\", but must be true or false
f:7:5: observers.network.smapling is not a known key; did you mean sampling?
f:9:21: observers.network.sampling.default_rate is NaN, but must be a number from 0.0 to 1.0
f:11:11: observers.network.sampling.rules[0] lacks the key event_type
f:13:17: observers.network.sampling.rules[1].rate is 1.5, but must be a number from 0.0 to 1.0
f:15:23: observers.network.backpressure.drain_interval: \"100\" is not a duration: a whole number and one of ms, s, m, h, d (such as 500ms)
f:16:19: observers.network.backpressure.queue_size is -1, but must be a whole number, 0 or more
f:17:18: observers.network.backpressure.max_bytes is 1B, but must be 4KiB to 16GiB
f:18:20: observers.network.backpressure.drop_policy is \"oldestt\", but must be oldest, newest or random; did you mean oldest?
f:20:5: emitters[0] lacks the key type
f:22:11: emitters[1].path is set, but must be left out for an emitter of type stdout
f:23:5: emitters[2].path is not set, but must be the path of a file
f:25:11: emitters[3].name is \"stdout\", but must be a name that no other emitter has
f:27:11: emitters[3].keep is 5000000000, but must be a whole number from 0 to 4294967295";
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
    assert!(problems(&bomb)[0].contains("not valid YAML"), "{:?}", problems(&bomb));
    assert!(problems(&"[".repeat(100_000))[0].contains("not valid YAML"));
    assert!(problems(&"a: {".repeat(1_000))[0].contains("not valid YAML"));
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
        found.map(|(_, value)| (*value).to_owned())
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
        ("VAHTI_NODE_NAME", "node-7"),
        ("VAHTI_EMIT", "stdout"),
        ("VAHTI_OBSERVERS", "container"),
    ];
    let config = resolved(Overrides::default(), &environment).unwrap();
    assert_eq!(config.log, LogLevel::Warn, "file before environment");
    assert_eq!(config.emitters.0[0].kind, EmitterType::None);
    assert_eq!(config.node_name.as_deref(), Some("node-7"), "environment before default");
    assert!(!config.observers.network.enabled && config.observers.container.enabled);

    let overrides = Overrides {
        emit: Some(vec![Emit::Stdout, Emit::File("/a".into()), Emit::File("/b".into())]),
        observers: Some(vec!["network".parse().unwrap()]),
        log: Some(LogLevel::Off),
        format: Some(Format::Json),
        ..Overrides::default()
    };
    let config = resolved(overrides, &environment).unwrap();
    let names: Vec<&str> = config.emitters.0.iter().map(EmitterConfig::name).collect();
    assert_eq!(names, ["stdout", "file", "file-2"]);
    assert_eq!(config.emitters.0[0].format, Some(Format::Json));
    assert_eq!(config.log, LogLevel::Off);
    assert!(config.observers.network.enabled && !config.observers.container.enabled);
}

#[test]
fn wrong_variables_are_told_with_what_they_may_be() {
    for (name, value, told) in [
        (
            "VAHTI_LOG",
            "loud",
            "VAHTI_LOG is \"loud\", but must be off, error, warn, info, debug or trace",
        ),
        (
            "VAHTI_EMIT",
            "stdout,syslog",
            "VAHTI_EMIT is \"syslog\", but must be stdout, file=PATH or none",
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
