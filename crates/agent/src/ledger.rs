//! How `vahti ledger` shows the accounting: every line as an addition.
//!
//! Read from JSON and not from the runtime's types, since the agent that
//! answers may be of another version.

use serde_json::{Value, json};
use vahti_exporters::store::{Filter, Reader, State};
use vahti_runtime::clock::rfc3339;
use vahti_runtime::event::escape_text;

use crate::answer::members;
use crate::cli::LedgerArgs;
use crate::output::{Failed, Outcome, Printed, SUCCESS, print, print_some};
use crate::table::grouped;
use crate::{control, history, socket, store_path};

/// Prints the accounting of the agent that runs, else as the store has it; then
/// follows, if asked to, what is committed.
pub(crate) fn ledger(args: &LedgerArgs) -> Outcome {
    // Where to follow from, before the accounting: nothing falls in between.
    let followed = if args.follow {
        let opened = history::open_to_follow(args.store.clone(), args.socket.clone())?;
        let Some((reader, place)) = opened else { return Ok(SUCCESS) };
        let seen = reader.last_seq().map_err(history::unreadable)?;
        Some((reader, place, seen))
    } else {
        None
    };
    let (ledger, note) = accounting(args)?;
    let text = if args.json { format!("{ledger:#}\n") } else { note + &to_text(&ledger) };
    let Some((reader, place, seen)) = followed else { return print(&text) };
    if print_some(text.as_bytes())? == Printed::Closed {
        return Ok(SUCCESS);
    }
    history::follow(reader, place, seen, |reader, after| {
        let filter = Filter { after_seq: Some(after), limit: Some(1_000), ..Filter::default() };
        let rows = reader.events(&filter)?;
        let mut out = String::new();
        for row in &rows {
            let event: Value = serde_json::from_str(&row.json).unwrap_or_default();
            let word = |key: &str| event[key].as_str().unwrap_or("?").to_owned();
            let (priority, subtype) = (word("priority"), word("subtype"));
            if args.json {
                let committed = json!({"id": row.id, "seq": row.seq, "priority": priority,
                                       "subtype": subtype});
                out.push_str(&format!("{}\n", json!({ "committed": committed })));
            } else {
                let line = format!("{} {priority} {subtype}", row.id);
                out.push_str(&format!("{}\n", escape_text(&line)));
            }
        }
        let more = rows.len() == 1_000;
        Ok((rows.last().map(|row| row.seq), more, print_some(out.as_bytes())))
    })
}

/// The ledger, and what is to be said of it.
fn accounting(args: &LedgerArgs) -> Result<(Value, String), Failed> {
    let asked = match socket::path(args.socket.clone())? {
        Some(path) => control::ask(&path, "ledger").map_err(|error| error.to_string()),
        None => Err(socket::NOT_KNOWN.to_owned()),
    };
    let why = match asked {
        Ok(answer) => return Ok((answer, String::new())),
        // Whoever names a socket wants that agent, and no other's store.
        Err(why) if args.socket.is_some() && args.store.is_none() => {
            return Err(Failed::failure(why));
        }
        Err(why) => why,
    };
    let path = store_path::to_read(args.store.clone())?;
    let no_store = |more: Failed| more.after(&format!("{why}; and its store: "));
    let unreadable = |error| no_store(store_path::why_unreadable(&path, &error));
    let snapshot = Reader::open(&path).and_then(|reader| reader.snapshot()).map_err(unreadable)?;
    let Some(snapshot) = snapshot else {
        return Err(no_store(Failed::failure("no ledger was committed to it yet")));
    };
    let mut ledger: Value = serde_json::from_str(&snapshot.json).unwrap_or_default();
    let agent = State::of(&path).ok().and_then(|state| state.agent);
    let (word, how) = match agent {
        Some(_) => ("silent", "writes to its store and does not answer"),
        None if snapshot.running => ("died", "did not end as it should"),
        None => ("ended", "has ended"),
    };
    let when = rfc3339(snapshot.time_ns);
    if let Some(members) = ledger.as_object_mut() {
        members.insert("agent".to_owned(), json!({"state": word, "as_of": when}));
    }
    Ok((ledger, format!("the agent {how}; its ledger as of {when}\n\n")))
}

/// The lines of an observer: name, the whole, and the parts that add up to it.
const LINES: [(&str, &str, &[&str]); 4] = [
    ("kernel", "attempted", &["submitted", "lost"]),
    ("ring", "submitted", &["received", "in_ring", "abandoned"]),
    ("records", "received", &["ignored", "failed", "processed", "processing"]),
    ("events", "produced", &["sampled_out", "waiting", "folding", "routed"]),
];

const LANE: (&str, &[&str]) =
    ("routed", &["delivered", "rejected", "dropped", "stored", "queued", "in_flight"]);

/// The ledger as a table of at most 80 columns.
pub(crate) fn to_text(ledger: &Value) -> String {
    let mut out = String::new();
    for observer in members(&ledger["observers"]) {
        let name = escape_text(observer["observer"].as_str().unwrap_or("?"));
        out.push_str(&format!(
            "observer {name}{:>w$}{:>17}\n",
            "occurrences",
            "envelopes",
            w = 51 - name.chars().count()
        ));
        for (line, whole, parts) in LINES {
            if observer[line].is_object() {
                addition(&mut out, line, &observer[line], whole, parts);
            }
        }
        for lane in members(&observer["lanes"]) {
            let emitter = escape_text(lane["emitter"].as_str().unwrap_or("?"));
            addition(&mut out, &format!("lane to {emitter}"), lane, LANE.0, LANE.1);
        }
        out.push('\n');
    }
    if ledger["store"]["lanes"].is_array() {
        out.push_str(&format!("store{:>55}{:>17}\n", "occurrences", "envelopes"));
        if ledger["store"]["open"] == false {
            out.push_str("  (it could not be opened yet: `vahti doctor` tells why)\n");
        }
        for lane in members(&ledger["store"]["lanes"]) {
            let emitter = escape_text(lane["emitter"].as_str().unwrap_or("?"));
            let name = if emitter == "(store)" {
                "committed".to_owned()
            } else {
                format!("owed to {emitter}")
            };
            addition(&mut out, &name, lane, LANE.0, LANE.1);
        }
        out.push('\n');
    }
    if out.is_empty() {
        out.push_str("no observer is running\n");
    }
    out
}

/// Occurrences, and envelopes where they are counted too.
#[derive(Clone, Copy, Default)]
struct Amount {
    occurrences: u64,
    envelopes: Option<u64>,
}

impl Amount {
    /// Of a number, a tally, or a list of either with reasons.
    fn of(value: &Value) -> Self {
        if let Some(items) = value.as_array() {
            return items.iter().map(Amount::of).fold(Amount::default(), Amount::plus);
        }
        let number = |key: &str| value[key].as_u64();
        Amount {
            occurrences: value
                .as_u64()
                .or_else(|| number("occurrences"))
                .or_else(|| number("records"))
                .unwrap_or(0),
            envelopes: number("envelopes"),
        }
    }

    fn plus(self, other: Amount) -> Self {
        Amount {
            occurrences: self.occurrences.saturating_add(other.occurrences),
            envelopes: match (self.envelopes, other.envelopes) {
                (None, None) => None,
                (a, b) => Some(a.unwrap_or(0).saturating_add(b.unwrap_or(0))),
            },
        }
    }
}

fn addition(out: &mut String, title: &str, line: &Value, whole: &str, parts: &[&str]) {
    out.push_str(&format!("  {title}\n"));
    let total = Amount::of(&line[whole]);
    row(out, "    ", whole, total);
    let mut sum: u64 = 0;
    for (i, part) in parts.iter().enumerate() {
        let amount = Amount::of(&line[part]);
        sum = sum.saturating_add(amount.occurrences);
        row(out, if i == 0 { "    = " } else { "    + " }, part, amount);
        for reason in members(&line[part]) {
            let amount = Amount::of(reason);
            if amount.occurrences > 0 {
                row(out, "          of it ", &reason_of(reason), amount);
            }
        }
    }
    let difference = i128::from(total.occurrences) - i128::from(sum);
    let sign = if difference < 0 { "-" } else { "" };
    let size = u64::try_from(difference.unsigned_abs()).unwrap_or(u64::MAX);
    out.push_str(&format!("    {:40}{:>16}\n", "difference", format!("{sign}{}", grouped(size))));
    if let Some(missed) = line["missed"].as_u64() {
        row(out, "    beside it ", "missed", Amount { occurrences: missed, envelopes: None });
    }
}

fn row(out: &mut String, lead: &str, name: &str, amount: Amount) {
    let name = format!("{lead}{}", escape_text(name));
    let envelopes = amount.envelopes.map(grouped).unwrap_or_default();
    let row = format!("{name:44}{:>16}{envelopes:>17}", grouped(amount.occurrences));
    out.push_str(row.trim_end());
    out.push('\n');
}

fn reason_of(reason: &Value) -> String {
    let words = ["stage", "reason", "priority"].map(|key| reason[key].as_str().unwrap_or_default());
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_line_is_an_addition_with_its_difference() {
        let tally = |n: u64| json!({"occurrences": n, "envelopes": n / 100});
        let ledger = json!({"observers": [{
            "observer": "network",
            "kernel": {"attempted": 20_000, "submitted": 19_990, "lost": 10, "missed": 1},
            "records": {
                "received": 19_990, "ignored": 90, "processed": 19_898, "processing": 0,
                "failed": [{"reason": "malformed", "records": 3}, {"reason": "panic", "records": 0}],
            },
            "events": {"produced": tally(19_900), "sampled_out": tally(0), "waiting": tally(0),
                       "folding": tally(0), "routed": tally(19_900)},
            "lanes": [{
                "emitter": "stdout", "routed": tally(19_900), "delivered": tally(19_000),
                "rejected": tally(0), "stored": tally(0), "queued": tally(0), "in_flight": tally(0),
                "dropped": [{"stage": "queue", "reason": "queue_items", "priority": "normal",
                             "occurrences": 900, "envelopes": 9}],
            }],
        }]});
        let text = to_text(&ledger);
        let squeezed: Vec<String> =
            text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for line in [
            "observer network occurrences envelopes",
            "attempted 20,000",
            "= submitted 19,990",
            "+ lost 10",
            "beside it missed 1",
            "of it malformed 3",
            "difference -1",
            "+ dropped 900 9",
            "of it queue queue_items normal 900 9",
            "lane to stdout",
        ] {
            assert!(squeezed.iter().any(|l| l == line), "{line:?} is missing in\n{text}");
        }
        assert_eq!(squeezed.iter().filter(|l| *l == "difference 0").count(), 3);
        assert!(!text.contains("panic"), "reasons that never happened are left out");
        assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
    }

    #[test]
    fn a_store_that_is_not_open_is_said_not_to_be() {
        let text = |open: Value| to_text(&json!({"store": {"lanes": [], "open": open}}));
        assert!(text(json!(false)).contains("could not be opened yet"));
        for open in [json!(true), json!(null)] {
            assert!(!text(open).contains("opened"), "those of older agents do not tell");
        }
    }

    #[test]
    fn what_is_no_ledger_does_no_harm() {
        for ledger in [json!(null), json!([]), json!({"observers": [1, {"observer": "a\u{1b}"}]})] {
            assert!(!to_text(&ledger).contains('\u{1b}'));
        }
    }
}
