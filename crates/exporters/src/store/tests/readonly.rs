//! Stores on file systems that take nothing more.

use std::process::Command;

use super::*;

/// A folder with a strange name on a disk that can be made read-only.
struct Mounted(SmallDisk);

impl Mounted {
    fn new() -> Option<Self> {
        SmallDisk::of_kib(2_048).map(Mounted)
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("a store? 100% #1 \u{e4}")
    }

    fn remount(&self, how: &str) {
        let how = format!("remount,{how}");
        let mount = Command::new("mount").args(["-o", &how]).arg(self.0.path()).status();
        assert!(mount.unwrap().success());
    }
}

#[test]
fn a_store_that_ended_is_read_from_a_file_system_that_is_mounted_read_only() {
    let Some(disk) = Mounted::new() else { return };
    let store = open(&disk.folder(), &["a"]);
    commit(&store, &batch(1, 20));
    store.end();
    drop(store);
    disk.remount("ro");
    assert_eq!(kept(&disk.folder()), (1..=20).collect::<Vec<_>>());
    let state = State::of(&disk.folder()).unwrap();
    assert_eq!(state.contents.unwrap().unwrap().events, 20);
    assert_eq!(Reader::open(&disk.folder()).unwrap().snapshot().unwrap().unwrap().json, "{}");
}

#[test]
fn a_log_that_can_not_be_read_there_is_no_reason_to_tell_half_of_it() {
    let Some(disk) = Mounted::new() else { return };
    let store = open(&disk.folder(), &["a"]);
    commit(&store, &batch(1, 20));
    let image = super::lossy::image_of(&disk.folder());
    drop(store);
    // As a kill leaves it: with a log, and without its index.
    for name in files(&disk.folder()) {
        fs::remove_file(disk.folder().join(name)).unwrap();
    }
    for (name, bytes) in image {
        fs::write(disk.folder().join(name), bytes).unwrap();
    }
    disk.remount("ro");
    match Reader::open(&disk.folder()) {
        Err(error) => assert!(matches!(error, ReadError::Sqlite { .. }), "{error}"),
        Ok(reader) => assert_eq!(reader.last_seq().unwrap(), 20),
    }
}

#[test]
fn an_agent_that_writes_elsewhere_is_no_reason_to_read_without_locks() {
    let Some(disk) = Mounted::new() else { return };
    let store = open(&disk.folder(), &["a"]);
    commit(&store, &batch(1, 20));
    store.end();
    drop(store);
    // The file alone, and a lock that is held.
    let lock = folder::Lock::take(&disk.folder(), Duration::ZERO);
    assert!(lock.is_ok());
    let again = disk.folder();
    let bound = tempfile::tempdir().unwrap();
    let mount = |args: &[&str]| Command::new("mount").args(args).arg(bound.path()).status();
    let bind = Command::new("mount").arg("--bind").arg(&again).arg(bound.path()).status();
    assert!(bind.unwrap().success());
    assert!(mount(&["-o", "remount,bind,ro"]).unwrap().success());
    let refused = Reader::open(bound.path()).err();
    drop(lock);
    let read = Reader::open(bound.path()).and_then(|reader| reader.last_seq());
    assert!(Command::new("umount").arg(bound.path()).status().unwrap().success());
    assert!(matches!(refused, Some(ReadError::Sqlite { .. })), "{refused:?}");
    assert_eq!(read.unwrap(), 20);
}
