//! TLS to PostgreSQL: rustls with ring. The certificate and the host name are always checked.

use crate::settings::Settings;
use keypeg_log::LogError;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt as _;
use std::path::Path;
use std::sync::Arc;
use tokio_postgres_rustls::MakeRustlsConnect;

/// Makes the connector. Reads the file of `sslrootcert`, or the authorities of the system.
pub(crate) fn connector(settings: &Settings) -> Result<MakeRustlsConnect, LogError> {
    let unsuitable = |error: rustls::Error| {
        LogError::Unsuitable(format!("TLS to PostgreSQL cannot be set up: {error}"))
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unsuitable)?;
    let builder = match &settings.authorities {
        Some(path) => builder.with_root_certificates(read(path)?),
        None => builder.with_platform_verifier().map_err(unsuitable)?,
    };
    Ok(MakeRustlsConnect::new(builder.with_no_client_auth()))
}

fn read(path: &Path) -> Result<RootCertStore, LogError> {
    let unsuitable = |what: String| {
        let path = path.display();
        LogError::Unsuitable(format!("sslrootcert={path}: {what}"))
    };
    let pem = std::fs::read(path).map_err(|error| unsuitable(error.to_string()))?;
    let mut authorities = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| unsuitable(error.to_string()))?;
        authorities.add(certificate).map_err(|error| unsuitable(error.to_string()))?;
    }
    if authorities.is_empty() {
        let what = "there is no certificate; use PEM (-----BEGIN CERTIFICATE-----)";
        return Err(unsuitable(what.to_owned()));
    }
    Ok(authorities)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_certificate_is_named() {
        for (path, expected) in [("/does/not/exist", "No such file"), ("/dev/null", "use PEM")] {
            let url = format!("postgres://u@h/d?sslrootcert={path}");
            let error = connector(&url.parse().unwrap()).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(path) && error.contains(expected), "{error}");
        }
    }
}
