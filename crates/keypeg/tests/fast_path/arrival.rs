//! However the bytes of hot calls come, in whatever pieces and company, each is answered once, in
//! order, and the same.

use super::{LAST, Names, Sides, Told, Way, Wire, request};
use crate::support::{Server, pause};
use serde_json::{Value, json};
use std::time::Duration;

fn names(server: &Server) -> Names {
    let policy = json!({ "max_hold_seconds": 600 });
    Names::made(&mut server.client(), "ci", &policy)
}

/// A call that can be asked again and again, with a body, and its answer.
fn renew(names: &Names) -> Vec<u8> {
    let line = "POST /v1/pools/<pool>/leases/<lease>/renew";
    names.fill(&request(line, "", r#"{"ttl_seconds":60}"#))
}

/// Cut into two, as some clients send head and body, at every byte, on one connection and on many.
#[test]
fn a_request_cut_at_any_byte_is_the_same() {
    let sides = Sides::start(&[]);
    sides.same("cut", |way, server| {
        let names = names(server);
        let bytes = way.bytes(&renew(&names));
        let mut kept = Wire::on(server.addr(), way);
        kept.send(&bytes);
        let whole = kept.told().unwrap().unwrap();
        assert!(whole.status.contains(" 200 "), "{whole:?}");
        for rests in [Duration::ZERO, Duration::from_millis(1)] {
            for cut in 1..bytes.len() {
                let mut fresh = Wire::on(server.addr(), way);
                for wire in [&mut kept, &mut fresh] {
                    wire.send(&bytes[..cut]);
                    pause(rests);
                    wire.send(&bytes[cut..]);
                    let told = wire.told().unwrap();
                    assert_eq!(told.as_ref(), Some(&whole), "{way:?} cut at {cut}");
                }
            }
        }
        let mut slow = Wire::on(server.addr(), way);
        for byte in &bytes {
            slow.send(&[*byte]);
            pause(Duration::from_millis(1));
        }
        assert_eq!(slow.told().unwrap().as_ref(), Some(&whole), "{way:?} byte by byte");
        whole
    });
}

/// Keys of a pool, each alike but for its id.
fn keys(server: &Server, count: u64) -> Vec<String> {
    let client = &mut server.client();
    let made = client.send("POST /v1/pools/default/keys", &json!({ "count": count })).json();
    let keys = made["keys"].as_array().unwrap();
    keys.iter().map(|key| key["id"].as_str().unwrap().to_owned()).collect()
}

/// Each answer names the key that its request named.
#[test]
fn requests_sent_ahead_are_answered_in_order() {
    let sides = Sides::start(&[]);
    let alike = |count: usize, piece: usize| {
        sides.same("ahead", |way, server| {
            let keys = keys(server, u64::try_from(count).unwrap());
            let mut bytes = Vec::new();
            for (at, key) in keys.iter().enumerate() {
                // The first that is hyper's makes all behind it hyper's.
                let (line, more) = match at % 5 {
                    4 if piece % 2 == 1 => (format!("GET /v1/pools/default/keys/{key}"), ""),
                    _ => {
                        (format!("POST /v1/pools/default/keys/{key}/keepalive"), ["", "{}"][at % 2])
                    }
                };
                bytes.extend(way.bytes(&request(&line, "", more)));
            }
            bytes.extend(LAST.as_bytes());
            let mut client = Raw::on(server, way);
            for piece in bytes.chunks(piece) {
                client.send(piece);
            }
            let all = client.all();
            for (key, answer) in keys.iter().zip(&all) {
                assert!(answer.contains(key), "{way:?}: {answer}");
            }
            assert_eq!(all.len(), count + 1, "{way:?}");
            all.iter().map(|answer| answer.lines().next().unwrap().to_owned()).collect::<Vec<_>>()
        })
    };
    for count in [2, 3, 17, 50] {
        for piece in [1 << 20, 1 << 10 | 1, 100, 7] {
            alike(count, piece);
        }
    }
    // More than is looked at at once: requests are cut where a read ends.
    alike(400, 1 << 20);
    alike(400, 5_001);
}

/// Answers with their bodies as they came.
struct Raw(Wire);

impl Raw {
    fn on(server: &Server, way: Way) -> Self {
        Self(Wire::on(server.addr(), way))
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

/// Every order of hot calls and others on one connection, at once and one by one.
#[test]
fn hot_calls_and_others_mix_in_every_order() {
    let sides = Sides::start(&[]);
    let lines = [
        ("POST /v1/pools/<pool>/keys/<key>/keepalive", Value::Null),
        ("POST /v1/pools/<pool>/leases/<lease>/renew", json!({ "ttl_seconds": 60 })),
        ("GET /v1/pools/<pool>/keys/<key>", Value::Null),
        ("PUT /v1/pools/<pool>", json!({ "rest_seconds": 0 })),
        ("POST /v1/pools/<pool>/leases/<ended>/release", json!({})),
    ];
    let made: Vec<_> = sides.sides.iter().map(|(way, server)| (*way, names(server))).collect();
    let mut played = 0;
    for order in 0..lines.len().pow(4) {
        let order: Vec<_> = (0..4).map(|at| order / lines.len().pow(at) % lines.len()).collect();
        let several = (1..4).any(|at| order[..at].contains(&order[at]));
        if several && order[0] != order[3] {
            continue;
        }
        played += 1;
        for at_once in [true, false] {
            sides.same(&format!("{order:?}"), |way, server| {
                let (_, names) = made.iter().find(|(of, _)| *of == way).unwrap();
                let mut wire = Wire::on(server.addr(), way);
                let mut told: Vec<Told> = Vec::new();
                let mut all = Vec::new();
                for at in &order {
                    let (line, body) = &lines[*at];
                    let body = if body.is_null() { String::new() } else { body.to_string() };
                    let bytes = way.bytes(&names.fill(&request(line, "", &body)));
                    if at_once {
                        all.extend(bytes);
                    } else {
                        wire.send(&bytes);
                        told.extend(wire.told().unwrap());
                    }
                }
                wire.send(&[&all, LAST.as_bytes()].concat());
                told.extend(wire.rest());
                assert_eq!(told.len(), 5, "{way:?} {order:?}: {told:?}");
                told
            });
        }
    }
    assert!(played > 100, "{played}");
}
