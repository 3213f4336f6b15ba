//! All of it at once: the runtime, its lanes and the store, while sources,
//! processors, emitters and the disk fail in every way, at any moment, and the
//! agent ends in the middle of it and begins again. Whatever happens, every
//! line of every ledger adds up, and whatever was committed is delivered,
//! refused, still there, or counted as lost.
//!
//! What the emitters got is noted by themselves, and what was committed is read
//! from the file, apart from the ledger.
//!
//! `VAHTI_EVERYTHING_CASES=500` tries more of them, `VAHTI_EVERYTHING_SEED=7`
//! begins with that one, in place of the first. A seed gives the same plan; what
//! threads make of it differs from run to run.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "everything/faults.rs"]
mod faults;
#[path = "everything/life.rs"]
mod life;
#[path = "../../runtime/tests/stage/misbehaving.rs"]
mod misbehaving;
#[path = "everything/oracle.rs"]
mod oracle;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use faults::Random;
use life::{Life, Setting, durable};
use oracle::Oracle;

/// Most of the time of a case is waiting.
const AT_ONCE: usize = 12;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a whole number"))
}

/// A folder, on a small disk of its own where that was asked for and can be.
struct Place {
    folder: tempfile::TempDir,
    is_small: bool,
}

impl Place {
    fn new(small: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=32m", "vahti-test"]).arg(folder.path());
        let is_small = small && mount.output().is_ok_and(|output| output.status.success());
        Place { folder, is_small }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_small {
            // Lazily: a thread that was left behind may have a file open.
            let umount = Command::new("umount").arg("-l").arg(self.path()).status();
            assert!(umount.is_ok_and(|status| status.success()));
        }
    }
}

async fn play(seed: u64) {
    let mut random = Random(seed);
    let place = Place::new(random.percent(30));
    let caps = [(2 << 20) + (160 << 10), 3 << 20, 64 << 20];
    let setting = Setting {
        folder: place.path(),
        is_small: place.is_small,
        // Files that were set aside have to fit in as well.
        max_bytes: random.pick(&caps[..if place.is_small { 2 } else { 3 }]),
        max_age: random.pick(&[Duration::from_millis(300), Duration::from_secs(86_400)]),
        durable: durable(random.next()),
    };
    let (mut oracle, mut fed, mut next) = (Oracle::default(), BTreeSet::new(), 0);
    let (lives, mut committed) = (1 + random.below(3) as u8, 0);
    for number in 1..=lives {
        let mut life = Life::begin(&setting, number, &mut random).await;
        if life.began_anew {
            oracle.begin_anew(&setting.durable.notes());
        } else {
            assert!(life.routed() >= committed, "what was committed is there after a restart");
        }
        for _ in 0..1 + random.below(4) {
            life.suffer(&mut oracle, &mut fed, &mut next, &mut random).await;
        }
        let is_last = number == lives;
        if is_last || random.percent(30) {
            life.recover().await;
        }
        let clean = is_last || random.percent(50);
        committed = life.end(&mut oracle, &fed, clean).await;
    }
    oracle.check_file(setting.folder, &setting.durable.notes());
}

/// Why it failed.
fn try_seed(seed: u64) -> Result<(), String> {
    let result = catch_unwind(AssertUnwindSafe(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(seed));
    }));
    result.map_err(|panicked| {
        let text = panicked.downcast_ref::<String>().cloned();
        text.or_else(|| panicked.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default()
    })
}

#[test]
fn whatever_fails_every_ledger_adds_up_and_nothing_committed_is_lost() {
    let cases = number("VAHTI_EVERYTHING_CASES").unwrap_or(80);
    let first = number("VAHTI_EVERYTHING_SEED").unwrap_or(1);
    let next = AtomicU64::new(0);
    let failed: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let mut failed = Vec::new();
            loop {
                let case = next.fetch_add(1, Ordering::SeqCst);
                if case >= cases {
                    return failed;
                }
                let seed = first + case;
                let why = try_seed(seed).err();
                failed.extend(why.map(|why| format!("VAHTI_EVERYTHING_SEED={seed}: {why}")));
            }
        };
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}
