//! What an object's maps take of the kernel's memory, before they are made.
//!
//! As the kernel accounts for them since Linux 6.4 (`map_mem_usage` in
//! `kernel/bpf/{hashtab,arraymap,ringbuf}.c`), where `memlock` in
//! `/proc/PID/fdinfo/FD` has it; earlier ones take about as much.

use aya_obj::generated::bpf_map_type::{
    BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LRU_HASH, BPF_MAP_TYPE_PERCPU_ARRAY,
    BPF_MAP_TYPE_RINGBUF,
};

use crate::error::EbpfError;
use crate::loader::{Object, chain};
use crate::ring::page_size;

const POSSIBLE_CPUS: &str = "/sys/devices/system/cpu/possible";

/// What any map takes beside its entries.
const MAP: u64 = 1024;
/// `struct htab_elem`: what an entry of a hash takes beside key and value.
const HASH_ENTRY: u64 = 48;
/// `struct bucket`.
const BUCKET: u64 = 16;

/// What a map is like, as far as it matters here.
#[derive(Debug, Clone, Copy)]
struct Shape {
    kind: u32,
    key: u64,
    value: u64,
    entries: u64,
}

impl Object {
    /// What its maps take on this machine, in bytes: those per CPU once for
    /// each that there may be.
    ///
    /// # Errors
    /// It is no object.
    pub fn maps_bytes(&self) -> Result<u64, EbpfError> {
        let object = aya_obj::Object::parse(self.bytes).map_err(|error| EbpfError::Object {
            object: self.name.to_owned(),
            error: chain(&error),
        })?;
        let cpus = possible_cpus();
        let shapes = object.maps.values().map(|map| Shape {
            kind: map.map_type(),
            key: map.key_size().into(),
            value: map.value_size().into(),
            entries: map.max_entries().into(),
        });
        Ok(shapes.map(|shape| bytes_of(shape, cpus)).sum())
    }
}

fn bytes_of(shape: Shape, cpus: u64) -> u64 {
    let Shape { kind, key, value, entries } = shape;
    let round = |size: u64| size.next_multiple_of(8);
    let page = page_size() as u64;
    // Of a section of constants the loader makes one entry.
    let entries = entries.max(1);
    MAP + match kind {
        k if k == BPF_MAP_TYPE_RINGBUF as u32 => {
            let pages = entries.div_ceil(page);
            // Four of its own, and where each page is, twice.
            entries + 4 * page + (2 * pages + 4) * 8
        }
        k if k == BPF_MAP_TYPE_HASH as u32 || k == BPF_MAP_TYPE_LRU_HASH as u32 => {
            // Some are kept for each CPU where none can be pushed out.
            let spare = if k == BPF_MAP_TYPE_HASH as u32 { cpus } else { 0 };
            let buckets = entries.next_power_of_two() * BUCKET;
            buckets + (entries + spare) * (HASH_ENTRY + round(key) + round(value))
        }
        k if k == BPF_MAP_TYPE_PERCPU_ARRAY as u32 => entries * (8 + round(value) * cpus),
        k if k == BPF_MAP_TYPE_ARRAY as u32 => (entries * round(value)).next_multiple_of(page),
        _ => entries * (HASH_ENTRY + round(key) + round(value)),
    }
}

/// How many CPUs there may ever be; the kernel makes memory for each.
fn possible_cpus() -> u64 {
    let text = std::fs::read_to_string(POSSIBLE_CPUS).unwrap_or_default();
    count_cpus(&text).max(1)
}

/// `0-3,6` are five.
fn count_cpus(list: &str) -> u64 {
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let count = |range: &str| match range.split_once('-') {
        Some((first, last)) => Some(number(last)?.checked_sub(number(first)?)? + 1),
        None => number(range).map(|_| 1),
    };
    list.split(',').filter_map(count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_counted_in_ranges() {
        for (list, count) in [("0\n", 1), ("0-1\n", 2), ("0-3,6", 5), ("", 0), ("x", 0), ("3-1", 0)]
        {
            assert_eq!(count_cpus(list), count, "{list:?}");
        }
    }

    /// What Linux 6.18 told of these, on two CPUs.
    #[test]
    fn maps_take_what_the_kernel_says_and_no_less() {
        for (kind, key, value, entries, told) in [
            (9, 8, 64, 16_384, 2_229_120),
            (9, 8, 776, 1_024, 869_248),
            (27, 0, 0, 1 << 20, 1_065_288),
            (27, 0, 0, 256 << 10, 275_784),
            (1, 4, 8, 16, 2_320),
            (6, 4, 920, 8, 15_096),
            (2, 4, 12, 1, 328),
        ] {
            let bytes = bytes_of(Shape { kind, key, value, entries }, 2);
            assert!(bytes >= told, "{kind}: {bytes}, {told}");
            assert!(bytes - told <= 2 * 4_096, "{kind}: {bytes}, {told}");
        }
    }
}
