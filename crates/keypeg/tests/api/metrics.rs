//! `/metrics`: the counters agree with the requests sent, of the server and of each pool, and contain
//! no text of a client but the names of pools.

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
    client.ask("PUT /v1/pools/shown").is(201, &json!({}));
    let created = client.ask("POST /v1/pools/shown/keys").json();
    let lease = client.send("POST /v1/pools/shown/leases", &json!({ "holder": "hidden" }));
    let release = format!("POST /v1/pools/shown/leases/{}/release", lease.text("id"));
    let how = json!({ "quarantine": true, "reason": "hidden" });
    client.send(&release, &how).is(204, &Value::Null);
    client.ask("GET /v1/pools/hidden").problem(404, "unknown_pool");
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
        assert!(answer.body.contains("{pool=\"shown\"}"), "{}", answer.body);
        let key = &created["keys"][0];
        let secrets = ["hidden", key["id"].as_str().unwrap(), key["key"].as_str().unwrap()];
        for text in secrets {
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

#[test]
fn each_pool_has_its_own_counters() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.ask("PUT /v1/pools/a").is(201, &json!({}));
    client.send("PUT /v1/pools/b", &json!({ "lease_ttl_seconds": 0.01 })).is(201, &json!({}));
    client.ask("POST /v1/pools/a/leases").problem(404, "no_key_available");
    client.send("POST /v1/pools/a/keys", &json!({ "count": 2 })).is(201, &json!({}));
    let lease = client.ask("POST /v1/pools/a/leases").text("id");
    client.ask("POST /v1/pools/a/leases").is(201, &json!({}));
    client.ask("POST /v1/pools/a/leases").problem(404, "no_key_available");
    let wait = json!({ "wait_seconds": 0.01 });
    client.send("POST /v1/pools/a/leases", &wait).problem(404, "no_key_available");
    client.ask(&format!("POST /v1/pools/a/leases/{lease}/release")).is(204, &Value::Null);
    client.ask("POST /v1/pools/b/keys").is(201, &json!({}));
    client.ask("POST /v1/pools/b/leases").is(201, &json!({}));
    // The second lease of b begins when the first has ended.
    client.send("POST /v1/pools/b/leases", &json!({ "wait_seconds": 10 })).is(201, &json!({}));
    check(
        client,
        &[
            ("keypeg_pool_keys{pool=\"a\",state=\"available\"}", 1.0),
            ("keypeg_pool_keys{pool=\"a\",state=\"leased\"}", 1.0),
            ("keypeg_pool_waiting{pool=\"a\"}", 0.0),
            ("keypeg_pool_grants_total{pool=\"a\"}", 2.0),
            ("keypeg_pool_grants_total{pool=\"b\"}", 2.0),
            ("keypeg_pool_grants_total{pool=\"default\"}", 0.0),
            ("keypeg_pool_releases_total{pool=\"a\"}", 1.0),
            ("keypeg_pool_releases_total{pool=\"b\"}", 0.0),
            ("keypeg_pool_expiries_total{pool=\"a\"}", 0.0),
            ("keypeg_pool_purges_total{pool=\"a\"}", 0.0),
            ("keypeg_pool_refusals_total{pool=\"a\",cause=\"pool_empty\"}", 1.0),
            ("keypeg_pool_refusals_total{pool=\"a\",cause=\"all_leased\"}", 2.0),
            ("keypeg_pool_refusals_total{pool=\"b\",cause=\"all_leased\"}", 0.0),
            ("keypeg_pool_wait_seconds_count{pool=\"a\"}", 2.0),
            ("keypeg_pool_wait_seconds_bucket{pool=\"a\",le=\"0.001\"}", 2.0),
            ("keypeg_pool_wait_seconds_count{pool=\"b\"}", 2.0),
            ("keypeg_pool_hold_seconds_count{pool=\"a\"}", 1.0),
        ],
    );
    assert!(sample(client, "keypeg_pool_expiries_total{pool=\"b\"}") >= 1.0);
    assert!(sample(client, "keypeg_pool_hold_seconds_sum{pool=\"b\"}") >= 0.01);
    let first_bucket = "keypeg_pool_hold_seconds_bucket{pool=\"b\",le=\"0.01\"}";
    assert!(sample(client, first_bucket) >= 1.0, "a lease ends at its deadline, not later");
}

#[test]
fn beyond_the_bound_pools_are_summed_up_as_other() {
    let server = Server::in_memory(&["--metrics-pools", "2"]);
    let client = &mut server.client();
    for pool in ["a", "b", "c", "other"] {
        client.ask(&format!("PUT /v1/pools/{pool}")).is(201, &json!({}));
        let keys = format!("POST /v1/pools/{pool}/keys");
        client.send(&keys, &json!({ "count": 3 })).is(201, &json!({}));
    }
    let grants = |client: &mut Client| {
        let body = client.ask("GET /metrics").body;
        let lines = body.lines().filter_map(|line| {
            line.strip_prefix("keypeg_pool_grants_total{pool=\"")?.split_once("\"} ")
        });
        lines.map(|(pool, count)| format!("{pool} {count}")).collect::<Vec<_>>()
    };
    client.ask("POST /v1/pools/c/leases").is(201, &json!({}));
    client.ask("POST /v1/pools/other/leases").is(201, &json!({}));
    assert_eq!(grants(client), ["a 0", "b 0", "other 2"]);
    // The pool that lends has the place of an idle one at the next scrape.
    assert_eq!(grants(client), ["a 0", "c 1", "other 2"]);
    check(
        client,
        &[
            ("keypeg_pool_keys{pool=\"other\",state=\"available\"}", 5.0),
            ("keypeg_pool_keys{pool=\"other\",state=\"leased\"}", 1.0),
            ("keypeg_keys{state=\"leased\"}", 2.0),
            ("keypeg_pools", 5.0),
        ],
    );
    client.ask("DELETE /v1/pools/other").is(204, &Value::Null);
    assert_eq!(grants(client), ["a 0", "c 1", "other 2"], "a counter never shrinks");
}

#[test]
fn a_scrape_can_leave_the_pools_out() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let with = client.ask("GET /metrics?pools=1").body;
    assert!(with.contains("keypeg_pool_grants_total{pool=\"default\"} 0\n"), "{with}");
    for accept in ["text/plain", "application/openmetrics-text"] {
        let without = client.try_send("GET /metrics?pools=0", &[("accept", accept)], "").unwrap();
        let text = without.body;
        assert!(!text.contains("{pool=") && text.contains("keypeg_keys{"), "{text}");
        assert_eq!(text.ends_with("# EOF\n"), accept != "text/plain");
    }
    let wrong = client.ask("GET /metrics?pools=all").problem(422, "invalid");
    assert_eq!((&wrong["field"], &wrong["allowed"]), (&json!("pools"), &json!("0..1")));
    client.ask("GET /metrics?pool=a").problem(422, "invalid");
}

/// A token for some pools must not learn of others.
#[test]
fn a_token_sees_only_the_series_of_its_pools() {
    let tokens = crate::support::tokens::Tokens::new();
    let all = tokens.add("all", "*", &["admin"], &[]);
    let some = tokens.add("some", "ci-*", &["metrics"], &[]);
    let [flag, file] = tokens.args();
    let server = Server::in_memory(&[&flag, &file, "--metrics-pools", "2"]);
    let client = &mut server.client();
    for pool in ["ci-1", "secret-1", "secret-2"] {
        assert_eq!(client.with(&all, &format!("PUT /v1/pools/{pool}")).status, 201);
    }
    let pools = |text: &str| -> std::collections::BTreeSet<String> {
        let names = text.lines().filter_map(|line| line.split_once("{pool=\""));
        names.map(|(_, rest)| rest.split('"').next().unwrap().to_owned()).collect()
    };
    let seen = client.with(&some, "GET /metrics").body;
    assert_eq!(pools(&seen), ["ci-1".to_owned()].into(), "{seen}");
    let seen = client.with(&all, "GET /metrics").body;
    assert_eq!(pools(&seen), ["ci-1", "default", "other"].map(str::to_owned).into(), "{seen}");
}

/// A wait of a minute is not a slow server. On both paths of a request, granted and refused.
#[test]
fn the_time_of_a_request_does_not_contain_its_wait_for_a_key() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.send("PUT /v1/pools/w", &json!({ "lease_ttl_seconds": 0.2 })).is(201, &json!({}));
    client.ask("POST /v1/pools/empty/leases").problem(404, "unknown_pool");
    client.ask("PUT /v1/pools/empty").is(201, &json!({}));
    client.ask("POST /v1/pools/w/keys").is(201, &json!({}));
    // hyper reads a request with chunks.
    let chunked = |pool: &str, body: &str| {
        let len = body.len();
        format!(
            "POST /v1/pools/{pool}/leases HTTP/1.1\r\nhost: localhost\r\n\
             content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n\
             {len:x}\r\n{body}\r\n0\r\n\r\n"
        )
    };
    let acquire = "POST /v1/pools/w/leases";
    for (pool, wait, status) in [("w", 60.0, 201), ("empty", 0.15, 404)] {
        for is_chunked in [false, true] {
            // Once is enough: a slow machine is slow itself.
            let is_short = (0..5).any(|_| {
                // From now on the key is leased, so the request waits.
                client.send(acquire, &json!({ "wait_seconds": 60 })).is(201, &json!({}));
                let before = sample(client, "keypeg_http_request_seconds_sum");
                let body = json!({ "wait_seconds": wait });
                let answer = if is_chunked {
                    client.raw(chunked(pool, &body.to_string()).as_bytes()).unwrap()
                } else {
                    client.send(&format!("POST /v1/pools/{pool}/leases"), &body)
                };
                assert_eq!(answer.status, status, "{answer:?}");
                sample(client, "keypeg_http_request_seconds_sum") - before < 0.1
            });
            assert!(is_short, "{pool}, {is_chunked}: the wait counts as time of the server");
        }
    }
}

#[test]
fn each_http_thread_has_its_queue_and_so_has_the_reserve_of_a_single_one() {
    for (threads, cores) in [(1, 2), (2, 2), (3, 3)] {
        let option = format!("--http-threads={threads}");
        let text = Server::in_memory(&[&option]).client().ask("GET /metrics").body;
        let queues = text.lines().filter(|line| line.starts_with("keypeg_lane_depth{core="));
        assert_eq!(queues.count(), cores);
    }
}

#[test]
fn the_process_and_the_store_are_measured() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    assert!(sample(client, "process_resident_memory_bytes") > 1e6);
    assert!(sample(client, "process_open_fds") >= 5.0);
    assert!(sample(client, "process_start_time_seconds") > 1.7e9);
    let before = sample(client, "process_cpu_seconds_total");
    assert!(sample(client, "process_cpu_seconds_total") >= before);
    check(client, &[("keypeg_lane_depth{core=\"0\"}", 0.0), ("keypeg_disk_refuses", 0.0)]);
    assert!(sample(client, "keypeg_recovery_seconds") >= 0.0);
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
        assert!(sample(client, "keypeg_commit_bytes_sum") > 100.0);
        assert!(sample(client, "keypeg_journal_bytes") >= f64::from(16 << 20));
        let most = sample(client, "keypeg_journal_bytes_max");
        assert!(sample(client, "keypeg_checkpoint_lag_bytes_max") > most);
        assert!(sample(client, "keypeg_checkpoint_lag_bytes") <= most);
        server.kill();
        let server = Server::on(&dir, &[]);
        check(
            &mut server.client(),
            &[("keypeg_starts", 2.0), ("keypeg_keys{state=\"leased\"}", 1.0)],
        );
    }
}
