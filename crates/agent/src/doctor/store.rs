//! How the store stands, and what to do about it.

use std::io::ErrorKind;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use vahti_exporters::store::{Contents, Owes, ReadError, State};
use vahti_runtime::clock::rfc3339;
use vahti_runtime::event::{escape, escape_text};

use super::folder::{self, Obstacle};
use crate::config::Config;
use crate::store_path;
use crate::table::{grouped, wrap};

/// Whether events are kept. The worse, the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StoreState {
    /// Nobody wants one.
    Off,
    /// They are, or will be.
    Works,
    /// They are, but something is to be done.
    Degraded,
    /// They are not.
    Missing,
}

impl StoreState {
    const fn as_str(self) -> &'static str {
        match self {
            StoreState::Off => "off",
            StoreState::Works => "works",
            StoreState::Degraded => "degraded",
            StoreState::Missing => "missing",
        }
    }
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    state: StoreState,
    /// What it is.
    why: String,
    /// What to do about it, where something can be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

/// What a durable emitter is owed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Owed {
    emitter: String,
    events: u64,
    critical: u64,
    rejected: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest: Option<String>,
}

/// A file that could not be read, or that somebody put in the place of the
/// agent's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Aside {
    file: String,
    bytes: u64,
}

/// What `doctor` says of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct StoreReport {
    pub(crate) state: StoreState,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    max_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    bytes: u64,
    /// The process that writes to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<u32>,
    /// It would, and could not open it yet.
    #[serde(skip)]
    is_closed: bool,
    events: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    newest: Option<String>,
    owed: Vec<Owed>,
    set_aside: Vec<Aside>,
    replaced: Vec<Aside>,
    findings: Vec<Finding>,
}

/// Looks at the store that an agent with this configuration has. `ledger` is
/// what an agent that runs here answers, if one does.
pub(crate) fn report(config: &Config, ledger: Option<&Value>) -> StoreReport {
    let mut report = StoreReport {
        state: StoreState::Works,
        path: None,
        max_bytes: config.store.max_bytes.0,
        mode: None,
        bytes: 0,
        agent: None,
        is_closed: false,
        events: 0,
        oldest: None,
        newest: None,
        owed: Vec::new(),
        set_aside: Vec::new(),
        replaced: Vec::new(),
        findings: Vec::new(),
    };
    if config.store.is_off() {
        report.state = StoreState::Off;
        return report;
    }
    let Some(path) = config.store.path.clone().or_else(store_path::default_path) else {
        report.find(
            StoreState::Missing,
            "there is no folder for it: HOME is not set".to_owned(),
            Some("set store.path, or --store PATH".to_owned()),
        );
        return report;
    };
    report.path = Some(shown(&path));
    let its = ledger.filter(|ledger| ledger["store"]["path"] == store_path::shown(&path));
    let is_in_use = its.is_some_and(|ledger| ledger["store"]["open"] == true);
    let obstacles = folder::obstacles(&path, is_in_use);
    let is_readable = obstacles.iter().all(|obstacle| !obstacle.in_place_of_a_file);
    let is_free = obstacles.is_empty();
    for Obstacle { why, remedy, .. } in obstacles {
        report.find(StoreState::Missing, why, Some(remedy));
    }
    if let Some(ledger) = its {
        report.ask(ledger);
    }
    if !is_readable {
        // Whoever opened a pipe would wait for its other end.
        return report;
    }
    match State::of(&path) {
        Ok(state) => report.examine(&path, state, is_free),
        Err(error) if error.kind() != ErrorKind::NotFound && is_free => {
            let remedy = "ask as root, or as the user whose agent writes it";
            report.find(StoreState::Missing, error.to_string(), Some(remedy.to_owned()));
        }
        Err(_) => {}
    }
    report
}

pub(super) fn shown(path: &Path) -> String {
    escape(path.as_os_str().as_encoded_bytes()).into_owned()
}

/// How to have what can still be read of a file. Not `.recover`: many builds of
/// sqlite3 lack it, Debian 12's among them.
fn saving(file: &str) -> String {
    format!(
        "save what can be read: sqlite3 '{file}' 'SELECT event FROM events ORDER BY seq' > \
         saved.jsonl, and with DESC what lies behind the damage"
    )
}

/// What a file was put in the place of.
fn replaced_name(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split_once(".replaced-").map_or(name, |(name, _)| name)
}

/// Whether SQLite says that the file is not what it should be, and not that it
/// can't get at it.
fn is_damage(error: &impl std::fmt::Display) -> bool {
    let said = error.to_string();
    ["not a database", "malformed", "no such table", "no such column"]
        .iter()
        .any(|damage| said.contains(damage))
}

/// In the unit that people would choose.
fn size(bytes: u64) -> String {
    match bytes {
        0..0x400 => format!("{bytes} B"),
        0x400..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

impl StoreReport {
    fn find(&mut self, state: StoreState, why: String, remedy: Option<String>) {
        self.state = self.state.max(state);
        self.findings.push(Finding { state, why, remedy });
    }

    /// What an agent says of this store that has it, or would if it could.
    fn ask(&mut self, ledger: &Value) {
        self.agent = ledger["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        let own = ledger["emitters"].as_array().into_iter().flatten();
        let own = own.filter(|emitter| emitter["name"] == "store" && emitter["state"] == "failing");
        let why = own.filter_map(|emitter| emitter["why"].as_str()).next();
        let why = match (why, &ledger["store"]["open"]) {
            (Some(why), open) => {
                self.is_closed = *open == false;
                format!("the agent can't commit to it: {why}")
            }
            (None, Value::Bool(false)) => {
                self.is_closed = true;
                "the agent could not open it yet".to_owned()
            }
            _ => return,
        };
        let remedy = "see to that, and the agent goes on by itself: events wait in memory until \
                      then, and `vahti ledger` counts those that find no room"
            .to_owned();
        self.find(StoreState::Missing, why, Some(remedy));
    }

    /// What is there; `is_free` if nothing is in the way of a store.
    fn examine(&mut self, path: &Path, state: State, is_free: bool) {
        self.mode = Some(format!("{:04o}", state.mode));
        self.bytes = state.bytes;
        self.agent = state.agent.or(self.agent);
        if state.mode & 0o077 != 0 && is_free {
            let why = format!("others may enter it (mode {:04o})", state.mode);
            let remedy = format!("chmod 0700 {}", shown(path));
            self.find(StoreState::Degraded, why, Some(remedy));
        }
        if is_free {
            self.look_at_room(state.free_bytes);
        }
        if let Some((file, version)) = &state.newer {
            let why = format!(
                "{} is of a newer vahti (schema {version}); it is left as it is, and this one \
                 writes a file of its own",
                shown(file)
            );
            let remedy = "run the newer vahti, or remove the file once nobody needs it";
            self.find(StoreState::Degraded, why, Some(remedy.to_owned()));
        }
        match state.contents {
            None => {}
            Some(Ok(contents)) => self.look_into(contents, state.agent),
            // What is in the way was told, and SQLite says no more than that.
            Some(Err(ReadError::Sqlite { error, .. }))
                if self.state == StoreState::Missing && !is_damage(&error) => {}
            Some(Err(error)) => self.look_at(path, &error),
        }
        for (file, bytes) in state.set_aside {
            let file = shown(&file);
            let why = format!("{file} could not be read and was set aside ({})", size(bytes));
            let remedy = format!("{}; then rm '{file}'*", saving(&file));
            self.find(StoreState::Degraded, why, Some(remedy));
            self.set_aside.push(Aside { file, bytes });
        }
        for (file, bytes) in state.replaced {
            let file = shown(&file);
            let why = format!(
                "{file} was put in the place of the agent's file while it ran ({})",
                size(bytes)
            );
            let remedy = format!(
                "to use it: stop the agent, rename it to {}, start it; else rm '{file}'*",
                replaced_name(&file)
            );
            self.find(StoreState::Degraded, why, Some(remedy));
            self.replaced.push(Aside { file, bytes });
        }
    }

    fn look_at_room(&mut self, free: u64) {
        let grows = self.max_bytes.saturating_sub(self.bytes);
        if free < grows {
            let why = format!(
                "it may grow by {}, but its disk has only {} left",
                size(grows),
                size(free)
            );
            let remedy = "make room; a smaller store.max_bytes may keep it from growing, but the \
                          file does not shrink";
            self.find(StoreState::Degraded, why, Some(remedy.to_owned()));
        }
        if self.bytes > self.max_bytes {
            let why = format!("it is larger than it may be ({})", size(self.max_bytes));
            let remedy = "the agent lets events go at its next commit; the file shrinks no further \
                          than that: `sqlite3 FILE VACUUM` while no agent runs";
            self.find(StoreState::Works, why, Some(remedy.to_owned()));
        }
    }

    fn look_into(&mut self, contents: Contents, agent: Option<u32>) {
        self.events = contents.events;
        if let Some((oldest, newest)) = contents.span_ns {
            (self.oldest, self.newest) = (Some(rfc3339(oldest)), Some(rfc3339(newest)));
        }
        let file = shown(&contents.file);
        if let Some(said) = contents.damage {
            let why = format!("{file} is damaged: {}", said.replace('\n', " "));
            let remedy = match agent {
                Some(_) => {
                    "the agent sets the file aside by itself and begins a fresh one, within \
                            a day or at its next start: restart it to have it done now"
                        .to_owned()
                }
                None => format!(
                    "before an agent is started: {}; rm -f '{file}' '{file}-wal' '{file}-shm'",
                    saving(&file)
                ),
            };
            self.find(StoreState::Degraded, why, Some(remedy));
        }
        if !contents.checked {
            let why = format!("{file} is too large to be checked here");
            let remedy = format!("sqlite3 '{file}' 'PRAGMA quick_check'");
            self.find(StoreState::Works, why, Some(remedy));
        }
        if contents.running && agent.is_none() {
            let why = "the agent that wrote it last did not end as it should; the next one tells \
                       of the time between as an event `gap`";
            self.find(StoreState::Works, why.to_owned(), None);
        }
        let full = self.bytes > self.max_bytes / 10 * 9;
        for owes in contents.owed {
            self.look_at_owed(owes, full);
        }
    }

    fn look_at_owed(&mut self, owes: Owes, full: bool) {
        let emitter = escape_text(&owes.exporter).into_owned();
        if owes.events > 0 && full {
            let why = format!("it is nearly full, and {emitter} is still owed events: some may go");
            let remedy = format!(
                "see why {emitter} does not take them (`vahti ledger --json`, emitters), or set a \
                 larger store.max_bytes"
            );
            self.find(StoreState::Degraded, why, Some(remedy));
        }
        self.owed.push(Owed {
            emitter,
            events: owes.events,
            critical: owes.critical,
            rejected: owes.rejected,
            oldest: owes.oldest_ns.map(rfc3339),
        });
    }

    /// A file that can't be read.
    fn look_at(&mut self, folder: &Path, error: &ReadError) {
        let save = saving(&format!("{}/events.db", shown(folder)));
        // One that runs has it open, and comes upon the damage only where that is.
        let (sets_aside, sets_foreign_aside) = match self.agent {
            Some(_) => (
                "restart the agent: it sets aside what it can't read and begins a fresh file",
                "restart the agent: it sets this aside and begins its own. If it is yours, move it",
            ),
            None => (
                "nothing: `vahti run` sets aside what it can't read and begins a fresh file",
                "nothing: `vahti run` sets it aside and begins its own. If it is yours, move it",
            ),
        };
        let (state, remedy) = match error {
            ReadError::Newer { .. } | ReadError::Missing(_) => {
                (StoreState::Missing, "run that version, or set another store.path".to_owned())
            }
            ReadError::Foreign(_) | ReadError::Empty(_) => {
                (StoreState::Degraded, sets_foreign_aside.to_owned())
            }
            ReadError::Sqlite { error, .. } if is_damage(error) => {
                (StoreState::Degraded, format!("{sets_aside}. Before that, {save}"))
            }
            ReadError::Sqlite { .. } if error.to_string().contains("unable to open") => (
                StoreState::Degraded,
                "SQLite has to write beside it, also to read: copy events.db* elsewhere and look \
                 at that with --store"
                    .to_owned(),
            ),
            ReadError::Sqlite { .. } => (
                StoreState::Degraded,
                "see to that; if it stays, the journal of the kernel (`dmesg`) may tell more of \
                 the disk"
                    .to_owned(),
            ),
        };
        self.find(state, error.to_string(), Some(remedy));
    }

    /// As text, below a heading.
    pub(crate) fn write(&self, out: &mut String, width: usize) {
        out.push_str("\nstore\n");
        let path = self.path.as_deref().unwrap_or("none");
        wrap(out, &format!("  {:8}  ", self.state.as_str()), path, width);
        let note = |out: &mut String, label: &str, text: &str| {
            wrap(out, &format!("            {label}: "), text, width);
        };
        if self.state == StoreState::Off {
            note(out, "why", "store.path is none: `vahti events` has nothing to show");
            return;
        }
        let (used, most) = (size(self.bytes), size(self.max_bytes));
        let mut has = format!("{} events, {used} of {most}", grouped(self.events));
        if let Some((oldest, newest)) = self.oldest.as_ref().zip(self.newest.as_ref()) {
            let second = |text: &str| text.get(..19).unwrap_or(text).to_owned() + "Z";
            has.push_str(&format!(", from {} to {}", second(oldest), second(newest)));
        }
        note(out, "has", &has);
        match self.agent {
            Some(pid) if self.is_closed => {
                note(out, "agent", &format!("pid {pid} would write to it"));
            }
            Some(0) => note(out, "agent", "one writes to it"),
            Some(pid) => note(out, "agent", &format!("pid {pid} writes to it")),
            None => note(out, "agent", "none writes to it now"),
        }
        for owed in &self.owed {
            let rejected = match owed.rejected {
                0 => String::new(),
                n => format!("; {} were refused for good", grouped(n)),
            };
            let (events, critical) = (grouped(owed.events), grouped(owed.critical));
            let text = format!("{events} events ({critical} critical){rejected}");
            note(out, &format!("owed to {}", owed.emitter), &text);
        }
        for finding in &self.findings {
            note(out, "why", &finding.why);
            if let Some(remedy) = &finding.remedy {
                note(out, "do", remedy);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use serde_json::json;
    use vahti_exporters::store::{Store, StoreConfig};

    use super::*;

    fn look(folder: &Path) -> (StoreReport, String) {
        let mut config = Config::default();
        config.store.path = Some(folder.to_owned());
        let report = report(&config, None);
        let mut text = String::new();
        report.write(&mut text, 80);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        (report, text.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        folder
    }

    #[test]
    fn a_store_as_it_should_be_and_one_that_is_not_there_yet_work() {
        let folder = folder();
        let path = folder.path().join("a/b");
        assert_eq!(look(&path).0.state, StoreState::Works);
        assert!(!path.exists(), "looking makes nothing");
        let exporters = vec!["audit".to_owned()];
        let store = Store::open(StoreConfig::at(&path), exporters, Duration::ZERO).unwrap();
        let (report, text) = look(&path);
        assert_eq!((report.state, report.agent), (StoreState::Works, Some(std::process::id())));
        assert!(text.contains("owed to audit: 0 events (0 critical)"), "{text}");
        drop(store);
    }

    #[test]
    fn what_is_wrong_is_told_with_what_to_do() {
        let folder = folder();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(folder.path().join("events.db"), "no database").unwrap();
        fs::write(folder.path().join("events.db.corrupt-20261122T140000Z"), "x").unwrap();
        fs::write(folder.path().join("events.db.replaced-20261122T150000Z"), "xy").unwrap();
        fs::write(folder.path().join("events.db.replaced-20261122T150000Z-wal"), "z").unwrap();
        let (report, text) = look(folder.path());
        assert_eq!(report.state, StoreState::Degraded);
        assert_eq!((report.set_aside.len(), report.replaced.len()), (1, 1));
        for told in [
            "others may enter it (mode 0755) do: chmod 0700 ",
            "file is not a database do: nothing: `vahti run` sets aside",
            "events.db.corrupt-20261122T140000Z could not be read and was set aside (1 B)",
            "'SELECT event FROM events ORDER BY seq' > saved.jsonl, and with DESC",
            "T150000Z was put in the place of the agent's file while it ran (3 B) do: to use it: \
             stop the agent, rename it to events.db, start it; else rm '",
        ] {
            assert!(text.contains(told), "{told:?} is missing in {text}");
        }
    }

    #[test]
    fn what_an_agent_says_of_its_store_is_told_and_damage_has_it_restarted() {
        let folder = folder();
        fs::write(folder.path().join("events.db"), "no database").unwrap();
        let mut config = Config::default();
        config.store.path = Some(folder.path().to_owned());
        let look = |open: bool, emitters: Value| {
            let path = store_path::shown(folder.path());
            let store = json!({"path": path, "open": open});
            let ledger = json!({"pid": 7, "store": store, "emitters": emitters});
            let report = report(&config, Some(&ledger));
            let mut text = String::new();
            report.write(&mut text, 80);
            (report.state, text.split_whitespace().collect::<Vec<_>>().join(" "))
        };
        let failing = json!([{"name": "store", "state": "failing", "why": "the disk is full"}]);
        let (state, text) = look(true, failing);
        assert_eq!(state, StoreState::Missing);
        assert!(text.contains("the agent can't commit to it: the disk is full do: see"), "{text}");
        let (state, text) = look(false, json!([]));
        assert_eq!(state, StoreState::Missing);
        assert!(
            text.contains("pid 7 would write to it why: the agent could not open it"),
            "{text}"
        );
        let (state, text) = look(true, json!([]));
        assert_eq!(state, StoreState::Degraded);
        assert!(text.contains("do: restart the agent: it sets aside"), "{text}");
    }

    #[test]
    fn damage_is_mended_by_an_agent_that_runs_and_otherwise_by_hand() {
        let folder = folder();
        for (agent, expected) in [
            (Some(7), "within a day or at its next start: restart it to have it done now"),
            (None, "before an agent is started: save what can be read: sqlite3 '"),
        ] {
            let (mut report, _) = look(folder.path());
            let damaged = Contents {
                file: folder.path().join("events.db"),
                events: 1,
                span_ns: None,
                owed: Vec::new(),
                running: true,
                damage: Some("Tree 2 page 9".to_owned()),
                checked: true,
            };
            report.look_into(damaged, agent);
            let finding = &report.findings[0];
            assert!(finding.why.ends_with("events.db is damaged: Tree 2 page 9"), "{finding:?}");
            assert!(finding.remedy.as_ref().unwrap().contains(expected), "{finding:?}");
            assert_eq!(report.state, StoreState::Degraded);
        }
    }

    #[test]
    fn a_pipe_in_place_of_the_file_is_not_waited_for() {
        let folder = folder();
        let pipe = folder.path().join("events.db");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        assert_eq!(look(folder.path()).0.state, StoreState::Missing);
    }

    #[test]
    fn a_link_in_place_of_the_file_is_refused() {
        let folder = folder();
        std::os::unix::fs::symlink("/dev/null", folder.path().join("events.db")).unwrap();
        let (report, text) = look(folder.path());
        assert_eq!(report.state, StoreState::Missing);
        assert!(
            text.contains("is a symbolic link, which an agent refuses: no store can"),
            "{text}"
        );
    }

    #[test]
    fn without_a_folder_nothing_is_kept_and_off_is_no_trouble() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (report, text) = look(file.path());
        assert_eq!(report.state, StoreState::Missing);
        assert!(text.contains("do: set store.path to a folder"), "{text}");
        assert_eq!(look(Path::new("none")).0.state, StoreState::Off);
    }
}
