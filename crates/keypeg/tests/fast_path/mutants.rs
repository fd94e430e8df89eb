//! Bytes that nobody meant to send, each way: the same answers, as many of them, and the same end.
//!
//! Behind each mutant stands another request: whoever takes another number of bytes for the first
//! one reads another second one. `KEYPEG_FUZZ_RUNS` sets the runs, `KEYPEG_SEED` repeats them.

use super::{LAST, Names, Way, Wire, request};
use crate::fuzz::below;
use crate::fuzz::mutate::mutate;
use crate::support::Server;
use crate::support::history::{SeededRandom, env_number};
use serde_json::json;
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const THREADS: u64 = 4;

/// Requests that can be asked again and again with the same outcome.
fn corpus(names: &Names) -> Vec<Vec<u8>> {
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

/// Changes that know what a line is.
fn change(bytes: &mut Vec<u8>, others: &[Vec<u8>], below: &mut impl FnMut(usize) -> usize) {
    if bytes.is_empty() {
        bytes.extend(&others[below(others.len())]);
    }
    let ends: Vec<_> = (0..bytes.len()).filter(|&at| bytes[at] == b'\n').collect();
    let mut line = || {
        let at = below(ends.len().max(1));
        let start = if at == 0 { 0 } else { ends[at - 1] + 1 };
        (start, ends.get(at).map_or(bytes.len(), |end| end + 1))
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
            let odd =
                ["\r", "\n", "\r\n", " ", "\t", ":", ",", "\0", "\u{7f}", "+", "0", "%", "//"];
            let odd = odd[below(odd.len())];
            drop(bytes.splice(start..start, odd.bytes()));
        }
        5 => bytes.extend(&others[below(others.len())]),
        6 => {
            let digits = (0..bytes.len()).filter(|&at| bytes[at].is_ascii_digit());
            let digits: Vec<_> = digits.collect();
            let at = digits.get(below(digits.len().max(1))).copied().unwrap_or(0);
            drop(bytes.splice(at..=at, [b'0' + u8::try_from(below(10)).unwrap_or(0)]));
        }
        7 | 8 => {
            let at = below(bytes.len());
            bytes[at] = b"\r\n \t:;,/.-_%?#\x00\x7f\xe4aZ019"[below(22)];
        }
        9 => {
            let more = [
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
            drop(bytes.splice(start..start, more[below(more.len())].bytes()));
        }
        _ => mutate(bytes, below),
    }
}

/// What comes back: statuses until the end. Where nothing comes, the client's end is closed.
fn outcome(addr: SocketAddr, way: Way, bytes: &[u8], patience: Duration) -> Vec<String> {
    let mut wire = Wire::on(addr, way);
    wire.send(&[bytes, LAST.as_bytes()].concat());
    let stream = wire.0.get_ref().try_clone().unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
    let (mut all, mut waits) = (Vec::new(), true);
    loop {
        match wire.told() {
            Ok(Some(told)) => all.push(told.status),
            Err(error) if waits && error.kind() == std::io::ErrorKind::WouldBlock => {
                all.push("silence".into());
                waits = false;
                let _ = stream.shutdown(Shutdown::Write);
                stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            }
            Ok(None) | Err(_) => return all,
        }
    }
}

#[test]
fn mutants_of_hot_calls_are_answered_the_same() {
    let (runs, seed) =
        (env_number("KEYPEG_FUZZ_RUNS").unwrap_or(2_000), env_number("KEYPEG_SEED").unwrap_or(1));
    let server = Server::in_memory(&["--lease-ttl", "168h", "--keepalive-ttl", "168h"]);
    let client = &mut server.client();
    client.send("PUT /v1/pools/empty", &json!({})).is(201, &json!({}));
    for _ in 0..5 {
        client.send("POST /v1/pools/default/keys", &json!({ "count": 10_000 })).is(201, &json!({}));
    }
    let policy = json!({ "lease_ttl_seconds": 600_000, "max_hold_seconds": 604_800 });
    let names = Names::made(client, "ci", &policy);
    let corpus = corpus(&names);
    let (taken, refused, silent) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (corpus, addr) = (&corpus, server.addr());
            let (taken, refused, silent) = (&taken, &refused, &silent);
            scope.spawn(move || {
                let random = &mut SeededRandom(seed.wrapping_mul(THREADS).wrapping_add(thread));
                let mut below = below(random);
                for run in 0..runs / THREADS {
                    let mut bytes = corpus[below(corpus.len())].clone();
                    for _ in 0..[1, 1, 1, 2, 4][below(5)] {
                        change(&mut bytes, corpus, &mut below);
                    }
                    let ways = [Way::Quick, Way::Behind, Way::Long];
                    let mut patience = Duration::from_millis(150);
                    // Where this machine was slower than the patience, more of it decides.
                    let all = loop {
                        let all = ways.map(|way| outcome(addr, way, &bytes, patience));
                        if all[1..].iter().all(|other| *other == all[0]) || patience.as_secs() > 2 {
                            break all;
                        }
                        patience *= 5;
                    };
                    let story = || {
                        format!(
                            "run {run} of {thread}, KEYPEG_SEED={seed}: {}",
                            bytes.escape_ascii()
                        )
                    };
                    assert!(all[1..].iter().all(|other| *other == all[0]), "{all:#?} {}", story());
                    let first = all[0].first().map_or("", |status| status.as_str());
                    let kind = if first.contains(" 20") {
                        taken
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
        "{runs} mutants: {taken:?} taken, {refused:?} refused, {silent:?} not ended, KEYPEG_SEED={seed}"
    );
    let many = |count: &AtomicUsize| count.load(Ordering::Relaxed) > 0;
    assert!(many(&taken) && many(&refused) && many(&silent));
}
