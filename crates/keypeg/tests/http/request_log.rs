//! The lines of requests in the log: what each says, on either path, and what none may say.

use crate::support::tokens::Tokens;
use crate::support::{Answer, Server, TempDir, eventually, keypeg};
use serde_json::{Value, json};
use std::path::Path;

/// Returns the objects of a log. Each line must be one.
fn objects(log: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(log).unwrap();
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
    // The last line can be incomplete while the server writes it.
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    complete.lines().map(parse).collect()
}

/// Waits for the line of the request that got this answer.
fn line_of(log: &Path, answer: &Answer) -> Value {
    let id = answer.header("x-request-id").unwrap();
    eventually("the line of a request", || {
        objects(log).into_iter().find(|line| line["request_id"] == id)
    })
}

#[test]
fn each_request_has_a_line_with_its_operation_and_no_secret() {
    let (tokens, dir) = (Tokens::new(), TempDir::new());
    let token = tokens.add("ci", "default", &["admin"], &[]);
    let log = dir.path().join("log");
    let args = ["--ephemeral", "--log-format", "json", "--tokens"];
    let mut command = keypeg(&args);
    command.arg(tokens.path()).env("KEYPEG_LOG", "info,keypeg::request=debug");
    let server = Server::logged(&mut command, &log);
    let client = &mut server.client();
    let bearer = format!("Bearer {token}");
    let mut ask = |request: &str, body: &str| {
        let json = ("content-type", "application/json");
        let headers = [("authorization", &*bearer), json];
        client.try_send(request, &headers[..if body.is_empty() { 1 } else { 2 }], body).unwrap()
    };
    let pool = "/v1/pools/default";
    let added = ask(&format!("POST {pool}/keys"), "{}");
    let secret = added.json()["keys"][0]["key"].as_str().unwrap().to_owned();
    let granted = ask(&format!("POST {pool}/leases"), "{\"holder\":\"s3cret-holder\"}");
    let lease = granted.json()["id"].as_str().unwrap().to_owned();
    let verified = ask(&format!("POST {pool}/verify"), &json!({ "key": secret }).to_string());
    let released = ask(&format!("POST {pool}/leases/{lease}/release"), "{}");
    let again = ask(&format!("POST {pool}/leases/{lease}/release"), "{}");
    let listed = ask(&format!("GET {pool}/keys?state=leased&limit=3&x={secret}"), "");
    let unknown = ask(&format!("GET /v1/{secret}"), "");
    let other_pool = ask("GET /v1/pools/s3cret-pool%20/keys", "");
    for (answer, method, operation, pool, status) in [
        (&added, "POST", "addKeys", Some("default"), 201),
        (&granted, "POST", "acquire", Some("default"), 201),
        (&verified, "POST", "verify", Some("default"), 200),
        (&released, "POST", "release", Some("default"), 204),
        (&again, "POST", "release", Some("default"), 410),
        (&listed, "GET", "listKeys", Some("default"), 422),
        (&unknown, "GET", "none", None, 404),
        (&other_pool, "GET", "listKeys", None, 403),
    ] {
        let line = line_of(&log, answer);
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(line["method"], method, "{line}");
        assert_eq!(line["operation"], operation, "{line}");
        assert_eq!(line.get("pool").and_then(Value::as_str), pool, "{line}");
        assert_eq!(line["status"], status, "{line}");
        assert_eq!((&line["message"], &line["level"]), (&json!("request"), &json!("DEBUG")));
        assert!(line["duration_us"].is_u64() && line["address"] == "127.0.0.1", "{line}");
        if status < 300 {
            assert_eq!(line["token"], "ci", "{line}");
        }
    }
    let refused = server.client().with("kpt_wr0ng", "GET /v1/pools");
    assert_eq!(line_of(&log, &refused)["status"], 401);
    let text = std::fs::read_to_string(&log).unwrap();
    for secret in [&*secret, &lease, &token, "s3cret", "kpt_wr0ng"] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
}

#[test]
fn a_request_whose_client_disconnects_has_a_line_without_a_status() {
    let dir = TempDir::new();
    let log = dir.path().join("log");
    let mut command = keypeg(&["--ephemeral", "--log-format", "json"]);
    let server = Server::logged(command.env("KEYPEG_LOG", "debug"), &log);
    let mut waiting = server.client();
    let body = "{\"wait_seconds\":60}";
    let head = "POST /v1/pools/default/leases HTTP/1.1\r\nhost: a\r\n\
                content-type: application/json\r\n";
    let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    waiting.write(request.replace("host: a", "host: localhost").as_bytes()).unwrap();
    let waits = || server.client().ask("GET /v1/pools/default").json()["waiting"] == 1;
    eventually("it waits", || waits().then_some(()));
    drop(waiting);
    eventually("its line", || {
        let lines = objects(&log);
        lines.into_iter().find(|line| line["message"] == "request without an answer")
    });
}

/// By default the log has no line for a request.
#[test]
fn the_format_of_the_log_applies_to_a_failed_start_too() {
    let dir = TempDir::new();
    let log = dir.path().join("log");
    let server = Server::logged(keypeg(&["--ephemeral"]).env("KEYPEG_LOG_FORMAT", "json"), &log);
    server.client().ask("GET /v1/pools").is(200, &json!({}));
    assert!(objects(&log).iter().all(|line| line["target"] != "keypeg::request"));
    let address = server.addr().to_string();
    for (args, says) in [
        (&["--ops-listen", &*address][..], "is in use by another process"),
        (&["--tls-cert", "c"], "--tls-cert is given without --tls-key"),
    ] {
        let failed = dir.path().join("failed");
        let mut command = keypeg(args);
        command.args(["--ephemeral", "--log-format", "json"]);
        let status = Server::try_logged(&mut command, &failed).unwrap_err();
        assert!(!status.success());
        let lines = objects(&failed);
        let last = lines.last().unwrap();
        assert!(last["message"].as_str().unwrap().contains(says), "{last}");
        assert_eq!((&last["level"], &last["target"]), (&json!("ERROR"), &json!("keypeg")));
        std::fs::remove_file(&failed).unwrap();
    }
}
