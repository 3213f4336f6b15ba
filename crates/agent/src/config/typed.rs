//! From the tree to the types, with errors that name path and place.

use std::fmt::{self, Display};

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use vahti_runtime::event::escape_text;

use super::problem::{At, Problem, nearest, one_of};
use super::tree::{Node, Step, Value, show_path};

/// The first mistake that stands in the way of a typed value.
#[derive(Debug)]
pub(crate) struct Mistake {
    /// Where; not known until the error leaves the value at fault.
    at: Option<At>,
    /// From the root to the value at fault.
    pub(crate) path: Vec<Step>,
    /// What follows the path in the text.
    text: String,
    /// The value, where the field's own bound says more than its type.
    pub(crate) value: Option<String>,
    /// The key that is not there.
    lacks: Option<&'static str>,
}

/// Below these keys stands what nobody else is to know.
const MAY_BE_SECRET: [&str; 2] = ["headers", "tls"];

const MUST_BE: &str = ", but must be ";

impl Mistake {
    fn new(text: String) -> Self {
        Mistake { at: None, path: Vec::new(), text, value: None, lacks: None }
    }

    /// Whether it is only there because an earlier one was taken out.
    pub(crate) fn follows_from(&self, earlier: &Mistake) -> bool {
        let Some(key) = self.lacks else {
            return false;
        };
        match earlier.path.strip_prefix(self.path.as_slice()) {
            Some([Step::Key(removed), ..]) => removed == key,
            _ => false,
        }
    }

    fn at(mut self, at: At) -> Self {
        self.at.get_or_insert(at);
        self
    }

    fn inside(mut self, step: Step) -> Self {
        if let Step::Key(key) = &step
            && MAY_BE_SECRET.contains(&&**key)
        {
            self.conceal();
        }
        self.path.insert(0, step);
        self
    }

    /// Leaves out the value: what is a secret may stand in a wrong place.
    fn conceal(&mut self) {
        self.value = None;
        self.text = match self.text.find(MUST_BE) {
            Some(at) => format!(" is (hidden){}", self.text.get(at..).unwrap_or_default()),
            None => " is (hidden), but must be a text, {file: PATH} or {env: NAME}".to_owned(),
        };
        for step in &mut self.path {
            if let Step::Key(key) = step
                && !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            {
                *key = "(hidden)".to_owned();
            }
        }
    }

    /// As people see it.
    pub(crate) fn problem(&self) -> Problem {
        let path = if self.path.is_empty() {
            "the configuration".to_owned()
        } else {
            show_path(&self.path)
        };
        Problem { at: self.at, text: format!("{path}{}", self.text) }
    }
}

impl Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem().text)
    }
}

impl std::error::Error for Mistake {}

impl de::Error for Mistake {
    fn custom<T: Display>(message: T) -> Self {
        Mistake::new(format!(": {}", escape_text(&message.to_string())))
    }

    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn Expected) -> Self {
        Mistake::new(format!(": expected {expected}"))
    }

    fn invalid_value(value: de::Unexpected<'_>, _: &dyn Expected) -> Self {
        let shown = match value {
            de::Unexpected::Str(text) => short(text),
            other => other.to_string(),
        };
        let text = format!(" is {shown}, which is more than can be counted");
        Mistake { value: Some(shown), ..Mistake::new(text) }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let shown = escape_text(variant);
        let meant = nearest(variant, expected)
            .map(|word| format!("; did you mean {word}?"))
            .unwrap_or_default();
        let may = one_of(expected);
        Mistake::new(format!(" is \"{shown}\"{MUST_BE}{may}{meant}"))
    }

    fn missing_field(field: &'static str) -> Self {
        Mistake { lacks: Some(field), ..Mistake::new(format!(" lacks the key {field}")) }
    }
}

/// A text, or the beginning of one.
fn short(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("\"{}{more}\"", escape_text(&short))
}

fn unknown_key(name: &str, known: &[&str]) -> String {
    match nearest(name, known) {
        Some(word) => format!(" is not a known key; did you mean {word}?"),
        None => format!(" is not a known key; known here are {}", known.join(", ")),
    }
}

impl Node {
    /// The value as it was written, for errors.
    fn shown(&self) -> String {
        match &self.value {
            Value::Null => "empty".to_owned(),
            Value::Bool(_, spelling) | Value::Int(_, spelling) | Value::Float(_, spelling) => {
                escape_text(spelling).into_owned()
            }
            Value::Text(text) => short(text),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map of keys".to_owned(),
            Value::Removed => "removed".to_owned(),
        }
    }

    fn must_be(&self, what: &str) -> Mistake {
        Mistake::new(format!(" is {}{MUST_BE}{what}", self.shown())).at(self.at)
    }

    fn must_be_number(&self, what: &str) -> Mistake {
        Mistake { value: Some(self.shown()), ..self.must_be(what) }
    }

    fn integer<T: TryFrom<i128>>(&self, bounds: &str) -> Result<T, Mistake> {
        match &self.value {
            Value::Int(value, _) => T::try_from(*value).map_err(|_| self.must_be_number(bounds)),
            _ => Err(self.must_be_number("a whole number")),
        }
    }

    fn text(&self) -> Result<&str, Mistake> {
        match &self.value {
            Value::Text(text) => Ok(text),
            // A name may look like a number, and a duration without its unit
            // is better told by whoever knows durations.
            Value::Bool(_, spelling) | Value::Int(_, spelling) | Value::Float(_, spelling) => {
                Ok(spelling)
            }
            _ => Err(self.must_be("text")),
        }
    }
}

macro_rules! integers {
    ($($method:ident $visit:ident $type:ty, $bounds:literal;)*) => {
        $(
            fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
                visitor
                    .$visit(self.integer::<$type>($bounds)?)
                    .map_err(|e: Mistake| e.at(self.at))
            }
        )*
    };
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Mistake;

    integers! {
        deserialize_u8 visit_u8 u8, "a whole number from 0 to 255";
        deserialize_u16 visit_u16 u16, "a whole number from 0 to 65535";
        deserialize_u32 visit_u32 u32, "a whole number from 0 to 4294967295";
        deserialize_u64 visit_u64 u64, "a whole number, 0 or more";
        deserialize_i64 visit_i64 i64, "a whole number of at most 63 bits";
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match &self.value {
            Value::Null | Value::Removed => visitor.visit_unit(),
            Value::Bool(value, _) => visitor.visit_bool(*value),
            Value::Int(value, _) => visitor.visit_i128(*value),
            Value::Float(value, _) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_borrowed_str(text),
            Value::List(_) => return self.deserialize_seq(visitor),
            Value::Map(_) => return self.deserialize_map(visitor),
        }
        .map_err(|e: Mistake| e.at(self.at))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.value {
            Value::Bool(value, _) => visitor.visit_bool(value),
            _ => Err(self.must_be("true or false")),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.value {
            Value::Float(value, _) => visitor.visit_f64(value),
            Value::Int(value, _) => visitor.visit_f64(value as f64),
            _ => Err(self.must_be_number("a number")),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        visitor.visit_borrowed_str(self.text()?).map_err(|e: Mistake| e.at(self.at))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.value {
            Value::Null | Value::Removed => visitor.visit_none(),
            // Types that parse text themselves fail here and not in a method
            // of ours, so the place is put in on the way out.
            _ => visitor.visit_some(self).map_err(|e: Mistake| e.at(self.at)),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match &self.value {
            Value::List(items) => visitor.visit_seq(Items { items, next: 0 }),
            Value::Null | Value::Removed => visitor.visit_seq(Items { items: &[], next: 0 }),
            _ => Err(self.must_be("a list")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.members(&[], visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        self.members(fields, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        let word = self.text().map_err(|_| self.must_be(&one_of(variants)))?;
        let word: StrDeserializer<'_, Mistake> = word.into_deserializer();
        visitor.visit_enum(word).map_err(|e| e.at(self.at))
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct
        identifier ignored_any
    }
}

impl Node {
    /// Visits a map's members; with `fields`, refuses any other key.
    fn members<'de, V: Visitor<'de>>(
        &'de self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        let members: &[_] = match &self.value {
            Value::Map(members) => members,
            // A key whose members are all commented out.
            Value::Null | Value::Removed => &[],
            _ => return Err(self.must_be("a map of keys")),
        };
        let unknown = |name: &str| !fields.is_empty() && !fields.contains(&name);
        if let Some((key, _)) = members.iter().find(|(key, _)| unknown(&key.name)) {
            return Err(Mistake::new(unknown_key(&key.name, fields))
                .at(key.at)
                .inside(Step::Key(key.name.clone())));
        }
        visitor.visit_map(Members { members, next: 0 }).map_err(|e: Mistake| e.at(self.at))
    }
}

struct Items<'de> {
    items: &'de [Node],
    next: usize,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Mistake;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Mistake> {
        while let Some(item) = self.items.get(self.next) {
            let index = self.next;
            self.next += 1;
            if item.value != Value::Removed {
                let inside = |e: Mistake| e.at(item.at).inside(Step::Index(index));
                return seed.deserialize(item).map(Some).map_err(inside);
            }
        }
        Ok(None)
    }
}

struct Members<'de> {
    members: &'de [(super::tree::Key, Node)],
    next: usize,
}

impl<'de> MapAccess<'de> for Members<'de> {
    type Error = Mistake;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Mistake> {
        let Some((key, _)) = self.members.get(self.next) else {
            return Ok(None);
        };
        let name: StrDeserializer<'_, Mistake> = key.name.as_str().into_deserializer();
        seed.deserialize(name).map(Some).map_err(|e| e.at(key.at))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Mistake> {
        let Some((key, value)) = self.members.get(self.next) else {
            return Err(de::Error::custom("a key without a value"));
        };
        self.next += 1;
        seed.deserialize(value)
            .map_err(|e: Mistake| e.at(value.at).inside(Step::Key(key.name.clone())))
    }
}
