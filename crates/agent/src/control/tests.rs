use std::io::{BufRead, BufReader};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::client::ClientError;
use super::*;

fn answering(path: &Path) -> Result<Control, ControlError> {
    let answer = |request: &str, _| {
        (request == "ledger").then(|| Reply::Document(br#"{"observers":[]}"#.to_vec()))
    };
    Control::start(path, Arc::new(answer), &Patience::none())
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn a_question_is_answered_and_the_socket_is_nobody_elses() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vahti/vahti.sock");
    let control = answering(&path).unwrap();
    assert_eq!(ask(&path, "ledger").unwrap(), serde_json::json!({"observers": []}));
    let unknown = ask(&path, "shutdown now").unwrap();
    assert_eq!(unknown["error"], "unknown request; known are: ledger, health, log, reload, prove");
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    drop(control);
    assert!(matches!(ask(&path, "ledger"), Err(ClientError::NotRunning { .. })));
    assert!(!path.exists());
}

#[test]
fn a_second_agent_is_refused_and_told_who_the_first_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let _first = answering(&path).unwrap();
    let refused = answering(&path).err().unwrap();
    assert!(matches!(refused, ControlError::InUse { pid: Some(pid) } if pid == std::process::id()));
    assert!(refused.to_string().contains(&format!("(pid {})", std::process::id())));
    assert!(ask(&path, "ledger").is_ok(), "the first goes on");
}

#[test]
fn what_a_dead_agent_left_behind_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    fs::create_dir(beside(&path, ".new")).unwrap();
    drop(UnixListener::bind(beside(&path, ".new").join("s")).unwrap());
    fs::write(beside(&path, ".lock"), "99999999999999999999999999").unwrap();
    let _control = answering(&path).unwrap();
    assert!(ask(&path, "ledger").is_ok());
}

#[test]
fn nothing_but_a_socket_is_replaced_and_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |path: &Path, named: &Path| {
        let told = answering(path).err().unwrap();
        assert!(matches!(told, ControlError::Taken { .. }), "{told}");
        assert!(told.to_string().starts_with(named.to_str().unwrap()), "{told}");
    };
    let file = folder.path().join("passwords");
    fs::write(&file, "secret").unwrap();
    refused(&file, &file);
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    refused(&link, &link);
    refused(folder.path(), folder.path());
    // Nor what stands in the way of its lock or of its folder.
    let path = folder.path().join("Cargo");
    fs::write(beside(&path, ".lock"), "version = 4\n").unwrap();
    refused(&path, &beside(&path, ".lock"));
    assert_eq!(fs::read_to_string(beside(&path, ".lock")).unwrap(), "version = 4\n");
    let path = folder.path().join("s");
    let new = beside(&path, ".new");
    fs::create_dir(&new).unwrap();
    fs::write(new.join("work"), "of years").unwrap();
    refused(&path, &new);
    fs::write(new.join("s"), "this too").unwrap();
    refused(&path, &new.join("s"));
    assert_eq!(fs::read_to_string(new.join("work")).unwrap(), "of years");
    fs::remove_dir_all(&new).unwrap();
    std::os::unix::fs::symlink(folder.path(), &new).unwrap();
    refused(&path, &new);
    assert_eq!(fs::read_to_string(&file).unwrap(), "secret");
}

#[test]
fn a_folder_that_others_may_write_to_is_noticed_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    assert!(!is_writable_by_others(folder.path()));
    fs::set_permissions(folder.path(), Permissions::from_mode(0o770)).unwrap();
    assert!(is_writable_by_others(folder.path()));
    let path = folder.path().join("s");
    let _control = answering(&path).unwrap();
    assert_eq!((mode(&path), mode(folder.path())), (0o600, 0o770));
}

#[test]
fn hostile_clients_hold_up_nobody_for_long() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let _control = answering(&path).unwrap();
    // All places taken by clients that say nothing, and more: each question
    // is answered all the same, at once.
    let begun = Instant::now();
    let mut silent = Vec::new();
    for _ in 0..4 * server::MAX_CLIENTS {
        silent.push(UnixStream::connect(&path).unwrap());
        assert!(ask(&path, "ledger").is_ok());
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "nobody waited for them one by one");
    // Who was silent for longest gave way, with an end and no word.
    assert_eq!(silent[0].read(&mut [0]).unwrap(), 0);
    silent.last().unwrap().set_nonblocking(true).unwrap();
    assert!(silent.last().unwrap().read(&mut [0]).is_err(), "the last may still ask");
    drop(silent);
    // One that never ends its line.
    let endless = UnixStream::connect(&path).unwrap();
    let sent = (0..64).try_for_each(|_| (&endless).write_all(&[b'x'; 1024]));
    assert!(sent.is_err() || ask(&path, "ledger").is_ok());
    let binary = UnixStream::connect(&path).unwrap();
    (&binary).write_all(b"\xff\xfe\0\n").unwrap();
    assert!(ask(&path, "ledger").is_ok());
}

#[test]
fn a_path_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let long = folder.path().join("x".repeat(150));
    let told = answering(&long).err().unwrap().to_string();
    assert!(told.starts_with("cannot create the socket"), "{told}");
    let deep = answering(&folder.path().join("a/b/c")).err().unwrap().to_string();
    assert!(deep.starts_with("cannot create the folder"), "{deep}");
}

/// Counts what is held for clients.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Counted(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn holding(path: &Path, held: &Arc<AtomicUsize>) -> Control {
    let held = Arc::clone(held);
    let answer = move |request: &str, peer: Peer| match request {
        "ledger" => Some(Reply::Document(b"{}".to_vec())),
        _ if peer.pid == std::process::id() => {
            Some(Reply::Held(br#"{"proving":1}"#.to_vec(), Box::new(Counted::new(&held))))
        }
        _ => None,
    };
    Control::start(path, Arc::new(answer), &Patience::none()).unwrap()
}

#[test]
fn what_is_held_for_a_client_is_let_go_of_before_its_connection_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let held = Arc::default();
    let _control = holding(&path, &held);
    let paths = [path.clone(), folder.path().join("nobody")];
    let untold = |error| panic!("{error}");
    let announced = Announcements::make(&paths, 1, untold);
    assert_eq!(held.load(Ordering::Acquire), 1);
    // Idle clients take nobody's place who is held.
    let _silent: Vec<UnixStream> =
        (0..2 * server::MAX_CLIENTS).map(|_| UnixStream::connect(&path).unwrap()).collect();
    assert!(ask(&path, "ledger").is_ok());
    assert_eq!(held.load(Ordering::Acquire), 1);
    drop(announced);
    assert_eq!(held.load(Ordering::Acquire), 0);
    // One that does not wait for the answer, and is gone.
    let gone = UnixStream::connect(&path).unwrap();
    (&gone).write_all(b"prove 1\n").unwrap();
    drop(gone);
    let left = Announcements::make(&paths, 1, untold);
    assert_eq!(held.load(Ordering::Acquire), 1);
    // An agent that ends lets go of all.
    drop(_control);
    drop(left);
    assert_eq!(held.load(Ordering::Acquire), 0);
}

#[test]
fn a_request_that_brings_a_bug_to_light_costs_nobody_else_an_answer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let answer = |request: &str, _| match request {
        "ledger" => Some(Reply::Document(b"{}".to_vec())),
        _ => panic!("a bug"),
    };
    let _control = Control::start(&path, Arc::new(answer), &Patience::none()).unwrap();
    assert_eq!(ask(&path, "prove 1").unwrap()["error"], "a bug in vahti: its log tells");
    assert_eq!(ask(&path, "ledger").unwrap(), serde_json::json!({}));
}

#[test]
fn an_agent_that_knows_nothing_of_proofs_or_does_not_answer_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("older");
    let _control = answering(&path).unwrap();
    let stopped = folder.path().join("stopped");
    let listener = UnixListener::bind(&stopped).unwrap();
    let mut untold = Vec::new();
    let begun = Instant::now();
    drop(Announcements::make(&[path, stopped], 1, |error| untold.push(error.to_string())));
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert_eq!(untold.len(), 2);
    assert!(untold[0].contains("older did not answer: unknown request"), "{untold:?}");
    assert!(untold[1].contains("stopped did not answer: it takes too long"), "{untold:?}");
    let (client, _) = listener.accept().unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut line = String::new();
    BufReader::new(client).read_line(&mut line).unwrap();
    assert_eq!(line, "prove 1\n");
}
