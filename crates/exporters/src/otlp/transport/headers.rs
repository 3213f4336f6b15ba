//! What every request carries besides, from where it is kept.

use std::collections::BTreeMap;
use std::fs;

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::otlp::config::{HeaderSource, Secret};
use crate::tls::{Version, version};

/// A key that is larger is none.
const MAX_BYTES: u64 = 64 << 10;

pub(super) struct Headers {
    sources: BTreeMap<String, HeaderSource>,
    /// Those that were read last, and the files of which versions they are from.
    resolved: Option<(HeaderMap, Vec<Option<Version>>)>,
}

impl Headers {
    pub(super) fn new(sources: BTreeMap<String, HeaderSource>) -> Self {
        Headers { sources, resolved: None }
    }

    /// The headers as they are now.
    ///
    /// # Errors
    /// One can't be read.
    pub(super) fn resolve(&mut self) -> Result<&HeaderMap, String> {
        let now = self.versions();
        let resolved = match self.resolved.take().filter(|(_, versions)| *versions == now) {
            Some((headers, _)) => headers,
            None => self.read()?,
        };
        Ok(&self.resolved.insert((resolved, now)).0)
    }

    fn versions(&self) -> Vec<Option<Version>> {
        let files = self.sources.values().filter_map(|source| match source {
            HeaderSource::File { file, .. } => Some(file),
            _ => None,
        });
        files.map(|file| version(file)).collect()
    }

    fn read(&self) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        for (key, source) in &self.sources {
            let failed = |why: String| format!("header {key}: {why}");
            let name = HeaderName::from_bytes(key.as_bytes());
            let name = name.map_err(|_| failed("no name of a header".to_owned()))?;
            let value = read(source).map_err(failed)?;
            let value = HeaderValue::from_str(&value);
            let mut value =
                value.map_err(|_| failed("its value has characters that can't be".to_owned()))?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Ok(headers)
    }
}

fn read(source: &HeaderSource) -> Result<String, String> {
    match source {
        HeaderSource::Value(Secret(value)) => Ok(value.clone()),
        HeaderSource::File { file, prefix } => {
            let shown = vahti_runtime::event::escape(file.as_os_str().as_encoded_bytes());
            let failed = |why: String| format!("cannot read {shown}: {why}");
            let len = fs::metadata(file).map_err(|error| failed(error.to_string()))?.len();
            if len > MAX_BYTES {
                return Err(failed("it is larger than 64 KiB".to_owned()));
            }
            let text = fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
            Ok(format!("{prefix}{}", text.trim_end()))
        }
        HeaderSource::Env { env, prefix } => {
            let value = std::env::var(env).map_err(|_| format!("${env} is not set"))?;
            Ok(format!("{prefix}{value}"))
        }
    }
}
