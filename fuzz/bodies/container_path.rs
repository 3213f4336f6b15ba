//! Any path of a control group is classified, without a panic.

use vahti_observers::container::id::{Class, classify};

pub(crate) fn run(path: &[u8]) {
    if let Class::Container(container) = classify(path) {
        // A name may hold anything; it is escaped where it is shown.
        assert!(!container.id.is_empty());
        assert!(container.id.len() <= path.len());
    }
}
