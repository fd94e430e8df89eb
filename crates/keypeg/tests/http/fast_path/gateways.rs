//! Verifications for gateways: the fast path and hyper answer them equally, the headers in one order.

use super::Servers;
use super::calls::{Case, case, run_all};
use serde_json::json;

/// In a pool of its own, with one leased key, whose value is the name of the case's pool.
const AUTHORIZE: &str = "GET /v1/pools/v-<pool>/verify";
const KEY: &str = "X-Api-Key: <pool>\r\n";

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (headers, status) in [
        ("X-Api-Key: <pool>\r\n", "204"),
        ("Connection: keep-alive\r\nx-api-key:\t<pool> \r\n", "204"),
        ("X-Api-Key: <pool>\r\nContent-Length: 0\r\n", "204"),
        ("X-Api-Key: <pool>\r\nX-Forwarded-For: 203.0.113.7\r\n", "204"),
        ("X-Api-Key: <pool>\r\nSec-Fetch-Site: cross-site\r\n", "204"),
        ("X-Api-Key: <pool>\r\nOrigin: http://evil.example\r\n", "204"),
        ("X-Api-Key: <pool>\r\nIf-None-Match: *\r\n", "204"),
        ("X-Api-Key: <pool>\r\nConnection: close\r\n", "204"),
        ("X-Api-Key: <pool>\r\nTransfer-Encoding: gzip\r\n", "400"),
        ("X-Api-Key: <pool>\r\nHost: localhost\r\n", "400"),
        ("", "401"),
        ("X-Api-Key:\r\n", "403"),
        ("X-Api-Key: unknown\r\n", "403"),
        ("X-Api-Key: \u{e4}\r\n", "403"),
        ("X-Api-Key: <pool>\r\nX-Api-Key: <pool>\r\n", "403"),
    ] {
        cases.push(case(AUTHORIZE, headers, "", status));
    }
    let long = format!("X-Api-Key: {}\r\n", "x".repeat(4097));
    cases.push(case(AUTHORIZE, &long, "", "403"));
    cases.push(case(AUTHORIZE, KEY, "{}", "204"));
    for (line, status) in [
        (AUTHORIZE.replace("GET", "HEAD"), "204"),
        (AUTHORIZE.replace("GET", "OPTIONS"), "204"),
        (AUTHORIZE.replace("GET", "PUT"), "405"),
        (AUTHORIZE.replace("v-<pool>", "nope"), "404"),
        (AUTHORIZE.replace("v-<pool>", "Bad"), "404"),
        (format!("{AUTHORIZE}/"), "404"),
        (format!("{AUTHORIZE}/x"), "404"),
        (format!("{AUTHORIZE}?states=leased"), "204"),
        (format!("{AUTHORIZE}?states=resting"), "403"),
        (format!("{AUTHORIZE}?states=x"), "422"),
    ] {
        cases.push(case(&line, KEY, "", status));
    }
    cases
}

#[test]
fn verifications_of_gateways_are_answered_equally() {
    let (servers, cases) = (Servers::new(&[]), cases());
    for (_, server) in &servers.servers {
        let mut client = server.client();
        for pool in
            (0..cases.len()).flat_map(|index| [false, true].map(|it| format!("c{index}-{it}")))
        {
            let path = format!("/v1/pools/v-{pool}");
            // However long the other pools take, its lease runs until it is verified.
            let policy = json!({ "lease_ttl_seconds": 3600 });
            client.send(&format!("PUT {path}"), &policy).is(201, &json!({}));
            let values = json!({ "values": [pool] });
            client.send(&format!("POST {path}/keys"), &values).is(201, &json!({}));
            let lease = json!({ "holder": "a gateway" });
            client.send(&format!("POST {path}/leases"), &lease).is(201, &json!({}));
        }
    }
    println!("{} cases", run_all(&servers, &cases));
}
