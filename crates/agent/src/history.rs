//! `vahti events` and `vahti why`: what the store of a node remembers, whether
//! its agent runs or not.

mod chain;
mod find;
mod moment;
mod pages;

use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use vahti_exporters::store::{Filter, ReadError, Reader, Row, State};
use vahti_exporters::{Format, to_text_line, wants_colour};
use vahti_runtime::clock::ClockPair;
use vahti_runtime::event::{escape_text, from_json_line};

use crate::cli::{EventsArgs, WhyArgs};
use crate::history::find::Found;
use crate::history::pages::{PAGE, Pages};
use crate::output::{Failed, Outcome, Printed, SUCCESS, complain, print_some};
use crate::table::grouped;
use crate::{control, socket, store_path};

pub(crate) use moment::Moment;

/// How often a store that is followed is looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);
/// How often it is looked whether the file is still the same.
const REOPEN_INTERVAL: Duration = Duration::from_secs(2);
/// How long a store that is yet to be is waited for before that is said.
const QUIET_PATIENCE: Duration = Duration::from_secs(2);
/// How long a store that is followed may be away, as while a file is replaced.
const FOLLOW_PATIENCE: Duration = Duration::from_secs(10);

/// Prints the events that are asked for.
pub(crate) fn events(args: &EventsArgs) -> Outcome {
    let now = ClockPair::now().wall_ns;
    let (since_ns, until_ns) =
        (args.since.map(|since| since.before(now)), args.until.map(|until| until.before(now)));
    if since_ns.zip(until_ns).is_some_and(|(since, until)| since >= until) {
        return Err(Failed::usage("--until is not after --since, so nothing lies between them"));
    }
    let store = args.store.clone();
    let (reader, place) = if args.follow {
        let Some((reader, place)) = open_to_follow(store, None)? else { return Ok(SUCCESS) };
        (reader, Some(place))
    } else {
        (open(store)?, None)
    };
    let filter = Filter {
        since_ns,
        until_ns,
        event_type: args.event_type.clone(),
        subtype: args.subtype.clone(),
        severities: args.severity.iter().map(|s| s.to_string()).collect(),
        pod: args.pod.clone(),
        container: args.container.clone(),
        process: args.process.clone(),
        peer: args.peer.clone(),
        trace: args.trace.clone(),
        after_seq: None,
        limit: (args.limit > 0).then_some(args.limit),
    };
    let mut show = Show::new(args.format);
    // What comes while the first are printed is not to be missed.
    let seen = reader.last_seq().map_err(unreadable)?;
    let mut shown = 0;
    for page in Pages::new(&reader, &filter).map_err(unreadable)? {
        let page = page.map_err(unreadable)?;
        let page = page.into_iter().filter(|row| !args.follow || row.seq <= seen);
        if show.print(page.inspect(|_| shown += 1))? == Printed::Closed {
            return Ok(SUCCESS);
        }
    }
    let Some(place) = place else {
        if shown == 0 {
            tell_nothing_fits(&reader, seen, now)?;
        }
        return Ok(SUCCESS);
    };
    let filter = Filter { until_ns: None, limit: Some(PAGE), ..filter };
    follow(reader, place, seen, |reader, after| {
        let filter = Filter { after_seq: Some(after), ..filter.clone() };
        let rows = reader.events(&filter)?;
        let more = rows.len() as u64 == PAGE;
        let last = rows.last().map(|row| row.seq);
        Ok((last, more, show.print(rows.into_iter())))
    })
}

/// Says to people, and not to programs, that no output is no mistake.
fn tell_nothing_fits(reader: &Reader, last_seq: u64, now: u64) -> Result<(), Failed> {
    if !io::stderr().is_terminal() {
        return Ok(());
    }
    let newest = Filter { limit: Some(1), ..Filter::default() };
    let newest = reader.events(&newest).map_err(unreadable)?.pop();
    complain(&match newest {
        None if last_seq == 0 => "the store has no event yet".to_owned(),
        None => "the store has no event any more".to_owned(),
        Some(row) => {
            let ago = Duration::from_nanos(now.saturating_sub(row.time_ns)).as_secs();
            format!("no event fits; the newest of all is {} s old", grouped(ago))
        }
    });
    Ok(())
}

/// What a look at what was committed since came to: the last that was read,
/// whether there is more, and what became of printing it.
type Looked = (Option<u64>, bool, Result<Printed, Failed>);

/// Calls `page` for what is committed after `seen`, until nobody reads.
pub(crate) fn follow(
    reader: Reader,
    Place { folder, mut file }: Place,
    mut seen: u64,
    mut page: impl FnMut(&Reader, u64) -> Result<Looked, ReadError>,
) -> Outcome {
    let mut reader = Some(reader);
    let (mut version, mut opened, mut away) = (None, Instant::now(), None);
    loop {
        let mut look = || -> Result<Option<Outcome>, ReadError> {
            // The file may have been set aside, and another one begun.
            if reader.is_none() || opened.elapsed() >= REOPEN_INTERVAL {
                opened = Instant::now();
                let now = identity(&folder);
                let fresh = Reader::open(&folder)?;
                if now != file {
                    // Whatever is in another file was not seen.
                    (file, seen) = (now, 0);
                }
                reader = Some(fresh);
                version = None;
            }
            let Some(reader) = &reader else { return Ok(None) };
            let now = reader.version()?;
            if version.replace(now) == Some(now) {
                return Ok(None);
            }
            loop {
                let end = reader.last_seq()?;
                if end < seen {
                    // The same file, and emptied: what is in it was not seen.
                    seen = 0;
                }
                let (last, more, printed) = page(reader, seen)?;
                match printed {
                    Ok(Printed::All) => {}
                    Ok(Printed::Closed) => return Ok(Some(Ok(SUCCESS))),
                    Err(failed) => return Ok(Some(Err(failed))),
                }
                // What does not fit the question was looked at as well.
                let last = last.unwrap_or(0);
                seen = if more { last } else { seen.max(end).max(last) };
                if !more {
                    return Ok(None);
                }
            }
        };
        match look() {
            Ok(Some(outcome)) => return outcome,
            Ok(None) => away = None,
            Err(error) => {
                if away.get_or_insert_with(Instant::now).elapsed() >= FOLLOW_PATIENCE {
                    return Err(unreadable(error));
                }
                reader = None;
            }
        }
        std::thread::sleep(FOLLOW_INTERVAL);
        if crate::output::is_closed() {
            return Ok(SUCCESS);
        }
    }
}

/// What is followed: a folder, and which file stood in it when it was opened.
pub(crate) struct Place {
    folder: PathBuf,
    file: Files,
}

/// Opens the store that is asked for, or the one there is, to follow it. One
/// that an agent is about to begin, such as the one at the socket, is waited
/// for; `None` once nobody reads any more.
pub(crate) fn open_to_follow(
    store: Option<PathBuf>,
    socket: Option<PathBuf>,
) -> Result<Option<(Reader, Place)>, Failed> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        let folder = store_path::to_read(store.clone())?;
        // Before it is opened: one that takes its place meanwhile is another.
        let file = identity(&folder);
        let error = match Reader::open(&folder) {
            Ok(reader) => return Ok(Some((reader, Place { folder, file }))),
            Err(error) => error,
        };
        if !store_path::is_yet_to_be(&error) || !is_written_to(&folder, socket.clone()) {
            return Err(store_path::why_unreadable(&folder, &error));
        }
        if begun.elapsed() >= QUIET_PATIENCE && !told {
            told = true;
            let folder = store_path::shown(&folder);
            complain(&format!(
                "the agent has not begun its store {folder} yet: waiting; `vahti doctor` tells why"
            ));
        }
        std::thread::sleep(FOLLOW_INTERVAL);
        if crate::output::is_closed() {
            return Ok(None);
        }
    }
}

/// Whether an agent has this folder, or would if it could.
fn is_written_to(folder: &Path, socket: Option<PathBuf>) -> bool {
    if State::of(folder).is_ok_and(|state| state.agent.is_some()) {
        return true;
    }
    let socket = socket::path(socket).ok().flatten();
    let ledger = socket.and_then(|path| control::ask(&path, "ledger").ok());
    ledger.is_some_and(|ledger| ledger["store"]["path"] == store_path::shown(folder))
}

/// What tells the files that may be the store's from all others. A file that is
/// removed may leave its number to the next one.
type Files = [Option<(u64, u64, Option<SystemTime>)>; 2];

/// Which file is the store's: the names stand in docs/store.md.
fn identity(folder: &Path) -> Files {
    ["events.db", "events-v1.db"].map(|name| {
        let meta = std::fs::metadata(folder.join(name)).ok()?;
        Some((meta.dev(), meta.ino(), meta.created().ok()))
    })
}

/// Prints what caused an event, and what it caused.
pub(crate) fn why(args: &WhyArgs) -> Outcome {
    let typed = escape_text(&args.id);
    let Some(id) = find::as_stored(&args.id) else {
        return Err(Failed::usage(format!(
            "\"{typed}\" is no event's id: 26 letters and digits, or the first of them; `vahti \
             events --format json | jq -r .id` prints those that there are"
        )));
    };
    let reader = open(args.store.clone())?;
    let row = match find::find(&reader, &id).map_err(unreadable)? {
        Found::One(row) => row,
        Found::None => {
            return Err(Failed::failure(format!(
                "no event {typed} is in this store: another node saw it, or it is older than the \
                 store keeps events (`vahti events --limit 0` shows all that there are)"
            )));
        }
        Found::Several(rows, more) => return Err(Failed::failure(several(&id, rows, more))),
    };
    let tree = chain::of(&reader, row).map_err(unreadable)?;
    if args.json {
        return crate::output::print(&format!("{:#}\n", tree.to_json()));
    }
    crate::output::print(&tree.to_text())
}

/// Which events have an id that begins so.
fn several(id: &str, rows: Vec<Row>, more: bool) -> String {
    let newest = if more { "; the newest" } else { "" };
    let mut text =
        format!("several events have an id that begins with {id}{newest}:\n").into_bytes();
    for row in rows {
        text.extend_from_slice(format!("  {}  ", escape_text(&row.id)).as_bytes());
        line_of(&row, Format::Text, false, &mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Opens the store that is asked for, or the one there is.
pub(crate) fn open(store: Option<PathBuf>) -> Result<Reader, Failed> {
    let path = store_path::to_read(store)?;
    Reader::open(&path).map_err(|error| store_path::why_unreadable(&path, &error))
}

/// What to say where a store that was open can't be read.
pub(crate) fn unreadable(error: ReadError) -> Failed {
    Failed::failure(format!("{error}; `vahti doctor` tells what to do"))
}

/// How rows are shown.
struct Show {
    format: Format,
    colour: bool,
}

impl Show {
    fn new(format: Option<Format>) -> Self {
        let terminal = io::stdout().is_terminal();
        let format = format.unwrap_or(if terminal { Format::Text } else { Format::Json });
        Show { format, colour: terminal && wants_colour() }
    }

    fn print(&mut self, rows: impl Iterator<Item = Row>) -> Result<Printed, Failed> {
        let mut out = Vec::new();
        for row in rows {
            line_of(&row, self.format, self.colour, &mut out);
            if out.len() >= 64 << 10 {
                if print_some(&out)? == Printed::Closed {
                    return Ok(Printed::Closed);
                }
                out.clear();
            }
        }
        print_some(&out)
    }
}

/// A row as a line. One that can't be understood is shown as it stands, with
/// nothing in it that a terminal would obey.
fn line_of(row: &Row, format: Format, colour: bool, out: &mut Vec<u8>) {
    let event = (format == Format::Text).then(|| from_json_line(row.json.as_bytes()));
    match event {
        Some(Ok(event)) => to_text_line(&event, colour, out),
        _ => {
            out.extend_from_slice(escape_text(&row.json).as_bytes());
            out.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_removed_and_begun_anew_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let mut before = identity(folder.path());
        assert_eq!(before, [None, None]);
        for n in 0..5 {
            std::fs::write(folder.path().join("events.db"), "").unwrap();
            let now = identity(folder.path());
            assert_eq!(now, identity(folder.path()), "whoever looks twice sees the same");
            assert_ne!(now, before, "{n}");
            before = now;
            std::fs::remove_file(folder.path().join("events.db")).unwrap();
            // Two ticks of the clock that files have their times from.
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
