//! A durable exporter's back end is gone for a while, and comes back.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::agent::{Agent, Oracle, Place};
use super::load::Load;
use super::proof::{Proof, Start};
use super::{figure, rounds};

/// What the agent divides among all that it has in memory.
pub(super) const BUDGET: u64 = 64 << 20;

/// Commits so many events that nobody takes, then has the exporter's disk back.
pub(super) fn run(folder: &Path, events: u64) -> Result<(), String> {
    let place = Place::new(folder);
    place.configure("4GiB")?;
    println!("crash outage: {events} events");
    let out = place.lines().parent().map(Path::to_owned).ok_or("no folder")?;
    let start = Start::now(&place)?;
    let mut agent = Agent::start(&place)?;
    agent.watches()?;
    let mut oracle = Oracle::start(&place)?;
    let load = Load::start(200, 8_000)?;
    // It delivers first; then its folder is a file.
    wait(&place, |lane| lane("delivered") >= 1_000)?;
    let (before, _) = agent.rss();
    let away = folder.join("away");
    fs::rename(&out, &away).and_then(|()| fs::write(&out, "")).map_err(|e| e.to_string())?;
    let begun = Instant::now();
    let mut most = before;
    wait(&place, |lane| {
        most = most.max(agent.rss().0);
        lane("stored") >= events
    })?;
    figure("time without the exporter", format!("{:.1} s", begun.elapsed().as_secs_f64()));
    drop(load);
    fs::remove_file(&out).and_then(|()| fs::rename(&away, &out)).map_err(|e| e.to_string())?;
    let back = Instant::now();
    wait(&place, |lane| {
        most = most.max(agent.rss().0);
        lane("stored") + lane("in_flight") == 0
    })?;
    figure("time until it had everything", format!("{:.1} s", back.elapsed().as_secs_f64()));
    std::thread::sleep(Duration::from_secs(1));
    if !oracle.is_there() {
        return Err("the oracle has ended; see oracle.log".to_owned());
    }
    let peak = agent.rss().1;
    rounds::settle(&place)?;
    agent.signal(libc::SIGTERM);
    agent.reap()?;
    let bar = BUDGET / 5 * 6;
    let mib = |bytes: u64| bytes >> 20;
    figure(
        "resident memory before, then at most",
        format!(
            "{} MiB, {} MiB, peak {} MiB (bar: {})",
            mib(before),
            mib(most),
            mib(peak),
            mib(bar)
        ),
    );
    let mut proof = Proof::of(&place)?;
    proof.check_lines(&place, &[start], 0)?;
    proof.check_promises(&place)?;
    proof.check_accounts(&place, true)?;
    proof.conclude()?;
    if most > bar { Err(format!("{} MiB are more than the budget", mib(most))) } else { Ok(()) }
}

/// Waits until the account of the durable exporter is as wanted.
fn wait(place: &Place, mut wanted: impl FnMut(&dyn Fn(&str) -> u64) -> bool) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let ledger = place.ledger();
        let lanes = ledger["store"]["lanes"].as_array();
        let lane = lanes.and_then(|lanes| lanes.iter().find(|lane| lane["emitter"] != "(store)"));
        if let Some(lane) = lane
            && wanted(&|part| lane[part]["envelopes"].as_u64().unwrap_or(u64::MAX))
        {
            return Ok(());
        }
        if begun.elapsed() > Duration::from_secs(180) {
            return Err(format!("it did not come to that in three minutes: {ledger:#}"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
