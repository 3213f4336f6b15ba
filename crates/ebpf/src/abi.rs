//! The layout of records, checked against the C headers when this compiles.
//!
//! A header states the size of each struct and the offset of each field in
//! lines that clang checks (`VAHTI_SIZE`, `VAHTI_OFFSET`). `abi_struct!`
//! reads the same lines out of the same file in a constant: a struct that
//! differs by one field does not compile on either side.

/// The common header file, `bpf/abi.h`.
pub const HEADER_FILE: &str = include_str!("../bpf/abi.h");

/// Types for which every byte pattern is a value.
///
/// # Safety
/// No padding, no pointers, no niches: integers, arrays of them, and structs
/// of nothing else.
pub unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($ty:ty),*) => {
        // SAFETY: integers have no padding, and every byte pattern is a value.
        $(unsafe impl Plain for $ty {})*
    };
}
plain!(u8, u16, u32, u64, i16, i32, i64);

// SAFETY: an array is its elements side by side.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Splits a value off the front of some bytes; `None` if they are too few.
#[must_use]
pub fn split<T: Plain>(bytes: &[u8]) -> Option<(T, &[u8])> {
    let (front, rest) = bytes.split_at_checked(size_of::<T>())?;
    // SAFETY: `front` is as long as a `T`, any bytes are a valid `T`, and the
    // read asks for no alignment.
    let value = unsafe { front.as_ptr().cast::<T>().read_unaligned() };
    Some((value, rest))
}

/// The number that follows `key` in a header file.
///
/// # Panics
/// There is none; called in constants, where that is a compile error.
#[must_use]
#[expect(clippy::panic, reason = "fails the build")]
pub const fn number_after(file: &str, key: &str) -> usize {
    let Some(mut i) = find(file.as_bytes(), key.as_bytes(), 0) else {
        panic!("the C header has no such line");
    };
    let file = file.as_bytes();
    i += key.len();
    let mut number = 0;
    let first = i;
    while i < file.len() && file[i].is_ascii_digit() {
        number = number * 10 + (file[i] - b'0') as usize;
        i += 1;
    }
    assert!(i > first, "the C header has no number there");
    number
}

/// How often `key` stands in a header file.
#[must_use]
pub const fn occurrences(file: &str, key: &str) -> usize {
    let (file, key) = (file.as_bytes(), key.as_bytes());
    let (mut count, mut from) = (0, 0);
    while let Some(at) = find(file, key, from) {
        count += 1;
        from = at + key.len();
    }
    count
}

const fn find(file: &[u8], key: &[u8], from: usize) -> Option<usize> {
    let mut i = from;
    while i + key.len() <= file.len() {
        let mut same = 0;
        while same < key.len() && file[i + same] == key[same] {
            same += 1;
        }
        if same == key.len() {
            return Some(i);
        }
        i += 1;
    }
    None
}

/// Declares a struct that a C header declares too, and compares the two.
///
/// Fields must be [`Plain`]; names, order, offsets and the size must be those
/// of the header.
///
/// ```
/// const FILE: &str = "VAHTI_SIZE(my_fact, 8); VAHTI_OFFSET(my_fact, when, 0);";
/// vahti_ebpf::abi_struct! {
///     /// A fact.
///     pub struct MyFact as "my_fact" in FILE {
///         /// When it happened.
///         when: u64,
///     }
/// }
/// ```
#[macro_export]
macro_rules! abi_struct {
    (
        $(#[$meta:meta])*
        pub struct $name:ident as $c_name:literal in $file:path {
            $($(#[$field_meta:meta])* $field:ident: $ty:ty,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(C)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $ty,)*
        }

        const _: () = {
            const fn plain<T: $crate::abi::Plain>() {}
            $(plain::<$ty>();)*
            assert!(
                size_of::<$name>() == 0 $(+ size_of::<$ty>())*,
                "the struct has padding"
            );
            assert!(
                size_of::<$name>()
                    == $crate::abi::number_after($file, concat!("VAHTI_SIZE(", $c_name, ", ")),
                "the C header states another size"
            );
            $(assert!(
                std::mem::offset_of!($name, $field)
                    == $crate::abi::number_after(
                        $file,
                        concat!("VAHTI_OFFSET(", $c_name, ", ", stringify!($field), ", "),
                    ),
                "the C header states another offset"
            );)*
            assert!(
                [$(stringify!($field)),*].len()
                    == $crate::abi::occurrences($file, concat!("VAHTI_OFFSET(", $c_name, ", ")),
                "the C header has other fields"
            );
        };

        // SAFETY: repr(C), every field is Plain, and there is no padding; all
        // of it is asserted above.
        unsafe impl $crate::abi::Plain for $name {}
    };
}

/// A constant of a header file, by its `#define`.
#[macro_export]
macro_rules! abi_constant {
    ($file:path, $name:literal) => {
        $crate::abi::number_after($file, concat!("#define ", $name, " "))
    };
}

/// The version that records of this build carry.
pub const ABI_VERSION: u16 = abi_constant!(HEADER_FILE, "VAHTI_ABI_VERSION") as u16;
/// The kind of a record that a test run made.
pub const KIND_PROOF: u16 = abi_constant!(HEADER_FILE, "VAHTI_KIND_PROOF") as u16;
/// Set on facts of our own making.
pub const FLAG_PROOF: u32 = abi_constant!(HEADER_FILE, "VAHTI_FLAG_PROOF") as u32;
/// Set where the socket's error was gone before it was read, and is inferred.
pub const FLAG_ERROR_TAKEN: u32 = abi_constant!(HEADER_FILE, "VAHTI_FLAG_ERROR_TAKEN") as u32;
/// Set on facts that happened some time before they were told, unseen.
pub const FLAG_TOLD_LATE: u32 = abi_constant!(HEADER_FILE, "VAHTI_FLAG_TOLD_LATE") as u32;
/// Set where the root end of the cgroup path is missing.
pub const FLAG_PATH_TRUNCATED: u32 = abi_constant!(HEADER_FILE, "VAHTI_FLAG_PATH_TRUNCATED") as u32;
/// Set on owners that are kernel threads.
pub const OWNER_KERNEL_THREAD: u32 = abi_constant!(HEADER_FILE, "VAHTI_OWNER_KERNEL_THREAD") as u32;
/// Every argument of a test run.
pub const TEST_RUN_MAGIC: u64 = abi_constant!(HEADER_FILE, "VAHTI_TEST_RUN_MAGIC") as u64;
/// Processes that make proofs at the same time, at most.
pub const MAX_MAKERS: usize = abi_constant!(HEADER_FILE, "VAHTI_MAKERS");
/// A tick of `/proc`, in nanoseconds.
pub const TICK_NS: u64 = abi_constant!(HEADER_FILE, "VAHTI_TICK_NS") as u64;

abi_struct! {
    /// What every record starts with.
    pub struct Header as "vahti_header" in HEADER_FILE {
        /// [`ABI_VERSION`], or it comes from another build.
        abi_version: u16,
        /// What follows.
        kind: u16,
        /// Of the whole record, in bytes.
        len: u32,
        /// Who wrote it.
        cpu: u32,
        /// [`FLAG_PROOF`] and others.
        flags: u32,
        /// `CLOCK_BOOTTIME` at the moment of the fact.
        boot_ns: u64,
        /// Attempts of this program on this CPU.
        seq: u64,
    }
}

abi_struct! {
    /// A process at the moment of the fact.
    pub struct Owner as "vahti_owner" in HEADER_FILE {
        /// Thread group id; 0: unknown.
        tgid: u32,
        /// Real user id.
        uid: u32,
        /// Thread group id of the real parent.
        parent_tgid: u32,
        /// [`OWNER_KERNEL_THREAD`].
        flags: u32,
        /// When its group leader started, `CLOCK_BOOTTIME`.
        start_boot_ns: u64,
        /// kernfs id of its cgroup.
        cgroup_id: u64,
        /// Its group leader's `comm`.
        comm: [u8; 16],
    }
}

abi_struct! {
    /// What a test run writes.
    pub struct Proof as "vahti_proof" in HEADER_FILE {
        /// Kind [`KIND_PROOF`].
        header: Header,
        /// The slot of the program that ran.
        probe: u32,
        /// Who asked for it.
        tgid: u32,
    }
}

abi_struct! {
    /// One program's counters on one CPU.
    pub struct Stats as "vahti_stats" in HEADER_FILE {
        /// Records that it tried to write.
        attempted: u64,
        /// Those that it wrote.
        submitted: u64,
        /// Those for which the ring had no room.
        lost: u64,
    }
}

abi_struct! {
    /// What makes a fact one of our own making.
    pub struct SelfFacts as "vahti_self" in HEADER_FILE {
        /// Our thread group id in the initial pid namespace.
        tgid: u32,
        /// 0: no proof is under way; else what it is told by, such as a TCP
        /// port of ours.
        proof: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_the_line_that_was_asked_for() {
        const FILE: &str = "VAHTI_OFFSET(a, b, 12);\nVAHTI_OFFSET(a, bc, 345);\n";
        assert_eq!(number_after(FILE, "VAHTI_OFFSET(a, b, "), 12);
        assert_eq!(number_after(FILE, "VAHTI_OFFSET(a, bc, "), 345);
        assert_eq!(occurrences(FILE, "VAHTI_OFFSET(a, "), 2);
    }

    #[test]
    fn a_value_needs_all_of_its_bytes() {
        assert_eq!(split::<u32>(&[1, 0, 0]), None);
        assert_eq!(split::<u32>(&[1, 0, 0, 0, 9]), Some((1, &[9_u8][..])));
    }
}
