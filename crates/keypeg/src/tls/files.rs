//! The files of TLS: reads the certificate chain, the private key and the authority of client
//! certificates, and makes the configuration of new connections from them.
//!
//! A file that another user could change is refused, and so is a private key that every user can
//! read. Does not know when the files change.

use crate::failure::{Failure, exit};
use crate::permissions::Trusted;
use crate::trusted_file::{self, TrustedFile, TrustedFileError};
use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ServerConfig, WebPkiClientVerifier};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The largest file, in bytes: a bundle of authorities has about 200 KiB.
const FILE_MAX: u64 = 1 << 20;
/// The most certificates of a chain.
const CHAIN_MAX: usize = 10;

/// The paths of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// The certificate of the server, then the intermediate ones, in PEM.
    pub(crate) certificate: PathBuf,
    /// The private key, in PEM.
    pub(crate) key: PathBuf,
    /// The authorities of client certificates, in PEM; `None` requests none.
    pub(crate) client_ca: Option<PathBuf>,
}

/// The reason why the files cannot be used.
#[derive(Debug)]
pub(crate) struct TlsFilesError {
    /// The file at fault.
    path: PathBuf,
    option: &'static str,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    Io(io::Error),
    Content(String),
}

/// The bytes of the files as they were read.
pub(super) struct TlsBytes {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
    /// Identifies the content: equal bytes have equal hashes.
    pub(super) hash: [u8; 32],
    /// What an operator should correct.
    pub(super) warnings: Vec<String>,
}

/// What new connections use.
pub(super) struct Loaded {
    pub(super) config: Arc<ServerConfig>,
    /// The first moment at which a certificate of the chain is not valid any more, in seconds since
    /// 1970.
    pub(super) not_after: u64,
    /// The first moment at which the whole chain is valid, in seconds since 1970.
    pub(super) not_before: u64,
    /// Identifies the files.
    pub(super) hash: [u8; 32],
}

impl fmt::Display for TlsFilesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.option, self.path.display())?;
        match &self.cause {
            Cause::Io(error) => write!(f, "{error}"),
            Cause::Content(message) => f.write_str(message),
        }
    }
}

impl TlsFilesError {
    fn content(option: &'static str, path: &Path, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), option, cause: Cause::Content(message.into()) }
    }

    /// Returns the failure of a start.
    pub(crate) fn into_failure(self) -> Failure {
        let code = match &self.cause {
            Cause::Io(error) if error.kind() == io::ErrorKind::NotFound => exit::NO_INPUT,
            Cause::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => exit::PERMISSION,
            Cause::Io(_) => exit::IO,
            Cause::Content(_) => exit::CONFIG,
        };
        let step = match self.cause {
            Cause::Io(_) => format!("; check {}", self.option),
            Cause::Content(_) => String::new(),
        };
        Failure::new(code, format!("{self}{step}"))
    }
}

const CERTIFICATE: &str = "--tls-cert";
const KEY: &str = "--tls-key";
const CLIENT_CA: &str = "--tls-client-ca";

impl TlsFiles {
    /// Reads the files, and checks who else could change them.
    pub(super) fn read(&self) -> Result<TlsBytes, TlsFilesError> {
        let certificate = read_file(CERTIFICATE, &self.certificate)?;
        let key = read_file(KEY, &self.key)?;
        if key.is_public {
            let message = "every user of this machine can read this private key: run chmod 0600 \
                           on it, or 0640 with a group of its own";
            return Err(TlsFilesError::content(KEY, &self.key, message));
        }
        let client_ca = self
            .client_ca
            .as_ref()
            .map(|path| Ok((path, read_file(CLIENT_CA, path)?)))
            .transpose()?;
        let mut hasher = Sha256::new();
        for file in [&certificate, &key].into_iter().chain(client_ca.as_ref().map(|(_, file)| file))
        {
            hasher.update((file.bytes.len() as u64).to_le_bytes());
            hasher.update(&file.bytes);
        }
        let named = |option, path: &Path, warnings: Vec<String>| {
            let path = path.display().to_string();
            warnings.into_iter().map(move |warning| format!("{option} {path}: {warning}"))
        };
        let mut warnings: Vec<_> = named(CERTIFICATE, &self.certificate, certificate.warnings)
            .chain(named(KEY, &self.key, key.warnings))
            .collect();
        let client_ca = client_ca.map(|(path, file)| {
            warnings.extend(named(CLIENT_CA, path, file.warnings));
            file.bytes
        });
        let (certificate, key) = (certificate.bytes, key.bytes);
        Ok(TlsBytes { certificate, key, client_ca, hash: hasher.finalize().into(), warnings })
    }

    /// Makes the configuration of new connections.
    pub(super) fn load(&self, bytes: &TlsBytes) -> Result<Loaded, TlsFilesError> {
        let chain = self.chain(&bytes.certificate)?;
        let (not_before, not_after) = self.validity(&chain)?;
        let key = self.key(&bytes.key)?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("invariant: ring supports TLS 1.2 and 1.3");
        let verifier = self.client_verifier(bytes.client_ca.as_deref(), provider)?;
        let requests_certificates = verifier.is_some();
        let builder = match verifier {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(verifier),
        };
        let config = builder.with_single_cert(chain, key);
        let mut config = config.map_err(|error| {
            if !matches!(error, rustls::Error::InconsistentKeys(_)) {
                let message = format!("cannot use this certificate and its key: {error}");
                return TlsFilesError::content(CERTIFICATE, &self.certificate, message);
            }
            let certificate = self.certificate.display();
            let message = format!(
                "this private key does not belong to the first certificate of {certificate}: use \
                 the key that the certificate was issued for, and write the certificate of the \
                 server before those of its authorities"
            );
            TlsFilesError::content(KEY, &self.key, message)
        })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        if requests_certificates {
            // A session that is resumed would not verify the certificate again.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        } else if let Ok(ticketer) = ring::Ticketer::new() {
            // A ticket keeps no state in the server. Its key is lost with this configuration, so that
            // no session outlives a change of the files.
            config.ticketer = ticketer;
        }
        Ok(Loaded { config: Arc::new(config), not_after, not_before, hash: bytes.hash })
    }

    /// Reports a certificate that is expired or not valid yet.
    pub(super) fn not_valid_now(&self) -> TlsFilesError {
        let message = "a certificate of this file is expired or not valid yet: check the file and \
                       the clock of this machine";
        TlsFilesError::content(CERTIFICATE, &self.certificate, message)
    }

    fn chain(&self, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsFilesError> {
        let invalid =
            |message: String| TlsFilesError::content(CERTIFICATE, &self.certificate, message);
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
        let chain =
            chain.map_err(|error| invalid(format!("the file is not valid PEM: {error}")))?;
        if chain.is_empty() {
            return Err(invalid(
                "the file has no certificate: it must be PEM, with the certificate of the server \
                 first (-----BEGIN CERTIFICATE-----), then the intermediate ones"
                    .into(),
            ));
        }
        if chain.len() > CHAIN_MAX {
            let message = format!(
                "the file has {} certificates, and a chain may have {CHAIN_MAX}: write the \
                 certificate of the server and its intermediate ones, not a bundle of authorities",
                chain.len()
            );
            return Err(invalid(message));
        }
        Ok(chain)
    }

    /// Returns what verifies the certificates of clients. A client may show none: it can have an
    /// access token, and probes need neither.
    fn client_verifier(
        &self,
        authorities: Option<&[u8]>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsFilesError> {
        let (Some(path), Some(bytes)) = (&self.client_ca, authorities) else { return Ok(None) };
        let invalid = |message: String| TlsFilesError::content(CLIENT_CA, path, message);
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bytes) {
            let added = certificate
                .map_err(|error| invalid(format!("the file is not valid PEM: {error}")))
                .map(|certificate| roots.add(certificate))?;
            added.map_err(|error| invalid(format!("cannot use a certificate of it: {error}")))?;
        }
        if roots.is_empty() {
            return Err(invalid(
                "the file has no certificate: it must be PEM, with the certificates of the \
                 authorities of clients (-----BEGIN CERTIFICATE-----)"
                    .into(),
            ));
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build();
        let verifier = verifier.map_err(|error| invalid(format!("cannot use it: {error}")))?;
        Ok(Some(verifier))
    }

    /// Returns the time in which all certificates of the chain are valid.
    fn validity(&self, chain: &[CertificateDer<'_>]) -> Result<(u64, u64), TlsFilesError> {
        let (mut not_before, mut not_after) = (0, u64::MAX);
        for (index, certificate) in chain.iter().enumerate() {
            let parsed = X509Certificate::from_der(certificate);
            let (_, parsed) = parsed.map_err(|error| {
                let message = format!("certificate {} is not valid X.509: {error}", index + 1);
                TlsFilesError::content(CERTIFICATE, &self.certificate, message)
            })?;
            let seconds = |timestamp: i64| u64::try_from(timestamp).unwrap_or(0);
            let validity = parsed.validity();
            not_before = not_before.max(seconds(validity.not_before.timestamp()));
            not_after = not_after.min(seconds(validity.not_after.timestamp()));
        }
        Ok((not_before, not_after))
    }

    fn key(&self, bytes: &[u8]) -> Result<PrivateKeyDer<'static>, TlsFilesError> {
        PrivateKeyDer::from_pem_slice(bytes).map_err(|error| {
            let is_encrypted =
                bytes.windows(ENCRYPTED.len()).any(|part| part == ENCRYPTED.as_bytes());
            let message = if is_encrypted {
                "the private key is encrypted: decrypt it with \"openssl pkey\", and protect the \
                 file by its permissions"
                    .into()
            } else if matches!(error, pem::Error::NoItemsFound) {
                "the file has no private key: it must be PEM (-----BEGIN PRIVATE KEY-----)".into()
            } else {
                format!("the private key is not valid PEM: {error}")
            };
            TlsFilesError::content(KEY, &self.key, message)
        })
    }
}

/// The mark of an encrypted key.
const ENCRYPTED: &str = "ENCRYPTED";

fn read_file(option: &'static str, path: &Path) -> Result<TrustedFile, TlsFilesError> {
    trusted_file::read(path, FILE_MAX, Trusted::own()).map_err(|error| {
        let cause = match error {
            TrustedFileError::Io(error) => Cause::Io(error),
            TrustedFileError::Mode(reason) => Cause::Content(reason),
            TrustedFileError::TooLarge(max) => {
                Cause::Content(format!("the file is larger than {max} bytes"))
            }
        };
        TlsFilesError { path: path.to_owned(), option, cause }
    })
}
