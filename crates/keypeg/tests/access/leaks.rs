//! A search for leaked secrets: a whole run at the most verbose log level, whose every secret is
//! then searched for in all output that must not contain one.

use crate::support::tokens::Tokens;
use crate::support::{Answer, Server, TempDir, eventually, keypeg};
use serde_json::json;
use std::collections::BTreeSet;

/// A string that is not a valid token.
const GUESSED: &str = "kpt_guessed_without_a_valid_token";

/// All secrets, and all output that must contain none of them.
#[derive(Default)]
struct LeakSearch {
    secrets: BTreeSet<String>,
    /// Each output with its name.
    outputs: Vec<(String, String)>,
}

impl LeakSearch {
    fn add_answer(&mut self, name: &str, answer: &Answer) {
        let headers: Vec<_> = answer.headers.iter().map(|(_, value)| value.as_str()).collect();
        self.outputs.push((name.into(), format!("{} {}", headers.join("\n"), answer.body)));
    }

    fn add_secret(&mut self, secret: &str) {
        assert!(secret.len() >= 12, "{secret:?} is too short to search for");
        self.secrets.insert(secret.into());
    }

    /// Counts the secrets in `text`, as they are and as a query or JSON encodes them.
    fn hits(&self, text: &str) -> usize {
        let encodings = |secret: &str| {
            let encoded: Vec<_> = secret.bytes().map(|byte| format!("%{byte:02X}")).collect();
            let encoded = encoded.concat();
            [secret.to_owned(), encoded.to_lowercase(), encoded, json!(secret).to_string()]
        };
        let found = |secret: &&String| encodings(secret).iter().any(|form| text.contains(form));
        self.secrets.iter().filter(found).count()
    }
}

#[test]
fn no_secret_is_in_any_output_but_the_bodies_that_deliver_it() {
    let (dir, tokens) = (TempDir::new(), Tokens::new());
    let mut search = LeakSearch::default();
    let admin = tokens.add("admin", "*", &["admin"], &[]);
    let lend = tokens.add("lend", "default", &["lend"], &[]);
    for token in [&admin, &lend, GUESSED] {
        search.add_secret(token);
    }
    let (log, audit) = (dir.path().join("log"), dir.path().join("audit"));
    let mut command = keypeg(&[]);
    command.args(tokens.args()).arg("--audit").arg(&audit).arg("--data");
    command.arg(dir.path().join("data")).env("KEYPEG_LOG", "trace");
    let mut server = Server::logged(&mut command, &log);
    let mut events = server.client();
    let head = "GET /v1/pools/default/events HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
    events.write(format!("{head}authorization: Bearer {admin}\r\n\r\n").as_bytes()).unwrap();
    use_all_routes(&server, &mut search, (&admin, &lend));
    // The stop ends the event stream; all output is written then.
    server.terminate();
    search.outputs.push(("events".into(), events.rest()));
    search.outputs.push(("ready line".into(), server.ready().into()));
    for (name, path) in [("log", &log), ("audit log", &audit), ("token file", &tokens.path())] {
        search.outputs.push((name.into(), std::fs::read_to_string(path).unwrap()));
    }
    let bytes: usize = search.outputs.iter().map(|(_, text)| text.len()).sum();
    let hits: Vec<_> = search
        .outputs
        .iter()
        .filter(|(_, text)| search.hits(text) > 0)
        .map(|(name, _)| name)
        .collect();
    println!(
        "{} secrets in {} outputs, {bytes} bytes: {} hits",
        search.secrets.len(),
        search.outputs.len(),
        hits.len()
    );
    assert!(hits.is_empty(), "{hits:?}");
    let sizes = (search.secrets.len(), search.outputs.len());
    assert!(sizes.0 > 60 && sizes.1 > 60 && bytes > 50_000, "{sizes:?}, {bytes} bytes");
    // The search finds a secret that is there.
    let one = search.secrets.first().unwrap();
    assert_eq!(search.hits(&format!("x{one}y")), 1);
}

/// Sends valid and invalid requests to all routes. Secrets of the answers that may deliver them are
/// added to the search; all other answers are added as output.
fn use_all_routes(server: &Server, search: &mut LeakSearch, (admin, lend): (&str, &str)) {
    let client = &mut server.client();
    let pool = "/v1/pools/default";
    let bearer = format!("Bearer {admin}");
    let headers = [("authorization", &*bearer), ("content-type", "application/json")];
    for part in 0..4 {
        let values: Vec<_> = (0..10).map(|n| format!("imported-secret/{part}+{n}?&=\"ä")).collect();
        for value in &values {
            search.add_secret(value);
        }
        let body = json!({ "values": values }).to_string();
        let request = format!("POST {pool}/keys");
        assert_eq!(client.try_send(&request, &headers, &body).unwrap().status, 201);
        let again = client.try_send(&request, &headers, &body).unwrap();
        search.add_answer("a value that exists", &again);
        let cut = client.try_send(&request, &headers, &body[..body.len() - 3]).unwrap();
        search.add_answer("a truncated body", &cut);
        let wrong = body.replace("\"values\"", "\"value\"");
        search.add_answer("a wrong field", &client.try_send(&request, &headers, &wrong).unwrap());
        let named = json!({ values[0].as_str(): 1 }).to_string();
        let named = client.try_send(&request, &headers, &named).unwrap();
        assert_eq!(named.status, 422);
    }
    for _ in 0..20 {
        let generated = client.with(admin, &format!("POST {pool}/keys")).json();
        search.add_secret(generated["keys"][0]["key"].as_str().unwrap());
        let id = generated["keys"][0]["id"].as_str().unwrap();
        search.add_answer("a key", &client.with(admin, &format!("GET {pool}/keys/{id}")));
        // A connection with nothing but the calls of the fast path stays on it.
        let mut worker = server.client();
        let grant = worker.with(lend, &format!("POST {pool}/leases")).json();
        let lease = grant["id"].as_str().unwrap().to_owned();
        search.add_secret(&lease);
        let released = format!("POST {pool}/leases/{lease}/release");
        let renew = format!("POST {pool}/leases/{lease}/renew");
        let keep = format!("POST {pool}/keys/{id}/keepalive");
        // Within the clock tick of its grant, a renewal has nothing to extend, and succeeds.
        let renewal = eventually("a renewal is refused", || {
            Some(worker.with(lend, &renew)).filter(|answer| answer.status == 409)
        });
        search.add_answer("a renewal", &renewal);
        search.add_answer("a keep-alive", &worker.with(lend, &keep));
        search.add_answer("a release", &worker.with(lend, &released));
        search.add_answer("a second release", &worker.with(lend, &released));
        search.add_answer("a release by hyper", &client.with(lend, &released));
        search.add_answer("a worker without a token", &worker.ask(&released));
        search
            .add_answer("a worker's guess", &worker.with(GUESSED, &format!("POST {pool}/leases")));
        search.add_answer("a scope", &client.with(lend, &format!("POST {pool}/keys/{id}/reveal")));
    }
    let django = "/api/v1/random_api_key";
    for _ in 0..5 {
        let value = client.with(admin, &format!("POST {django}/")).text("api_key");
        search.add_secret(&value);
        let delete = format!("DELETE {django}/?api_key={value}");
        search.add_answer("a delete of the Django API", &client.with(admin, &delete));
        search.add_answer("a second delete of the Django API", &client.with(admin, &delete));
        search.add_answer(
            "a method",
            &client.with(admin, &format!("BREW {django}/?api_key={value}")),
        );
        search.add_answer("no token", &client.ask(&delete));
        search.add_answer("a path", &client.with(admin, &format!("GET /nope/x?api_key={value}")));
    }
    search.add_answer("a guess", &client.with(GUESSED, &format!("GET {pool}")));
    for request in ["/v1/pools", pool, &format!("{pool}/keys?limit=1000"), "/metrics", "/version"] {
        search.add_answer(request, &client.with(admin, &format!("GET {request}")));
    }
    search.add_answer(
        "a token as a parameter",
        &client.ask(&format!("GET {pool}?access_token={admin}")),
    );
}
