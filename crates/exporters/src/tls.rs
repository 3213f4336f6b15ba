//! Whom to believe, and as whom to speak.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vahti_runtime::config::InvalidField;
use vahti_runtime::config::bounds::{Bounded, Checked, describe};
use vahti_runtime::event::escape;

use crate::remote::Resolver;

/// What connects, over TLS where that is asked for.
pub(crate) type Connector = HttpsConnector<HttpConnector<Resolver>>;

/// Whom to believe, and as whom.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(transform = describe::<TlsConfig>)]
pub struct TlsConfig {
    /// A file with the certificates, PEM, of the authorities to believe, in
    /// place of those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// A file with this client's certificate, PEM, and those between it and its
    /// authority; with `key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// A file with the private key of `cert`, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

impl TlsConfig {
    /// Everything that is wrong: what a file holds in place of its path, which
    /// must not be shown, and one half without the other.
    pub(crate) fn wrong(&self) -> Vec<InvalidField> {
        let files = [("tls.ca", &self.ca), ("tls.cert", &self.cert), ("tls.key", &self.key)];
        let contents = files.into_iter().filter(|(_, file)| file.as_deref().is_some_and(is_pem));
        let contents = contents.map(|(path, _)| InvalidField {
            path: path.to_owned(),
            value: "(hidden)".to_owned(),
            bound: "the path of a file, and not what that holds".to_owned(),
        });
        contents.chain(self.lacks()).collect()
    }

    /// What is of no use, as the other half of it is not there.
    fn lacks(&self) -> Option<InvalidField> {
        let (there, lacks) = match (&self.cert, &self.key) {
            (Some(_), None) => ("tls.cert", "tls.key"),
            (None, Some(_)) => ("tls.key", "tls.cert"),
            _ => return None,
        };
        let (value, bound) = ("alone".to_owned(), format!("together with {lacks}"));
        Some(InvalidField { path: there.to_owned(), value, bound })
    }
}

impl Bounded for TlsConfig {
    fn sample() -> Self {
        TlsConfig::default()
    }

    fn check(&self, checked: &mut Checked) {
        for (key, file) in [("ca", &self.ca), ("cert", &self.cert), ("key", &self.key)] {
            checked.file(key, file.as_deref().unwrap_or(Path::new("unset")));
        }
    }
}

/// When a file was last changed, as far as can be seen without reading it.
pub(crate) type Version = (u64, i64, i64, u64);

/// A file's version; `None` where there is none.
pub(crate) fn version(path: &Path) -> Option<Version> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
}

/// Certificates and keys, as they were in their files.
pub(crate) struct Trust {
    config: ClientConfig,
    files: Vec<(PathBuf, Option<Version>)>,
}

impl Trust {
    /// Reads all that is configured; nothing where none of it is needed.
    ///
    /// # Errors
    /// A file can't be read or holds something else, or nobody is to be
    /// believed.
    pub(crate) fn load(tls: &TlsConfig, is_needed: bool) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS can't be used: {error}"))?;
        if !is_needed {
            let config = builder.with_root_certificates(RootCertStore::empty());
            return Ok(Trust { config: config.with_no_client_auth(), files: Vec::new() });
        }
        let files = [&tls.ca, &tls.cert, &tls.key].into_iter().flatten();
        let files = files.map(|file| (file.clone(), version(file))).collect();
        let builder = builder.with_root_certificates(match &tls.ca {
            Some(file) => given(file)?,
            None => of_the_system()?,
        });
        let config = match (&tls.cert, &tls.key) {
            (Some(cert), Some(key)) => {
                let failed = |error| format!("{} and {}: {error}", shown(cert), shown(key));
                let key = PrivateKeyDer::from_pem_file(key).map_err(|error| {
                    format!("cannot read the key {}: {}", shown(key), told(&error))
                })?;
                builder.with_client_auth_cert(certificates(cert)?, key).map_err(failed)?
            }
            _ => builder.with_no_client_auth(),
        };
        Ok(Trust { config, files })
    }

    /// Whether a file is another one by now.
    pub(crate) fn has_changed(&self) -> bool {
        self.files.iter().any(|(file, then)| version(file) != *then)
    }

    /// What connects, in plain text to `http://` and never to `https://`.
    /// It gives up after a while, before whoever waits for it does: then it is
    /// known at what.
    pub(crate) fn connector(&self, http2: bool, timeout: Duration) -> Connector {
        let builder = HttpsConnectorBuilder::new().with_tls_config(self.config.clone());
        let builder = builder.https_or_http();
        let patience = timeout * 3 / 4;
        let mut tcp = HttpConnector::new_with_resolver(Resolver::new(patience));
        // For all addresses of a name, so that each has its turn.
        tcp.set_connect_timeout(Some(patience));
        // Also to https://, which the layer above is for.
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        if http2 {
            builder.enable_http2().wrap_connector(tcp)
        } else {
            builder.enable_http1().wrap_connector(tcp)
        }
    }
}

fn given(file: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| format!("{}: {error}", shown(file)))?;
    }
    Ok(roots)
}

fn of_the_system() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    // As every program does: some are older than what is allowed today.
    let (taken, _) = roots.add_parsable_certificates(found.certs);
    if taken == 0 {
        let why = found.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
        return Err(format!(
            "this system knows no authority to believe{why}; install ca-certificates, or set tls.ca"
        ));
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |error| format!("cannot read certificates from {}: {}", shown(file), told(&error));
    let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).map_err(failed)?.collect();
    let read = read.map_err(failed)?;
    if read.is_empty() {
        return Err(format!("{} holds no certificate in PEM form", shown(file)));
    }
    Ok(read)
}

/// Whether this is a key or a certificate, and no path of one.
fn is_pem(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.contains('\n') || text.contains("-----BEGIN")
}

/// In our words: those of the parser hold lines of the file.
fn told(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "it holds none in PEM form".to_owned(),
        pem::Error::MissingSectionEnd { .. } => "its last part has no end".to_owned(),
        pem::Error::IllegalSectionStart { .. } => {
            "a part does not begin with a line of its own, -----BEGIN ...-----".to_owned()
        }
        pem::Error::Base64Decode(_) => "it is not base64".to_owned(),
        _ => "it is not in PEM form".to_owned(),
    }
}

fn shown(path: &Path) -> std::borrow::Cow<'_, str> {
    escape(path.as_os_str().as_encoded_bytes())
}
