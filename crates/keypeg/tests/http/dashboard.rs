//! The dashboard as files: who gets the page, how a browser keeps its files, and what it may load; and
//! the compressed form of every embedded file that has one.
//! Its behaviour in a browser is tested in `ui/test`.

use crate::support::{Answer, Server, TempDir};
use keypeg_client::routes::DASHBOARD_ROUTES;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;

const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

/// Asks with a new connection and with these headers.
fn ask(server: &Server, request: &str, headers: &[(&str, &str)]) -> Answer {
    server.client().try_send(request, headers, "").unwrap()
}

/// Returns the page and the paths of the files that it loads.
fn page_and_files(server: &Server) -> (String, Vec<String>) {
    let page = ask(server, "GET /", &[("accept", BROWSER)]).body;
    let links = page.split('"').filter(|part| part.starts_with("/ui/"));
    let links: Vec<_> = links.map(str::to_owned).collect();
    (page, links)
}

#[test]
fn a_browser_gets_the_page_and_any_other_client_gets_links() {
    let server = Server::in_memory(&[]);
    for (accept, is_page) in [
        (BROWSER, true),
        ("text/html", true),
        ("TEXT/HTML;q=0.9", true),
        ("application/xhtml+xml, text/html, application/json", true),
        ("application/json, text/html", false),
        ("application/json", false),
        ("*/*", false),
        ("text/plain", false),
        ("", false),
    ] {
        let answer = ask(&server, "GET /", &[("accept", accept)]);
        let (content_type, start) = if is_page {
            ("text/html; charset=utf-8", "<!doctype html>")
        } else {
            ("application/json", "{")
        };
        assert_eq!(answer.header("content-type"), Some(content_type), "{accept}");
        assert!(answer.body.starts_with(start), "{accept}: {}", answer.body);
        assert_eq!(answer.header("vary"), Some("accept"), "{accept}");
    }
    server.client().ask("GET /").is(200, &json!({ "name": "keypeg" }));
    ask(&server, "POST /", &[("accept", BROWSER)]).problem(405, "method_not_allowed");
}

#[test]
fn the_page_is_read_again_and_its_files_are_kept() {
    let server = Server::in_memory(&[]);
    let (page, files) = page_and_files(&server);
    assert_eq!(files.len(), 3, "{page}");
    for path in files.iter().map(String::as_str).chain(["/"]) {
        let request = format!("GET {path}");
        let accept = ("accept", BROWSER);
        let answer = ask(&server, &request, &[accept]);
        assert_eq!(answer.status, 200, "{path}");
        let content_type = answer.header("content-type").unwrap().to_owned();
        let (expected, cache) = match path.rsplit_once('.').map(|(_, ending)| ending) {
            Some("js") => ("text/javascript; charset=utf-8", "immutable"),
            Some("css") => ("text/css; charset=utf-8", "immutable"),
            Some("svg") => ("image/svg+xml", "immutable"),
            _ => ("text/html; charset=utf-8", "no-cache"),
        };
        assert_eq!(content_type, expected, "{path}");
        assert!(answer.header("cache-control").unwrap().contains(cache), "{path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'self';"), "{path}: {policy}");
        assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"), "{path}");
        let tag = answer.header("etag").unwrap().to_owned();
        for known in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".into()] {
            let unchanged = ask(&server, &request, &[accept, ("if-none-match", &known)]);
            assert_eq!((unchanged.status, &*unchanged.body), (304, ""), "{path} {known}");
            assert_eq!(unchanged.header("etag"), Some(&*tag), "{path}");
        }
        let changed = ask(&server, &request, &[accept, ("if-none-match", "\"x\"")]);
        assert_eq!(changed.status, 200, "{path}");
    }
}

/// The compressed files that are embedded: two of the page, and the API document and its page.
#[test]
fn a_client_that_accepts_gzip_gets_the_large_files_compressed() {
    let server = Server::in_memory(&[]);
    let (_, files) = page_and_files(&server);
    for path in
        files.iter().map(String::as_str).chain(["/openapi.json", "/docs", "/docs/style.css"])
    {
        let is_large = !path.contains("/icon-") && path != "/docs/style.css";
        let request = format!("HEAD {path}");
        let plain = ask(&server, &request, &[]);
        let length =
            |answer: &Answer| -> u64 { answer.header("content-length").unwrap().parse().unwrap() };
        for (accept, is_accepted) in [
            ("gzip, deflate, br", true),
            ("br;q=1.0, GZIP;q=0.5", true),
            ("gzip; q=0.001", true),
            ("gzip;q=0", false),
            ("gzip ; Q = 0.000, br", false),
            ("gzipped, x-gzip2", false),
            ("br", false),
            ("*", false),
            ("", false),
        ] {
            let answer = ask(&server, &request, &[("accept-encoding", accept)]);
            let is_compressed = is_large && is_accepted;
            let encoding = answer.header("content-encoding");
            assert_eq!(encoding, is_compressed.then_some("gzip"), "{path} {accept}");
            assert_eq!(answer.header("vary"), is_large.then_some("accept-encoding"), "{path}");
            assert_eq!(answer.header("content-type"), plain.header("content-type"), "{path}");
            if !is_compressed {
                assert_eq!(answer.header("etag"), plain.header("etag"), "{path} {accept}");
                assert_eq!(length(&answer), length(&plain), "{path} {accept}");
                continue;
            }
            assert!(length(&answer) * 2 < length(&plain), "{path}: {} bytes", length(&answer));
            // A tag of one form is not that of the other, and each is known by its own.
            let tag = answer.header("etag").unwrap().to_owned();
            assert_ne!(Some(&*tag), plain.header("etag"), "{path}");
            let known = [("accept-encoding", accept), ("if-none-match", &*tag)];
            let unchanged = ask(&server, &request, &known);
            assert_eq!((unchanged.status, unchanged.header("content-encoding")), (304, None));
            assert_eq!(unchanged.header("vary"), Some("accept-encoding"), "{path}");
            let other = ask(&server, &request, &[("if-none-match", &tag)]);
            assert_eq!(other.status, 200, "{path}");
        }
    }
}

/// Returns what the compressed form of a file unpacks to.
fn unpacked(server: &Server, path: &str) -> String {
    let mut stream = TcpStream::connect(server.addr()).unwrap();
    let head = "HTTP/1.1\r\nhost: localhost\r\naccept-encoding: gzip\r\nconnection: close";
    stream.write_all(format!("GET {path} {head}\r\n\r\n").as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    let dir = TempDir::new();
    let file = dir.path().join("body.gz");
    std::fs::write(&file, &answer[head..]).unwrap();
    let gzip = Command::new("gzip").arg("-dc").arg(file).output().unwrap();
    assert!(gzip.status.success(), "{path}: {gzip:?}");
    String::from_utf8(gzip.stdout).unwrap()
}

#[test]
fn the_compressed_form_of_a_file_unpacks_to_the_plain_one() {
    let server = Server::in_memory(&[]);
    let (_, files) = page_and_files(&server);
    let large = files.iter().map(String::as_str).filter(|path| !path.contains("/icon-"));
    for path in large.chain(["/openapi.json", "/docs"]) {
        let plain = ask(&server, &format!("GET {path}"), &[]).body;
        assert!(unpacked(&server, path) == plain, "{path}: the two forms differ");
    }
}

#[test]
fn a_file_of_another_version_does_not_exist() {
    let server = Server::in_memory(&[]);
    let (_, files) = page_and_files(&server);
    let script = files.iter().find(|path| path.contains("/app-")).unwrap();
    let other = script.replace("app-", "app-0");
    for path in [&*other, "/ui/app.js", "/ui/app-.js", "/ui/index.html", "/ui/..%2Fapp.js", "/ui/é"]
    {
        let answer = ask(&server, &format!("GET {path}"), &[]);
        assert!([400, 404].contains(&answer.status), "{path}: {answer:?}");
    }
    server.client().ask("GET /ui/nope").problem(404, "not_found");
    server.client().ask("POST /ui/nope").problem(405, "method_not_allowed");
    assert_eq!(server.client().ask(&format!("HEAD {script}")).body, "");
    assert_eq!(DASHBOARD_ROUTES.len(), 1);
}

#[test]
fn the_page_has_no_script_of_its_own_and_loads_nothing_from_other_hosts() {
    let server = Server::in_memory(&[]);
    let (page, files) = page_and_files(&server);
    assert!(
        !page.contains("style=") && !page.contains("<style") && !page.contains(" on"),
        "{page}"
    );
    let scripts: Vec<_> = page.matches("<script").collect();
    assert_eq!(scripts.len(), 1);
    assert!(page.contains("<script type=\"module\" src=\"/ui/app-"), "{page}");
    for path in files {
        let text = server.client().ask(&format!("GET {path}")).body;
        let hosts = text.match_indices("://").map(|(at, _)| &text[at..]).filter(|rest| {
            // Names of formats, which no browser loads.
            !rest.starts_with("://www.w3.org/")
        });
        let hosts: Vec<_> = hosts.map(|rest| rest.chars().take(40).collect::<String>()).collect();
        assert!(hosts.is_empty(), "{path}: {hosts:?}");
        assert!(!text.contains("sourceMappingURL"), "{path}");
    }
    assert_eq!(server.client().ask("HEAD /").is(200, &Value::Null), Value::Null);
}
