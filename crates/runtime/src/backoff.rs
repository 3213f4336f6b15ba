//! When to try again: later each time, and never all at the same moment.

use std::time::Duration;

use crate::config::RetryConfig;

/// The longest hint of another side that is followed.
const MAX_HINT: Duration = Duration::from_secs(300);

/// A small generator for jitter; nothing depends on its quality.
#[derive(Debug, Clone)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) fn new(salt: &str) -> Self {
        let seed = crate::clock::boot_now_ns() ^ xxhash_rust::xxh3::xxh3_64(salt.as_bytes());
        Jitter(seed | 1)
    }

    /// From 0 to 1, without 1.
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn between(&mut self, low: Duration, high: Duration) -> Duration {
        low + high.saturating_sub(low).mul_f64(self.unit())
    }
}

/// The bounds of an emitter's delays.
const EMIT_MIN: Duration = Duration::from_millis(100);
const EMIT_CAP: Duration = Duration::from_secs(30);

/// Before an emitter's nth try again (from 1): max(hint, uniform(min,
/// min(cap, min·2ⁿ))). The hint counts up to 5 minutes and is jittered too.
pub(crate) fn emit_delay(n: u32, hint: Option<Duration>, jitter: &mut Jitter) -> Duration {
    let bound =
        EMIT_MIN.saturating_mul(1u32.checked_shl(n.min(20)).unwrap_or(u32::MAX)).min(EMIT_CAP);
    let own = jitter.between(EMIT_MIN, bound);
    let hinted = hint.map(|hint| {
        let hint = hint.min(MAX_HINT);
        jitter.between(hint, hint + hint / 10)
    });
    own.max(hinted.unwrap_or_default())
}

/// Before an observer's nth start again (from 0): full jitter under a bound
/// that grows.
pub(crate) fn restart_delay(n: u32, retry: &RetryConfig, jitter: &mut Jitter) -> Duration {
    let (first, cap) = (retry.initial_delay.0, retry.max_delay.0);
    let factor = retry.multiplier.powi(i32::try_from(n).unwrap_or(i32::MAX));
    let bound = (first.as_secs_f64() * factor).min(cap.as_secs_f64());
    jitter.between(Duration::ZERO, Duration::try_from_secs_f64(bound).unwrap_or(cap))
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_cap_and_hints_are_followed_up_to_five_minutes() {
        let mut jitter = Jitter::new("test");
        for n in 0..64 {
            let delay = emit_delay(n, None, &mut jitter);
            assert!(delay >= EMIT_MIN && delay <= EMIT_CAP, "{n}: {delay:?}");
        }
        let hinted = emit_delay(1, Some(Duration::from_secs(60)), &mut jitter);
        assert!(hinted >= Duration::from_secs(60) && hinted <= Duration::from_secs(66));
        let absurd = emit_delay(1, Some(Duration::from_secs(1 << 40)), &mut jitter);
        assert!(absurd <= MAX_HINT + MAX_HINT / 10);
    }

    #[test]
    fn restarts_never_wait_longer_than_the_configured_maximum() {
        let mut jitter = Jitter::new("test");
        let retry = RetryConfig { multiplier: 100.0, ..RetryConfig::default() };
        for n in [0, 1, 5, 1_000, u32::MAX] {
            assert!(restart_delay(n, &retry, &mut jitter) <= retry.max_delay.0);
        }
    }
}
