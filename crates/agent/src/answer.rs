//! What an agent answered, read from JSON: it may be of another version.

use serde_json::Value;
use vahti_runtime::event::escape_text;

/// All of a list; nothing of what is none.
pub(crate) fn members(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// A text, as a terminal may show it; an empty one of what is none.
pub(crate) fn text(value: &Value) -> String {
    escape_text(value.as_str().unwrap_or_default()).into_owned()
}
