//! Who is believed over TLS, and as whom we speak.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use vahti_runtime::emitter::{EmitOutcome, EventEmitter};
use vahti_runtime::units::HumanDuration;

use crate::otlp::OtlpEmitter;
use crate::otlp::config::{OtlpConfig, Protocol};
use crate::testing::events;
use crate::tls::TlsConfig;

/// An authority, and what it has signed, in files.
struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(folder.path().join("ca"), certificate.pem()).unwrap();
        Authority { folder, issuer: Issuer::new(params, key) }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Signs for this name; the files of certificate and key.
    fn signs(&self, name: &str) -> [PathBuf; 2] {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = [format!("{name}.pem"), format!("{name}.key")].map(|name| self.file(&name));
        std::fs::write(&files[0], certificate.pem()).unwrap();
        std::fs::write(&files[1], key.serialize_pem()).unwrap();
        files
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(certificates(&self.file("ca")).remove(0)).unwrap();
        roots
    }
}

fn certificates(file: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(file).unwrap().map(Result::unwrap).collect()
}

/// A receiver at this machine's name that says that all is well; its port. It
/// lets in only clients that `clients` has signed for, if that is given.
fn serve(own: [PathBuf; 2], clients: Option<&Authority>) -> u16 {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        Some(clients) => {
            let roots = Arc::new(clients.roots());
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
        None => builder.with_no_client_auth(),
    };
    let key = PrivateKeyDer::from_pem_file(&own[1]).unwrap();
    let config = builder.with_single_cert(certificates(&own[0]), key).unwrap();
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap().port()).unwrap();
            let acceptor = TlsAcceptor::from(Arc::new(config));
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // Who is not believed goes away.
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut request = [0; 4096];
                if stream.read(&mut request).await.is_ok_and(|n| n > 0) {
                    let answer =
                        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
                    drop(stream.write_all(answer).await);
                }
                drop(stream.shutdown().await);
            }
        });
    });
    told.recv().unwrap()
}

fn send(config: &OtlpConfig) -> EmitOutcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut emitter = OtlpEmitter::new("otlp", config.target().unwrap());
    runtime.block_on(emitter.emit(&events(0, 1)))
}

fn to(port: u16, tls: TlsConfig) -> OtlpConfig {
    OtlpConfig {
        protocol: Some(Protocol::Http),
        timeout: Some(HumanDuration(Duration::from_secs(5))),
        traces: Some(false),
        tls,
        ..OtlpConfig::to(format!("https://localhost:{port}"))
    }
}

/// Why nothing was sent, which may be different another time.
#[track_caller]
fn why(outcome: EmitOutcome) -> String {
    match outcome {
        EmitOutcome::Retryable { reason, retry_after: None } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_authority_is_believed_that_is_configured_and_no_other() {
    let (authority, other) = (Authority::new(), Authority::new());
    let port = serve(authority.signs("localhost"), None);
    let ca = |of: &Authority| TlsConfig { ca: Some(of.file("ca")), ..TlsConfig::default() };
    assert_eq!(send(&to(port, ca(&authority))), EmitOutcome::Delivered);
    let refused = why(send(&to(port, ca(&other))));
    assert!(refused.contains("UnknownIssuer") || refused.contains("BadSignature"), "{refused}");
    let wrong_name = serve(authority.signs("elsewhere"), None);
    let refused = why(send(&to(wrong_name, ca(&authority))));
    assert!(refused.contains("not valid for name"), "{refused}");
}

#[test]
fn a_client_shows_its_certificate_where_one_is_asked_for() {
    let authority = Authority::new();
    let port = serve(authority.signs("localhost"), Some(&authority));
    let [cert, key] = authority.signs("agent").map(Some);
    let ca = Some(authority.file("ca"));
    let tls = TlsConfig { ca: ca.clone(), cert, key };
    assert_eq!(send(&to(port, tls)), EmitOutcome::Delivered);
    why(send(&to(port, TlsConfig { ca, ..TlsConfig::default() })));
}

#[test]
fn files_that_hold_no_certificate_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    let tls = TlsConfig { ca: Some(file.clone()), ..TlsConfig::default() };
    let missing = why(send(&to(1, tls.clone())));
    assert!(missing.contains("ca.pem") && missing.contains("No such file"), "{missing}");
    for content in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"]
    {
        std::fs::write(&file, content).unwrap();
        let told = why(send(&to(1, tls.clone())));
        assert!(told.contains("ca.pem"), "{told}");
    }
}

#[test]
fn a_key_that_cannot_be_read_is_named_and_not_shown() {
    let authority = Authority::new();
    let key = authority.file("broken");
    let of = |key: &Path| TlsConfig {
        ca: Some(authority.file("ca")),
        cert: Some(authority.file("ca")),
        key: Some(key.to_owned()),
    };
    for content in [
        "geheim",
        "-----BEGIN PRIVATE KEY----- geheim -----END PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY geheim\n",
        "-----BEGIN PRIVATE KEY-----\ngeheim",
        "-----BEGIN PRIVATE KEY-----\ng?h!eim\n-----END PRIVATE KEY-----\n",
        "-----BEGIN PRIVATE KEY-----\ngeheim==\n-----END PRIVATE KEY-----\n",
    ] {
        std::fs::write(&key, content).unwrap();
        let told = why(send(&to(1, of(&key))));
        let bytes = format!("{:?}", "geheim".as_bytes());
        assert!(told.contains("broken"), "{told}");
        assert!(!told.contains("geh") && !told.contains(bytes.trim_matches(['[', ']'])), "{told}");
    }
}

#[test]
fn certificates_that_were_renewed_are_read_again() {
    let (old, new) = (Authority::new(), Authority::new());
    let port = serve(new.signs("localhost"), None);
    let ca = Some(old.file("ca"));
    let config = to(port, TlsConfig { ca, ..TlsConfig::default() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut emitter = OtlpEmitter::new("otlp", config.target().unwrap());
    why(runtime.block_on(emitter.emit(&events(0, 1))));
    std::fs::copy(new.file("ca"), old.file("ca")).unwrap();
    assert_eq!(runtime.block_on(emitter.emit(&events(0, 1))), EmitOutcome::Delivered);
}
