//! One budget for all memory (`limits.memory`), divided among its users at the
//! start: what each takes at the most is known before anything is made.
//!
//! Caches become smaller with the budget, to a quarter of what they are at
//! 64 MiB. What is left when everybody has his part is for the lanes: those
//! whose size nobody has set share it evenly. Where that leaves a lane too
//! little to be of use, or what was set is more than there is, the
//! configuration is refused.
//!
//! The program's own code is not in it: that is read from its file, and the
//! kernel takes it back whenever it needs the room.

use std::sync::OnceLock;

use serde::Serialize;
use vahti_exporters::store::StoreMemory;
use vahti_exporters::{OtlpEmitter, PolkuEmitter};
use vahti_observers::cgroups;
use vahti_runtime::config::{BackpressureConfig, InvalidField};
use vahti_runtime::emitter::MAX_BATCH;
use vahti_runtime::memory::CacheLimits;
use vahti_runtime::units::ByteSize;

use crate::config::{Config, EmitterConfig, EmitterType, OBSERVERS};
use crate::{gap, http, wiring};

/// What is divided where nothing else is set.
pub(crate) const DEFAULT: ByteSize = ByteSize::mib(64);

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What the program takes before anything happens, 2 MiB where it was measured;
/// clients of the control socket; names that lines of events brought; and what
/// the allocator has not given back.
const PROGRAM: u64 = 4 * MIB;

/// A thread's stack as far as it is used, and its event loop.
const THREAD: u64 = 96 * KIB;

/// The least that a lane is of use with: some 400 events.
const LEAST_LANE: u64 = 256 * KIB;

/// How often a batch is in memory on its way to a receiver over gRPC: POLKU's
/// messages take four times as much; the request, which for OTLP is twice as
/// large; that in its frames, and compressed.
const COPIES: usize = 7;
/// TLS, HTTP/2 with what it sends ahead, and the authorities of a system.
const CONNECTION: usize = 1 << 20;

/// How many batches an emitter may hold whose calls block: the one under way,
/// and those that were left behind.
const BATCHES_LEFT_BEHIND: u64 = 1 + 4;

/// What one user may take at the most, for one use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Part {
    /// Who: the program, an observer, an emitter, or the store.
    pub(crate) user: String,
    /// What for.
    pub(crate) used_for: String,
    /// How much.
    pub(crate) bytes: u64,
}

/// Who may take how much.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Division {
    /// What there is.
    #[serde(rename = "budget_bytes")]
    pub(crate) budget: u64,
    /// All parts; they come to no more than the budget.
    pub(crate) parts: Vec<Part>,
    #[serde(skip)]
    pub(crate) limits: Limits,
}

/// What users are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Every observer.
    pub(crate) caches: CacheLimits,
    /// The store.
    pub(crate) store: StoreMemory,
    /// How many bytes of events the store commits at once.
    pub(crate) store_batch_bytes: usize,
    /// How many bytes of events another emitter is handed at once.
    pub(crate) batch_bytes: usize,
    /// How many bytes of lines it makes of them at once.
    pub(crate) lines_bytes: usize,
    /// Each lane whose size was not set.
    lane_bytes: u64,
}

/// Why there is no division: the budget's users and what they need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unmet {
    budget: ByteSize,
    /// A budget that is enough, in whole MiB.
    needed: u64,
    parts: Vec<Part>,
    /// What the user has set, with the lanes that it is for.
    set: Vec<(String, ByteSize, u64)>,
}

impl Division {
    /// Divides a configuration's budget.
    ///
    /// # Errors
    /// It is not enough.
    pub(crate) fn of(config: &Config) -> Result<Self, Unmet> {
        let budget = config.limits.memory;
        let mut needed = match Self::within(config, budget.0) {
            Ok(division) => return Ok(division),
            Err(needed) => needed,
        };
        // Caches become larger with the budget, so what is lacking now is less
        // than what is needed in the end.
        let parts = loop {
            match Self::within(config, needed) {
                Ok(division) => break division.parts,
                Err(more) if more > needed => needed = more,
                Err(_) => break Vec::new(),
            }
        };
        Err(Unmet { budget, needed, parts, set: set_lanes(config) })
    }

    /// The same with another budget; or one that would be enough for what is
    /// asked for with this one, in whole MiB.
    fn within(config: &Config, budget: u64) -> Result<Self, u64> {
        let mut limits = Limits::within(budget, &config.emitters.0);
        let mut parts = fixed(config, &limits);
        let lanes = lanes(config);
        let taken: u64 = parts.iter().map(|part| part.bytes).sum();
        let set: u64 = lanes
            .iter()
            .filter_map(|lane| lane.set)
            .fold(0, |all, lane| all.saturating_add(lane.0));
        let shares = lanes.iter().filter(|lane| lane.set.is_none()).count() as u64;
        let needed = taken.saturating_add(set).saturating_add(shares * LEAST_LANE);
        if needed > budget {
            return Err(needed.saturating_add(MIB - 1) & !(MIB - 1));
        }
        let rest = budget.saturating_sub(taken.saturating_add(set));
        limits.lane_bytes = (rest / shares.max(1)) & !(KIB - 1);
        parts.extend(lanes.iter().map(|lane| Part {
            user: lane.observer.to_owned(),
            used_for: format!("lane to {}", lane.emitter),
            bytes: lane.set.map_or(limits.lane_bytes, |set| set.0),
        }));
        Ok(Division { budget, parts, limits })
    }

    /// Whether everything that is made at the start would be made as another
    /// division had it made: only lanes differ.
    pub(crate) fn leaves_as_made(&self, other: &Division) -> bool {
        let made = |division: &Division| Limits { lane_bytes: 0, ..division.limits };
        made(self) == made(other)
    }

    /// Gives the lanes whose size was not set what is left for them.
    pub(crate) fn apply(&self, config: &mut Config) {
        let observers = &mut config.observers;
        for backpressure in
            [&mut observers.network.backpressure, &mut observers.container.backpressure]
        {
            backpressure.max_bytes.get_or_insert(ByteSize(self.limits.lane_bytes));
        }
    }
}

impl Limits {
    fn within(budget: u64, emitters: &[EmitterConfig]) -> Self {
        let full = DEFAULT.0;
        let scaled = |at_full: u64| {
            let scaled = at_full * budget.min(full) / full;
            usize::try_from(scaled.max(at_full / 4)).unwrap_or(usize::MAX)
        };
        let CacheLimits { entities, fold_keys, fold_bytes, metrics_bytes } = CacheLimits::default();
        let caches = CacheLimits {
            entities: scaled(entities as u64),
            fold_keys: scaled(fold_keys as u64),
            fold_bytes: scaled(fold_bytes as u64),
            metrics_bytes: scaled(metrics_bytes as u64),
        };
        // A sixteenth is for what is under way to all of them.
        let most = (budget / 128).clamp(32 * KIB, 512 * KIB);
        let batches: u64 = emitters.iter().map(batches).sum();
        let batch = (budget / 16 / batches.max(1)).clamp(32 * KIB, most) & !(KIB - 1);
        let batch_bytes = usize::try_from(batch).unwrap_or(usize::MAX);
        // As much is for what durable ones are owed next.
        let durable = emitters.iter().filter(|emitter| emitter.durable).count() as u64;
        let window = (budget / 16 / durable.max(1)).clamp(128 * KIB, scaled(MIB) as u64);
        let window_bytes = usize::try_from(window).unwrap_or(usize::MAX);
        Limits {
            caches,
            store: StoreMemory { cache_bytes: scaled(4 * MIB), window_bytes },
            store_batch_bytes: scaled(3 * MIB),
            batch_bytes,
            lines_bytes: batch_bytes / 2,
            lane_bytes: 0,
        }
    }
}

/// How many batches an emitter may hold at once.
fn batches(emitter: &EmitterConfig) -> u64 {
    match emitter.kind {
        EmitterType::File => BATCHES_LEFT_BEHIND,
        EmitterType::Stdout | EmitterType::Otlp | EmitterType::Polku | EmitterType::None => 1,
    }
}

/// All but the lanes.
fn fixed(config: &Config, limits: &Limits) -> Vec<Part> {
    let part = |user: &str, used_for: &str, bytes: usize| Part {
        user: user.to_owned(),
        used_for: used_for.to_owned(),
        bytes: bytes as u64,
    };
    let mut parts = vec![Part {
        user: "program".to_owned(),
        used_for: "itself, without its code".to_owned(),
        bytes: PROGRAM,
    }];
    if config.http.listen.0.is_some() {
        let series = wiring::enabled(config).len() * limits.caches.metrics_bytes;
        parts.push(part("http", "clients and answers", http::max_bytes(series)));
    }
    for observer in wiring::enabled(config) {
        let maps = Part {
            user: observer.to_owned(),
            used_for: "maps in the kernel".to_owned(),
            bytes: maps_bytes(observer),
        };
        parts.push(maps);
        let caches = limits.caches.parts();
        parts.extend(caches.iter().map(|cache| part(observer, cache.used_for, cache.bytes)));
        parts.push(part(observer, "cgroups' names", cgroups::MAX_BYTES));
    }
    if !config.store.is_off() {
        parts.push(part("store", "pages", limits.store.cache_bytes));
        parts.push(part("store", "commits", StoreMemory::WRITER_BYTES));
        parts.push(part("store", "batch under way", limits.store_batch_bytes));
        // Whether there is one is known only later. It has one record and one event.
        let caches = gap::CACHES.parts();
        let caches =
            caches.iter().filter(|cache| !["records", "spare events"].contains(&cache.used_for));
        let caches: usize = caches.map(|cache| cache.bytes).sum();
        let lanes = to_lanes(config).len() as u64 * gap::LANE_BYTES;
        parts.push(Part {
            user: gap::NAME.to_owned(),
            used_for: "telling of a gap".to_owned(),
            bytes: caches as u64 + lanes + THREAD,
        });
    }
    for emitter in &config.emitters.0 {
        let name = emitter.name();
        if emitter.durable {
            let at_once = match emitter.kind {
                EmitterType::Otlp => OtlpEmitter::MAX_BATCH,
                EmitterType::Polku => PolkuEmitter::MAX_BATCH,
                EmitterType::Stdout | EmitterType::File | EmitterType::None => MAX_BATCH,
            };
            let window = limits.store.window_bytes + StoreMemory::cursor_bytes(at_once);
            parts.push(part(name, "what it is owed next", window));
        }
        // Of a durable one those are among what it is owed.
        let batch = if emitter.durable { 0 } else { limits.batch_bytes as u64 };
        // The buffer grows by doubling.
        let lines = match emitter.kind {
            EmitterType::None => 0,
            EmitterType::Stdout | EmitterType::File => 2 * limits.lines_bytes,
            EmitterType::Otlp | EmitterType::Polku => COPIES * limits.batch_bytes + CONNECTION,
        };
        let under_way = batches(emitter) * (batch + lines as u64 + THREAD);
        let used_for = "batches and lines under way".to_owned();
        parts.push(Part { user: name.to_owned(), used_for, bytes: under_way });
    }
    parts
}

/// The observers whose lanes' size was set, with that, and how many they have.
fn set_lanes(config: &Config) -> Vec<(String, ByteSize, u64)> {
    let lanes = lanes(config);
    let set = |name| {
        let its = lanes.iter().filter(|lane| lane.observer == name);
        let set = its.clone().find_map(|lane| lane.set)?;
        Some((String::from(name), set, its.count() as u64))
    };
    OBSERVERS.into_iter().filter_map(set).collect()
}

struct LaneDemand {
    observer: &'static str,
    emitter: String,
    set: Option<ByteSize>,
}

fn lanes(config: &Config) -> Vec<LaneDemand> {
    let observers = &config.observers;
    let of = |observer| -> &BackpressureConfig {
        match observer {
            "container" => &observers.container.backpressure,
            _ => &observers.network.backpressure,
        }
    };
    let emitters = to_lanes(config);
    let lane = |observer, emitter: &String| LaneDemand {
        observer,
        emitter: emitter.clone(),
        set: of(observer).max_bytes,
    };
    let enabled = wiring::enabled(config).into_iter();
    enabled.flat_map(|observer| emitters.iter().map(move |e| lane(observer, e))).collect()
}

/// What has lanes in front of it: the store, and emitters that it does not serve.
fn to_lanes(config: &Config) -> Vec<String> {
    let store = (!config.store.is_off()).then(|| "store".to_owned());
    let emitters = config.emitters.0.iter().filter(|emitter| !emitter.durable);
    store.into_iter().chain(emitters.map(|emitter| emitter.name().to_owned())).collect()
}

/// What an observer's maps take of the kernel's memory on this machine.
fn maps_bytes(observer: &str) -> u64 {
    static KNOWN: OnceLock<[u64; 2]> = OnceLock::new();
    // What can't be read as an object can't be loaded either, and that is told.
    let known = KNOWN.get_or_init(|| {
        OBSERVERS.map(|name| wiring::object(name).maps_bytes().unwrap_or_default())
    });
    OBSERVERS.iter().zip(known).find(|(name, _)| **name == observer).map_or(0, |(_, bytes)| *bytes)
}

impl Unmet {
    /// What is to be told: the field, its value, and what it must be.
    pub(crate) fn field(&self) -> InvalidField {
        let least = self.needed / MIB;
        let mut bound = format!("{least}MiB or more for what it is divided among: ");
        let users = by_user(&self.parts);
        let demands: Vec<String> =
            users.iter().map(|(user, bytes)| format!("{user} {}", shown(*bytes))).collect();
        bound.push_str(&demands.join(", "));
        bound.push_str("; or let it be divided among less: ");
        let set = self.set.iter().map(|(observer, size, lanes)| {
            format!(
                "a smaller observers.{observer}.backpressure.max_bytes than {size}, times {lanes}"
            )
        });
        let mut advice: Vec<String> = set.collect();
        advice.push("fewer emitters or observers".to_owned());
        advice.push("store.path none".to_owned());
        bound.push_str(&advice.join(", "));
        InvalidField { path: "limits.memory".to_owned(), value: self.budget.to_string(), bound }
    }
}

/// What each user takes in all, in the order of the parts.
pub(crate) fn by_user(parts: &[Part]) -> Vec<(&str, u64)> {
    let mut users: Vec<(&str, u64)> = Vec::new();
    for part in parts {
        match users.iter_mut().find(|(user, _)| *user == part.user) {
            Some((_, bytes)) => *bytes = bytes.saturating_add(part.bytes),
            None => users.push((&part.user, part.bytes)),
        }
    }
    users
}

/// A size for people: `3.4 MiB`.
pub(crate) fn shown(bytes: u64) -> String {
    let tenths = |unit: u64| {
        let tenths = (u128::from(bytes) * 10).div_ceil(u128::from(unit));
        format!("{}.{}", tenths / 10, tenths % 10)
    };
    if bytes < MIB {
        format!("{} KiB", bytes.div_ceil(KIB))
    } else {
        format!("{} MiB", tenths(MIB))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(parts: &[Part]) -> u64 {
        parts.iter().map(|part| part.bytes).sum()
    }

    fn with_budget(mib: u64) -> Config {
        let mut config = Config::default();
        config.limits.memory = ByteSize::mib(mib);
        config
    }

    #[test]
    fn the_parts_come_to_the_budget_and_no_more() {
        for mib in [28, 32, 64, 100, 1_000] {
            let division = Division::of(&with_budget(mib)).unwrap();
            let sum = all(&division.parts);
            assert!(sum <= mib * MIB, "{mib}: {sum}");
            // Lanes take what is left, in whole KiB.
            assert!(mib * MIB - sum < 16 * KIB, "{mib}: {sum}");
        }
    }

    #[test]
    fn what_tells_of_a_gap_has_its_share_where_there_is_a_store_to_know_of_one() {
        let share = |config: &Config| {
            let division = Division::of(config).unwrap();
            let its = division.parts.iter().find(|part| part.user == gap::NAME);
            its.map(|part| part.bytes)
        };
        let mut config = Config::default();
        let of_two_lanes = share(&config).unwrap();
        assert!((2 * gap::LANE_BYTES..512 * KIB).contains(&of_two_lanes), "{of_two_lanes}");
        config.emitters.0.push(EmitterConfig::of(EmitterType::None));
        assert_eq!(share(&config), Some(of_two_lanes + gap::LANE_BYTES));
        config.store.path = Some("none".into());
        assert_eq!(share(&config), None);
    }

    #[test]
    fn the_default_leaves_every_lane_no_less_than_it_has_alone() {
        let config = Config::default();
        let lane = Division::of(&config).unwrap().limits.lane_bytes;
        let alone = BackpressureConfig::default().max_bytes().0;
        assert!(lane >= alone, "{lane}");
    }

    #[test]
    fn a_lane_that_was_set_gets_that_and_the_others_share_the_rest() {
        let mut config = with_budget(64);
        config.observers.network.backpressure.max_bytes = Some(ByteSize::mib(1));
        let division = Division::of(&config).unwrap();
        division.apply(&mut config);
        let lanes = |observer: &str| -> Vec<u64> {
            let of = |p: &&Part| p.user == observer && p.used_for.starts_with("lane to ");
            division.parts.iter().filter(of).map(|p| p.bytes).collect()
        };
        assert_eq!(lanes("network"), [MIB, MIB]);
        let share = config.observers.container.backpressure.max_bytes.unwrap().0;
        assert_eq!(lanes("container"), [share, share]);
        assert!(share > 4 * MIB, "{share}");
        assert_eq!(config.observers.network.backpressure.max_bytes, Some(ByteSize::mib(1)));
    }

    #[test]
    fn what_cannot_be_met_is_refused_with_everybodys_demand() {
        let mut config = with_budget(64);
        config.observers.network.backpressure.max_bytes = Some(ByteSize::mib(40));
        let told = Division::of(&config).unwrap_err().field().to_string();
        assert!(told.starts_with("limits.memory is 64MiB, but must be 1"), "{told}");
        for part in [
            "program 4.0 MiB, http ",
            ", network ",
            ", container ",
            ", store ",
            ", stdout ",
            "observers.network.backpressure.max_bytes than 40MiB, times 2",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert!(!told.contains("observers.container"), "{told}");
        // What it asks for is enough, and no MiB less is.
        let least = told.split("must be ").nth(1).unwrap().split("MiB").next().unwrap();
        let least: u64 = least.parse().unwrap();
        config.limits.memory = ByteSize::mib(least);
        assert!(Division::of(&config).is_ok(), "{least}");
        config.limits.memory = ByteSize::mib(least - 1);
        assert!(Division::of(&config).is_err(), "{least}");
        config.observers.network.backpressure.max_bytes = Some(ByteSize(u64::MAX));
        config.observers.container.backpressure.max_bytes = Some(ByteSize(u64::MAX));
        assert!(Division::of(&config).is_err(), "sums do not turn over");
    }

    #[test]
    fn sixteen_files_fit_the_default() {
        let mut config = Config::default();
        let file = |n| EmitterConfig {
            name: Some(format!("file-{n}")),
            path: Some(format!("/tmp/{n}").into()),
            ..EmitterConfig::of(EmitterType::File)
        };
        config.emitters.0 = (0..16).map(file).collect();
        let division = Division::of(&config).unwrap();
        assert!(all(&division.parts) <= 64 * MIB);
        for emitter in &mut config.emitters.0 {
            emitter.durable = true;
        }
        assert!(Division::of(&config).is_ok_and(|division| all(&division.parts) <= 64 * MIB));
    }
}
