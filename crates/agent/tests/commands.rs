//! The commands as people and scripts see them: the built binary, its output,
//! its exit code. Nothing here needs rights.

// Helpers outside test functions fail as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use vahti_runtime::testing::not_run;

mod command;

use command::vahti;

fn output(arguments: &[&str]) -> Output {
    vahti(arguments).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

const COMMANDS: [&[&str]; 15] = [
    &[],
    &["run"],
    &["doctor"],
    &["demo"],
    &["config"],
    &["config", "check"],
    &["config", "example"],
    &["config", "schema"],
    &["schema"],
    &["events"],
    &["why"],
    &["ledger"],
    &["health"],
    &["log"],
    &["completions"],
];

#[test]
fn help_goes_to_stdout_fits_eighty_columns_and_has_examples() {
    for command in COMMANDS {
        let help = output(&[command, &["--help"]].concat());
        assert_eq!(code(&help), 0, "{command:?}");
        let text = stdout(&help);
        assert!(text.contains("Examples:\n  vahti "), "{command:?}: {text}");
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{command:?}: {line}");
        }
        assert!(help.stderr.is_empty());
    }
}

#[test]
fn memory_that_is_not_enough_is_refused_with_every_users_demand() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vahti.yaml");
    let with = |lane: &str| {
        let text = format!(
            "limits: {{memory: 32MiB}}\nobservers: {{network: {{backpressure: {{max_bytes: {lane}}}}}}}\n"
        );
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap()
    };
    let file = with("100MiB");
    for arguments in [&["config", "check", file][..], &["run", "--config", file]] {
        let output = output(arguments);
        let told = stderr(&output);
        assert_eq!(code(&output), 64, "{told}");
        for part in [
            "vahti.yaml:1:18: limits.memory is 32MiB, but must be ",
            "program 4.0 MiB, http ",
            ", network ",
            "observers.network.backpressure.max_bytes than 100MiB, times ",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }
    assert_eq!(code(&output(&["config", "check", with("1MiB")])), 0);
}

#[test]
fn wrong_usage_is_told_on_stderr_and_exits_64() {
    for (arguments, told) in [
        (&[][..], "requires a subcommand"),
        (&["rum"], "similar subcommand exists: 'run'"),
        (&["run", "--colour"], "unexpected argument '--colour'"),
        (&["run", "--observers", "netwrok"], "must be network or container; did you mean network?"),
        (&["run", "--emit", "syslog"], "must be stdout, file=PATH, otlp=URL, polku=URL or none"),
        (&["run", "--format", "xml"], "must be text or json"),
        (&["run", "--log", "loud"], "off, error, warn, info, debug or trace"),
        (&["config", "check"], "required arguments were not provided"),
        (&["completions", "basic"], "possible values: bash"),
    ] {
        let output = output(arguments);
        assert_eq!(code(&output), 64, "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(told), "{arguments:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn an_argument_smuggles_no_control_character_into_an_error() {
    let output = output(&["run", "--log", "\u{1b}[2J\u{7}"]);
    let text = stderr(&output);
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
}

#[test]
fn a_wrong_configuration_is_told_with_file_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vahti.yaml");
    std::fs::write(
        &file,
        "observers:\n  network:\n    sampling: {default_rate: 1.5}\n  netwrok: {}\n",
    )
    .unwrap();
    let path = file.to_str().unwrap();
    let expected = format!(
        "vahti: {path}:3:30: observers.network.sampling.default_rate is 1.5, but must be a \
         number from 0.0 to 1.0\n\
         {path}:4:3: observers.netwrok is not a known key; did you mean network?\n"
    );
    for arguments in [&["config", "check", path][..], &["run", "--config", path]] {
        let output = output(arguments);
        assert_eq!(stderr(&output), expected);
        assert_eq!(code(&output), 64);
    }
    let from_environment = vahti(&["run"]).env("VAHTI_CONFIG", path).output().unwrap();
    assert_eq!(stderr(&from_environment), expected);
}

#[test]
fn the_example_configuration_passes_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vahti.yaml");
    let example = output(&["config", "example"]);
    std::fs::write(&file, &example.stdout).unwrap();
    let check = output(&["config", "check", file.to_str().unwrap()]);
    assert_eq!((code(&check), stdout(&check)), (0, "the configuration is good\n"));
    assert!(stdout(&example).lines().all(|line| line.chars().count() <= 80));
}

#[test]
fn schemas_are_json_and_take_what_they_describe() {
    let event: serde_json::Value =
        serde_json::from_str(stdout(&output(&["schema", "event"]))).unwrap();
    assert_eq!(event["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let config: serde_json::Value =
        serde_json::from_str(stdout(&output(&["config", "schema"]))).unwrap();
    for (schema, good) in [(&event, false), (&config, true)] {
        let validator = jsonschema::draft202012::new(schema).unwrap();
        assert_eq!(validator.is_valid(&serde_json::json!({})), good);
    }
}

#[test]
fn completions_know_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = output(&["completions", shell]);
        assert_eq!(code(&script), 0);
        for word in ["run", "doctor", "demo", "events", "why", "ledger", "observers", "follow"] {
            assert!(stdout(&script).contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn a_reader_that_has_had_enough_is_no_failure() {
    for arguments in [&["config", "example"][..], &["completions", "bash"], &["--help"]] {
        let mut child =
            vahti(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut told = String::new();
        child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{arguments:?}");
        assert_eq!(told, "");
    }
}

#[test]
fn a_full_disk_behind_stdout_is_a_failure() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = vahti(&["config", "example"]).stdout(full).output().unwrap();
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("No space left on device"));
}

#[test]
fn asking_an_agent_that_does_not_run_says_what_to_do() {
    let output = output(&["ledger", "--socket", "/nonexistent/vahti.sock"]);
    assert_eq!(code(&output), 1);
    assert_eq!(
        stderr(&output),
        "vahti: no agent answers at /nonexistent/vahti.sock: start one with `vahti run`, or name \
         its socket with --socket\n"
    );
}

#[test]
fn a_socket_path_that_is_somebodys_file_is_refused_and_the_file_stays() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "precious").unwrap();
    let output = output(&["run", "--socket", file.path().to_str().unwrap()]);
    assert_eq!(code(&output), 64);
    let expected = format!("{} is no socket", file.path().display());
    assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
    assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "precious");
}

#[test]
fn a_socket_path_that_no_socket_can_have_is_refused_with_the_bound_and_the_path() {
    let folder = tempfile::tempdir().unwrap();
    let of_len = |len: usize| {
        let path = folder.path().to_str().unwrap().to_owned() + "/";
        let rest = "s".repeat(len - path.len());
        path + &rest
    };
    let path = of_len(102);
    for command in ["run", "ledger"] {
        let output = output(&[command, "--socket", &path]);
        assert_eq!(
            stderr(&output),
            format!(
                "vahti: the socket's path is 102 bytes long, but must be at most 101: {path}: give \
                 a shorter one with --socket\n"
            )
        );
        assert_eq!(code(&output), 64);
    }
    // The longest that is let through can be bound.
    let path = of_len(101);
    let mut child = vahti(&["run", "--emit", "none", "--socket", &path])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !Path::new(&path).exists() && child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(10), "it is not bound");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(child.kill());
    let output = child.wait_with_output().unwrap();
    assert!(!stderr(&output).contains("socket"), "{}", stderr(&output));
}

#[test]
fn a_configuration_that_watches_nothing_is_told_by_the_check() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let off = "observers:\n  network: {enabled: false}\n  container: {enabled: false}\n";
    std::fs::write(file.path(), off).unwrap();
    let path = file.path().to_str().unwrap();
    let output = output(&["config", "check", path]);
    assert_eq!(
        stderr(&output),
        format!(
            "vahti: {path}:2:3: observers is without any that is enabled, but must be with one at \
             least: network or container\n"
        )
    );
    assert_eq!(code(&output), 64);
}

#[test]
fn a_node_name_that_is_not_utf_8_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::OsStr::from_bytes(b"n\xf6de");
    let output = vahti(&["run"]).env("VAHTI_NODE_NAME", name).output().unwrap();
    assert_eq!(code(&output), 64);
    let told = "vahti: environment: VAHTI_NODE_NAME is \"n\\xf6de\", which is not UTF-8\n";
    assert_eq!(stderr(&output), told);
}

#[test]
fn a_file_that_can_never_be_written_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vahti.yaml");
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("elsewhere", &link).unwrap();
    let link = link.to_str().unwrap();
    for (path, told) in [
        ("\"\"", "path is \"\", but must be the path of a file"),
        ("\"a\\0b\"", "path is \"a\\x00b\", but must be a path without NUL characters"),
        ("/tmp", "path is \"/tmp\", but must be the path of a file: that is a folder"),
        ("/nonexistent/", "but must be without a / at its end"),
        ("/dev/null", "that is a device or a pipe; to write to it, use the emitter stdout"),
        (link, "that is a symbolic link, which is not followed"),
    ] {
        for more in ["", ", durable: true"] {
            let emitter = format!("emitters: [{{type: file, path: {path}{more}}}]\n");
            std::fs::write(&file, emitter + "store: {path: /nonexistent/store}\n").unwrap();
            let path = file.to_str().unwrap();
            for arguments in [&["config", "check", path][..], &["run", "--config", path]] {
                let output = output(arguments);
                assert_eq!(code(&output), 64, "{}", stderr(&output));
                assert!(stderr(&output).contains(told), "{told}: {}", stderr(&output));
                assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
            }
        }
    }
    std::fs::write(&file, "store: {path: \"/tmp/a\\0b\"}\n").unwrap();
    let output = output(&["doctor", "--config", file.to_str().unwrap()]);
    assert_eq!(code(&output), 64);
    let told = "store.path is \"/tmp/a\\x00b\", but must be a path without NUL characters";
    assert!(stderr(&output).contains(told), "{}", stderr(&output));
}

#[test]
fn a_file_that_may_come_is_no_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vahti.yaml");
    let emitters = "emitters: [{type: file, path: /nonexistent/folder/events.jsonl}]\n";
    std::fs::write(&file, emitters).unwrap();
    let output = output(&["config", "check", file.to_str().unwrap()]);
    assert_eq!((code(&output), stderr(&output)), (0, ""));
}

#[test]
fn without_rights_one_message_names_the_missing_capability_and_the_exit_code_is_77() {
    // SAFETY: has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        let output = output(&["run"]);
        assert_eq!(code(&output), 77);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-all", "--inh-caps", "-all", "--ambient-caps", "-all"]);
    command.arg(env!("CARGO_BIN_EXE_vahti"));
    command.args(["run", "--log", "error", "--socket"]).arg(&socket);
    let Ok(output) = command.output() else {
        not_run("setpriv is not installed");
        return;
    };
    assert_eq!(output.status.code(), Some(77), "{}", stderr(&output));
    assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
    assert!(stderr(&output).contains("CAP_BPF"), "{}", stderr(&output));
}

#[test]
fn in_a_user_namespace_one_message_names_it_and_the_exit_code_is_77() {
    let folder = tempfile::tempdir().unwrap();
    let is_available = Command::new("unshare").args(["-Ur", "true"]).output();
    if !is_available.is_ok_and(|output| output.status.success()) {
        not_run("no user namespace can be made (unshare -Ur)");
        return;
    }
    let output = Command::new("unshare")
        .args(["-Ur", env!("CARGO_BIN_EXE_vahti"), "run", "--log", "error", "--socket"])
        .arg(folder.path().join("s"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(77), "{}", stderr(&output));
    assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
    assert!(stderr(&output).contains("this is a user namespace"), "{}", stderr(&output));
}
