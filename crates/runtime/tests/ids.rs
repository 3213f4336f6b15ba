//! Derived ids are a contract: kinds are added, none changes.
//!
//! Two nodes, or two versions, that know the same facts must derive the same
//! ids. `vectors/ids.json` holds facts and what follows from them;
//! `vectors/check.py` derives the same with another implementation.
#![cfg(not(shuttle))]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::{Value, json};
use vahti_runtime::ids::{
    BootId, EntityId, EventIds, RecordPosition, SpanId, TraceId, identity_hash,
};

const VECTORS: &str = include_str!("vectors/ids.json");
const CHECK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/check.py");

/// The facts of one vector.
struct From<'a>(&'a Value);

impl From<'_> {
    fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap()
    }

    fn number(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap()
    }

    fn small(&self, key: &str) -> u32 {
        self.number(key).try_into().unwrap()
    }

    fn boot_id(&self) -> BootId {
        BootId::parse(self.text("boot_id")).unwrap()
    }

    /// Boot, thread group and start of one incarnation of a process.
    fn process<T>(&self, derive: impl Fn(&BootId, u32, u64) -> T) -> T {
        derive(&self.boot_id(), self.small("tgid"), self.number("start_boot_ns"))
    }

    fn identity_hash(&self) -> String {
        let fields = self.0["fields"].as_array().unwrap();
        let fields: Vec<_> = fields.iter().map(|field| bytes(field.as_str().unwrap())).collect();
        let fields: Vec<&[u8]> = fields.iter().map(Vec::as_slice).collect();
        format!("{:032x}", identity_hash(self.text("kind"), &fields))
    }

    fn event(&self) -> Value {
        let position = RecordPosition {
            cpu: self.small("cpu"),
            boot_ns: self.number("boot_ns"),
            seq: self.number("seq"),
            ordinal: self.small("ordinal"),
        };
        let ids = EventIds::new(&self.boot_id(), self.text("observer"));
        let (id, hash) = ids.derive(self.number("wall_ns"), &position);
        let (span_id, trace_id) = (SpanId::from_hash(hash), TraceId::from_hash(hash));
        json!({
            "id": id.to_string(),
            "span_id": span_id.to_string(),
            "trace_id": trace_id.to_string(),
        })
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).unwrap());
    digits.map(|two| u8::from_str_radix(two, 16).unwrap()).collect()
}

fn derive(what: &str, from: &From<'_>) -> Value {
    let entity = |id: EntityId| format!("{id:?}");
    match what {
        "identity_hash" => from.identity_hash().into(),
        "trace_of_process" => from.process(TraceId::of_process).to_string().into(),
        "entity_of_process" => entity(from.process(EntityId::process)).into(),
        "span_of_oom_kill" => from.process(SpanId::of_oom_kill).to_string().into(),
        "span_of_process_end" => from.process(SpanId::of_process_end).to_string().into(),
        "span_of_container_end" => {
            SpanId::of_container_end(from.text("container_id")).to_string().into()
        }
        "entity_of_container" => entity(EntityId::container(from.text("container_id"))).into(),
        "entity_of_name" => entity(EntityId::named(from.text("name"))).into(),
        "event" => from.event(),
        other => panic!("{other} is derived nowhere"),
    }
}

#[test]
fn every_vector_is_derived_as_it_was_written_down() {
    let vectors: Vec<Value> = serde_json::from_str(VECTORS).unwrap();
    let mut derived = BTreeSet::new();
    for vector in &vectors {
        let what = vector["derive"].as_str().unwrap();
        assert_eq!(derive(what, &From(&vector["from"])), vector["expect"], "{vector}");
        derived.insert(what);
    }
    assert_eq!(derived.len(), 9, "each derivation has its vectors: {derived:?}");
}

#[test]
fn where_fields_end_is_part_of_the_identity() {
    let whole = identity_hash("x", &[b"4f1c"]);
    assert_ne!(whole, identity_hash("x", &[b"4f", b"1c"]));
    assert_ne!(whole, identity_hash("x", &[b"4f1c", b""]));
    assert_ne!(whole, identity_hash("x4", &[b"f1c"]));
}

#[test]
fn ulids_sort_by_their_time() {
    let ids = EventIds::new(&BootId::default(), "o");
    let position = RecordPosition { cpu: 0, boot_ns: 0, seq: 0, ordinal: 0 };
    let texts: Vec<_> = [0, 1, 31, 32, 1_000, u64::MAX / 1_000_000]
        .map(|ms| ids.derive(ms * 1_000_000, &position).0.to_string())
        .to_vec();
    assert!(texts.is_sorted(), "{texts:?}");
    assert!(texts.iter().all(|text| text.len() == 26));
}

#[test]
fn another_implementation_derives_the_same() {
    let has_xxhash = Command::new("python3").args(["-c", "import xxhash"]).output();
    if !has_xxhash.is_ok_and(|output| output.status.success()) {
        println!("not run: python3 with the package xxhash is not here");
        return;
    }
    let output = Command::new("python3").arg(CHECK).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
