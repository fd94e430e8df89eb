//! Tables of valid, invalid and unusual requests for every call of the fast path: the fast path and
//! hyper answer them equally, count them equally and write the same audit log.

use super::{Answer, CLOSING_REQUEST, Connection, PoolNames, Servers, Via, masked, request};
use crate::support::tokens::Tokens;
use crate::support::{Server, TempDir};
use serde_json::json;

const ACQUIRE: &str = "POST /v1/pools/<pool>/leases";
const RELEASE: &str = "POST /v1/pools/<pool>/leases/<lease>/release";
const RENEW: &str = "POST /v1/pools/<pool>/leases/<lease>/renew";
const KEEP: &str = "POST /v1/pools/<pool>/keys/<key>/keepalive";
pub(super) const CALLS: [(&str, &str); 4] =
    [(ACQUIRE, "201"), (RELEASE, "204"), (RENEW, "200"), (KEEP, "200")];
const VERIFY: &str = "POST /v1/pools/<pool>/verify";
const JSON: &str = "Content-Type: application/json\r\n";

pub(super) type Case = (String, Vec<u8>, &'static str);

pub(super) fn case(line: &str, headers: &str, body: &str, status: &'static str) -> Case {
    (format!("{line} {headers:?} {body:.40}"), request(line, headers, body), status)
}

/// Returns a case whose text is the whole request.
fn raw(text: &str, status: &'static str) -> Case {
    (format!("{text:.200?}"), text.as_bytes().to_vec(), status)
}

/// Runs a case on every server; returns its answers and that to [`CLOSING_REQUEST`], which shows
/// whether the connection is still open. That request is sent `pipelined`, or after the first
/// answer. Each case has a new pool, but where the servers have tokens, it uses `ci`.
#[track_caller]
fn run(
    servers: &Servers,
    index: usize,
    case: &Case,
    pipelined: bool,
    has_tokens: bool,
) -> Vec<Answer> {
    let (what, bytes, status) = case;
    let answers = servers.assert_same(what, |via, server| {
        let client = &mut server.client();
        let names = if has_tokens {
            let x = || "x".to_owned();
            PoolNames { pool: "ci".into(), key: x(), lease: x(), ended: x() }
        } else {
            let policy = json!({ "max_hold_seconds": 600 });
            PoolNames::create(client, &format!("c{index}-{pipelined}"), &policy)
        };
        let bytes = via.bytes(&names.fill(bytes));
        let mut connection = Connection::on(server.addr(), via);
        if pipelined {
            connection.send(&[&bytes, CLOSING_REQUEST.as_bytes()].concat());
            return connection.rest();
        }
        connection.send(&bytes);
        let first = connection.read_answer().ok().flatten();
        connection.send(CLOSING_REQUEST.as_bytes());
        first.into_iter().chain(connection.rest()).collect()
    });
    let first = answers.first().map_or("", |answer| &answer.status);
    assert_eq!(first.split(' ').nth(1).unwrap_or("none"), *status, "{what}: {answers:?}");
    answers
}

#[track_caller]
pub(super) fn run_all(servers: &Servers, cases: &[Case]) -> usize {
    for (index, case) in cases.iter().enumerate() {
        for pipelined in [false, true] {
            run(servers, index, case, pipelined, false);
        }
    }
    servers.assert_same("the counters", |_, server| counters(server));
    cases.len()
}

/// Returns the counters that a tested request changes, without those that the test's own requests
/// change.
fn counters(server: &Server) -> Vec<String> {
    let text = server.client().ask("GET /metrics").body;
    let starts =
        ["keypeg_http_requests_total{", "keypeg_refusals_total{", "keypeg_keys{", "keypeg_audit"];
    let is_counter = |line: &&str| starts.iter().any(|start| line.starts_with(start));
    let is_comparable = |line: &&str| {
        !line.contains("\"ops\"") && !line.contains("route=\"leases\",status=\"2xx\"")
    };
    let is_of_cases =
        |line: &&str| !line.contains("state=\"available\"") && !line.contains("state=\"leased\"");
    text.lines()
        .filter(is_counter)
        .filter(is_comparable)
        .filter(is_of_cases)
        .map(Into::into)
        .collect()
}

fn valid_requests() -> Vec<Case> {
    let mut cases = Vec::new();
    for (line, status) in CALLS {
        for (headers, body) in [
            ("", ""),
            ("", "{}"),
            ("", " {} \n"),
            ("Content-Length: 0\r\n", ""),
            ("Content-Type: text/plain\r\nContent-Length: 0\r\n", ""),
            ("Content-Encoding: gzip\r\n", ""),
            ("Connection: keep-alive\r\n", ""),
            ("Connection: Keep-Alive\r\n", "{}"),
            ("Connection: close\r\n", "{}"),
            ("Connection: x, CLOSE\r\n", ""),
            ("Connection: te\r\nConnection: keep-alive\r\n", ""),
            ("Accept: */*\r\nUser-Agent: x\r\nX-\u{7e}: \u{e4}\t \r\n", "{}"),
            ("Trailer: x\r\n", ""),
            ("Upgrade: h2c\r\n", ""),
            ("Sec-Fetch-Site: same-origin\r\n", ""),
            ("Transfer-Encoding: chunked\r\n", ""),
            ("Expect: 100-continue\r\n", ""),
            ("Expect: 200-ok\r\n", "{}"),
            ("Prefer: respond-async\r\n", ""),
            ("Authorization: Bearer x\r\n", ""),
            ("Authorization: Bearer x\r\nAuthorization: Bearer y\r\n", ""),
        ] {
            let mut case = case(line, headers, body, status);
            if headers.starts_with("Transfer") {
                case.1.extend(b"0\r\n\r\n");
            }
            cases.push(case);
        }
    }
    cases.extend([
        case(ACQUIRE, "", r#"{"ttl_seconds":30,"holder":"job-7"}"#, "201"),
        case(ACQUIRE, "", r#"{"wait_seconds":0,"holder":""}"#, "201"),
        case(ACQUIRE, "", r#"{"wait_seconds":0.5}"#, "201"),
        case(ACQUIRE, "", r#"{"holder":"\u00e4\ud83d\ude00 \"\\ /"}"#, "201"),
        case(ACQUIRE, "Prefer: wait=1\r\n", "", "201"),
        case(ACQUIRE, "Prefer: wait=1\r\n", r#"{"wait_seconds":0}"#, "201"),
        case(ACQUIRE, "Idempotency-Key: a\r\n", "", "201"),
        case(RELEASE, "Idempotency-Key: a\r\n", "", "204"),
        case(RELEASE, "", r#"{"rest_seconds":1.5,"quarantine":false,"reason":"429"}"#, "204"),
        case(RELEASE, "", r#"{"quarantine":true,"reason":"401"}"#, "204"),
        case(VERIFY, "", r#"{"key":"unknown"}"#, "200"),
        case(VERIFY, "", r#"{"key":"\u00e4 \" \\ /"}"#, "200"),
        case(VERIFY, "Accept: x\r\n", r#" {"key":"unknown"} "#, "200"),
        case(&format!("{VERIFY}?states=available"), "", r#"{"key":"unknown"}"#, "200"),
        case(RENEW, "", r#"{"ttl_seconds":60}"#, "200"),
        case(RENEW, "Expect: 100-continue\r\n", r#"{"ttl_seconds":60}"#, "100"),
    ]);
    cases
}

/// Requests that are refused for their target, method, headers or body.
fn invalid_requests() -> Vec<Case> {
    let mut cases = Vec::new();
    for (line, success) in CALLS {
        for pool in ["nope", "Bad", "d%20efault", "", "a_b.c-d", "-a", ".", "..", &"a".repeat(65)] {
            let line = line.replace("<pool>", pool);
            cases.push(case(&line, "", "", "404"));
            cases.push(case(&line, "", "{", "404"));
        }
        for end in ["/", "//", "/x", "%20", "/..", "\u{e4}"] {
            cases.push(case(&format!("{line}{end}"), "", "", "404"));
        }
        for query in ["?", "?a=b", "?wait=1#f"] {
            let status = if query == "?" { success } else { "422" };
            cases.push(case(&format!("{line}{query}"), "", "", status));
        }
        cases.push(case(&line.replace("/v1", "//v1"), "", "", "404"));
        cases.push(case(&line.replace("/v1/pools", "/v1//pools"), "", "", "404"));
        cases.push(case(&line.replace("pools/", "POOLS/"), "", "", "404"));
        cases.push(case(&line.replace("POST /", "POST http://localhost:1/"), "", "", "20"));
        cases.push(case(&line.replace("POST /", "POST http://evil.example/"), "", "", "421"));
        cases.push(case(&line.replace("POST", "OPTIONS"), "", "", "204"));
        for method in ["GET", "PUT", "DELETE", "PATCH", "BREW", "post"] {
            cases.push(case(&line.replace("POST", method), "", "", "405"));
        }
        cases.push(case(line, "Sec-Fetch-Site: cross-site\r\n", "{}", "403"));
        for (body, status) in [
            ("{", "400"),
            ("{} x", "400"),
            ("{'a':1}", "400"),
            ("\u{feff}\u{feff}{}", "400"),
            (" \u{feff}{}", "400"),
            ("[]", "422"),
            ("{\"a\":1,\"a\":1}", "400"),
            ("null", "20"),
            ("\u{feff}{}", "20"),
            ("\u{feff} null ", "20"),
            ("   ", "20"),
            ("\u{feff}", "20"),
        ] {
            cases.push(case(line, "", body, status));
        }
        for field in ["x", "count", "ttl_secondS", "\\u0000"] {
            cases.push(case(line, "", &format!("{{\"{field}\":1}}"), "422"));
        }
        for kind in [
            "text/plain",
            "",
            "application/jsonx",
            "application/json\r\nContent-Type: text/plain",
            "\u{e4}",
        ] {
            let text = format!(
                "{line} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 2\r\n\r\n{{}}"
            );
            let twice = kind.contains('\r');
            cases.push(raw(&text, if twice { "20" } else { "415" }));
        }
        cases.push(raw(
            &format!("{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}"),
            "415",
        ));
        cases.push(case(line, "Content-Encoding: gzip\r\n", "{}", "415"));
        cases.push(case(line, "Content-Encoding: identity\r\n", "{}", "20"));
    }
    for lease in ["<ended>", "x", "0", &"z".repeat(26), &"0".repeat(26), "<key>", "<lease>0"] {
        for line in [RELEASE, RENEW] {
            cases.push(case(&line.replace("<lease>", lease), "", "", "410"));
        }
        if lease != "<key>" {
            cases.push(case(&KEEP.replace("<key>", lease), "", "", "404"));
        }
    }
    for body in [
        r#"{"ttl_seconds":0}"#,
        r#"{"ttl_seconds":60.001}"#,
        r#"{"ttl_seconds":"60"}"#,
        r#"{"wait_seconds":301}"#,
        r#"{"wait_seconds":-1}"#,
        r#"{"holder":7}"#,
        r#"{"holder":"\n"}"#,
    ] {
        cases.push(case(ACQUIRE, "", body, "422"));
    }
    for body in ["", "{}", r#"{"key":null}"#, r#"{"key":""}"#, r#"{"key":["x"]}"#] {
        cases.push(case(VERIFY, "", body, "422"));
    }
    cases.push(case(&VERIFY.replace("<pool>", "nope"), "", r#"{"key":"x"}"#, "404"));
    cases.push(case(VERIFY, "If-Match: *\r\n", r#"{"key":"x"}"#, "412"));
    cases.push(case(ACQUIRE, "", r#"{"ttl_seconds":null}"#, "201"));
    cases.push(case(ACQUIRE, "", r#"{"holder":null,"holder":null}"#, "400"));
    cases.push(case(ACQUIRE, "Idempotency-Key:\r\n", "", "422"));
    cases.push(case(RENEW, "", r#"{"ttl_seconds":0}"#, "422"));
    cases.push(case(RENEW, "", r#"{"ttl_seconds":601}"#, "422"));
    cases.push(case(RELEASE, "", r#"{"rest_seconds":604801}"#, "422"));
    cases.push(case(RELEASE, "", r#"{"quarantine":1}"#, "422"));
    cases.push(case(RELEASE, "", r#"{"reason":"\u0000"}"#, "422"));
    cases
}

/// Requests with unusual syntax or size, refused or accepted.
fn unusual_requests() -> Vec<Case> {
    let mut cases = Vec::new();
    for (line, status) in CALLS {
        let with =
            |headers: &str, status| raw(&format!("{line} HTTP/1.1\r\n{headers}\r\n"), status);
        for (headers, status) in [
            ("", "400"),
            ("Host: localhost\r\nHost: localhost\r\n", "400"),
            ("Host: evil.example\r\n", "421"),
            ("Host: localhost.evil.example:8000\r\n", "421"),
            ("Host: ci.localhost:8000\r\n", status),
            ("Host: [::1]:8000\r\nOrigin: http://[0::1]:8000\r\n", status),
            ("Host: localhost:8000\r\nOrigin: http://localhost\r\n", "403"),
            ("Host:\r\nOrigin: http://localhost\r\n", "403"),
            ("Host: a b\r\n", "400"),
            ("Host: \u{e4}\r\n", "400"),
            ("Host:\r\n", status),
            ("Host: [::1]:80\r\n", status),
            ("HOST: LOCALHOST:8000\t \r\n", status),
            ("Host : localhost\r\n", "400"),
            ("Host: localhost\r\n folded\r\n", "400"),
            (" Host: localhost\r\n", "400"),
            ("Host: localhost\nX: y\n", status),
            ("Host: localhost\r\nX:\u{7f}\r\n", "400"),
            ("Host: localhost\r\nX\u{e4}: y\r\n", "400"),
            ("Host: localhost\r\n: y\r\n", "400"),
            ("Host: localhost\r\nX\r\n", "400"),
            ("Host: localhost\r\nContent-Length: +0\r\n", "400"),
            ("Host: localhost\r\nContent-Length: -1\r\n", "400"),
            ("Host: localhost\r\nContent-Length: 0x2\r\n", "400"),
            ("Host: localhost\r\nContent-Length: 0 0\r\n", "400"),
            ("Host: localhost\r\nContent-Length: 0, 0\r\n", "400"),
            ("Host: localhost\r\nContent-Length:\r\n", "400"),
            ("Host: localhost\r\nContent-Length: 18446744073709551616\r\n", "400"),
            ("Host: localhost\r\nContent-Length: 18446744073709551615\r\n", "431"),
            ("Host: localhost\r\nContent-Length: 0\r\nContent-Length: 0\r\n", status),
            ("Host: localhost\r\nContent-Length: 0\r\nContent-Length: 1\r\n", "400"),
            ("Host: localhost\r\nContent-Length:  00000000000000000000000 \r\n", status),
            ("Host: localhost\r\nTransfer-Encoding: gzip\r\n", "400"),
            ("Host: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n", "400"),
        ] {
            cases.push(with(headers, status));
        }
        let zeros = format!("{JSON}Content-Length: 000000002\r\n");
        cases.push(raw(
            &format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n")
                .replace("Host: a", &format!("Host: localhost\r\n{}", zeros.trim_end())),
            status,
        ));
        cases.last_mut().unwrap().1.extend(b"{}");
        for version in ["HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "http/1.1", ""] {
            let text = format!("{line} {version}\r\nHost: localhost\r\n\r\n");
            cases.push(raw(&text, if version == "HTTP/1.0" { "20" } else { "400" }));
        }
        for before in ["\r\n", "\n\r\n\n", "\r", " "] {
            let text = format!("{before}{line} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            cases.push(raw(&text, if before.contains('\n') { status } else { "400" }));
        }
        for headers in [31, 32, 33, 99, 120] {
            let many = "x: y\r\n".repeat(headers - 1);
            cases.push(case(line, &many, "", if headers > 100 { "431" } else { status }));
        }
        for head in [8 << 10, 12 << 10, 16 << 10, 17 << 10, 60 << 10, 70 << 10] {
            let large = format!("x: {}\r\n", "y".repeat(head));
            cases.push(case(line, &large, "", if head > 64 << 10 { "431" } else { status }));
        }
        for body in [4_095, 4_096, 4_097, 16 << 10, 1 << 20] {
            cases.push(case(line, "", &format!("{{}}{}", " ".repeat(body - 2)), status));
        }
        cases.push(case(line, "", &" ".repeat((1 << 20) + 1), "413"));
    }
    cases
}

/// Replaces the status `20` by the success status of the call.
pub(super) fn with_success_status(cases: Vec<Case>) -> Vec<Case> {
    let replace = |(what, bytes, status): Case| {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let own = if text.contains("/release ") {
            "204"
        } else if text.contains("/leases ") {
            "201"
        } else {
            "200"
        };
        let status = match status {
            "20" => own,
            status => status,
        };
        (what, bytes, status)
    };
    cases.into_iter().map(replace).collect()
}

#[test]
fn valid_requests_are_answered_equally() {
    println!("{} cases", run_all(&Servers::new(&[]), &with_success_status(valid_requests())));
}

#[test]
fn invalid_requests_are_refused_equally() {
    println!("{} cases", run_all(&Servers::new(&[]), &with_success_status(invalid_requests())));
}

#[test]
fn unusual_requests_are_accepted_or_refused_equally() {
    println!("{} cases", run_all(&Servers::new(&[]), &with_success_status(unusual_requests())));
}

/// Refusals by the state of a pool.
#[test]
fn an_acquire_without_a_key_is_refused_equally() {
    let servers = Servers::new(&["--max-queued", "64"]);
    for (pool, policy, keys, status) in [
        ("empty", json!({}), 0, "404"),
        ("leased", json!({}), 1, "404"),
        ("resting", json!({ "rest_seconds": 60 }), 1, "404"),
    ] {
        let answers = servers.assert_same(pool, |via, server| {
            let client = &mut server.client();
            client.send(&format!("PUT /v1/pools/{pool}"), &policy).is(201, &json!({}));
            if keys > 0 {
                client.ask(&format!("POST /v1/pools/{pool}/keys"));
            }
            let acquire = via.bytes(&request(&ACQUIRE.replace("<pool>", pool), "", ""));
            let mut connection = Connection::on(server.addr(), via);
            let lease = (keys > 0).then(|| {
                let request = format!("POST /v1/pools/{pool}/leases");
                client.try_send(&request, &[("te", "trailers")], "").unwrap().text("id")
            });
            let mut answers = Vec::new();
            let names = PoolNames {
                pool: pool.into(),
                key: String::new(),
                lease: lease.unwrap_or_default(),
                ended: String::new(),
            };
            let mut requests = vec![acquire.clone()];
            if pool == "resting" {
                requests.insert(0, via.bytes(&names.fill(&request(RELEASE, "", ""))));
            }
            if pool == "leased" {
                requests.push(via.bytes(&names.fill(&request(RENEW, "", r#"{"ttl_seconds":1}"#))));
            }
            for request in requests {
                connection.send(&request);
                answers.push(connection.read_answer().unwrap().unwrap());
            }
            answers
        });
        assert!(answers.iter().any(|answer| answer.status.contains(status)), "{answers:?}");
        let has_retry_after = answers
            .iter()
            .any(|answer| answer.headers.contains(&("retry-after".into(), "seconds".into())));
        assert_eq!(has_retry_after, pool != "empty", "{answers:?}");
    }
}

#[test]
fn tokens_are_checked_equally_and_the_audit_logs_are_equal() {
    let tokens = Tokens::new();
    let right = tokens.add("right", "*", &["lend"], &[]);
    let other = tokens.add("other", "other-*", &["admin"], &[]);
    let reader = tokens.add("reader", "*", &["read"], &[]);
    let limited = tokens.add("limited", "*", &["lend"], &["--requests-per-second", "1"]);
    let expired = tokens.add("expired", "*", &["lend"], &["--expires-at", "2020-01-01T00:00:00Z"]);
    let admin = tokens.add("admin", "*", &["admin"], &[]);
    let [flag, file] = tokens.args();
    let dir = TempDir::new();
    let log = |via: Via| dir.path().join(format!("{via:?}"));
    let mut servers = Servers {
        servers: Via::ALL
            .map(|via| {
                let log = log(via);
                (via, Server::in_memory(&[&flag, &file, "--audit", log.to_str().unwrap()]))
            })
            .into(),
    };
    for (_, server) in &servers.servers {
        server.client().with(&admin, "PUT /v1/pools/ci").is(201, &json!({}));
        for _ in 0..9 {
            server.client().with(&admin, "POST /v1/pools/ci/keys").is(201, &json!({}));
        }
    }
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let wrong = format!("kpt_{}", "0".repeat(64));
    for (line, success) in CALLS {
        let authorized = match success {
            "201" => "201",
            _ if line == KEEP => "404",
            _ => "410",
        };
        for (headers, status) in [
            (String::new(), "401"),
            (bearer(&right), authorized),
            (bearer(&right).replace("Bearer ", "bEARER   "), authorized),
            (bearer(&right).replace("Authorization", "AUTHORIZATION"), authorized),
            (bearer(&right).replace("Bearer", "Basic"), "401"),
            (bearer(&right).replace("Bearer ", "Bearer\t"), "401"),
            (bearer(&other), "403"),
            (bearer(&reader), "403"),
            (bearer(&wrong), "401"),
            (bearer(&expired), "401"),
            (bearer(""), "401"),
            (bearer(&right).repeat(2), "401"),
        ] {
            run(&servers, 0, &case(line, &headers, "", status), false, true);
        }
    }
    for status in ["410", "429"] {
        run(&servers, 0, &case(RENEW, &bearer(&limited), "", status), false, true);
    }
    // A client that sends many wrong tokens is rate limited, and its connection is closed.
    let guesses = servers.assert_same("guesses", |via, server| {
        let guess = via.bytes(&request("POST /v1/pools/ci/leases", &bearer(&wrong), ""));
        loop {
            let mut connection = Connection::on(server.addr(), Via::FastPath);
            connection.send(&guess);
            let answer = connection.read_answer().unwrap().unwrap();
            if !answer.status.contains("401") {
                assert!(connection.read_answer().unwrap().is_none(), "closed");
                break answer;
            }
        }
    });
    assert!(guesses.status.contains("429"), "{guesses:?}");
    for (_, server) in &mut servers.servers {
        server.terminate();
    }
    let lines = servers.assert_same("the audit log", |via, _| {
        let text = std::fs::read_to_string(log(via)).unwrap();
        // The number of guesses depends on time, and the first request of a connection is not
        // compared.
        let lines = text.lines().filter(|line| {
            !line.contains("\"unauthorized\"") && !line.contains("\"pool\":\"default\"")
        });
        lines.map(masked).collect::<Vec<_>>()
    });
    assert!(lines.len() > 20, "{lines:?}");
}
