//! Every emitter is offered ten times what it takes.
//!
//! No machine makes ten times what a file takes. So it is measured what is
//! made, and the other side takes a tenth of that: it is told again and again
//! how much it may have taken by now, less by how far it ever went beyond that.

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
const LOAD: (u64, u64) = (250, 40_000);
/// How many times more is offered than taken, at least; a little more is aimed
/// at.
const TIMES: u64 = 10;
const AIM: u64 = 11;

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

/// What became of one emitter, as the table shows it.
#[derive(Default)]
struct Row {
    offered: f64,
    taken: f64,
    peak: u64,
    differences: u64,
    /// Critical events that came to it, and that it took.
    critical: [u64; 2],
    critical_dropped: u64,
    normal_dropped: u64,
}

impl Row {
    fn times(&self) -> f64 {
        self.offered / self.taken.max(0.001)
    }

    fn print(&self, case: Case) {
        let [made, delivered] = self.critical;
        println!(
            "  {:14} {:>9.0} {:>9.0} {:>7.1} {:>5} of {} {:>7} {:>9} {:>9} {:>8} {:>11}",
            case.name(),
            self.offered,
            self.taken,
            self.times(),
            self.peak >> 20,
            BAR >> 20,
            self.differences,
            made,
            delivered,
            self.critical_dropped,
            self.normal_dropped,
        );
    }

    fn print_head() {
        println!(
            "  {:14} {:>9} {:>9} {:>7} {:>11} {:>7} {:>9} {:>9} {:>8} {:>11}",
            "emitter",
            "offered/s",
            "taken/s",
            "times",
            "peak, MiB",
            "off by",
            "critical",
            "delivered",
            "dropped",
            "n. dropped"
        );
    }
}

/// What an agent may have in memory: its budget and a fifth.
const BAR: u64 = BUDGET / 5 * 6;

/// All emitters in turn; an error names all that does not hold. In CI an
/// emitter whose slow disk can't be made is left out, and named.
pub(super) fn run(folder: &Path, time: Duration, in_ci: bool) -> Result<(), String> {
    println!("crash overload: {} s for each emitter", time.as_secs());
    let (mut wrong, mut rows) = (Vec::new(), Vec::new());
    for case in Case::ALL {
        println!("{}", case.name());
        let place = Place::new(&folder.join(case.name().replace(' ', "-")));
        fs::create_dir_all(&place.folder).map_err(|e| e.to_string())?;
        let disk = match disk(&place, case) {
            Err(why) if in_ci => {
                eprintln!("not run: crash overload of {}: {why}", case.name());
                continue;
            }
            disk => disk?,
        };
        match overload(&place, case, disk, time) {
            Ok((row, found)) => {
                wrong.extend(found.iter().map(|what| format!("{}: {what}", case.name())));
                rows.push((case, row));
            }
            Err(error) => wrong.push(format!("{}: {error}", case.name())),
        }
    }
    Row::print_head();
    rows.iter().for_each(|(case, row)| row.print(*case));
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

fn disk(place: &Place, case: Case) -> Result<Option<Disk>, String> {
    if !matches!(case, Case::File | Case::Durable) {
        return Ok(None);
    }
    Disk::mount(&place.folder.join("disk"), &place.folder.join("out")).map(Some)
}

fn overload(
    place: &Place,
    case: Case,
    disk: Option<Disk>,
    time: Duration,
) -> Result<(Row, Vec<String>), String> {
    place.configure_as(&case.configuration(place))?;
    let allowance = Allowance::default();
    let (reader, writer) = std::io::pipe().map_err(|e| e.to_string())?;
    let stdout = if case == Case::Stdout { Stdio::from(writer) } else { Stdio::null() };
    let mut agent = Agent::start_writing_to(place, stdout)?;
    agent.watches()?;
    let (row, mut wrong) = std::thread::scope(|scope| {
        let slow = scope.spawn(|| match (case, &disk) {
            (Case::Stdout, _) => slow::read(reader, &allowance),
            (Case::Store, _) => slow::lock_out(&place.database(), &allowance),
            (_, Some(disk)) => disk.slow_down(&allowance),
            (_, None) => Ok(()),
        });
        let measured = measure(place, case, time, &allowance);
        // Also after an error: the thread ends, the disk thaws.
        allowance.lift();
        let concluded = measured.and_then(|row| conclude(place, case, &agent, row));
        agent.signal(libc::SIGTERM);
        agent.reap()?;
        slow.join().map_err(|_| "what slows it down panicked")??;
        concluded
    })?;
    if case == Case::Durable {
        let mut proof = Proof::of(place)?;
        proof.check_lines(place, &[Start { exec_ns: 0, lines_bytes: 0 }], 0)?;
        proof.check_accounts(place, true)?;
        wrong.extend(proof.conclude().err());
    }
    Ok((row, wrong))
}

/// Has it overloaded for so long.
fn measure(
    place: &Place,
    case: Case,
    time: Duration,
    allowance: &Allowance,
) -> Result<Row, String> {
    let load = Load::start(LOAD.0, LOAD.1)?;
    let begun = Instant::now();
    let mut ledger = Value::Null;
    // What it may have taken, and how far beyond that it ever was: a batch.
    let (mut allowed, mut beyond) = (0, 0);
    let mut is_enough = false;
    // Where little is made, it takes longer until a batch is less than a tenth.
    while begun.elapsed() < time || (!is_enough && begun.elapsed() < 6 * time) {
        sleep(Duration::from_millis(100));
        ledger = place.ledger();
        if ledger.is_null() {
            return Err("the agent does not answer".to_owned());
        }
        let [offered, taken] = ["routed", "delivered"].map(|part| total(case.lanes(&ledger), part));
        is_enough = case == Case::None || (taken > 0 && offered >= taken * TIMES);
        beyond = taken.saturating_sub(allowed).max(beyond);
        allowed = (offered / AIM).saturating_sub(beyond).max(allowed);
        allowance.set(allowed);
    }
    let seconds = begun.elapsed().as_secs_f64();
    drop(load);
    let rate = |name| total(case.lanes(&ledger), name) as f64 / seconds;
    Ok(Row { offered: rate("routed"), taken: rate("delivered"), ..Row::default() })
}

/// Lets it deliver what waits, then looks at its accounts and its memory.
fn conclude(
    place: &Place,
    case: Case,
    agent: &Agent,
    mut row: Row,
) -> Result<(Row, Vec<String>), String> {
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
    row.differences = differences(&ledger);
    row.peak = agent.rss().1;
    row.critical = criticals(place, case, &ledger)?;
    let dropped = |priority: &str| {
        let all = drops(all_lanes(&ledger)).into_iter();
        all.filter(|(why, _)| why.starts_with(priority)).map(|(_, events)| events).sum()
    };
    (row.critical_dropped, row.normal_dropped) = (dropped("critical"), dropped("normal"));
    let mut wrong = what_is_wrong(case, &ledger, row.peak);
    if case != Case::None && row.times() < TIMES as f64 {
        wrong.push(format!("it took one of {:.1}, which is no overload", row.times()));
    }
    Ok((row, wrong))
}

/// Critical events that came to what is slow, and that it took. Ends are the
/// other observer's, and all of them critical.
fn criticals(place: &Place, case: Case, ledger: &Value) -> Result<[u64; 2], String> {
    if case != Case::Durable {
        let lanes = || case.lanes(ledger).filter(|lane| lane["observer"] == "container");
        return Ok([total(lanes(), "routed"), total(lanes(), "delivered")]);
    }
    let file = rusqlite::Connection::open(place.database()).map_err(|e| e.to_string())?;
    let sql = "SELECT routed_envelopes, delivered_envelopes FROM accounts
               WHERE name = 'file' AND priority = 'critical'";
    let row = file.query_row(sql, [], |row| Ok([row.get::<_, i64>(0)?, row.get(1)?]));
    row.map(|row| row.map(i64::cast_unsigned)).map_err(|e| e.to_string())
}

/// What of the bars does not hold.
fn what_is_wrong(case: Case, ledger: &Value, peak: u64) -> Vec<String> {
    let mut wrong = Vec::new();
    if peak > BAR {
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
pub(super) fn differences(ledger: &Value) -> u64 {
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
