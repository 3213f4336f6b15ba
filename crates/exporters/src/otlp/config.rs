//! What can be set about an OTLP emitter, and what the environment fills in.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::header::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use vahti_runtime::config::{InvalidConfig, InvalidField};
use vahti_runtime::event::escape_text;
use vahti_runtime::units::{ByteSize, HumanDuration};

use super::spans::SpanCounts;
use crate::remote;
use crate::tls::TlsConfig;

/// What can be set about an OTLP emitter. What is left open is filled in from
/// the environment, as OpenTelemetry specifies its exporters
/// (<https://opentelemetry.io/docs/specs/otel/protocol/exporter/>), then from
/// the defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OtlpConfig {
    /// Where to: `http://` or `https://`, a host or an address, a port, and for
    /// HTTP a path that `/v1/logs` and `/v1/traces` are put behind.
    pub endpoint: Option<String>,
    /// How; `grpc` if not set.
    pub protocol: Option<Protocol>,
    /// What every request carries besides.
    pub headers: BTreeMap<String, HeaderSource>,
    /// Whom to believe, and as whom; only for `https://`.
    pub tls: TlsConfig,
    /// How requests are compressed; not at all if not set.
    pub compression: Option<Compression>,
    /// How long a request may take: 10ms to 5m; 10s if not set.
    pub timeout: Option<HumanDuration>,
    /// How large a request may be, before compression: 64KiB to 64MiB; 3MiB if
    /// not set, as receivers take 4 MiB.
    pub max_request: Option<ByteSize>,
    /// Whether events that chains of causes are made of are sent as spans, too.
    pub traces: Option<bool>,
}

/// How events travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// gRPC, over HTTP/2.
    Grpc,
    /// Protobuf over HTTP/1.1.
    Http,
}

/// How requests are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Not at all.
    None,
    /// With gzip.
    Gzip,
}

/// Where a header's value comes from. It is never shown.
#[derive(Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum HeaderSource {
    /// From here.
    Value(Secret),
    /// From a file, which is read again when it may have changed.
    File {
        /// The file; blanks and line breaks at its end do not count.
        file: PathBuf,
        /// What stands before it, such as `"Bearer "`.
        #[serde(default, skip_serializing_if = "String::is_empty", serialize_with = "hidden")]
        prefix: String,
    },
    /// From an environment variable.
    Env {
        /// Its name.
        env: String,
        /// What stands before it, such as `"Bearer "`.
        #[serde(default, skip_serializing_if = "String::is_empty", serialize_with = "hidden")]
        prefix: String,
    },
}

/// What was to stand before a secret may be all of it.
fn hidden<S: serde::Serializer>(_: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str("(hidden)")
}

impl<'de> Deserialize<'de> for HeaderSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(HeaderVisitor)
    }
}

/// Says what is wrong, as a choice of three would not.
struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = HeaderSource;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, {file: PATH} or {env: NAME}")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<HeaderSource, E> {
        Ok(HeaderSource::Value(Secret(text.to_owned())))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<HeaderSource, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Parts {
            #[serde(default)]
            file: Option<PathBuf>,
            #[serde(default)]
            env: Option<String>,
            #[serde(default)]
            prefix: String,
        }
        let Parts { file, env, prefix } =
            Parts::deserialize(de::value::MapAccessDeserializer::new(map))?;
        match (file, env) {
            (Some(file), None) => Ok(HeaderSource::File { file, prefix }),
            (None, Some(env)) => Ok(HeaderSource::Env { env, prefix }),
            _ => Err(de::Error::custom("must have one of the keys file and env")),
        }
    }
}

impl fmt::Debug for HeaderSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeaderSource::Value(_) => f.write_str("(hidden)"),
            HeaderSource::File { file, .. } => write!(f, "(from {})", file.display()),
            HeaderSource::Env { env, .. } => write!(f, "(from ${env})"),
        }
    }
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        hidden(&self.0, serializer)
    }
}

/// Where and how to send, all of it settled and good.
#[derive(Debug, Clone)]
pub struct OtlpTarget {
    pub(super) settled: Settled,
    /// Those of all emitters that are made with it.
    pub(super) spans: Arc<SpanCounts>,
}

/// Everything that is needed to send.
#[derive(Debug, Clone)]
pub(super) struct Settled {
    pub(super) logs: Uri,
    pub(super) way: Way,
    pub(super) traces: Option<Uri>,
    /// Where spans are not sent as records are.
    pub(super) traces_way: Option<Way>,
    pub(super) max_request: usize,
}

/// How requests of a signal are sent. Variables of the environment may say that
/// of one signal alone: what one receiver is to be told is no other's business.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Way {
    pub(super) protocol: Protocol,
    pub(super) headers: BTreeMap<String, HeaderSource>,
    pub(super) tls: TlsConfig,
    pub(super) gzip: bool,
    pub(super) timeout: Duration,
}

/// What OpenTelemetry's variables say, if they are set and not empty.
type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl OtlpConfig {
    /// One that sends there, everything else left open.
    #[must_use]
    pub fn to(endpoint: impl Into<String>) -> Self {
        OtlpConfig { endpoint: Some(endpoint.into()), ..OtlpConfig::default() }
    }

    /// Fills in what was left open from this program's environment.
    ///
    /// # Errors
    /// A value here, or one that fills in, is not what it must be.
    pub fn target(&self) -> Result<OtlpTarget, InvalidConfig> {
        let environment = |name: &str| std::env::var(name).ok();
        let settled = self.settle(&environment).map_err(|fields| InvalidConfig { fields })?;
        Ok(OtlpTarget { settled, spans: Arc::default() })
    }

    /// Fills in what was left open.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub(super) fn settle(
        &self,
        environment: Environment<'_>,
    ) -> Result<Settled, Vec<InvalidField>> {
        let mut filling = Filling { environment, wrong: Vec::new() };
        let (logs, way) = filling.signal(self, "LOGS", "/v1/logs");
        let sends_traces = self.traces.unwrap_or(true);
        let traces = sends_traces.then(|| filling.signal(self, "TRACES", "/v1/traces"));
        let max_request = self.max_request.unwrap_or(ByteSize::mib(3));
        filling.within(
            "max_request",
            (64 << 10..=64 << 20).contains(&max_request.0),
            max_request.to_string(),
            "64KiB to 64MiB",
        );
        let (traces, traces_way) = match traces {
            Some((None, _)) => return Err(filling.wrong),
            Some((uri, traces_way)) => (uri, Some(traces_way).filter(|other| *other != way)),
            None => (None, None),
        };
        match logs {
            Some(logs) if filling.wrong.is_empty() => Ok(Settled {
                logs,
                way,
                traces,
                traces_way,
                max_request: usize::try_from(max_request.0).unwrap_or(usize::MAX),
            }),
            _ => Err(filling.wrong),
        }
    }
}

struct Filling<'a> {
    environment: Environment<'a>,
    wrong: Vec<InvalidField>,
}

impl Filling<'_> {
    /// Where and how one signal is sent.
    fn signal(&mut self, config: &OtlpConfig, signal: &str, path: &str) -> (Option<Uri>, Way) {
        let protocol = config.protocol.or_else(|| self.protocol(signal)).unwrap_or(Protocol::Grpc);
        let uri = self.uri(config, protocol, signal, path);
        let way = Way {
            protocol,
            headers: self.headers(&config.headers, signal),
            tls: self.tls(&config.tls, signal),
            timeout: self.timeout(config.timeout, signal),
            gzip: self.gzip(config.compression, signal),
        };
        (uri, way)
    }

    /// `OTEL_EXPORTER_OTLP_LOGS_X`, else `OTEL_EXPORTER_OTLP_X`, with its name.
    fn variable(&self, signal: &str, what: &str) -> Option<(String, String)> {
        let names =
            [format!("OTEL_EXPORTER_OTLP_{signal}_{what}"), format!("OTEL_EXPORTER_OTLP_{what}")];
        names.into_iter().find_map(|name| {
            let value = (self.environment)(&name)?.trim().to_owned();
            (!value.is_empty()).then_some((name, value))
        })
    }

    /// Once, also of what holds for both signals.
    fn complain(&mut self, path: &str, value: &str, bound: &str) {
        let (path, value) = (path.to_owned(), escape_text(value).into_owned());
        let field = InvalidField { path, value, bound: bound.to_owned() };
        if !self.wrong.contains(&field) {
            self.wrong.push(field);
        }
    }

    fn within(&mut self, path: &str, is_good: bool, value: String, bound: &str) {
        if !is_good {
            self.complain(path, &value, bound);
        }
    }

    fn protocol(&mut self, signal: &str) -> Option<Protocol> {
        let (name, value) = self.variable(signal, "PROTOCOL")?;
        match value.as_str() {
            "grpc" => Some(Protocol::Grpc),
            "http/protobuf" => Some(Protocol::Http),
            _ => {
                self.complain(&name, &value, "grpc or http/protobuf");
                None
            }
        }
    }

    /// Where a signal goes. The endpoint of all signals is what paths are put
    /// behind; that of one signal, which only the environment has, stands as it
    /// is.
    fn uri(
        &mut self,
        config: &OtlpConfig,
        protocol: Protocol,
        signal: &str,
        path: &str,
    ) -> Option<Uri> {
        let (name, text) = match &config.endpoint {
            Some(endpoint) => ("endpoint".to_owned(), endpoint.clone()),
            None => self.endpoint_variable(protocol, signal).unwrap_or_else(|| {
                let port = if protocol == Protocol::Grpc { 4317 } else { 4318 };
                ("endpoint".to_owned(), format!("http://localhost:{port}"))
            }),
        };
        let whole = name.contains(signal);
        match endpoint(&text, protocol, (!whole).then_some(path)) {
            Ok(uri) => Some(uri),
            Err(bound) => {
                self.complain(&name, &remote::shown(&text), &bound);
                None
            }
        }
    }

    /// The endpoint that the environment has; for gRPC that may be a host and a
    /// port alone, where another variable says whether that is without TLS.
    fn endpoint_variable(&self, protocol: Protocol, signal: &str) -> Option<(String, String)> {
        let (name, text) = self.variable(signal, "ENDPOINT")?;
        if protocol != Protocol::Grpc || text.contains("://") {
            return Some((name, text));
        }
        let insecure = self.variable(signal, "INSECURE");
        let is_insecure = insecure.is_some_and(|(_, value)| value.eq_ignore_ascii_case("true"));
        let scheme = if is_insecure { "http" } else { "https" };
        Some((name, format!("{scheme}://{text}")))
    }

    fn headers(
        &mut self,
        set: &BTreeMap<String, HeaderSource>,
        signal: &str,
    ) -> BTreeMap<String, HeaderSource> {
        let mut headers = BTreeMap::new();
        if let Some((name, list)) = self.variable(signal, "HEADERS") {
            for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
                match entry.split_once('=') {
                    Some((key, value)) => {
                        let value = unquoted(value.trim());
                        headers.insert(
                            key.trim().to_ascii_lowercase(),
                            HeaderSource::Value(Secret(value)),
                        );
                    }
                    None => self.complain(&name, "(hidden)", "key=value, key=value"),
                }
            }
        }
        for (key, source) in set {
            headers.insert(key.to_ascii_lowercase(), source.clone());
        }
        for (key, source) in &headers {
            self.header(key, source);
        }
        headers
    }

    /// What is no name, no file and no variable may be the secret itself, in
    /// the wrong place.
    fn header(&mut self, key: &str, source: &HeaderSource) {
        let name = HeaderName::from_bytes(key.as_bytes());
        let key = if name.is_ok() { key } else { "(hidden)" };
        let path = format!("headers.{key}");
        if name.as_ref().map_or(true, |name| RESERVED.contains(&name.as_str())) {
            self.complain(&path, key, "the name of a header that the protocol leaves free");
        }
        match source {
            HeaderSource::Value(Secret(value)) if HeaderValue::from_str(value).is_err() => {
                self.complain(&path, "(hidden)", "visible characters");
            }
            HeaderSource::File { file, .. } if !file.as_os_str().as_bytes().contains(&b'/') => {
                let bound = "the path of a file, such as /run/secrets/key or ./key";
                self.complain(&format!("{path}.file"), "(hidden)", bound);
            }
            HeaderSource::Env { env, .. } if !is_variable(env) => {
                let bound = "the name of an environment variable: letters, digits, underscores";
                self.complain(&format!("{path}.env"), "(hidden)", bound);
            }
            _ => {}
        }
    }

    fn tls(&mut self, set: &TlsConfig, signal: &str) -> TlsConfig {
        let file = |set: &Option<PathBuf>, what| {
            let from_environment = || Some(PathBuf::from(self.variable(signal, what)?.1));
            set.clone().or_else(from_environment)
        };
        let tls = TlsConfig {
            ca: file(&set.ca, "CERTIFICATE"),
            cert: file(&set.cert, "CLIENT_CERTIFICATE"),
            key: file(&set.key, "CLIENT_KEY"),
        };
        for field in tls.wrong() {
            if !self.wrong.contains(&field) {
                self.wrong.push(field);
            }
        }
        tls
    }

    fn timeout(&mut self, set: Option<HumanDuration>, signal: &str) -> Duration {
        let bounds = Duration::from_millis(10)..=Duration::from_secs(300);
        let (name, timeout) = match (set, self.variable(signal, "TIMEOUT")) {
            (Some(timeout), _) => ("timeout".to_owned(), timeout.0),
            (None, Some((name, value))) => match value.parse() {
                Ok(ms) => (name, Duration::from_millis(ms)),
                Err(_) => {
                    self.complain(&name, &value, "milliseconds, 10 to 300,000");
                    return Duration::from_secs(10);
                }
            },
            (None, None) => return Duration::from_secs(10),
        };
        let shown = HumanDuration(timeout).to_string();
        self.within(&name, bounds.contains(&timeout), shown, "10ms to 5m");
        timeout
    }

    fn gzip(&mut self, set: Option<Compression>, signal: &str) -> bool {
        if let Some(compression) = set {
            return compression == Compression::Gzip;
        }
        match self.variable(signal, "COMPRESSION") {
            None => false,
            Some((_, value)) if value == "gzip" => true,
            Some((_, value)) if value == "none" => false,
            Some((name, value)) => {
                self.complain(&name, &value, "gzip or none");
                false
            }
        }
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// What requests have already.
const RESERVED: [&str; 12] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "grpc-accept-encoding",
    "grpc-encoding",
    "grpc-timeout",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Reads an endpoint, and puts a path behind it; the error says what it must be.
fn endpoint(text: &str, protocol: Protocol, path: Option<&str>) -> Result<Uri, String> {
    if protocol == Protocol::Grpc {
        return remote::endpoint_without_path(text, "http://localhost:4317");
    }
    let example = "http://localhost:4318";
    let uri = remote::endpoint(text, example)?;
    let Some(path) = path else { return Ok(uri) };
    let path = format!("{}{path}", uri.path().trim_end_matches('/'));
    let mut parts = uri.into_parts();
    let failed = || format!("a URL, such as {example}");
    parts.path_and_query = Some(path.parse().map_err(|_| failed())?);
    Uri::from_parts(parts).map_err(|_| failed())
}

/// Without the percent signs that W3C's baggage, whose form the variable has,
/// asks for.
fn unquoted(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let code = after
            .get(..2)
            .filter(|_| *first == b'%')
            .and_then(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
