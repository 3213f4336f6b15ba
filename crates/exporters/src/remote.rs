//! What emitters that send have in common: where to, and why that did not work.

mod advice;
mod resolver;

use std::borrow::Cow;
use std::error::Error;

use http::Uri;

pub(crate) use self::advice::advice;
pub(crate) use self::resolver::Resolver;

/// Reads a URL to send to; the error says what it must be.
pub(crate) fn endpoint(text: &str, example: &str) -> Result<Uri, String> {
    let must = |why: &str| format!("{why}, such as {example}");
    if text.contains('[') && text.contains('%') {
        return Err(must("a URL with an address without a zone"));
    }
    let uri: Uri = text.trim().parse().map_err(|_| must("a URL"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(must("a URL with http:// or https://"));
    }
    let authority = uri.authority().ok_or_else(|| must("a URL with a host"))?;
    if authority.as_str().contains('@') {
        return Err(must("a URL without a password, which belongs into a header"));
    }
    if authority.host().is_empty() || authority.as_str().ends_with(':') {
        return Err(must("a URL with a host"));
    }
    // One that is too large would be taken for none, and mean 80.
    let has_port = authority.as_str().len() > authority.host().len();
    if has_port && authority.port_u16().is_none_or(|port| port == 0) {
        return Err(must("a URL with a port of 1 to 65535"));
    }
    if uri.query().is_some() {
        return Err(must("a URL without a query"));
    }
    Ok(uri)
}

/// The same for gRPC, where methods are the path.
pub(crate) fn endpoint_without_path(text: &str, example: &str) -> Result<Uri, String> {
    let uri = endpoint(text, example)?;
    if !uri.path().trim_end_matches('/').is_empty() {
        return Err(format!("a URL without a path for protocol grpc, such as {example}"));
    }
    Ok(uri)
}

/// A URL that may be wrong, as it may be shown: not with a password.
pub(crate) fn shown(text: &str) -> &str {
    if text.contains('@') { "(hidden)" } else { text }
}

/// What went wrong on the way to somewhere, and what to do about it.
pub(crate) fn on_the_way(
    uri: &Uri,
    error: &(dyn Error + 'static),
    shorten: impl Fn(&str) -> String,
) -> String {
    let told = format!("{}: {}", place(uri), shorten(&causes(error)));
    match advice(error) {
        Some(advice) => format!("{told}; {advice}"),
        None => told,
    }
}

/// Where somebody is: what matters of a URL.
pub(crate) fn place(uri: &Uri) -> Cow<'_, str> {
    match (uri.scheme_str(), uri.authority()) {
        (Some(scheme), Some(authority)) => format!("{scheme}://{authority}").into(),
        _ => "(nowhere)".into(),
    }
}

/// What went wrong, down to the first cause, without what layers only repeat.
pub(crate) fn causes(error: &(dyn Error + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if texts.last() != Some(&text) {
            texts.push(text);
        }
        next = error.source();
    }
    let deepest = texts.len().saturating_sub(1);
    let says_nothing = |text: &str| ["transport error", "client error (Connect)"].contains(&text);
    let telling = texts.iter().enumerate().filter(|(i, text)| *i == deepest || !says_nothing(text));
    telling.map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(": ")
}
