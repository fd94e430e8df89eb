//! Drain of a pool over HTTP: it grants no key and refuses waits at once, everything else goes on.

use crate::support::{Server, eventually};
use serde_json::{Value, json};

const POOL: &str = "/v1/pools/default";

#[test]
fn a_draining_pool_grants_no_key_until_it_is_undone() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let put = format!("PUT {POOL}");
    client.send(&put, &json!({ "max_hold_seconds": 600 })).is(200, &json!({ "draining": false }));
    client.send(&format!("POST {POOL}/keys"), &json!({ "count": 2 })).is(201, &json!({}));
    let acquire = format!("POST {POOL}/leases");
    let grant = client.ask(&acquire).is(201, &json!({}));
    let lease = format!("{}/{}", &acquire[5..], grant["id"].as_str().unwrap());
    client.send(&put, &json!({ "draining": true })).is(200, &json!({ "draining": true }));
    let refused = json!({
        "code": "no_key_available", "cause": "draining", "available": 1, "leased": 1, "total": 2,
    });
    for body in [json!({}), json!({ "wait_seconds": 300 })] {
        let answer = client.send(&acquire, &body);
        assert_eq!(answer.header("retry-after"), None, "no time makes a key available");
        answer.is(404, &refused);
    }
    client.send(&put, &json!({ "rest_seconds": 0 })).is(200, &json!({ "draining": true }));
    let page = client.ask("GET /v1/pools").is(200, &json!({}));
    assert_eq!(
        (&page["pools"][0]["draining"], &page["pools"][0]["draining_keys"]),
        (&json!(true), &json!(0))
    );
    client.send(&format!("POST {lease}/renew"), &json!({})).is(200, &json!({}));
    client.send(&format!("POST {POOL}/keepalive"), &json!({ "all": true })).is(200, &json!({}));
    client.send(&format!("POST {POOL}/keys"), &json!({ "values": ["v"] })).is(201, &json!({}));
    client.send(&format!("POST {lease}/release"), &json!({})).is(204, &Value::Null);
    client.ask(&acquire).is(404, &json!({ "cause": "draining", "available": 3, "leased": 0 }));
    client.send(&put, &json!({ "draining": false })).is(200, &json!({ "draining": false }));
    client.ask(&acquire).is(201, &json!({}));
}

#[test]
fn the_refusals_of_a_draining_pool_are_counted() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.send(&format!("PUT {POOL}"), &json!({ "draining": true })).is(200, &json!({}));
    for body in [json!({}), json!({ "wait_seconds": 300 })] {
        client.send(&format!("POST {POOL}/leases"), &body).is(404, &json!({ "cause": "draining" }));
    }
    let metrics = client.ask("GET /metrics").body;
    let refusals = "keypeg_pool_refusals_total{pool=\"default\",cause=\"draining\"} 2";
    assert!(metrics.contains(refusals), "{metrics}");
}

#[test]
fn a_waiting_request_is_refused_when_its_pool_begins_to_drain() {
    let server = Server::in_memory(&[]);
    let waiting = &mut server.client();
    let client = &mut server.client();
    let acquire = format!("POST {POOL}/leases");
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| waiting.send(&acquire, &json!({ "wait_seconds": 200 })));
        eventually("the request waits", || {
            let pool = client.ask(&format!("GET {POOL}")).json();
            (pool["waiting"] == 1).then_some(())
        });
        let drained = json!({ "draining": true, "waiting": 0 });
        client.send(&format!("PUT {POOL}"), &json!({ "draining": true })).is(200, &drained);
        let answer = waiter.join().unwrap();
        answer.is(404, &json!({ "code": "no_key_available", "cause": "draining" }));
    });
}
