//! Damage in pages that nobody comes to: it is looked for.

use std::os::unix::fs::FileExt;

use super::*;

/// As a kill leaves it: without an end.
fn killed(folder: &Path) {
    let store = open(folder, &["a"]);
    for round in 0..20 {
        commit(&store, &batch(1 + round * 50, 50));
    }
    let mut inner = store.shared.lock();
    assert!(inner.writer.as_mut().unwrap().write_back().unwrap());
}

/// Writes noise over pages with events in the middle, which no commit comes to.
fn damage(folder: &Path) {
    let file = folder.join("events.db");
    let bytes = fs::read(&file).unwrap();
    // The kind of page that rows of a table stand in
    // (<https://sqlite.org/fileformat2.html#b_tree_pages>).
    let holds_rows = |page: &usize| bytes[page * 4_096] == 13;
    let pages: Vec<usize> = (0..bytes.len() / 4_096).filter(holds_rows).collect();
    let file = fs::OpenOptions::new().write(true).open(file).unwrap();
    for page in &pages[pages.len() / 2..][..8] {
        file.write_all_at(&[0x5a; 4_096], *page as u64 * 4_096).unwrap();
    }
}

fn until(what: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if what() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("it did not come true within 10 s");
}

fn is_over(store: &Store) -> bool {
    store.shared.checks.lock().unwrap().as_ref().is_some_and(JoinHandle::is_finished)
}

#[test]
fn after_a_start_damage_is_found_though_nobody_comes_to_it() {
    let folder = tempfile::tempdir().unwrap();
    killed(folder.path());
    damage(folder.path());
    let store = open(folder.path(), &["a"]);
    commit(&store, &batch(2_001, 5));
    assert_eq!(store.set_aside(), 0, "the start does not wait for it");
    store.tick();
    until(|| store.set_aside() == 1);
    until(|| is_over(&store));
    commit(&store, &batch(2_006, 5));
    assert_eq!(kept(folder.path()), [2_006, 2_007, 2_008, 2_009, 2_010]);
    assert_exact(&store, folder.path());
    let line = store.line("a");
    assert_eq!(line.dropped_for(DropReason::StoreLost).envelopes, 1_005);
    assert_eq!(line.difference, 0);
}

#[test]
fn pages_that_somebody_writes_over_under_a_running_agent_are_found() {
    let folder = tempfile::tempdir().unwrap();
    killed(folder.path());
    let store = open(folder.path(), &["a"]);
    store.tick();
    until(|| is_over(&store));
    assert_eq!(store.set_aside(), 0);
    damage(folder.path());
    store.tick();
    until(|| store.set_aside() == 1);
    commit(&store, &batch(2_001, 5));
    assert_exact(&store, folder.path());
}

#[test]
fn a_sound_file_is_looked_through_once_after_every_start_and_then_daily() {
    let folder = tempfile::tempdir().unwrap();
    killed(folder.path());
    let store = open(folder.path(), &["a"]);
    let mut inner = store.shared.lock();
    assert!(inner.check.take() && !inner.check.take());
    drop(inner);
    commit(&store, &[Arc::new(Event::new(&AGENT_GAP, Severity::Error))]);
    store.end();
    drop(store);
    let store = open(folder.path(), &["a"]);
    store.tick();
    until(|| is_over(&store));
    assert!(!store.shared.lock().check.take());
    assert_eq!(store.set_aside(), 0);
}

#[test]
fn whoever_looks_for_damage_is_in_nobody_s_way() {
    let folder = tempfile::tempdir().unwrap();
    killed(folder.path());
    let store = open(folder.path(), &["a"]);
    let (file, _) = store.shared.file().unwrap();
    let line = Line::open(&store.shared, &file, check::CACHE_BYTES).unwrap();
    let weak = Arc::downgrade(&store.shared);
    let look = |log_bytes| {
        let log = folder::with_suffix(&file, "-wal");
        check::look_through(&line, log, log_bytes, &weak).unwrap()
    };
    assert_eq!(look(u64::MAX), check::Found::Sound);
    // The log is beyond what it may be while it is looked.
    commit(&store, &batch(2_001, 5));
    assert_eq!(look(0), check::Found::GaveUp);
    // Who is to close it has it closed, and opens the next.
    store.shared.close_cursors();
    assert_eq!(look(u64::MAX), check::Found::GaveUp);
}
