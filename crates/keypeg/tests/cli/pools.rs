//! `keypeg pool` and the other commands of daily use: what each changes, and how a mistake ends.
//!
//! A typing error in the name of a pool created another pool, since the API has one call for both.

use super::tool::{assert_counts, check, json_of, tool, utf8};
use crate::support::Server;
use serde_json::json;

#[test]
fn a_pool_is_created_changed_and_deleted_by_its_name() {
    let server = Server::in_memory(&[]);
    let create = [
        "pool",
        "create",
        "ci",
        "--max-hold",
        "2h",
        "--keepalive-ttl",
        "none",
        "--rest",
        "500ms",
        "--key-length",
        "32",
        "--key-prefix",
        "ci_",
        "--max-keys",
        "5",
        "--lease-ttl",
        "1m30s",
    ];
    let created = json_of(&server, &create);
    let expected = json!({
        "pool": "ci", "lease_ttl_seconds": 90, "max_hold_seconds": 7200, "key_length": 32,
        "keepalive_ttl_seconds": null, "rest_seconds": 0.5, "key_prefix": "ci_", "max_keys": 5,
    });
    assert_counts(&server, "ci", &expected);
    assert_eq!(created["max_keys"], 5);
    let changed =
        json_of(&server, &["pool", "set", "ci", "--max-hold", "none", "--max-keys", "none"]);
    assert_eq!((&changed["max_hold_seconds"], &changed["max_keys"]), (&json!(null), &json!(null)));
    assert_eq!(changed["rest_seconds"], 0.5, "what no option names stays");
    check(tool(&server, &["pool", "delete", "ci", "--yes"]), 0, "");
    check(tool(&server, &["show", "--pool", "ci"]), 66, "\"keypeg pool create\" creates one");
}

#[test]
fn a_mistake_about_a_pool_changes_nothing_and_names_the_next_step() {
    let server = Server::in_memory(&[]);
    json_of(&server, &["pool", "create", "ci"]);
    json_of(&server, &["generate", "-n", "2", "--pool", "ci"]);
    json_of(&server, &["acquire", "--pool", "ci"]);
    let exists = "the pool \"ci\" exists already: \"keypeg pool set ci\" changes its policy";
    let missing = "no pool \"cl\": create it with \"keypeg pool create cl\"";
    for (args, exit, says) in [
        (&["pool", "create", "ci", "--rest", "1h"][..], 73, exists),
        (&["pool", "set", "cl", "--rest", "1h"], 66, missing),
        (&["pool", "delete", "cl"], 66, missing),
        (&["pool", "delete", "cl", "--yes"], 66, missing),
        (&["pool", "set", "ci"], 64, "name a field of the policy, such as --lease-ttl 1m"),
        (&["pool", "set", "ci", "--rest", "60"], 64, "write 60s for 60 seconds"),
        (&["pool", "set", "ci", "--max-keys", "many"], 64, "or none"),
        (&["pool", "set", "ci", "--lease-ttl", "3h", "--max-hold", "1h"], 65, "max_hold_seconds"),
        (&["pool", "set", "ci", "--key-length", "0"], 64, "from 20 to 128"),
        (&["pool", "create", "a b"], 64, "invalid name"),
        (&["pool", "delete", "ci"], 64, "the pool \"ci\" with 2 keys, 1 of them leased: add --yes"),
        (&["pool", "delete", "default", "--yes"], 65, "(default_pool)"),
    ] {
        check(tool(&server, args), exit, says);
    }
    assert_counts(&server, "ci", &json!({ "total": 2, "leased": 1, "rest_seconds": 0 }));
    assert_eq!(json_of(&server, &["pools", "--limit", "9"]).as_array().unwrap().len(), 2);
}

#[test]
fn several_keys_are_deleted_only_with_a_confirmation() {
    let server = Server::in_memory(&[]);
    let keys = json_of(&server, &["generate", "-n", "4"])["keys"].clone();
    let ids: Vec<_> = (0..4).map(|at| keys[at]["id"].as_str().unwrap()).collect();
    check(
        tool(&server, &["delete", ids[0], ids[1]]),
        64,
        "2 keys of the pool \"default\": add --yes",
    );
    assert_counts(&server, "default", &json!({ "total": 4 }));
    check(tool(&server, &["delete", "--yes", ids[0], ids[1]]), 0, "2 keys deleted");
    let delete = ["delete", "--yes", ids[1], ids[2]];
    let output = check(tool(&server, &delete), 66, "1 of 2 keys were deleted, 1 do not exist");
    assert!(utf8(&output.stderr).contains(&format!("no key {}", ids[1])), "it names the key");
    assert_counts(&server, "default", &json!({ "total": 1 }));
    check(tool(&server, &["delete", ids[3]]), 0, "");
    check(tool(&server, &["delete", ids[3]]), 66, "(unknown_key)");
}

#[test]
fn reveal_prints_the_value_of_a_key_without_a_lease() {
    let server = Server::in_memory(&[]);
    let generated = json_of(&server, &["generate", "--show-keys"])["keys"][0].clone();
    let id = generated["id"].as_str().unwrap();
    assert_eq!(json_of(&server, &["reveal", id])["key"], generated["key"]);
    let value = check(tool(&server, &["reveal", id, "--field", "key"]), 0, "");
    assert_eq!(utf8(&value.stdout).trim_end(), generated["key"].as_str().unwrap());
    check(tool(&server, &["reveal", "x"]), 66, "(unknown_key)");
}

#[test]
fn a_pool_of_the_environment_stands_for_the_option() {
    let server = Server::in_memory(&[]);
    json_of(&server, &["pool", "create", "ci"]);
    let mut generate = tool(&server, &["generate", "-n", "3"]);
    generate.env("KEYPEG_POOL", "ci");
    check(generate, 0, "3 keys generated");
    let mut other = tool(&server, &["generate", "-p", "default"]);
    other.env("KEYPEG_POOL", "ci");
    check(other, 0, "1 key generated");
    assert_counts(&server, "ci", &json!({ "total": 3 }));
    assert_counts(&server, "default", &json!({ "total": 1 }));
    let mut empty = tool(&server, &["list"]);
    empty.env("KEYPEG_POOL", "");
    check(empty, 64, "KEYPEG_POOL is set but empty");
}

/// For a shell: `lease=$(keypeg acquire --field id)`.
#[test]
fn a_field_is_printed_alone_and_an_unknown_one_changes_nothing() {
    let server = Server::in_memory(&[]);
    let field = |args: &[&str], name: &str| {
        let output = check(tool(&server, &[args, &["--field", name]].concat()), 0, "");
        assert_eq!(utf8(&output.stderr), "", "{args:?}");
        utf8(&output.stdout)
    };
    let ids = field(&["generate", "-n", "3"], "id");
    assert_eq!(ids.lines().count(), 3);
    let lease = field(&["acquire", "--holder", "job 7"], "id");
    let holders = field(&["list"], "lease.holder");
    let mut holders: Vec<_> = holders.lines().collect();
    holders.sort_unstable();
    assert_eq!(holders, ["", "", "job 7"]);
    assert_eq!(field(&["show"], "leased"), "1\n");
    assert_eq!(field(&["pools"], "pool"), "default\n");
    assert_eq!(field(&["list", "--state", "resting"], "id"), "");
    check(tool(&server, &["release", lease.trim_end()]), 0, "");
    for (args, says) in [
        (&["acquire"][..], "no field \"ids\": --field takes id, pool, key_id, key"),
        (&["generate"], "no field \"ids\": --field takes id, key, state"),
        (&["list"], "no field \"ids\": --field takes created_at, draining, expires_at, id"),
        (&["show"], "no field \"ids\""),
    ] {
        check(tool(&server, &[args, &["--field", "ids"]].concat()), 64, says);
    }
    check(
        tool(&server, &["generate", "--field", "key"]),
        64,
        "add --show-keys; nothing was changed",
    );
    check(tool(&server, &["show", "--field", "id", "-o", "json"]), 64, "--output");
    assert_counts(&server, "default", &json!({ "total": 3, "leased": 0 }));
}

#[test]
fn keys_get_labels_when_they_are_made_and_later() {
    let server = Server::in_memory(&[]);
    let made = json_of(&server, &["generate", "-n", "2", "--label", "acct 3"]);
    assert_eq!(made["keys"][1]["label"], "acct 3");
    let id = made["keys"][0]["id"].as_str().unwrap();
    assert_eq!(json_of(&server, &["label", id, "acct 4"])["label"], "acct 4");
    let listed = utf8(&check(tool(&server, &["list", "--field", "label"]), 0, "").stdout);
    let mut labels: Vec<_> = listed.lines().collect();
    labels.sort_unstable();
    assert_eq!(labels, ["acct 3", "acct 4"]);
    let of_label = ["list", "--label", "acct 4", "--field", "id"];
    assert_eq!(utf8(&check(tool(&server, &of_label), 0, "").stdout).trim(), id);
    assert_eq!(json_of(&server, &["label", id, "--remove"])["label"], json!(null));
    let granted = check(tool(&server, &["acquire", "--field", "label"]), 0, "");
    assert!(["acct 3\n", "\n"].contains(&&*utf8(&granted.stdout)), "{granted:?}");
    check(tool(&server, &["label", id]), 64, "LABEL");
    check(tool(&server, &["label", id, "a\nb"]), 65, "label");
    check(tool(&server, &["label", "x", "a"]), 66, "(unknown_key)");
}

#[test]
fn a_key_is_quarantined_drained_and_put_back_by_its_id() {
    let server = Server::in_memory(&[]);
    let made = json_of(&server, &["generate"]);
    let id = made["keys"][0]["id"].as_str().unwrap();
    let quarantined = json_of(&server, &["quarantine", id, "--reason", "401"]);
    assert_eq!(
        (&quarantined["state"], &quarantined["reason"]),
        (&json!("quarantined"), &json!("401"))
    );
    check(tool(&server, &["acquire"]), 75, "keypeg quarantine --undo");
    assert_eq!(json_of(&server, &["quarantine", id, "--undo"])["state"], json!("available"));
    let lease = utf8(&check(tool(&server, &["acquire", "--field", "id"]), 0, "").stdout);
    let draining = json_of(&server, &["quarantine", id, "--when", "free"]);
    assert_eq!((&draining["state"], &draining["draining"]), (&json!("leased"), &json!(true)));
    check(tool(&server, &["release", lease.trim()]), 0, "");
    assert_eq!(json_of(&server, &["show", id])["state"], json!("quarantined"));
    check(tool(&server, &["quarantine", id, "--when", "later"]), 64, "use now or free");
    check(tool(&server, &["quarantine", id, "--undo", "--reason", "x"]), 64, "--undo");
    check(tool(&server, &["quarantine", "x"]), 66, "(unknown_key)");
}

#[test]
fn a_pool_is_drained_and_undone() {
    let server = Server::in_memory(&[]);
    json_of(&server, &["generate"]);
    let lease = utf8(&check(tool(&server, &["acquire", "--field", "id"]), 0, "").stdout);
    assert_eq!(json_of(&server, &["pool", "drain", "default"])["draining"], json!(true));
    check(tool(&server, &["release", lease.trim()]), 0, "");
    for args in [&["acquire"][..], &["acquire", "--wait", "10s"]] {
        check(tool(&server, args), 75, "\"keypeg pool drain POOL --undo\"");
    }
    let draining = check(tool(&server, &["pools", "--field", "draining"]), 0, "");
    assert_eq!(utf8(&draining.stdout), "true\n");
    let undone = json_of(&server, &["pool", "drain", "default", "--undo"]);
    assert_eq!(undone["draining"], json!(false));
    check(tool(&server, &["acquire"]), 0, "");
    let set = json_of(&server, &["pool", "set", "default", "--draining", "true"]);
    assert_eq!(set["draining"], json!(true));
    check(tool(&server, &["pool", "set", "default", "--draining", "yes"]), 64, "true, false");
    check(tool(&server, &["pool", "drain", "cl"]), 66, "keypeg pool create cl");
}

#[test]
fn a_quiet_command_prints_its_result_and_no_count() {
    let server = Server::in_memory(&[]);
    let output = check(tool(&server, &["generate", "-q"]), 0, "");
    assert_eq!((utf8(&output.stderr).as_str(), utf8(&output.stdout).lines().count()), ("", 2));
    check(tool(&server, &["show", "x", "-q"]), 66, "(unknown_key)");
}

/// A call generates 10 000 keys at most.
#[test]
fn many_keys_are_generated_in_several_calls() {
    let server = Server::in_memory(&[]);
    let generated = json_of(&server, &["generate", "-n", "25000"]);
    let ids: std::collections::HashSet<_> = generated["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| key["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), 25_000);
    json_of(&server, &["pool", "create", "small", "--max-keys", "15000"]);
    let says = "(pool_full); 10000 of 25000 keys were generated before";
    let full = ["generate", "-n", "25000", "--pool", "small", "-o", "json"];
    let output = check(tool(&server, &full), 73, says);
    assert!(!utf8(&output.stderr).contains("may or may not"), "the server refused the second call");
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["keys"].as_array().unwrap().len(), 10_000, "what is printed is complete");
    assert_counts(&server, "small", &json!({ "total": 10_000 }));
}
