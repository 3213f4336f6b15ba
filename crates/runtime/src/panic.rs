//! Panics of foreign code end here.
//!
//! Every call into a processor, an emitter, a health check or a source passes
//! through one of these, and what it was carries its message and backtrace.

use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Once;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::watch;

/// Foreign code panicked.
#[derive(Debug)]
pub struct Panicked {
    /// Whose code.
    pub who: String,
    /// The panic's message.
    pub message: String,
    /// Where it happened, as far as it is known.
    pub location: String,
    /// The backtrace, where `RUST_BACKTRACE` asks for one.
    pub backtrace: String,
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} panicked at {}: {}", self.who, self.location, self.message)
    }
}

impl std::error::Error for Panicked {}

/// Why contained code with a time limit gave no result.
#[derive(Debug, thiserror::Error)]
pub enum ContainError {
    /// It panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
    /// It took longer than it may.
    #[error("{who} took longer than {limit:?}")]
    TimedOut {
        /// Whose code.
        who: String,
        /// What it had.
        limit: Duration,
    },
}

thread_local! {
    static LAST: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
    static CONTAINED: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// Keeps location and backtrace of panics inside contained code for the error,
/// instead of printing them; any other panic goes to the hook that was there.
fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if CONTAINED.get() == 0 {
                before(info);
                return;
            }
            let location = info.location().map_or_else(|| "?".to_owned(), ToString::to_string);
            let backtrace = Backtrace::capture().to_string();
            LAST.with(|last| *last.borrow_mut() = Some((location, backtrace)));
        }));
    });
}

struct Contained;

impl Contained {
    fn enter() -> Self {
        install_hook();
        CONTAINED.set(CONTAINED.get() + 1);
        Contained
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        CONTAINED.set(CONTAINED.get().saturating_sub(1));
    }
}

fn panicked(who: &str, payload: Box<dyn Any + Send>) -> Panicked {
    let message = payload
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a payload that is no text".to_owned());
    let (location, backtrace) = LAST
        .with(|last| last.borrow_mut().take())
        .unwrap_or_else(|| ("?".to_owned(), String::new()));
    // A payload may panic when it is dropped; nothing outside may see that.
    if catch_unwind(AssertUnwindSafe(|| drop(payload))).is_err() {
        tracing::warn!(who, "the payload of a panic panicked when dropped");
    }
    Panicked { who: who.to_owned(), message, location, backtrace }
}

/// Runs `f`; a panic becomes an error.
///
/// Whatever `f` changed may be half changed after a panic: don't use it again.
///
/// ```
/// use vahti_runtime::panic::contain;
/// assert_eq!(contain("sum", || 1 + 1).unwrap(), 2);
/// assert_eq!(contain("boom", || -> u32 { panic!("no") }).unwrap_err().message, "no");
/// ```
///
/// # Errors
/// The panic.
pub fn contain<T>(who: &str, f: impl FnOnce() -> T) -> Result<T, Panicked> {
    let _guard = Contained::enter();
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| panicked(who, payload))
}

/// Like [`contain`], and hands the panic to `log` as well.
///
/// # Errors
/// The panic.
pub fn contain_and_log<T>(
    who: &str,
    f: impl FnOnce() -> T,
    log: impl FnOnce(&Panicked),
) -> Result<T, Panicked> {
    contain(who, f).inspect_err(log)
}

/// A future of foreign code: polled and dropped in containment.
struct ForeignFuture<'a, F> {
    who: &'a str,
    future: Foreign<Pin<Box<F>>>,
}

impl<F: Future> Future for ForeignFuture<'_, F> {
    type Output = Result<F::Output, Panicked>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let who = self.who;
        match contain(who, || self.future.as_mut().poll(context)) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
            Err(panicked) => Poll::Ready(Err(panicked)),
        }
    }
}

/// Runs a future; a panic while it is polled becomes an error, one while it is
/// dropped is logged.
///
/// # Errors
/// The panic.
pub async fn contain_future<T>(who: &str, future: impl Future<Output = T>) -> Result<T, Panicked> {
    ForeignFuture { who, future: Foreign::new(Box::pin(future)) }.await
}

/// Something of foreign code that is dropped in containment.
#[derive(Debug)]
pub(crate) struct Foreign<T> {
    value: ManuallyDrop<T>,
}

impl<T> Foreign<T> {
    pub(crate) fn new(value: T) -> Self {
        Foreign { value: ManuallyDrop::new(value) }
    }
}

impl<T> Deref for Foreign<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Foreign<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T> Drop for Foreign<T> {
    fn drop(&mut self) {
        // SAFETY: taken once, here, and not looked at again.
        let value = unsafe { ManuallyDrop::take(&mut self.value) };
        if let Err(panicked) = contain("drop", || drop(value)) {
            tracing::error!(error = %panicked, "foreign code panicked when it was dropped");
        }
    }
}

/// Tells contained code that its time is over.
#[derive(Debug, Clone)]
pub struct Cancelled {
    receiver: watch::Receiver<bool>,
}

impl Cancelled {
    /// Whether its time is over.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        *self.receiver.borrow() || self.receiver.has_changed().is_err()
    }

    /// Waits until its time is over.
    pub async fn cancelled(&self) {
        let mut receiver = self.receiver.clone();
        // An error means that whoever would tell is gone.
        if receiver.wait_for(|over| *over).await.is_err() {}
    }
}

/// Runs a future with a time limit. When the time is over its token says so,
/// and it is dropped.
///
/// # Errors
/// The panic, or that it took too long.
pub async fn contain_with_timeout<T, F: Future<Output = T>>(
    who: &str,
    limit: Duration,
    f: impl FnOnce(Cancelled) -> F,
) -> Result<T, ContainError> {
    let (sender, receiver) = watch::channel(false);
    let future = contain(who, || f(Cancelled { receiver }))?;
    match tokio::time::timeout(limit, contain_future(who, future)).await {
        Ok(result) => Ok(result?),
        Err(_elapsed) => {
            sender.send_replace(true);
            Err(ContainError::TimedOut { who: who.to_owned(), limit })
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_panic_says_who_what_and_where() {
        let error = contain("network", || panic!("record {}", 7)).unwrap_err();
        assert_eq!((error.who.as_str(), error.message.as_str()), ("network", "record 7"));
        assert!(error.location.contains("panic.rs"), "{}", error.location);
    }

    #[test]
    fn a_payload_that_panics_when_dropped_is_contained_too() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("bomb");
            }
        }
        let error = contain("bomb", || std::panic::panic_any(Bomb)).unwrap_err();
        assert_eq!(error.message, "a payload that is no text");
    }

    #[test]
    fn the_log_function_sees_what_the_caller_gets() {
        let mut seen = String::new();
        let log = |p: &Panicked| seen = p.message.clone();
        contain_and_log("x", || panic!("told"), log).unwrap_err();
        assert_eq!(seen, "told");
    }

    #[tokio::test(start_paused = true)]
    async fn a_future_that_takes_too_long_is_told_and_dropped() {
        let slow = |token: Cancelled| async move {
            token.cancelled().await;
            tokio::time::sleep(Duration::from_secs(60)).await;
        };
        let result = contain_with_timeout("slow", Duration::from_secs(1), slow).await;
        assert_eq!(result.unwrap_err().to_string(), "slow took longer than 1s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_future_that_panics_when_it_is_dropped_is_contained_too() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("bomb");
            }
        }
        let slow = |_| async {
            let _bomb = Bomb;
            std::future::pending::<()>().await;
        };
        let result = contain_with_timeout("slow", Duration::from_secs(1), slow).await;
        assert!(matches!(result, Err(ContainError::TimedOut { .. })));
    }

    #[tokio::test]
    async fn a_future_that_panics_is_an_error() {
        let result = contain_with_timeout("bad", Duration::from_secs(1), |_| async {
            panic!("inside");
        });
        let result: Result<(), _> = result.await;
        assert!(matches!(result, Err(ContainError::Panicked(p)) if p.message == "inside"));
    }
}
