//! What a browser is kept from: pages of other sites, names that were made to lead here, frames.

use crate::support::{Server, TempDir};
use keypeg_client::routes::ROUTES;
use serde_json::json;

#[test]
fn a_name_that_was_made_to_lead_here_is_refused() {
    let server = Server::in_memory(&["--allow-host", "keys.example,keypeg"]);
    for (host, taken) in [
        ("localhost", true),
        ("LocalHost:1", true),
        ("127.0.0.1:8000", true),
        ("[::1]:8000", true),
        ("192.0.2.7", true),
        ("keys.example:443", true),
        ("keypeg", true),
        ("", true),
        ("evil.example", false),
        ("localhost.evil.example", false),
        ("127.0.0.1.evil.example", false),
    ] {
        for request in [
            "GET /v1/pools",
            "POST /keys",
            "POST /v1/pools/default/leases",
            "GET /docs",
            "GET /livez",
        ] {
            let head = format!("{request} HTTP/1.1\r\nhost: {host}\r\n\r\n");
            let answer = server.client().raw(head.as_bytes()).unwrap();
            if taken {
                assert!(answer.status < 300, "{host}: {answer:?}");
            } else {
                answer.problem(421, "misdirected");
            }
        }
    }
    let absolute = "GET http://evil.example/v1/pools HTTP/1.1\r\nhost: localhost\r\n\r\n";
    server.client().raw(absolute.as_bytes()).unwrap().problem(421, "misdirected");
    let pool = server.client().ask("GET /v1/pools/default");
    pool.is(200, &json!({ "total": 8 }));
}

/// No page may read an answer, or be told that it could; and no answer is anything but what it says.
#[test]
fn no_answer_lets_another_site_in() {
    let server = Server::in_memory(&[]);
    for request in [
        "GET /v1/pools",
        "GET /v1/pools/nope",
        "POST /v1/pools/default/keys",
        "DELETE /livez",
        "GET /nope",
        "GET /docs",
        "GET /docs/style.css",
        "GET /openapi.json",
        "GET /metrics",
        "OPTIONS /v1/pools/default/keys",
        "GET /api/v1/random_api_key/",
        "GET /keys/x",
    ] {
        let asks = [
            ("origin", "https://evil.example"),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization"),
        ];
        let answer = server.client().try_send(request, &asks, "").unwrap();
        let opened = answer.headers.iter().find(|(name, _)| name.starts_with("access-control-"));
        assert_eq!(opened, None, "{request}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{request}");
        if request.starts_with("POST") || request.starts_with("DELETE") {
            continue;
        }
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'"), "{request}: {policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{request}: {policy}");
    }
}

/// Heads that no handler sees are refused in words of ours too.
#[test]
fn what_cannot_be_read_lets_no_site_in_either() {
    let server = Server::in_memory(&[]);
    let long = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(70_000));
    for (head, status) in [("GET / HTTP/9.9\r\n\r\n", 400), ("\0\r\n\r\n", 400), (&long, 431)] {
        let answer = server.client().raw(head.as_bytes()).unwrap();
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{answer:?}");
        let policy = answer.header("content-security-policy").unwrap();
        assert_eq!(policy, "default-src 'none'; frame-ancestors 'none'");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    }
}

/// Every page there is: nothing that is written in it runs, nothing comes from elsewhere, and the
/// browser is told so.
#[test]
fn no_page_runs_what_is_not_a_file_of_ours() {
    let server = Server::in_memory(&[]);
    let mut pages = Vec::new();
    for route in ROUTES.iter().filter(|route| route.method == "GET" && !route.path.contains('{')) {
        let answer = server.client().ask(&format!("GET {}", route.path));
        if !answer.header("content-type").is_some_and(|kind| kind.contains("html")) {
            continue;
        }
        pages.push(route.path);
        let policy = answer.header("content-security-policy").unwrap();
        let allowed: Vec<_> = policy.split("; ").collect();
        assert!(allowed.contains(&"default-src 'none'"), "{policy}");
        for hole in ["unsafe-", "data:", "*", "http"] {
            assert!(!policy.contains(hole), "{policy}");
        }
        let page = answer.body.to_ascii_lowercase();
        assert!(page.starts_with("<!doctype html>") && page.len() > 10_000, "{}", route.path);
        let tags = page.split('<').skip(1).map(|rest| rest.split('>').next().unwrap_or_default());
        for tag in tags {
            let name = tag.split(|sign: char| !sign.is_ascii_alphanumeric()).next().unwrap();
            let own = name == "script" && tag.starts_with("script src=\"/");
            let forbidden = ["script", "style", "iframe", "object", "embed", "base", "form"];
            assert!(own || !forbidden.contains(&name), "<{tag}>");
            let mut names = tag.split_ascii_whitespace().skip(1);
            assert!(
                !names.any(|name| name.starts_with("on") || name.starts_with("style=")),
                "<{tag}>"
            );
            for elsewhere in ["javascript:", "=\"//", "=\"data:", "src=\"http"] {
                assert!(!tag.contains(elsewhere), "<{tag}>");
            }
        }
    }
    assert!(pages.contains(&"/docs"), "{pages:?}");
}

/// A holder or a reason is words from somebody else: they come back as JSON, which no browser runs,
/// and on no page.
#[test]
fn words_of_others_are_inert() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let words = "<script>alert(1)</script>\u{2028}'\"--></style>";
    client.ask("POST /keys").is(201, &json!({}));
    let lease = client.send("POST /v1/pools/default/leases", &json!({ "holder": words }));
    let id = lease.json()["key_id"].as_str().unwrap().to_owned();
    let shown = client.ask(&format!("GET /v1/pools/default/keys/{id}"));
    assert_eq!(shown.header("content-type"), Some("application/json"));
    assert_eq!(shown.json()["lease"]["holder"], words);
    let release = format!("POST /v1/pools/default/leases/{}/release", lease.text("id"));
    client.send(&release, &json!({ "quarantine": true, "reason": words }));
    for page in ["GET /docs", "GET /metrics", "GET /openapi.json"] {
        assert!(!client.ask(page).body.contains("alert(1)"), "{page}");
    }
}

/// Memory and files are for nobody else on the machine.
#[test]
fn what_is_kept_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new();
    let log = dir.path().join("audit");
    let server = Server::on(&dir, &["--audit", log.to_str().unwrap()]);
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    let data = dir.path().join("data");
    assert_eq!((mode(&data), mode(&log)), (0o700, 0o600));
    for file in std::fs::read_dir(&data).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
}
