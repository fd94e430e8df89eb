//! The certificate of the server: which files are refused, and what a reload changes.

use crate::support::certificates::{Authority, EXPIRED, Issued, TlsClient, VALID, text_of};
use crate::support::{Server, TempDir, eventually, exit_within, keypeg};
use rustix::process::{Signal, kill_process};
use rustls::version::TLS13;
use serde_json::json;
use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[track_caller]
fn refused(args: &[String], exit: i32, says: &str) {
    let mut command = keypeg(&["--ephemeral", "--listen", "127.0.0.1:0"]);
    let (code, _, said) = exit_within(command.args(args));
    assert!(said.contains(says), "{said}");
    assert_eq!(code, Some(exit), "{said}");
}

#[test]
fn files_that_cannot_be_used_are_refused_with_the_next_step() {
    let authority = Authority::new();
    let (one, other) = (authority.server(VALID), authority.server(VALID));
    let args = authority.args(&one);
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE \
                     KEY-----\n";
    let cases = [
        ("cert.pem", String::new(), "the file has no certificate: it must be PEM"),
        ("cert.pem", one.key.clone(), "the file has no certificate: it must be PEM"),
        ("cert.pem", "-----BEGIN CERTIFICATE-----\n".into(), "is not valid PEM"),
        ("cert.pem", one.certificate.repeat(11), "a chain may have 10"),
        ("cert.pem", one.certificate.replace("MII", "AII"), "certificate 1 is not valid X.509"),
        ("cert.pem", other.certificate.clone(), "does not belong to the first certificate of"),
        ("cert.pem", authority.pem() + &one.certificate, "does not belong to the first"),
        ("cert.pem", "x".repeat((1 << 20) + 1), "the file is larger than 1048576 bytes"),
        ("key.pem", String::new(), "the file has no private key: it must be PEM"),
        ("key.pem", one.certificate.clone(), "the file has no private key: it must be PEM"),
        ("key.pem", encrypted.into(), "the private key is encrypted: decrypt it with \"openssl"),
        ("key.pem", other.key, "this private key does not belong to the first certificate of"),
    ];
    for (name, text, says) in cases {
        authority.install(&one);
        authority.write(name, &text);
        refused(&args, 78, says);
        refused(&args, 78, name);
    }
    authority.install(&one);
    let key = authority.path("key.pem");
    set_permissions(&key, Permissions::from_mode(0o604)).unwrap();
    refused(&args, 78, "every user of this machine can read this private key: run chmod 0600");
    for name in ["cert.pem", "key.pem"] {
        authority.install(&one);
        set_permissions(authority.path(name), Permissions::from_mode(0o620)).unwrap();
        refused(&args, 78, "other users can write this file: run chmod 0600");
    }
    authority.install(&one);
    std::fs::remove_file(&key).unwrap();
    refused(&args, 66, "check --tls-key");
    refused(&args[..2], 78, "--tls-cert is given without --tls-key: TLS needs both files");
    authority.install(&one);
    set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
    set_permissions(authority.path("cert.pem"), Permissions::from_mode(0o644)).unwrap();
    let chain = one.certificate + &authority.pem();
    authority.write("cert.pem", &chain);
    drop(Server::in_memory(&args.iter().map(String::as_str).collect::<Vec<_>>()));
}

#[test]
fn an_expired_certificate_is_logged_at_a_start() {
    let (authority, dir) = (Authority::new(), TempDir::new());
    let log = dir.path().join("log");
    let args = authority.args(&authority.server(EXPIRED));
    let mut server = Server::logged(keypeg(&["--ephemeral"]).args(args), &log);
    let error = TlsClient::connect(server.addr(), authority.client(&[&TLS13], None)).err();
    assert!(error.is_some_and(|error| error.to_string().contains("expired")));
    server.terminate();
    let said = text_of(&log);
    assert!(said.contains("ERROR") && said.contains("the certificate is expired"), "{said}");
}

/// A server with a log, whose certificate changes.
struct Renewed {
    authority: Authority,
    server: Server,
    dir: TempDir,
}

impl Renewed {
    fn new() -> Self {
        let (authority, dir) = (Authority::new(), TempDir::new());
        let args = authority.args(&authority.server(VALID));
        let log = dir.path().join("log");
        let server = Server::logged(keypeg(&["--ephemeral"]).args(args), &log);
        Self { authority, server, dir }
    }

    fn said(&self) -> String {
        text_of(&self.dir.path().join("log"))
    }

    fn connect(&self) -> TlsClient {
        let config = self.authority.client(&[&TLS13], None);
        TlsClient::connect(self.server.addr(), config).unwrap()
    }

    /// Returns the certificate that a new connection gets.
    fn certificate(&self) -> Vec<u8> {
        let client = self.connect();
        client.tls().peer_certificates().unwrap()[0].to_vec()
    }

    fn metrics(&self) -> String {
        self.connect().ask("GET /metrics").body
    }
}

fn der(issued: &Issued) -> Vec<u8> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap().to_vec()
}

#[test]
fn a_new_certificate_is_used_without_a_restart() {
    let renewed = Renewed::new();
    let old = renewed.connect();
    let year_2100 = "keypeg_tls_certificate_not_after_seconds 4102444800\n";
    assert!(!renewed.metrics().contains(year_2100));
    for (from, to) in [(2020, 2150), (2020, 2100)] {
        let next = renewed.authority.server((from, to));
        renewed.authority.install(&next);
        eventually("the new certificate", || (renewed.certificate() == der(&next)).then_some(()));
    }
    let metrics = renewed.metrics();
    assert!(metrics.contains(year_2100), "{metrics}");
    assert!(metrics.contains("keypeg_tls_certificate_reloads_total 2\n"), "{metrics}");
    let said = renewed.said();
    assert!(said.contains("reloaded the TLS certificate, which expires at 2100-01-01"), "{said}");
    // A connection keeps the certificate with which it began.
    let mut old = old;
    old.ask("GET /readyz").is(200, &json!({}));
}

#[test]
fn a_broken_certificate_keeps_the_old_one_and_is_logged() {
    let renewed = Renewed::new();
    let before = renewed.certificate();
    let other = renewed.authority.server(VALID);
    for (name, text, says) in [
        ("cert.pem", String::new(), "the file has no certificate"),
        ("cert.pem", other.certificate.clone(), "does not belong to the first certificate"),
        ("cert.pem", renewed.authority.server(EXPIRED).certificate, "does not belong to"),
        ("key.pem", "x".into(), "the file has no private key"),
    ] {
        let kept = [renewed.authority.path("cert.pem"), renewed.authority.path("key.pem")];
        let kept = kept.map(|path| text_of(&path));
        let logged = renewed.said().len();
        renewed.authority.write(name, &text);
        kill_process(renewed.server.pid(), Signal::HUP).unwrap();
        let new = || renewed.said().split_off(logged);
        eventually("the reason in the log", || new().contains(says).then_some(()));
        assert!(new().contains("the certificate loaded before stays in use"), "{}", new());
        assert_eq!(renewed.certificate(), before);
        let broken = "keypeg_tls_certificate_broken 1\n";
        assert!(renewed.metrics().contains(broken), "{}", renewed.metrics());
        let [certificate, key] = kept;
        renewed.authority.install(&Issued { certificate, key });
        let fine = "keypeg_tls_certificate_broken 0\n";
        eventually("it is not broken any more", || renewed.metrics().contains(fine).then_some(()));
    }
    // An expired certificate with its key replaces no valid one.
    renewed.authority.install(&renewed.authority.server(EXPIRED));
    kill_process(renewed.server.pid(), Signal::HUP).unwrap();
    let says = "a certificate of this file is expired or not valid yet";
    eventually("the reason in the log", || renewed.said().contains(says).then_some(()));
    assert_eq!(renewed.certificate(), before);
}

/// Each request of each client is answered while the certificate is replaced again and again.
#[test]
fn no_request_fails_while_the_certificate_is_replaced() {
    let renewed = Arc::new(Renewed::new());
    let (ends, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|index| {
            let (renewed, ends) = (Arc::clone(&renewed), Arc::clone(&ends));
            let answered = Arc::clone(&answered);
            std::thread::spawn(move || {
                // Two clients keep their connections and their sessions, the others connect again.
                let config = Arc::new(renewed.authority.client(&[&TLS13], None));
                let connect = || TlsClient::connect_shared(renewed.server.addr(), &config).unwrap();
                let mut client = connect();
                while !ends.load(Ordering::Relaxed) {
                    if index % 2 == 0 {
                        client = connect();
                    }
                    client.ask("GET /v1/pools/default").is(200, &json!({}));
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for _ in 0..5 {
        let next = renewed.authority.server(VALID);
        renewed.authority.install(&next);
        eventually("the new certificate", || (renewed.certificate() == der(&next)).then_some(()));
        let before = answered.load(Ordering::Relaxed);
        eventually("requests", || (answered.load(Ordering::Relaxed) > before + 20).then_some(()));
    }
    ends.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().unwrap();
    }
    assert!(renewed.metrics().contains("keypeg_tls_certificate_broken 0\n"));
}
