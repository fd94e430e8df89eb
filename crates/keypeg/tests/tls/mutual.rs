//! Client certificates: which of them give the rights of an entry in the token file.

use crate::support::certificates::{Authority, EXPIRED, Issued, TlsClient, VALID};
use crate::support::tokens::Tokens;
use crate::support::{Server, TempDir, eventually, exit_within, keypeg};
use rustix::process::{Signal, kill_process};
use rustls::version::{TLS12, TLS13};
use serde_json::{Value, json};
use std::io::BufRead as _;
use std::sync::Arc;

/// A server that knows two authorities: of its own certificate, and of those of clients.
struct Mutual {
    servers: Authority,
    clients: Authority,
    tokens: Tokens,
    dir: TempDir,
    server: Server,
}

/// An entry of the token file.
fn entry(name: &str, certificate: &str) -> String {
    format!(
        "[[token]]\nname = \"{name}\"\ncertificate = {certificate}\npools = [\"*\"]\n\
         scopes = [\"read\", \"lend\", \"metrics\", \"admin\"]\n"
    )
}

impl Mutual {
    fn new(entries: &str) -> Self {
        let (servers, clients, tokens) = (Authority::new(), Authority::new(), Tokens::new());
        let dir = TempDir::new();
        tokens.add("other", "*", &["read"], &[]);
        tokens.replace(&(tokens.text() + entries));
        let mut args = servers.args(&servers.server(VALID));
        args.extend(["--tls-client-ca".into(), clients.write("ca.pem", &clients.pem())]);
        args.extend(tokens.args());
        args.extend(["--audit".into(), dir.path().join("audit").to_str().unwrap().into()]);
        let log = dir.path().join("log");
        let server = Server::logged(keypeg(&["--ephemeral"]).args(args), &log);
        Self { servers, clients, tokens, dir, server }
    }

    fn connect(&self, certificate: Option<&Issued>) -> std::io::Result<TlsClient> {
        let config = self.servers.client(&[&TLS13, &TLS12], certificate);
        TlsClient::connect(self.server.addr(), config)
    }

    fn list(&self, certificate: Option<&Issued>) -> (u16, Value) {
        let answer = self.connect(certificate).unwrap().ask("GET /v1/pools");
        (answer.status, answer.json())
    }
}

#[test]
fn a_certificate_has_the_rights_of_the_entry_with_its_name() {
    let entries = entry("ci", "\"ci.example\"")
        + &entry("job", "[\"spiffe://example/job\", \"old.example\"]")
        + &entry("person", "\"Ada Lovelace\"");
    let mutual = Mutual::new(&entries);
    for (names, common) in [
        (&["ci.example"][..], ""),
        (&["CI.Example"], ""),
        (&["other.example", "ci.example"], "x"),
        (&["spiffe://example/job"], ""),
        (&["old.example"], ""),
        (&[], "Ada Lovelace"),
    ] {
        let certificate = mutual.clients.client_named(names, common, VALID);
        assert_eq!(mutual.list(Some(&certificate)).0, 200, "{names:?} {common}");
    }
    for (names, common) in [
        (&["xci.example"][..], ""),
        (&["*.example"], ""),
        (&["spiffe://example/job2"], ""),
        // The common name counts only without other names.
        (&["a.example"], "Ada Lovelace"),
        (&[], "ada lovelace"),
        (&[], ""),
    ] {
        let certificate = mutual.clients.client_named(names, common, VALID);
        let (status, problem) = mutual.list(Some(&certificate));
        assert_eq!(status, 401, "{names:?} {common}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("client certificate are in no entry"), "{detail}");
    }
    let certificate = mutual.clients.client_named(&["ci.example"], "", VALID);
    let mut client = mutual.connect(Some(&certificate)).unwrap();
    let keys = r#"{"count": 1}"#;
    client.try_send("POST /v1/pools/default/keys", &[], keys).unwrap().is(201, &json!({}));
    let audit = || std::fs::read_to_string(mutual.dir.path().join("audit")).unwrap();
    eventually("the caller in the audit log", || {
        audit().contains("\"token\":\"ci\"").then_some(())
    });
}

/// Only an editor could write such an entry, and the first error showed at the reload.
#[test]
fn token_new_writes_the_entry_of_a_certificate() {
    let mutual = Mutual::new("");
    let path = mutual.tokens.args()[1].clone();
    let new = |names: &[&str], more: &[&str]| {
        let mut command = std::process::Command::new(crate::support::binary());
        command.args(["token", "new", "--pool", "*", "--scope", "read"]).args(more);
        for name in names {
            command.args(["--certificate", name]);
        }
        exit_within(command.env_clear())
    };
    let quoted = r#"CN="x"\y"#;
    for (entry, names) in [
        ("ci", &["CI.example"][..]),
        ("job", &["spiffe://example/job", "old.example"]),
        ("person", &["Ada Lovelace"]),
        ("odd", &[quoted]),
    ] {
        let (code, out, said) = new(names, &["--name", entry, "--tokens", &path]);
        // There is no token, so nothing is printed.
        assert_eq!((code, &*out, &*said), (Some(0), "", ""), "{entry}");
    }
    kill_process(mutual.server.pid(), Signal::HUP).unwrap();
    for (names, common) in [
        (&["ci.example"][..], ""),
        (&["spiffe://example/job"], ""),
        (&["old.example"], ""),
        (&[], "Ada Lovelace"),
        (&[], quoted),
    ] {
        let certificate = mutual.clients.client_named(names, common, VALID);
        eventually("the rights of the entry", || {
            (mutual.list(Some(&certificate)).0 == 200).then_some(())
        });
    }
    // Without a file the command prints the entry, and nothing that could be a token.
    let (code, out, _) = new(&["ci.example"], &["--name", "ci"]);
    assert_eq!(code, Some(0));
    assert_eq!(
        out,
        "[[token]]\nname = \"ci\"\ncertificate = \"ci.example\"\npools = [\"*\"]\nscopes = [\"read\"]\n"
    );
    // An entry with the same certificate is refused, and the file stays as it is.
    let before = mutual.tokens.text();
    let (code, _, said) = new(&["OLD.example"], &["--name", "again", "--tokens", &path]);
    assert!(code == Some(78) && said.contains("\"old.example\" occurs twice"), "{said}");
    assert_eq!(mutual.tokens.text(), before);
    let file = mutual.clients.write("ci.pem", "");
    let (code, _, said) = new(&[&file], &["--name", "ci"]);
    assert!(code == Some(0) && said.contains("is a file: the entry is for certificates"), "{said}");
}

#[test]
fn a_client_without_a_certificate_needs_a_token_and_a_wrong_token_is_refused() {
    let mutual = Mutual::new(&entry("ci", "\"ci.example\""));
    assert_eq!(mutual.list(None).0, 401);
    let mut client = mutual.connect(None).unwrap();
    client.ask("GET /readyz").is(200, &json!({}));
    // What a request says counts before what its connection shows.
    let certificate = mutual.clients.client_named(&["ci.example"], "", VALID);
    let mut client = mutual.connect(Some(&certificate)).unwrap();
    let wrong = [("authorization", "Bearer kpt_wrong")];
    client.try_send("GET /v1/pools", &wrong, "").unwrap().problem(401, "unauthorized");
    client.ask("GET /v1/pools").is(200, &json!({}));
    let token = mutual.tokens.add("more", "*", &["read"], &[]);
    let bearer = format!("Bearer {token}");
    eventually("the new token is valid", || {
        // The server closes a connection with too many wrong tokens.
        let mut client = mutual.connect(None).ok()?;
        let answer = client.try_send("GET /v1/pools", &[("authorization", &bearer)], "");
        (answer.ok()?.status == 200).then_some(())
    });
}

#[test]
fn a_certificate_that_is_expired_or_of_another_authority_makes_no_connection() {
    let mutual = Mutual::new(&entry("ci", "\"ci.example\""));
    let expired = mutual.clients.client_named(&["ci.example"], "", EXPIRED);
    let foreign = Authority::new().client_named(&["ci.example"], "", VALID);
    let server = mutual.clients.named("ci.example", VALID);
    for (certificate, alert) in [
        (&expired, "CertificateExpired"),
        (&foreign, "UnknownCA"),
        (&server, "UnsupportedCertificate"),
    ] {
        // With TLS 1.3 the client learns it at its first read.
        let refused = mutual.connect(Some(certificate));
        let refused = refused.and_then(|mut client| client.try_send("GET /v1/pools", &[], ""));
        let error = refused.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(alert), "{error}");
    }
}

#[test]
fn a_command_says_why_its_certificate_is_refused() {
    let mutual = Mutual::new(&entry("ci", "\"ci.example\""));
    let authority = &mutual.servers;
    let run = |args: &[&str], issued: &Issued| {
        let mut command = std::process::Command::new(crate::support::binary());
        let ca = authority.write("server-ca.pem", &authority.pem());
        command.args(args).args(["--ca-file", &ca]);
        command.args(["--client-cert", &authority.write("client.pem", &issued.certificate)]);
        command.args(["--client-key", &authority.write("client-key.pem", &issued.key)]);
        let url = format!("https://{}", mutual.server.addr());
        exit_within(command.env_clear().env("KEYPEG_SERVER", url))
    };
    if !cfg!(feature = "cli") {
        return;
    }
    let valid = mutual.clients.client_named(&["ci.example"], "", VALID);
    let (code, said, _) = run(&["pools"], &valid);
    assert!(code == Some(0) && said.contains("default"), "{said}");
    let generates = |time: &str| {
        let (code, report, _) = run(&["bench", "generate", "--for", time, "-c", "2"], &valid);
        (code == Some(0)).then_some(report)
    };
    // A busy machine may answer nothing within a short run. No request has a token.
    assert!(["200ms", "3s", "30s"].into_iter().find_map(generates).is_some());
    let expired = mutual.clients.client_named(&["ci.example"], "", EXPIRED);
    // With TLS 1.3 a connection is open before the server has seen the certificate.
    for (args, exit) in [(&["pools"][..], 69), (&["bench", "--for", "200ms", "-c", "2"], 70)] {
        let (code, _, said) = run(args, &expired);
        assert_eq!(code, Some(exit), "{said}");
        assert!(said.contains("the server refuses the client certificate"), "{said}");
    }
}

/// A session that is resumed would not verify the certificate again.
#[test]
fn a_client_with_a_certificate_never_resumes_its_session() {
    let mutual = Mutual::new(&entry("ci", "\"ci.example\""));
    let certificate = mutual.clients.client_named(&["ci.example"], "", VALID);
    for version in [&TLS12, &TLS13] {
        let config = Arc::new(mutual.servers.client(&[version], Some(&certificate)));
        for _ in 0..2 {
            let mut client = TlsClient::connect_shared(mutual.server.addr(), &config).unwrap();
            client.ask("GET /v1/pools").is(200, &json!({}));
            assert_eq!(client.tls().handshake_kind(), Some(rustls::HandshakeKind::Full));
        }
    }
}

#[test]
fn an_entry_that_is_removed_ends_the_rights_of_open_connections() {
    let mutual = Mutual::new(&entry("ci", "\"ci.example\""));
    let certificate = mutual.clients.client_named(&["ci.example"], "", VALID);
    let mut client = mutual.connect(Some(&certificate)).unwrap();
    client.ask("GET /v1/pools").is(200, &json!({}));
    mutual.tokens.revoke("ci");
    kill_process(mutual.server.pid(), Signal::HUP).unwrap();
    eventually("the entry is removed", || {
        (client.ask("GET /v1/pools").status == 401).then_some(())
    });
}

#[test]
fn an_entry_that_is_removed_ends_the_event_streams_of_its_certificate() {
    let entries = entry("ci", "\"ci.example\"") + &entry("kept", "\"kept.example\"");
    let mutual = Mutual::new(&entries);
    let [removed, kept] =
        ["ci.example", "kept.example"].map(|name| mutual.clients.client_named(&[name], "", VALID));
    let mut events = mutual.connect(Some(&removed)).unwrap();
    let request = "GET /v1/pools/default/events HTTP/1.1\r\nhost: localhost\r\nconnection: close";
    events.write(format!("{request}\r\n\r\n").as_bytes()).unwrap();
    let mut line = String::new();
    while !line.starts_with("event: resync") {
        line.clear();
        assert_ne!(events.stream.read_line(&mut line).unwrap(), 0, "the stream ends too early");
    }
    mutual.tokens.revoke("ci");
    kill_process(mutual.server.pid(), Signal::HUP).unwrap();
    eventually("the entry is removed", || (mutual.list(Some(&removed)).0 == 401).then_some(()));
    let mut client = mutual.connect(Some(&kept)).unwrap();
    let keys = r#"{"count": 1}"#;
    client.try_send("POST /v1/pools/default/keys", &[], keys).unwrap().is(201, &json!({}));
    loop {
        line.clear();
        match events.stream.read_line(&mut line) {
            Ok(0) => break,
            Ok(_) => assert!(!line.contains("event: generated"), "the stream goes on"),
            // The server may close the connection without an alert.
            Err(error) => {
                assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "it does not end");
                break;
            }
        }
    }
}

#[test]
fn authorities_of_clients_are_reloaded() {
    let mutual = Mutual::new(&entry("ci", "\"ci.example\""));
    let next = Authority::new();
    let certificate = next.client_named(&["ci.example"], "", VALID);
    let both = mutual.clients.pem() + &next.pem();
    mutual.clients.write("ca.pem", &both);
    eventually("the second authority", || {
        let answer = mutual.connect(Some(&certificate)).ok()?.try_send("GET /v1/pools", &[], "");
        (answer.ok()?.status == 200).then_some(())
    });
    mutual.clients.write("ca.pem", "");
    kill_process(mutual.server.pid(), Signal::HUP).unwrap();
    let log = || std::fs::read_to_string(mutual.dir.path().join("log")).unwrap();
    eventually("a warning", || log().contains("the authorities of clients").then_some(()));
    assert_eq!(mutual.list(Some(&certificate)).0, 200);
}

#[test]
fn names_of_certificates_that_cannot_be_used_are_refused() {
    let authority = Authority::new();
    for (certificate, says) in [
        ("[]", "certificate must contain at least one name"),
        ("\"\"", "is not the name of a certificate"),
        ("\"*.example\"", "without *"),
        ("7", "certificate: must be the name of a client certificate in quotes"),
        ("[\"a\", \"A\"]", "its certificate \"a\" occurs twice"),
    ] {
        let tokens = Tokens::new();
        tokens.add("other", "*", &["read"], &[]);
        tokens.replace(&(tokens.text() + &entry("ci", certificate)));
        let mut command = keypeg(&["--ephemeral", "--listen", "127.0.0.1:0"]);
        let (code, _, said) = exit_within(command.args(tokens.args()));
        assert!(code == Some(78) && said.contains(says), "{certificate}: {said}");
    }
    let tokens = Tokens::new();
    tokens.add("other", "*", &["read"], &[]);
    let mut args = authority.args(&authority.server(VALID));
    args.extend(["--tls-client-ca".into(), authority.write("ca.pem", "x")]);
    args.extend(tokens.args());
    let mut command = keypeg(&["--ephemeral", "--listen", "127.0.0.1:0"]);
    let (code, _, said) = exit_within(command.args(args));
    let says = "with the certificates of the authorities of clients";
    assert!(code == Some(78) && said.contains(says), "{said}");
}
