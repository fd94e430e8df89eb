//! The certificate that a client showed: its names, and until when it is valid.
//!
//! The handshake has verified it. Its names are those of its Subject Alternative Name, DNS names and
//! URIs; its common name counts only if it has none of these (RFC 9525). Grants nothing.

use std::fmt;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The most names of a certificate that are compared.
const NAMES_MAX: usize = 100;

/// A verified certificate of a client.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ClientCertificate {
    /// DNS names in lower case and URIs, in the order of the certificate.
    pub(crate) names: Vec<Box<str>>,
    /// When it expires, in milliseconds since 1970.
    pub(crate) not_after_ms: u64,
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientCertificate").field(&self.names).finish()
    }
}

impl ClientCertificate {
    /// Reads the names of a certificate; `None` if it is not X.509.
    pub(crate) fn parse(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let alternative = certificate.subject_alternative_name().ok()?;
        let mut names: Vec<Box<str>> = Vec::new();
        for name in alternative.iter().flat_map(|extension| &extension.value.general_names) {
            if let GeneralName::DNSName(name) = name {
                names.push(name.to_ascii_lowercase().into());
            } else if let GeneralName::URI(name) = name {
                names.push((*name).into());
            }
        }
        if names.is_empty() {
            let common = certificate.subject().iter_common_name().filter_map(|it| it.as_str().ok());
            names.extend(common.map(Box::from));
        }
        names.truncate(NAMES_MAX);
        let not_after = certificate.validity().not_after.timestamp();
        let not_after_ms = u64::try_from(not_after).unwrap_or(0).saturating_mul(1_000);
        Some(Self { names, not_after_ms })
    }
}
