//! A proxy that speaks TLS and HTTP/2 with its clients, used by curl.

use super::waiting::{generate, until_waiting};
use super::{Certificate, Kind, NAME, Proxy, for_each_proxy};
use crate::support::{Server, TempDir, eventually, skipped};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

for_each_proxy!(
    calls_over_tls_and_http2_reach_the_server,
    a_request_whose_stream_was_reset_is_abandoned,
);

/// Makes a certificate for the name of the configurations; `None` if a program is missing.
fn certificate() -> Option<Certificate> {
    let certificate = Certificate { dir: TempDir::new() };
    let [cert, key] = ["cert", "key"].map(|name| certificate.file(name));
    let name = format!("/CN={NAME}");
    let names = format!("subjectAltName=DNS:{NAME}");
    let args = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
        "-subj",
        &name,
        "-addext",
        &names,
        "-keyout",
        &key,
        "-out",
        &cert,
    ];
    let output = Command::new("openssl").args(args).output();
    let has_curl = Command::new("curl").arg("--version").output();
    let has_http2 = has_curl.is_ok_and(|it| String::from_utf8_lossy(&it.stdout).contains("HTTP2"));
    if output.is_err() || !has_http2 {
        let test = std::thread::current().name().unwrap_or("a test of a proxy").to_owned();
        skipped(&test, "openssl, or curl with HTTP/2, is not installed");
        return None;
    }
    assert!(output.unwrap().status.success());
    let both = [cert, key].map(|file| std::fs::read(file).unwrap()).concat();
    std::fs::write(certificate.file("both"), both).unwrap();
    Some(certificate)
}

/// Returns curl, with the certificate and the address of the proxy.
fn curl(proxy: &Proxy, certificate: &Certificate, args: &[&str]) -> Command {
    let port = proxy.addr.port();
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "120", "--cacert", &certificate.file("cert")]);
    command.args(["--resolve", &format!("{NAME}:{port}:127.0.0.1")]).args(args);
    command
}

fn url(proxy: &Proxy, path: &str) -> String {
    format!("https://{NAME}:{}{path}", proxy.addr.port())
}

fn calls_over_tls_and_http2_reach_the_server(kind: Kind) {
    let Some(certificate) = certificate() else { return };
    let server = Server::in_memory(&["--allow-host", NAME]);
    let Some(proxy) = Proxy::with(kind, server.addr(), Some(&certificate), &[]) else { return };
    let large = certificate.file("large");
    std::fs::write(&large, " ".repeat((8 << 20) + 1)).unwrap();
    let keys = url(&proxy, "/v1/pools/default/keys");
    for (protocol, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        for tls in ["1.2", "1.3"] {
            let call = |args: &[&str]| {
                let common = ["-w", "\n%{http_version} %{http_code}", protocol, "--tls-max", tls];
                let output =
                    curl(&proxy, &certificate, &[&common, args].concat()).output().unwrap();
                let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success(), "{args:?}: {stderr}");
                let text = String::from_utf8(output.stdout).unwrap();
                let (body, last) = text.rsplit_once('\n').unwrap();
                let (found, status) = last.split_once(' ').unwrap();
                assert_eq!(found, version);
                let body: Value = serde_json::from_str(body).unwrap_or_else(|_| json!(body));
                (status.parse::<u16>().unwrap(), body)
            };
            let content = ["-H", "content-type: application/json"];
            let (status, body) = call(&[&content[..], &["-d", "{\"count\": 2}", &keys]].concat());
            assert_eq!((status, body["keys"].as_array().unwrap().len()), (201, 2), "{body}");
            let (status, body) = call(&[&keys.replace("default", "d%65fault")]);
            assert_eq!((status, body["keys"].is_array()), (200, true), "{body}");
            // Caddy can close the connection or the stream of a client that still sends.
            if kind != Kind::Caddy {
                let data = format!("@{large}");
                let args = [&content[..], &["--data-binary", &data, &keys]].concat();
                let (status, body) = call(&args);
                assert_eq!((status, &body["code"]), (413, &json!("too_large")), "{body}");
            }
        }
    }
    let metrics = server.client().ask("GET /metrics").body;
    assert!(metrics.contains("keypeg_keys{state=\"available\"} 8\n"), "{metrics}");
}

fn a_request_whose_stream_was_reset_is_abandoned(kind: Kind) {
    let Some(certificate) = certificate() else { return };
    let server = Server::in_memory(&["--allow-host", NAME]);
    let Some(proxy) = Proxy::with(kind, server.addr(), Some(&certificate), &[]) else { return };
    let (leases, events) = (url(&proxy, "/v1/pools/default/leases"), "/v1/pools/default/events");
    // Two streams of one connection: the first ends with its time limit, and curl resets it.
    let wait = |limit: &str| {
        let args = ["--http2", "-m", limit, "-H", "prefer: wait=300", "-X", "POST", &leases];
        let mut command = curl(&proxy, &certificate, &args);
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut leaving = wait("100");
    until_waiting(&server, 1);
    let staying = wait("100");
    until_waiting(&server, 2);
    leaving.kill().unwrap();
    leaving.wait().unwrap();
    until_waiting(&server, 1);
    generate(&server);
    let output = staying.wait_with_output().unwrap();
    let grant: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(grant["key"].is_string(), "{grant}");
    // A time limit resets the stream, not the connection.
    let args = ["--http2", "-m", "1", "-H", "prefer: wait=300", "-X", "POST", &leases];
    let ended = curl(&proxy, &certificate, &args).output().unwrap();
    assert_eq!(ended.status.code(), Some(28), "{ended:?}");
    until_waiting(&server, 0);
    // Events arrive at once.
    let mut command = curl(&proxy, &certificate, &["--http2", "-N", &url(&proxy, events)]);
    let mut stream = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(stream.stdout.take().unwrap()).lines();
    let mut until = |text: &str| {
        while !lines.next().expect("the stream goes on").unwrap().contains(text) {}
    };
    until("event: resync");
    generate(&server);
    until("event: generated");
    stream.kill().unwrap();
    stream.wait().unwrap();
    eventually("the stream ends with its client", || {
        let metrics = server.client().ask("GET /metrics").body;
        metrics.contains("\nkeypeg_followers 0\n").then_some(())
    });
}
