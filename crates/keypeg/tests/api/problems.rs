//! Problem pages: the `type` of every problem is a path of the server that explains it.

use crate::support::tokens::Tokens;
use crate::support::{Answer, Server};
use keypeg_client::{Code, routes};

/// Fetches the page at the `type` of a problem, on the same server and without a token.
#[track_caller]
fn page_of(server: &Server, problem: &Answer) -> Answer {
    let page = server.client().ask(&format!("GET {}", problem.text("type")));
    assert_eq!(page.status, 200, "{problem:?}");
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"), "{problem:?}");
    page
}

#[test]
fn the_type_of_each_returned_problem_resolves() {
    let server = Server::in_memory(&[]);
    for (request, code) in [
        ("GET /nope", Code::NotFound),
        ("PUT /v1/pools", Code::MethodNotAllowed),
        ("GET /v1/pools/nope", Code::UnknownPool),
        ("GET /v1/pools/default/keys/x", Code::UnknownKey),
        ("GET /v1/pools/default/keys?limit=0", Code::Invalid),
        ("GET /v1/pools/default/keys?cursor=x", Code::BadCursor),
        ("DELETE /v1/pools/default", Code::DefaultPool),
        ("POST /v1/pools/default/leases", Code::NoKeyAvailable),
        ("POST /v1/pools/default/leases/x/release", Code::LeaseEnded),
    ] {
        let problem = server.client().ask(request);
        assert_eq!(problem.text("code"), code.as_str(), "{request}");
        let page = page_of(&server, &problem).body;
        assert!(page.contains(code.title()) && page.contains(code.as_str()), "{page}");
    }
}

#[test]
fn each_code_has_a_page_and_other_words_have_none() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let index = client.ask("GET /problems");
    assert_eq!(index.status, 200);
    for code in Code::ALL {
        let path = routes::problem(code);
        assert!(index.body.contains(&format!("<a href=\"{path}\">")), "{path}");
        let page = client.ask(&format!("GET {path}"));
        assert_eq!(page.status, 200, "{path}");
        for text in [code.title(), code.as_str(), &code.status().to_string()] {
            assert!(page.body.contains(text), "{path}: {text}");
        }
        let head = client.ask(&format!("HEAD {path}"));
        assert_eq!((head.status, &*head.body), (200, ""), "{path}");
    }
    for path in ["/problems/nope", "/problems/", "/problems/internal/", "/problems/Internal"] {
        client.ask(&format!("GET {path}")).problem(404, "not_found");
        client.ask(&format!("PUT {path}")).problem(404, "not_found");
    }
    client.ask("POST /problems/internal").problem(405, "method_not_allowed");
}

/// A client that is refused for its token must still be able to read why.
#[test]
fn problem_pages_require_no_access_token() {
    let tokens = Tokens::new();
    tokens.add("reader", "*", &["read"], &[]);
    let server = Server::in_memory(&tokens.args().each_ref().map(String::as_str));
    let problem = server.client().ask("GET /v1/pools");
    assert_eq!(problem.text("code"), "unauthorized");
    page_of(&server, &problem);
    assert_eq!(server.client().ask("GET /problems").status, 200);
    server.client().ask("PUT /problems/nope").problem(404, "not_found");
}

/// Pages count as operations of the server, as `/docs` does.
#[test]
fn problem_pages_are_counted_as_server_operations() {
    let server = Server::in_memory(&[]);
    let count = || {
        let metrics = server.client().ask("GET /metrics").body;
        let line = metrics.lines().find(|line| {
            line.starts_with("keypeg_http_requests_total{")
                && line.contains("\"ops\"")
                && line.contains("\"2xx\"")
        });
        let line = line.unwrap_or_else(|| panic!("{metrics}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let before = count();
    server.client().ask("GET /problems/internal");
    // The page, and the first reading of the metrics.
    assert!((count() - before - 2.0).abs() < 0.5);
}
