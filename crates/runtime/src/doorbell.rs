//! Wakes one emitter's worker, and costs next to nothing while it is awake.

use std::future::poll_fn;
use std::task::{Poll, Waker};

use crate::sync::{AtomicBool, Mutex, Ordering, fence, lock};

/// Many ring, one waits.
///
/// The waiter arms the bell, looks once more whether there is work, and only
/// then sleeps; whoever brings work puts it where it belongs first and rings
/// after. So either the waiter sees the work or the ringer sees the armed bell.
#[derive(Debug)]
pub(crate) struct Doorbell {
    armed: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Doorbell {
    pub(crate) fn new() -> Self {
        Doorbell { armed: AtomicBool::new(false), waker: Mutex::new(None) }
    }

    /// Wakes the waiter, if it sleeps.
    #[inline]
    pub(crate) fn ring(&self) {
        // Orders "work was put down" before "is anybody asleep"; pairs with
        // the fence in `wait`.
        fence(Ordering::SeqCst);
        if self.armed.load(Ordering::Relaxed) && self.armed.swap(false, Ordering::AcqRel) {
            let waker = lock(&self.waker).take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Sleeps until the bell rings, unless `has_work` says that there is work.
    /// One waiter at a time; may return early, so look for work in a loop.
    pub(crate) async fn wait(&self, has_work: impl Fn() -> bool) {
        let mut slept = false;
        poll_fn(|context| {
            if slept && !self.armed.load(Ordering::Acquire) {
                return Poll::Ready(());
            }
            *lock(&self.waker) = Some(context.waker().clone());
            self.armed.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if has_work() {
                self.armed.store(false, Ordering::Relaxed);
                return Poll::Ready(());
            }
            slept = true;
            Poll::Pending
        })
        .await;
    }
}
