//! TLS of a client: which authorities it trusts, and the certificate that it shows.
//!
//! Without settings, a client trusts the authorities that the operating system trusts. Reads no
//! files: the caller passes PEM, or a function that reads it again for each connection.

use crate::error::Error;
use rustls::client::ResolvesClientCert;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};
use rustls_platform_verifier::BuilderVerifierExt as _;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// The certificate of a client and its private key, as PEM.
#[derive(Clone)]
pub struct ClientIdentity {
    /// The certificate, then the intermediate ones.
    pub certificate: Vec<u8>,
    /// The private key, without a password.
    pub key: Vec<u8>,
}

/// Does not show the key.
impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientIdentity(…)")
    }
}

/// Reads the present identity; `None` if it cannot be read now.
type ReadIdentity = dyn Fn() -> Option<ClientIdentity> + Send + Sync;

/// How a client checks its server over `https`, and how it identifies itself.
#[derive(Clone, Default)]
pub struct TlsSettings {
    authorities: Option<RootCertStore>,
    identity: Option<Arc<Identity>>,
}

impl fmt::Debug for TlsSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authorities = self.authorities.as_ref().map(RootCertStore::len);
        f.debug_struct("TlsSettings")
            .field("authorities", &authorities)
            .field("has_identity", &self.identity.is_some())
            .finish()
    }
}

impl TlsSettings {
    /// Returns whether these are the default ones.
    pub fn is_default(&self) -> bool {
        self.authorities.is_none() && self.identity.is_none()
    }

    /// Trusts the certificates of these authorities alone, as PEM, and not those that the operating
    /// system trusts.
    pub fn with_authorities(self, pem: &[u8]) -> Result<Self, Error> {
        let invalid = |what: String| Error::InvalidInput(format!("the authorities: {what}"));
        let mut authorities = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| invalid(error.to_string()))?;
            authorities.add(certificate).map_err(|error| invalid(error.to_string()))?;
        }
        if authorities.is_empty() {
            return Err(invalid(
                "there is no certificate; use PEM (-----BEGIN CERTIFICATE-----)".into(),
            ));
        }
        Ok(Self { authorities: Some(authorities), ..self })
    }

    /// Shows this certificate to a server that asks for one. `read_again` is called for each new
    /// connection, so that a renewed certificate is used; `None` keeps the one before.
    pub fn with_identity(
        self,
        identity: &ClientIdentity,
        read_again: impl Fn() -> Option<ClientIdentity> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let provider = ring::default_provider();
        let present = certified(identity, &provider).map_err(Error::InvalidInput)?;
        let read_again = Box::new(read_again) as Box<ReadIdentity>;
        let identity = Identity { present: Mutex::new(present), read_again, provider };
        Ok(Self { identity: Some(Arc::new(identity)), ..self })
    }

    /// Makes the configuration of the connections, also for a program that opens its own ones. Reads
    /// the authorities of the operating system if it needs them.
    pub fn config(&self) -> Result<ClientConfig, Error> {
        let builder = builder();
        let builder = match &self.authorities {
            Some(authorities) => builder.with_root_certificates(authorities.clone()),
            None => builder.with_platform_verifier().map_err(|error| {
                Error::InvalidInput(format!(
                    "cannot read the authorities that this machine trusts: {error}; install the \
                     package ca-certificates, or name an authority with --ca-file"
                ))
            })?,
        };
        Ok(match &self.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => builder.with_client_cert_resolver(Arc::clone(identity) as _),
        })
    }
}

/// Returns the configuration of a client whose server speaks plain HTTP: it trusts no certificate.
pub(crate) fn unused_config() -> ClientConfig {
    builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth()
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("invariant: ring supports TLS 1.2 and 1.3")
}

/// The certificate that the client shows.
struct Identity {
    present: Mutex<Arc<CertifiedKey>>,
    read_again: Box<ReadIdentity>,
    provider: CryptoProvider,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(…)")
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        // Files that are just being replaced may not belong together for a moment.
        if let Some(Ok(read)) = (self.read_again)().map(|read| certified(&read, &self.provider)) {
            *present = read;
        }
        Some(Arc::clone(&present))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn certified(
    identity: &ClientIdentity,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&identity.certificate).collect();
    let chain = chain.map_err(|error| format!("the client certificate is not PEM: {error}"))?;
    if chain.is_empty() {
        return Err("the file of the client certificate has no certificate: use PEM \
                    (-----BEGIN CERTIFICATE-----)"
            .into());
    }
    let key = PrivateKeyDer::from_pem_slice(&identity.key).map_err(|error| {
        format!(
            "the private key of the client certificate cannot be read: {error}; use PEM \
             (-----BEGIN PRIVATE KEY-----) without a password"
        )
    })?;
    let certified = CertifiedKey::from_der(chain, key, provider).map_err(|error| {
        if matches!(error, rustls::Error::InconsistentKeys(_)) {
            "the private key does not belong to the client certificate".into()
        } else {
            format!("the client certificate cannot be used: {error}")
        }
    })?;
    Ok(Arc::new(certified))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_without_certificates_are_refused() {
        for pem in [&b""[..], b"x", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"]
        {
            assert!(TlsSettings::default().with_authorities(pem).is_err());
        }
        let identity = ClientIdentity { certificate: Vec::new(), key: Vec::new() };
        let error = TlsSettings::default().with_identity(&identity, || None).unwrap_err();
        assert!(error.to_string().contains("has no certificate"), "{error}");
    }
}
