//! What is configured, and what the environment fills in.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use vahti_runtime::units::HumanDuration;

use crate::otlp::config::{Compression, HeaderSource, OtlpConfig, Protocol, Secret, Settled};
use crate::tls::TlsConfig;

fn settled(config: &OtlpConfig, environment: &[(&str, &str)]) -> Result<Settled, Vec<String>> {
    let environment: BTreeMap<_, _> = environment.iter().copied().collect();
    let variable = |name: &str| environment.get(name).map(|value| (*value).to_owned());
    config.settle(&variable).map_err(|wrong| wrong.iter().map(ToString::to_string).collect())
}

fn uris(settled: &Settled) -> (String, Option<String>) {
    (settled.logs.to_string(), settled.traces.as_ref().map(ToString::to_string))
}

#[test]
fn without_anything_it_is_grpc_to_this_machine() {
    let settled = settled(&OtlpConfig::default(), &[]).unwrap();
    assert_eq!(settled.way.protocol, Protocol::Grpc);
    assert_eq!(uris(&settled).0, "http://localhost:4317/");
    assert_eq!((settled.way.timeout, settled.way.gzip), (Duration::from_secs(10), false));
}

#[test]
fn paths_are_put_behind_the_endpoint_of_all_signals_and_not_behind_that_of_one() {
    let http = OtlpConfig { protocol: Some(Protocol::Http), ..OtlpConfig::default() };
    for (endpoint, base) in [
        ("http://[::1]:4318", "http://[::1]:4318"),
        ("https://host/", "https://host"),
        ("https://10.0.0.7:99/a/b/", "https://10.0.0.7:99/a/b"),
    ] {
        let config = OtlpConfig { endpoint: Some(endpoint.to_owned()), ..http.clone() };
        let (logs, traces) = uris(&settled(&config, &[]).unwrap());
        assert_eq!(logs, format!("{base}/v1/logs"));
        assert_eq!(traces, Some(format!("{base}/v1/traces")));
    }
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:1"),
        ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://logs:2/only"),
    ];
    let (logs, traces) = uris(&settled(&http, &environment).unwrap());
    assert_eq!((&*logs, traces.as_deref()), ("http://logs:2/only", Some("http://all:1/v1/traces")));
    let none = OtlpConfig { traces: Some(false), ..http };
    assert_eq!(uris(&settled(&none, &environment).unwrap()).1, None);
}

#[test]
fn what_the_environment_says_of_one_signal_is_no_business_of_the_other() {
    let environment = [
        ("OTEL_EXPORTER_OTLP_HEADERS", "both=1"),
        ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "https://logs:1"),
        ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "key=logs-secret"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:2/v1/traces"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "key=traces-secret"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "20"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "/traces.pem"),
    ];
    let all = settled(&OtlpConfig::default(), &environment).unwrap();
    let value = |text: &str| HeaderSource::Value(Secret(text.to_owned()));
    let keyed = |text: &str| BTreeMap::from([("key".to_owned(), value(text))]);
    assert_eq!(all.way.headers, keyed("logs-secret"), "instead of those of both");
    assert_eq!((all.way.protocol, all.way.gzip, &all.way.tls.ca), (Protocol::Grpc, false, &None));
    let traces = all.traces_way.unwrap();
    assert_eq!(traces.headers, keyed("traces-secret"));
    assert_eq!((traces.protocol, traces.gzip), (Protocol::Http, true));
    assert_eq!(traces.timeout, Duration::from_millis(20));
    assert_eq!(traces.tls.ca, Some(PathBuf::from("/traces.pem")));
    let same = settled(&OtlpConfig::default(), &environment[..1]).unwrap();
    assert_eq!((same.traces_way, same.way.headers.len()), (None, 1));
    let wrong = [("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")];
    assert_eq!(settled(&OtlpConfig::default(), &wrong).unwrap_err().len(), 1, "told once");
}

#[test]
fn the_environment_fills_in_what_is_left_open_and_nothing_else() {
    let environment = [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://from-environment:1"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=1, X-Key = sec%20ret%3D ,"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
        ("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "300"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", ""),
    ];
    let filled = settled(&OtlpConfig::default(), &environment).unwrap();
    assert_eq!(uris(&filled).0, "https://from-environment:1/v1/logs");
    assert_eq!((filled.way.timeout, filled.way.gzip), (Duration::from_millis(300), true));
    assert_eq!(filled.way.tls.ca, Some(PathBuf::from("/ca.pem")));
    assert_eq!(filled.way.tls.cert, None, "what is empty is not set");
    let value = |text: &str| HeaderSource::Value(Secret(text.to_owned()));
    assert_eq!(filled.way.headers["x-key"], value("sec ret="));
    let config = OtlpConfig {
        protocol: Some(Protocol::Grpc),
        headers: [("A".to_owned(), value("mine"))].into(),
        compression: Some(Compression::None),
        timeout: Some(HumanDuration(Duration::from_secs(1))),
        ..OtlpConfig::to("http://mine:1")
    };
    let set = settled(&config, &environment).unwrap();
    assert_eq!(uris(&set).0, "http://mine:1/");
    assert_eq!((set.way.timeout, set.way.gzip), (Duration::from_secs(1), false));
    assert_eq!(set.way.headers["a"], value("mine"));
    assert_eq!(set.way.headers["x-key"], value("sec ret="));
}

#[test]
fn a_host_and_a_port_in_the_environment_are_with_tls_unless_it_says_otherwise() {
    let to = |more: &[(&str, &str)]| {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317");
        uris(&settled(&OtlpConfig::default(), &[&[endpoint], more].concat()).unwrap()).0
    };
    assert_eq!(to(&[]), "https://collector:4317/");
    assert_eq!(to(&[("OTEL_EXPORTER_OTLP_INSECURE", "false")]), "https://collector:4317/");
    assert_eq!(to(&[("OTEL_EXPORTER_OTLP_INSECURE", "True")]), "http://collector:4317/");
}

#[test]
fn what_is_wrong_is_told_with_its_name_and_never_with_a_secret() {
    let header = |key: &str, value: &str| OtlpConfig {
        headers: [(key.to_owned(), HeaderSource::Value(Secret(value.to_owned())))].into(),
        ..OtlpConfig::default()
    };
    let from =
        |source| OtlpConfig { headers: [("a".to_owned(), source)].into(), ..OtlpConfig::default() };
    let tls = TlsConfig {
        cert: Some("/c".into()),
        key: Some("-----BEGIN PRIVATE KEY-----\ngeheim\n".into()),
        ..TlsConfig::default()
    };
    let key = OtlpConfig { tls, ..OtlpConfig::default() };
    let half = TlsConfig { cert: Some("/c".into()), ..TlsConfig::default() };
    for (config, environment, told) in [
        (OtlpConfig::to("localhost:4317"), vec![], "endpoint is localhost:4317, but must be a URL"),
        (OtlpConfig::to("ftp://a"), vec![], "a URL with http:// or https://"),
        (OtlpConfig::to("http://a:0"), vec![], "must be a URL with a port of 1 to 65535"),
        (OtlpConfig::to("http://a:65536"), vec![], "must be a URL with a port of 1 to 65535"),
        (OtlpConfig::to("http://[::1]:99999"), vec![], "must be a URL with a port of 1 to 65535"),
        (OtlpConfig::to("http://[fe80::1%25eth0]:4317"), vec![], "an address without a zone"),
        (OtlpConfig::to("http://"), vec![], "endpoint is http://, but must be a URL"),
        (OtlpConfig::to("http://a/b"), vec![], "without a path for protocol grpc"),
        (OtlpConfig::to("http://me:geheim@a"), vec![], "endpoint is (hidden), but must be"),
        (header("content-type", "x"), vec![], "headers.content-type is content-type"),
        (
            header("Bearer geheim", "x"),
            vec![],
            "headers.(hidden) is (hidden), but must be the name",
        ),
        (OtlpConfig::to("http://a?key=geheim"), vec![], "a URL without a query"),
        (OtlpConfig::to("https://a/geheim"), vec![], "endpoint is https://a/(hidden), but"),
        (
            from(HeaderSource::File { file: "geheim".into(), prefix: String::new() }),
            vec![],
            ".file",
        ),
        (
            from(HeaderSource::Env { env: "my geheim".into(), prefix: String::new() }),
            vec![],
            ".env",
        ),
        (key, vec![], "tls.key is (hidden), but must be the path of a file"),
        (header("a", "geheim\n"), vec![], "headers.a is (hidden), but must be visible"),
        (OtlpConfig { tls: half, ..OtlpConfig::default() }, vec![], "together with tls.key"),
        (OtlpConfig::default(), vec![("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")], "_PROTOCOL is"),
        (OtlpConfig::default(), vec![("OTEL_EXPORTER_OTLP_TIMEOUT", "1s")], "milliseconds"),
        (OtlpConfig::default(), vec![("OTEL_EXPORTER_OTLP_TIMEOUT", "1")], "10ms to 5m"),
        (OtlpConfig::default(), vec![("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd")], "gzip or none"),
        (OtlpConfig::default(), vec![("OTEL_EXPORTER_OTLP_HEADERS", "geheim")], "key=value"),
    ] {
        let wrong = settled(&config, &environment).unwrap_err();
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(wrong[0].contains(told), "{wrong:?} lacks {told:?}");
        assert!(!wrong[0].contains("geheim"), "{wrong:?}");
    }
}

#[test]
fn a_secret_is_shown_nowhere() {
    let config: OtlpConfig = serde_json::from_value(serde_json::json!({
        "endpoint": "http://a:1",
        "headers": {"a": "geheim", "b": {"file": "/token", "prefix": "Bearer geheim"},
                    "c": {"env": "C", "prefix": "geheim"}}
    }))
    .unwrap();
    let shown = format!("{config:?} {}", serde_json::to_string(&config).unwrap());
    assert!(!shown.contains("geheim"), "{shown}");
    let settled = settled(&config, &[]).unwrap();
    assert!(!format!("{settled:?}").contains("geheim"));
    assert_eq!(settled.way.headers.len(), 3);
}
