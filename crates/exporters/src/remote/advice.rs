//! What to do about what went wrong on the way, where that can be told.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError};

/// What to do, if there is something.
pub(crate) fn advice(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut next = Some(error);
    while let Some(error) = next {
        let told = about_tls(error).or_else(|| about_http(error)).or_else(|| about_time(error));
        if told.is_some() {
            return told;
        }
        next = error.source();
    }
    None
}

const NO_CERTIFICATE: &str = "it asks for a client's certificate: set tls.cert and tls.key";

fn about_tls(error: &(dyn Error + 'static)) -> Option<&'static str> {
    use rustls::Error as Tls;
    if error.to_string().ends_with("received fatal alert: CertificateRequired") {
        // As h2 tells it, which keeps the text alone.
        return Some(NO_CERTIFICATE);
    }
    match inmost(error).downcast_ref()? {
        Tls::InvalidCertificate(why) => about_certificate(why),
        Tls::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA,
        ) => Some("it does not accept this client's certificate: see tls.cert"),
        Tls::InvalidMessage(_) => {
            Some("no TLS is spoken there: set endpoint to http://, or to another port")
        }
        _ => None,
    }
}

/// What an I/O error is made of, which is not among its sources.
fn inmost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut inmost = error;
    while let Some(inner) = inmost.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        inmost = inner;
    }
    inmost
}

fn about_certificate(why: &CertificateError) -> Option<&'static str> {
    match why {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            Some("set tls.ca to the authority that signed its certificate")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            Some("set endpoint to a name that its certificate is for")
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            Some("its certificate is to be renewed, or a clock is wrong")
        }
        _ => None,
    }
}

fn about_http(error: &(dyn Error + 'static)) -> Option<&'static str> {
    if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
        return Some(
            "no HTTP/1.1 is spoken there: is it the port of gRPC (protocol: grpc), or of TLS \
             (https://)?",
        );
    }
    // As h2 says it, whose types are not for others.
    let text = error.to_string();
    if text.contains("frame with invalid size") {
        return Some(
            "no HTTP/2 is spoken there: is it the port of HTTP/1.1 (protocol: http), or of TLS \
             (https://)?",
        );
    }
    (text == "dns error").then_some("can this machine resolve that name?")
}

fn about_time(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let error = error.downcast_ref::<io::Error>()?;
    (error.kind() == io::ErrorKind::TimedOut)
        .then_some("do packets get there, and is somebody at work?")
}
