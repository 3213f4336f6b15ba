use std::fs::OpenOptions;
use std::io::{PipeReader, Read, pipe};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use super::*;
use crate::testing::{SmallDisk, counts, delivered, emit, events};

fn file(output: impl Into<OwnedFd>) -> Arc<File> {
    Arc::new(File::from(output.into()))
}

fn piped() -> (StdoutEmitter, PipeReader) {
    let (reader, writer) = pipe().unwrap();
    (StdoutEmitter::writing_to(file(writer), "stdout", None), reader)
}

fn reading(mut reader: PipeReader) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    })
}

#[test]
fn its_reader_is_waited_for_and_nobody_takes_over() {
    // A second one would write into the middle of a line of the first.
    assert!(piped().0.waits_for_reader());
}

#[test]
fn a_program_that_reads_gets_json_lines() {
    let (mut emitter, reader) = piped();
    let text = reading(reader);
    for batch in 0..10 {
        assert_eq!(emit(&mut emitter, &events(batch * 500, 500)), EmitOutcome::Delivered);
    }
    drop(emitter);
    assert_eq!(counts(&text.join().unwrap()), (0..5_000).collect::<Vec<_>>());
}

#[test]
fn text_can_be_asked_for_and_has_no_colour_in_a_pipe() {
    let (reader, writer) = pipe().unwrap();
    let mut emitter = StdoutEmitter::writing_to(file(writer), "stdout", Some(Format::Text));
    let text = reading(reader);
    emit(&mut emitter, &events(1, 1));
    drop(emitter);
    assert_eq!(text.join().unwrap(), "1970-01-01T00:00:00.000Z error connection refused\n");
}

#[test]
fn a_reader_that_is_gone_is_told_once_and_for_good() {
    let told = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&told);
    let (emitter, reader) = piped();
    let mut emitter = emitter.on_closed(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    emit(&mut emitter, &events(0, 1));
    assert_eq!(told.load(Ordering::Relaxed), 0);
    drop(reader);
    for _ in 0..3 {
        let outcome = emit(&mut emitter, &events(0, 2));
        assert!(matches!(outcome, EmitOutcome::Rejected { .. }), "{outcome:?}");
    }
    assert_eq!(told.load(Ordering::Relaxed), 1);
}

#[test]
fn a_reader_that_leaves_within_a_batch_has_what_came_before() {
    let (mut emitter, mut reader) = piped();
    let text = thread::spawn(move || {
        let mut some = vec![0; 100_000];
        reader.read_exact(&mut some).unwrap();
        some
    });
    let batch = events(0, 2_000);
    let outcome = emit(&mut emitter, &batch);
    let arrived = delivered(&outcome, batch.len());
    let EmitOutcome::Each { deliveries, .. } = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(deliveries[arrived], Delivery::Rejected);
    let read = text.join().unwrap();
    let whole = read.iter().filter(|b| **b == b'\n').count();
    assert!(arrived >= whole, "{arrived} delivered, {whole} read");
}

#[test]
fn a_descriptor_that_somebody_made_non_blocking_is_waited_for() {
    let (reader, writer) = pipe().unwrap();
    let writer = File::from(OwnedFd::from(writer));
    // SAFETY: the descriptor is open; F_SETFL takes an integer.
    let set = unsafe {
        libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&writer), libc::F_SETFL, libc::O_NONBLOCK)
    };
    assert_eq!(set, 0);
    let mut emitter = StdoutEmitter::writing_to(file(writer), "stdout", None);
    let text = reading(reader);
    assert_eq!(emit(&mut emitter, &events(0, 5_000)), EmitOutcome::Delivered);
    drop(emitter);
    assert_eq!(counts(&text.join().unwrap()).len(), 5_000);
}

#[test]
fn what_cannot_be_written_now_is_tried_again() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut emitter = StdoutEmitter::writing_to(file(full), "stdout", None)
        .on_closed(|| panic!("it is not closed"));
    for _ in 0..2 {
        let outcome = emit(&mut emitter, &events(0, 2));
        let EmitOutcome::Retryable { reason, .. } = outcome else {
            panic!("{outcome:?}");
        };
        assert!(reason.contains("No space left on device"), "{reason}");
    }
}

#[test]
fn a_line_that_broke_off_does_not_spoil_the_next() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let (path, ballast) = (disk.path().join("out"), disk.path().join("ballast"));
    std::fs::write(&ballast, vec![0; 30 << 10]).unwrap();
    let out = File::create(&path).unwrap();
    let mut emitter = StdoutEmitter::writing_to(file(out), "stdout", None);
    let batch = events(0, 300);
    let arrived = delivered(&emit(&mut emitter, &batch), batch.len());
    assert!(arrived > 0);
    let still_full = emit(&mut emitter, &batch[arrived..]);
    assert_eq!(delivered(&still_full, batch.len() - arrived), 0);
    std::fs::remove_file(ballast).unwrap();
    let last = emit(&mut emitter, &batch[arrived..arrived + 5]);
    assert_eq!(last, EmitOutcome::Delivered);
    let text = std::fs::read_to_string(path).unwrap();
    let whole: String = text
        .split_inclusive('\n')
        .filter(|line| serde_json::from_str::<serde_json::Value>(line).is_ok())
        .collect();
    assert_eq!(counts(&whole), (0..arrived as u64 + 5).collect::<Vec<_>>());
    assert_eq!(text.lines().count(), arrived + 6, "one is torn");
}
