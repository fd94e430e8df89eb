//! A gateway in front of a service: nginx with `deploy/gateways/nginx.conf` lets a request pass while
//! its key is leased.

use super::recorder::Recorder;
use super::{Kind, Proxy, of_nginx, replaced, without};
use crate::deploy::text;
use crate::support::{Answer, Client, Server, eventually};
use serde_json::{Value, json};
use std::net::SocketAddr;

/// How often a key is lent and released.
const ROUNDS: usize = 1000;

/// Starts nginx with the shipped configuration, between clients and a service.
fn gateway(server: SocketAddr, service: SocketAddr) -> Option<Proxy> {
    Kind::Nginx.can_run().then(|| {
        Proxy::run(Kind::Nginx, |dir, addr| {
            let conf = text("gateways/nginx.conf");
            let conf = replaced(&conf, "127.0.0.1:8000", &server.to_string());
            let conf = replaced(&conf, "127.0.0.1:9000", &service.to_string());
            let conf = replaced(&conf, "443 ssl http2", &addr.to_string());
            let logs = "access_log access.log;\nerror_log error.log;\n";
            of_nginx(&format!("{logs}{}", without(&conf, "    ssl_")), dir)
        })
    })
}

/// A server with one account in the pool of the configuration, and a client of it.
fn with_account() -> (Server, Client) {
    let server = Server::in_memory(&["--behind-proxy", "127.0.0.1"]);
    let mut client = server.client();
    client.send("PUT /v1/pools/api", &json!({ "max_hold_seconds": 600 })).is(201, &json!({}));
    client.send("POST /v1/pools/api/keys", &json!({ "values": ["account"] })).is(201, &json!({}));
    (server, client)
}

fn acquire(client: &mut Client, body: &Value) -> Value {
    client.send("POST /v1/pools/api/leases", body).is(201, &json!({}))
}

fn release(client: &mut Client, lease: &Value) {
    let id = lease["id"].as_str().unwrap();
    client.ask(&format!("POST /v1/pools/api/leases/{id}/release")).is(204, &Value::Null);
}

fn request(through: &mut Client, headers: &[(&str, &str)]) -> Answer {
    through.try_send("GET /work?secret=1", headers, "").unwrap()
}

#[test]
fn the_service_gets_only_requests_with_a_leased_key_and_learns_its_holder() {
    let (server, mut client) = with_account();
    let service = Recorder::start();
    let Some(gateway) = gateway(server.addr(), service.addr()) else { return };
    let mut through = gateway.client();
    for headers in [&[][..], &[("x-api-key", "")]] {
        let challenge = request(&mut through, headers);
        assert_eq!(challenge.status, 401);
        assert_eq!(challenge.header("www-authenticate"), Some("ApiKey header=\"X-Api-Key\""));
    }
    for value in ["unknown", "account", "account, account"] {
        assert_eq!(request(&mut through, &[("x-api-key", value)]).status, 403, "{value:?}");
    }
    assert!(service.heads().is_empty(), "{:?}", service.heads());

    let lease = acquire(&mut client, &json!({ "holder": "job 7" }));
    let forged =
        [("x-api-key", "account"), ("keypeg-holder", "root"), ("keypeg-fencing-token", "9")];
    assert_eq!(request(&mut through, &forged).status, 200);
    let heads = service.heads();
    let [head] = &heads[..] else { panic!("{heads:?}") };
    let head = head.to_lowercase();
    for line in [
        "get /work?secret=1 http/1.1\r\n".to_owned(),
        "\r\nkeypeg-holder: job%207\r\n".to_owned(),
        format!("\r\nkeypeg-fencing-token: {}\r\n", lease["fencing_token"]),
        format!("\r\nkeypeg-key-id: {}\r\n", lease["key_id"].as_str().unwrap()),
    ] {
        assert!(head.contains(&line), "{line:?} in {head}");
    }
    assert!(!head.contains("account") && !head.contains("root"), "{head}");
}

/// The next request after the answer to the release, in each round.
#[test]
fn a_released_holder_is_turned_away_at_the_gateway_every_time() {
    let (server, mut client) = with_account();
    let service = Recorder::start();
    let Some(gateway) = gateway(server.addr(), service.addr()) else { return };
    let mut through = gateway.client();
    let headers = [("x-api-key", "account")];
    for round in 0..ROUNDS {
        let lease = acquire(&mut client, &json!({}));
        assert_eq!(request(&mut through, &headers).status, 200, "round {round}");
        release(&mut client, &lease);
        assert_eq!(request(&mut through, &headers).status, 403, "round {round}");
    }
    assert_eq!(service.heads().len(), ROUNDS);
    // A lease that ends by time, or by an operator.
    acquire(&mut client, &json!({ "ttl_seconds": 0.2 }));
    eventually("the end of the lease", || {
        (request(&mut through, &headers).status == 403).then_some(())
    });
    let lease = acquire(&mut client, &json!({}));
    assert_eq!(request(&mut through, &headers).status, 200);
    let key = lease["key_id"].as_str().unwrap();
    client.ask(&format!("POST /v1/pools/api/keys/{key}/release")).is(200, &json!({}));
    assert_eq!(request(&mut through, &headers).status, 403);
}

#[test]
fn without_an_answer_of_the_server_no_request_passes() {
    let (server, mut client) = with_account();
    let service = Recorder::start();
    let Some(gateway) = gateway(server.addr(), service.addr()) else { return };
    let mut through = gateway.client();
    acquire(&mut client, &json!({}));
    drop(client);
    drop(server);
    let answer = request(&mut through, &[("x-api-key", "account")]);
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert!(service.heads().is_empty());
}
