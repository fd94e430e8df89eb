//! The options of TLS for the commands that call a server: the authority of the server's
//! certificate, and the client certificate.
//!
//! The files of a client certificate are read again for each connection, because certificates live
//! shorter than some jobs. Does not know what the files mean.

use crate::failure::{Failure, exit};
use crate::permissions::{Trusted, Verdict, examine_file, examine_way};
use crate::streams;
use clap::Args;
use keypeg_client::{ClientIdentity, TlsSettings};
use rustix::fs::Mode;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The variable that names the file of a client certificate.
pub(super) const CLIENT_CERT_VARIABLE: &str = "KEYPEG_CLIENT_CERT";
/// The variable that names the file of its key.
pub(super) const CLIENT_KEY_VARIABLE: &str = "KEYPEG_CLIENT_KEY";
/// The largest file, in bytes: a bundle of authorities has about 200 KiB.
const FILE_MAX: u64 = 1 << 20;

/// The files of TLS.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct TlsArgs {
    /// Certificates of authorities in PEM, the only ones to trust [default: those of this machine]
    #[arg(long, env = "KEYPEG_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Client certificate in PEM, for a server with --tls-client-ca
    #[arg(long, env = CLIENT_CERT_VARIABLE, value_name = "FILE", requires = "client_key")]
    client_cert: Option<PathBuf>,
    /// Private key of the client certificate in PEM, not encrypted
    #[arg(long, env = CLIENT_KEY_VARIABLE, value_name = "FILE", requires = "client_cert")]
    client_key: Option<PathBuf>,
}

impl TlsArgs {
    /// Reads the files.
    pub(super) fn settings(&self) -> Result<TlsSettings, Failure> {
        let mut settings = TlsSettings::default();
        if let Some(path) = &self.ca_file {
            let pem = read(path, "--ca-file")?;
            settings = settings.with_authorities(&pem).map_err(|error| {
                Failure::new(exit::USAGE, format!("{}: {error}", path.display()))
            })?;
        }
        if let (Some(certificate), Some(key)) = (&self.client_cert, &self.client_key) {
            warn_if_exposed(key);
            let identity = ClientIdentity {
                certificate: read(certificate, "--client-cert")?,
                key: read(key, "--client-key")?,
            };
            let (certificate, key) = (certificate.clone(), key.clone());
            let read_again = move || {
                let certificate = read(&certificate, "--client-cert").ok()?;
                Some(ClientIdentity { certificate, key: read(&key, "--client-key").ok()? })
            };
            settings = settings.with_identity(&identity, read_again)?;
        }
        Ok(settings)
    }
}

fn read(path: &Path, option: &str) -> Result<Vec<u8>, Failure> {
    let failed = |error: io::Error| {
        let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
        let code = if is_denied { exit::PERMISSION } else { exit::NO_INPUT };
        let path = path.display();
        Failure::new(code, format!("cannot read {path}: {error}; check {option}"))
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX {
        let path = path.display();
        let message = format!("{path} has more than {FILE_MAX} bytes; check {option}");
        return Err(Failure::new(exit::USAGE, message));
    }
    Ok(bytes)
}

/// Warns if other users can read or replace the private key. A command does not refuse such a file:
/// containers and build jobs often have such files, and only one user.
fn warn_if_exposed(path: &Path) {
    let trusted = Trusted::own();
    let mut reasons = Vec::new();
    let way = examine_way(path, "file", trusted).unwrap_or(Verdict::Safe);
    let file = rustix::fs::stat(path);
    let verdict = file.map_or(Verdict::Safe, |file| examine_file(file, trusted));
    for verdict in [way, verdict] {
        if let Verdict::Exposed(reason) = verdict {
            reasons.push(reason);
        }
    }
    if file.is_ok_and(|file| Mode::from_raw_mode(file.st_mode).contains(Mode::ROTH)) {
        let readable = "every user of this machine can read this private key: run chmod 0600 on it";
        reasons.push(readable.to_owned());
    }
    for reason in reasons {
        streams::print_message(&format!("{}: {reason}", path.display()));
    }
}
