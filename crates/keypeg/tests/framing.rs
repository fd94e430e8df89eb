//! Raw bytes: heads that can be read in two ways, and bodies that are not what they should be.

use crate::support::{Server, eventually};
use serde_json::json;

const KEYS: &str = "/v1/pools/default/keys";

#[test]
fn a_head_that_can_be_read_in_two_ways_is_refused_and_the_connection_ended() {
    let server = Server::in_memory(&[]);
    let chunked = "5\r\n{}   \r\n0\r\n\r\n";
    for (why, request) in [
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
        assert_eq!(answer.header("connection"), Some("close"), "{why}");
        let problem = answer.problem(400, "malformed");
        assert_eq!(problem["outcome"], "not_applied", "{why}");
    }
    server.client().ask("GET /v1/pools/default").is(200, &json!({ "total": 0 }));
}

/// hyper drops every Content-Length beside a Transfer-Encoding, readable or not, and takes any
/// list of encodings that ends in chunked: these were once answered 201.
#[test]
fn a_transfer_encoding_is_chunked_once_and_beside_no_content_length_at_all() {
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
fn both_lengths_are_noticed_behind_other_requests_on_one_connection() {
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

/// hyper's `pipeline_flush` would keep these answers back.
#[test]
fn an_answer_does_not_wait_for_what_follows_its_request() {
    let server = Server::in_memory(&[]);
    let plain = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for more in ["\r\n", "GET /li", plain] {
        let client = &mut server.client();
        client.write(format!("{plain}{more}").as_bytes()).unwrap();
        client.read(false).unwrap().is(200, &json!({ "status": "live" }));
    }
}

/// hyper's own refusals were bare: no body, no request id.
#[test]
fn heads_that_are_no_http_are_refused_by_the_parser() {
    let server = Server::in_memory(&[]);
    for (why, request, status) in [
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
            "a length that is no number",
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
        assert_eq!(answer.header("connection"), Some("close"), "{why}");
        assert!(answer.header("date").is_some(), "{why}");
        assert_eq!(answer.problem(status, code)["outcome"], "not_applied", "{why}");
        assert!(client.is_closed(), "{why}");
    }
}

#[test]
fn http_1_0_and_chunked_bodies_are_understood() {
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
fn a_body_is_one_json_object_and_nothing_else() {
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
        "\u{feff}{}",
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
fn a_body_says_that_it_is_json_unless_it_is_empty() {
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
fn a_body_that_is_too_large_is_refused_before_it_is_sent_and_while() {
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
    let blanks = " ".repeat(1_048_576 - all.len());
    let fits = format!("{head}Content-Length: 1048576\r\n\r\n{all}{blanks}");
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

/// Each body had its bound and all of them together had none: as many clients as may connect, each
/// with a body that never ends, could take all memory there is.
#[test]
fn bodies_together_have_a_bound_that_small_ones_never_meet() {
    let server = Server::in_memory(&[]);
    let head = format!(
        "POST {KEYS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: 1048576\r\n\r\n"
    );
    let most = format!("{head}{}", " ".repeat(1_048_570));
    let whole = format!("{most}  {{}}  ");
    let answers = || server.client().raw(whole.as_bytes()).unwrap();
    let mut holding = Vec::new();
    let mut hold_one_more = || {
        let mut client = server.client();
        client.write(most.as_bytes()).unwrap();
        holding.push(client);
    };
    (0..128).for_each(|_| hold_one_more());
    // Which of several that come at once is refused is nobody's to say.
    let refused = eventually("no room", || {
        hold_one_more();
        Some(answers()).filter(|answer| answer.status == 503)
    });
    assert_eq!(refused.header("retry-after"), Some("1"));
    refused.problem(503, "overloaded");
    let small = json!({ "count": 2 });
    server.client().send(&format!("POST {KEYS}"), &small).is(201, &json!({}));
    drop(holding);
    eventually("room again", || (answers().status == 201).then_some(()));
}

#[test]
fn an_error_repeats_no_more_of_a_request_than_a_name() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let answer = client.send(&format!("POST {KEYS}"), &json!({ "ä".repeat(10_000): 1 }));
    let problem = answer.problem(422, "invalid");
    assert_eq!(problem["field"], "ä".repeat(32));
}
