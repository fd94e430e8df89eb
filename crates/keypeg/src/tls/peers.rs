//! How this server checks the certificates of the other servers of its installation.
//!
//! With a file of authorities only they count; else those of the operating system. Without any of
//! them, a server that is reached by `https` cannot be reached.

use crate::failure::{Failure, exit};
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt as _;
use std::path::Path;
use std::sync::Arc;

/// Makes the configuration of connections to other servers. `None` if the operating system trusts no
/// authority.
pub(crate) fn peer_config(ca: Option<&Path>) -> Result<Option<Arc<ClientConfig>>, Failure> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("invariant: ring supports TLS 1.2 and 1.3");
    let builder = match ca {
        Some(path) => builder.with_root_certificates(authorities(path)?),
        None => match builder.with_platform_verifier() {
            Ok(builder) => builder,
            Err(error) => {
                tracing::warn!(
                    "cannot read the authorities that this machine trusts: {error}; servers with \
                     an https address cannot be reached: install ca-certificates, or use \
                     --cluster-ca"
                );
                return Ok(None);
            }
        },
    };
    Ok(Some(Arc::new(builder.with_no_client_auth())))
}

fn authorities(path: &Path) -> Result<RootCertStore, Failure> {
    let invalid =
        |code, what: String| Failure::new(code, format!("--cluster-ca {}: {what}", path.display()));
    let pem = std::fs::read(path).map_err(|error| invalid(exit::NO_INPUT, error.to_string()))?;
    let mut authorities = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| invalid(exit::CONFIG, error.to_string()))?;
        authorities.add(certificate).map_err(|error| invalid(exit::CONFIG, error.to_string()))?;
    }
    if authorities.is_empty() {
        let what = "there is no certificate; use PEM (-----BEGIN CERTIFICATE-----)";
        return Err(invalid(exit::CONFIG, what.into()));
    }
    Ok(authorities)
}
