//! YAML as a tree in which everything knows where it stands.
//!
//! The parser's own way into typed values stops at the first mistake and
//! forgets positions once it is done. A tree lets us tell all mistakes at
//! once, and point at a value that turns out to be out of its bounds later.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::{DuplicateKeyPolicy, Error, Location, NonFiniteFloatPolicy, Spanned};

use super::problem::{At, Problem};

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) at: At,
    pub(crate) value: Value,
}

/// A value; plain scalars keep their spelling, so that a wrong one can be
/// shown as it was written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool, String),
    Int(i128, String),
    Float(f64, String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
    /// Was wrong, has been told, and is to be skipped.
    Removed,
}

/// A key and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Key {
    pub(crate) at: At,
    pub(crate) name: String,
}

/// One step of a field's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Key(String),
    Index(usize),
}

const MAX_PARTS: usize = 100_000;
const MAX_ALIASES: usize = 1_000;
const MAX_DEPTH: usize = 16;

/// Parses one YAML document; an empty one is a map without keys.
///
/// # Errors
/// The syntax error, or every key that stands twice.
pub(crate) fn parse(text: &str) -> Result<Node, Vec<Problem>> {
    let mut options = serde_saphyr::Options::default();
    options.duplicate_keys = DuplicateKeyPolicy::PassThrough;
    // Told with their bounds, as any other number.
    options.non_finite_float_policy = NonFiniteFloatPolicy::PassThrough;
    options.strict_booleans = true;
    options.underscored_numbers_as_strings = true;
    options.leading_zero_numbers_as_strings = true;
    if let Some(budget) = &mut options.budget {
        // Far more than a configuration needs, and harmless.
        budget.max_events = MAX_PARTS;
        budget.max_aliases = MAX_ALIASES;
        budget.max_anchors = MAX_ALIASES;
        budget.max_depth = MAX_DEPTH;
        budget.flow_nesting_limit = MAX_DEPTH;
    }
    let parsed: Result<Option<Spanned<Raw>>, _> =
        serde_saphyr::from_str_with_options(text, options);
    let node = match parsed {
        Ok(Some(raw)) => raw_node(raw, text),
        Ok(None) => Node { at: At::START, value: Value::Null },
        Err(error) => return Err(vec![syntax_problem(&error)]),
    };
    let mut twice = Vec::new();
    find_duplicates(&node, "", &mut twice);
    if twice.is_empty() { Ok(node) } else { Err(twice) }
}

fn syntax_problem(error: &Error) -> Problem {
    let at = error.location().map(at);
    if let Some(text) = too_much(error) {
        return Problem { at, text };
    }
    let text = error.without_snippet().to_string();
    // The location stands before the text already.
    let text = text.split(" at line ").next().unwrap_or(&text);
    let text = text.lines().next().unwrap_or(text);
    if text.contains("multiple") && text.contains("document") {
        let text =
            "holds several documents (after a line of ---); a configuration is one".to_owned();
        return Problem { at, text };
    }
    // How the scanner says that flow_nesting_limit was passed.
    if text == "recursion limit exceeded" {
        let text = format!("has more than {MAX_DEPTH} levels, one within the other");
        return Problem { at, text };
    }
    Problem { at, text: format!("not valid YAML: {text}") }
}

/// Which of the limits was passed, in words of ours and not the parser's.
fn too_much(mut error: &Error) -> Option<String> {
    while let Error::AliasError { error: inner, .. } | Error::WithSnippet { error: inner, .. } =
        error
    {
        error = inner;
    }
    let (what, found, limit) = match *error {
        Error::Budget { ref breach, .. } => match *breach {
            BudgetBreach::Depth { depth } => ("levels, one within the other", depth, MAX_DEPTH),
            BudgetBreach::Events { events } => {
                ("keys and values, aliases written out", events, MAX_PARTS)
            }
            BudgetBreach::Aliases { aliases } => ("aliases", aliases, MAX_ALIASES),
            BudgetBreach::Anchors { anchors } => ("anchors", anchors, MAX_ALIASES),
            _ => return Some("holds more than a configuration can need".to_owned()),
        },
        Error::AliasReplayLimitExceeded {
            total_replayed_events: found,
            max_total_replayed_events: limit,
            ..
        } => ("keys and values that aliases stand for", found, limit),
        Error::AliasExpansionLimitExceeded {
            expansions, max_expansions_per_anchor: limit, ..
        } => ("aliases of one anchor", expansions, limit),
        Error::AliasReplayStackDepthExceeded { depth, max_depth, .. } => {
            ("aliases, one within the other", depth, max_depth)
        }
        _ => return None,
    };
    Some(format!("has {found} {what}, but may have at most {limit}"))
}

fn at(location: Location) -> At {
    At { line: location.line(), column: location.column() }
}

fn find_duplicates(node: &Node, path: &str, out: &mut Vec<Problem>) {
    match &node.value {
        Value::List(items) => {
            for (i, item) in items.iter().enumerate() {
                find_duplicates(item, &format!("{path}[{i}]"), out);
            }
        }
        Value::Map(members) => {
            for (i, (key, value)) in members.iter().enumerate() {
                let path = join(path, &key.name);
                if let Some((first, _)) = members[..i].iter().find(|(k, _)| k.name == key.name) {
                    out.push(Problem {
                        at: Some(key.at),
                        text: format!(
                            "{path} stands twice; the first is in line {}",
                            first.at.line
                        ),
                    });
                }
                find_duplicates(value, &path, out);
            }
        }
        _ => {}
    }
}

fn join(path: &str, key: &str) -> String {
    let key = vahti_runtime::event::escape_text(key);
    if path.is_empty() { key.into_owned() } else { format!("{path}.{key}") }
}

/// Shows a path, such as `emitters[1].path`.
pub(crate) fn show_path(steps: &[Step]) -> String {
    steps.iter().fold(String::new(), |path, step| match step {
        Step::Key(key) => join(&path, key),
        Step::Index(index) => format!("{path}[{index}]"),
    })
}

/// Reads a path as [`show_path`] writes it.
pub(crate) fn read_path(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    for part in path.split('.') {
        let mut pieces = part.split('[');
        steps.extend(pieces.next().map(|key| Step::Key(key.to_owned())));
        let indices = pieces.filter_map(|piece| piece.trim_end_matches(']').parse().ok());
        steps.extend(indices.map(Step::Index));
    }
    steps
}

impl Node {
    /// Where the value of a path stands, or else the nearest thing around it,
    /// and its path in the file. Indices that come in count only what has not
    /// been removed; those that go out count all, as people do.
    pub(crate) fn locate(&self, steps: &[Step]) -> (At, Vec<Step>) {
        let Some((step, rest)) = steps.split_first() else {
            return (self.at, Vec::new());
        };
        let found = match (step, &self.value) {
            (Step::Key(name), Value::Map(members)) => members
                .iter()
                .find(|(key, _)| key.name == *name)
                .map(|(_, value)| (step.clone(), value)),
            (Step::Index(index), Value::List(items)) => items
                .iter()
                .enumerate()
                .filter(|(_, item)| item.value != Value::Removed)
                .nth(*index)
                .map(|(index, item)| (Step::Index(index), item)),
            _ => None,
        };
        let Some((step, value)) = found else {
            return (self.at, steps.to_vec());
        };
        let (at, mut path) = value.locate(rest);
        path.insert(0, step);
        (at, path)
    }

    /// Whether the file says anything about this path.
    pub(crate) fn contains(&self, steps: &[Step]) -> bool {
        let Some((step, rest)) = steps.split_first() else {
            return !matches!(self.value, Value::Null | Value::Removed);
        };
        match (step, &self.value) {
            (Step::Key(name), Value::Map(members)) => {
                members.iter().any(|(key, value)| key.name == *name && value.contains(rest))
            }
            _ => false,
        }
    }

    /// Has a single value of this key stand for a map with that value below
    /// another key.
    pub(crate) fn lengthen(&mut self, key: &str, below: &str) {
        let Value::Map(members) = &mut self.value else { return };
        for (_, node) in members.iter_mut().filter(|(member, _)| member.name == key) {
            if matches!(node.value, Value::Null | Value::Removed | Value::List(_) | Value::Map(_)) {
                continue;
            }
            let key = Key { at: node.at, name: below.to_owned() };
            node.value = Value::Map(vec![(key, node.clone())]);
        }
    }

    /// Takes a value that was told to be wrong out of the tree; its place in a
    /// list stays. Whether there was anything to take.
    pub(crate) fn remove(&mut self, steps: &[Step]) -> bool {
        let Some((step, rest)) = steps.split_first() else {
            let was_there = self.value != Value::Removed;
            self.value = Value::Removed;
            return was_there;
        };
        match (step, &mut self.value) {
            (Step::Key(name), Value::Map(members)) => {
                if rest.is_empty() {
                    let before = members.len();
                    members.retain(|(key, _)| key.name != *name);
                    return members.len() < before;
                }
                members
                    .iter_mut()
                    .find(|(key, _)| key.name == *name)
                    .is_some_and(|(_, value)| value.remove(rest))
            }
            (Step::Index(index), Value::List(items)) => {
                items.get_mut(*index).is_some_and(|item| item.remove(rest))
            }
            _ => false,
        }
    }
}

/// What the parser hands over, before spellings are put back in.
enum Raw {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

fn raw_node(raw: Spanned<Raw>, text: &str) -> Node {
    let spelling = |otherwise: String| spelling(&raw.defined, text).unwrap_or(otherwise);
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Bool(value) => Value::Bool(value, spelling(value.to_string())),
        Raw::Int(value) => Value::Int(value, spelling(value.to_string())),
        Raw::Float(value) => Value::Float(value, spelling(value.to_string())),
        Raw::Text(value) => Value::Text(value),
        Raw::List(items) => Value::List(items.into_iter().map(|i| raw_node(i, text)).collect()),
        Raw::Map(members) => {
            let member = |(key, value): (Spanned<String>, Spanned<Raw>)| {
                let key = Key { at: at(key.referenced), name: key.value };
                (key, raw_node(value, text))
            };
            Value::Map(members.into_iter().map(member).collect())
        }
    };
    Node { at: at(raw.referenced), value }
}

fn spelling(location: &Location, text: &str) -> Option<String> {
    let start = usize::try_from(location.span().byte_offset()?).ok()?;
    let len = usize::try_from(location.span().byte_len()?).ok()?;
    let spelled = text.get(start..start.checked_add(len)?)?.trim();
    (!spelled.is_empty()).then(|| spelled.to_owned())
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Int(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Int(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(member) = members.next_entry()? {
            map.push(member);
        }
        Ok(Raw::Map(map))
    }
}
