//! The chain behind an event: up by its parents to the root, then down again
//! to all that came of that.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};
use vahti_exporters::store::{ReadError, Reader, Row};
use vahti_exporters::to_text_line;
use vahti_runtime::event::{Event, LinkKind, escape_text, from_json_line};
use vahti_runtime::ids::{SpanId, TraceId};

/// How many events of a trace are looked at, and shown.
const MAX_EVENTS: u64 = 1_000;
/// How many causes are climbed.
const MAX_CLIMB: usize = 64;

/// Events by what caused them.
pub(super) struct Tree {
    root: Node,
    /// The span that nobody in the store has.
    missing: Option<(TraceId, SpanId)>,
    cut: bool,
}

struct Node {
    row: Row,
    event: Option<Box<Event>>,
    asked_for: bool,
    /// What may have caused it: what is known of that, and the link's rule.
    links: Vec<(Value, Option<Row>)>,
    effects: Vec<Node>,
}

/// The tree that an event stands in.
pub(super) fn of(reader: &Reader, row: Row) -> Result<Tree, ReadError> {
    let asked = row.clone();
    let mut top = row;
    let mut event = parsed(&top);
    let mut seen: HashSet<u64> = [top.seq].into();
    let mut missing = None;
    for _ in 0..MAX_CLIMB {
        let Some((trace, parent)) =
            event.as_ref().and_then(|e| Some((e.trace_id, e.parent_span_id?)))
        else {
            break;
        };
        let Some(cause) = reader.span(&trace.to_string(), &parent.to_string())? else {
            missing = Some((trace, parent));
            break;
        };
        // A ring of causes has no root; where it closes is as good as any.
        if !seen.insert(cause.seq) {
            break;
        }
        event = parsed(&cause);
        top = cause;
    }
    let trace = event.as_ref().map(|event| event.trace_id.to_string()).unwrap_or_default();
    let mut rows = reader.chain(&trace, MAX_EVENTS)?;
    let cut = rows.len() as u64 == MAX_EVENTS;
    rows.retain(|row| row.seq != top.seq);
    // The one that was asked for stands in it, whatever its priority.
    if top.seq != asked.seq && rows.iter().all(|row| row.seq != asked.seq) {
        rows.push(asked.clone());
    }
    let mut by_parent: HashMap<SpanId, Vec<(Row, Box<Event>)>> = HashMap::new();
    for row in rows {
        if let Some(event) = parsed(&row)
            && let Some(parent) = event.parent_span_id
        {
            by_parent.entry(parent).or_default().push((row, event));
        }
    }
    let root = node(reader, top, event, &asked.id, &mut by_parent, 0)?;
    Ok(Tree { root, missing, cut })
}

fn parsed(row: &Row) -> Option<Box<Event>> {
    from_json_line(row.json.as_bytes()).ok().map(Box::new)
}

fn node(
    reader: &Reader,
    row: Row,
    event: Option<Box<Event>>,
    asked_for: &str,
    by_parent: &mut HashMap<SpanId, Vec<(Row, Box<Event>)>>,
    depth: usize,
) -> Result<Node, ReadError> {
    let mut effects = Vec::new();
    let mut links = Vec::new();
    if let Some(event) = &event {
        for link in &event.links {
            let (trace, span) = (link.trace_id.to_string(), link.span_id.to_string());
            let kind = match link.kind {
                LinkKind::PossibleCause => "possible cause",
            };
            let said = json!({"kind": kind, "rule": link.rule, "age_us": link.age_ns / 1_000,
                              "trace_id": trace, "span_id": span});
            links.push((said, reader.span(&trace, &span)?));
        }
        // Each is taken out, so that a ring of causes ends.
        let below = event.span_id.and_then(|span| by_parent.remove(&span));
        for (row, event) in below.into_iter().flatten().filter(|_| depth < MAX_CLIMB) {
            effects.push(node(reader, row, Some(event), asked_for, by_parent, depth + 1)?);
        }
    }
    let asked_for = row.id == asked_for;
    Ok(Node { row, event, asked_for, links, effects })
}

impl Tree {
    pub(super) fn to_text(&self) -> String {
        let mut out = String::new();
        if let Some((trace, span)) = self.missing {
            out.push_str(&format!(
                "(its cause, span {span} of trace {trace}, is not in this store: another node \
                 saw it, or it is too old)\n"
            ));
        }
        self.root.write("", "", &mut out);
        if self.cut {
            out.push_str(&format!("(only {MAX_EVENTS} events of the trace are shown)\n"));
        }
        out
    }

    pub(super) fn to_json(&self) -> Value {
        let mut tree = self.root.to_json();
        if let Some((trace, span)) = self.missing {
            let missing = json!({"trace_id": trace.to_string(), "span_id": span.to_string()});
            tree["missing_cause"] = missing;
        }
        tree
    }
}

impl Node {
    fn line(&self) -> String {
        let mut line = Vec::new();
        match &self.event {
            Some(event) => to_text_line(event, false, &mut line),
            None => line.extend_from_slice(escape_text(&self.row.json).as_bytes()),
        }
        String::from_utf8_lossy(&line).trim_end().to_owned()
    }

    fn write(&self, branch: &str, below: &str, out: &mut String) {
        let mark = if self.asked_for { "> " } else { "" };
        out.push_str(&format!("{branch}{mark}{}\n", self.line()));
        out.push_str(&format!("{below}  id {}\n", self.row.id));
        for (said, row) in &self.links {
            let text = |key: &str| escape_text(said[key].as_str().unwrap_or_default()).into_owned();
            let what = match row {
                Some(row) => row.id.clone(),
                None => format!("span {}, not in this store", text("span_id")),
            };
            let age = said["age_us"].as_u64().unwrap_or(0) as f64 / 1e6;
            out.push_str(&format!(
                "{below}  {}: {what} (by {}, {age:.1} s before)\n",
                text("kind"),
                text("rule")
            ));
        }
        for (i, effect) in self.effects.iter().enumerate() {
            let (branch, deeper) =
                if i + 1 == self.effects.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            effect.write(&format!("{below}{branch}"), &format!("{below}{deeper}"), out);
        }
    }

    fn to_json(&self) -> Value {
        let event = serde_json::from_str(&self.row.json).unwrap_or(Value::Null);
        let mut node = json!({"event": event, "asked_for": self.asked_for});
        if !self.links.is_empty() {
            let links = self.links.iter().map(|(said, row)| {
                let mut link = said.clone();
                link["id"] = row.as_ref().map_or(Value::Null, |row| row.id.clone().into());
                link
            });
            node["links"] = links.collect();
        }
        node["effects"] = self.effects.iter().map(Node::to_json).collect();
        node
    }
}
