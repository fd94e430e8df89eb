//! The alert rules and the Grafana dashboard: promtool reads them, each alert has a test, and each
//! metric that they name exists in a scrape.

use super::{root, text};
use crate::support::tokens::Tokens;
use crate::support::{Server, TempDir, skipped};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// What only the alerts of several servers name: their metrics, and the codes of their refusals.
const OF_SEVERAL: [&str; 5] =
    ["keypeg_shard_", "keypeg_servers", "keypeg_store_", "keypeg_append_", "no_owner"];

/// Runs promtool; returns its output if it succeeds.
#[track_caller]
fn promtool(dir: &Path, args: &[&str], stdin: &str) -> String {
    let mut command = Command::new("promtool");
    command.args(args).current_dir(dir).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert!(output.status.success(), "promtool {args:?}: {said}");
    said
}

/// Returns whether promtool is missing, and reports the test as skipped then.
fn is_missing(test: &str) -> bool {
    let is_missing = Command::new("promtool").arg("--version").output().is_err();
    if is_missing {
        skipped(test, "there is no promtool: install prometheus");
    }
    is_missing
}

/// Returns a scrape of a server that has all metrics but those of TLS, and leases of each kind. One
/// that shares its pools has the data of a directory.
fn scrape() -> String {
    let (tokens, dir) = (Tokens::new(), TempDir::new());
    let store = dir.path().join("store");
    std::fs::create_dir(&store).unwrap();
    let store = format!("file://{}", store.display());
    let token = tokens.add("all", "*", &["admin"], &[]);
    let [flag, file] = tokens.args();
    let audit = dir.path().join("audit");
    let args = ["--advertise", "http://127.0.0.1:0", "--shards", "2", &flag, &file];
    let args = [&args[..], &["--audit", audit.to_str().unwrap()]].concat();
    let server = Server::given(&args, &[("KEYPEG_STORE", &store)]);
    let client = &mut server.client();
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", &*bearer), ("content-type", "application/json")];
    for request in ["POST /v1/pools/default/keys", "POST /v1/pools/default/leases"] {
        assert_eq!(client.try_send(request, &headers, "").unwrap().status, 201, "{request}");
    }
    client.try_send("POST /v1/pools/default/leases", &headers, "").unwrap();
    let headers = [("authorization", &*bearer), ("accept", "text/plain")];
    client.try_send("GET /metrics", &headers, "").unwrap().body
}

/// Returns the expressions of the Grafana dashboard, with its variables replaced.
fn dashboard_expressions() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&text("grafana/keypeg.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let expressions = targets.map(|target| target["expr"].as_str().unwrap().to_owned());
    let replaced = expressions.map(|expression| {
        let plain = expression.replace("$__rate_interval", "5m");
        let plain = plain.replace("$instance", ".*").replace("$pool", ".*");
        assert!(!plain.contains('$'), "an unknown variable: {plain}");
        plain
    });
    replaced.collect()
}

/// Returns the names of metrics in a text.
fn metric_names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let is_metric = |word: &&str| word.starts_with("keypeg_") || word.starts_with("process_");
    words.filter(is_metric).collect()
}

#[test]
fn promtool_finds_no_fault_in_the_metrics() {
    const NAME: &str = "promtool_finds_no_fault_in_the_metrics";
    if is_missing(NAME) {
        return;
    }
    let metrics = scrape();
    assert_eq!(promtool(&root(), &["check", "metrics"], &metrics), "");
    // The check sees faults.
    let output = Command::new("sh")
        .args(["-c", "printf '# TYPE a counter\\na 1\\n' | promtool check metrics 2>&1"])
        .output()
        .unwrap();
    assert!(!output.status.success(), "{output:?}");
}

#[test]
fn promtool_finds_the_alert_rules_valid_and_each_alert_fires_only_when_it_should() {
    const NAME: &str =
        "promtool_finds_the_alert_rules_valid_and_each_alert_fires_only_when_it_should";
    let (rules, tests) =
        (text("prometheus/keypeg.rules.yml"), text("prometheus/keypeg.rules.test.yml"));
    let alerts: Vec<_> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 15, "{alerts:?}");
    for alert in &alerts {
        let test = format!("alertname: {alert}\n        exp_alerts:\n          - exp_labels:");
        assert!(tests.contains(&test), "{alert} has a test in which it fires");
    }
    let document = |name: &str| std::fs::read_to_string(root().join("docs").join(name)).unwrap();
    let (watch, cluster) = (document("operations/watch.md"), document("cluster.md"));
    for (alert, rule) in alerts.iter().zip(rules.split("- alert: ").skip(1)) {
        assert!(watch.contains(&format!("`{alert}`")), "{alert} is in watch.md");
        // What follows `unless` leaves servers out.
        let chosen = rule.split("unless on").next().unwrap();
        let is_of_several = OF_SEVERAL.iter().any(|word| chosen.contains(word));
        let has_steps = cluster.contains(&format!("| `{alert}` |"));
        assert_eq!(has_steps, is_of_several, "{alert} has steps in cluster.md");
    }
    if is_missing(NAME) {
        return;
    }
    let dir = root().join("deploy/prometheus");
    promtool(&dir, &["check", "config", "prometheus.yml"], "");
    promtool(&dir, &["check", "rules", "keypeg.rules.yml"], "");
    promtool(&dir, &["test", "rules", "keypeg.rules.test.yml"], "");
}

#[test]
fn promtool_parses_each_expression_of_the_grafana_dashboard() {
    const NAME: &str = "promtool_parses_each_expression_of_the_grafana_dashboard";
    let expressions = dashboard_expressions();
    assert!(expressions.len() >= 30, "{}", expressions.len());
    if is_missing(NAME) {
        return;
    }
    let rules: Vec<_> = (0..)
        .zip(&expressions)
        .map(
            |(index, expression)| json!({ "record": format!("panel_{index}"), "expr": expression }),
        )
        .collect();
    let dir = TempDir::new();
    // JSON is YAML.
    let file = json!({ "groups": [{ "name": "dashboard", "rules": rules }] }).to_string();
    std::fs::write(dir.path().join("rules.yml"), file).unwrap();
    promtool(dir.path(), &["check", "rules", "rules.yml"], "");
}

#[test]
fn each_metric_of_an_alert_or_a_panel_exists_in_a_scrape_and_in_the_document() {
    let metrics = scrape();
    let exists = |name: &str| {
        let is_sample =
            |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        // Those of a server with a certificate.
        name.starts_with("keypeg_tls_")
            || metrics.contains(&format!("# TYPE {name} "))
            || metrics.lines().any(is_sample)
    };
    let document = std::fs::read_to_string(root().join("docs/operations/watch.md")).unwrap();
    let rules = text("prometheus/keypeg.rules.yml");
    let used = [rules, dashboard_expressions().join("\n")].concat();
    for name in metric_names(&used) {
        assert!(exists(name), "no metric {name} in a scrape");
    }
    let families =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    for family in families {
        assert!(document.contains(&format!("`{family}`")), "{family} is in watch.md");
    }
    let unknown = metric_names(&document).into_iter().filter(|name| !exists(name));
    assert_eq!(unknown.collect::<Vec<_>>(), [""; 0], "in watch.md alone");
}
