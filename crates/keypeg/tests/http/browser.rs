//! Protection of browsers: cross-site pages, DNS rebinding, frames, and injected markup.

use crate::support::tokens::Tokens;
use crate::support::{Server, TempDir};
use keypeg_client::Code;
use keypeg_client::routes::{self, PROBLEM_ROUTES, ROUTES};
use serde_json::json;

#[test]
fn a_host_name_that_is_not_allowed_is_rejected() {
    let server = Server::in_memory(&["--allow-host", "keys.example,keypeg"]);
    for (host, is_allowed) in [
        ("localhost", true),
        ("LocalHost:1", true),
        ("127.0.0.1:8000", true),
        ("[::1]:8000", true),
        ("192.0.2.7", true),
        ("keys.example:443", true),
        ("keypeg", true),
        ("ci.localhost:8000", true),
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
            if is_allowed {
                assert!(answer.status < 300, "{host}: {answer:?}");
            } else {
                answer.problem(421, "misdirected");
            }
        }
    }
    let absolute = "GET http://evil.example/v1/pools HTTP/1.1\r\nhost: localhost\r\n\r\n";
    server.client().raw(absolute.as_bytes()).unwrap().problem(421, "misdirected");
    let pool = server.client().ask("GET /v1/pools/default");
    pool.is(200, &json!({ "total": 9 }));
}

/// Regression: a server with access tokens refused every name of a proxy or container. A page of
/// another site has no token, so the name does not matter there.
#[test]
fn a_server_with_access_tokens_has_any_name_unless_names_are_given() {
    let tokens = Tokens::new();
    let token = tokens.add("all", "*", &["admin"], &[]);
    let [flag, file] = tokens.args();
    for (more, status) in [(&[][..], 200), (&["--allow-host", "keys.example"], 421)] {
        let args: Vec<_> = [&*flag, &*file].into_iter().chain(more.iter().copied()).collect();
        let server = Server::in_memory(&args);
        for (host, status) in [("keypeg.internal:80", status), ("keys.example", 200)] {
            let head = format!("host: {host}\r\nauthorization: Bearer {token}\r\n\r\n");
            let request = format!("GET /v1/pools HTTP/1.1\r\n{head}");
            let answer = server.client().raw(request.as_bytes()).unwrap();
            assert_eq!(answer.status, status, "{more:?} {host}: {answer:?}");
        }
    }
}

#[test]
fn a_refused_host_is_named_shortened_and_escaped() {
    let server = Server::in_memory(&[]);
    let long = "a".repeat(5_000);
    for (host, named) in [
        ("evil.example:80", "The Host \"evil.example:80\" does not"),
        ("a'b", "The Host \"a'b\" does not"),
        (&long, &*format!("The Host \"{}\" does not", "a".repeat(64))),
    ] {
        let request = format!("GET /livez HTTP/1.1\r\nhost: {host}\r\n\r\n");
        let answer = server.client().raw(request.as_bytes()).unwrap();
        let problem = answer.problem(421, "misdirected");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.starts_with(named), "{detail}");
    }
}

/// No answer has a CORS header, and each has the headers that forbid sniffing and framing.
#[test]
fn no_answer_permits_another_site() {
    let server = Server::in_memory(&[]);
    for request in [
        "GET /v1/pools",
        "GET /v1/pools/nope",
        "POST /v1/pools/default/keys",
        "DELETE /livez",
        "GET /nope",
        "GET /docs",
        "GET /docs/style.css",
        "GET /problems",
        "GET /problems/internal",
        "GET /problems/nope",
        "GET /openapi.json",
        "GET /metrics",
        "OPTIONS /v1/pools/default/keys",
        "GET /api/v1/random_api_key/",
        "GET /keys/x",
    ] {
        let headers = [
            ("origin", "https://evil.example"),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization"),
        ];
        let answer = server.client().try_send(request, &headers, "").unwrap();
        let cors = answer.headers.iter().find(|(name, _)| name.starts_with("access-control-"));
        assert_eq!(cors, None, "{request}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{request}");
        if request.starts_with("POST") || request.starts_with("DELETE") {
            continue;
        }
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'"), "{request}: {policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{request}: {policy}");
    }
}

/// A head that hyper rejects gets the same headers.
#[test]
fn an_unreadable_head_permits_no_other_site() {
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

/// Every HTML page: it has no inline script or style, loads nothing from other hosts, and its
/// policy forbids both.
#[test]
fn no_page_runs_or_loads_foreign_content() {
    let server = Server::in_memory(&[]);
    let mut pages = Vec::new();
    let all_routes = ROUTES.iter().chain(PROBLEM_ROUTES);
    let fixed_paths = all_routes
        .filter(|route| route.method == "GET" && !route.path.contains('{'))
        .map(|route| route.path.to_owned());
    for path in fixed_paths.chain(Code::ALL.map(routes::problem)) {
        let answer = server.client().ask(&format!("GET {path}"));
        if !answer.header("content-type").is_some_and(|kind| kind.contains("html")) {
            continue;
        }
        pages.push(path.clone());
        let policy = answer.header("content-security-policy").unwrap();
        let allowed: Vec<_> = policy.split("; ").collect();
        assert!(allowed.contains(&"default-src 'none'"), "{policy}");
        for hole in ["unsafe-", "data:", "*", "http"] {
            assert!(!policy.contains(hole), "{policy}");
        }
        let page = answer.body.to_ascii_lowercase();
        assert!(page.starts_with("<!doctype html>") && page.len() > 1_000, "{path}");
        let tags = page.split('<').skip(1).map(|rest| rest.split('>').next().unwrap_or_default());
        for tag in tags {
            let name = tag.split(|sign: char| !sign.is_ascii_alphanumeric()).next().unwrap();
            let is_own_script = name == "script" && tag.starts_with("script src=\"/");
            let forbidden = ["script", "style", "iframe", "object", "embed", "base", "form"];
            assert!(is_own_script || !forbidden.contains(&name), "<{tag}>");
            let mut names = tag.split_ascii_whitespace().skip(1);
            assert!(
                !names.any(|name| name.starts_with("on") || name.starts_with("style=")),
                "<{tag}>"
            );
            for foreign in ["javascript:", "=\"//", "=\"data:", "src=\"http"] {
                assert!(!tag.contains(foreign), "<{tag}>");
            }
        }
    }
    assert!(pages.contains(&"/docs".to_owned()), "{pages:?}");
    assert_eq!(pages.len(), 2 + Code::ALL.len(), "{pages:?}");
}

/// A holder or a reason is a text of a client: it is returned in JSON only, which no browser runs,
/// and is on no page.
#[test]
fn texts_of_clients_are_inert() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let text = "<script>alert(1)</script>\u{2028}'\"--></style>";
    client.ask("POST /keys").is(201, &json!({}));
    let lease = client.send("POST /v1/pools/default/leases", &json!({ "holder": text }));
    let id = lease.json()["key_id"].as_str().unwrap().to_owned();
    let shown = client.ask(&format!("GET /v1/pools/default/keys/{id}"));
    assert_eq!(shown.header("content-type"), Some("application/json"));
    assert_eq!(shown.json()["lease"]["holder"], text);
    let release = format!("POST /v1/pools/default/leases/{}/release", lease.text("id"));
    client.send(&release, &json!({ "quarantine": true, "reason": text }));
    for page in ["GET /docs", "GET /metrics", "GET /openapi.json"] {
        assert!(!client.ask(page).body.contains("alert(1)"), "{page}");
    }
}

/// What needs a store that keeps its data: see CONTRIBUTING.md.
mod durability {
    use super::{Server, TempDir};

    /// No other user of the machine can read the files or the memory.
    #[test]
    fn stored_data_is_private() {
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
}
