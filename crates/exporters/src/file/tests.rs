use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::testing::{SmallDisk, counts, delivered, emit, events};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn open(config: FileConfig) -> FileEmitter {
    FileEmitter::open("file", config).unwrap()
}

fn problem(path: &Path) -> String {
    FileEmitter::open("file", FileConfig::at(path)).unwrap_err().to_string()
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_batch_becomes_lines_in_a_file_that_others_cannot_read() {
    let folder = folder();
    let path = folder.path().join("events.jsonl");
    let mut emitter = open(FileConfig::at(&path));
    assert_eq!(emit(&mut emitter, &events(0, 3)), EmitOutcome::Delivered);
    assert_eq!(emit(&mut emitter, &events(3, 2)), EmitOutcome::Delivered);
    assert_eq!(counts(&text(&path)), [0, 1, 2, 3, 4]);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o137, 0);
}

#[test]
fn rotation_by_size_bounds_every_file_and_their_number() {
    let folder = folder();
    let path = folder.path().join("e");
    let max_size = ByteSize(4 << 10);
    let mut emitter = open(FileConfig { max_size, keep: 3, ..FileConfig::at(&path) });
    for batch in 0..20 {
        assert_eq!(emit(&mut emitter, &events(batch * 10, 10)), EmitOutcome::Delivered);
    }
    assert_eq!(names(folder.path()), ["e", "e.1", "e.2", "e.3"]);
    let mut kept = Vec::new();
    for name in ["e.3", "e.2", "e.1", "e"] {
        let text = text(&folder.path().join(name));
        assert!(text.len() as u64 <= max_size.0);
        kept.extend(counts(&text));
    }
    let first = kept[0];
    assert!(first > 0, "the oldest are gone");
    assert_eq!(kept, (first..200).collect::<Vec<_>>(), "in order, none missing");
}

#[test]
fn a_line_larger_than_a_file_gets_one_of_its_own() {
    let folder = folder();
    let path = folder.path().join("e");
    let mut emitter = open(FileConfig { max_size: ByteSize(10), keep: 9, ..FileConfig::at(&path) });
    assert_eq!(emit(&mut emitter, &events(0, 3)), EmitOutcome::Delivered);
    assert_eq!(names(folder.path()), ["e", "e.1", "e.2"]);
}

#[test]
fn what_is_too_old_is_rotated_when_the_next_event_comes() {
    let folder = folder();
    let path = folder.path().join("e");
    let mut emitter = open(FileConfig::at(&path));
    emit(&mut emitter, &events(0, 1));
    emitter.current.as_mut().unwrap().began = SystemTime::UNIX_EPOCH;
    emit(&mut emitter, &events(1, 1));
    emit(&mut emitter, &events(2, 1));
    assert_eq!(counts(&text(&path)), [1, 2]);
    assert_eq!(counts(&text(&folder.path().join("e.1"))), [0]);
}

#[test]
fn keeping_none_leaves_one_file() {
    let folder = folder();
    let path = folder.path().join("e");
    let mut emitter =
        open(FileConfig { max_size: ByteSize(4 << 10), keep: 0, ..FileConfig::at(&path) });
    emit(&mut emitter, &events(0, 100));
    assert_eq!(names(folder.path()), ["e"]);
    assert_eq!(counts(&text(&path)).last(), Some(&99));
}

#[test]
fn a_smaller_number_to_keep_removes_what_is_beyond_it() {
    let folder = folder();
    let path = folder.path().join("e");
    for name in ["e.1", "e.2", "e.3", "e.4", "e.9", "e.txt"] {
        fs::write(folder.path().join(name), "\n").unwrap();
    }
    open(FileConfig { keep: 2, ..FileConfig::at(&path) });
    // What follows a gap in the numbers is not ours.
    assert_eq!(names(folder.path()), ["e", "e.1", "e.2", "e.9", "e.txt"]);
}

#[test]
fn a_rotation_that_a_crash_broke_off_loses_nothing() {
    let folder = folder();
    let path = folder.path().join("e");
    for (name, content) in [("e", "0"), ("e.1", "1"), ("e.3", "3")] {
        fs::write(folder.path().join(name), content).unwrap();
    }
    rotation::rotate(&path, 3).unwrap();
    for (name, content) in [("e.1", "0"), ("e.2", "1"), ("e.3", "3")] {
        assert_eq!(text(&folder.path().join(name)), content);
    }
}

#[test]
fn half_a_line_that_another_process_leaves_meanwhile_does_not_spoil_the_next() {
    use std::io::Write;
    let folder = folder();
    let path = folder.path().join("e");
    let mut emitter = open(FileConfig::at(&path));
    emit(&mut emitter, &events(0, 1));
    let mut other = fs::OpenOptions::new().append(true).open(&path).unwrap();
    other.write_all(b"{\"half").unwrap();
    emit(&mut emitter, &events(1, 1));
    emit(&mut emitter, &events(2, 1));
    let lines = text(&path);
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert_eq!(lines[1], "{\"half");
    assert_eq!(counts(&[lines[0], lines[2], lines[3], ""].join("\n")), [0, 1, 2]);
    // What was cut off under us is not torn.
    other.set_len(0).unwrap();
    emit(&mut emitter, &events(3, 1));
    assert_eq!(counts(&text(&path)), [3]);
}

#[test]
fn a_torn_last_line_does_not_spoil_the_next() {
    let folder = folder();
    let path = folder.path().join("e");
    fs::write(&path, "{\"count\":1}\n{\"cou").unwrap();
    let mut emitter = open(FileConfig::at(&path));
    emit(&mut emitter, &events(7, 1));
    let text = text(&path);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[1], "{\"cou");
    assert_eq!(counts(&format!("{}\n", lines[2])), [7]);
}

#[test]
fn a_file_that_was_moved_or_deleted_is_created_anew() {
    let folder = folder();
    let (path, moved) = (folder.path().join("e"), folder.path().join("moved"));
    let mut emitter = open(FileConfig::at(&path));
    emit(&mut emitter, &events(0, 1));
    fs::rename(&path, &moved).unwrap();
    emit(&mut emitter, &events(1, 1));
    assert_eq!(counts(&text(&moved)), [0]);
    assert_eq!(counts(&text(&path)), [1]);
    fs::remove_file(&path).unwrap();
    emit(&mut emitter, &events(2, 1));
    assert_eq!(counts(&text(&path)), [2]);
}

#[test]
fn a_file_that_others_truncated_goes_on_from_its_start() {
    let folder = folder();
    let path = folder.path().join("e");
    let mut emitter = open(FileConfig::at(&path));
    emit(&mut emitter, &events(0, 10));
    fs::write(&path, "").unwrap();
    emit(&mut emitter, &events(10, 2));
    assert_eq!(counts(&text(&path)), [10, 11]);
}

#[test]
fn moving_files_away_under_load_loses_and_tears_no_line() {
    let folder = folder();
    let path = folder.path().join("e");
    let mut emitter =
        open(FileConfig { max_size: ByteSize(16 << 10), keep: 1_000, ..FileConfig::at(&path) });
    let (elsewhere, from) = (folder.path().join("elsewhere"), path.clone());
    fs::create_dir(&elsewhere).unwrap();
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = Arc::clone(&done);
    let to = elsewhere.clone();
    let mover = std::thread::spawn(move || {
        let mut n = 0;
        while !seen.load(std::sync::atomic::Ordering::Relaxed) {
            if fs::rename(&from, to.join(n.to_string())).is_ok() {
                n += 1;
            }
            std::thread::yield_now();
        }
        n
    });
    let (mut next, total) = (0, 20_000);
    while next < total {
        // What is not delivered is tried again, as the runtime does.
        let batch = events(next, (total - next).min(512));
        let outcome = emit(&mut emitter, &batch);
        next += delivered(&outcome, batch.len()) as u64;
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(mover.join().unwrap() > 0, "some were moved");

    let mut found = Vec::new();
    for folder in [folder.path(), &elsewhere] {
        for name in names(folder).iter().filter(|name| *name != "elsewhere") {
            found.extend(counts(&text(&folder.join(name))));
        }
    }
    found.sort_unstable();
    assert_eq!(found, (0..total).collect::<Vec<_>>());
}

#[test]
fn a_full_disk_keeps_whole_lines_only_and_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let path = disk.path().join("e");
    let ballast = disk.path().join("ballast");
    fs::write(&ballast, vec![0; 30 << 10]).unwrap();
    let mut emitter = open(FileConfig::at(&path));
    let batch = events(0, 300);
    let outcome = emit(&mut emitter, &batch);
    let arrived = delivered(&outcome, batch.len());
    assert!(0 < arrived && arrived < batch.len(), "{outcome:?}");
    let EmitOutcome::Each { reason, .. } = outcome else {
        panic!("{outcome:?}");
    };
    assert!(reason.contains("No space left on device"), "{reason}");
    assert_eq!(counts(&text(&path)), (0..arrived as u64).collect::<Vec<_>>());

    assert!(matches!(emit(&mut emitter, &batch[arrived..]), EmitOutcome::Retryable { .. }));
    fs::remove_file(ballast).unwrap();
    let more = &batch[arrived..arrived + 20];
    assert_eq!(emit(&mut emitter, more), EmitOutcome::Delivered);
    assert_eq!(counts(&text(&path)), (0..arrived as u64 + 20).collect::<Vec<_>>());
}

#[test]
fn a_rotation_that_fails_holds_events_back_instead_of_growing() {
    let folder = folder();
    let path = folder.path().join("e");
    let config = FileConfig { max_size: ByteSize(4 << 10), keep: 1, ..FileConfig::at(&path) };
    let mut emitter = open(config);
    emit(&mut emitter, &events(0, 5));
    // A folder that is not empty can't be replaced by a file.
    fs::create_dir_all(folder.path().join("e.1/x")).unwrap();
    let outcome = emit(&mut emitter, &events(5, 100));
    let arrived = delivered(&outcome, 100);
    assert!(arrived < 100);
    let EmitOutcome::Each { reason, .. } = outcome else {
        panic!("{outcome:?}");
    };
    assert!(reason.starts_with("cannot rotate "), "{reason}");
    assert!(path.metadata().unwrap().len() <= 4 << 10);
    fs::remove_dir_all(folder.path().join("e.1")).unwrap();
    let rest = events(5 + arrived as u64, 3);
    assert_eq!(emit(&mut emitter, &rest), EmitOutcome::Delivered);
}

#[test]
fn two_writers_of_one_file_are_one_too_many() {
    let folder = folder();
    let path = folder.path().join("e");
    let first = open(FileConfig::at(&path));
    assert!(
        problem(&path)
            .ends_with("another process writes to it; stop that one, or set another path")
    );
    drop(first);
    open(FileConfig::at(&path));
}

#[test]
fn what_is_no_file_is_refused_with_advice() {
    let folder = folder();
    let path = folder.path();
    let missing = problem(&path.join("no/such/e"));
    assert!(
        missing.ends_with("no/such does not exist; create it, or set another path"),
        "{missing}"
    );
    assert!(problem(path).ends_with("it is a folder; set the path of a file in it"));
    std::os::unix::fs::symlink(path.join("target"), path.join("link")).unwrap();
    assert!(problem(&path.join("link")).contains("a symbolic link, which is not followed"));
    assert!(problem(Path::new("/dev/null")).contains("it is no regular file"));
    let evil = problem(&path.join("a\u{1b}[2J/e"));
    assert!(!evil.chars().any(char::is_control), "{evil:?}");
}

#[test]
fn values_out_of_bounds_are_named_with_their_bounds() {
    let config = FileConfig {
        path: "/".into(),
        max_size: ByteSize(1),
        max_age: HumanDuration(Duration::ZERO),
        keep: 1_001,
    };
    let told: Vec<String> = config.validate().iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "path is \"/\", but must be the path of a file",
            "max_size is 1B, but must be 4KiB to 1024GiB",
            "max_age is 0s, but must be 1s to 366d",
            "keep is 1001, but must be a whole number from 0 to 1,000",
        ]
    );
    assert!(FileConfig::at("e").validate().is_empty());
}
