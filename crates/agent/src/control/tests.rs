use std::os::unix::fs::PermissionsExt;

use super::client::ClientError;
use super::*;

fn answering(path: &Path) -> Result<Control, ControlError> {
    let answer = |request: &str| (request == "ledger").then(|| br#"{"observers":[]}"#.to_vec());
    Control::start(path, Arc::new(answer))
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
    assert_eq!(unknown["error"], "unknown request; known is: ledger");
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
    // All places taken by clients that say nothing; more than that are
    // turned away at once.
    let silent: Vec<UnixStream> =
        (0..2 * MAX_CLIENTS).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let begun = Instant::now();
    while ask(&path, "ledger").is_err() {
        assert!(begun.elapsed() < Duration::from_secs(10), "no place came free");
        std::thread::sleep(Duration::from_millis(20));
    }
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
