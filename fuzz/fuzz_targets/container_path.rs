//! Any path of a control group is classified, without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vahti_observers::container::id::{Class, classify};

fuzz_target!(|path: &[u8]| {
    if let Class::Container(container) = classify(path) {
        // A name may hold anything; it is escaped where it is shown.
        assert!(!container.id.is_empty());
        assert!(container.id.len() <= path.len());
    }
});
