//! The audit log: who did what, and that nothing is done that it is not told of.

use crate::support::tokens::Tokens;
use crate::support::{Server, TempDir, eventually, exit_of, keypeg};
use keypeg_client::routes::ROUTES;
use serde_json::{Value, json};
use std::path::Path;

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn audited(dir: &TempDir, more: &[&str]) -> Server {
    let log = dir.path().join("audit");
    Server::in_memory(&[&["--audit", log.to_str().unwrap()], more].concat())
}

/// Each change is a line, with what it was about; what reads or keeps alive is none.
#[test]
fn each_change_is_told_with_who_what_and_what_came_of_it() {
    let (dir, tokens) = (TempDir::new(), Tokens::new());
    let admin = tokens.add("admin", "*", &["admin"], &[]);
    let lender = tokens.add("lender", "ci", &["lend"], &[]);
    let file = tokens.args();
    let mut server = audited(&dir, &[&file[0], &file[1]]);
    let client = &mut server.client();
    let policy = json!({ "max_hold_seconds": 600 }).to_string();
    let bearer = format!("Bearer {admin}");
    let headers = [("authorization", &*bearer), ("content-type", "application/json")];
    client.try_send("PUT /v1/pools/ci", &headers, &policy).unwrap().is(201, &json!({}));
    // Each on a connection of its own: what workers ask is answered elsewhere than the rest.
    let ask = |token: &str, request: &str| server.client().with(token, request);
    let key = ask(&admin, "POST /v1/pools/ci/keys").json()["keys"][0]["id"].clone();
    let id = key.as_str().unwrap();
    let grant = ask(&lender, "POST /v1/pools/ci/leases").json();
    let lease = grant["id"].as_str().unwrap();
    let token = &grant["fencing_token"];
    ask(&lender, "POST /v1/pools/ci/leases").problem(404, "no_key_available");
    ask(&lender, &format!("POST /v1/pools/ci/leases/{lease}/renew"));
    ask(&lender, &format!("POST /v1/pools/ci/keys/{id}/keepalive")).is(200, &json!({}));
    ask(&lender, "GET /v1/pools").problem(403, "forbidden");
    ask(&lender, &format!("POST /v1/pools/ci/leases/{lease}/release")).is(204, &Value::Null);
    ask(&lender, &format!("DELETE /v1/pools/ci/keys/{id}")).problem(403, "forbidden");
    ask("wrong", "POST /keys").problem(401, "unauthorized");
    ask(&admin, &format!("POST /v1/pools/ci/keys/{id}/reveal")).is(200, &json!({}));
    ask(&admin, &format!("DELETE /v1/pools/ci/keys/{id}")).is(204, &Value::Null);
    let value = ask(&admin, "POST /api/v1/random_api_key/").text("api_key");
    ask(&admin, "GET /api/v1/random_api_key/").is(200, &json!({}));
    ask(&admin, &format!("PUT /api/v1/random_api_key/?api_key={value}")).is(200, &json!({}));
    ask(&admin, "POST /v1/pools/ci/keys/x/y").problem(404, "not_found");
    server.terminate();
    let told = lines(&dir.path().join("audit"));
    let short: Vec<_> = told
        .iter()
        .map(|line| {
            let word = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
            let names = ["token", "operation", "pool", "outcome", "code"];
            format!("{} {}", names.map(word).join(" "), line["status"])
        })
        .collect();
    assert_eq!(
        short,
        [
            "admin putPool ci applied - 201",
            "admin addKeys ci applied - 201",
            "lender acquire ci applied - 201",
            "lender acquire ci refused no_key_available 404",
            "lender renew ci applied - 200",
            "lender release ci applied - 204",
            "lender deleteKey ci refused forbidden 403",
            "- plainGenerate default refused unauthorized 401",
            "admin revealKey ci applied - 200",
            "admin deleteKey ci applied - 204",
            "admin seedAdd default applied - 201",
            "admin seedAcquire default applied - 200",
            "admin seedRelease default applied - 200",
        ]
    );
    for at in [1, 2, 4, 8, 9] {
        assert_eq!((&told[at]["key_ids"], &told[at]["keys"]), (&json!([id]), &json!(1)), "{at}");
    }
    for at in [2, 4, 5] {
        assert_eq!(&told[at]["fencing_token"], token, "{at}");
    }
    assert_eq!(told[10]["key_ids"], told[12]["key_ids"], "named by its value, told by its id");
    for line in &told {
        assert_eq!(line["address"], "127.0.0.1");
        assert!(line["at"].as_str().unwrap().ends_with('Z') && line["request_id"].is_string());
    }
}

/// A log that cannot go on: changes are refused, and nothing is changed; reading and keeping alive go
/// on, and all resumes by itself.
#[test]
fn nothing_is_changed_that_could_not_be_told() {
    let dir = TempDir::new();
    let below = dir.path().join("below");
    std::fs::create_dir(&below).unwrap();
    let log = below.join("audit");
    let args = ["--audit", log.to_str().unwrap(), "--audit-mib", "1", "--audit-keep", "0"];
    let mut server = Server::in_memory(&args);
    let client = &mut server.client();
    // The next file would be begun in a directory that is not there.
    std::fs::remove_dir_all(&below).unwrap();
    let (mut made, many) = (0, json!({ "count": 100 }));
    let refused = loop {
        let answer = client.send("POST /v1/pools/default/keys", &many);
        if answer.status != 201 {
            break answer;
        }
        made += 100;
        assert!(made < 1_000_000, "the log grows for ever");
    };
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.problem(503, "overloaded")["outcome"], "not_applied");
    for change in [
        "POST /v1/pools/default/leases",
        "PUT /v1/pools/ci",
        "GET /keys",
        "GET /api/v1/random_api_key/",
        "POST /api/v1/random_api_key/",
    ] {
        client.ask(change).problem(503, "overloaded");
    }
    let keep = json!({ "all": true });
    let kept = client.send("POST /v1/pools/default/keepalive", &keep);
    kept.is(200, &json!({ "kept": made }));
    let counts = json!({ "total": made, "leased": 0 });
    client.ask("GET /v1/pools/default").is(200, &counts);
    let metrics = client.ask("GET /metrics").body;
    assert!(metrics.contains("\nkeypeg_audit_failing 1\n"), "{metrics}");
    std::fs::create_dir(&below).unwrap();
    eventually("resumes", || {
        (client.ask("POST /v1/pools/default/leases").status == 201).then_some(())
    });
    server.terminate();
    assert!(lines(&log).iter().any(|line| line["operation"] == "acquire"));
}

/// Whoever hangs up is told of too.
#[test]
fn a_change_whose_asker_has_gone_is_told() {
    let dir = TempDir::new();
    let mut server = audited(&dir, &[]);
    let log = dir.path().join("audit");
    let body =
        "content-type: application/json\r\ncontent-length: 21\r\n\r\n{\"wait_seconds\": 300}";
    // By hyper, and ahead of it.
    for (before, rest) in ["prefer: wait=300\r\n\r\n", body].into_iter().enumerate() {
        let head = "POST /v1/pools/default/leases HTTP/1.1\r\nhost: localhost\r\n";
        let mut client = server.client();
        client.write(format!("{head}{rest}").as_bytes()).unwrap();
        eventually("waits", || {
            let pool = server.client().ask("GET /v1/pools/default").json();
            (pool["waiting"] == 1).then_some(())
        });
        drop(client);
        let told = eventually("told", || lines(&log).into_iter().nth(before));
        assert_eq!((&told["operation"], &told["outcome"]), (&json!("acquire"), &json!("unknown")));
        assert!(told["status"].is_null());
    }
    server.terminate();
}

/// Many keys are one line that says how many, and names the first hundred.
#[test]
fn a_line_is_bounded() {
    let dir = TempDir::new();
    let mut server = audited(&dir, &[]);
    server.client().send("POST /v1/pools/default/keys", &json!({ "count": 10_000 }));
    server.terminate();
    let told = lines(&dir.path().join("audit"));
    assert_eq!((told.len(), &told[0]["keys"]), (1, &json!(10_000)));
    assert_eq!(told[0]["key_ids"].as_array().unwrap().len(), 100);
    let longest = ROUTES.iter().map(|route| route.operation.len()).max();
    assert!(longest < Some(32));
}

#[test]
fn a_log_that_cannot_be_opened_is_told_at_the_start() {
    let dir = TempDir::new();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), &link).unwrap();
    let below = dir.path().join("no/audit");
    for path in [&link, &below, &dir.path().to_owned()] {
        let audit = ["--ephemeral", "--audit", path.to_str().unwrap()];
        let (code, said) = exit_of(keypeg(&audit).args(["--listen", "127.0.0.1:0"]));
        assert_eq!(code, 73, "{said}");
        assert!(said.contains("audit log"), "{said}");
    }
}
