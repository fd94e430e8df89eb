//! `/metrics`: the counters agree with the requests sent, and contain no text of a client.

use crate::support::{Client, Server, TempDir};
use serde_json::{Value, json};

/// Returns the value of one sample, by its name and labels as written.
#[track_caller]
fn sample(client: &mut Client, name: &str) -> f64 {
    let answer = client.ask("GET /metrics");
    let line = answer.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name}: {answer:?}"))
}

#[track_caller]
fn check(client: &mut Client, samples: &[(&str, f64)]) {
    for (name, value) in samples {
        let found = sample(client, name);
        assert!((found - value).abs() < f64::EPSILON, "{name} {found}, not {value}");
    }
}

#[test]
fn the_text_is_open_metrics_and_contains_no_text_of_a_client() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.ask("PUT /v1/pools/hidden").is(201, &json!({}));
    let created = client.ask("POST /v1/pools/hidden/keys").json();
    client.send("POST /v1/pools/hidden/leases", &json!({ "holder": "hidden" })).is(201, &json!({}));
    client.ask("GET /hidden?api_key=hidden").problem(404, "not_found");
    for (accept, content_type, is_open_metrics) in [
        ("application/openmetrics-text", "application/openmetrics-text; version=1.0.0", true),
        ("*/*", "text/plain; version=0.0.4", false),
        ("text/plain;version=0.0.4", "text/plain; version=0.0.4", false),
    ] {
        let answer = client.try_send("GET /metrics", &[("accept", accept)], "").unwrap();
        let expected = format!("{content_type}; charset=utf-8");
        assert_eq!(answer.header("content-type"), Some(&*expected));
        assert_eq!(answer.header("vary"), Some("accept"));
        assert_eq!(answer.body.ends_with("# EOF\n"), is_open_metrics);
        for text in ["hidden", created["keys"][0]["id"].as_str().unwrap()] {
            assert!(!answer.body.contains(text), "{text}: {}", answer.body);
        }
    }
    client.ask("POST /metrics").problem(405, "method_not_allowed");
}

#[test]
fn connections_are_counted_while_they_are_open() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let mut others: Vec<_> = (0..3).map(|_| server.client()).collect();
    for other in &mut others {
        other.ask("GET /livez").is(200, &json!({}));
    }
    check(client, &[("keypeg_http_connections", 4.0)]);
    drop(others);
    crate::support::eventually("they are closed", || {
        (sample(client, "keypeg_http_connections") < 1.5).then_some(())
    });
}

/// Regression: a scraper of the older format got `OpenMetrics`, and saw counters without samples, and
/// samples without a help text.
#[test]
fn every_sample_belongs_to_a_family_with_a_help_text_and_a_type() {
    let tokens = crate::support::tokens::Tokens::new();
    let token = tokens.add("all", "*", &["admin"], &[]);
    let (dir, [flag, file]) = (TempDir::new(), tokens.args());
    let audit = dir.path().join("audit");
    let server = Server::in_memory(&[&flag, &file, "--audit", audit.to_str().unwrap()]);
    let text = server.client().with(&token, "GET /metrics").body;
    let (mut family, mut helped, mut counters) = (("", ""), "", 0);
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            helped = help.split(' ').next().unwrap();
        } else if let Some(of) = line.strip_prefix("# TYPE ") {
            family = of.split_once(' ').unwrap();
            assert_eq!(family.0, helped, "each family has a help text");
            assert!(["counter", "gauge", "histogram"].contains(&family.1), "{line}");
            assert_eq!(family.0.ends_with("_total"), family.1 == "counter", "{line}");
            counters += u32::from(family.1 == "counter");
        } else {
            assert!(!line.starts_with('#') && !line.is_empty(), "{line}");
            let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap());
            let suffix = name.strip_prefix(family.0).unwrap_or_else(|| panic!("{line}"));
            let suffixes: &[_] = match family.1 {
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            assert!(suffixes.contains(&suffix), "{line}");
            let value = rest.rsplit(' ').next().unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
    assert!(counters >= 6, "{text}");
}

#[test]
fn keys_are_counted_by_their_state() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.send("POST /v1/pools/default/keys", &json!({ "count": 10 })).is(201, &json!({}));
    let leases: Vec<_> =
        (0..9).map(|_| client.ask("POST /v1/pools/default/leases").text("id")).collect();
    let release = |lease: &String| format!("POST /v1/pools/default/leases/{lease}/release");
    for (index, lease) in leases.iter().enumerate().take(5) {
        let how =
            if index < 2 { json!({ "rest_seconds": 60 }) } else { json!({ "quarantine": true }) };
        client.send(&release(lease), &how).is(204, &Value::Null);
    }
    let states = [("available", 1.0), ("leased", 4.0), ("resting", 2.0), ("quarantined", 3.0)];
    for (state, count) in states {
        check(client, &[(&format!("keypeg_keys{{state=\"{state}\"}}"), count)]);
    }
}

/// What needs a store that keeps its data: see CONTRIBUTING.md.
mod durability {
    use super::{Server, TempDir, Value, check, json, sample};

    #[test]
    fn requests_keys_and_starts_are_counted() {
        let dir = TempDir::new();
        let mut server = Server::on(&dir, &[]);
        let client = &mut server.client();
        client.send("POST /v1/pools/default/keys", &json!({ "count": 3 })).is(201, &json!({}));
        let lease = client.ask("POST /v1/pools/default/leases").text("id");
        client.ask("POST /v1/pools/default/leases").is(201, &json!({}));
        let release = format!("POST /v1/pools/default/leases/{lease}/release");
        client.ask(&release).is(204, &Value::Null);
        client.ask(&release).problem(410, "lease_ended");
        client.ask("GET /v1/pools/nope").problem(404, "unknown_pool");
        let _another = server.client().ask("GET /livez");
        check(
            client,
            &[
                ("keypeg_http_requests_total{route=\"keys\",status=\"2xx\"}", 1.0),
                ("keypeg_http_requests_total{route=\"leases\",status=\"2xx\"}", 3.0),
                ("keypeg_http_requests_total{route=\"leases\",status=\"4xx\"}", 1.0),
                ("keypeg_http_requests_total{route=\"pools\",status=\"4xx\"}", 1.0),
                ("keypeg_http_requests_total{route=\"seed\",status=\"2xx\"}", 0.0),
                ("keypeg_refusals_total{code=\"lease_ended\"}", 1.0),
                ("keypeg_refusals_total{code=\"unknown_pool\"}", 1.0),
                ("keypeg_refusals_total{code=\"internal\"}", 0.0),
                ("keypeg_keys{state=\"available\"}", 2.0),
                ("keypeg_keys{state=\"leased\"}", 1.0),
                ("keypeg_pools", 1.0),
                ("keypeg_starts", 1.0),
                ("keypeg_batches_cut", 0.0),
            ],
        );
        assert!(sample(client, "keypeg_http_request_seconds_count") >= 20.0);
        assert!(sample(client, "keypeg_commit_seconds_count") >= 4.0);
        assert!(sample(client, "keypeg_commit_seconds_sum") > 0.0);
        assert!(sample(client, "keypeg_turn_answers_sum") >= 8.0);
        server.kill();
        let server = Server::on(&dir, &[]);
        check(
            &mut server.client(),
            &[("keypeg_starts", 2.0), ("keypeg_keys{state=\"leased\"}", 1.0)],
        );
    }
}
