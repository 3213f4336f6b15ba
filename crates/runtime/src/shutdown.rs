//! How a program is told to stop: once, to everybody, in order.

use std::sync::Arc;

use tokio::sync::watch;

/// Told to whoever must stop. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown {
    receiver: watch::Receiver<bool>,
}

/// Tells it. Dropping the last one tells it too.
#[derive(Debug, Clone)]
pub struct ShutdownTrigger {
    sender: Arc<watch::Sender<bool>>,
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
    let (sender, receiver) = watch::channel(false);
    (ShutdownTrigger { sender: Arc::new(sender) }, Shutdown { receiver })
}

impl ShutdownTrigger {
    /// Begins the shutdown. Idempotent.
    pub fn begin(&self) {
        self.sender.send_replace(true);
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
        *self.receiver.borrow() || self.receiver.has_changed().is_err()
    }

    /// Waits until it begins.
    pub async fn begun(&self) {
        let mut receiver = self.receiver.clone();
        // An error means that every trigger is gone: that is a shutdown too.
        if receiver.wait_for(|begun| *begun).await.is_err() {}
    }
}
