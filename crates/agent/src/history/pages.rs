//! Any number of events, oldest first, a page at a time: neither memory nor
//! the time that a transaction takes depends on how many there are.

use vahti_exporters::store::{Filter, ReadError, Reader, Row};

/// How many rows are read at once.
pub(super) const PAGE: u64 = 1_000;

/// The newest events that a filter leaves, in pages, oldest first.
pub(super) struct Pages<'a> {
    reader: &'a Reader,
    /// Without a limit: the spans are it.
    filter: Filter,
    /// The oldest page, which was read already.
    oldest: Vec<Row>,
    /// From when until when each newer page reaches, the newest first.
    spans: Vec<(u64, Option<u64>)>,
}

impl<'a> Pages<'a> {
    /// Looks how far back the newest that are asked for reach. All pages but
    /// the oldest are only measured, and read again when it is their turn.
    pub(super) fn new(reader: &'a Reader, filter: &Filter) -> Result<Self, ReadError> {
        let mut spans = Vec::new();
        let mut until_ns = filter.until_ns;
        let mut left = filter.limit.unwrap_or(u64::MAX);
        let filter = Filter { limit: None, ..filter.clone() };
        loop {
            let rest = Filter { until_ns, ..filter.clone() };
            let rows = reader.events(&Filter { limit: Some(left.min(PAGE)), ..rest.clone() })?;
            let ends = rows.first().zip(rows.last()).map(|(a, b)| (a.time_ns, b.time_ns));
            let Some((oldest, newest)) = ends.filter(|_| left > PAGE && rows.len() as u64 == PAGE)
            else {
                return Ok(Pages { reader, filter, oldest: rows, spans });
            };
            // Those of one moment stay together: on the next page, or all on this
            // one, where it has no other moment.
            let from = if oldest < newest { oldest + 1 } else { oldest };
            let count = if oldest < newest {
                rows.iter().filter(|row| row.time_ns >= from).count()
            } else {
                let mut rows = reader.events(&Filter { since_ns: Some(from), ..rest })?;
                if rows.len() as u64 >= left {
                    let oldest = rows.split_off(rows.len() - left as usize);
                    return Ok(Pages { reader, filter, oldest, spans });
                }
                rows.len()
            };
            left -= count as u64;
            spans.push((from, until_ns));
            until_ns = Some(from);
        }
    }
}

impl Iterator for Pages<'_> {
    type Item = Result<Vec<Row>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.oldest.is_empty() {
            return Some(Ok(std::mem::take(&mut self.oldest)));
        }
        let (since_ns, until_ns) = self.spans.pop()?;
        let page = Filter { since_ns: Some(since_ns), until_ns, ..self.filter.clone() };
        Some(self.reader.events(&page))
    }
}
