//! Another configuration while it runs: asked for, noticed, refused.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::agent::{Agent, BINARY, refuse, until};

/// An agent with a configuration file in a folder of its own, and its log.
struct Reloaded {
    agent: Agent,
    place: tempfile::TempDir,
    log: Arc<Mutex<String>>,
}

const FIRST: &str = "observers: {network: {sampling: {enabled: true, default_rate: 1.0}}}\n";

impl Reloaded {
    /// With this configuration, and these arguments; the file is where
    /// `prepare` puts it.
    fn start_with(arguments: &[&str], prepare: impl FnOnce(&Path) -> PathBuf) -> Option<Self> {
        let place = tempfile::tempdir().unwrap();
        let file = prepare(place.path());
        let all = [&["--config", file.to_str().unwrap(), "--observers", "network"], arguments];
        let mut agent = Agent::start(&all.concat(), Stdio::null())?;
        let log: Arc<Mutex<String>> = Arc::default();
        let (told, stderr) = (Arc::clone(&log), agent.child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut told = told.lock().unwrap();
                told.push_str(&line);
                told.push('\n');
            }
        });
        Some(Reloaded { agent, place, log })
    }

    fn start(arguments: &[&str]) -> Option<Self> {
        Self::start_with(arguments, |folder| {
            let file = folder.join("vahti.yaml");
            fs::write(&file, FIRST).unwrap();
            file
        })
    }

    fn file(&self) -> PathBuf {
        self.place.path().join("vahti.yaml")
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    #[track_caller]
    fn tells(&self, what: &str) {
        let begun = Instant::now();
        while !self.log().contains(what) {
            assert!(begun.elapsed() < Duration::from_secs(30), "{what}: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `vahti reload`: whether it was successful, and what it told.
    fn reload(&self) -> (Option<i32>, String) {
        let output = Command::new(BINARY)
            .args(["reload", "--socket", &self.agent.socket()])
            .output()
            .unwrap();
        let told = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(told).unwrap())
    }

    /// Has it ask for what it did not notice by itself, which is nothing.
    #[track_caller]
    fn noticed(&self, rate: &str, generation: u64) {
        self.tells(&format!("configuration is in force generation={generation}"));
        let log = self.log();
        assert!(log.contains("observers.network.sampling.default_rate: "), "{log}");
        assert!(log.contains(&format!("→ {rate}, applied")), "{log}");
        let expected = format!("nothing is new; generation {generation} stays in force\n");
        assert_eq!(self.reload(), (Some(0), expected));
    }
}

fn rate(rate: &str) -> String {
    FIRST.replace("1.0", rate)
}

#[test]
fn a_hang_up_signal_and_a_command_have_the_file_read_and_name_what_changes() {
    let Some(mut it) = Reloaded::start(&["--emit", "none", "--log", "info"]) else { return };
    let nothing = "nothing is new; generation 1 stays in force\n";
    assert_eq!(it.reload(), (Some(0), nothing.to_owned()));
    // It is written in one go, so that whoever is first sees all of it.
    let more = "node_name: another\nstore: {max_age: 1h}\nlog: error\n";
    fs::write(it.file(), rate("0.5") + more).unwrap();
    it.agent.signal(libc::SIGHUP);
    it.tells("SIGHUP: reading the configuration");
    it.tells("configuration is in force generation=2");
    let log = it.log();
    for expected in [
        "observers.network.sampling.default_rate: 1.0 → 0.5, applied",
        "store.max_age: \"7d\" → \"1h\", applied",
        "node_name: not set → \"another\", needs a restart",
        "changed=3 need_restart=1",
    ] {
        assert!(log.contains(expected), "{expected}: {log}");
    }
    assert!(!log.contains("configuration: log"), "the command line goes before the file: {log}");
    let (code, told) = it.reload();
    assert_eq!(code, Some(0), "{told}");
    let still = "node_name: not set → \"another\", needs a restart\n\
                 nothing is new; generation 2 stays in force\n";
    assert_eq!(told, still);
    it.agent.adds_up();
    it.agent.signal(libc::SIGTERM);
    assert_eq!(it.agent.ends_within(Duration::from_secs(10)).0, Some(0));
}

#[test]
fn one_that_is_wrong_anywhere_is_refused_with_line_and_field_and_changes_nothing() {
    let Some(it) = Reloaded::start(&["--emit", "none"]) else { return };
    let wrong = "observers:\n  network:\n    sampling: {enabled: true, default_rate: 0.1}\n    \
                 backpressure: {queue_size: 0}\nstore: {max_age: soon}\n";
    fs::write(it.file(), wrong).unwrap();
    let (code, told) = it.reload();
    assert_eq!(code, Some(1));
    let file = it.file().display().to_string();
    let size = format!(
        "{file}:4:32: observers.network.backpressure.queue_size is 0, but must be a whole number \
         from 1 to 10,000,000"
    );
    assert!(told.contains(&size), "{told}");
    assert!(told.contains(&format!("{file}:5:18: store.max_age: \"soon\"")), "{told}");
    assert!(told.ends_with("generation 1 stays in force\n"), "{told}");
    it.tells(&format!("configuration refused: {size}"));
    it.tells("generation 1 of the configuration stays in force");
    fs::remove_file(it.file()).unwrap();
    let (code, told) = it.reload();
    assert_eq!(code, Some(1));
    assert!(told.contains("there is no such file"), "{told}");
    fs::write(it.file(), FIRST).unwrap();
    // Or it has seen that by itself meanwhile.
    until("it takes the good one", || {
        it.reload().1 == "nothing is new; generation 1 stays in force\n"
    });
    assert!(!it.log().contains("applied"), "{}", it.log());
}

#[test]
fn a_file_that_is_another_one_is_noticed_however_it_is_put_there() {
    let Some(it) = Reloaded::start(&["--emit", "none"]) else { return };
    let file = it.file();
    // As editors do.
    fs::write(it.place.path().join(".new"), rate("0.9")).unwrap();
    fs::rename(it.place.path().join(".new"), &file).unwrap();
    it.noticed("0.9", 2);
    // As `cat >` does, slowly.
    {
        use std::io::Write;
        let mut half = fs::File::create(&file).unwrap();
        let text = rate("0.8");
        let (one, two) = text.split_at(20);
        half.write_all(one.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        half.write_all(two.as_bytes()).unwrap();
    }
    it.noticed("0.8", 3);
    assert!(!it.log().contains("refused"), "half of it is not judged: {}", it.log());
    // It is gone for a while.
    fs::remove_file(&file).unwrap();
    it.tells("there is no such file");
    fs::write(&file, rate("0.7")).unwrap();
    it.noticed("0.7", 4);
    // And so is its folder.
    let (folder, away) = (it.place.path(), it.place.path().with_extension("away"));
    fs::rename(folder, &away).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    fs::create_dir(folder).unwrap();
    fs::write(&file, rate("0.6")).unwrap();
    it.noticed("0.6", 5);
    fs::remove_dir_all(folder).unwrap();
    fs::rename(&away, folder).unwrap();
    it.noticed("0.7", 6);
}

/// A version of a ConfigMap, as the kubelet writes it: a folder, and a link that
/// is put in the place of the one before, whose folder is removed then.
fn swap(volume: &Path, version: &str, text: &str) {
    let before = fs::read_link(volume.join("..data")).ok();
    fs::create_dir(volume.join(version)).unwrap();
    fs::write(volume.join(version).join("vahti.yaml"), text).unwrap();
    symlink(version, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    if let Some(before) = before {
        fs::remove_dir_all(volume.join(before)).unwrap();
    }
}

#[test]
fn a_config_map_that_is_swapped_is_noticed_each_time() {
    let volume = |folder: &Path| {
        swap(folder, "..2026_11_22_1", FIRST);
        symlink("..data/vahti.yaml", folder.join("vahti.yaml")).unwrap();
        folder.join("vahti.yaml")
    };
    let Some(it) = Reloaded::start_with(&["--emit", "none"], volume) else { return };
    for (generation, version, share) in
        [(2, "..2026_11_22_2", "0.5"), (3, "..2026_11_22_3", "0.25"), (4, "..2026_11_22_4", "0.75")]
    {
        swap(it.place.path(), version, &rate(share));
        it.noticed(share, generation);
    }
    swap(it.place.path(), "..2026_11_22_5", "observers: {network: {sampling: {rate: 1}}}\n");
    it.tells("vahti.yaml:1:34: observers.network.sampling.rate");
    it.tells("generation 4 of the configuration stays in force");
}

#[test]
fn what_is_kept_changes_from_one_event_to_the_next_and_nothing_is_lost() {
    let out = tempfile::tempdir().unwrap();
    let emit = format!("file={}", out.path().join("e").display());
    let Some(mut it) = Reloaded::start(&["--emit", &emit]) else { return };
    let kept = |port: u16| {
        let text = fs::read_to_string(out.path().join("e")).unwrap_or_default();
        text.contains(&format!("\"peer\":{{\"address\":\"127.0.0.1\",\"port\":{port}}}"))
    };
    let first = refuse();
    until("the first is kept", || kept(first));
    let none = "observers: {network: {sampling: {enabled: true, rules: [{event_type: network, \
                subtype: connection_refused, rate: 0.0}]}}}\n";
    fs::write(it.file(), none).unwrap();
    until("it is asked for", || it.reload().0 == Some(0));
    let second = refuse();
    until("the second is decided", || {
        let observer = &it.agent.ledger()["observers"][0];
        let is_none = |value: &serde_json::Value| value == 0;
        is_none(&observer["ring"]["in_ring"])
            && is_none(&observer["records"]["processing"])
            && observer["events"]["sampled_out"]["occurrences"].as_u64() >= Some(1)
    });
    fs::write(it.file(), FIRST).unwrap();
    until("it is asked for", || it.reload().0 == Some(0));
    let third = refuse();
    until("the third is kept", || kept(third));
    assert!(!kept(second));
    it.agent.adds_up();
    let ledger = it.agent.ledger();
    let events = &ledger["observers"][0]["events"];
    assert!(events["sampled_out"]["occurrences"].as_u64().unwrap() >= 1, "{events}");
    assert_eq!(events["difference"], 0);
    it.agent.signal(libc::SIGTERM);
    assert_eq!(it.agent.ends_within(Duration::from_secs(10)).0, Some(0));
}

#[test]
fn the_log_tells_more_or_less_from_then_on() {
    let Some(it) = Reloaded::start(&["--emit", "none"]) else { return };
    fs::write(it.file(), format!("{FIRST}log: error\n")).unwrap();
    it.tells("configuration: log.level: \"info\" → \"error\", applied");
    it.tells("generation=2");
    fs::write(it.file(), format!("{}log: error\n", rate("0.5"))).unwrap();
    until("it is gone by", || it.reload().1 == "nothing is new; generation 3 stays in force\n");
    fs::write(it.file(), format!("{}log: debug\n", rate("0.5"))).unwrap();
    it.tells("configuration: log.level: \"error\" → \"debug\", applied");
    assert!(!it.log().contains("generation=3"), "{}", it.log());
}

#[test]
fn secrets_are_never_told() {
    let with = |secret: &str| {
        format!(
            "emitters: [{{type: otlp, endpoint: 'http://127.0.0.1:9', headers: {{a: {secret}}}}}]\n"
        )
    };
    let first = with("hunter-one");
    let Some(it) = Reloaded::start_with(&["--log", "trace"], |folder| {
        fs::write(folder.join("vahti.yaml"), first).unwrap();
        folder.join("vahti.yaml")
    }) else {
        return;
    };
    fs::write(it.file(), with("hunter-two")).unwrap();
    it.tells("emitters[0].headers: not shown → not shown, needs a restart");
    let (_, told) = it.reload();
    assert!(told.contains("needs a restart"), "{told}");
    fs::write(it.file(), with("[hunter-three]")).unwrap();
    it.tells("refused");
    let all = it.log() + &told + &it.reload().1;
    assert!(!all.contains("hunter"), "{all}");
}

#[test]
fn many_at_once_are_all_answered() {
    let Some(it) = Reloaded::start(&["--emit", "none"]) else { return };
    fs::write(it.file(), rate("0.5")).unwrap();
    let answers: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|_| scope.spawn(|| it.reload())).collect();
        (0..20).for_each(|_| it.agent.signal(libc::SIGHUP));
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for (code, told) in answers {
        assert_eq!(code, Some(0), "{told}");
        assert!(told.contains("generation 2 "), "{told}");
    }
}

#[test]
fn without_a_file_there_is_nothing_to_read() {
    let Some(mut agent) = Agent::start(&["--observers", "network"], Stdio::null()) else { return };
    agent.signal(libc::SIGHUP);
    let output = Command::new(BINARY).args(["reload", "--socket", &agent.socket()]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("without a configuration file"), "{told}");
    agent.signal(libc::SIGTERM);
    let (code, told) = agent.ends_within(Duration::from_secs(10));
    assert_eq!(code, Some(0));
    assert!(told.contains("there is no configuration file to read"), "{told}");
}

#[test]
fn while_it_drains_nothing_is_read_any_more() {
    let (reader, writer) = std::io::pipe().unwrap();
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("vahti.yaml");
    fs::write(&file, "limits: {drain_deadline: 3s}\n").unwrap();
    let arguments = ["--observers", "network", "--config", file.to_str().unwrap()];
    let Some(mut agent) = Agent::start(&arguments, writer.into()) else { return };
    // More than a pipe holds that nobody reads: it drains for as long as it may.
    for _ in 0..300 {
        refuse();
    }
    agent.signal(libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(300));
    fs::write(&file, "limits: {drain_deadline: 3s}\nlog: error\n").unwrap();
    agent.signal(libc::SIGHUP);
    let (code, told) = agent.ends_within(Duration::from_secs(15));
    drop(reader);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("the agent ends: its configuration is not read any more"), "{told}");
    assert!(!told.contains("log: "), "{told}");
}

#[test]
fn a_reload_that_is_asked_for_before_it_watches_is_done_once_it_does() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("vahti.yaml");
    fs::write(&file, FIRST).unwrap();
    let Some(probe) = Agent::start(&["--observers", "network"], Stdio::null()) else { return };
    drop(probe);
    let child = Command::new(BINARY)
        .args(["run", "--observers", "network", "--emit", "none", "--config"])
        .arg(&file)
        .arg("--socket")
        .arg(place.path().join("s"))
        .env("VAHTI_STORE", "none")
        .env("VAHTI_HTTP", "none")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut agent = Agent { child, folder: tempfile::tempdir().unwrap(), manager: None };
    let socket = place.path().join("s");
    until("its socket is there", || socket.exists());
    fs::write(&file, rate("0.5")).unwrap();
    agent.signal(libc::SIGHUP);
    let output = Command::new(BINARY).arg("reload").arg("--socket").arg(&socket).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(
        told.ends_with("generation 2 is in force\n") || told.contains("generation 2 stays"),
        "{told}"
    );
    agent.signal(libc::SIGTERM);
    assert_eq!(agent.ends_within(Duration::from_secs(10)).0, Some(0));
}

#[test]
fn the_manager_is_told_of_a_reload_and_its_end() {
    let Some(it) = Reloaded::start(&["--emit", "none"]) else { return };
    fs::write(it.file(), "nonsense: 1\n").unwrap();
    assert_eq!(it.reload().0, Some(1));
    let manager = it.agent.manager.as_ref().unwrap();
    let next = || {
        let mut told = [0; 1_024];
        let mut len = 0;
        until("it tells", || {
            manager.recv(&mut told).is_ok_and(|n| {
                len = n;
                true
            })
        });
        String::from_utf8_lossy(&told[..len]).into_owned()
    };
    let begins = next();
    assert!(begins.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{begins}");
    let ends = next();
    assert!(ends.starts_with("READY=1\nSTATUS=watching: network; "), "{ends}");
    assert!(ends.contains("new configuration refused: "), "{ends}");
}

#[test]
fn half_a_file_is_not_read_whatever_happens_beside_it_nor_is_an_empty_one() {
    let Some(it) = Reloaded::start(&["--emit", "none"]) else { return };
    let is_over = AtomicBool::new(false);
    let beside = it.place.path().join(".swp");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                fs::write(&beside, "").unwrap();
                fs::remove_file(&beside).unwrap();
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        let mut file = fs::File::create(it.file()).unwrap();
        // Each part is a configuration of its own.
        for part in [&*rate("0.5"), "store: {max_age: 1h}\n", "http: {listen: none}\n", "# end\n"] {
            file.write_all(part.as_bytes()).unwrap();
            std::thread::sleep(Duration::from_millis(30));
        }
        it.tells("generation=2 changed=");
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!(it.reload().1, "nothing is new; generation 2 stays in force\n", "{}", it.log());
    fs::write(it.file(), "").unwrap();
    it.tells("vahti.yaml: is empty; write {} for all defaults");
    assert_eq!(it.reload().0, Some(1));
    fs::write(it.file(), rate("0.5") + "store: {max_age: 1h}\nhttp: {listen: none}\n").unwrap();
    it.tells("nothing is new in the configuration generation=2");
    assert!(!it.log().contains("generation=3"), "{}", it.log());
}

/// Whoever opens a pipe that nobody writes to waits for ever.
#[test]
fn a_pipe_that_takes_the_files_place_at_any_moment_holds_up_no_reload() {
    let Some(it) = Reloaded::start(&["--emit", "none"]) else { return };
    let (pipe, good) = (it.place.path().join("pipe"), it.place.path().join("good"));
    for round in 0..50 {
        let path = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
        // SAFETY: the path ends with a zero.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
        fs::rename(&pipe, it.file()).unwrap();
        fs::write(&good, rate("0.5")).unwrap();
        fs::rename(&good, it.file()).unwrap();
        if round % 10 == 0 {
            it.reload();
        }
    }
    until("the good one is gone by", || it.reload().0 == Some(0));
    assert_eq!(it.reload().1, "nothing is new; generation 2 stays in force\n", "{}", it.log());
}
