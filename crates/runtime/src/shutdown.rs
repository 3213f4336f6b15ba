//! How a program is told to stop: once, to everybody, in order.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;
use tokio::time::Instant;

/// Told to whoever must stop. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown {
    receiver: watch::Receiver<Option<Instant>>,
    /// When it was first noticed that every trigger is gone.
    dropped: Arc<OnceLock<Instant>>,
}

/// Tells it. Dropping the last one tells it too.
#[derive(Debug, Clone)]
pub struct ShutdownTrigger {
    sender: Arc<watch::Sender<Option<Instant>>>,
    dropped: Arc<OnceLock<Instant>>,
}

/// A trigger and what it triggers.
///
/// ```
/// let (trigger, shutdown) = vahti_runtime::shutdown::channel();
/// assert!(!shutdown.has_begun());
/// trigger.begin();
/// assert!(shutdown.has_begun());
/// ```
#[must_use]
pub fn channel() -> (ShutdownTrigger, Shutdown) {
    let (sender, receiver) = watch::channel(None);
    let dropped = Arc::default();
    let trigger = ShutdownTrigger { sender: Arc::new(sender), dropped: Arc::clone(&dropped) };
    (trigger, Shutdown { receiver, dropped })
}

impl ShutdownTrigger {
    /// Begins the shutdown. Idempotent.
    pub fn begin(&self) {
        self.sender.send_if_modified(|begun| {
            let first = begun.is_none();
            begun.get_or_insert_with(Instant::now);
            first
        });
    }

    /// Another receiver.
    #[must_use]
    pub fn subscribe(&self) -> Shutdown {
        Shutdown { receiver: self.sender.subscribe(), dropped: Arc::clone(&self.dropped) }
    }
}

impl Shutdown {
    /// Whether it has begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.receiver.borrow().is_some() || self.receiver.has_changed().is_err()
    }

    /// When it began: what the time to drain is counted from, so that all who
    /// drain share one deadline. Now, if it has not begun.
    #[must_use]
    pub fn begun_at(&self) -> Instant {
        let begun = *self.receiver.borrow();
        match begun {
            Some(begun) => begun,
            None if self.has_begun() => *self.dropped.get_or_init(Instant::now),
            None => Instant::now(),
        }
    }

    /// Waits until it begins.
    pub async fn begun(&self) {
        let mut receiver = self.receiver.clone();
        // An error means that every trigger is gone: that is a shutdown too.
        if receiver.wait_for(Option::is_some).await.is_err() {}
    }
}
