//! Names that live for as long as the program does.
//!
//! Events point to their kind, their origin and some words, so that neither
//! making nor copying one counts references. Read from a file these have to be
//! kept for good; a hostile file must not make the program keep ever more.
//!
//! Names are kept as they are shown, which is how a line has them: written and
//! read again, they are the same ones.

use std::collections::{HashMap, HashSet};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::DecodeError;
use crate::event::{EventKind, Origin, Priority, escape_text};

/// How many different kinds, origins and words lines can bring, of each.
pub(super) const LIMIT: usize = 1_024;

/// How long the names of a kind may be together, those of an origin, or a
/// word, in bytes.
const MAX_BYTES: usize = 1_024;

/// How long all names of one sort may be together, in bytes.
pub(super) const ALL_BYTES: usize = 128 << 10;

/// Name, type, subtype and priority.
type KindKey<'a> = (&'a str, &'a str, &'a str, Priority);

/// Source and node.
type OriginKey<'a> = (&'a str, &'a str);

#[derive(Default)]
pub(super) struct Names {
    kinds: RwLock<HashMap<KindKey<'static>, &'static EventKind>>,
    origins: RwLock<HashMap<OriginKey<'static>, &'static Origin>>,
    words: RwLock<HashSet<&'static str>>,
}

impl Names {
    /// The row of the built-in table that says the same, or a kind by others.
    pub(super) fn kind(
        &self,
        name: &str,
        event_type: &str,
        subtype: &str,
        priority: Priority,
    ) -> Result<&'static EventKind, DecodeError> {
        let [name, event_type, subtype] = [name, event_type, subtype].map(escape_text);
        let (name, event_type, subtype) = (&*name, &*event_type, &*subtype);
        let key: KindKey<'_> = (name, event_type, subtype, priority);
        if let Some(row) = EventKind::ALL.iter().find(|row| key_of(row) == key) {
            return Ok(row);
        }
        if let Some(kind) = kind_in(&read(&self.kinds), key) {
            return Ok(kind);
        }
        let mut kinds = write(&self.kinds);
        if let Some(kind) = kind_in(&kinds, key) {
            return Ok(kind);
        }
        let kept = kinds.keys().map(|(name, of, sub, _)| name.len() + of.len() + sub.len());
        admit("name", kept, name.len() + event_type.len() + subtype.len())?;
        let kind: &'static EventKind = Box::leak(Box::new(EventKind::custom(
            leak(name),
            leak(event_type),
            leak(subtype),
            priority,
        )));
        kinds.insert(key_of(kind), kind);
        Ok(kind)
    }

    /// The one origin of this source on this node.
    pub(super) fn origin(&self, source: &str, node: &str) -> Result<&'static Origin, DecodeError> {
        let (source, node) = (&*escape_text(source), &*escape_text(node));
        let key: OriginKey<'_> = (source, node);
        if let Some(origin) = origin_in(&read(&self.origins), key) {
            return Ok(origin);
        }
        let mut origins = write(&self.origins);
        if let Some(origin) = origin_in(&origins, key) {
            return Ok(origin);
        }
        let kept = origins.keys().map(|(source, node)| source.len() + node.len());
        admit("source", kept, source.len() + node.len())?;
        let origin = Origin::shared(source, node);
        origins.insert((&origin.source, &origin.node), origin);
        Ok(origin)
    }

    /// A word that events hold for good, such as a reason.
    pub(super) fn word(&self, key: &'static str, word: &str) -> Result<&'static str, DecodeError> {
        let word = &*escape_text(word);
        if let Some(word) = read(&self.words).get(word) {
            return Ok(word);
        }
        let mut words = write(&self.words);
        if let Some(word) = words.get(word) {
            return Ok(word);
        }
        admit(key, words.iter().map(|word| word.len()), word.len())?;
        let word = leak(word);
        words.insert(word);
        Ok(word)
    }
}

// Both take the table with keys that live less long, so that a borrowed one
// can be looked up.

fn kind_in<'a>(
    kinds: &HashMap<KindKey<'a>, &'static EventKind>,
    key: KindKey<'a>,
) -> Option<&'static EventKind> {
    kinds.get(&key).copied()
}

fn origin_in<'a>(
    origins: &HashMap<OriginKey<'a>, &'static Origin>,
    key: OriginKey<'a>,
) -> Option<&'static Origin> {
    origins.get(&key).copied()
}

fn key_of(kind: &'static EventKind) -> KindKey<'static> {
    (kind.name(), kind.event_type(), kind.subtype(), kind.priority())
}

/// Whether one more of this size may be kept for good, beside those of these
/// sizes. They are few, and looked at only where a name is new.
fn admit(
    key: &'static str,
    kept: impl ExactSizeIterator<Item = usize>,
    size_bytes: usize,
) -> Result<(), DecodeError> {
    if size_bytes > MAX_BYTES {
        let problem = format!("{size_bytes} bytes of names; at most {MAX_BYTES} are kept");
        return Err(DecodeError::invalid(key, problem));
    }
    if kept.len() >= LIMIT || kept.sum::<usize>() + size_bytes > ALL_BYTES {
        return Err(DecodeError::TooManyNames { key });
    }
    Ok(())
}

fn leak(text: &str) -> &'static str {
    Box::leak(text.into())
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
