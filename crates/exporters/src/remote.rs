//! What emitters that send have in common: where to, and why that did not work.

use http::Uri;

/// Reads a URL to send to; the error says what it must be.
pub(crate) fn endpoint(text: &str, example: &str) -> Result<Uri, String> {
    let must = |why: &str| format!("{why}, such as {example}");
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

/// What went wrong, down to the first cause, without what layers only repeat.
pub(crate) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
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
