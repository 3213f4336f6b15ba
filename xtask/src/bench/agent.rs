//! The agent's figures: latency, start, idle, storm.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use vahti_exporters::store::Reader;

use super::faults::{be_refused, closed_port, storm as refused_storm};
use super::process::{Agent, BpfStats, Keep, Usage, each_line};

const FAULTS: u32 = 1_000;
const STORM_PER_SECOND: u64 = 20_000;
const STORM_TIME: Duration = Duration::from_secs(20);
const IDLE_TIME: Duration = Duration::from_secs(60);

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let index = (sorted.len().saturating_sub(1)) * percent / 100;
    sorted.get(index).copied().unwrap_or_default()
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn peer(event: &Value) -> Option<String> {
    event["network"]["peer"]["address"].as_str().map(str::to_owned)
}

/// From just before a connect is made to the line on standard output.
pub(crate) fn latency() -> Result<(), String> {
    let mut agent = Agent::start(Stdio::piped(), Keep::Store)?;
    let lines = agent.lines()?;
    let arrived: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
    let seen = Arc::clone(&arrived);
    let reader = thread::spawn(move || {
        each_line(lines, |event, now| {
            if let (Some(peer), Ok(mut seen)) = (peer(&event), seen.lock()) {
                seen.entry(peer).or_insert(now);
            }
        })
    });
    agent.ready()?;
    let mut made = Vec::new();
    for n in 0..FAULTS {
        let to = closed_port(n);
        made.push((to.ip().to_string(), Instant::now()));
        be_refused(to);
        thread::sleep(Duration::from_millis(2));
    }
    thread::sleep(Duration::from_millis(500));
    agent.end()?;
    reader.join().map_err(|_| "the reader panicked")??;
    let arrived = arrived.lock().map_err(|_| "the reader panicked")?;
    let mut took: Vec<Duration> =
        made.iter().filter_map(|(peer, at)| Some(*arrived.get(peer)? - *at)).collect();
    took.sort();
    println!("fault -> line on stdout, {FAULTS} faults of different keys");
    println!(
        "  arrived {}   p50 {:?}   p99 {:?}   max {:?}",
        took.len(),
        percentile(&took, 50),
        percentile(&took, 99),
        percentile(&took, 100)
    );
    Ok(())
}

/// From just before a connect is made until a reader of the store sees the
/// event, which is when the disk has it; beside what the disk takes to flush.
pub(crate) fn commit() -> Result<(), String> {
    let agent = Agent::start(Stdio::null(), Keep::Store)?;
    agent.ready()?;
    let store = agent.store().ok_or("it has no store")?;
    let reader = Reader::open(store).map_err(|e| e.to_string())?;
    let mut beside = File::create(store.join("flushed")).map_err(|e| e.to_string())?;
    let (mut took, mut flushes) = (Vec::new(), Vec::new());
    for n in 0..FAULTS {
        let before = reader.last_seq().map_err(|e| e.to_string())?;
        let at = Instant::now();
        be_refused(closed_port(n));
        // Others on this machine fail too: the first that comes is as good.
        while reader.last_seq().map_err(|e| e.to_string())? == before {
            if at.elapsed() > Duration::from_secs(5) {
                return Err("nothing was committed".into());
            }
            thread::sleep(Duration::from_micros(100));
        }
        took.push(at.elapsed());
        beside.write_all(&[7; 4096]).map_err(|e| e.to_string())?;
        let at = Instant::now();
        beside.sync_data().map_err(|e| e.to_string())?;
        flushes.push(at.elapsed());
    }
    drop(reader);
    agent.end()?;
    took.sort();
    flushes.sort();
    println!("fault -> committed and synced, {FAULTS} faults of different keys, one at a time");
    println!(
        "  p50 {:?}   p99 {:?}   max {:?}   (fdatasync of 4 KiB: p50 {:?}   p99 {:?})",
        percentile(&took, 50),
        percentile(&took, 99),
        percentile(&took, 100),
        percentile(&flushes, 50),
        percentile(&flushes, 99),
    );
    Ok(())
}

/// From before the agent is executed to its first event, faults happening all
/// the while.
pub(crate) fn start() -> Result<(), String> {
    const ROUNDS: usize = 11;
    let over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&over);
    let faults = thread::spawn(move || {
        let mut n = 0;
        while !stop.load(Ordering::Relaxed) {
            be_refused(closed_port(n));
            n += 1;
            thread::sleep(Duration::from_millis(1));
        }
    });
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        let mut agent = Agent::start(Stdio::piped(), Keep::Store)?;
        let mut lines = agent.lines()?;
        let mut line = String::new();
        std::io::BufRead::read_line(&mut lines, &mut line).map_err(|e| e.to_string())?;
        took.push(agent.started.elapsed());
        let rest = thread::spawn(move || each_line(lines, |_, _| {}));
        agent.end()?;
        rest.join().map_err(|_| "the reader panicked")??;
    }
    over.store(true, Ordering::Relaxed);
    faults.join().map_err(|_| "the faults panicked")?;
    took.sort();
    println!("exec -> first event, {ROUNDS} starts");
    println!(
        "  median {:?}   fastest {:?}   slowest {:?}",
        percentile(&took, 50),
        percentile(&took, 0),
        percentile(&took, 100)
    );
    Ok(())
}

/// Nothing happens that concerns the agent.
pub(crate) fn idle() -> Result<(), String> {
    let agent = Agent::start(Stdio::null(), Keep::Store)?;
    agent.ready()?;
    thread::sleep(Duration::from_secs(3));
    let before = agent.usage();
    thread::sleep(IDLE_TIME);
    let used = agent.usage() - before;
    let rss = agent.rss();
    agent.end()?;
    let seconds = IDLE_TIME.as_secs_f64();
    println!("idle for {IDLE_TIME:?}");
    println!(
        "  CPU {:.4} % of a core   wake-ups {:.2}/s   RSS {:.1} MiB",
        used.cpu.as_secs_f64() / seconds * 100.0,
        used.wakeups as f64 / seconds,
        mib(rss)
    );
    Ok(())
}

/// Refused connects of one process to one port, to a pipe, a file and nowhere.
pub(crate) fn storm() -> Result<(), String> {
    println!("storm of {STORM_PER_SECOND} refused connects/s for {STORM_TIME:?}");
    for to in ["pipe", "file", "/dev/null"] {
        storm_to(to, Keep::Nothing)?;
    }
    storm_to("/dev/null", Keep::Store)
}

fn storm_to(to: &str, keep: Keep) -> Result<(), String> {
    let file = std::env::temp_dir().join(format!("vahti-bench-{}.jsonl", std::process::id()));
    let create = || File::create(&file).map_err(|e| format!("{}: {e}", file.display()));
    let mut agent = Agent::start(
        match to {
            "pipe" => Stdio::piped(),
            "file" => create()?.into(),
            _ => Stdio::null(),
        },
        keep,
    )?;
    let counted: Arc<Mutex<(u64, u64)>> = Arc::default();
    let target = closed_port(7);
    let to_target = target.ip().to_string();
    let reader = (to == "pipe").then(|| agent.lines()).transpose()?.map(|lines| {
        let (counted, to_target) = (Arc::clone(&counted), to_target.clone());
        thread::spawn(move || each_line(lines, |event, _| count(&counted, &event, &to_target)))
    });
    agent.ready()?;
    let delivered = |ledger: &Value| number(&ledger["observers"][0]["lanes"][0]["delivered"]);
    let delivered_before = delivered(&agent.ledger()?);
    let stats = BpfStats::on();
    let before = agent.usage();
    let made = thread::spawn(move || refused_storm(target, STORM_PER_SECOND, STORM_TIME));
    let mut rss = 0;
    while !made.is_finished() {
        rss = rss.max(agent.rss());
        thread::sleep(Duration::from_millis(100));
    }
    let made = made.join().map_err(|_| "the storm panicked")?;
    let used = agent.usage() - before;
    drop(stats);
    thread::sleep(Duration::from_millis(1_500));
    let ledger = agent.ledger()?;
    let network = &ledger["observers"][0];
    agent.end()?;
    if let Some(reader) = reader {
        reader.join().map_err(|_| "the reader panicked")??;
    } else if to == "file" {
        let lines = File::open(&file).map_err(|e| e.to_string())?;
        each_line(std::io::BufReader::new(lines), |event, _| count(&counted, &event, &to_target))?;
        std::fs::remove_file(&file).map_err(|e| e.to_string())?;
    }
    let (occurrences, lines) = counted.lock().map(|c| *c).unwrap_or_default();
    let kept = if keep == Keep::Store { "and the store   " } else { "" };
    // Nobody reads /dev/null: the ledger tells, of all that failed meanwhile.
    let is_read = to != "/dev/null";
    let told = if is_read { occurrences } else { delivered(&ledger) - delivered_before };
    let lines = if is_read { format!("lines {lines}") } else { "(by the ledger)".into() };
    println!("  to {to:<9} {kept}made {made}   told {told}   {lines}");
    print_cost(used, rss);
    print_missing(made, told, is_read, network);
    Ok(())
}

fn print_cost(used: Usage, rss: u64) {
    let seconds = STORM_TIME.as_secs_f64();
    let cpu = used.cpu.as_secs_f64() / seconds * 100.0;
    println!(
        "  {:12} CPU {cpu:.2} % of a core ({})   eBPF {:.2} % (billed to the callers)   RSS at most {:.1} MiB ({})",
        "",
        bar("15 %", cpu <= 15.0),
        used.bpf.as_secs_f64() / seconds * 100.0,
        mib(rss),
        bar("20 MiB", mib(rss) <= 20.0),
    );
}

fn print_missing(made: u64, told: u64, is_read: bool, network: &Value) {
    let (reasons, explained) = given_up(network);
    let missing = i128::from(made) - i128::from(told);
    // The ledger can't tell what others did meanwhile apart.
    let missing = if is_read { missing } else { missing.max(0) };
    let is_explained = (0..=i128::from(explained)).contains(&missing);
    println!(
        "  {:12} made - told {missing} ({})   missed {}   given up: {reasons}",
        "",
        bar("0, or given up and < 0.1 %", is_explained && missing * 1000 < i128::from(made)),
        network["kernel"]["missed"],
    );
    let lane = &network["lanes"][0];
    println!(
        "  {:12} ledger: attempted {} received {} produced {} routed {} delivered {} difference {}",
        "",
        network["kernel"]["attempted"],
        network["ring"]["received"],
        network["events"]["produced"]["occurrences"],
        network["events"]["routed"]["occurrences"],
        lane["delivered"]["occurrences"],
        lane["difference"],
    );
}

/// Whether a figure is as good as is promised, so that nobody has to compare.
fn bar(limit: &str, is_met: bool) -> String {
    format!("bar {limit}: {}", if is_met { "met" } else { "NOT met" })
}

fn number(tally: &Value) -> u64 {
    tally["occurrences"].as_u64().unwrap_or(0)
}

/// What an observer's ledger says was given up, by reason, and all of it.
fn given_up(observer: &Value) -> (String, u64) {
    let list = |list: &Value| list.as_array().cloned().unwrap_or_default();
    let mut parts = vec![
        ("lost by the kernel".to_owned(), observer["kernel"]["lost"].as_u64().unwrap_or(0)),
        ("left unread".to_owned(), observer["ring"]["abandoned"].as_u64().unwrap_or(0)),
    ];
    for failed in list(&observer["records"]["failed"]) {
        let reason = failed["reason"].as_str().unwrap_or("?");
        parts.push((reason.to_owned(), failed["records"].as_u64().unwrap_or(0)));
    }
    for dropped in list(&observer["lanes"][0]["dropped"]) {
        let word = |key: &str| dropped[key].as_str().unwrap_or("?").to_owned();
        parts.push((format!("{} {}", word("stage"), word("reason")), number(&dropped)));
    }
    parts.push(("rejected".to_owned(), number(&observer["lanes"][0]["rejected"])));
    let all = parts.iter().map(|(_, n)| n).sum();
    parts.retain(|(_, n)| *n > 0);
    let told: Vec<String> = parts.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    (if told.is_empty() { "nothing".to_owned() } else { told.join(", ") }, all)
}

/// Counts what was told of connections to this address: others may fail too.
fn count(counted: &Mutex<(u64, u64)>, event: &Value, to: &str) {
    if event["subtype"] == "connection_refused"
        && event["network"]["peer"]["address"] == to
        && let (Some(count), Ok(mut counted)) = (event["count"].as_u64(), counted.lock())
    {
        counted.0 += count;
        counted.1 += 1;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_given_up_is_named_by_reason_and_summed() {
        let observer = json!({
            "kernel": {"lost": 3, "missed": 9}, "ring": {"abandoned": 0},
            "records": {"failed": [{"reason": "malformed", "records": 2}]},
            "lanes": [{
                "dropped": [
                    {"stage": "queue", "reason": "queue_items", "occurrences": 40},
                    {"stage": "shutdown", "reason": "deadline", "occurrences": 0},
                ],
                "rejected": {"occurrences": 0},
            }],
        });
        let told = "3 lost by the kernel, 2 malformed, 40 queue queue_items";
        assert_eq!(given_up(&observer), (told.to_owned(), 45));
        assert_eq!(given_up(&json!({})), ("nothing".to_owned(), 0));
    }
}
