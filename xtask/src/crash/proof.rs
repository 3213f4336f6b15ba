//! What is looked up afterwards: the store by SQL, the lines of the durable
//! file, and the oracle's promises.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::Command;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use super::agent::Place;
use super::{figure, now_ns};

/// What an exporter takes at once: as much was in flight when it was killed.
const BATCH: u64 = 512;
/// The most that one commit takes.
const MOST_COMMITTED_AT_ONCE: u64 = 4_096;

/// A start of an agent.
pub(super) struct Start {
    pub(super) exec_ns: u64,
    /// How long the durable file was by then, with those that it was before.
    pub(super) lines_bytes: u64,
}

impl Start {
    /// At this moment, while no agent runs.
    pub(super) fn now(place: &Place) -> Result<Self, String> {
        let files = rotated(place)?;
        let sizes = files.iter().map(|path| fs::metadata(path).map(|meta| meta.len()));
        let lines_bytes = sizes.sum::<Result<u64, _>>().map_err(|e| e.to_string())?;
        Ok(Start { exec_ns: now_ns(), lines_bytes })
    }
}

/// An agent that was killed.
pub(super) struct Kill {
    pub(super) reaped_ns: u64,
    /// When the next one was started.
    pub(super) next_exec_ns: u64,
    /// It had begun, and had not been told to end.
    pub(super) must_be_told: bool,
    pub(super) may_be_told: bool,
}

/// A committed event.
#[derive(Clone, Copy)]
struct Committed {
    seq: u64,
    critical: bool,
    observed_ns: u64,
}

/// What was found, and what of it is wrong.
pub(super) struct Proof {
    connection: Connection,
    committed: HashMap<String, Committed>,
    /// The ids of the durable file that are not in the store any more.
    only_in_file: HashSet<String>,
    wrong: Vec<String>,
}

impl Proof {
    /// Reads which events the store has.
    pub(super) fn of(place: &Place) -> Result<Self, String> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let connection = Connection::open_with_flags(place.database(), flags).map_err(said)?;
        let mut proof = Proof::on(connection);
        let rows = proof.number("SELECT count(*) FROM events")?;
        proof.read_ids()?;
        let critical = proof.committed.values().filter(|c| c.critical).count();
        figure("events in the store", format!("{rows}, {critical} of them critical"));
        if rows != proof.committed.len() as u64 {
            proof.wrong(format!("{rows} rows have {} ids", proof.committed.len()));
        }
        let said: String =
            proof.connection.query_row("PRAGMA integrity_check", [], |r| r.get(0)).map_err(said)?;
        figure("integrity_check", &said);
        if said != "ok" {
            proof.wrong(format!("integrity_check: {said}"));
        }
        Ok(proof)
    }

    fn on(connection: Connection) -> Self {
        let (committed, only_in_file) = (HashMap::new(), HashSet::new());
        Proof { connection, committed, only_in_file, wrong: Vec::new() }
    }

    fn read_ids(&mut self) -> Result<(), String> {
        let sql = "SELECT id, seq, priority = 'critical', observed FROM events";
        let mut statement = self.connection.prepare(sql).map_err(said)?;
        let rows = statement.query_map([], |row| {
            let (seq, critical) = (unsigned(row.get(1)?), row.get(2)?);
            let committed = Committed { seq, critical, observed_ns: unsigned(row.get(3)?) };
            Ok((row.get::<_, String>(0)?, committed))
        });
        for row in rows.map_err(said)? {
            let (id, committed) = row.map_err(said)?;
            self.committed.insert(id, committed);
        }
        Ok(())
    }

    fn number(&self, sql: &str) -> Result<u64, String> {
        self.connection.query_row(sql, [], |row| row.get(0)).map(unsigned).map_err(said)
    }

    /// Notes that something does not hold.
    pub(super) fn wrong(&mut self, what: String) {
        self.wrong.push(what);
    }

    /// Every id that the oracle printed is in the store. What the cap took may
    /// be gone, but critical ones only once they are in the file, or counted;
    /// to be called after `check_lines`.
    pub(super) fn check_promises(&mut self, place: &Place) -> Result<(), String> {
        let gone_to = self.number("SELECT coalesce(min(seq), 1) FROM events")?;
        let evicted = self.number("SELECT sum(dropped_full_envelopes) FROM accounts")?;
        let counted = self.number(
            "SELECT sum(dropped_full_envelopes) FROM accounts
             WHERE name <> '(store)' AND priority = 'critical'",
        )?;
        let (mut printed, mut lost, mut critical_lost) = (HashSet::new(), 0_u64, 0_u64);
        for line in lines(&place.promises())? {
            let Some(told) = line.strip_prefix(r#"{"committed":"#) else { continue };
            // An oracle that was ended may have left half a line.
            let Some(told) = told.strip_suffix('}') else { continue };
            let Ok(told) = serde_json::from_str::<Value>(told) else { continue };
            let Some(id) = told["id"].as_str() else { continue };
            if !printed.insert(id.to_owned()) || self.committed.contains_key(id) {
                continue;
            }
            let critical = told["priority"] == "critical";
            if evicted == 0 || critical && !self.only_in_file.contains(id) {
                lost += 1;
                critical_lost += u64::from(critical);
            }
        }
        if evicted > 0 {
            lost = lost.saturating_sub(counted);
            critical_lost = critical_lost.saturating_sub(counted);
        }
        figure("ids that the oracle printed", printed.len());
        figure("  of them lost", format!("{lost}, {critical_lost} critical"));
        if printed.is_empty() {
            self.wrong("the oracle printed nothing".to_owned());
        }
        if lost > 0 {
            self.wrong(format!("{lost} committed events are lost, {critical_lost} critical"));
        }
        let silent = self.committed.iter().filter(|(id, _)| !printed.contains(*id)).count();
        let note = format!("{silent} (it was not there all the time); from row {gone_to} on");
        figure("in the store, and never printed", note);
        Ok(())
    }

    /// Every committed event is in the durable file, once or more: after each
    /// start no more of them again than the agent before it may have had in
    /// flight.
    pub(super) fn check_lines(
        &mut self,
        place: &Place,
        starts: &[Start],
        kills: u64,
    ) -> Result<(), String> {
        let mut again = vec![0_u64; starts.len()];
        let (mut position, mut only_in_file) = (0_u64, HashSet::new());
        let mut seen: HashMap<&str, u64> = HashMap::with_capacity(self.committed.len());
        let (mut torn, mut unknown, mut disordered) = (0_u64, 0_u64, 0_u64);
        let mut last_critical = 0;
        for path in rotated(place)? {
            for line in lines(&path)? {
                // A line that a kill cut off may begin before the start.
                position += line.len() as u64 + 1;
                let after = starts.partition_point(|start| start.lines_bytes < position);
                let Some(id) = whole(&line).then(|| id_of(&line)).flatten() else {
                    torn += 1;
                    continue;
                };
                let Some((id, committed)) = self.committed.get_key_value(id) else {
                    unknown += 1;
                    only_in_file.insert(id.to_owned());
                    continue;
                };
                let times = seen.entry(id).or_default();
                *times += 1;
                if *times > 1
                    && let Some(again) = again.get_mut(after.saturating_sub(1))
                {
                    *again += 1;
                }
                // Once again may be earlier than the last; the first time not.
                if committed.critical && *times == 1 {
                    disordered += u64::from(committed.seq < last_critical);
                    last_critical = committed.seq.max(last_critical);
                }
            }
        }
        let missing: Vec<&Committed> = self
            .committed
            .iter()
            .filter_map(|(id, committed)| (!seen.contains_key(id.as_str())).then_some(committed))
            .collect();
        let critical = missing.iter().filter(|c| c.critical).count();
        let twice: u64 = seen.values().map(|times| times - 1).sum();
        let (missing, sent) = (missing.len(), seen.len());
        figure("events in the durable file", sent);
        figure("  committed and missing there", format!("{missing}, {critical} critical"));
        let bars = self.most_again(starts);
        let beyond: u64 = again.iter().zip(&bars).map(|(n, bar)| n.saturating_sub(*bar)).sum();
        let most = again.iter().zip(&bars).max_by_key(|(n, _)| **n);
        let most = most.map_or((0, 0), |(n, bar)| (*n, *bar));
        let most =
            format!("{twice}, after one kill at most {} (bar of that one: {})", most.0, most.1);
        figure("  sent again", most);
        figure("  critical ones out of order", disordered);
        figure("  torn lines", torn);
        figure("  not in the store", unknown);
        let evicts = self.number("SELECT sum(dropped_full_envelopes) FROM accounts")? > 0;
        for (count, what) in [
            (missing as u64, "committed events are not in the durable file"),
            (beyond, "events were sent again beyond the bar"),
            (disordered, "critical events came out of order"),
            (torn.saturating_sub(kills), "more lines are torn than agents were killed"),
            (if evicts { 0 } else { unknown }, "events are in the file and not in the store"),
        ] {
            if count > 0 {
                self.wrong(format!("{count} {what}"));
            }
        }
        self.only_in_file = only_in_file;
        Ok(())
    }

    /// How many events may be sent again after each start: the batch that was
    /// in flight, and what the agent before committed at once, which is not
    /// known, but no more than it committed at all.
    fn most_again(&self, starts: &[Start]) -> Vec<u64> {
        let mut committed = vec![0_u64; starts.len()];
        for event in self.committed.values() {
            let of = starts.partition_point(|start| start.exec_ns <= event.observed_ns);
            if let Some(committed) = committed.get_mut(of.saturating_sub(1)) {
                *committed += 1;
            }
        }
        let after = committed.iter().map(|n| BATCH + n.min(&MOST_COMMITTED_AT_ONCE));
        // Before the first one there was none.
        std::iter::once(0).chain(after).take(starts.len()).collect()
    }

    /// The time from every kill to the next start is told by some gap.
    pub(super) fn check_gaps(&mut self, kills: &[Kill]) {
        let gaps = match self.gaps() {
            Ok(gaps) => gaps,
            Err(error) => return self.wrong(format!("gaps: {error}")),
        };
        let covers = |from: u64, to: u64| gaps.iter().any(|gap| gap.0 <= from && to <= gap.1);
        let must: Vec<&Kill> = kills.iter().filter(|kill| kill.must_be_told).collect();
        let may = kills.iter().filter(|kill| kill.may_be_told).count();
        let told = must.iter().filter(|kill| covers(kill.reaped_ns, kill.next_exec_ns)).count();
        let untold = must.len() - told;
        // A gap is told by the first agent that lives long enough to commit it.
        let merged = must.len().saturating_sub(gaps.len());
        figure("kills of agents that had begun", format!("{} (at most {may})", must.len()));
        figure("gaps told", format!("{} ({merged} merged with the next)", gaps.len()));
        figure("  kills whose time no gap covers", untold);
        if untold > 0 {
            self.wrong(format!("{untold} kills are told by no gap"));
        }
        if gaps.len() > kills.len() {
            self.wrong(format!("{} gaps of {} kills", gaps.len(), kills.len()));
        }
    }

    fn gaps(&self) -> Result<Vec<(u64, u64)>, String> {
        let sql = "SELECT json_extract(event, '$.gap.from'), json_extract(event, '$.gap.to')
                   FROM events WHERE type = 'agent' AND subtype = 'gap'";
        let mut statement = self.connection.prepare(sql).map_err(said)?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)));
        let moments = rows.map_err(said)?.map(|row| {
            let (from, to): (String, String) = row.map_err(said)?;
            Ok((nanoseconds(&from)?, nanoseconds(&to)?))
        });
        moments.collect()
    }

    /// The accounts say what is there, by SQL and by another reader.
    pub(super) fn check_accounts(&mut self, place: &Place, keeps_all: bool) -> Result<(), String> {
        let off = "(SELECT count(*) FROM accounts WHERE routed <> delivered + rejected
              + dropped_full + dropped_age + dropped_lost + stored OR routed_envelopes <>
              delivered_envelopes + rejected_envelopes + dropped_full_envelopes
              + dropped_age_envelopes + dropped_lost_envelopes + stored_envelopes)";
        let kept = "(SELECT count(*) FROM accounts AS a WHERE (stored, stored_envelopes) IS NOT
              (SELECT coalesce(sum(count), 0), count(*) FROM events AS e
               WHERE e.priority = a.priority AND (a.name = '(store)' OR e.seq > a.cursor)))";
        let sql = format!("SELECT {off} + {kept}");
        let wrong = self.number(&sql)?;
        let lines = self.number("SELECT count(*) FROM accounts")?;
        figure("accounts that are not exact", format!("{wrong} of {lines}"));
        if wrong > 0 || lines != 4 {
            self.wrong(format!("{wrong} of {lines} accounts are not exact"));
        }
        let dropped = self.number(
            "SELECT sum(dropped_full + dropped_age + dropped_lost + rejected) FROM accounts
             WHERE name = '(store)' OR priority = 'critical'",
        )?;
        figure("dropped, of the store or critical", dropped);
        if keeps_all && dropped > 0 {
            self.wrong(format!("{dropped} were dropped below the cap"));
        }
        let script = "import sqlite3, sys\n\
            c = sqlite3.connect('file:' + sys.argv[1] + '?mode=ro', uri=True)\n\
            print(c.execute('PRAGMA integrity_check').fetchone()[0], c.execute(sys.argv[2]).fetchone()[0])";
        let python =
            Command::new("python3").args(["-c", script]).arg(place.database()).arg(&sql).output();
        match python {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                figure("python3: integrity_check, accounts off", &said);
                if said != format!("ok {wrong}") {
                    let why = String::from_utf8_lossy(&output.stderr);
                    self.wrong(format!("python3 reads otherwise: {said} {}", why.trim()));
                }
            }
            Err(_) => figure("python3", "not here"),
        }
        Ok(())
    }

    /// An error that names all that is wrong.
    pub(super) fn conclude(self) -> Result<(), String> {
        if self.wrong.is_empty() {
            println!("  everything that was promised holds");
            return Ok(());
        }
        Err(self.wrong.join("\n"))
    }
}

/// The durable file and those that it was before, oldest first.
fn rotated(place: &Place) -> Result<Vec<std::path::PathBuf>, String> {
    let current = place.lines();
    let folder = current.parent().ok_or("no folder")?;
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| e.to_string())?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix("events.jsonl") else { continue };
        let age = rest.strip_prefix('.').map_or(Ok(0), str::parse::<u64>);
        if let Ok(age) = age {
            files.push((age, entry.path()));
        }
    }
    files.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

fn lines(path: &std::path::Path) -> Result<impl Iterator<Item = String>, String> {
    let file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(BufReader::with_capacity(1 << 20, file).lines().map_while(Result::ok))
}

/// Whether a kill has not cut a line off.
fn whole(line: &str) -> bool {
    line.starts_with('{') && line.ends_with('}')
}

/// The id of a line, which comes before anything that others have named.
fn id_of(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once(r#""id":""#)?;
    rest.split_once('"').map(|(id, _)| id)
}

/// Of a time as RFC 3339 has it, in UTC.
fn nanoseconds(time: &str) -> Result<u64, String> {
    let parse = || {
        let (date, rest) = time.strip_suffix('Z')?.split_once('T')?;
        let (clock, fraction) = rest.split_once('.').unwrap_or((rest, "0"));
        let numbers = |text: &str, by: char| {
            text.split(by).map(str::parse).collect::<Result<Vec<i64>, _>>().ok()
        };
        let (date, clock) = (numbers(date, '-')?, numbers(clock, ':')?);
        let (&[year, month, day], &[hours, minutes, seconds]) = (&date[..], &clock[..]) else {
            return None;
        };
        // Days since 1970, with years that begin in March.
        let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
        let (era, of_era) = (y / 400, y % 400);
        let of_year = (153 * m + 2) / 5 + day - 1;
        let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
        let seconds = ((days * 24 + hours) * 60 + minutes) * 60 + seconds;
        let nanoseconds: u64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
        Some(u64::try_from(seconds).ok()? * 1_000_000_000 + nanoseconds)
    };
    parse().ok_or_else(|| format!("{time} is no time"))
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn said(error: rusqlite::Error) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        assert_eq!(nanoseconds("1970-01-01T00:00:00Z"), Ok(0));
        assert_eq!(nanoseconds("2024-02-29T12:00:00.5Z"), Ok(1_709_208_000_500_000_000));
        assert_eq!(nanoseconds("2026-11-22T16:00:13.000000007Z"), Ok(1_795_363_213_000_000_007));
        assert!(nanoseconds("yesterday").is_err());
    }

    #[test]
    fn a_line_that_was_cut_off_is_no_event() {
        let line = r#"{"id":"01ABC","name":"x"}"#;
        assert_eq!((whole(line), id_of(line)), (true, Some("01ABC")));
        assert!(!whole(&line[..10]));
    }

    /// A store with an event for each letter, upper case for critical ones,
    /// of which the oracle told and which the file has.
    fn place(store: &str, oracle: &str, file: &str, wrong_accounts: bool) -> Place {
        let name = format!("vahti-proof-{}-{store}-{oracle}-{file}", std::process::id());
        let place = Place::new(&std::env::temp_dir().join(name));
        drop(fs::remove_dir_all(&place.folder));
        place.configure("1GiB").unwrap();
        fs::create_dir(place.store()).unwrap();
        let connection = Connection::open(place.database()).unwrap();
        let columns = ["routed", "delivered", "rejected", "dropped_full", "dropped_age"];
        let columns = columns.iter().chain(&["dropped_lost", "stored"]);
        let columns: String =
            columns.map(|c| format!(", {c} DEFAULT 0, {c}_envelopes DEFAULT 0")).collect();
        let tables = format!(
            "CREATE TABLE accounts (name, priority, cursor{columns});
             CREATE TABLE events (seq, id, priority, count, type, subtype, event, observed)"
        );
        connection.execute_batch(&tables).unwrap();
        let priority = |id: char| if id.is_uppercase() { "critical" } else { "normal" };
        for (seq, id) in store.chars().enumerate() {
            let row = (seq as i64, id.to_string(), priority(id));
            connection
                .execute("INSERT INTO events VALUES (?1, ?2, ?3, 1, '', '', '{}', 5)", row)
                .unwrap();
        }
        for of in ["critical", "normal"] {
            let n = store.chars().filter(|id| priority(*id) == of).count() as i64;
            let sql = "INSERT INTO accounts (name, priority, cursor, routed, routed_envelopes, stored,
                       stored_envelopes, delivered, delivered_envelopes) VALUES (?1, ?2, ?3, ?4, ?4, ?5, ?5, ?6, ?6)";
            connection.execute(sql, ("(store)", of, 99, n, n, i64::from(wrong_accounts))).unwrap();
            connection.execute(sql, ("file", of, 99, n, 0, n)).unwrap();
        }
        drop(connection);
        let told = |id: char| {
            format!("{{\"committed\":{{\"id\":\"{id}\",\"priority\":\"{}\"}}}}\n", priority(id))
        };
        let line = |id: char| match id {
            '-' => "{\"id\":\"tor\n".to_owned(),
            id => format!("{{\"id\":\"{id}\"}}\n"),
        };
        fs::write(place.promises(), oracle.chars().map(told).collect::<String>()).unwrap();
        fs::write(place.lines(), file.chars().map(line).collect::<String>()).unwrap();
        place
    }

    fn found(store: &str, oracle: &str, file: &str, wrong_accounts: bool) -> Result<(), String> {
        let place = place(store, oracle, file, wrong_accounts);
        let mut proof = Proof::of(&place)?;
        proof.check_lines(&place, &[Start { exec_ns: 0, lines_bytes: 0 }], 0)?;
        proof.check_promises(&place)?;
        proof.check_accounts(&place, true)?;
        fs::remove_dir_all(&place.folder).unwrap();
        proof.conclude()
    }

    #[test]
    fn what_is_lost_sent_again_torn_or_wrongly_counted_is_found() {
        assert_eq!(found("aBcD", "aBcD", "aBcD", false), Ok(()));
        let cases = [
            (("aBc", "aBcD", "aBc", false), "lost, 1 critical"),
            (("aBcD", "aBcD", "aBc", false), "1 committed events are not in the durable file"),
            (("aBcD", "aBcD", "aBcDc", false), "sent again"),
            (("aBcD", "aBcD", "aDcB", false), "out of order"),
            (("aBcD", "aBcD", "a-BcD", false), "torn"),
            (("aBcD", "aBcD", "aBcDe", false), "not in the store"),
            (("aBcDa", "aBcD", "aBcD", false), "rows have"),
            (("aBcD", "", "aBcD", false), "the oracle printed nothing"),
            (("aBcD", "aBcD", "aBcD", true), "accounts are not exact"),
        ];
        for ((store, oracle, file, wrong_accounts), wanted) in cases {
            let wrong = found(store, oracle, file, wrong_accounts).unwrap_err();
            assert!(wrong.contains(wanted), "{wanted}: {wrong}");
        }
    }

    #[test]
    fn what_the_cap_took_is_lost_unless_it_was_delivered_or_counted() {
        for (file, counted, wanted) in [("aBCD", 0, 0), ("aB", 2, 0), ("aBC", 0, 1), ("aB", 1, 1)] {
            let place = place("aB", "aBCDe", file, false);
            let took = "UPDATE accounts SET dropped_full_envelopes = 3 WHERE name = '(store)'";
            let owed = "UPDATE accounts SET dropped_full_envelopes = ?1
                        WHERE name <> '(store)' AND priority = 'critical'";
            let connection = Connection::open(place.database()).unwrap();
            connection.execute(took, []).unwrap();
            connection.execute(owed, [counted]).unwrap();
            drop(connection);
            let mut proof = Proof::of(&place).unwrap();
            proof.check_lines(&place, &[], 0).unwrap();
            proof.check_promises(&place).unwrap();
            assert_eq!(proof.wrong.len(), wanted, "{file} {counted}: {:?}", proof.wrong);
            fs::remove_dir_all(&place.folder).unwrap();
        }
    }

    #[test]
    fn what_is_sent_again_is_held_against_the_agent_that_was_killed() {
        let mut proof = Proof::on(Connection::open_in_memory().unwrap());
        for (n, observed_ns) in [10, 11, 25].into_iter().enumerate() {
            let committed = Committed { seq: n as u64, critical: false, observed_ns };
            proof.committed.insert(n.to_string(), committed);
        }
        let starts = [10, 20, 30].map(|exec_ns| Start { exec_ns, lines_bytes: 0 });
        assert_eq!(proof.most_again(&starts), [0, BATCH + 2, BATCH + 1]);
    }

    #[test]
    fn a_kill_that_no_gap_covers_is_found() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE events (type, subtype, event)").unwrap();
        let gap = r#"{"gap":{"from":"1970-01-01T00:00:10Z","to":"1970-01-01T00:00:12Z"}}"#;
        connection.execute("INSERT INTO events VALUES ('agent', 'gap', ?1)", [gap]).unwrap();
        let mut proof = Proof::on(connection);
        let kill = |from: u64, to: u64| Kill {
            reaped_ns: from * 1_000_000_000,
            next_exec_ns: to * 1_000_000_000,
            must_be_told: true,
            may_be_told: true,
        };
        proof.check_gaps(&[kill(10, 11), kill(11, 12)]);
        assert!(proof.wrong.is_empty(), "{:?}", proof.wrong);
        proof.check_gaps(&[kill(10, 11), kill(12, 13)]);
        assert_eq!(proof.wrong, ["1 kills are told by no gap"]);
    }
}
