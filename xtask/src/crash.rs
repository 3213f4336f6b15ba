//! `cargo xtask crash`: the release binary is killed again and again under load,
//! or its back end is taken away or slowed down; what it promised is looked up afterwards.
//!
//! Everything is seen from the outside. The load comes from processes of its
//! own, and so does the oracle: `vahti ledger --follow`, which prints the id of
//! what is committed and outlives every agent. What it printed is a promise.

mod agent;
mod load;
mod outage;
mod overload;
mod proof;
mod reload;
mod rounds;
mod slow;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use self::rounds::Plan;

/// Runs `crash outage` or `crash overload`, or kills as often as asked.
pub(crate) fn run(args: &[&str]) -> Result<(), String> {
    if let Some(why) = cannot() {
        return Err(why);
    }
    if let ["outage", rest @ ..] = args {
        let events = option(rest, "--events")?.unwrap_or(100_000);
        build()?;
        return in_folder("outage", |folder| outage::run(folder, events));
    }
    if let ["overload", rest @ ..] = args {
        let time = Duration::from_secs(option(rest, "--seconds")?.unwrap_or(60));
        build()?;
        return in_folder("overload", |folder| overload::run(folder, time, false));
    }
    let plan = Plan {
        kills: option(args, "--kills")?.unwrap_or(200),
        seed: option(args, "--seed")?.unwrap_or_else(now_ns),
        max_bytes: text(args, "--max-bytes").map(str::to_owned),
    };
    build()?;
    in_folder("crash", |folder| rounds::run(folder, &plan))
}

/// Runs `bench reload`: reloads under load, and counts every event.
pub(crate) fn reloads(args: &[&str]) -> Result<(), String> {
    if let Some(why) = cannot() {
        return Err(why);
    }
    let reloads = option(args, "--reloads")?.unwrap_or(1_000);
    let per_second = option(args, "--events")?.unwrap_or(20_000);
    build()?;
    in_folder("reload", |folder| reload::run(folder, reloads, per_second))
}

/// As a step of CI: kills, then an outage, an overload and reloads, short ones;
/// says so where they can't run.
pub(crate) fn in_ci() -> Result<(), String> {
    let why = match cannot() {
        Some(why) => Some(why),
        None => {
            build()?;
            in_folder("probe", agent::refusal)?
        }
    };
    if let Some(why) = why {
        eprintln!("not run: crash: {why}");
        return Ok(());
    }
    run(&["--kills", "200"])?;
    in_folder("outage", |folder| outage::run(folder, 50_000))?;
    in_folder("overload", |folder| overload::run(folder, Duration::from_secs(5), true))?;
    // At half the rate: CI may be slow, and nothing may be lost.
    in_folder("reload", |folder| reload::run(folder, 100, 10_000))
}

/// Makes faults until it is killed; how the processes of the load begin.
pub(crate) fn load(args: &[&str]) -> Result<(), String> {
    let [what, per_second] = args else { return Err("what, and how many a second?".to_owned()) };
    let per_second = per_second.parse().map_err(|_| format!("{per_second} is no number"))?;
    load::make(what, per_second)
}

/// Why nothing can be watched here.
fn cannot() -> Option<String> {
    // SAFETY: has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return Some("needs root, to load eBPF programs".to_owned());
    }
    let btf = Path::new("/sys/kernel/btf/vmlinux").exists();
    (!btf).then(|| "this kernel has no BTF".to_owned())
}

fn build() -> Result<(), String> {
    crate::bench::cargo(&["build", "-q", "--release", "-p", "vahti-agent"])
}

/// Gives a fresh folder, which is kept if something is wrong.
fn in_folder<T>(what: &str, job: impl FnOnce(&Path) -> Result<T, String>) -> Result<T, String> {
    let name = format!("vahti-{what}-{}-{}", std::process::id(), now_ns() % 1_000_000);
    let folder: PathBuf = std::env::temp_dir().join(name);
    std::fs::create_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    match job(&folder) {
        Ok(found) => std::fs::remove_dir_all(&folder).map(|()| found).map_err(|e| e.to_string()),
        Err(error) => Err(format!("{error}\nwhat is left is in {}", folder.display())),
    }
}

/// By the wall clock, as events have it.
fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

fn text<'a>(args: &[&'a str], name: &str) -> Option<&'a str> {
    let at = args.iter().position(|arg| *arg == name)?;
    args.get(at + 1).copied()
}

fn option(args: &[&str], name: &str) -> Result<Option<u64>, String> {
    let parse = |text: &str| text.parse().map_err(|_| format!("{name}: {text} is no number"));
    text(args, name).map(parse).transpose()
}

/// A line of the table of figures.
fn figure(name: &str, value: impl std::fmt::Display) {
    println!("  {name:48} {value}");
}

/// A small generator, so that a run can be made again from its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_moments() {
        let moments = |seed| {
            let mut random = Random(seed);
            (0..100).map(|_| random.below(600)).collect::<Vec<_>>()
        };
        assert_eq!(moments(7), moments(7));
        assert_ne!(moments(7), moments(8));
        assert!(moments(7).iter().all(|moment| *moment < 600));
    }

    #[test]
    fn options_are_numbers_or_an_error() {
        assert_eq!(option(&["--kills", "12"], "--kills"), Ok(Some(12)));
        assert_eq!(option(&["--seed", "1"], "--kills"), Ok(None));
        assert!(option(&["--kills", "many"], "--kills").is_err());
    }
}
