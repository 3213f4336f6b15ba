//! Any number of events, oldest first, a page at a time: neither memory nor
//! the time that a transaction takes depends on how many there are.

use vahti_exporters::store::{Filter, ReadError, Reader, Row};

/// How many rows are read at once.
pub(super) const PAGE: u64 = 1_000;

/// The newest events that a filter leaves, in pages, oldest first.
pub(super) struct Pages<'a> {
    reader: &'a Reader,
    filter: Filter,
    /// The oldest page, as it was read already.
    first: Option<Vec<Row>>,
    /// From when until when the other pages reach; the next one is the last.
    spans: Vec<(u64, u64)>,
}

impl<'a> Pages<'a> {
    /// Looks how far back the newest that are asked for reach. Each page but
    /// the oldest is only measured, and read when it is its turn.
    pub(super) fn new(reader: &'a Reader, filter: Filter) -> Result<Self, ReadError> {
        let mut spans = Vec::new();
        let mut until = filter.until_ns;
        let mut left = filter.limit.unwrap_or(u64::MAX);
        loop {
            let limit = left.min(PAGE);
            let page = Filter { until_ns: until, limit: Some(limit), ..filter.clone() };
            let rows = reader.events(&page)?;
            let Some(oldest) = rows.first().filter(|_| rows.len() as u64 == limit && left > limit)
            else {
                let filter = Filter { limit: None, ..filter };
                return Ok(Pages { reader, filter, first: Some(rows), spans });
            };
            // Those of one moment stay together.
            let end = until.unwrap_or(u64::MAX);
            let newer = oldest.time_ns + 1;
            let from =
                if rows.iter().any(|row| row.time_ns >= newer) { newer } else { oldest.time_ns };
            let taken = if from == newer {
                rows.iter().filter(|row| row.time_ns >= from).count()
            } else {
                let all =
                    Filter { since_ns: Some(from), until_ns: until, limit: None, ..filter.clone() };
                reader.events(&all)?.len()
            };
            left = left.saturating_sub(taken as u64);
            spans.push((from, end));
            until = Some(from);
            if left == 0 {
                let filter = Filter { limit: None, ..filter };
                return Ok(Pages { reader, filter, first: None, spans });
            }
        }
    }
}

impl Iterator for Pages<'_> {
    type Item = Result<Vec<Row>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        let (from, until) = self.spans.pop()?;
        let until = (until < u64::MAX).then_some(until);
        let page = Filter { since_ns: Some(from), until_ns: until, ..self.filter.clone() };
        Some(self.reader.events(&page))
    }
}
