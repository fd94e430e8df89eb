//! Commands and keypeg-client over https: which server they trust, and what they say if they do not.

use crate::support::certificates::{Authority, EXPIRED, Issued, VALID};
use crate::support::{Server, TempDir, binary, exit_within};
use keypeg_client::{AcquireRequest, Client, Error, Event, GenerateRequest, TlsSettings};
use std::process::Command;

fn server(authority: &Authority, issued: &Issued, args: &[&str]) -> Server {
    let tls = authority.args(issued);
    let tls = tls.iter().map(String::as_str);
    Server::in_memory(&args.iter().copied().chain(tls).collect::<Vec<_>>())
}

/// Returns a command that trusts the authority.
fn tool(authority: &Authority, server: &Server, args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(args).env_clear().env("KEYPEG_SERVER", format!("https://{}", server.addr()));
    command.env("KEYPEG_CA_FILE", authority.write("ca.pem", &authority.pem()));
    command
}

#[track_caller]
fn fails(mut command: Command, exit: i32, says: &[&str]) {
    let (code, _, said) = exit_within(&mut command);
    assert_eq!(code, Some(exit), "{said}");
    for says in says {
        assert!(said.contains(says), "{says:?} is missing: {said}");
    }
}

#[test]
fn commands_speak_https() {
    let authority = Authority::new();
    let server = server(&authority, &authority.server(VALID), &[]);
    for (args, says) in [
        (&["generate", "-n", "2"][..], "ID"),
        (&["acquire", "--ttl", "30s"], ""),
        (&["show"], "default"),
        (&["health"], ""),
        (
            &["exec", "--", "/bin/sh", "-c", "echo key ${KEYPEG_KEY_ID:+found} $KEYPEG_CLIENT_KEY"],
            "key found\n",
        ),
    ] {
        let (code, said, errors) = exit_within(&mut tool(&authority, &server, args));
        assert_eq!(code, Some(0), "{args:?}: {errors}");
        assert!(said.contains(says), "{args:?}: {said}");
    }
    // The authorities that the operating system trusts; this variable names its file.
    let mut command = tool(&authority, &server, &["show"]);
    let file = authority.path("ca.pem");
    command.env_remove("KEYPEG_CA_FILE").env("SSL_CERT_FILE", file);
    assert_eq!(exit_within(&mut command).0, Some(0));
}

/// `error sending request` was all that a user learned.
#[test]
fn a_server_that_is_not_trusted_is_named_with_the_reason_and_the_next_step() {
    let (authority, other) = (Authority::new(), Authority::new());
    let show = |issued: &Issued, trusted: &Authority| {
        let server = server(&authority, issued, &[]);
        let command = tool(trusted, &server, &["show"]);
        (server, command)
    };
    let (_server, command) = show(&authority.server(VALID), &other);
    let says =
        ["no TLS connection to the server at https://127.0.0.1:", "UnknownIssuer", "--ca-file"];
    fails(command, 69, &says);
    let (_server, command) = show(&authority.server(EXPIRED), &authority);
    fails(command, 69, &["certificate expired", "replace the certificate of the server"]);
    let (_server, command) = show(&authority.named("keys.example", VALID), &authority);
    let says = ["not valid for name", "keys.example", "use a name of the certificate"];
    fails(command, 69, &says);
}

#[test]
fn http_and_https_are_not_mistaken_for_each_other() {
    let authority = Authority::new();
    let encrypted = server(&authority, &authority.server(VALID), &[]);
    let plain = Server::in_memory(&[]);
    let mut command = tool(&authority, &encrypted, &["show"]);
    command.env_remove("KEYPEG_CA_FILE");
    command.env("KEYPEG_SERVER", format!("http://{}", encrypted.addr()));
    fails(command, 65, &["accepts HTTPS only", "https://"]);
    let command = tool(&authority, &plain, &["show"]);
    fails(command, 69, &["the server does not speak TLS at this address: use http://"]);
    let mut command = tool(&authority, &plain, &["show"]);
    command.env("KEYPEG_SERVER", format!("http://{}", plain.addr()));
    fails(command, 64, &["begins with https://"]);
}

#[test]
fn files_of_a_client_that_cannot_be_used_are_refused() {
    let authority = Authority::new();
    let server = server(&authority, &authority.server(VALID), &[]);
    let dir = TempDir::new();
    let (one, other) = (authority.server(VALID), authority.server(VALID));
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (empty, cert) = (write("empty", ""), write("cert", &one.certificate));
    let (key, other) = (write("key", &one.key), write("other", &other.key));
    let nope = dir.path().join("nope");
    for (args, exit, says) in [
        (&["--ca-file", nope.to_str().unwrap()][..], 66, "check --ca-file"),
        (&["--ca-file", &empty], 64, "there is no certificate; use PEM"),
        (&["--client-cert", &cert], 64, "--client-key"),
        (&["--client-key", &key], 64, "--client-cert"),
        (&["--client-cert", &empty, "--client-key", &key], 64, "has no certificate"),
        (&["--client-cert", &cert, "--client-key", &empty], 64, "without a password"),
        (&["--client-cert", &cert, "--client-key", &other], 64, "does not belong to the client"),
        (&["--client-cert", &cert, "--client-key", "/dev/zero"], 64, "more than 1048576 bytes"),
    ] {
        fails(tool(&authority, &server, &[&["show"], args].concat()), exit, &[says]);
    }
}

#[tokio::test]
async fn the_library_follows_events_and_waits_over_https() {
    let authority = Authority::new();
    let server = server(&authority, &authority.server(VALID), &[]);
    let settings = TlsSettings::default().with_authorities(authority.pem().as_bytes()).unwrap();
    let base = format!("https://localhost:{}", server.addr().port());
    let client = Client::with_tls(&base, &settings).unwrap();
    let mut events = client.events("default", None).await.unwrap();
    let one = GenerateRequest { count: Some(1), ..GenerateRequest::default() };
    client.generate("default", &one).await.unwrap();
    let grant = client.acquire("default", &AcquireRequest::default()).await.unwrap();
    loop {
        if let Some(Event::Granted(granted)) = events.next().await.unwrap() {
            assert_eq!(granted.key_id, grant.key_id);
            break;
        }
    }
    let untrusting = Client::with_tls(&base, &{
        TlsSettings::default().with_authorities(Authority::new().pem().as_bytes()).unwrap()
    });
    let error = untrusting.unwrap().ready().await.unwrap_err();
    assert!(error.is_tls() && matches!(error, Error::Unreachable(_)), "{error}");
    drop(server);
    let error = client.ready().await.unwrap_err();
    assert!(!error.is_tls(), "{error}");
}

/// The load generator spoke plain HTTP only, so the cost of TLS could not be measured.
#[test]
fn the_load_generator_speaks_https() {
    let authority = Authority::new();
    let server = server(&authority, &authority.server(VALID), &[]);
    let load = |more: &[&str], trusted: &Authority| {
        let args = ["bench", "--connections", "2", "--output", "json"];
        tool(trusted, &server, &[&args[..], more].concat())
    };
    // A busy machine may answer nothing within a short run.
    let report = ["200ms", "3s", "30s"].into_iter().find_map(|time| {
        let (code, report, said) =
            exit_within(&mut load(&["--for", time, "--keys", "10"], &authority));
        assert!([Some(0), Some(70)].contains(&code), "{said}");
        (code == Some(0)).then(|| serde_json::from_str::<serde_json::Value>(&report).unwrap())
    });
    let report = report.expect("a run with answers");
    assert_eq!(report["refused"], serde_json::json!({}), "{report}");
    assert_eq!(report["broken"], 0, "{report}");
    let short = ["--for", "50ms"];
    fails(load(&short, &Authority::new()), 69, &["cannot open connection 1", "--ca-file"]);
    let named = self::server(&authority, &authority.named("keys.example", VALID), &[]);
    let mut command = load(&short, &authority);
    command.env("KEYPEG_SERVER", format!("https://{}", named.addr()));
    fails(command, 69, &["use a name of the certificate as the address of the server"]);
    let mut command = load(&short, &authority);
    command.env("KEYPEG_SERVER", format!("http://{}", server.addr()));
    fails(command, 64, &["begins with https://"]);
    let plain = Server::in_memory(&[]);
    let mut command = load(&short, &authority);
    command.env("KEYPEG_SERVER", format!("https://{}", plain.addr()));
    fails(command, 69, &["the server does not speak TLS at this address: use http://"]);
}
