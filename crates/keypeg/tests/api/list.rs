//! Listing keys and pools over HTTP: pages, states and cursors. A page contains no secret.

use crate::support::{Client, Server, TempDir};
use serde_json::{Value, json};
use std::collections::HashSet;

const KEYS: &str = "/v1/pools/default/keys";

/// Reads all pages; returns the keys and the number of pages.
fn list(client: &mut Client, query: &str) -> (Vec<Value>, usize) {
    let (mut keys, mut pages, mut next) = (Vec::new(), 0, String::new());
    loop {
        let answer = client.ask(&format!("GET {KEYS}?{query}{next}"));
        let page = answer.is(200, &json!({ "keys": "*" }));
        keys.extend(page["keys"].as_array().unwrap().iter().cloned());
        pages += 1;
        let Value::String(cursor) = &page["next_cursor"] else { break };
        next = format!("&cursor={cursor}");
    }
    (keys, pages)
}

#[test]
fn keys_are_listed_page_by_page_with_the_same_members_as_a_single_key() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let nothing = json!({ "keys": [], "next_cursor": null });
    assert_eq!(client.ask(&format!("GET {KEYS}")).is(200, &nothing), nothing);
    let created =
        client.send(&format!("POST {KEYS}"), &json!({ "count": 250 })).is(201, &json!({}));
    let created: Vec<Value> = created["keys"].as_array().unwrap().clone();
    client.send("POST /v1/pools/default/leases", &json!({ "holder": "job-7" })).is(201, &json!({}));
    for (query, pages) in [("", 3), ("limit=1000", 1), ("limit=125", 2), ("limit=%37&", 36)] {
        let (keys, found) = list(client, query);
        assert_eq!((keys.len(), found), (250, pages), "{query}");
        let ids: HashSet<&str> = keys.iter().map(|key| key["id"].as_str().unwrap()).collect();
        assert!(created.iter().all(|key| ids.contains(key["id"].as_str().unwrap())), "{query}");
        let text = Value::from(keys).to_string();
        assert!(
            !created.iter().any(|key| text.contains(key["key"].as_str().unwrap())),
            "the page contains a secret"
        );
    }
    let (leased, _) = list(client, "state=leased");
    let [leased] = &leased[..] else { panic!("{leased:?}") };
    assert_eq!(leased["lease"]["holder"], "job-7");
    let single = client.ask(&format!("GET {KEYS}/{}", leased["id"].as_str().unwrap()));
    assert_eq!(single.is(200, &json!({})), *leased);
    assert_eq!(list(client, "state=available").0.len(), 249);
    assert_eq!(list(client, "state=resting").0.len(), 0);
    client.ask(&format!("HEAD {KEYS}?limit=1")).is(200, &Value::Null);
    client.ask("GET /v1/pools/default").is(200, &json!({ "leased": 1, "available": 249 }));
}

/// What needs a store that keeps its data: see CONTRIBUTING.md.
mod durability {
    use super::*;

    /// The list had no pages: with 10 000 pools it was one answer of 3.9 MB.
    #[test]
    fn pools_are_listed_page_by_page_also_across_a_restart() {
        let dir = TempDir::new();
        let mut server = Server::on(&dir, &[]);
        let client = &mut server.client();
        let mut names = vec!["default".to_owned()];
        for n in 0..12 {
            names.push(format!("p{n}"));
            client.ask(&format!("PUT /v1/pools/p{n}")).is(201, &json!({}));
        }
        names.sort();
        let name = |pool: &Value| pool["pool"].as_str().unwrap().to_owned();
        for (limit, pages) in [("", 1), ("limit=1000", 1), ("limit=13", 1), ("limit=5", 3)] {
            let (mut listed, mut found, mut next) = (Vec::new(), 0, String::new());
            loop {
                let page = client.ask(&format!("GET /v1/pools?{limit}{next}")).is(200, &json!({}));
                listed.extend(page["pools"].as_array().unwrap().iter().map(name));
                found += 1;
                let Value::String(cursor) = &page["next_cursor"] else { break };
                next = format!("&cursor={cursor}");
            }
            assert_eq!((&listed, found), (&names, pages), "{limit}");
        }
        let next = client.ask("GET /v1/pools?limit=5").text("next_cursor");
        let single = client.ask(&format!("GET /v1/pools/{next}")).json();
        server.kill();
        let server = Server::on(&dir, &[]);
        let client = &mut server.client();
        let page = client.ask(&format!("GET /v1/pools?limit=1&cursor={next}")).is(200, &json!({}));
        assert_eq!(page["pools"], json!([single]));
    }
}

#[test]
fn a_cursor_is_valid_for_its_pool_and_run_only() {
    let dir = TempDir::new();
    let mut server = Server::on(&dir, &[]);
    let client = &mut server.client();
    client.send(&format!("POST {KEYS}"), &json!({ "count": 2 })).is(201, &json!({}));
    client.ask("PUT /v1/pools/else").is(201, &json!({}));
    let next = client.ask(&format!("GET {KEYS}?limit=1")).text("next_cursor");
    client.ask(&format!("GET {KEYS}?cursor={next}")).is(200, &json!({ "next_cursor": null }));
    client.ask(&format!("GET /v1/pools/else/keys?cursor={next}")).problem(400, "bad_cursor");
    server.kill();
    let server = Server::on(&dir, &[]);
    let client = &mut server.client();
    client.ask(&format!("GET {KEYS}?cursor={next}")).problem(400, "bad_cursor");
}

/// A long list of keys to keep alive is executed in parts: each key counts once, and a missing id is
/// listed once, in whichever parts they are.
#[test]
fn a_long_list_of_keys_to_keep_alive_counts_each_key_once() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let created =
        client.send(&format!("POST {KEYS}"), &json!({ "count": 1_500 })).is(201, &json!({}));
    let ids: Vec<&Value> =
        created["keys"].as_array().unwrap().iter().map(|key| &key["id"]).collect();
    let unknown = json!("0".repeat(26));
    let named: Vec<&Value> =
        [&unknown].into_iter().chain(ids.iter().copied()).chain(ids.iter().copied()).collect();
    let named = [named, vec![&unknown]].concat();
    let kept = json!({ "kept": 1_500, "missing": [unknown] });
    let path = "POST /v1/pools/default/keepalive";
    assert_eq!(client.send(path, &json!({ "ids": named })).is(200, &kept), kept);
}
