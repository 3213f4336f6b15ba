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

/// A URL that may be wrong, as it may be shown: not with a password, nor with
/// what stands behind the host, which some receivers take for one.
pub fn shown(text: &str) -> Cow<'_, str> {
    if text.contains('@') {
        return Cow::Borrowed("(hidden)");
    }
    let host = text.find("://").map_or(0, |at| at + 3);
    let rest = text.get(host..).unwrap_or_default();
    match rest.find(['/', '?', '#']) {
        Some(end) if host + end + 1 < text.len() => {
            Cow::Owned(format!("{}/(hidden)", text.get(..host + end).unwrap_or_default()))
        }
        _ => Cow::Borrowed(text),
    }
}

/// A text that may hold URLs, without what is secret in them: all from a scheme
/// to the last `@`, as a password may hold anything, and queries.
pub fn without_secrets(text: &str) -> Cow<'_, str> {
    let Some(at) = text.find("://") else { return Cow::Borrowed(text) };
    let (scheme, rest) = text.split_at(at + 3);
    let (user, rest) = match rest.rfind('@') {
        Some(end) => ("(hidden)", rest.get(end..).unwrap_or_default()),
        None => ("", rest),
    };
    let is_end = |c: char| c.is_whitespace() || c == '"' || c == '\'';
    let (url, rest) = rest.split_at(rest.find(is_end).unwrap_or(rest.len()));
    let url = match url.find(['?', '#']) {
        Some(end) => format!("{}?(hidden)", url.get(..end).unwrap_or_default()),
        None => url.to_owned(),
    };
    Cow::Owned(format!("{scheme}{user}{url}{}", without_secrets(rest)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_what_may_be_secret_in_it() {
        for (text, expected) in [
            ("http://a", "http://a"),
            ("http://a:1/", "http://a:1/"),
            ("a:1", "a:1"),
            ("https://a/receiver/geheim", "https://a/(hidden)"),
            ("https://a?key=geheim", "https://a/(hidden)"),
            ("https://a#geheim", "https://a/(hidden)"),
            ("a:1/geheim", "a:1/(hidden)"),
            ("https:/me:geheim@a", "(hidden)"),
            ("me:geheim@a:1", "(hidden)"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn a_text_keeps_all_but_what_is_secret_in_its_urls() {
        for (text, expected) in [
            ("nothing", "nothing"),
            ("x is \"http://a/b\", but", "x is \"http://a/b\", but"),
            ("x is \"http://me:geheim@a/b\", but", "x is \"http://(hidden)@a/b\", but"),
            ("to http://me:ge heim\"@a?geheim=1 and on", "to http://(hidden)@a?(hidden) and on"),
            ("http://a?geheim \"https://b#geheim\"", "http://a?(hidden) \"https://b?(hidden)\""),
            ("http://a:geheim@b https://c:geheim@d", "http://(hidden)@d"),
            ("://", "://"),
        ] {
            assert_eq!(without_secrets(text), expected, "{text}");
        }
    }
}
