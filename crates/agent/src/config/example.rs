//! The commented example and the JSON Schema, generated from the types.

use schemars::Schema;
use serde_json::{Map, Value, json};

use super::{Config, EmitterType, OF_TYPES, event_types, subtypes};

/// How wide comments are, in characters.
const WIDTH: usize = 78;

/// The JSON Schema of the configuration.
pub(crate) fn schema() -> Value {
    let mut schema = schemars::schema_for!(Config).to_value();
    // The runtime takes rules about events of any observer; here they are known.
    if let Some(rule) = schema.pointer_mut("/$defs/SamplingRule") {
        let types = event_types();
        rule["properties"]["event_type"]["enum"] = json!(types);
        let of_type = types.iter().map(|event_type| {
            let mut subtypes = subtypes(event_type);
            subtypes.insert(0, "");
            json!({"properties": {
                "event_type": {"const": event_type},
                "subtype": {"enum": subtypes},
            }})
        });
        rule["oneOf"] = of_type.collect();
    }
    schema
}

/// Adds which keys are for emitters of which type.
pub(super) fn describe_types(schema: &mut Schema) {
    let types = [EmitterType::Stdout, EmitterType::File, EmitterType::Otlp, EmitterType::None];
    let rules = types.map(|kind| {
        let others = OF_TYPES.iter().filter(|(_, of)| !of.contains(&kind));
        let left_out: Map<String, Value> =
            others.map(|(key, _)| ((*key).to_owned(), json!({"type": "null"}))).collect();
        let mut then = json!({"properties": left_out});
        let required = match kind {
            EmitterType::File => Some("path"),
            EmitterType::Polku => Some("endpoint"),
            _ => None,
        };
        if let Some(key) = required {
            then["required"] = json!([key]);
            then["properties"][key] = json!({"type": "string"});
        }
        json!({"if": {"properties": {"type": {"const": kind}}}, "then": then})
    });
    schema.insert("allOf".to_owned(), json!(rules));
}

/// A header as people write it.
pub(super) fn header() -> Value {
    json!({"api-key": {"file": "/run/secrets/otlp-key"}})
}

/// A file of trust as people name it.
pub(super) fn trust() -> Value {
    json!({"ca": "/etc/vahti/ca.pem"})
}

/// A configuration file with every key, its description and its default. Keys
/// that are not set by default are commented out.
pub(crate) fn example() -> String {
    let schema = schema();
    let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
    let mut writer = Writer { root: &schema, out: String::new(), told: Vec::new() };
    writer.comment("", description(&schema));
    writer.out.push('\n');
    writer.members(&schema, &defaults, Indent::default());
    writer.out
}

struct Writer<'a> {
    root: &'a Value,
    out: String,
    /// The schemas whose keys were described already.
    told: Vec<&'a Value>,
}

/// What stands before a line.
#[derive(Default, Clone)]
struct Indent {
    /// Before everything.
    outer: String,
    /// Whether everything is an example, and hence commented out.
    commented: bool,
    /// Behind that, before the next key only: a list's dash.
    dash: bool,
    /// Behind that.
    inner: String,
}

impl Indent {
    /// Before a key.
    fn key(&mut self) -> String {
        let dash = if std::mem::take(&mut self.dash) { "- " } else { "" };
        let inner = self.inner.len() - dash.len();
        format!("{}{}{dash}", self.mark(), &self.inner[..inner])
    }

    /// Before a comment.
    fn comment(&self) -> String {
        let dash = if self.dash { 2 } else { 0 };
        format!("{}{}", self.mark(), &self.inner[..self.inner.len() - dash])
    }

    fn mark(&self) -> String {
        let mark = if self.commented { "# " } else { "" };
        format!("{}{mark}", self.outer)
    }

    fn deeper(&self) -> Indent {
        Indent { dash: false, inner: format!("{}  ", self.inner), ..self.clone() }
    }

    fn item(&self, commented: bool) -> Indent {
        let mut item = self.deeper();
        if commented && !self.commented {
            item.outer = std::mem::take(&mut item.inner);
            item.commented = true;
        }
        item.inner.push_str("  ");
        item.dash = true;
        item
    }
}

fn description(schema: &Value) -> &str {
    schema["description"].as_str().unwrap_or_default()
}

impl<'a> Writer<'a> {
    /// What a schema refers to, or itself.
    fn resolve(&self, schema: &'a Value) -> &'a Value {
        let pointer = schema["$ref"].as_str().and_then(|r| r.strip_prefix('#'));
        let first = |list: &'a Value| list.as_array().and_then(|list| list.first());
        match pointer.and_then(|pointer| self.root.pointer(pointer)) {
            Some(target) => self.resolve(target),
            None if has_members(schema) => schema,
            None => match first(&schema["anyOf"]).or_else(|| first(&schema["allOf"])) {
                Some(inner) => self.resolve(inner),
                None => schema,
            },
        }
    }

    /// Every key of a map, with its description before it; but once only.
    fn members(&mut self, schema: &'a Value, value: &Value, mut indent: Indent) {
        let schema = self.resolve(schema);
        let Some(properties) = schema["properties"].as_object() else {
            return;
        };
        let told = self.told.iter().any(|known| std::ptr::eq(*known, schema));
        self.told.push(schema);
        for (i, (key, property)) in properties.iter().enumerate() {
            // A blank line before each key of the top.
            if i > 0 && indent.comment().is_empty() {
                self.out.push('\n');
            }
            let target = self.resolve(property);
            if !told {
                self.comment(&indent.comment(), description(property));
                self.choices(&indent.comment(), target);
            }
            let example = example_of(property, target);
            match value.get(key) {
                Some(value) => self.member(key, (target, value), &mut indent, ""),
                None if told => {}
                None => {
                    let nothing = Value::Null;
                    self.member(key, (target, example.unwrap_or(&nothing)), &mut indent, "# ");
                }
            }
        }
    }

    fn member(
        &mut self,
        key: &str,
        (target, value): (&'a Value, &Value),
        indent: &mut Indent,
        mark: &str,
    ) {
        let before = indent.key();
        let item_schema = self.resolve(&target["items"]);
        match value {
            // One that is commented out takes one line.
            Value::Object(members) if !members.is_empty() && mark.is_empty() => {
                self.line(&before, mark, &format!("{key}:"));
                self.members(target, value, indent.deeper());
            }
            Value::Array(items) if items.is_empty() && has_members(item_schema) => {
                self.line(&before, mark, &format!("{key}: []"));
                self.example_item(item_schema, indent);
            }
            Value::Array(items) if has_members(item_schema) => {
                self.line(&before, mark, &format!("{key}:"));
                for item in items {
                    self.members(item_schema, item, indent.item(false));
                }
            }
            value => self.line(&before, mark, format!("{key}: {}", scalar(value)).trim_end()),
        }
    }

    /// An item of a list that is empty by default, commented out.
    fn example_item(&mut self, schema: &'a Value, indent: &Indent) {
        if self.told.iter().any(|known| std::ptr::eq(*known, schema)) {
            return;
        }
        let properties = schema["properties"].as_object().into_iter().flatten();
        let members: Map<String, Value> = properties
            .filter_map(|(key, property)| {
                let value = example_of(property, property).or_else(|| property.get("default"))?;
                Some((key.clone(), value.clone()))
            })
            .collect();
        self.comment(&indent.comment(), "One of them, in full:");
        self.members(schema, &Value::Object(members), indent.item(true));
    }

    fn choices(&mut self, indent: &str, target: &Value) {
        let variants = target["oneOf"].as_array().into_iter().flatten();
        let words: Vec<(&str, &str)> = variants
            .filter_map(|variant| Some((variant["const"].as_str()?, description(variant))))
            .collect();
        for (word, meaning) in words {
            self.comment(indent, &format!("  {word}: {meaning}"));
        }
    }

    fn line(&mut self, indent: &str, mark: &str, text: &str) {
        self.out.push_str(indent);
        self.out.push_str(mark);
        self.out.push_str(text);
        self.out.push('\n');
    }

    /// A comment, wrapped; leading spaces of the text indent all its lines.
    fn comment(&mut self, indent: &str, text: &str) {
        let inner = &text[..text.len() - text.trim_start().len()];
        let room = WIDTH.saturating_sub(indent.len() + inner.len() + 2);
        let mut line = String::new();
        let mut lines = Vec::new();
        for word in text.split_whitespace() {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > room {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.extend((!line.is_empty()).then_some(line));
        for line in lines {
            self.line(indent, "# ", &format!("{inner}{line}"));
        }
    }
}

fn has_members(schema: &Value) -> bool {
    schema["properties"].is_object()
}

/// An example from the schema, for what has no default.
fn example_of<'v>(property: &'v Value, target: &'v Value) -> Option<&'v Value> {
    let examples = |schema: &'v Value| schema["examples"].as_array().and_then(|list| list.first());
    examples(property).or_else(|| examples(target))
}

/// A value as YAML; JSON is YAML, but for text that needs no quotes.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(scalar).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Null => String::new(),
        value => value.to_string(),
    }
}

/// Whether YAML takes this for text without quotes.
fn is_plain(text: &str) -> bool {
    let mut bytes = text.bytes();
    let starts_well = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'/');
    let not_a_number = text.bytes().any(|b| b.is_ascii_alphabetic());
    let no_word = !matches!(text, "true" | "false" | "null");
    starts_well
        && not_a_number
        && no_word
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b))
}
