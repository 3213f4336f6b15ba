//! Kills at random moments, and what must hold after all of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::agent::{Agent, Oracle, Place};
use super::load::Load;
use super::proof::{Kill, Proof, Start};
use super::{Random, figure, now_ns};

/// How a run goes.
pub(super) struct Plan {
    pub(super) kills: u64,
    pub(super) seed: u64,
    /// The store's cap; without one it keeps everything, and so must have it.
    pub(super) max_bytes: Option<String>,
}

/// How many crashes a second there are, and how many refused connects.
const LOAD: (u64, u64) = (60, 2_000);
/// Within which time an agent has to be ready after a kill.
const BAR: Duration = Duration::from_millis(200);
/// So many bars are a defect, and not just a machine that is busy.
const BARS: u32 = 5;

/// When an agent is killed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// So long after it began to watch.
    Watching(Duration),
    /// So long after it was started, which is likely before it watches.
    Starting(Duration),
    /// So long after it began to watch it is told to end, and then killed.
    Ending(Duration, Duration),
}

impl Moment {
    fn random(random: &mut Random) -> Self {
        let mut ms = |limit: u64| Duration::from_micros(random.below(limit * 1_000));
        let kind = ms(100).as_millis();
        match kind {
            0..70 => Moment::Watching(ms(600)),
            70..85 => Moment::Starting(ms(150)),
            _ => Moment::Ending(ms(400), ms(40)),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Moment::Watching(_) => "while it watches",
            Moment::Starting(_) => "while it starts",
            Moment::Ending(..) => "while it ends",
        }
    }
}

/// What the rounds came to.
#[derive(Default)]
struct Rounds {
    starts: Vec<Start>,
    kills: Vec<Kill>,
    moments: BTreeMap<&'static str, u64>,
    ended_first: u64,
    /// From exec until the store was open, and until it watched.
    opened: Vec<Duration>,
    watching: Vec<Duration>,
}

/// Kills as planned; an error if anything that was promised does not hold.
pub(super) fn run(folder: &Path, plan: &Plan) -> Result<(), String> {
    let place = Place::new(folder);
    place.configure(plan.max_bytes.as_deref().unwrap_or("64GiB"))?;
    let begun = now_ns();
    println!("crash: {} kills, seed {}", plan.kills, plan.seed);
    let mut random = Random(plan.seed);
    let load = Load::start(LOAD.0, LOAD.1)?;
    let mut rounds = Rounds::default();
    let mut oracle = None;
    while (rounds.kills.len() as u64) < plan.kills {
        // Without another reader the first to open the file after a kill
        // recovers the log from the disk alone; the oracle's memory helps else.
        let alone = random.below(4) == 0;
        rounds.round(&place, Moment::random(&mut random), alone, &mut oracle)?;
    }
    // The last one may end in peace, once it has delivered what is owed.
    let mut last = rounds.start(&place)?;
    last.watches()?;
    let mut oracle = oracle.map_or_else(|| Oracle::start(&place), Ok)?;
    rounds.note_start(&last);
    std::thread::sleep(Duration::from_secs(1));
    drop(load);
    settle(&place)?;
    oracle_is_through(&place, &mut oracle)?;
    last.signal(libc::SIGTERM);
    let status = last.reap()?;
    if !status.success() {
        return Err(format!("the last agent ended with {status}"));
    }
    rounds.print(begun);
    let mut proof = Proof::of(&place)?;
    let (_, p99, _) = spread(&mut rounds.opened);
    if p99 > BAR * BARS {
        proof.wrong(format!("p99 of the time until the store is open is {} ms", p99.as_millis()));
    }
    proof.check_lines(&place, &rounds.starts, plan.kills)?;
    proof.check_promises(&place)?;
    proof.check_gaps(&rounds.kills);
    proof.check_accounts(&place, plan.max_bytes.is_none())?;
    proof.conclude()
}

impl Rounds {
    fn start(&mut self, place: &Place) -> Result<Agent, String> {
        self.starts.push(Start::now(place)?);
        let agent = Agent::start(place)?;
        if let Some(kill) = self.kills.last_mut().filter(|kill| kill.next_exec_ns == 0) {
            kill.next_exec_ns = agent.exec_ns;
        }
        Ok(agent)
    }

    fn round(
        &mut self,
        place: &Place,
        moment: Moment,
        alone: bool,
        oracle: &mut Option<Oracle>,
    ) -> Result<(), String> {
        let mut agent = self.start(place)?;
        let limit = Duration::from_secs(30);
        let mut ended = if let Moment::Starting(after) = moment {
            agent.wait_until(limit, |agent| agent.since_exec() >= after)?
        } else {
            agent.watches()?;
            follow(place, oracle)?;
            let (Moment::Watching(after) | Moment::Starting(after) | Moment::Ending(after, _)) =
                moment;
            let until = agent.since_exec() + after;
            agent.wait_until(limit, |agent| agent.since_exec() >= until)?
        };
        if let Some(status) = ended {
            return Err(format!("the agent ended by itself, with {status}; see agents.log"));
        }
        if alone && let Some(oracle) = oracle.take() {
            oracle.rest();
        }
        if let Moment::Ending(_, after) = moment {
            agent.signal(libc::SIGTERM);
            let until = agent.since_exec() + after;
            ended = agent.wait_until(limit, |agent| agent.since_exec() >= until)?;
        }
        self.note_start(&agent);
        if ended.is_some() {
            agent.reap()?;
            self.ended_first += 1;
            return Ok(());
        }
        agent.signal(libc::SIGKILL);
        let status = agent.reap()?;
        // It may have come to its end by itself just before.
        if status.code().is_some() {
            self.ended_first += 1;
            return Ok(());
        }
        *self.moments.entry(moment.name()).or_default() += 1;
        let ending = matches!(moment, Moment::Ending(..));
        self.kills.push(Kill {
            reaped_ns: now_ns(),
            next_exec_ns: 0,
            must_be_told: agent.opened.is_some() && !ending,
            may_be_told: agent.opened.is_some() || !ending,
        });
        Ok(())
    }

    fn note_start(&mut self, agent: &Agent) {
        // The first has nothing to recover.
        if !self.kills.is_empty() {
            self.opened.extend(agent.opened);
            self.watching.extend(agent.watching());
        }
    }

    fn print(&mut self, begun: u64) {
        let seconds = (now_ns() - begun) / 1_000_000_000;
        figure("kills", format!("{} in {seconds} s", self.kills.len()));
        for (moment, kills) in &self.moments {
            figure(&format!("  {moment}"), kills);
        }
        figure("ended before the kill came", self.ended_first);
        let opened = spread(&mut self.opened);
        let met = if opened.1 <= BAR { "met" } else { "NOT met" };
        let bar = format!("(bar of p99, {} ms: {met})", BAR.as_millis());
        figure("exec until the store is open", format!("{} {bar}", in_words(opened)));
        figure("exec until it watches", in_words(spread(&mut self.watching)));
    }
}

/// Median, 99th percentile and greatest.
fn spread(times: &mut [Duration]) -> (Duration, Duration, Duration) {
    times.sort();
    let at = |percent: usize| {
        let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
        times.get(index).copied().unwrap_or_default()
    };
    (at(50), at(99), at(100))
}

fn in_words((median, p99, max): (Duration, Duration, Duration)) -> String {
    let [median, p99, max] = [median, p99, max].map(|time| time.as_millis());
    format!("median {median} ms, p99 {p99} ms, max {max} ms")
}

fn follow(place: &Place, oracle: &mut Option<Oracle>) -> Result<(), String> {
    let Some(oracle) = oracle else {
        *oracle = Some(Oracle::start(place)?);
        return Ok(());
    };
    if oracle.is_there() { Ok(()) } else { Err("the oracle has ended; see oracle.log".to_owned()) }
}

/// Waits until every exporter has what it is owed.
pub(super) fn settle(place: &Place) -> Result<(), String> {
    for _ in 0..1_200 {
        let ledger = place.ledger();
        let lanes = ledger["store"]["lanes"].as_array();
        let owes = |lane: &serde_json::Value| {
            let open = ["stored", "in_flight"].map(|part| lane[part]["envelopes"].as_u64());
            lane["emitter"] != "(store)" && open != [Some(0), Some(0)]
        };
        if lanes.is_some_and(|lanes| !lanes.iter().any(owes)) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err("not everything was delivered within two minutes".to_owned())
}

/// Waits until the oracle prints nothing any more.
fn oracle_is_through(place: &Place, oracle: &mut Oracle) -> Result<(), String> {
    let mut size = 0;
    loop {
        std::thread::sleep(Duration::from_millis(700));
        if !oracle.is_there() {
            return Err("the oracle has ended; see oracle.log".to_owned());
        }
        let now = fs::metadata(place.promises()).map_err(|e| e.to_string())?.len();
        if now == size {
            return Ok(());
        }
        size = now;
    }
}
