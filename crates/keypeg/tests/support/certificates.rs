//! Certificates for one test, and a blocking HTTPS client that trusts their authority.
//!
//! The private keys exist only while the test runs. The client controls every byte, like
//! [`Client`](super::Client).

use super::{Answer, TempDir, read_answer};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};
use std::fs::Permissions;
use std::io::{self, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The longest time to wait for an answer before the test fails.
const PATIENCE: Duration = Duration::from_mins(1);

/// The number of authorities so far.
static AUTHORITIES: AtomicU64 = AtomicU64::new(0);

/// An authority, and a directory for its certificates.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
}

/// A certificate and its key, as PEM.
#[derive(Clone, Debug)]
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// When a certificate is valid: years from and to, at the first of January.
pub(crate) const VALID: (i32, i32) = (2020, 2200);
/// The validity of an expired one.
pub(crate) const EXPIRED: (i32, i32) = (2020, 2021);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // An authority with the name of another one would seem to have issued its certificates.
        let name = format!("Test authority {}", AUTHORITIES.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_after = rcgen::date_time_ymd(VALID.1, 1, 1);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer, dir: TempDir::new() }
    }

    /// Returns the certificate of the authority as PEM.
    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Issues the certificate of a server on this machine.
    pub(crate) fn server(&self, (from, to): (i32, i32)) -> Issued {
        let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
        params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params, from, to)
    }

    /// Issues the certificate of a server with another name.
    pub(crate) fn named(&self, name: &str, (from, to): (i32, i32)) -> Issued {
        let mut params = CertificateParams::new(vec![name.into()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params, from, to)
    }

    /// Issues the certificate of a client with these DNS names and URIs, and this common name.
    pub(crate) fn client_named(
        &self,
        names: &[&str],
        common_name: &str,
        (from, to): (i32, i32),
    ) -> Issued {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if !common_name.is_empty() {
            params.distinguished_name.push(DnType::CommonName, common_name);
        }
        let names = names.iter().map(|name| (*name).try_into().unwrap());
        let kind = |name: Ia5String| {
            let is_uri = name.as_str().contains("://");
            if is_uri { SanType::URI(name) } else { SanType::DnsName(name) }
        };
        params.subject_alt_names = names.map(kind).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params, from, to)
    }

    fn issue(&self, mut params: CertificateParams, from: i32, to: i32) -> Issued {
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(to, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Issued { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// Returns the path of a file of this authority's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Replaces a file atomically, as certificate tools do; only its owner can read it.
    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let (temporary, path) = (self.path("new"), self.path(name));
        std::fs::write(&temporary, text).unwrap();
        std::fs::set_permissions(&temporary, Permissions::from_mode(0o600)).unwrap();
        std::fs::rename(temporary, &path).unwrap();
        path.to_str().unwrap().into()
    }

    /// Writes a certificate and its key where [`Self::args`] names them.
    pub(crate) fn install(&self, Issued { certificate, key }: &Issued) {
        self.write("cert.pem", certificate);
        self.write("key.pem", key);
    }

    /// Returns the arguments of a server with this certificate, which it installs.
    pub(crate) fn args(&self, issued: &Issued) -> Vec<String> {
        self.install(issued);
        let path = |name| self.path(name).to_str().unwrap().to_owned();
        vec!["--tls-cert".into(), path("cert.pem"), "--tls-key".into(), path("key.pem")]
    }

    /// Returns the configuration of a client that trusts this authority alone.
    pub(crate) fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        certificate: Option<&Issued>,
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        match certificate {
            None => builder.with_no_client_auth(),
            Some(Issued { certificate, key }) => {
                let chain = CertificateDer::pem_slice_iter(certificate.as_bytes());
                let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        }
    }
}

/// One HTTPS connection.
pub(crate) struct TlsClient {
    pub(crate) stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
}

impl TlsClient {
    /// Connects, and completes the handshake.
    pub(crate) fn connect(addr: SocketAddr, config: ClientConfig) -> io::Result<Self> {
        Self::connect_shared(addr, &Arc::new(config))
    }

    /// Like [`Self::connect`], with the sessions that the configuration keeps.
    pub(crate) fn connect_shared(addr: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<Self> {
        Self::over(TcpStream::connect(addr)?, config)
    }

    /// Completes the handshake on a socket.
    pub(crate) fn over(socket: TcpStream, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Returns the state of TLS.
    pub(crate) fn tls(&self) -> &ClientConnection {
        &self.stream.get_ref().conn
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)?;
        self.stream.get_mut().flush()
    }

    /// Sends `METHOD path` with these headers and a JSON body, which may be empty.
    pub(crate) fn try_send(
        &mut self,
        request: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> io::Result<Answer> {
        let mut text = format!("{request} HTTP/1.1\r\nhost: localhost\r\n");
        for (name, value) in headers {
            text.extend([name, ": ", value, "\r\n"]);
        }
        if !body.is_empty() {
            let length = body.len().to_string();
            text.extend(["content-type: application/json\r\ncontent-length: ", &length, "\r\n"]);
        }
        self.write((text + "\r\n" + body).as_bytes())?;
        read_answer(&mut self.stream, request.starts_with("HEAD "))
    }

    /// Sends `METHOD path` without a body.
    pub(crate) fn ask(&mut self, request: &str) -> Answer {
        self.try_send(request, &[], "").unwrap()
    }

    /// Reads until the server closes the connection.
    pub(crate) fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).map(|_| rest)
    }
}

/// Returns the text of a file, for a message.
pub(crate) fn text_of(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}
