//! An event by its id, or by how its id begins.

use vahti_exporters::store::{Filter, ReadError, Reader, Row};
use vahti_runtime::ids::EventId;

/// How long an id is.
const LEN: usize = 26;
/// How much of it is the event's time.
const TIME_LEN: usize = 10;
/// How many are shown where several begin alike.
const SHOWN: u64 = 5;

/// What an id, or its beginning, stands for.
pub(super) enum Found {
    One(Row),
    /// The newest of those that begin so, and whether there are more.
    Several(Vec<Row>, bool),
    None,
}

/// An id as people type it, in the form in which ids are stored: whole or its
/// beginning. `None` if no id begins so.
pub(super) fn as_stored(typed: &str) -> Option<String> {
    // Crockford's base 32 takes these for each other.
    let read = |c: char| match c.to_ascii_uppercase() {
        'I' | 'L' => '1',
        'O' => '0',
        c => c,
    };
    let id: String = typed.trim().chars().map(read).collect();
    (!id.is_empty() && id.len() <= LEN && span_of(&id).is_some()).then_some(id)
}

/// The events whose id begins so.
pub(super) fn find(reader: &Reader, id: &str) -> Result<Found, ReadError> {
    // An id begins with its event's time, and times are indexed.
    let Some((from, to)) = span_of(id) else { return Ok(Found::None) };
    let filter = Filter {
        since_ns: Some(from),
        until_ns: Some(to),
        limit: (id.len() <= TIME_LEN).then_some(SHOWN + 1),
        ..Filter::default()
    };
    let mut rows = reader.events(&filter)?;
    rows.retain(|row| row.id.starts_with(id));
    // What an exporter sent twice, or a commit wrote twice, is one event.
    rows.dedup_by(|a, b| a.id == b.id);
    if rows.is_empty() && id.len() == LEN {
        // Whoever made it may have made its id in another way.
        return Ok(reader.event(id)?.map_or(Found::None, Found::One));
    }
    let more = rows.len() as u64 > SHOWN;
    if more {
        rows.drain(..rows.len() - SHOWN as usize);
    }
    Ok(match (rows.len(), rows.pop()) {
        (_, None) => Found::None,
        (1, Some(row)) => Found::One(row),
        (_, Some(row)) => {
            rows.push(row);
            Found::Several(rows, more)
        }
    })
}

/// From when until when events have ids that begin so, nanoseconds since 1970.
fn span_of(id: &str) -> Option<(u64, u64)> {
    let millis = |filler: char| {
        let whole = id.to_owned() + &filler.to_string().repeat(LEN.checked_sub(id.len())?);
        u64::try_from(EventId::parse(&whole)?.0 >> 80).ok()
    };
    let ns = |millis: u64| millis.saturating_mul(1_000_000);
    Some((ns(millis('0')?), ns(millis('Z')?.saturating_add(1))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_people_type_it_and_nothing_else_is_one() {
        assert_eq!(as_stored(" 01km\n").as_deref(), Some("01KM"));
        assert_eq!(as_stored("oikl").as_deref(), Some("01K1"));
        let whole = "01M82011N01HX4436V4HWJTGWH";
        assert_eq!(as_stored(&whole.to_lowercase()).as_deref(), Some(whole));
        for wrong in ["", " ", "01-5", "8", "u", "\u{1b}[2J", "ä", &format!("{whole}0")] {
            assert_eq!(as_stored(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_beginning_is_a_span_of_time() {
        let whole = "01M82011N01HX4436V4HWJTGWH";
        let ms = (EventId::parse(whole).unwrap().0 >> 80) as u64;
        assert_eq!(span_of(whole), Some((ms * 1_000_000, (ms + 1) * 1_000_000)));
        assert_eq!(span_of(&whole[..10]), span_of(whole));
        let (from, to) = span_of(&whole[..8]).unwrap();
        assert!(from <= ms * 1_000_000 && to > ms * 1_000_000 && to - from == 1_024_000_000);
        assert_eq!(span_of("7").unwrap().1, u64::MAX);
    }
}
