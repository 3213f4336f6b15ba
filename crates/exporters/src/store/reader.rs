//! Reading the store beside the agent that writes, or without one.
//!
//! Each question is one short transaction, so that the write-ahead log never
//! waits for a reader.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, params_from_iter};

use super::books::{OWN, signed, unsigned};
use super::schema::{self, Found};
use super::{folder, shown, state};

/// Which events are asked for; what is `None` leaves all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// From this moment on, nanoseconds since 1970.
    pub since_ns: Option<u64>,
    /// Before this moment, nanoseconds since 1970.
    pub until_ns: Option<u64>,
    /// The type, such as `network`.
    pub event_type: Option<String>,
    /// The subtype, such as `connection_refused`.
    pub subtype: Option<String>,
    /// Of these severities.
    pub severities: Vec<String>,
    /// The pod, namespace/name.
    pub pod: Option<String>,
    /// The container, by its id or the beginning of it.
    pub container: Option<String>,
    /// The process, by name, or by id where it is a number.
    pub process: Option<String>,
    /// The peer: an address, or an address with its port.
    pub peer: Option<String>,
    /// The trace.
    pub trace: Option<String>,
    /// Committed after this one.
    pub after_seq: Option<u64>,
    /// At most so many, the newest; in the order in which they were committed
    /// if [`after_seq`](Filter::after_seq) is set: then the oldest.
    pub limit: Option<u64>,
}

/// A committed event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its place in the order of commits.
    pub seq: u64,
    /// Its id.
    pub id: String,
    /// When it happened, nanoseconds since 1970.
    pub time_ns: u64,
    /// All of it, as a line of JSON without the newline.
    pub json: String,
}

/// A ledger that was written with a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// When, nanoseconds since 1970.
    pub time_ns: u64,
    /// The ledger, as JSON.
    pub json: String,
    /// Whether an agent still ran then, that has not said that it ended.
    pub running: bool,
}

/// Why a store can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is none.
    #[error("there is no store in {}: is it the folder of a vahti that ran here?", shown(.0))]
    Missing(PathBuf),
    /// A newer version writes it.
    #[error(
        "a newer version of vahti writes {} (schema {version}): read it with that one",
        shown(path)
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The schema's version.
        version: u32,
    },
    /// Nothing is in it yet.
    #[error("{} is no store of vahti yet", shown(.0))]
    Empty(PathBuf),
    /// It is something else.
    #[error("{} is no store of vahti", shown(.0))]
    Foreign(PathBuf),
    /// It can't be read.
    #[error("cannot read {}: {error}", shown(path))]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        error: rusqlite::Error,
    },
}

/// A store, opened to be read.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
    path: PathBuf,
}

/// Opens a file to be read, and tells what it is. `is_still`: nobody writes to
/// it meanwhile, so that it needs no locks, and no files beside it.
fn look_at(path: &Path, is_still: bool) -> rusqlite::Result<(Connection, Option<Found>)> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = if is_still {
        let flags = flags | OpenFlags::SQLITE_OPEN_URI;
        Connection::open_with_flags(format!("file:{}?immutable=1", in_uri(path)), flags)?
    } else {
        Connection::open_with_flags(path, flags)?
    };
    connection.busy_timeout(Duration::from_secs(5))?;
    let found = schema::is_readable(&connection)?;
    Ok((connection, found))
}

/// Whether nobody writes to a file, and nobody can: its folder takes no files,
/// no agent has it, and its log is empty.
fn is_still(store: &Path, file: &Path) -> bool {
    let log = std::fs::metadata(folder::with_suffix(file, "-wal"));
    state::not_writable(store).is_some()
        && state::agent(store).is_none()
        && log.map_or_else(|error| error.kind() == ErrorKind::NotFound, |log| log.len() == 0)
}

/// A path as it stands in a URI.
fn in_uri(path: &Path) -> String {
    let mut uri = String::new();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' => uri.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => uri.push(char::from(*byte)),
            byte => uri.push_str(&format!("%{byte:02x}")),
        }
    }
    uri
}

impl Reader {
    /// Opens the store in this folder.
    ///
    /// # Errors
    /// There is none, or it can't be read by this version.
    pub fn open(store: &Path) -> Result<Self, ReadError> {
        let mut newer = None;
        // In the order in which the writer takes them.
        for second in [false, true] {
            let path = folder::file(store, second);
            match std::fs::metadata(&path) {
                Ok(there) if there.is_file() => {}
                // SQLite would wait for whoever writes to a pipe.
                Ok(_) => return Err(ReadError::Foreign(path)),
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => {
                    let reason = Some(error.to_string());
                    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
                    let error = rusqlite::Error::SqliteFailure(code, reason);
                    return Err(ReadError::Sqlite { path, error });
                }
            }
            let failed = |error| ReadError::Sqlite { path: path.clone(), error };
            let (connection, found) = look_at(&path, false)
                .or_else(
                    |error| {
                        if is_still(store, &path) { look_at(&path, true) } else { Err(error) }
                    },
                )
                .map_err(failed)?;
            match found {
                Some(Found::Ours) => return Ok(Reader { connection, path }),
                Some(Found::Newer(version)) => newer = Some(ReadError::Newer { path, version }),
                Some(Found::Foreign) => return Err(ReadError::Foreign(path)),
                None => return Err(ReadError::Empty(path)),
            }
        }
        Err(newer.unwrap_or_else(|| ReadError::Missing(store.to_owned())))
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    fn error(&self, error: rusqlite::Error) -> ReadError {
        ReadError::Sqlite { path: self.path.clone(), error }
    }

    /// The events that a filter leaves, oldest first.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn events(&self, filter: &Filter) -> Result<Vec<Row>, ReadError> {
        let (wheres, values) = filter.to_sql();
        let order = if filter.after_seq.is_some() { "seq" } else { "time DESC, seq DESC" };
        let limit = filter.limit.map_or(-1, signed);
        let sql = format!(
            "SELECT seq, id, time, event FROM events WHERE {wheres} ORDER BY {order} LIMIT {limit}"
        );
        let mut rows = self.rows(&sql, values)?;
        if filter.after_seq.is_none() {
            rows.reverse();
        }
        Ok(rows)
    }

    /// The event with this id.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn event(&self, id: &str) -> Result<Option<Row>, ReadError> {
        let sql = "SELECT seq, id, time, event FROM events WHERE id = ?1 LIMIT 1";
        Ok(self.rows(sql, vec![Value::Text(id.to_owned())])?.pop())
    }

    /// The events of a trace that may be causes or effects of others: critical
    /// ones, and those with a parent; oldest first.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn chain(&self, trace: &str, limit: u64) -> Result<Vec<Row>, ReadError> {
        let sql = "SELECT seq, id, time, event FROM events
                   WHERE trace = ?1 AND (priority = 'critical' OR parent IS NOT NULL)
                   ORDER BY time, seq LIMIT ?2";
        self.rows(sql, vec![Value::Text(trace.to_owned()), Value::Integer(signed(limit))])
    }

    /// The event that has this span.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn span(&self, trace: &str, span: &str) -> Result<Option<Row>, ReadError> {
        let values = || vec![Value::Text(trace.to_owned()), Value::Text(span.to_owned())];
        let indexed = "SELECT seq, id, time, event FROM events
                       WHERE trace = ?1 AND (priority = 'critical' OR parent IS NOT NULL)
                         AND span = ?2 ORDER BY seq LIMIT 1";
        if let Some(row) = self.rows(indexed, values())?.pop() {
            return Ok(Some(row));
        }
        let all = "SELECT seq, id, time, event FROM events
                   WHERE trace = ?1 AND span = ?2 ORDER BY seq LIMIT 1";
        Ok(self.rows(all, values())?.pop())
    }

    /// The last ledger that was committed.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn snapshot(&self) -> Result<Option<Snapshot>, ReadError> {
        let sql = "SELECT ledger.time, ledger.ledger, agent.running FROM ledger, agent";
        let mut statement = self.connection.prepare(sql).map_err(|e| self.error(e))?;
        let mut rows = statement.query([]).map_err(|e| self.error(e))?;
        let row = rows.next().map_err(|e| self.error(e))?;
        row.map(|row| {
            Ok(Snapshot { time_ns: unsigned(row, 0)?, json: row.get(1)?, running: row.get(2)? })
        })
        .transpose()
        .map_err(|e| self.error(e))
    }

    /// The place of the event that was committed last, also where that is not
    /// kept any more; 0 where there never was one.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn last_seq(&self) -> Result<u64, ReadError> {
        self.connection
            .query_row(
                "SELECT coalesce(max(cursor), 0) FROM accounts WHERE name = ?1",
                [OWN],
                |row| unsigned(row, 0),
            )
            .map_err(|e| self.error(e))
    }

    /// Changes when somebody else has committed something.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn version(&self) -> Result<i64, ReadError> {
        self.connection
            .pragma_query_value(None, "data_version", |row| row.get(0))
            .map_err(|e| self.error(e))
    }

    fn rows(&self, sql: &str, values: Vec<Value>) -> Result<Vec<Row>, ReadError> {
        let read = || -> rusqlite::Result<Vec<Row>> {
            let mut statement = self.connection.prepare_cached(sql)?;
            let rows = statement.query_map(params_from_iter(values), |row| {
                Ok(Row {
                    seq: unsigned(row, 0)?,
                    id: row.get(1)?,
                    time_ns: unsigned(row, 2)?,
                    json: row.get(3)?,
                })
            })?;
            rows.collect()
        };
        read().map_err(|e| self.error(e))
    }
}

impl Filter {
    fn to_sql(&self) -> (String, Vec<Value>) {
        let mut wheres = vec!["1".to_owned()];
        let mut values = Vec::new();
        let mut add = |sql: &str, value: Value| {
            values.push(value);
            wheres.push(sql.replace('?', &format!("?{}", values.len())));
        };
        let number = |n: u64| Value::Integer(signed(n));
        if let Some(since) = self.since_ns {
            add("time >= ?", number(since));
        }
        if let Some(until) = self.until_ns {
            add("time < ?", number(until));
        }
        if let Some(seq) = self.after_seq {
            add("seq > ?", number(seq));
        }
        for (sql, value) in [
            ("type = ?", &self.event_type),
            ("subtype = ?", &self.subtype),
            ("pod = ?", &self.pod),
            ("trace = ?", &self.trace),
            ("substr(container, 1, length(?)) = ?", &self.container),
        ] {
            if let Some(value) = value {
                add(sql, Value::Text(value.clone()));
            }
        }
        if let Some(process) = &self.process {
            match process.parse::<i64>() {
                Ok(pid) => add("pid = ?", Value::Integer(pid)),
                Err(_) => add("process = ?", Value::Text(process.clone())),
            }
        }
        if let Some(peer) = &self.peer {
            // With its port as it stands; without one, any port of it.
            let sql = "(peer = ? OR substr(peer, 1, length(?) + 1) = ? || ':' \
                       OR substr(peer, 1, length(?) + 3) = '[' || ? || ']:')";
            add(sql, Value::Text(peer.clone()));
        }
        if !self.severities.is_empty() {
            let mut places = Vec::new();
            for severity in &self.severities {
                values.push(Value::Text(severity.clone()));
                places.push(format!("?{}", values.len()));
            }
            wheres.push(format!("severity IN ({})", places.join(",")));
        }
        (wheres.join(" AND "), values)
    }
}
