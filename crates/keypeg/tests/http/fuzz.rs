//! Random requests and configuration files, mutated from valid ones under a seed.
//!
//! The server answers each request within its contract, never with 500, and continues to serve. At
//! the end its counts agree, and no answer contains the value of a key that was never lent.
//! `KEYPEG_FUZZ_RUNS` sets the number of runs of each kind, `KEYPEG_SEED` repeats them.

use crate::support::history::{SeededRandom, env_number};
use crate::support::{Client, Server, TempDir, keypeg};
use clap::Parser;
use keypeg::{Cli, Command, Config};
use keypeg_testkit::mutate;
use serde_json::json;

pub(crate) fn below(random: &mut SeededRandom) -> impl FnMut(usize) -> usize {
    |bound| usize::try_from(random.below(u64::try_from(bound).unwrap())).unwrap()
}

/// Valid requests of every route. A name in braces is replaced by a random one on each run.
const REQUESTS: [(&str, &str); 26] = [
    ("GET /v1/pools", ""),
    ("PUT /v1/pools/{pool}", r#"{"lease_ttl_seconds":60,"max_hold_seconds":600,"rest_seconds":0}"#),
    ("PUT /v1/pools/{pool}", r#"{"key_length":20,"key_prefix":"ci_","max_keys":100}"#),
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

/// Names that occurred in earlier answers.
struct KnownNames {
    pools: Vec<String>,
    keys: Vec<String>,
    leases: Vec<String>,
    cursors: Vec<String>,
}

impl KnownNames {
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

    /// Stores the names of an answer, each in place of a random earlier one.
    fn learn(&mut self, body: &serde_json::Value, below: &mut impl FnMut(usize) -> usize) {
        let mut store = |known: &mut Vec<String>, value: &serde_json::Value| {
            if let Some(text) = value.as_str() {
                let index = below(known.len());
                text.clone_into(&mut known[index]);
            }
        };
        store(&mut self.keys, &body["keys"][0]["id"]);
        store(&mut self.keys, &body["key_id"]);
        store(&mut self.cursors, &body["next_cursor"]);
        if body["fencing_token"].is_u64() {
            store(&mut self.leases, &body["id"]);
        }
    }
}

/// Maps bytes to a target that is valid in a request line; `framing.rs` tests invalid ones.
fn as_target(bytes: &[u8]) -> String {
    let char_of = |byte: &u8| {
        if byte.is_ascii_graphic() { char::from(*byte) } else { char::from(b'a' + byte % 26) }
    };
    bytes.iter().map(char_of).collect()
}

#[test]
fn random_requests_are_answered_within_the_contract() {
    let (runs, seed) =
        (env_number("KEYPEG_FUZZ_RUNS").unwrap_or(6_000), env_number("KEYPEG_SEED").unwrap_or(1));
    let (dir, log) = (TempDir::new(), TempDir::new());
    let log = log.path().join("log");
    let mut command = keypeg(&["--data"]);
    command.arg(dir.path().join("data")).env("KEYPEG_LOG", "debug");
    let mut server = Server::logged(&mut command, &log);
    let client = &mut server.client();
    let secret = "a-value-that-is-never-lent";
    client.send("PUT /v1/pools/secret", &json!({ "keepalive_ttl_seconds": null }));
    client.send("POST /v1/pools/secret/keys", &json!({ "values": [secret] })).is(201, &json!({}));
    let random = &mut SeededRandom(seed);
    let mut below = below(random);
    let placeholders = || vec!["x".to_owned(); 8];
    let pools = ["default", "a", "b", "c"].map(Into::into).to_vec();
    let mut names =
        KnownNames { pools, keys: placeholders(), leases: placeholders(), cursors: placeholders() };
    let mut classes = [0_u64; 6];
    for run in 0..runs {
        let (request, body) = REQUESTS[below(REQUESTS.len())];
        let (mut request, mut body) =
            (names.fill(request, &mut below), names.fill(body, &mut below).into_bytes());
        if below(3) == 0 && !body.is_empty() {
            mutate(&mut body, &mut below);
        }
        if below(3) == 0 {
            let (method, target) = request.split_once(' ').unwrap();
            let mut target = target.as_bytes().to_vec();
            mutate(&mut target, &mut below);
            request = format!("{method} /{}", as_target(target.get(1..).unwrap_or_default()));
        }
        let answer = send(client, &request, &body);
        let describe = || format!("run {run}: {request} {}", String::from_utf8_lossy(&body));
        let is_allowed = [503, 507].contains(&answer.status) || answer.status < 500;
        assert!(is_allowed, "{}: {answer:?}", describe());
        classes[usize::from(answer.status / 100)] += 1;
        assert!(!answer.body.contains(secret), "{}: {answer:?}", describe());
        let is_json = answer.header("content-type").is_some_and(|kind| kind.ends_with("json"));
        assert!(is_json || answer.body.is_empty() || answer.status == 200, "{}", describe());
        if is_json {
            names.learn(&answer.json(), &mut below);
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

fn send(client: &mut Client, request: &str, body: &[u8]) -> crate::support::Answer {
    let mut bytes = format!("{request} HTTP/1.1\r\nhost: localhost\r\n");
    if !body.is_empty() {
        let length = body.len().to_string();
        bytes.extend(["content-type: application/json\r\ncontent-length: ", &length, "\r\n"]);
    }
    bytes.push_str("\r\n");
    client.raw(&[bytes.as_bytes(), body].concat()).unwrap()
}

#[test]
fn random_configuration_files_are_refused_or_valid() {
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
    let (mut accepted, mut refused) = (0, 0);
    for run in 0..runs {
        let mut text = corpus[below(corpus.len())].as_bytes().to_vec();
        mutate(&mut text, &mut below);
        std::fs::write(&file, &text).unwrap();
        let line = ["keypeg", "serve", "--config", file.to_str().unwrap()];
        let Command::Serve(args) = Cli::try_parse_from(line).unwrap().command else {
            panic!("not serve")
        };
        match Config::new(*args) {
            Err(failure) => {
                refused += 1;
                let message = failure.to_string();
                assert!(failure.exit == 78 && message.len() > 10, "run {run}: {message}");
            }
            Ok(config) => {
                accepted += 1;
                let is_public = !config.listen.ip().is_loopback();
                let text = String::from_utf8_lossy(&text);
                assert!(!is_public || text.contains("insecure_listen"), "run {run}: {text}");
            }
        }
    }
    println!("{runs} files, {accepted} accepted, {refused} refused, KEYPEG_SEED={seed}");
    assert!(accepted > 0 && refused > 0);
}
