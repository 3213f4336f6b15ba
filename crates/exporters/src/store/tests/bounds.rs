//! Other bounds while the store is in use.

use super::*;

fn size(folder: &Path) -> u64 {
    let files = ["events.db", "events.db-wal"].map(|file| folder.join(file));
    files.iter().map(|file| fs::metadata(file).map_or(0, |meta| meta.len())).sum()
}

#[test]
fn a_store_that_becomes_smaller_lets_go_of_what_is_too_much_and_counts_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = StoreConfig { max_bytes: ByteSize::mib(64), ..StoreConfig::at(folder.path()) };
    let store = Store::open(config, Vec::new(), Duration::ZERO).unwrap();
    store.set_ledger(|| b"{}".to_vec());
    for round in 0..40 {
        commit(&store, &batch(1 + round * 1_000, 1_000));
    }
    assert_eq!(store.own_line().dropped_total().envelopes, 0);
    let before = size(folder.path());
    assert!(before > ByteSize::mib(8).0, "{before}");
    store.set_bounds(ByteSize::mib(8), StoreConfig::at("").max_age);
    commit(&store, &batch(40_001, 1));
    let line = store.own_line();
    assert!(line.dropped_for(DropReason::StoreFull).envelopes > 1_000, "{line:?}");
    assert_eq!(line.dropped_for(DropReason::StoreFull), line.dropped_total());
    assert_exact(&store, folder.path());
    // The file gives back a megabyte a commit.
    for round in 0..100 {
        commit(&store, &batch(40_002 + round, 1));
    }
    assert!(size(folder.path()) <= ByteSize::mib(8).0, "{}", size(folder.path()));
    // It may grow again.
    let dropped = store.own_line().dropped_total();
    store.set_bounds(ByteSize::mib(64), StoreConfig::at("").max_age);
    for round in 0..20 {
        commit(&store, &batch(50_001 + round * 1_000, 1_000));
    }
    assert_eq!(store.own_line().dropped_total(), dropped);
    assert!(size(folder.path()) > ByteSize::mib(8).0);
    assert_exact(&store, folder.path());
}

#[test]
fn a_batch_of_a_larger_store_goes_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let config = StoreConfig { max_bytes: ByteSize::mib(256), ..StoreConfig::at(folder.path()) };
    let store = Store::open(config, Vec::new(), Duration::ZERO).unwrap();
    let most = store.emitter().max_batch();
    store.set_bounds(ByteSize::mib(8), StoreConfig::at("").max_age);
    let all = batch(1, most as u64);
    let outcome = emit(&mut store.emitter(), &all);
    assert!(matches!(outcome, EmitOutcome::TooLarge { .. }), "{outcome:?}");
    let less = store.emitter().max_batch();
    assert!(less < most);
    all.chunks(less).for_each(|part| commit(&store, part));
    assert_exact(&store, folder.path());
}

#[test]
fn what_is_kept_for_a_shorter_time_leaves_with_the_next_commit() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), NOBODY);
    let old = batch(1, 10).into_iter().map(|event| {
        let observed_ns = event.observed_ns - 2 * 3_600_000_000_000;
        Arc::new(Event { observed_ns, ..(*event).clone() })
    });
    commit(&store, &old.collect::<Vec<_>>());
    assert_eq!(store.own_line().stored.envelopes, 10);
    store.set_bounds(ByteSize::mib(8), HumanDuration(Duration::from_secs(3_600)));
    commit(&store, &batch(11, 5));
    let line = store.own_line();
    assert_eq!(line.dropped_for(DropReason::StoreAge).envelopes, 10);
    assert_eq!(kept(folder.path()), [11, 12, 13, 14, 15]);
    assert_exact(&store, folder.path());
}
