//! Proxies between a command and its server: one that the environment names, and one that adds a
//! path in front of the server.
//!
//! A request to loopback went to the proxy of the environment, with its access token, and the
//! proxy's error looked like an error of Keypeg.

use super::tool::{check, json_of, tool, utf8};
use crate::support::{Server, binary};
use keypeg_testkit::TempDir;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::thread::JoinHandle;

/// A proxy that answers one request with these bytes; its thread returns the request's head.
fn proxy(answer: &'static str) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut head = String::new();
        let mut lines = BufReader::new(socket.try_clone().unwrap());
        while !head.ends_with("\r\n\r\n") {
            assert!(lines.read_line(&mut head).unwrap() > 0, "{head}");
        }
        socket.write_all(answer.as_bytes()).unwrap();
        head
    });
    (url, thread)
}

const HTML: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/html; charset=utf-8\r\n\
                    content-length: 13\r\nconnection: close\r\n\r\n<html></html>";
const EMPTY: &str = "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
const LOGIN: &str = "HTTP/1.1 407 Proxy Authentication Required\r\ncontent-type: text/plain\r\n\
                     content-length: 5\r\nconnection: close\r\n\r\nlogin";
const PORTAL: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\
                      connection: close\r\n\r\nhi";

#[test]
fn a_request_to_this_machine_never_goes_through_a_proxy() {
    let server = Server::in_memory(&[]);
    let port = server.addr().port();
    // A port without a server: a request through the proxy would fail.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for host in ["127.0.0.1", "localhost", "127.0.0.1/"] {
        for variable in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
            let mut command = tool(&server, &["pools"]);
            let (host, slash) = host.split_at(host.trim_end_matches('/').len());
            command.env("KEYPEG_SERVER", format!("http://{host}:{port}{slash}"));
            check(with(&mut command, variable, &format!("http://{closed}")), 0, "");
        }
    }
}

fn with(command: &mut Command, variable: &str, value: &str) -> Command {
    let mut other = Command::new(command.get_program());
    other.args(command.get_args()).env_clear();
    other.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    other.env(variable, value);
    other
}

/// The server is on another machine here: `.invalid` is never a name.
#[test]
fn an_error_of_a_proxy_is_named_as_such() {
    let server = Server::in_memory(&[]);
    for (answer, says) in [
        (HTML, "(status 503): its content type is text/html; the variable http_proxy sends"),
        (EMPTY, "(status 502): its body is empty; the variable http_proxy sends"),
        (LOGIN, "(status 407): its content type is text/plain; the variable http_proxy sends"),
        (PORTAL, "(status 200): its content type is text/html; the variable http_proxy sends"),
    ] {
        let (url, thread) = proxy(answer);
        let mut command = tool(&server, &["pools", "--server", "http://keypeg.invalid"]);
        let output = check(with(&mut command, "http_proxy", &url), 76, says);
        let stderr = utf8(&output.stderr);
        assert!(stderr.contains("the answer did not come from Keypeg"), "{stderr}");
        assert!(!stderr.contains("expected value"), "{stderr}");
        let step = match answer {
            HTML | EMPTY => "add the server to no_proxy; otherwise check whether the server behind",
            _ => "add the server to no_proxy\n",
        };
        assert!(stderr.contains(step), "{stderr}");
        assert!(thread.join().unwrap().contains("keypeg.invalid"), "sent through the proxy");
        // Without a proxy in the environment another server answered, such as a reverse proxy.
        let (url, thread) = proxy(answer);
        let says = "another server or a proxy answered: check the address of the server";
        check(tool(&server, &["pools", "--server", &url]), 76, says);
        thread.join().unwrap();
    }
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = tool(&server, &["pools", "--server", "http://keypeg.invalid"]);
    let says = "through the proxy that the variable http_proxy names";
    check(with(&mut command, "http_proxy", &format!("http://{closed}")), 69, says);
}

/// Forwards each connection to the server, without the first segment of its paths.
#[test]
fn a_server_can_have_a_path_in_front() {
    let server = Server::in_memory(&[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/keys/", listener.local_addr().unwrap());
    let addr = server.addr();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut bytes = vec![0; 65_536];
            let length = socket.read(&mut bytes).unwrap();
            let request = String::from_utf8(bytes[..length].to_vec()).unwrap();
            assert!(request.contains(" /keys/v1/"), "{request}");
            let request = request.replacen(" /keys/v1/", " /v1/", 1);
            let mut upstream = std::net::TcpStream::connect(addr).unwrap();
            let request = request.replacen("\r\n", "\r\nconnection: close\r\n", 1);
            upstream.write_all(request.as_bytes()).unwrap();
            let mut answer = Vec::new();
            upstream.read_to_end(&mut answer).unwrap();
            socket.write_all(&answer).unwrap();
        }
    });
    assert_eq!(json_of(&server, &["pools", "--server", &url]).as_array().unwrap().len(), 1);
}

/// A file that an editor on Windows wrote begins with a byte order mark, or is UTF-16.
#[test]
fn a_token_file_of_any_editor_is_read_or_refused_by_its_name() {
    let dir = TempDir::new();
    let file = dir.path().join("token");
    let path = file.to_str().unwrap();
    for (bytes, exit, says) in [
        (&b"\xef\xbb\xbfkpt_1\r\n"[..], 69, "cannot be reached"),
        (b"\xff\xfek\0p\0t\0", 64, "is UTF-16: save it as UTF-8"),
        (b"kpt_1\nkpt_2\n", 64, "visible characters only"),
        ("kpt_\u{200b}1".as_bytes(), 64, "visible characters only"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        let mut command = Command::new(binary());
        let args = ["pools", "--server", "http://127.0.0.1:9", "--token-file", path];
        command.args(args).env_clear();
        let output = check(command, exit, says);
        let stderr = utf8(&output.stderr);
        assert!(exit != 64 || stderr.contains(path), "{stderr}");
        assert!(!stderr.contains("kpt_"), "{stderr}");
    }
}
