//! The whole way from a source to the gateway, by three kinds of emitters: what
//! the ledger says against what the gateway says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use vahti_runtime::config::Config;
use vahti_runtime::delivery::{EmitterConfig, EmitterHandle};
use vahti_runtime::durable::DurableLog;
use vahti_runtime::event::{Custom, Event, EventData, EventKind, Priority, Severity, Value as Is};
use vahti_runtime::ledger::{DropReason, LaneLine};
use vahti_runtime::observer::ObserverRuntime;
use vahti_runtime::processor::{EventProcessor, Output, ProcessError, RawRecord};
use vahti_runtime::shutdown::{ShutdownTrigger, channel};
use vahti_runtime::supervisor::{Report, Supervisor};
use vahti_runtime::testing::{Captured, CapturingEmitter, FakeFeed, FakeSource};
use vahti_runtime::units::ByteSize;

use super::super::{PolkuEmitter, PolkuTarget};
use super::LONG;
use super::gateway::{answers, batch};
use crate::receivers::Gateway;
use crate::store::{Store, StoreConfig};
use crate::testing::proxy::Proxy;
use crate::tls::TlsConfig;

static PLAIN: EventKind = EventKind::custom("test.plain", "test", "plain", Priority::Normal);
static URGENT: EventKind = EventKind::custom("test.urgent", "test", "urgent", Priority::Critical);
static SPOILT: EventKind = EventKind::custom("test.spoilt", "test", "spoilt", Priority::Normal);
static BUSY: EventKind = EventKind::custom("test.busy", "test", "busy", Priority::Normal);

/// Makes of a record's first word the kind, of its second the size.
struct Words;

impl EventProcessor for Words {
    fn name(&self) -> &str {
        "words"
    }

    fn process(&self, record: RawRecord<'_>) -> Result<Output, ProcessError> {
        let text = std::str::from_utf8(record.bytes).unwrap();
        let (kind, bytes) = text.split_once(' ').unwrap();
        let kinds = [&PLAIN, &URGENT, &SPOILT, &BUSY];
        let kind = kinds.into_iter().find(|known| known.subtype() == kind).unwrap();
        let text = "y".repeat(bytes.parse().unwrap());
        let attributes = vec![("x".into(), Is::Text(text.into()))];
        let data = EventData::Custom(Box::new(Custom { schema: "s".into(), attributes }));
        Ok(Event { data, ..Event::new(kind, Severity::Info) }.into())
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..6_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within a minute: {what}");
}

/// Critical with as many tries as it takes, critical with two, one that tries
/// once, and a durable one. Each calls its cluster as itself.
const EMITTERS: [&str; 4] = ["critical", "impatient", "once", "durable"];

/// More than a gateway takes at once.
const ROOM_MIB: u64 = 64;

const LAST: &str = "01J000000000000000000000ZZ";

struct Stage {
    gateway: Gateway,
    store: Store,
    observer: Arc<ObserverRuntime>,
    feed: FakeFeed,
    fed: u64,
    beside: Captured,
    trigger: ShutdownTrigger,
    run: tokio::task::JoinHandle<Report>,
    told: Vec<Value>,
    _folder: tempfile::TempDir,
}

fn polku(name: &'static str, url: &str) -> impl Fn() -> Box<PolkuEmitter> + Send + use<> {
    let target = PolkuTarget::new(url, name, TlsConfig::default(), LONG).unwrap();
    let is_critical = ["critical", "impatient"].contains(&name);
    move || Box::new(PolkuEmitter::new(name, target.clone()).critical(is_critical))
}

fn tries(max_retries: u32) -> EmitterConfig {
    // Longer than the emitter itself waits.
    let emit_timeout = 2 * LONG;
    EmitterConfig {
        max_retries,
        emit_timeout,
        max_batch_bytes: (ROOM_MIB as usize) << 20,
        ..EmitterConfig::default()
    }
}

/// All emitters of a gateway that is at this URL.
async fn stage(gateway: Gateway, url: &str) -> Stage {
    let folder = tempfile::tempdir().unwrap();
    let config = StoreConfig::at(folder.path());
    let store = Store::open(config, vec!["durable".to_owned()], Duration::ZERO).unwrap();
    let from = store.clone();
    let commits = EmitterHandle::start(move || Box::new(from.emitter()), tries(1_000)).unwrap();
    let (make, log) = (polku("durable", url), Arc::new(store.clone()));
    let durable = EmitterHandle::start_durable(move || make(), tries(0), log).unwrap();
    let (make, beside) = CapturingEmitter::new("beside");
    let others = EmitterHandle::start(move || Box::new(make()), tries(0)).unwrap();
    let mut emitters = vec![commits, others];
    for (name, max_retries) in [("critical", 1_000), ("impatient", 1), ("once", 1_000)] {
        let make = polku(name, url);
        emitters.push(EmitterHandle::start(move || make(), tries(max_retries)).unwrap());
    }
    let (source, feed) = FakeSource::new();
    let mut config = Config::for_observer("words");
    config.backpressure.max_bytes = Some(ByteSize::mib(ROOM_MIB));
    let builder = ObserverRuntime::builder(|| Words).source(source).config(config);
    let builder = builder.drain_deadline(LONG);
    let builder = emitters.iter().fold(builder, |builder, emitter| builder.shared_emitter(emitter));
    let observer = builder.build().unwrap();
    emitters.push(durable);
    let (trigger, shutdown) = channel();
    let supervisor = Supervisor::new(emitters, LONG).observer(Arc::clone(&observer));
    let run = tokio::spawn(supervisor.run(shutdown));
    observer.started().await;
    let told = Vec::new();
    Stage { gateway, store, observer, feed, fed: 0, beside, trigger, run, told, _folder: folder }
}

impl Stage {
    fn push(&mut self, records: &[(&str, usize)]) {
        for (kind, bytes) in records {
            self.feed.push(format!("{kind} {bytes}").as_bytes());
        }
        self.fed += records.len() as u64;
    }

    fn push_some(&mut self) {
        self.push(&[[("plain", 10); 4].as_slice(), &[("urgent", 10)]].concat().repeat(4));
    }

    fn line(&self, emitter: &str) -> LaneLine {
        if emitter == "durable" {
            return self.store.line(emitter);
        }
        let lanes = self.observer.ledger().lanes;
        lanes.into_iter().find(|lane| lane.emitter == emitter).unwrap()
    }

    /// Whether nothing waits any more, wherever it went.
    fn is_settled(&self, emitter: &str) -> bool {
        let line = self.line(emitter);
        let parts = [line.delivered, line.rejected, line.dropped_total()];
        parts.iter().map(|part| part.envelopes).sum::<u64>() == self.fed
    }

    async fn settles(&self) {
        for emitter in EMITTERS {
            until(emitter, || self.is_settled(emitter)).await;
        }
    }

    /// Waits until the gateway has told of all that was sent so far, once.
    async fn is_heard(&mut self) {
        let all = self.fed as usize * EMITTERS.len();
        until("the gateway tells of all", || {
            self.told.extend(self.gateway.received());
            self.told.len() >= all
        })
        .await;
        assert_eq!(self.told.len(), all, "some came twice");
    }

    /// Waits until the gateway has told of something more of every emitter.
    async fn begins_to_be_heard(&mut self) {
        let before = self.told.len();
        until("the gateway tells of every emitter", || {
            self.told.extend(self.gateway.received());
            let more = self.told[before..].iter().map(|event| event["cluster"].as_str().unwrap());
            more.collect::<BTreeSet<_>>().len() == EMITTERS.len()
        })
        .await;
    }

    /// The end of all of it, with what the gateway has said by then.
    async fn ends(mut self) -> Ended {
        self.settles().await;
        self.trigger.begin();
        assert_eq!(self.run.await.unwrap(), Report::default());
        let ledger = self.observer.ledger();
        assert!(ledger.is_exact(), "{:?}", ledger.differences());
        // Whatever it said before, it has said before this.
        let (acks, _) = answers(&self.gateway.url(), vec![batch("critical", LAST, 1_000)]).await;
        assert_eq!(acks.len(), 1);
        loop {
            match self.gateway.receives() {
                event if event["id"] == LAST => break,
                event => self.told.push(event),
            }
        }
        let lanes = ledger.lanes.into_iter().chain([self.store.line("durable")]);
        let lines = lanes.map(|line| (line.emitter.clone(), line)).collect();
        let ids = self.beside.events().iter().map(|event| event.id.to_string()).collect();
        self.store.end();
        assert_eq!(self.beside.events().len() as u64, self.fed);
        Ended { ids, lines, told: self.told }
    }
}

struct Ended {
    /// Of all events, as one saw them that has nothing to do with a gateway.
    ids: BTreeSet<String>,
    lines: BTreeMap<String, LaneLine>,
    told: Vec<Value>,
}

/// What of an emitter's events the gateway answered, and how often.
#[derive(Debug, Default)]
struct Answered {
    acknowledged: BTreeMap<String, u32>,
    refused: BTreeSet<String>,
    arrived: BTreeMap<String, u32>,
}

impl Ended {
    fn answered(&self, emitter: &str) -> Answered {
        let mut all = Answered::default();
        for event in self.told.iter().filter(|event| event["cluster"] == *emitter) {
            let id = event["id"].as_str().unwrap().to_owned();
            assert!(self.ids.contains(&id), "nobody made {event}");
            *all.arrived.entry(id.clone()).or_default() += 1;
            match event["answer"].as_str() {
                Some("acknowledged") => *all.acknowledged.entry(id).or_default() += 1,
                Some("INVALID_EVENT") => assert!(all.refused.insert(id), "again: {event}"),
                Some("BUFFER_FULL") | None => {}
                Some(_) => panic!("{event}"),
            }
        }
        assert!(all.refused.iter().all(|id| !all.acknowledged.contains_key(id)), "{all:?}");
        all
    }

    /// What was acknowledged is delivered, what was refused, or could not be
    /// sent, rejected, and all others are dropped, for one reason.
    fn adds_up(&self, emitter: &str, unsendable: u64, reason: DropReason) -> (Answered, u64) {
        let (line, answered) = (&self.lines[emitter], self.answered(emitter));
        let (all, delivered) = (self.ids.len() as u64, answered.acknowledged.len() as u64);
        let rejected = answered.refused.len() as u64 + unsendable;
        assert_eq!(line.routed.envelopes, all, "{emitter}: {line:#?}");
        assert_eq!(line.delivered.envelopes, delivered, "{emitter}: {line:#?}");
        assert_eq!(line.rejected.envelopes, rejected, "{emitter}: {line:#?}");
        let dropped = line.dropped_for(reason).envelopes;
        assert_eq!(dropped, all - delivered - rejected, "{emitter}: {line:#?}");
        assert_eq!(dropped, line.dropped_total().envelopes, "{emitter}: {line:#?}");
        let rest = [line.stored, line.queued, line.in_flight];
        assert_eq!(rest.map(|part| part.envelopes), [0; 3], "{emitter}: {line:#?}");
        assert_eq!(line.difference, 0, "{emitter}: {line:#?}");
        (answered, dropped)
    }

    /// All emitters' answers, and what each of them dropped.
    fn all_add_up(&self, unsendable: u64) -> [(Answered, u64); 4] {
        EMITTERS.map(|emitter| match emitter {
            "once" => self.adds_up(emitter, unsendable, DropReason::TriedOnce),
            _ => self.adds_up(emitter, unsendable, DropReason::RetriesExhausted),
        })
    }
}

fn is_once(times: &BTreeMap<String, u32>) -> bool {
    times.values().all(|times| *times == 1)
}

#[tokio::test]
async fn a_stream_that_ends_instead_of_an_answer_costs_only_who_tries_once() {
    for behaviour in ["ends", "takes"] {
        let Some(gateway) = Gateway::start(&[behaviour]) else { return };
        let url = gateway.url();
        let mut stage = stage(gateway, &url).await;
        stage.push_some();
        stage.settles().await;
        stage.push_some();
        let ended = stage.ends().await;
        for ((answered, dropped), emitter) in ended.all_add_up(0).into_iter().zip(EMITTERS) {
            assert!(is_once(&answered.acknowledged), "{emitter}: {answered:?}");
            assert_eq!(dropped > 0, emitter == "once", "{emitter} dropped {dropped}");
            // What the gateway had, but did not acknowledge, is sent again.
            let is_twice = behaviour == "takes" && emitter != "once";
            assert_eq!(is_once(&answered.arrived), !is_twice, "{emitter}: {answered:?}");
        }
    }
}

#[tokio::test]
async fn what_is_refused_for_good_is_rejected_and_what_is_refused_for_now_tried_again() {
    let arguments = ["errors", "spoilt=INVALID_EVENT", "busy=BUFFER_FULL*2"];
    let Some(gateway) = Gateway::start(&arguments) else { return };
    let url = gateway.url();
    let mut stage = stage(gateway, &url).await;
    for _ in 0..2 {
        stage.push_some();
        stage.push(&[("spoilt", 10), ("busy", 10), ("plain", 10), ("busy", 10), ("spoilt", 10)]);
        stage.push_some();
        stage.settles().await;
    }
    let ended = stage.ends().await;
    let dropped = ended.all_add_up(0).map(|(answered, dropped)| {
        assert!(is_once(&answered.acknowledged), "{answered:?}");
        assert_eq!(answered.refused.len(), 4, "{answered:?}");
        dropped
    });
    assert_eq!(dropped, [0, 4, 4, 0], "{EMITTERS:?}");
}

#[tokio::test]
async fn what_is_too_much_at_once_arrives_in_parts_and_what_never_fits_is_rejected() {
    let Some(gateway) = Gateway::start(&["ack"]) else { return };
    let url = gateway.url();
    let mut stage = stage(gateway, &url).await;
    let mut records = [("plain", 400 << 10); 20];
    records[3].1 = 5 << 20;
    stage.push(&records);
    stage.push_some();
    let ended = stage.ends().await;
    for (answered, dropped) in ended.all_add_up(1) {
        assert!(is_once(&answered.arrived), "{answered:?}");
        assert_eq!((answered.acknowledged.len(), dropped), (39, 0));
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_before_or_after_an_answer_costs_nobody_an_event() {
    let Some(gateway) = Gateway::start(&["ack"]) else { return };
    let proxy = Proxy::before(&gateway.url());
    let mut stage = stage(gateway, &proxy.url).await;
    stage.push_some();
    stage.settles().await;
    proxy.cuts_what_is_open();
    stage.push_some();
    stage.settles().await;
    assert_eq!(proxy.connections(), 2 * EMITTERS.len());
    stage.is_heard().await;
    proxy.keeps_answers();
    stage.push_some();
    stage.begins_to_be_heard().await;
    proxy.cuts_now();
    let ended = stage.ends().await;
    for ((answered, dropped), emitter) in ended.all_add_up(0).into_iter().zip(EMITTERS) {
        assert_eq!(dropped, 0, "{emitter}: it sends once more over a fresh stream");
        assert!(!is_once(&answered.acknowledged), "{emitter}: no answer was lost");
    }
}
