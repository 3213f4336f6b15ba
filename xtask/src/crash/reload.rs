//! Reloads under load: each changes something, every tenth is wrong, and every
//! event is counted.
//!
//! In the first half all is kept, whatever else changes: each event that was made
//! must arrive, once. In the second half shares are kept: what arrived and what
//! was sampled out must come to what was made, and each that arrived must carry
//! what decided. All faults are of one process, and so of one trace, which a share
//! keeps or does not as a whole.
//!
//! It is about reloads, not about machines that have other work: the queues hold
//! more than is made, and the agent goes before others.

use std::fs;
use std::io::{BufRead, BufReader, PipeReader};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::agent::{Agent, Place};
use super::figure;
use crate::bench::faults::{be_refused, closed_port};

/// From one reload to the next.
const INTERVAL: Duration = Duration::from_millis(40);

/// What arrived.
#[derive(Default)]
struct Arrived {
    /// By fault of ours how often.
    times: Vec<u8>,
    /// Those whose weight is not that of their threshold.
    odd: u64,
    /// All lines, those about others' faults as well.
    lines: u64,
}

/// What was done, and what was told of it.
#[derive(Default)]
struct Tally {
    took: Vec<Duration>,
    changed: u64,
    refused: u64,
    wrong: Vec<String>,
}

pub(super) fn run(folder: &Path, reloads: u64, per_second: u64) -> Result<(), String> {
    println!("reload: {reloads} reloads under {per_second} events/s, every tenth invalid");
    let place = Place::new(folder);
    place.configure_as(&configuration(folder, 0, None))?;
    let (reader, writer) = std::io::pipe().map_err(|e| e.to_string())?;
    let mut agent = Agent::start_writing_to(&place, Stdio::from(writer))?;
    agent.watches()?;
    go_first(agent.pid());
    let arrived = Mutex::default();
    let mut tally = Tally::default();
    let mut halves = Vec::new();
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| read(reader, &arrived));
        for (range, samples) in [(0..reloads / 2, false), (reloads / 2..reloads, true)] {
            let half = half(&place, &agent, &arrived, &mut tally, (range, per_second, samples));
            halves.push(half);
        }
        agent.signal(libc::SIGTERM);
        drop(agent.reap());
        reads.join().map_err(|_| "the reader panicked")?
    })?;
    let halves: Vec<Half> = halves.into_iter().collect::<Result<_, _>>()?;
    conclude(reloads, halves, tally)
}

/// Has all threads of a process go before those of others, where that is allowed.
fn go_first(pid: u32) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for id in tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()) {
        // SAFETY: no memory is involved.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, id, -10) };
    }
}

/// What became of one half.
struct Half {
    made: u64,
    seconds: f64,
    /// Ours that arrived, each once.
    told: u64,
    twice: u64,
    odd: u64,
    produced: u64,
    sampled_out: u64,
    /// Events that were delivered, and what they stand for.
    delivered: [u64; 2],
    lines: u64,
    lost: u64,
    differences: u64,
    rss: u64,
    samples: bool,
}

/// Reloads while faults are made, then counts what became of those.
fn half(
    place: &Place,
    agent: &Agent,
    arrived: &Mutex<Arrived>,
    tally: &mut Tally,
    (reloads, per_second, samples): (std::ops::Range<u64>, u64, bool),
) -> Result<Half, String> {
    let before = Account::of(&settle(place, arrived)?);
    *lock(arrived) = Arrived::default();
    let over = AtomicBool::new(false);
    let begun = Instant::now();
    let made = std::thread::scope(|scope| {
        let makes = scope.spawn(|| make(per_second, &over));
        for n in reloads {
            let due = begun.elapsed() + INTERVAL;
            if let Err(error) = reload(place, n + 1, samples, tally) {
                tally.wrong.push(error);
                break;
            }
            sleep(due.saturating_sub(begun.elapsed()));
        }
        over.store(true, Ordering::Relaxed);
        makes.join().map_err(|_| "the faults panicked".to_owned())
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    let ledger = settle(place, arrived)?;
    let after = Account::of(&ledger);
    let arrived = lock(arrived);
    Ok(Half {
        made: made.iter().filter(|made| **made).count() as u64,
        seconds,
        told: made.iter().zip(&arrived.times).filter(|(made, times)| **made && **times > 0).count()
            as u64,
        twice: arrived.times.iter().filter(|times| **times > 1).count() as u64,
        odd: arrived.odd,
        produced: after.produced - before.produced,
        sampled_out: after.sampled_out - before.sampled_out,
        delivered: [0, 1].map(|n| after.delivered[n] - before.delivered[n]),
        lines: arrived.lines,
        lost: after.lost - before.lost,
        differences: super::overload::differences(&ledger),
        rss: agent.rss().1,
        samples,
    })
}

fn lock(arrived: &Mutex<Arrived>) -> std::sync::MutexGuard<'_, Arrived> {
    arrived.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Faults of different keys; by number whether it was one.
fn make(per_second: u64, over: &AtomicBool) -> Vec<bool> {
    let begun = Instant::now();
    let mut made = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let due = begun.elapsed().as_micros() as u64 * per_second / 1_000_000;
        if made.len() as u64 >= due {
            sleep(Duration::from_micros(200));
            continue;
        }
        made.push(be_refused(closed_port(made.len() as u32)));
    }
    made
}

/// Reads events to the end, faster than they come.
fn read(reader: PipeReader, arrived: &Mutex<Arrived>) -> Result<(), String> {
    let ours = format!("\"pid\":{},", std::process::id());
    let mut lines = BufReader::with_capacity(1 << 20, reader);
    let mut line = String::new();
    loop {
        line.clear();
        if lines.read_line(&mut line).map_err(|e| e.to_string())? == 0 {
            return Ok(());
        }
        let mut arrived = lock(arrived);
        arrived.lines += 1;
        if line.contains(&ours) && line.contains("\"connection_refused\"") {
            arrived.add(&line)?;
        }
    }
}

impl Arrived {
    fn add(&mut self, line: &str) -> Result<(), String> {
        let number = number_of(line).ok_or_else(|| format!("of which fault is {line}"))?;
        if self.times.len() <= number {
            self.times.resize(number + 1, 0);
        }
        let times = &mut self.times[number];
        *times = times.saturating_add(1);
        self.odd += u64::from(!carries_what_decided(line));
        Ok(())
    }
}

/// What stands behind a key, up to the end of its value.
fn behind<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(key)?;
    rest.split(['"', ',', '}']).next()
}

/// Which fault it was, by its address.
fn number_of(line: &str) -> Option<usize> {
    let address: Ipv4Addr = behind(line, "\"peer\":{\"address\":\"")?.parse().ok()?;
    let [127, b, c, d] = address.octets() else { return None };
    usize::try_from(u32::from_be_bytes([0, b.wrapping_sub(1), c, d])).ok()
}

/// Whether its weight is one in the share that its threshold leaves.
fn carries_what_decided(line: &str) -> bool {
    let weight: Option<f64> = behind(line, "\"weight\":").and_then(|text| text.parse().ok());
    // Hexadecimal digits of 56 bits, without zeros at the end.
    let digits = behind(line, "\"threshold\":\"").unwrap_or("0");
    let Ok(threshold) = u64::from_str_radix(&format!("{digits:0<14}"), 16) else { return false };
    let share = 1.0 - threshold as f64 / (1_u64 << 56) as f64;
    weight.is_some_and(|weight| (weight * share - 1.0).abs() < 1e-9)
}

/// Puts a configuration in the place of the one before, and has it read. It may
/// be noticed before that is asked for.
fn reload(place: &Place, n: u64, samples: bool, tally: &mut Tally) -> Result<(), String> {
    let mistake = n.is_multiple_of(10).then(|| &MISTAKES[(n / 10) as usize % MISTAKES.len()]);
    let variant = if samples { n + 1_000_000 } else { n };
    let text = configuration(&place.folder, variant, mistake);
    let before = generation(place)?;
    let (new, file) = (place.folder.join("vahti.new"), place.folder.join("vahti.yaml"));
    fs::write(&new, text).and_then(|()| fs::rename(&new, &file)).map_err(|e| e.to_string())?;
    let begun = Instant::now();
    let answer = place.ask("reload")?;
    tally.took.push(begun.elapsed());
    let after = answer["generation"].as_u64().ok_or_else(|| format!("reload {n}: {answer}"))?;
    match mistake {
        None if after > before && answer["result"] != "refused" => tally.changed += 1,
        Some(mistake) if after == before && mistake.is_named(&answer) => tally.refused += 1,
        _ => tally.wrong.push(format!("reload {n}, generation {before} before: {answer}")),
    }
    Ok(())
}

/// Which configuration is in force.
fn generation(place: &Place) -> Result<u64, String> {
    let health = place.ask("health")?;
    health["configuration"]["generation"].as_u64().ok_or_else(|| format!("{health}"))
}

/// A line that is wrong, and what is wrong there.
struct Mistake {
    line: usize,
    text: &'static str,
    field: &'static str,
}

impl Mistake {
    /// Whether the configuration was refused for it, by line and field.
    fn is_named(&self, answer: &Value) -> bool {
        let place = format!("vahti.yaml:{}:", self.line);
        answer["result"] == "refused"
            && answer["problems"].as_array().is_some_and(|problems| {
                problems.iter().filter_map(Value::as_str).any(|problem| {
                    problem.split_once(&place).is_some_and(|(_, rest)| {
                        rest.split_once(": ").is_some_and(|(_, text)| text.starts_with(self.field))
                    })
                })
            })
    }
}

const fn mistake(line: usize, field: &'static str, text: &'static str) -> Mistake {
    Mistake { line, text, field }
}

const MISTAKES: [Mistake; 10] = [
    mistake(1, "log", "log: loud"),
    mistake(2, "limits.memory", "limits: {memory: 1MiB}"),
    mistake(3, "store.max_age", "store: {max_age: soon}"),
    mistake(5, "emitters[0].type", "  - {type: sdtout}"),
    mistake(9, "observers.network.sampling.default_rate", "    sampling: {default_rate: 2.0}"),
    mistake(
        9,
        "observers.network.sampling.rules[0].event_type",
        "    sampling: {rules: [{event_type: networks}]}",
    ),
    mistake(10, "observers.network.backpressure.queue_size", "    backpressure: {queue_size: 0}"),
    mistake(10, "observers.network.backpressure.queue_sze", "    backpressure: {queue_sze: 9}"),
    mistake(11, "observers.network.metrics.allowed_labels", "    metrics: {allowed_labels: [1x]}"),
    mistake(12, "observers.network.health.check_interval", "    health: {check_interval: 1ms}"),
];

/// Another one for each number; with a number from a million on some events are
/// sampled out.
fn configuration(folder: &Path, n: u64, mistake: Option<&Mistake>) -> String {
    let one = |all: &[&'static str]| all[n as usize % all.len()];
    let share = match n {
        0..1_000_000 => "1.0",
        _ => one(&["0.5", "0.1", "0.9", "0.0", "0.75", "0.33", "1.0"]),
    };
    let rule = match n {
        0..1_000_000 => format!("subtype: connection_refused, rate: 0.{n}, keep_all: true"),
        // Failures are kept unless a rule names them.
        _ => format!("subtype: connection_refused, rate: {share}"),
    };
    let (log, policy) = (one(&["info", "warn", "error"]), one(&["oldest", "newest", "random"]));
    let labels = one(&["type, subtype", "observer, subtype, severity", "", "outcome, type"]);
    let (queue, series, seconds) = (1_000_000 + n % 1_000 * 10, 50 + n % 50, 1 + n % 60);
    let store = folder.join("store");
    let mut lines = vec![
        format!("log: {log}"),
        "limits: {memory: 4GiB}".to_owned(),
        format!("store: {{path: {}, max_bytes: 8GiB, max_age: {}h}}", store.display(), 2 + n % 9),
        "emitters:".to_owned(),
        format!("  - {{type: stdout, format: json, drain_interval: {}ms}}", 1 + n % 20),
        "observers:".to_owned(),
        "  container: {enabled: false}".to_owned(),
        "  network:".to_owned(),
        format!(
            "    sampling: {{enabled: true, default_rate: {share}, rules: [{{event_type: network, {rule}}}]}}"
        ),
        format!("    backpressure: {{queue_size: {queue}, drop_policy: {policy}}}"),
        format!("    metrics: {{allowed_labels: [{labels}], max_series: {series}}}"),
        format!("    health: {{check_interval: {seconds}s}}"),
    ];
    if let Some(mistake) = mistake {
        lines[mistake.line - 1] = mistake.text.to_owned();
    }
    lines.join("\n") + "\n"
}

/// What the ledger tells of events.
struct Account {
    produced: u64,
    sampled_out: u64,
    delivered: [u64; 2],
    lost: u64,
}

impl Account {
    fn of(ledger: &Value) -> Self {
        let network = &ledger["observers"][0];
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let events = |part: &str| number(&network["events"][part]["occurrences"]);
        let all = |list: &Value| list.as_array().cloned().unwrap_or_default();
        let mut lost = number(&network["kernel"]["lost"]) + number(&network["ring"]["abandoned"]);
        lost += number(&network["kernel"]["missed"]);
        for failed in all(&network["records"]["failed"]) {
            lost += number(&failed["records"]);
        }
        let mut delivered = [0; 2];
        for lane in all(&network["lanes"]) {
            let dropped = all(&lane["dropped"]);
            lost += dropped.iter().map(|d| number(&d["occurrences"])).sum::<u64>();
            lost += number(&lane["rejected"]["occurrences"]);
            if lane["emitter"] == "stdout" {
                delivered =
                    ["envelopes", "occurrences"].map(|part| number(&lane["delivered"][part]));
            }
        }
        let (produced, sampled_out) = (events("produced"), events("sampled_out"));
        Account { produced, sampled_out, delivered, lost }
    }
}

/// Waits until nothing is on its way any more, and all that was delivered is read;
/// the ledger then.
fn settle(place: &Place, arrived: &Mutex<Arrived>) -> Result<Value, String> {
    let begun = Instant::now();
    let mut before = None;
    loop {
        sleep(Duration::from_millis(500));
        let ledger = place.ledger();
        let open: u64 = ["queued", "in_flight"]
            .iter()
            .flat_map(|part| {
                let lanes = ledger["observers"][0]["lanes"].as_array().cloned().unwrap_or_default();
                lanes.into_iter().map(move |lane| lane[*part]["envelopes"].as_u64().unwrap_or(1))
            })
            .sum();
        let now = (lock(arrived).lines, Account::of(&ledger).produced);
        if !ledger.is_null() && open == 0 && before == Some(now) {
            return Ok(ledger);
        }
        before = Some(now);
        if begun.elapsed() > Duration::from_secs(60) {
            return Err(format!("it was not through within a minute: {ledger:#}"));
        }
    }
}

fn conclude(reloads: u64, halves: Vec<Half>, mut tally: Tally) -> Result<(), String> {
    for half in &halves {
        let what = if half.samples { "shares kept" } else { "all kept" };
        let rate = half.made as f64 / half.seconds;
        figure(&format!("{what}: events made, a second"), format!("{}, {rate:.0}", half.made));
        figure("  of these delivered", half.told);
        figure(
            "  sampled out, of all that was produced",
            format!("{} of {}", half.sampled_out, half.produced),
        );
        figure("  lost, told twice", format!("{}, {}", half.missing(), half.twice));
        // Whoever else fails on this machine is seen, and fills the same ring.
        figure("  of others meanwhile", half.produced.saturating_sub(half.made));
        figure("  not accounted for", half.differences);
        figure("  resident memory at most, MiB", half.rss >> 20);
        tally.wrong.extend(half.wrong());
    }
    tally.took.sort();
    let at = |percent| tally.took.get(tally.took.len().saturating_sub(1) * percent / 100);
    let shown =
        |percent| at(percent).map_or_else(|| "none".to_owned(), |took| format!("{took:.1?}"));
    figure("reloads asked for", tally.took.len());
    figure("  good", tally.changed);
    figure("  refused, with line and field", format!("{} of {}", tally.refused, reloads / 10));
    figure(
        "  until it was answered, p50, p99, max",
        format!("{}, {}, {}", shown(50), shown(99), shown(100)),
    );
    if (tally.changed, tally.refused) != (reloads - reloads / 10, reloads / 10) {
        tally.wrong.push("not every reload came to what it should".to_owned());
    }
    if tally.wrong.is_empty() { Ok(()) } else { Err(tally.wrong.join("\n")) }
}

impl Half {
    /// Of ours, what neither arrived nor was sampled out.
    fn missing(&self) -> u64 {
        if self.samples { self.lost } else { self.lost.max(self.made - self.told) }
    }

    fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut must = |holds: bool, what: String| {
            if !holds {
                wrong.push(what);
            }
        };
        must(self.missing() == 0, format!("{} events were lost", self.missing()));
        must(self.twice == 0, format!("{} events were told twice", self.twice));
        must(self.differences == 0, format!("{} are not accounted for", self.differences));
        must(self.produced >= self.made, format!("{} of {} were seen", self.produced, self.made));
        let [events, occurrences] = self.delivered;
        must(self.lines == events, format!("{} lines for {events} delivered", self.lines));
        let kept = self.produced - self.sampled_out;
        must(kept == occurrences, format!("{kept} were kept, {occurrences} delivered"));
        must(self.odd == 0, format!("{} carry a weight that is not theirs", self.odd));
        if self.samples {
            let (told, out) = (self.told, self.sampled_out);
            must(told > 0 && out > 0, format!("{told} were kept, {out} sampled out"));
        } else {
            must(self.sampled_out == 0, format!("{} were sampled out", self.sampled_out));
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_counts_only_with_its_line_and_field() {
        let mistake = &MISTAKES[6];
        let answer = |problem: &str| json!({"result": "refused", "problems": [problem]});
        let good = "/tmp/a/vahti.yaml:10:34: observers.network.backpressure.queue_size is 0, but";
        assert!(mistake.is_named(&answer(good)));
        assert!(!mistake.is_named(&answer(&good.replace(":10:", ":1:"))));
        assert!(!mistake.is_named(&answer(&good.replace("queue_size", "max_bytes"))));
        assert!(!mistake.is_named(&json!({"result": "unchanged", "problems": [good]})));
    }

    #[test]
    fn a_fault_is_known_by_its_address() {
        for n in [0, 1, 255, 256, 1_000_000] {
            let address = closed_port(n).ip().to_string();
            let line = format!(r#"{{"network":{{"peer":{{"address":"{address}","port":1}}}}}}"#);
            assert_eq!(number_of(&line), Some(n as usize));
        }
    }

    #[test]
    fn a_weight_is_compared_with_its_threshold() {
        for (line, good) in [
            (r#""weight":1.0}"#, true),
            (r#""weight":2.0,"sampling":{"threshold":"8"}}"#, true),
            (r#""weight":4.0,"sampling":{"threshold":"c"}}"#, true),
            (r#""weight":2.0,"sampling":{"threshold":"c"}}"#, false),
            (r#""weight":2.0}"#, false),
            (r#""sampling":{"threshold":"c"}}"#, false),
        ] {
            assert_eq!(carries_what_decided(line), good, "{line}");
        }
    }
}
