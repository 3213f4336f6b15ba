//! An allocator that counts what is kept, block by block. Whoever counts has a
//! test program for itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts what is allocated, and the most that ever was.
struct Counting;

/// What is allocated now.
pub(crate) static NOW: AtomicUsize = AtomicUsize::new(0);
/// The most that ever was.
pub(crate) static MOST: AtomicUsize = AtomicUsize::new(0);

/// What an allocator keeps of a block, with which sizes are said.
const BLOCK: usize = 16;

// SAFETY: hands everything to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size() + BLOCK, Ordering::Relaxed);
        MOST.fetch_max(now + layout.size() + BLOCK, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size() + BLOCK, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
