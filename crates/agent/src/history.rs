//! `vahti events` and `vahti why`: what the store of a node remembers, whether
//! its agent runs or not.

mod chain;
mod moment;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vahti_exporters::store::{Filter, ReadError, Reader, Row};
use vahti_exporters::{Format, to_text_line};
use vahti_runtime::clock::ClockPair;
use vahti_runtime::event::{escape_text, from_json_line};

use crate::cli::{EventsArgs, WhyArgs};
use crate::output::{Failed, Outcome, Printed, SUCCESS, print_some};
use crate::store_path;

pub(crate) use moment::Moment;

/// How often a store that is followed is looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);
/// How many rows are read at once, so that no read takes long.
const PAGE: u64 = 1_000;

/// Prints the events that are asked for.
pub(crate) fn events(args: &EventsArgs) -> Outcome {
    let reader = open(args.store.clone())?;
    let now = ClockPair::now().wall_ns;
    let filter = Filter {
        since_ns: args.since.map(|since| since.before(now)),
        until_ns: args.until.map(|until| until.before(now)),
        event_type: args.event_type.clone(),
        subtype: args.subtype.clone(),
        severities: args.severity.iter().map(|s| s.to_string()).collect(),
        pod: args.pod.clone(),
        container: args.container.clone(),
        process: args.process.clone(),
        peer: args.peer.clone(),
        trace: args.trace.as_ref().map(|trace| trace.to_lowercase()),
        after_seq: None,
        limit: (args.limit > 0).then_some(args.limit),
    };
    let mut show = Show::new(args.format);
    // What comes while the first are printed is not to be missed.
    let seen = reader.last_seq().map_err(unreadable)?;
    let rows = reader.events(&filter).map_err(unreadable)?;
    let shown = rows.into_iter().filter(|row| !args.follow || row.seq <= seen);
    if show.print(shown)? == Printed::Closed || !args.follow {
        return Ok(SUCCESS);
    }
    let filter = Filter { until_ns: None, limit: Some(PAGE), ..filter };
    follow(reader, args.store.clone(), seen, |reader, after| {
        let filter = Filter { after_seq: Some(after), ..filter.clone() };
        let rows = reader.events(&filter).map_err(unreadable)?;
        let more = rows.len() as u64 == PAGE;
        let last = rows.last().map(|row| row.seq);
        Ok((last, more, show.print(rows.into_iter())?))
    })
}

/// Calls `page` for what is committed after `seen`, until nobody reads.
pub(crate) fn follow(
    mut reader: Reader,
    store: Option<PathBuf>,
    mut seen: u64,
    mut page: impl FnMut(&Reader, u64) -> Result<(Option<u64>, bool, Printed), Failed>,
) -> Outcome {
    let mut version = None;
    let mut opened = Instant::now();
    loop {
        let now = reader.version().map_err(unreadable)?;
        if version != Some(now) {
            version = Some(now);
            loop {
                let end = reader.last_seq().map_err(unreadable)?;
                let (last, more, printed) = page(&reader, seen)?;
                if printed == Printed::Closed {
                    return Ok(SUCCESS);
                }
                // What does not fit the question was looked at as well.
                seen =
                    if more { last.unwrap_or(end) } else { seen.max(end).max(last.unwrap_or(0)) };
                if !more {
                    break;
                }
            }
        }
        std::thread::sleep(FOLLOW_INTERVAL);
        if crate::output::is_closed() {
            return Ok(SUCCESS);
        }
        // The file may have been set aside, and another one begun.
        if opened.elapsed() >= Duration::from_secs(5) {
            opened = Instant::now();
            reader = open(store.clone())?;
            version = None;
            seen = seen.min(reader.last_seq().map_err(unreadable)?);
        }
    }
}

/// Prints what caused an event, and what it caused.
pub(crate) fn why(args: &WhyArgs) -> Outcome {
    let reader = open(args.store.clone())?;
    let id = args.id.trim().to_uppercase();
    let Some(row) = reader.event(&id).map_err(unreadable)? else {
        let id = escape_text(&args.id);
        return Err(Failed::failure(format!(
            "no event {id} is in the store: is the id whole, and not older than the store keeps \
             events? `vahti events` shows what there is with --format json"
        )));
    };
    let tree = chain::of(&reader, row).map_err(unreadable)?;
    if args.json {
        return crate::output::print(&format!("{:#}\n", tree.to_json()));
    }
    crate::output::print(&tree.to_text())
}

pub(crate) fn open(store: Option<PathBuf>) -> Result<Reader, Failed> {
    let path = store_path::to_read(store)?;
    Reader::open(&path).map_err(unreadable)
}

pub(crate) fn unreadable(error: ReadError) -> Failed {
    let text = error.to_string();
    let denied = text.contains("ermission denied") || text.contains("unable to open");
    if denied && unsafe_euid() != 0 { Failed::no_permission(text) } else { Failed::failure(text) }
}

fn unsafe_euid() -> u32 {
    // SAFETY: has no preconditions.
    unsafe { libc::geteuid() }
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
        Show { format, colour: terminal && std::env::var_os("NO_COLOR").is_none() }
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
    match (format, from_json_line(row.json.as_bytes())) {
        (Format::Text, Ok(event)) => to_text_line(&event, colour, out),
        _ => {
            out.extend_from_slice(escape_text(&row.json).as_bytes());
            out.push(b'\n');
        }
    }
}
