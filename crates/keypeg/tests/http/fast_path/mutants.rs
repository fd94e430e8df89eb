//! Mutated requests: the fast path and hyper send the same answers and end the connection alike.
//!
//! Another request follows each mutant: a parser that takes a different number of bytes for the
//! first request reads a different second one. `KEYPEG_FUZZ_RUNS` sets the number of runs,
//! `KEYPEG_SEED` repeats them.

use super::{CLOSING_REQUEST, Connection, PoolNames, Via, request};
use crate::http::fuzz::below;
use crate::support::Server;
use crate::support::history::{SeededRandom, env_number};
use keypeg_testkit::mutate;
use serde_json::json;
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const THREADS: u64 = 4;

/// Returns requests that can be repeated with the same outcome.
fn corpus(names: &PoolNames) -> Vec<Vec<u8>> {
    let inner = "POST /v1/pools/nope/leases HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let lengths = |lengths: &str| {
        let line = "POST /v1/pools/<pool>/keys/<key>/keepalive HTTP/1.1\r\nHost: localhost";
        format!("{line}\r\nContent-Type: application/json\r\n{lengths}\r\n\r\n{{}}").into_bytes()
    };
    let all = [
        request("POST /v1/pools/<pool>/keys/<key>/keepalive", "", ""),
        request("POST /v1/pools/<pool>/keys/<key>/keepalive", "Connection: keep-alive\r\n", "{}"),
        request("POST /v1/pools/<pool>/leases/<lease>/renew", "", r#"{"ttl_seconds":60}"#),
        request("POST /v1/pools/<pool>/leases/<ended>/release", "Accept: */*\r\n", "{}"),
        request("POST /v1/pools/empty/leases", "User-Agent: x\r\n", r#"{"holder":"job"}"#),
        request("POST /v1/pools/default/leases", "", ""),
        request(
            "POST /v1/pools/empty/leases",
            "",
            &format!("{{\"holder\":\"{:9}\"}}", inner.len()),
        ),
        request("POST /v1/pools/empty/leases", "", inner),
        lengths("Content-Length: 2"),
        lengths("Content-Length: 02\r\nX: y"),
        lengths("Content-Length: 2\r\nContent-Length: 2"),
        lengths("Content-Length: 2\r\nTransfer-Encoding: chunked"),
        lengths("Transfer-Encoding: chunked\r\nX: 2"),
    ];
    all.map(|text| names.fill(&text)).to_vec()
}

/// Applies a random mutation, most of them on whole lines.
fn mutate_request(bytes: &mut Vec<u8>, others: &[Vec<u8>], below: &mut impl FnMut(usize) -> usize) {
    if bytes.is_empty() {
        bytes.extend(&others[below(others.len())]);
    }
    let ends: Vec<_> = (0..bytes.len()).filter(|&index| bytes[index] == b'\n').collect();
    let mut line = || {
        let number = below(ends.len().max(1));
        let start = if number == 0 { 0 } else { ends[number - 1] + 1 };
        (start, ends.get(number).map_or(bytes.len(), |end| end + 1))
    };
    let ((start, end), (to, _)) = (line(), line());
    match below(12) {
        0 => drop(bytes.splice(to..to, bytes[start..end].to_vec())),
        1 => drop(bytes.drain(start..end)),
        2 => bytes[start..end].iter_mut().for_each(|byte| *byte = byte.to_ascii_uppercase()),
        3 => {
            let cut = below(bytes.len() + 1);
            let other = &others[below(others.len())];
            bytes.truncate(cut);
            bytes.extend(&other[below(other.len())..]);
        }
        4 => {
            let odd_bytes =
                ["\r", "\n", "\r\n", " ", "\t", ":", ",", "\0", "\u{7f}", "+", "0", "%", "//"];
            let odd = odd_bytes[below(odd_bytes.len())];
            drop(bytes.splice(start..start, odd.bytes()));
        }
        5 => bytes.extend(&others[below(others.len())]),
        6 => {
            let digits = (0..bytes.len()).filter(|&index| bytes[index].is_ascii_digit());
            let digits: Vec<_> = digits.collect();
            let index = digits.get(below(digits.len().max(1))).copied().unwrap_or(0);
            drop(bytes.splice(index..=index, [b'0' + u8::try_from(below(10)).unwrap_or(0)]));
        }
        7 | 8 => {
            let index = below(bytes.len());
            bytes[index] = b"\r\n \t:;,/.-_%?#\x00\x7f\xe4aZ019"[below(22)];
        }
        9 => {
            let headers = [
                "TE: trailers\r\n",
                "Prefer: wait=0\r\n",
                "Connection: close\r\n",
                "Connection: keep-alive, x\r\n",
                "Content-Length: 0\r\n",
                "Content-Length: 100\r\n",
                "Transfer-Encoding: chunked\r\n",
                "Transfer-Encoding : chunked\r\n",
                "Host: localhost\r\n",
                "Content-Type: text/plain\r\n",
                "Authorization: Basic eDp4\r\n",
                "Expect: 100-continue\r\n",
                "X: y\r\n",
            ];
            drop(bytes.splice(start..start, headers[below(headers.len())].bytes()));
        }
        _ => mutate(bytes, below),
    }
}

/// Returns the statuses of all answers. When no answer comes in time, the client closes its sending
/// side and continues to read.
fn outcome(addr: SocketAddr, via: Via, bytes: &[u8], patience: Duration) -> Vec<String> {
    let mut connection = Connection::on(addr, via);
    connection.send(&[bytes, CLOSING_REQUEST.as_bytes()].concat());
    let stream = connection.0.get_ref().try_clone().unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
    let (mut all, mut is_open) = (Vec::new(), true);
    loop {
        match connection.read_answer() {
            Ok(Some(answer)) => all.push(answer.status),
            Err(error) if is_open && error.kind() == std::io::ErrorKind::WouldBlock => {
                all.push("silence".into());
                is_open = false;
                let _ = stream.shutdown(Shutdown::Write);
                stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            }
            Ok(None) | Err(_) => return all,
        }
    }
}

#[test]
fn mutated_requests_are_answered_equally() {
    let (runs, seed) =
        (env_number("KEYPEG_FUZZ_RUNS").unwrap_or(2_000), env_number("KEYPEG_SEED").unwrap_or(1));
    let server = Server::in_memory(&["--lease-ttl", "168h", "--keepalive-ttl", "168h"]);
    let client = &mut server.client();
    client.send("PUT /v1/pools/empty", &json!({})).is(201, &json!({}));
    for _ in 0..5 {
        client.send("POST /v1/pools/default/keys", &json!({ "count": 10_000 })).is(201, &json!({}));
    }
    let policy = json!({ "lease_ttl_seconds": 600_000, "max_hold_seconds": 604_800 });
    let names = PoolNames::create(client, "ci", &policy);
    let corpus = corpus(&names);
    let (accepted, refused, silent) =
        (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (corpus, addr) = (&corpus, server.addr());
            let (accepted, refused, silent) = (&accepted, &refused, &silent);
            scope.spawn(move || {
                let random = &mut SeededRandom(seed.wrapping_mul(THREADS).wrapping_add(thread));
                let mut below = below(random);
                for run in 0..runs / THREADS {
                    let mut bytes = corpus[below(corpus.len())].clone();
                    for _ in 0..[1, 1, 1, 2, 4][below(5)] {
                        mutate_request(&mut bytes, corpus, &mut below);
                    }
                    let vias = [Via::FastPath, Via::FastPathSecond, Via::HyperSecond];
                    let mut patience = Duration::from_millis(150);
                    // If this machine was slower than the timeout, repeat with a longer one.
                    let all = loop {
                        let all = vias.map(|via| outcome(addr, via, &bytes, patience));
                        if all[1..].iter().all(|other| *other == all[0]) || patience.as_secs() > 2 {
                            break all;
                        }
                        patience *= 5;
                    };
                    let describe = || {
                        format!(
                            "run {run} of {thread}, KEYPEG_SEED={seed}: {}",
                            bytes.escape_ascii()
                        )
                    };
                    assert!(
                        all[1..].iter().all(|other| *other == all[0]),
                        "{all:#?} {}",
                        describe()
                    );
                    let first = all[0].first().map_or("", |status| status.as_str());
                    let kind = if first.contains(" 20") {
                        accepted
                    } else if first == "silence" {
                        silent
                    } else {
                        refused
                    };
                    kind.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    println!(
        "{runs} mutants: {accepted:?} accepted, {refused:?} refused, {silent:?} incomplete, KEYPEG_SEED={seed}"
    );
    let occurred = |count: &AtomicUsize| count.load(Ordering::Relaxed) > 0;
    assert!(occurred(&accepted) && occurred(&refused) && occurred(&silent));
}
