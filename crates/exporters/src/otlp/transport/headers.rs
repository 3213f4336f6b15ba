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
    /// What else of a request nobody is to be told, such as the path of a URL:
    /// some receivers take it for a key.
    beside: Vec<String>,
    /// Those that were read last, and the files of which versions they are from.
    resolved: Option<(HeaderMap, Vec<Option<Version>>)>,
}

impl Headers {
    pub(super) fn new(sources: BTreeMap<String, HeaderSource>, beside: Vec<String>) -> Self {
        Headers { sources, beside, resolved: None }
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

    /// A text of the receiver's, without the values that it was sent: it may
    /// repeat them, to the end or, where that was cut, up to it.
    pub(super) fn hide(&self, text: &str) -> String {
        let values = self.resolved.iter().flat_map(|(headers, _)| headers.values());
        // The scheme of a value, such as `Bearer`, is known to all.
        let parts = values.flat_map(|value| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            let bare = value.split_once(' ').map(|(_, bare)| bare.trim().to_owned());
            [Some(value), bare].into_iter().flatten()
        });
        // In JSON, some write slashes thus.
        let forms = parts
            .chain(self.beside.iter().cloned())
            .flat_map(|part| [part.replace('/', "\\/"), part]);
        let mut secrets: Vec<String> = forms.filter(|part| part.len() >= MIN_SECRET).collect();
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.iter().fold(text.to_owned(), |text, secret| hide_one(&text, secret))
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

/// What is shorter is no secret, and part of many words.
const MIN_SECRET: usize = 4;

fn hide_one(text: &str, secret: &str) -> String {
    let text = text.replace(secret, "(hidden)");
    let begun = (MIN_SECRET..secret.len()).rev().filter_map(|len| secret.get(..len));
    let cut = { begun }.find_map(|begun| text.strip_suffix(begun));
    cut.map_or_else(|| text.clone(), |before| format!("{before}(hidden)"))
}

fn read(source: &HeaderSource) -> Result<String, String> {
    match source {
        HeaderSource::Value(Secret(value)) => Ok(value.clone()),
        HeaderSource::File { file, prefix } => {
            let shown = vahti_runtime::event::escape(file.as_os_str().as_encoded_bytes());
            let failed = |why: String| format!("cannot read {shown}: {why}");
            let there = fs::metadata(file).map_err(|error| failed(error.to_string()))?;
            if !there.is_file() {
                return Err(failed("it is no file".to_owned()));
            }
            if there.len() > MAX_BYTES {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_receiver_repeats_is_hidden_whole_cut_or_escaped() {
        let value = |text: &str| HeaderSource::Value(Secret(text.to_owned()));
        let sources = [("a", "Bearer geheim/1"), ("b", "sehr gehei\u{e4}m"), ("c", "ab")];
        let sources = sources.map(|(key, text)| (key.to_owned(), value(text)));
        let mut headers = Headers::new(sources.into(), vec!["/receiver/geheim-2".to_owned()]);
        assert_eq!(headers.hide("geheim/1"), "geheim/1", "it was not sent yet");
        headers.resolve().unwrap();
        for (text, expected) in [
            ("no token", "no token"),
            ("Bearer geheim/1 is wrong", "(hidden) is wrong"),
            ("\"geheim/1\" or {geheim\\/1}", "\"(hidden)\" or {(hidden)}"),
            ("sehr gehei\u{e4}m and gehei\u{e4}m", "(hidden) and (hidden)"),
            ("abab is too short to be one", "abab is too short to be one"),
            ("cut: geheim", "cut: (hidden)"),
            ("cut: gehe", "cut: (hidden)"),
            ("no route /receiver/geheim-2/v1/logs", "no route (hidden)/v1/logs"),
            ("cut: Bearer gehe", "cut: (hidden)"),
        ] {
            assert_eq!(headers.hide(text), expected, "{text}");
        }
    }
}
