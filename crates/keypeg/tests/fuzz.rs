//! Requests and configuration files that nobody meant to write, drawn under a seed.
//!
//! The server answers each with something its contract has, never with a 500, and goes on; its
//! counts agree at the end and no error repeats a key's value. `KEYPEG_FUZZ_RUNS` sets the runs of
//! each kind, `KEYPEG_SEED` repeats them.

#[path = "../../keypeg-core/tests/support/mutate.rs"]
pub(crate) mod mutate;

use crate::support::history::{SeededRandom, env_number};
use crate::support::{Client, Server, TempDir, keypeg};
use clap::Parser;
use keypeg::{Cli, Command, Config};
use mutate::mutate;
use serde_json::json;

pub(crate) fn below(random: &mut SeededRandom) -> impl FnMut(usize) -> usize {
    |bound| usize::try_from(random.below(u64::try_from(bound).unwrap())).unwrap()
}

/// Requests of every route, with bodies that are fine; what is in braces is drawn anew each time.
const REQUESTS: [(&str, &str); 26] = [
    ("GET /v1/pools", ""),
    ("PUT /v1/pools/{pool}", r#"{"lease_ttl_seconds":60,"max_hold_seconds":600,"rest_seconds":0}"#),
    ("PUT /v1/pools/{pool}", r#"{"key_length":16,"key_prefix":"ci_","max_keys":100}"#),
    ("PUT /v1/pools/{pool}", r#"{"keepalive_ttl_seconds":null,"lease_ttl_seconds":0.5}"#),
    ("GET /v1/pools/{pool}", ""),
    ("DELETE /v1/pools/{pool}", ""),
    ("POST /v1/pools/{pool}/keys", r#"{"count":3}"#),
    ("POST /v1/pools/{pool}/keys", r#"{"values":["one","two"]}"#),
    ("GET /v1/pools/{pool}/keys?state=leased&limit=10", ""),
    ("GET /v1/pools/{pool}/keys?limit=1&cursor={cursor}", ""),
    ("GET /v1/pools/{pool}/keys/{key}", ""),
    ("DELETE /v1/pools/{pool}/keys/{key}", ""),
    ("POST /v1/pools/{pool}/keys/{key}/release", "{}"),
    ("POST /v1/pools/{pool}/keys/{key}/keepalive", ""),
    ("POST /v1/pools/{pool}/keepalive", r#"{"ids":["{key}","{lease}"]}"#),
    ("POST /v1/pools/{pool}/keepalive", r#"{"all":true}"#),
    ("POST /v1/pools/{pool}/leases", r#"{"ttl_seconds":30,"wait_seconds":0,"holder":"job-7"}"#),
    ("POST /v1/pools/{pool}/leases/{lease}/release", r#"{"rest_seconds":1,"reason":"429"}"#),
    ("POST /v1/pools/{pool}/leases/{lease}/release", r#"{"quarantine":true}"#),
    ("POST /v1/pools/{pool}/leases/{lease}/renew", r#"{"ttl_seconds":30}"#),
    ("POST /api/v1/random_api_key/", r#"{"api_key":"three"}"#),
    ("GET /api/v1/random_api_key/", ""),
    ("PUT /api/v1/random_api_key/?api_key=three", ""),
    ("DELETE /api/v1/random_api_key/?api_key=three", ""),
    ("PUT /keys/{key}", ""),
    ("PUT /keepalive/{key}", ""),
];

/// What the answers so far have named.
struct Named {
    pools: Vec<String>,
    keys: Vec<String>,
    leases: Vec<String>,
    cursors: Vec<String>,
}

impl Named {
    fn fill(&self, text: &str, below: &mut impl FnMut(usize) -> usize) -> String {
        let mut text = text.to_owned();
        for (name, known) in [
            ("{pool}", &self.pools),
            ("{key}", &self.keys),
            ("{lease}", &self.leases),
            ("{cursor}", &self.cursors),
        ] {
            text = text.replace(name, &known[below(known.len())]);
        }
        text
    }

    /// Remembers the latest of each, in place of one that was drawn.
    fn learn(&mut self, body: &serde_json::Value, below: &mut impl FnMut(usize) -> usize) {
        let mut note = |known: &mut Vec<String>, value: &serde_json::Value| {
            if let Some(text) = value.as_str() {
                let at = below(known.len());
                text.clone_into(&mut known[at]);
            }
        };
        note(&mut self.keys, &body["keys"][0]["id"]);
        note(&mut self.keys, &body["key_id"]);
        note(&mut self.cursors, &body["next_cursor"]);
        if body["fencing_token"].is_u64() {
            note(&mut self.leases, &body["id"]);
        }
    }
}

/// Makes a target that can stand in a request line: what cannot is framing's business.
fn as_target(bytes: &[u8]) -> String {
    let sign = |byte: &u8| {
        if byte.is_ascii_graphic() { char::from(*byte) } else { char::from(b'a' + byte % 26) }
    };
    bytes.iter().map(sign).collect()
}

#[test]
fn requests_that_nobody_meant() {
    let (runs, seed) =
        (env_number("KEYPEG_FUZZ_RUNS").unwrap_or(6_000), env_number("KEYPEG_SEED").unwrap_or(1));
    let (dir, log) = (TempDir::new(), TempDir::new());
    let log = log.path().join("log");
    let mut command = keypeg(&["--data"]);
    command.arg(dir.path().join("data")).env("KEYPEG_LOG", "debug");
    let mut server = Server::logged(&mut command, &log);
    let client = &mut server.client();
    let secret = "the-one-value-that-is-never-told";
    client.send("PUT /v1/pools/secret", &json!({ "keepalive_ttl_seconds": null }));
    client.send("POST /v1/pools/secret/keys", &json!({ "values": [secret] })).is(201, &json!({}));
    let random = &mut SeededRandom(seed);
    let mut below = below(random);
    let nothing = || vec!["x".to_owned(); 8];
    let pools = ["default", "a", "b", "c"].map(Into::into).to_vec();
    let mut named = Named { pools, keys: nothing(), leases: nothing(), cursors: nothing() };
    let mut classes = [0_u64; 6];
    for run in 0..runs {
        let (request, body) = REQUESTS[below(REQUESTS.len())];
        let (mut request, mut body) =
            (named.fill(request, &mut below), named.fill(body, &mut below).into_bytes());
        if below(3) == 0 && !body.is_empty() {
            mutate(&mut body, &mut below);
        }
        if below(3) == 0 {
            let (method, target) = request.split_once(' ').unwrap();
            let mut target = target.as_bytes().to_vec();
            mutate(&mut target, &mut below);
            request = format!("{method} /{}", as_target(target.get(1..).unwrap_or_default()));
        }
        let answer = ask(client, &request, &body);
        let story = || format!("run {run}: {request} {}", String::from_utf8_lossy(&body));
        let fine = [503, 507].contains(&answer.status) || answer.status < 500;
        assert!(fine, "{}: {answer:?}", story());
        classes[usize::from(answer.status / 100)] += 1;
        assert!(!answer.body.contains(secret), "{}: {answer:?}", story());
        let json = answer.header("content-type").is_some_and(|kind| kind.ends_with("json"));
        assert!(json || answer.body.is_empty() || answer.status == 200, "{}", story());
        if json {
            named.learn(&answer.json(), &mut below);
        }
    }
    for pool in client.ask("GET /v1/pools").json()["pools"].as_array().unwrap() {
        let parts = ["available", "leased", "resting", "quarantined"];
        let sum: u64 = parts.iter().map(|part| pool[part].as_u64().unwrap()).sum();
        assert_eq!(pool["total"], sum, "{pool}");
    }
    assert_eq!(server.terminate().code(), Some(0));
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(!log.contains("panicked") && !log.contains(secret), "{log}");
    println!("{runs} requests, by class {classes:?}, KEYPEG_SEED={seed}");
    assert!(classes[2] > 0 && classes[4] > 0, "{classes:?}");
}

fn ask(client: &mut Client, request: &str, body: &[u8]) -> crate::support::Answer {
    let mut bytes = format!("{request} HTTP/1.1\r\nhost: localhost\r\n");
    if !body.is_empty() {
        let length = body.len().to_string();
        bytes.extend(["content-type: application/json\r\ncontent-length: ", &length, "\r\n"]);
    }
    bytes.push_str("\r\n");
    client.raw(&[bytes.as_bytes(), body].concat()).unwrap()
}

#[test]
fn configurations_that_nobody_meant() {
    let (runs, seed) =
        (env_number("KEYPEG_FUZZ_RUNS").unwrap_or(3_000), env_number("KEYPEG_SEED").unwrap_or(1));
    let dir = TempDir::new();
    let file = dir.path().join("keypeg.toml");
    let corpus = [
        "listen = \"127.0.0.1:8000\"\ndata = \"/var/lib/keypeg\"\nlease_ttl = \"60s\"\n",
        "# all\nkeepalive_ttl = '5m'\nexisting = false\nephemeral = true\n",
        "insecure_listen = true\nlisten = \"0.0.0.0:80\"\n",
        "lease_ttl = \"\"\"1h\"\"\"\n\"listen\" = \"[::1]:0\"\n",
    ];
    let random = &mut SeededRandom(seed);
    let mut below = below(random);
    let (mut taken, mut refused) = (0, 0);
    for run in 0..runs {
        let mut text = corpus[below(corpus.len())].as_bytes().to_vec();
        mutate(&mut text, &mut below);
        std::fs::write(&file, &text).unwrap();
        let line = ["keypeg", "serve", "--config", file.to_str().unwrap()];
        let Command::Serve(args) = Cli::try_parse_from(line).unwrap().command else {
            panic!("serve was asked for")
        };
        match Config::new(*args) {
            Err(failure) => {
                refused += 1;
                let said = failure.to_string();
                assert!(failure.exit == 78 && said.len() > 10, "run {run}: {said}");
            }
            Ok(config) => {
                taken += 1;
                let open = !config.listen.ip().is_loopback();
                let said = String::from_utf8_lossy(&text);
                assert!(!open || said.contains("insecure_listen"), "run {run}: {said}");
            }
        }
    }
    println!("{runs} files, {taken} taken, {refused} refused, KEYPEG_SEED={seed}");
    assert!(taken > 0 && refused > 0);
}
