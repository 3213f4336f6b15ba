//! `cargo xtask ci`: everything that must hold before a change lands.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

/// A step: what it is called, the program, its arguments, its environment.
type Step = (&'static str, &'static [&'static str], &'static [(&'static str, &'static str)]);

const STEPS: &[Step] = &[
    ("format", &["fmt", "--all", "--check"], &[]),
    ("lints", &["clippy", "-q", "--workspace", "--all-targets", "--", "-D", "warnings"], &[]),
    (
        "documentation",
        &["doc", "-q", "--workspace", "--no-deps", "--document-private-items"],
        &[("RUSTDOCFLAGS", "-D warnings")],
    ),
    // The advisories live outside of the registries; whoever reaches them runs
    // `cargo deny check` whole.
    ("dependencies", &["deny", "-L", "error", "check", "bans", "licenses", "sources"], &[]),
    (
        "schedules",
        &[
            "test",
            "-q",
            "-p",
            "vahti-runtime",
            "--lib",
            "--target-dir",
            "target/shuttle",
            "--",
            "shuttle",
        ],
        &[("RUSTFLAGS", "--cfg shuttle")],
    ),
];

/// Runs all steps, then the tests; stops at the first that fails.
pub(crate) fn run() -> Result<(), String> {
    for (name, args, env) in STEPS {
        timed(name, || cargo(args, env))?;
    }
    timed("eBPF objects", crate::bpf::check)?;
    timed("tests", tests)
}

fn timed(name: &str, step: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    println!("==> {name}");
    let start = Instant::now();
    step().map_err(|error| format!("{name}: {error}"))?;
    println!("==> {name}: good, {} s", start.elapsed().as_secs());
    Ok(())
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    command.args(args);
    command
}

fn cargo(args: &[&str], env: &[(&str, &str)]) -> Result<(), String> {
    let status = command(args)
        .envs(env.iter().copied())
        .status()
        .map_err(|e| format!("cargo could not be started: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("cargo {} failed", args.join(" "))) }
}

/// The README's test command; its output as it comes, then one line that sums
/// up all of its parts.
fn tests() -> Result<(), String> {
    let mut child = command(&["test", "--workspace", "--no-fail-fast"])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cargo could not be started: {e}"))?;
    let mut sums = [0u64; 3];
    let mut out = std::io::stdout();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.map_err(|e| e.to_string())?;
            out.write_all(&[&line[..], b"\n"].concat()).map_err(|e| e.to_string())?;
            add(&mut sums, &String::from_utf8_lossy(&line));
        }
    }
    let status = child.wait().map_err(|e| e.to_string())?;
    let [passed, failed, ignored] = sums;
    println!("{passed} passed, {failed} failed, {ignored} skipped");
    if status.success() && failed == 0 && passed > 0 {
        return Ok(());
    }
    Err(format!("cargo test ended with {status}"))
}

/// Adds up `test result: ok. 5 passed; 0 failed; 0 ignored; …`.
fn add(sums: &mut [u64; 3], line: &str) {
    let Some(result) = line.strip_prefix("test result: ") else { return };
    for (sum, word) in sums.iter_mut().zip([" passed", " failed", " ignored"]) {
        let number = result.split(word).next().and_then(|before| before.rsplit(' ').next());
        *sum += number.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn results_of_all_parts_are_added_up() {
        let mut sums = [0; 3];
        for line in [
            "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
            "test some::result ... ok",
            "test result: FAILED. 12 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
        ] {
            super::add(&mut sums, line);
        }
        assert_eq!(sums, [17, 2, 1]);
    }
}
