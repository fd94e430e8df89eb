//! A canary: a whole run, at the most talkative level, whose every secret is then looked for in
//! everything that was written or told and may not hold one.

use crate::support::tokens::Tokens;
use crate::support::{Answer, Server, TempDir, keypeg};
use serde_json::json;
use std::collections::BTreeSet;

/// A token that is none.
const GUESSED: &str = "kpt_guessed_by_somebody_who_has_none";

/// What was told, each with where, and what must be in none of it.
#[derive(Default)]
struct Canary {
    secrets: BTreeSet<String>,
    places: Vec<(String, String)>,
}

impl Canary {
    fn told(&mut self, place: &str, answer: &Answer) {
        let headers: Vec<_> = answer.headers.iter().map(|(_, value)| value.as_str()).collect();
        self.places.push((place.into(), format!("{} {}", headers.join("\n"), answer.body)));
    }

    fn secret(&mut self, secret: &str) {
        assert!(secret.len() >= 12, "{secret:?} could be anywhere");
        self.secrets.insert(secret.into());
    }

    /// How often any of them is in `text`, as it is or as a query or JSON would write it.
    fn hits(&self, text: &str) -> usize {
        let written = |secret: &str| {
            let encoded: Vec<_> = secret.bytes().map(|byte| format!("%{byte:02X}")).collect();
            let encoded = encoded.concat();
            [secret.to_owned(), encoded.to_lowercase(), encoded, json!(secret).to_string()]
        };
        let found = |secret: &&String| written(secret).iter().any(|form| text.contains(form));
        self.secrets.iter().filter(found).count()
    }
}

#[test]
fn no_secret_is_anywhere_but_in_the_bodies_that_carry_it() {
    let (dir, tokens) = (TempDir::new(), Tokens::new());
    let mut canary = Canary::default();
    let admin = tokens.add("admin", "*", &["admin"], &[]);
    let lend = tokens.add("lend", "default", &["lend"], &[]);
    for token in [&admin, &lend, GUESSED] {
        canary.secret(token);
    }
    let (log, audit) = (dir.path().join("log"), dir.path().join("audit"));
    let mut command = keypeg(&[]);
    command.args(tokens.args()).arg("--audit").arg(&audit).arg("--data");
    command.arg(dir.path().join("data")).env("KEYPEG_LOG", "trace");
    let mut server = Server::logged(&mut command, &log);
    let mut followed = server.client();
    let head = "GET /v1/pools/default/events HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
    followed.write(format!("{head}authorization: Bearer {admin}\r\n\r\n").as_bytes()).unwrap();
    use_it(&server, &mut canary, (&admin, &lend));
    // The stop ends what is followed; all is written then.
    server.terminate();
    canary.places.push(("events".into(), followed.rest()));
    canary.places.push(("ready line".into(), server.ready().into()));
    for (place, path) in [("log", &log), ("audit log", &audit), ("tokens' file", &tokens.path())] {
        canary.places.push((place.into(), std::fs::read_to_string(path).unwrap()));
    }
    let bytes: usize = canary.places.iter().map(|(_, text)| text.len()).sum();
    let hits: Vec<_> =
        canary.places.iter().filter(|(_, text)| canary.hits(text) > 0).map(|(at, _)| at).collect();
    println!(
        "{} secrets in {} places, {bytes} bytes: {} hits",
        canary.secrets.len(),
        canary.places.len(),
        hits.len()
    );
    assert!(hits.is_empty(), "{hits:?}");
    let sizes = (canary.secrets.len(), canary.places.len());
    assert!(sizes.0 > 60 && sizes.1 > 60 && bytes > 50_000, "{sizes:?}, {bytes} bytes");
    // The search sees what is there: the body that carried a secret is none of those places.
    let one = canary.secrets.first().unwrap();
    assert_eq!(canary.hits(&format!("x{one}y")), 1);
}

/// Everything there is, well and badly: answers that may carry a secret give theirs to the canary,
/// all others are places to look.
fn use_it(server: &Server, canary: &mut Canary, (admin, lend): (&str, &str)) {
    let client = &mut server.client();
    let pool = "/v1/pools/default";
    let bearer = format!("Bearer {admin}");
    let headers = [("authorization", &*bearer), ("content-type", "application/json")];
    for part in 0..4 {
        let values: Vec<_> = (0..10).map(|n| format!("imported-secret/{part}+{n}?&=\"ä")).collect();
        for value in &values {
            canary.secret(value);
        }
        let body = json!({ "values": values }).to_string();
        let request = format!("POST {pool}/keys");
        assert_eq!(client.try_send(&request, &headers, &body).unwrap().status, 201);
        let again = client.try_send(&request, &headers, &body).unwrap();
        canary.told("a value that is there", &again);
        let cut = client.try_send(&request, &headers, &body[..body.len() - 3]).unwrap();
        canary.told("a body cut off", &cut);
        let wrong = body.replace("\"values\"", "\"value\"");
        canary.told("a wrong field", &client.try_send(&request, &headers, &wrong).unwrap());
        let named = json!({ values[0].as_str(): 1 }).to_string();
        let named = client.try_send(&request, &headers, &named).unwrap();
        assert_eq!(named.status, 422);
    }
    for _ in 0..20 {
        let made = client.with(admin, &format!("POST {pool}/keys")).json();
        canary.secret(made["keys"][0]["key"].as_str().unwrap());
        let id = made["keys"][0]["id"].as_str().unwrap();
        canary.told("a key", &client.with(admin, &format!("GET {pool}/keys/{id}")));
        // What workers ask all day is answered elsewhere, on connections where nothing else is asked.
        let mut worker = server.client();
        let grant = worker.with(lend, &format!("POST {pool}/leases")).json();
        let lease = grant["id"].as_str().unwrap().to_owned();
        canary.secret(&lease);
        let released = format!("POST {pool}/leases/{lease}/release");
        let renew = format!("POST {pool}/leases/{lease}/renew");
        let keep = format!("POST {pool}/keys/{id}/keepalive");
        canary.told("a renewal", &worker.with(lend, &renew));
        canary.told("a keep-alive", &worker.with(lend, &keep));
        canary.told("a release", &worker.with(lend, &released));
        canary.told("a second release", &worker.with(lend, &released));
        canary.told("a release elsewhere", &client.with(lend, &released));
        canary.told("a worker without a token", &worker.ask(&released));
        canary.told("a worker's guess", &worker.with(GUESSED, &format!("POST {pool}/leases")));
        canary.told("a scope", &client.with(lend, &format!("POST {pool}/keys/{id}/reveal")));
    }
    let face = "/api/v1/random_api_key";
    for _ in 0..5 {
        let value = client.with(admin, &format!("POST {face}/")).text("api_key");
        canary.secret(&value);
        let delete = format!("DELETE {face}/?api_key={value}");
        canary.told("the seed's delete", &client.with(admin, &delete));
        canary.told("the seed's second delete", &client.with(admin, &delete));
        canary.told("a method", &client.with(admin, &format!("BREW {face}/?api_key={value}")));
        canary.told("no token", &client.ask(&delete));
        canary.told("a path", &client.with(admin, &format!("GET /nope/x?api_key={value}")));
    }
    canary.told("a guess", &client.with(GUESSED, &format!("GET {pool}")));
    for request in ["/v1/pools", pool, &format!("{pool}/keys?limit=1000"), "/metrics", "/version"] {
        canary.told(request, &client.with(admin, &format!("GET {request}")));
    }
    canary.told(
        "a token where none is read",
        &client.ask(&format!("GET {pool}?access_token={admin}")),
    );
}
