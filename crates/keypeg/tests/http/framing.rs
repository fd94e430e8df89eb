//! HTTP framing, byte for byte: ambiguous heads, malformed bodies, and limits on both.

use crate::support::{Server, eventually};
use serde_json::json;

const KEYS: &str = "/v1/pools/default/keys";

#[test]
fn an_ambiguous_head_is_refused_and_the_connection_closed() {
    let server = Server::in_memory(&[]);
    let chunked = "5\r\n{}   \r\n0\r\n\r\n";
    for (name, request) in [
        ("no Host", "POST /keys HTTP/1.1\r\n\r\n".into()),
        ("two Hosts", "POST /keys HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n".into()),
        ("no host in Host", "POST /keys HTTP/1.1\r\nHost: a b/c@d\r\n\r\n".into()),
        (
            "two Hosts of HTTP/1.0",
            "POST /keys HTTP/1.0\r\nHost: localhost\r\nHost: localhost\r\n\r\n".into(),
        ),
        (
            "Content-Length before Transfer-Encoding",
            format!(
                "POST {KEYS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                 Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"
            ),
        ),
        (
            "Transfer-Encoding before Content-Length",
            format!(
                "POST {KEYS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                 transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n{chunked}"
            ),
        ),
    ] {
        let client = &mut server.client();
        let answer = client.raw(request.as_bytes()).unwrap();
        assert_eq!(answer.header("connection"), Some("close"), "{name}");
        let problem = answer.problem(400, "malformed");
        assert_eq!(problem["outcome"], "not_applied", "{name}");
    }
    server.client().ask("GET /v1/pools/default").is(200, &json!({ "total": 0 }));
}

/// Regression: hyper drops every Content-Length beside a Transfer-Encoding, valid or not, and
/// accepts any list of encodings that ends in chunked, so that these requests got 201.
#[test]
fn a_transfer_encoding_is_chunked_once_and_without_a_content_length() {
    let server = Server::in_memory(&[]);
    for headers in [
        "Transfer-Encoding: chunked\r\nContent-Length: x",
        "Transfer-Encoding: chunked\r\nContent-Length:",
        "Transfer-Encoding: chunked\r\nContent-Length: 18446744073709551616",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    ] {
        let client = &mut server.client();
        let request =
            format!("POST {KEYS} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n0\r\n\r\n");
        let answer = client.raw(request.as_bytes()).unwrap();
        assert_eq!(answer.header("connection"), Some("close"), "{headers}");
        answer.problem(400, "malformed");
    }
    server.client().ask("GET /v1/pools/default").is(200, &json!({ "total": 0 }));
}

#[test]
fn both_lengths_are_refused_also_behind_other_requests_on_a_connection() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let plain = format!("POST {KEYS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    let both = format!(
        "POST {KEYS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\nPOST {KEYS} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    );
    client.write(format!("{plain}{plain}{both}").as_bytes()).unwrap();
    client.read(false).unwrap().is(201, &json!({}));
    client.read(false).unwrap().is(201, &json!({}));
    client.read(false).unwrap().problem(400, "malformed");
    server.client().ask("GET /v1/pools/default").is(200, &json!({ "total": 2 }));
}

/// hyper's `pipeline_flush` would delay these answers.
#[test]
fn an_answer_does_not_wait_for_the_bytes_behind_its_request() {
    let server = Server::in_memory(&[]);
    let plain = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for more in ["\r\n", "GET /li", plain] {
        let client = &mut server.client();
        client.write(format!("{plain}{more}").as_bytes()).unwrap();
        client.read(false).unwrap().is(200, &json!({ "status": "live" }));
    }
}

/// Regression: hyper's own refusals had no body and no request id.
#[test]
fn malformed_heads_are_refused_with_a_problem() {
    let server = Server::in_memory(&[]);
    for (name, request, status) in [
        ("no version", "GET /livez\r\n\r\n".to_owned(), 400),
        ("a space before the colon", "GET /livez HTTP/1.1\r\nHost : a\r\n\r\n".into(), 400),
        ("a folded header", "GET /livez HTTP/1.1\r\nHost: localhost\r\n b\r\n\r\n".into(), 400),
        (
            "lengths that differ",
            format!(
                "POST {KEYS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{{}}"
            ),
            400,
        ),
        (
            "a length that is not a number",
            format!("POST {KEYS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: +2\r\n\r\n{{}}"),
            400,
        ),
        (
            "an encoding that is not chunked",
            format!("POST {KEYS} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n"),
            400,
        ),
        (
            "a head that is too large",
            format!("GET /livez HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(100_000)),
            431,
        ),
        ("a target that is too long", format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(65_600)), 431),
    ] {
        let client = &mut server.client();
        let answer = client.raw(request.as_bytes()).unwrap();
        let code = if status == 400 { "malformed" } else { "too_large" };
        assert_eq!(answer.header("connection"), Some("close"), "{name}");
        assert!(answer.header("date").is_some(), "{name}");
        assert_eq!(answer.problem(status, code)["outcome"], "not_applied", "{name}");
        assert!(client.is_closed(), "{name}");
    }
}

#[test]
fn http_1_0_and_chunked_bodies_are_supported() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.raw(b"GET /livez HTTP/1.0\r\n\r\n").unwrap().is(200, &json!({ "status": "live" }));
    let client = &mut server.client();
    let chunked = format!(
        "POST {KEYS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n4\r\n{{\"co\r\n8\r\nunt\":2}} \r\n0\r\n\r\n"
    );
    client.raw(chunked.as_bytes()).unwrap().is(201, &json!({ "keys": ["*", "*"] }));
}

#[test]
fn a_body_is_exactly_one_json_object() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let deep = format!("{{\"count\":{}1{}}}", "[".repeat(200), "]".repeat(200));
    for body in [
        "{",
        "}",
        "{\"count\":1",
        "{\"count\":1}x",
        "{\"count\":1}{}",
        "{'count':1}",
        "{count:1}",
        "{\"count\":01}",
        "{\"count\":1,}",
        "{\"count\":NaN}",
        "{\"count\":1e999}",
        "nul",
        "\u{feff}\u{feff}{}",
        "{\"count\":1,\"count\":1}",
        "{\"x\":{\"a\":1,\"a\":2}}",
        "{\"x\":[{\"a\":1,\"a\":2}]}",
        "{\"a\":1,\"\\u0061\":1}",
        "{\"x\":\"\\ud800\"}",
        "{\"x\":\"\t\"}",
        &deep,
    ] {
        let json_type = [("content-type", "application/json")];
        let answer = client.try_send(&format!("POST {KEYS}"), &json_type, body).unwrap();
        let problem = answer.problem(400, "malformed");
        assert_eq!(problem["outcome"], "not_applied", "{body}");
    }
    let not_utf8 = format!(
        "POST {KEYS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                            Content-Length: 9\r\n\r\n{{\"x\":\""
    );
    let bytes = [not_utf8.as_bytes(), b"\xff\"}"].concat();
    client.raw(&bytes).unwrap().problem(400, "malformed");
    client.ask("GET /v1/pools/default").is(200, &json!({ "total": 0 }));
}

#[test]
fn a_body_that_is_not_empty_needs_the_content_type_json() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let post = format!("POST {KEYS}");
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""]
    {
        let headers = [("content-type", content_type)];
        let answer = client.try_send(&post, &headers, "{}").unwrap();
        answer.problem(415, "unsupported_media_type");
        client.try_send(&post, &headers, "").unwrap().is(201, &json!({}));
    }
    client.try_send(&post, &[], "{}").unwrap().problem(415, "unsupported_media_type");
    for content_type in ["application/json", "Application/JSON ; charset=utf-8"] {
        client
            .try_send(&post, &[("content-type", content_type)], " {} \n")
            .unwrap()
            .is(201, &json!({}));
    }
}

#[test]
fn a_body_that_is_too_large_is_refused_by_its_length_and_while_it_arrives() {
    let server = Server::in_memory(&[]);
    let keep = "/v1/pools/default/keepalive";
    let head =
        format!("POST {keep} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n");
    let client = &mut server.client();
    let early = format!("{head}Content-Length: 1048577\r\n\r\n");
    client.raw(early.as_bytes()).unwrap().problem(413, "too_large");

    let client = &mut server.client();
    let whole = format!("{head}Content-Length: 4000000\r\n\r\n{}", " ".repeat(4_000_000));
    client.raw(whole.as_bytes()).unwrap().problem(413, "too_large");

    let client = &mut server.client();
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(17));
    client.raw(chunked.as_bytes()).unwrap().problem(413, "too_large");

    let client = &mut server.client();
    let all = "{\"all\":true}";
    let spaces = " ".repeat(1_048_576 - all.len());
    let fits = format!("{head}Content-Length: 1048576\r\n\r\n{all}{spaces}");
    client.raw(fits.as_bytes()).unwrap().is(200, &json!({ "kept": 0 }));

    let head =
        format!("POST {KEYS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n");
    let client = &mut server.client();
    let early = format!("{head}Content-Length: 8388609\r\n\r\n");
    client.raw(early.as_bytes()).unwrap().problem(413, "too_large");
    let client = &mut server.client();
    let fits = format!("{head}Content-Length: 8388608\r\n\r\n{{}}{}", " ".repeat(8_388_606));
    client.raw(fits.as_bytes()).unwrap().is(201, &json!({}));
}

/// The length of a chunked body is known at its end only: its limit is another line of the code.
#[test]
fn a_chunked_body_may_have_exactly_the_largest_length() {
    let server = Server::in_memory(&[]);
    for (path, max, body) in
        [("/v1/pools/default/keepalive", 1 << 20, "{\"all\":true}"), (KEYS, 8 << 20, "{}")]
    {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Transfer-Encoding: chunked\r\n\r\n"
        );
        for (length, is_accepted) in [(max, true), (max + 1, false)] {
            // The last byte has a chunk of its own.
            let spaces = " ".repeat(length - 1 - body.len());
            let first = format!("{:x}\r\n{body}{spaces}\r\n", length - 1);
            let chunked = format!("{head}{first}1\r\n \r\n0\r\n\r\n");
            let answer = server.client().raw(chunked.as_bytes()).unwrap();
            if is_accepted {
                assert!(answer.status < 300, "{path} {length}: {answer:?}");
            } else {
                answer.problem(413, "too_large");
            }
        }
    }
}

/// Regression: each body had a limit and all bodies together had none, so that the clients that may
/// connect, each with an endless body, could use all memory.
#[test]
fn all_bodies_share_a_limit_that_does_not_apply_to_small_ones() {
    let server = Server::in_memory(&[]);
    let head = format!(
        "POST {KEYS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: 1048576\r\n\r\n"
    );
    let unfinished = format!("{head}{}", " ".repeat(1_048_570));
    let whole = format!("{unfinished}  {{}}  ");
    let send_whole = || server.client().raw(whole.as_bytes()).unwrap();
    let mut unfinished_clients = Vec::new();
    let mut add_unfinished = || {
        let mut client = server.client();
        client.write(unfinished.as_bytes()).unwrap();
        unfinished_clients.push(client);
    };
    (0..128).for_each(|_| add_unfinished());
    // It is not specified which of several concurrent requests is refused.
    let refused = eventually("the limit is reached", || {
        add_unfinished();
        Some(send_whole()).filter(|answer| answer.status == 503)
    });
    assert_eq!(refused.header("retry-after"), Some("1"));
    refused.problem(503, "overloaded");
    let small = json!({ "count": 2 });
    server.client().send(&format!("POST {KEYS}"), &small).is(201, &json!({}));
    drop(unfinished_clients);
    eventually("memory is free again", || (send_whole().status == 201).then_some(()));
}

#[test]
fn an_error_repeats_at_most_a_shortened_field_name() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let answer = client.send(&format!("POST {KEYS}"), &json!({ "ä".repeat(10_000): 1 }));
    let problem = answer.problem(422, "invalid");
    assert_eq!(problem["field"], "ä".repeat(32));
}

/// Regression: every chunked request ended its connection.
#[test]
fn a_chunked_request_keeps_its_connection() {
    let server = Server::in_memory(&[]);
    let head = format!(
        "POST {KEYS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    );
    let chunked = format!("{head}4;x=y\r\n{{\"co\r\nA\r\nunt\":   2}}\r\n0\r\nX: y\r\n\r\n");
    let empty = format!("{head}0\r\n\r\n");
    let plain = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned();
    let unknown = chunked.replace(KEYS, "/v1/pools/nope/keys");
    let client = &mut server.client();
    for request in [&chunked, &empty, &plain, &unknown, &chunked] {
        client.write(request.as_bytes()).unwrap();
        let answer = client.read(false).unwrap();
        let has_pool = !request.contains("/nope/");
        assert_eq!(
            answer.status,
            if *request == plain {
                200
            } else if has_pool {
                201
            } else {
                404
            }
        );
        let may_close = !has_pool;
        assert!(may_close || answer.header("connection").is_none(), "{request}: {answer:?}");
    }
    // All pipelined, and cut anywhere.
    let all = [&*chunked, &plain, &empty, &chunked, &plain].concat();
    for size in [all.len(), 1, 7, 100] {
        let client = &mut server.client();
        for piece in all.as_bytes().chunks(size) {
            client.write(piece).unwrap();
        }
        let statuses = [(); 5].map(|()| client.read(false).unwrap().status);
        assert_eq!(statuses, [201, 200, 201, 201, 200], "in pieces of {size}");
    }
}

/// The check for an ambiguous head goes on behind a chunked request.
#[test]
fn an_ambiguous_head_behind_a_chunked_request_is_refused_alone() {
    let server = Server::in_memory(&[]);
    let chunked = format!(
        "POST {KEYS} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    );
    let both = chunked.replacen("Transfer", "Content-Length: 5\r\nTransfer", 1);
    let client = &mut server.client();
    client.write(format!("{chunked}{chunked}{both}{chunked}").as_bytes()).unwrap();
    client.read(false).unwrap().is(201, &json!({}));
    client.read(false).unwrap().is(201, &json!({}));
    let refused = client.read(false).unwrap();
    assert_eq!(refused.header("connection"), Some("close"));
    refused.problem(400, "malformed");
    server.client().ask("GET /v1/pools/default").is(200, &json!({ "total": 2 }));
}

#[test]
fn malformed_chunks_end_the_connection() {
    let server = Server::in_memory(&[]);
    let head = format!(
        "POST {KEYS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    );
    let plain = format!("POST {KEYS} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    for body in ["x\r\n", "2\n{}\n0\n\n", "2\r\n{}0\r\n\r\n", "-1\r\n", "1ffffffffffffffff\r\n"] {
        let client = &mut server.client();
        client.write(format!("{head}{body}{plain}").as_bytes()).unwrap();
        let answer = client.read(false).unwrap();
        assert_eq!(answer.header("connection"), Some("close"), "{body:?}");
        answer.problem(400, "malformed");
    }
    server.client().ask("GET /v1/pools/default").is(200, &json!({ "total": 0 }));
}
