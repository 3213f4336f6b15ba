//! What of one configuration is another in a second one, field by field.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

/// A field that has another value than before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The field, such as `sampling.rules[2].rate`.
    pub path: String,
    /// Its value before, as the configuration has it; `not set` where it had none.
    pub from: String,
    /// Its value now.
    pub to: String,
    /// Whether it goes by that now; else it needs a restart.
    pub applied: bool,
}

/// How a value that is not there is told.
const NOT_SET: &str = "not set";

impl Change {
    /// One that needs a restart, of a text.
    pub(crate) fn named(path: &str, from: &str, to: &str) -> Self {
        let shown = |text: &str| Value::from(text).to_string();
        Change { path: path.to_owned(), from: shown(from), to: shown(to), applied: false }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} → {}", self.path, self.from, self.to)
    }
}

/// All fields that differ, in the order of the fields, as applied. Items of a
/// list are told apart by their place.
#[must_use]
pub fn changes<T: Serialize>(from: &T, to: &T) -> Vec<Change> {
    let tree = |config: &T| serde_json::to_value(config).unwrap_or_default();
    let mut all = Vec::new();
    compare("", Some(&tree(from)), Some(&tree(to)), &mut all);
    all
}

fn compare(path: &str, from: Option<&Value>, to: Option<&Value>, all: &mut Vec<Change>) {
    if from == to {
        return;
    }
    match (from, to) {
        (Some(Value::Object(from)), Some(Value::Object(to))) => {
            let gone = from.keys().filter(|key| !to.contains_key(*key));
            for key in to.keys().chain(gone) {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(&path, from.get(key), to.get(key), all);
            }
        }
        (Some(Value::Array(from)), Some(Value::Array(to)))
            if of_objects(from) && of_objects(to) =>
        {
            for n in 0..from.len().max(to.len()) {
                compare(&format!("{path}[{n}]"), from.get(n), to.get(n), all);
            }
        }
        _ => {
            let shown = |value: Option<&Value>| match value {
                None | Some(Value::Null) => NOT_SET.to_owned(),
                Some(value) => value.to_string(),
            };
            let (path, from, to) = (path.to_owned(), shown(from), shown(to));
            all.push(Change { path, from, to, applied: true });
        }
    }
}

/// Plain values of a list are one value together.
fn of_objects(list: &[Value]) -> bool {
    list.iter().all(Value::is_object)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(from: Value, to: Value) -> Vec<String> {
        changes(&from, &to).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_field_that_differs_is_told_with_both_values() {
        let from = json!({"a": {"b": 1.0, "c": "x"}, "d": ["p", "q"], "e": [{"f": 1}]});
        assert_eq!(told(from.clone(), from.clone()), [""; 0]);
        let to = json!({"a": {"b": 0.5, "c": "x"}, "d": ["p"], "e": [{"f": 2}, {"f": 3}], "g": 4});
        let expected = [
            "a.b: 1.0 → 0.5",
            r#"d: ["p","q"] → ["p"]"#,
            "e[0].f: 1 → 2",
            r#"e[1]: not set → {"f":3}"#,
            "g: not set → 4",
        ];
        assert_eq!(told(from.clone(), to.clone()), expected);
        assert_eq!(told(to, from).last().unwrap(), "g: 4 → not set");
    }
}
