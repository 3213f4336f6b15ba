//! How a program is told to stop: once, to everybody, in order.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

/// Told to whoever must stop. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown {
    receiver: watch::Receiver<Option<Instant>>,
}

/// Tells it. Dropping the last one tells it too.
#[derive(Debug, Clone)]
pub struct ShutdownTrigger {
    sender: Arc<watch::Sender<Option<Instant>>>,
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
    (ShutdownTrigger { sender: Arc::new(sender) }, Shutdown { receiver })
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
        Shutdown { receiver: self.sender.subscribe() }
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
        self.receiver.borrow().unwrap_or_else(Instant::now)
    }

    /// Waits until it begins.
    pub async fn begun(&self) {
        let mut receiver = self.receiver.clone();
        // An error means that every trigger is gone: that is a shutdown too.
        if receiver.wait_for(Option::is_some).await.is_err() {}
    }
}
