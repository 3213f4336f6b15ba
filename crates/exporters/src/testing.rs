//! What the tests of several emitters share.

pub(crate) mod proxy;

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use vahti_runtime::testing::not_run;

use vahti_runtime::emitter::{Delivery, EmitOutcome, EventEmitter};
use vahti_runtime::event::{CONNECTION_REFUSED, Event, Severity};

/// Events that can be told apart by their count: `from`, `from + 1`, ...
pub(crate) fn events(from: u64, n: u64) -> Vec<Arc<Event>> {
    (from..from + n)
        .map(|count| Arc::new(Event { count, ..Event::new(&CONNECTION_REFUSED, Severity::Error) }))
        .collect()
}

pub(crate) fn emit(emitter: &mut impl EventEmitter, batch: &[Arc<Event>]) -> EmitOutcome {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(emitter.emit(batch)).poll(&mut context) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("these emitters block instead of waiting"),
    }
}

/// How many of a batch's events arrived, which must be its first ones.
pub(crate) fn delivered(outcome: &EmitOutcome, batch: usize) -> usize {
    match outcome {
        EmitOutcome::Delivered => batch,
        EmitOutcome::Retryable { .. }
        | EmitOutcome::Rejected { .. }
        | EmitOutcome::TooLarge { .. } => 0,
        EmitOutcome::Each { deliveries, .. } => {
            assert_eq!(deliveries.len(), batch);
            let n = deliveries.partition_point(|d| *d == Delivery::Delivered);
            assert!(deliveries[n..].iter().all(|d| *d == deliveries[n]));
            n
        }
        EmitOutcome::RejectedUnidentified { .. } => panic!("{outcome:?}"),
    }
}

/// The counts of the events in lines of JSON. Panics at a line that is none.
pub(crate) fn counts(text: &str) -> Vec<u64> {
    assert!(text.is_empty() || text.ends_with('\n'), "a torn end: {text:?}");
    text.lines()
        .map(|line| {
            let json: serde_json::Value =
                serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
            json["count"].as_u64().unwrap()
        })
        .collect()
}

/// A small file system that lives as long as this.
pub(crate) struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// One of 64 KiB.
    pub(crate) fn mount() -> Option<Self> {
        Self::of_kib(64)
    }

    /// `None`, having said why, where the rights to mount are missing.
    pub(crate) fn of_kib(size: u32) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}k"), "vahti-test"])
            .arg(folder.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(SmallDisk { folder }),
            Ok(output) => {
                not_run(format_args!("{}", String::from_utf8_lossy(&output.stderr)));
                None
            }
            Err(e) => {
                not_run(format_args!("cannot run mount: {e}"));
                None
            }
        }
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.folder.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let umount = std::process::Command::new("umount").arg(self.folder.path()).status();
        assert!(umount.is_ok_and(|status| status.success()));
    }
}
