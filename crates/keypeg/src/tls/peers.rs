//! How this server checks the certificates of the other servers of its installation.
//!
//! With a file of authorities only they count; else those of the operating system. Without any of
//! them, a server that is reached by `https` cannot be reached. The file is reread at SIGHUP, for new
//! connections.

use crate::failure::{Failure, exit};
use crate::reloads::Reloads;
use crate::vital;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// How the certificates of the other servers are checked now.
#[derive(Debug)]
pub(crate) struct PeerTls(RwLock<Option<Arc<ClientConfig>>>);

impl PeerTls {
    /// Reads the authorities, and starts a thread that rereads their file, if there is one, at each
    /// SIGHUP.
    pub(crate) fn open(ca: Option<&Path>) -> Result<Arc<Self>, Failure> {
        let peers = Arc::new(Self(RwLock::new(config(ca)?)));
        if let Some(path) = ca {
            peers.watch(path.to_owned())?;
        }
        Ok(peers)
    }

    /// Returns the configuration of new connections; `None` if the operating system trusts no authority.
    pub(crate) fn current(&self) -> Option<Arc<ClientConfig>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn watch(self: &Arc<Self>, ca: PathBuf) -> Result<(), Failure> {
        let failed = |error| {
            Failure::new(exit::OS, format!("cannot watch the file of --cluster-ca: {error}"))
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(failed)?;
        let (peers, mut reloads) = (Arc::downgrade(self), Reloads::join());
        let reread = async move {
            loop {
                reloads.requested().await;
                let Some(peers) = peers.upgrade() else { return };
                peers.reread(&ca);
                reloads.done();
            }
        };
        vital::spawn("keypeg-peers", move || runtime.block_on(reread)).map(drop).map_err(failed)
    }

    /// Replaces the authorities. An unusable file changes nothing.
    fn reread(&self, ca: &Path) {
        match config(Some(ca)) {
            Ok(config) => {
                *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
                tracing::info!("reread the authorities of the other servers");
            }
            Err(failure) => tracing::error!("{failure}; the authorities loaded before stay in use"),
        }
    }
}

/// Makes the configuration of connections to other servers. `None` if the operating system trusts no
/// authority.
fn config(ca: Option<&Path>) -> Result<Option<Arc<ClientConfig>>, Failure> {
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
