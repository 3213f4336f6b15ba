//! The part of the kernel's type information that some objects need.
//!
//! The whole of it is 5 MB and 140,000 types, through which the loader would
//! search linearly for each type of each object. One pass over the raw bytes
//! finds the structs, unions and enums that the objects name, and what those
//! contain; a few hundred types remain. What is pointed to is left out:
//! CO-RE compares a pointer with a pointer and looks no further.

use std::collections::{HashMap, HashSet};

use aya::{Btf, Endianness};
use object::{Object as _, ObjectSection as _};

use crate::error::EbpfError;

/// Where the kernel describes its types.
pub(crate) const PATH: &str = "/sys/kernel/btf/vmlinux";

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FWD: u32 = 7;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_FLOAT: u32 = 16;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

const HEADER_LEN: usize = 24;
const TYPE_LEN: usize = 12;
const MAGIC: u16 = 0xeb9f;

/// Reads the kernel's types as far as `objects` name them.
///
/// # Errors
/// The kernel has none, or one side is not understood.
pub(crate) fn read_for(objects: &[&[u8]]) -> Result<Btf, EbpfError> {
    let kernel =
        std::fs::read(PATH).map_err(|error| EbpfError::NoKernelBtf { path: PATH, error })?;
    let mut names = HashSet::new();
    for object in objects {
        names.extend(names_in(object)?);
    }
    let reduced = reduce(&kernel, &names)?;
    Btf::parse(&reduced, Endianness::default()).map_err(|e| misunderstood(e.to_string()))
}

fn misunderstood(what: impl Into<String>) -> EbpfError {
    EbpfError::KernelBtf { what: what.into() }
}

/// The names of the kernel types that an object may look for, without the
/// suffixes that tell shapes apart.
fn names_in(object: &[u8]) -> Result<HashSet<Vec<u8>>, EbpfError> {
    let bytes = object::File::parse(object)
        .ok()
        .and_then(|file| file.section_by_name(".BTF")?.data().ok())
        .ok_or_else(|| misunderstood("an object has no .BTF section"))?;
    let types = Types::index(bytes)?;
    Ok(types.named().map(|(_, name)| flavourless(name).to_vec()).collect())
}

fn flavourless(name: &[u8]) -> &[u8] {
    let end = name.windows(3).position(|w| w == b"___");
    end.map_or(name, |end| &name[..end])
}

/// Type information, and where each type lies in it.
struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// By id less one: id 0 is void.
    offsets: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Type<'a> {
    name: u32,
    info: u32,
    size_or_type: u32,
    /// Members and the like.
    tail: &'a [u8],
}

impl Type<'_> {
    fn kind(&self) -> u32 {
        self.info >> 24 & 31
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

impl<'a> Types<'a> {
    fn index(bytes: &'a [u8]) -> Result<Self, EbpfError> {
        Self::try_index(bytes).ok_or_else(|| misunderstood("cut short, or of an unknown kind"))
    }

    fn try_index(bytes: &'a [u8]) -> Option<Self> {
        if u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]) != MAGIC {
            return None;
        }
        let section = |offset, len| {
            let start = (word(bytes, 4)? as usize).checked_add(word(bytes, offset)? as usize)?;
            bytes.get(start..start.checked_add(word(bytes, len)? as usize)?)
        };
        let types = section(8, 12)?;
        let strings = section(16, 20)?;
        let mut offsets = Vec::with_capacity(types.len() / 24);
        let mut at = 0;
        while at < types.len() {
            offsets.push(u32::try_from(at).ok()?);
            at += TYPE_LEN + tail_len(word(types, at + 4)?)?;
        }
        (at == types.len()).then_some(Types { types, strings, offsets })
    }

    fn get(&self, id: u32) -> Option<Type<'a>> {
        let at = *self.offsets.get((id as usize).checked_sub(1)?)? as usize;
        let info = word(self.types, at + 4)?;
        let tail = at + TYPE_LEN;
        Some(Type {
            name: word(self.types, at)?,
            info,
            size_or_type: word(self.types, at + 8)?,
            tail: self.types.get(tail..tail + tail_len(info)?)?,
        })
    }

    fn string(&self, offset: u32) -> &'a [u8] {
        let rest = self.strings.get(offset as usize..).unwrap_or_default();
        let end = rest.iter().position(|b| *b == 0).unwrap_or(rest.len());
        &rest[..end]
    }

    /// Structs, unions, enums and typedefs with a name.
    fn named(&self) -> impl Iterator<Item = (u32, &'a [u8])> {
        (1..=self.offsets.len() as u32).filter_map(|id| {
            let ty = self.get(id)?;
            let wanted = matches!(
                ty.kind(),
                KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64 | KIND_TYPEDEF
            );
            (wanted && ty.name != 0).then(|| (id, self.string(ty.name)))
        })
    }
}

/// How many bytes follow a type's first three words; `None` for a kind that
/// is not known, behind which nothing can be found.
fn tail_len(info: u32) -> Option<usize> {
    let count = (info & 0xffff) as usize;
    Some(match info >> 24 & 31 {
        KIND_PTR | KIND_FWD | KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT
        | KIND_FUNC | KIND_FLOAT | KIND_TYPE_TAG => 0,
        KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => count * 12,
        KIND_ENUM | KIND_FUNC_PROTO => count * 8,
        _ => return None,
    })
}

/// Where in a type's tail names stand, and where types: the first offset and
/// the step.
fn tail_names(kind: u32) -> Option<usize> {
    match kind {
        KIND_STRUCT | KIND_UNION | KIND_ENUM64 => Some(12),
        KIND_ENUM => Some(8),
        _ => None,
    }
}

fn tail_types(kind: u32) -> &'static [usize] {
    match kind {
        // Element and index; members.
        KIND_ARRAY => &[0, 4],
        KIND_STRUCT | KIND_UNION => &[4],
        _ => &[],
    }
}

fn refers(kind: u32) -> bool {
    matches!(kind, KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG)
}

/// What is written: types renumbered in the order in which they were found.
struct Reduced<'a> {
    from: &'a Types<'a>,
    types: Vec<u8>,
    strings: Vec<u8>,
    string_ids: HashMap<u32, u32>,
    ids: HashMap<u32, u32>,
    /// Found and not yet written, in order of their new ids.
    found: Vec<u32>,
}

fn reduce(kernel: &[u8], names: &HashSet<Vec<u8>>) -> Result<Vec<u8>, EbpfError> {
    let from = Types::index(kernel)?;
    let mut reduced = Reduced {
        from: &from,
        types: Vec::new(),
        strings: vec![0],
        string_ids: HashMap::from([(0, 0)]),
        ids: HashMap::from([(0, 0)]),
        found: Vec::new(),
    };
    for (id, name) in from.named() {
        if names.contains(flavourless(name)) {
            reduced.id(id);
        }
    }
    let mut next = 0;
    while let Some(id) = reduced.found.get(next).copied() {
        let ty = from.get(id).ok_or_else(|| misunderstood("no such type"))?;
        reduced.write(ty);
        next += 1;
    }
    Ok(reduced.into_bytes())
}

impl Reduced<'_> {
    fn id(&mut self, old: u32) -> u32 {
        if let Some(id) = self.ids.get(&old) {
            return *id;
        }
        self.found.push(old);
        let id = self.found.len() as u32;
        self.ids.insert(old, id);
        id
    }

    fn string(&mut self, old: u32) -> u32 {
        if let Some(offset) = self.string_ids.get(&old) {
            return *offset;
        }
        let offset = self.strings.len() as u32;
        self.strings.extend_from_slice(self.from.string(old));
        self.strings.push(0);
        self.string_ids.insert(old, offset);
        offset
    }

    fn write(&mut self, ty: Type<'_>) {
        let kind = ty.kind();
        let name = self.string(ty.name);
        let target = match kind {
            KIND_PTR => 0,
            kind if refers(kind) => self.id(ty.size_or_type),
            _ => ty.size_or_type,
        };
        let mut tail = ty.tail.to_vec();
        let step = tail_names(kind).unwrap_or(TYPE_LEN);
        for entry in tail.chunks_exact_mut(step) {
            if tail_names(kind).is_some() {
                renumber(entry, 0, |old| self.string(old));
            }
            for at in tail_types(kind) {
                renumber(entry, *at, |old| self.id(old));
            }
        }
        for word in [name, ty.info, target] {
            self.types.extend_from_slice(&word.to_ne_bytes());
        }
        self.types.extend_from_slice(&tail);
    }

    fn into_bytes(self) -> Vec<u8> {
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        let mut bytes = Vec::with_capacity(HEADER_LEN + self.types.len() + self.strings.len());
        bytes.extend_from_slice(&MAGIC.to_ne_bytes());
        bytes.extend_from_slice(&[1, 0]);
        for word in [HEADER_LEN as u32, 0, types, types, strings] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(&self.types);
        bytes.extend_from_slice(&self.strings);
        bytes
    }
}

fn renumber(entry: &mut [u8], at: usize, new: impl FnOnce(u32) -> u32) {
    if let Some(old) = word(entry, at)
        && let Some(bytes) = entry.get_mut(at..at + 4)
    {
        bytes.copy_from_slice(&new(old).to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `struct a { struct b b; struct c *c; }; struct b { int x; }; struct c { int x; };`
    fn sample() -> Vec<u8> {
        let strings = b"\0a\0b\0c\0x\0int\0";
        let (a, b, c, x, int) = (1_u32, 3, 5, 7, 9);
        let info = |kind: u32, count: u32| kind << 24 | count;
        let types: Vec<u32> = [
            vec![a, info(KIND_STRUCT, 2), 16, b, 2, 0, c, 3, 64],
            vec![b, info(KIND_STRUCT, 1), 4, x, 5, 0],
            vec![0, info(KIND_PTR, 0), 4],
            vec![c, info(KIND_STRUCT, 1), 4, x, 5, 0],
            vec![int, info(KIND_INT, 0), 4, 32],
        ]
        .concat();
        let len = (types.len() * 4) as u32;
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for word in [HEADER_LEN as u32, 0, len, len, strings.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(types.iter().flat_map(|w| w.to_ne_bytes()));
        bytes.extend(strings);
        bytes
    }

    fn kept(bytes: &[u8]) -> Vec<String> {
        let types = Types::index(bytes).unwrap();
        let names = types.named();
        names.map(|(_, n)| String::from_utf8_lossy(n).into_owned()).collect()
    }

    #[test]
    fn what_a_struct_contains_is_kept_and_what_it_points_to_is_not() {
        let reduced = reduce(&sample(), &HashSet::from([b"a".to_vec()])).unwrap();
        assert_eq!(kept(&reduced), ["a", "b"]);
        let types = Types::index(&reduced).unwrap();
        // a: members b (id 2) and a pointer (id 3) to void; b: an int (id 4).
        assert_eq!(word(types.get(1).unwrap().tail, 4), Some(2));
        assert_eq!(types.get(3).unwrap().size_or_type, 0);
        assert_eq!(types.get(4).unwrap().kind(), KIND_INT);
    }

    #[test]
    fn shapes_of_other_kernels_look_for_the_same_type() {
        assert_eq!(flavourless(b"mm_struct___before_6_2"), b"mm_struct");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            at in 0_usize..150, with in any::<u32>(), cut in 0_usize..200,
        ) {
            let mut bytes = sample();
            let at = at.min(bytes.len() - 4);
            bytes[at..at + 4].copy_from_slice(&with.to_ne_bytes());
            bytes.truncate(cut);
            // Either way is fine, as long as it comes back.
            drop(reduce(&bytes, &HashSet::from([b"a".to_vec(), b"c".to_vec()])));
        }
    }
}
