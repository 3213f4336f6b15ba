//! Every emitter is offered ten times what it takes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::agent::{Agent, Place};
use super::load::Load;
use super::outage::BUDGET;
use super::proof::{Proof, Start};
use super::slow::{self, Allowance, Disk};
use super::{figure, rounds};

/// Crashes a second, and refused connects: more than two cores make.
const LOAD: (u64, u64) = (300, 40_000);
/// How many times more is offered than taken.
const TIMES: u64 = 10;

/// What takes events, and is slow; the first is not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    None,
    Stdout,
    File,
    Store,
    Durable,
}

impl Case {
    const ALL: [Case; 5] = [Case::None, Case::Stdout, Case::File, Case::Store, Case::Durable];

    fn name(self) -> &'static str {
        match self {
            Case::None => "none",
            Case::Stdout => "stdout",
            Case::File => "file",
            Case::Store => "store",
            Case::Durable => "durable file",
        }
    }

    fn keeps(self) -> bool {
        matches!(self, Case::Store | Case::Durable)
    }

    fn configuration(self, place: &Place) -> String {
        let store = match self.keeps() {
            true => format!("{{path: {}, max_bytes: 8GiB}}", place.store().display()),
            false => "{path: none}".to_owned(),
        };
        let file = |durable: bool| {
            let path = place.lines();
            format!("{{type: file, path: {}, durable: {durable}, max_size: 4GiB}}", path.display())
        };
        let emitter = match self {
            Case::None | Case::Store => "{type: none}".to_owned(),
            Case::Stdout => "{type: stdout}".to_owned(),
            Case::File => file(false),
            Case::Durable => file(true),
        };
        format!("store: {store}\nemitters:\n  - {emitter}\n")
    }

    /// The lanes to what is slow.
    fn lanes(self, ledger: &Value) -> impl Iterator<Item = &Value> {
        all_lanes(ledger).filter(move |lane| match self {
            Case::None | Case::Stdout | Case::File => true,
            // The file is served from the store.
            Case::Durable => lane["emitter"] == "file",
            Case::Store => lane["emitter"] == "store",
        })
    }
}

/// Those of the observers, and what the store owes.
fn all_lanes(ledger: &Value) -> impl Iterator<Item = &Value> {
    let of_observers = members(&ledger["observers"]).flat_map(|o| members(&o["lanes"]));
    of_observers.chain(members(&ledger["store"]["lanes"]))
}

/// All emitters in turn; an error names all that does not hold.
pub(super) fn run(folder: &Path, time: Duration) -> Result<(), String> {
    println!("crash overload: {} s for each emitter", time.as_secs());
    let mut wrong = Vec::new();
    for case in Case::ALL {
        println!("{}", case.name());
        let place = Place::new(&folder.join(case.name().replace(' ', "-")));
        fs::create_dir_all(&place.folder).map_err(|e| e.to_string())?;
        match overload(&place, case, time) {
            Ok(found) => wrong.extend(found.iter().map(|what| format!("{}: {what}", case.name()))),
            Err(error) => wrong.push(format!("{}: {error}", case.name())),
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

fn overload(place: &Place, case: Case, time: Duration) -> Result<Vec<String>, String> {
    place.configure_as(&case.configuration(place))?;
    let disk = match case {
        Case::File | Case::Durable => {
            let at = place.folder.join("out");
            Some(Disk::mount(&place.folder.join("disk"), &at)?)
        }
        _ => None,
    };
    let allowance = Allowance::default();
    let (reader, writer) = std::io::pipe().map_err(|e| e.to_string())?;
    let stdout = if case == Case::Stdout { Stdio::from(writer) } else { Stdio::null() };
    let mut agent = Agent::start_writing_to(place, stdout)?;
    agent.watches()?;
    let mut wrong = std::thread::scope(|scope| {
        let slow = scope.spawn(|| match (case, &disk) {
            (Case::Stdout, _) => slow::read(reader, &allowance),
            (Case::Store, _) => slow::lock_out(&place.database(), &allowance),
            (_, Some(disk)) => disk.slow_down(&allowance),
            (_, None) => Ok(()),
        });
        let measured = measure(place, case, time, &allowance, &agent);
        // Also after an error: the thread ends, the disk thaws.
        allowance.lift();
        let wrong = measured.and_then(|()| conclude(place, case, &agent));
        agent.signal(libc::SIGTERM);
        agent.reap()?;
        slow.join().map_err(|_| "what slows it down panicked")??;
        wrong
    })?;
    if case == Case::Durable {
        let mut proof = Proof::of(place)?;
        proof.check_lines(place, &[Start { exec_ns: 0, lines_bytes: 0 }], 0)?;
        proof.check_accounts(place, true)?;
        wrong.extend(proof.conclude().err());
    }
    Ok(wrong)
}

/// Has it overloaded for so long.
fn measure(
    place: &Place,
    case: Case,
    time: Duration,
    allowance: &Allowance,
    agent: &Agent,
) -> Result<(), String> {
    let load = Load::start(LOAD.0, LOAD.1)?;
    let begun = Instant::now();
    let mut ledger = Value::Null;
    while begun.elapsed() < time {
        sleep(Duration::from_millis(250));
        ledger = place.ledger();
        if ledger.is_null() {
            return Err("the agent does not answer".to_owned());
        }
        allowance.set(total(case.lanes(&ledger), "routed") / TIMES);
    }
    let seconds = begun.elapsed().as_secs_f64();
    drop(load);
    let rate = |name| total(case.lanes(&ledger), name) as f64 / seconds;
    let (offered, taken) = (rate("routed"), rate("delivered"));
    let ratio = offered / taken.max(0.001);
    figure("offered", format!("{offered:.0}/s"));
    figure("taken", format!("{taken:.0}/s, one of {ratio:.1}"));
    let (now, peak) = agent.rss();
    figure(
        "resident memory at the end of it, peak",
        format!("{} MiB, {} MiB", now >> 20, peak >> 20),
    );
    if case != Case::None && ratio < TIMES as f64 * 0.8 {
        return Err(format!("it took one of {ratio:.1}, which is no overload"));
    }
    Ok(())
}

/// Lets it deliver what waits, then looks at its accounts and its memory.
fn conclude(place: &Place, case: Case, agent: &Agent) -> Result<Vec<String>, String> {
    let begun = Instant::now();
    loop {
        let ledger = place.ledger();
        let open = ["queued", "in_flight"].iter().map(|part| total(case.lanes(&ledger), part));
        if !ledger.is_null() && open.sum::<u64>() == 0 {
            break;
        }
        if begun.elapsed() > Duration::from_secs(120) {
            return Err(format!("it was not through within two minutes: {ledger:#}"));
        }
        sleep(Duration::from_millis(100));
    }
    if case == Case::Durable {
        rounds::settle(place)?;
    }
    sleep(Duration::from_millis(500));
    let ledger = place.ledger();
    for (reason, events) in drops(all_lanes(&ledger)) {
        figure(&format!("  dropped: {reason}"), events);
    }
    figure("differences in the ledger", differences(&ledger));
    let (_, peak) = agent.rss();
    let bar = BUDGET / 5 * 6;
    let met = if peak <= bar { "met" } else { "NOT met" };
    figure(
        "peak of resident memory",
        format!("{} MiB (bar: {} MiB, {met})", peak >> 20, bar >> 20),
    );
    Ok(what_is_wrong(case, &ledger, peak))
}

/// What of the bars does not hold.
fn what_is_wrong(case: Case, ledger: &Value, peak: u64) -> Vec<String> {
    let mut wrong = Vec::new();
    if peak > BUDGET / 5 * 6 {
        wrong.push(format!("{} MiB are more than the budget and a fifth", peak >> 20));
    }
    let differences = differences(ledger);
    if differences > 0 {
        wrong.push(format!("{differences} are not accounted for"));
    }
    for (reason, events) in drops(all_lanes(ledger)) {
        // They are less than a hundredth, so no queue ever has to give one up;
        // that is more than is asked of a lane, which may once it holds nothing
        // else.
        let queued = reason.starts_with("critical queue_");
        if queued || case.keeps() && reason.starts_with("critical") {
            wrong.push(format!("{events} dropped: {reason}"));
        }
    }
    wrong
}

fn members(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn total<'a>(lanes: impl Iterator<Item = &'a Value>, part: &str) -> u64 {
    lanes.filter_map(|lane| lane[part]["envelopes"].as_u64()).sum()
}

/// Events dropped, by priority and reason, where there are any.
fn drops<'a>(lanes: impl Iterator<Item = &'a Value>) -> BTreeMap<String, u64> {
    let mut drops = BTreeMap::new();
    for dropped in lanes.flat_map(|lane| members(&lane["dropped"])) {
        let word = |key: &str| dropped[key].as_str().unwrap_or("?");
        let events = dropped["envelopes"].as_u64().unwrap_or(0);
        if events > 0 {
            *drops.entry(format!("{} {}", word("priority"), word("reason"))).or_default() += events;
        }
    }
    drops
}

/// All that does not add up, of any line.
fn differences(ledger: &Value) -> u64 {
    match ledger {
        Value::Object(members) => {
            let own = members.get("difference").and_then(Value::as_i64).unwrap_or(0);
            own.unsigned_abs() + members.values().map(differences).sum::<u64>()
        }
        Value::Array(list) => list.iter().map(differences).sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ledger(priority: &str, reason: &str, difference: i64) -> Value {
        let dropped = json!({"priority": priority, "reason": reason, "envelopes": 3});
        json!({"observers": [{"lanes": [
            {"observer": "network", "emitter": "file", "dropped": [dropped], "difference": difference}
        ]}]})
    }

    #[test]
    fn what_breaks_a_bar_is_found() {
        let wrong = |case, priority, reason, difference, peak| {
            what_is_wrong(case, &ledger(priority, reason, difference), peak)
        };
        let none: [&str; 0] = [];
        assert_eq!(wrong(Case::File, "normal", "queue_items", 0, BUDGET), none);
        assert_eq!(wrong(Case::File, "critical", "tried_once", 0, BUDGET), none);
        let queue = ["3 dropped: critical queue_items"];
        assert_eq!(wrong(Case::File, "critical", "queue_items", 0, BUDGET), queue);
        let lost = ["3 dropped: critical store_full"];
        assert_eq!(wrong(Case::Durable, "critical", "store_full", 0, BUDGET), lost);
        assert_eq!(wrong(Case::None, "normal", "queue_items", -2, BUDGET).len(), 1);
        assert_eq!(wrong(Case::None, "normal", "queue_items", 0, 2 * BUDGET).len(), 1);
    }
}
