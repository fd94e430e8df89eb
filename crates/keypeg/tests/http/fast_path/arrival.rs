//! Requests that arrive in pieces, pipelined, or mixed with requests for hyper: each is answered
//! once, in order, and equally by the fast path and hyper.

use super::{Answer, CLOSING_REQUEST, Connection, PoolNames, Servers, Via, request};
use crate::support::{Server, pause};
use serde_json::{Value, json};
use std::time::Duration;

fn create_pool(server: &Server) -> PoolNames {
    let policy = json!({ "max_hold_seconds": 600 });
    PoolNames::create(&mut server.client(), "ci", &policy)
}

/// Returns a request with a body that can be repeated with the same answer.
fn renew(names: &PoolNames) -> Vec<u8> {
    let line = "POST /v1/pools/<pool>/leases/<lease>/renew";
    names.fill(&request(line, "", r#"{"ttl_seconds":60}"#))
}

/// Cuts a request into two pieces at every byte, on one connection and on new ones. Some clients
/// send head and body in this way.
#[test]
fn a_request_in_two_pieces_is_answered_like_a_whole_one() {
    let servers = Servers::start(&[]);
    servers.assert_same("two pieces", |via, server| {
        let names = create_pool(server);
        let bytes = via.bytes(&renew(&names));
        let mut kept = Connection::on(server.addr(), via);
        kept.send(&bytes);
        let whole = kept.read_answer().unwrap().unwrap();
        assert!(whole.status.contains(" 200 "), "{whole:?}");
        for delay in [Duration::ZERO, Duration::from_millis(1)] {
            for cut in 1..bytes.len() {
                let mut fresh = Connection::on(server.addr(), via);
                for connection in [&mut kept, &mut fresh] {
                    connection.send(&bytes[..cut]);
                    pause(delay);
                    connection.send(&bytes[cut..]);
                    let answer = connection.read_answer().unwrap();
                    assert_eq!(answer.as_ref(), Some(&whole), "{via:?} cut at {cut}");
                }
            }
        }
        let mut slow = Connection::on(server.addr(), via);
        for byte in &bytes {
            slow.send(&[*byte]);
            pause(Duration::from_millis(1));
        }
        assert_eq!(slow.read_answer().unwrap().as_ref(), Some(&whole), "{via:?} byte by byte");
        whole
    });
}

/// Generates keys and returns their ids.
fn generate(server: &Server, count: u64) -> Vec<String> {
    let client = &mut server.client();
    let generated = client.send("POST /v1/pools/default/keys", &json!({ "count": count })).json();
    let keys = generated["keys"].as_array().unwrap();
    keys.iter().map(|key| key["id"].as_str().unwrap().to_owned()).collect()
}

/// Each answer names the key that its request named.
#[test]
fn pipelined_requests_are_answered_in_order() {
    let servers = Servers::start(&[]);
    let check = |count: usize, piece: usize| {
        servers.assert_same("pipelined", |via, server| {
            let keys = generate(server, u64::try_from(count).unwrap());
            let mut bytes = Vec::new();
            for (index, key) in keys.iter().enumerate() {
                // After the first request for hyper, hyper serves all the others.
                let (line, body) = match index % 5 {
                    4 if piece % 2 == 1 => (format!("GET /v1/pools/default/keys/{key}"), ""),
                    _ => (
                        format!("POST /v1/pools/default/keys/{key}/keepalive"),
                        ["", "{}"][index % 2],
                    ),
                };
                bytes.extend(via.bytes(&request(&line, "", body)));
            }
            bytes.extend(CLOSING_REQUEST.as_bytes());
            let mut client = Raw::on(server, via);
            for piece in bytes.chunks(piece) {
                client.send(piece);
            }
            let all = client.all();
            for (key, answer) in keys.iter().zip(&all) {
                assert!(answer.contains(key), "{via:?}: {answer}");
            }
            assert_eq!(all.len(), count + 1, "{via:?}");
            all.iter().map(|answer| answer.lines().next().unwrap().to_owned()).collect::<Vec<_>>()
        })
    };
    for count in [2, 3, 17, 50] {
        for piece in [1 << 20, 1 << 10 | 1, 100, 7] {
            check(count, piece);
        }
    }
    // More than one read takes, so that reads end within requests.
    check(400, 1 << 20);
    check(400, 5_001);
}

/// A connection whose answers are compared with their whole text.
struct Raw(Connection);

impl Raw {
    fn on(server: &Server, via: Via) -> Self {
        Self(Connection::on(server.addr(), via))
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.send(bytes);
    }

    fn all(mut self) -> Vec<String> {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut self.0.0, &mut text).unwrap();
        text.split("HTTP/1.1 ").skip(1).map(|answer| format!("HTTP/1.1 {answer}")).collect()
    }
}

/// Sends calls for the fast path and for hyper in every order on one connection, pipelined and one
/// by one.
#[test]
fn calls_for_the_fast_path_and_for_hyper_mix_in_every_order() {
    let servers = Servers::start(&[]);
    let lines = [
        ("POST /v1/pools/<pool>/keys/<key>/keepalive", Value::Null),
        ("POST /v1/pools/<pool>/leases/<lease>/renew", json!({ "ttl_seconds": 60 })),
        ("GET /v1/pools/<pool>/keys/<key>", Value::Null),
        ("PUT /v1/pools/<pool>", json!({ "rest_seconds": 0 })),
        ("POST /v1/pools/<pool>/leases/<ended>/release", json!({})),
    ];
    let pools: Vec<_> =
        servers.servers.iter().map(|(via, server)| (*via, create_pool(server))).collect();
    let mut count = 0;
    for order in 0..lines.len().pow(4) {
        let order: Vec<_> =
            (0..4).map(|place| order / lines.len().pow(place) % lines.len()).collect();
        let repeats = (1..4).any(|place| order[..place].contains(&order[place]));
        if repeats && order[0] != order[3] {
            continue;
        }
        count += 1;
        for pipelined in [true, false] {
            servers.assert_same(&format!("{order:?}"), |via, server| {
                let (_, names) = pools.iter().find(|(of, _)| *of == via).unwrap();
                let mut connection = Connection::on(server.addr(), via);
                let mut answers: Vec<Answer> = Vec::new();
                let mut all = Vec::new();
                for index in &order {
                    let (line, body) = &lines[*index];
                    let body = if body.is_null() { String::new() } else { body.to_string() };
                    let bytes = via.bytes(&names.fill(&request(line, "", &body)));
                    if pipelined {
                        all.extend(bytes);
                    } else {
                        connection.send(&bytes);
                        answers.extend(connection.read_answer().unwrap());
                    }
                }
                connection.send(&[&all, CLOSING_REQUEST.as_bytes()].concat());
                answers.extend(connection.rest());
                assert_eq!(answers.len(), 5, "{via:?} {order:?}: {answers:?}");
                answers
            });
        }
    }
    assert!(count > 100, "{count}");
}
