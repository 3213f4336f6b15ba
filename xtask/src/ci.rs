//! `cargo xtask ci`: everything that must hold before a change lands.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

/// A step: what it is called, the program, its arguments, its environment.
type Step = (&'static str, &'static [&'static str], &'static [(&'static str, &'static str)]);

const STEPS: &[Step] = &[
    ("format", &["fmt", "--all", "--check"], &[]),
    ("lints", &["clippy", "-q", "--workspace", "--all-targets", "--", "-D", "warnings"], &[]),
    // As a container's build has it.
    (
        "lints of the release's tool alone",
        &["clippy", "-q", "-p", "xtask", "--no-default-features", "--", "-D", "warnings"],
        &[],
    ),
    (
        "documentation",
        &["doc", "-q", "--workspace", "--no-deps", "--document-private-items"],
        &[("RUSTDOCFLAGS", "-D warnings")],
    ),
    // Without advisories: CONTRIBUTING.md says why.
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
    // To run them needs a nightly compiler, to build the fuzzer's own library a
    // C++ one; their types need neither. Where the library would be is not
    // looked at.
    (
        "fuzz targets, types",
        &[
            "check",
            "-q",
            "--locked",
            "--manifest-path",
            "fuzz/Cargo.toml",
            "--target-dir",
            "target",
        ],
        &[("CUSTOM_LIBFUZZER_PATH", "/none/libfuzzer.a")],
    ),
    // Their bodies, with real inputs changed at random.
    (
        "fuzz targets",
        &[
            "test",
            "-q",
            "-p",
            "vahti-observers",
            "-p",
            "vahti-exporters",
            "-p",
            "vahti-agent",
            "--test",
            "fuzz",
        ],
        &[("VAHTI_FUZZ_SECONDS", "6")],
    ),
];

/// The other architecture. What the agent adds holds C, for SQLite, which needs
/// a C compiler for it.
const AARCH64: &str = "aarch64-unknown-linux-gnu";
const AARCH64_STEP: Step = (
    "types for aarch64",
    &[
        "check",
        "-q",
        "--target",
        AARCH64,
        "-p",
        "vahti-runtime",
        "-p",
        "vahti-ebpf",
        "-p",
        "vahti-observers",
    ],
    &[],
);

/// Runs all steps, then kills, then what a release promises, then the tests;
/// stops at the first that fails.
pub(crate) fn run() -> Result<(), String> {
    println!("{}", compiler(&rustc(&["--version"])?, env!("CARGO_PKG_RUST_VERSION")));
    for (name, args, env) in STEPS {
        timed(name, || cargo(args, env))?;
    }
    let (name, args, env) = AARCH64_STEP;
    if is_installed(AARCH64)? {
        timed(name, || cargo(args, env))?;
    } else {
        println!("==> {name}: skipped; `rustup target add {AARCH64}` makes it run");
    }
    timed("eBPF objects", crate::bpf::check)?;
    // With the release binary, which is what is promised.
    timed("kills", crate::crash::in_ci)?;
    timed("release", crate::dist::in_ci)?;
    timed("tests", tests)
}

/// Which compiler this is, and whether it shows that the oldest one allowed is
/// enough. Cargo itself refuses what is older.
fn compiler(version: &str, oldest: &str) -> String {
    let version = version.trim();
    let number = version.split(' ').nth(1).unwrap_or_default();
    let is_oldest = number.strip_prefix(oldest).is_some_and(|rest| rest.starts_with('.'));
    let verdict = if is_oldest {
        "the oldest that is promised"
    } else {
        "this run does not show that it builds with the oldest that is promised,"
    };
    format!("==> {version}: {verdict} ({oldest})")
}

fn rustc(args: &[&str]) -> Result<String, String> {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let output = Command::new(rustc).args(args).output();
    let output = output.map_err(|e| format!("rustc could not be started: {e}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether there is a standard library for this target.
fn is_installed(target: &str) -> Result<bool, String> {
    let libraries = rustc(&["--print", "target-libdir", "--target", target])?;
    Ok(std::path::Path::new(libraries.trim()).is_dir())
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
/// up all of its parts. A test that was not run says so on standard error, and
/// passes as far as its harness knows.
fn tests() -> Result<(), String> {
    let mut child = command(&["test", "--workspace", "--no-fail-fast"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cargo could not be started: {e}"))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut sums = Sums::default();
    let mut not_run = 0;
    std::thread::scope(|scope| {
        let told =
            scope.spawn(|| forward(stderr, std::io::stderr(), |line| add_told(&mut not_run, line)));
        let summed = forward(stdout, std::io::stdout(), |line| sums.add(line));
        summed.and(told.join().unwrap_or_else(|_| Err("a thread panicked".to_owned())))
    })?;
    sums.not_run = not_run;
    let status = child.wait().map_err(|e| e.to_string())?;
    println!("{sums}");
    if status.success() && sums.failed == 0 && sums.passed > 0 {
        return Ok(());
    }
    Err(format!("cargo test ended with {status}"))
}

/// Passes lines on as they come, and shows each to `look`.
fn forward(
    from: Option<impl Read>,
    mut to: impl Write,
    mut look: impl FnMut(&str),
) -> Result<(), String> {
    let Some(from) = from else { return Ok(()) };
    for line in BufReader::new(from).split(b'\n') {
        let line = line.map_err(|e| e.to_string())?;
        look(&String::from_utf8_lossy(&line));
        to.write_all(&[&line[..], b"\n"].concat()).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// What became of all tests.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sums {
    passed: u64,
    failed: u64,
    ignored: u64,
    not_run: u64,
}

impl Sums {
    /// Adds up `test result: ok. 5 passed; 0 failed; 0 ignored; …`.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let sums = [
            (&mut self.passed, " passed"),
            (&mut self.failed, " failed"),
            (&mut self.ignored, " ignored"),
        ];
        for (sum, word) in sums {
            let number = result.split(word).next().and_then(|before| before.rsplit(' ').next());
            *sum += number.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
    }
}

/// Counts `not run: the_test: why`.
fn add_told(not_run: &mut u64, line: &str) {
    *not_run += u64::from(line.starts_with("not run: "));
}

impl std::fmt::Display for Sums {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Sums { passed, failed, ignored, not_run } = self;
        // What was not run is among what passed.
        let (passed, skipped) = (passed.saturating_sub(*not_run), ignored + not_run);
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_compiler_than_the_oldest_shows_nothing_about_that_one() {
        for (version, is_oldest) in [
            ("rustc 1.95.0 (59807616e 2026-04-14)\n", true),
            ("rustc 1.95.2 (0123456789 2026-05-01)\n", true),
            ("rustc 1.96.0 (0123456789 2026-05-28)\n", false),
            ("rustc 1.950.0\n", false),
        ] {
            let told = compiler(version, "1.95");
            assert_eq!(told.contains(": the oldest that is promised (1.95)"), is_oldest, "{told}");
        }
    }

    #[test]
    fn results_of_all_parts_are_added_up() {
        let mut sums = Sums::default();
        for line in [
            "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
            "test some::result ... ok",
            "test result: FAILED. 12 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
        ] {
            sums.add(line);
        }
        assert_eq!(sums, Sums { passed: 17, failed: 2, ignored: 1, not_run: 0 });
    }

    #[test]
    fn what_was_not_run_is_skipped_and_has_not_passed() {
        let mut sums = Sums { passed: 5, failed: 0, ignored: 1, not_run: 0 };
        let mut passed_on = Vec::new();
        let told = "warning: x\nnot run: a::test: no rights\nsee: not run: none\n";
        forward(Some(told.as_bytes()), &mut passed_on, |l| add_told(&mut sums.not_run, l)).unwrap();
        assert_eq!(passed_on, told.as_bytes());
        assert_eq!(sums.to_string(), "4 passed, 0 failed, 2 skipped");
    }
}
