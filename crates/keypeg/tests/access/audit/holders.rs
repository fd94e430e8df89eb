//! The holders in the audit log: of granted and renewed leases, and of those that a call ended.

use super::{audited, lines, send_by};
use crate::support::TempDir;
use crate::support::tokens::Tokens;
use serde_json::json;

#[test]
fn a_line_names_the_holder_on_either_path() {
    let (dir, tokens) = (TempDir::new(), Tokens::new());
    let admin = tokens.add("admin", "*", &["admin"], &[]);
    let file = tokens.args();
    let mut server = audited(&dir, &[&file[0], &file[1]]);
    let longer = "{\"max_hold_seconds\": 600}";
    let bearer = format!("Bearer {admin}");
    let headers = [("authorization", &*bearer), ("content-type", "application/json")];
    server.client().try_send("PUT /v1/pools/default", &headers, longer).unwrap();
    for by_hyper in [false, true] {
        let send = |request: &str, body: &str| send_by(&server, by_hyper, request, &admin, body);
        let hostile = json!({ "holder": "a\"},{\u{2028}\u{202e}" }).to_string();
        assert_eq!(send("POST /v1/pools/default/leases", &hostile), 404);
        assert_eq!(send("POST /v1/pools/default/keys", "{}"), 201);
        assert_eq!(send("POST /v1/pools/default/leases", "{\"holder\": \"job 7\"}"), 201);
    }
    // A renewal, whose request does not name the holder.
    server.client().with(&admin, "POST /v1/pools/default/keys");
    let body = "{\"holder\": \"job 8\"}";
    let lease = server.client().try_send("POST /v1/pools/default/leases", &headers, body);
    let lease = lease.unwrap().text("id");
    let renew = format!("POST /v1/pools/default/leases/{lease}/renew");
    assert_eq!(server.client().with(&admin, &renew).status, 200);
    server.terminate();
    let log = lines(&dir.path().join("audit"));
    let holders: Vec<_> = log
        .iter()
        .filter(|line| line["operation"] != "addKeys" && line["operation"] != "putPool")
        .map(|line| line["holder"].as_str().unwrap_or("-"))
        .collect();
    let hostile = "a\"},{\u{2028}\u{202e}";
    assert_eq!(holders, [hostile, "job 7", hostile, "job 7", "job 8", "job 8"]);
    assert!(log.iter().all(|line| line["operation"] != "addKeys" || line.get("holder").is_none()));
}

/// The line of a release named no holder, so that the log did not show whose lease an operator or
/// another program had ended.
#[test]
fn the_line_of_a_release_or_a_deletion_names_the_holder_of_the_lease_that_ended() {
    let (dir, tokens) = (TempDir::new(), Tokens::new());
    let admin = tokens.add("admin", "*", &["admin"], &[]);
    let file = tokens.args();
    let mut server = audited(&dir, &[&file[0], &file[1]]);
    let bearer = format!("Bearer {admin}");
    let headers = [("authorization", &*bearer), ("content-type", "application/json")];
    let send = |request: &str, body: &str| {
        let answer = server.client().try_send(request, &headers, body).unwrap();
        assert!(answer.status < 300, "{request}: {answer:?}");
        answer
    };
    let key = send("POST /v1/pools/default/keys", "{}").json()["keys"][0].clone();
    let [id, value] = ["id", "key"].map(|name| key[name].as_str().unwrap());
    let lease = |holder: &str| {
        let body = json!({ "holder": holder }).to_string();
        send("POST /v1/pools/default/leases", &body).text("id")
    };
    let mut expected = Vec::new();
    let mut ends = |operation: &str, holder: &str| {
        expected.push(format!("{operation} {holder}"));
        lease(holder)
    };
    for (by_hyper, holder) in [(false, "job 1"), (true, "job 2")] {
        let release = format!("POST /v1/pools/default/leases/{}/release", ends("release", holder));
        assert_eq!(send_by(&server, by_hyper, &release, &admin, "{}"), 204);
    }
    let of_lease = format!("POST /v1/pools/default/leases/{}", ends("release", "job 3"));
    send(&format!("{of_lease}/release"), "{\"quarantine\": true}");
    // No lease ends here.
    send(&format!("POST /v1/pools/default/keys/{id}/release"), "{}");
    let force_releases = [
        ("releaseKey", format!("POST /v1/pools/default/keys/{id}/release")),
        ("seedRelease", format!("PUT /api/v1/random_api_key/?api_key={value}")),
        ("plainRelease", format!("PUT /keys/{id}")),
        ("quarantineKey", format!("POST /v1/pools/default/keys/{id}/quarantine")),
        ("deleteKey", format!("DELETE /v1/pools/default/keys/{id}")),
    ];
    for (operation, request) in &force_releases {
        ends(operation, &format!("holder of {operation}"));
        send(request, "");
        if *operation == "quarantineKey" {
            send(&format!("DELETE /v1/pools/default/keys/{id}/quarantine"), "");
        }
    }
    for delete in ["seedDelete", "plainDelete"] {
        let key = send("POST /v1/pools/default/keys", "{}").json()["keys"][0].clone();
        let [id, value] = ["id", "key"].map(|name| key[name].as_str().unwrap());
        ends(delete, &format!("holder of {delete}"));
        let request = match delete {
            "seedDelete" => format!("DELETE /api/v1/random_api_key/?api_key={value}"),
            _ => format!("DELETE /keys/{id}"),
        };
        send(&request, "");
    }
    server.terminate();
    let log = lines(&dir.path().join("audit"));
    let ended: Vec<_> = log
        .iter()
        .filter(|line| !["acquire", "addKeys"].contains(&line["operation"].as_str().unwrap()))
        .filter_map(|line| {
            let holder = line.get("holder")?.as_str().unwrap();
            Some(format!("{} {holder}", line["operation"].as_str().unwrap()))
        })
        .collect();
    assert_eq!(ended, expected);
}

/// Regression: no line had a label, and that of a changed label did not name the key.
#[test]
fn a_line_about_one_key_has_its_label() {
    let (dir, tokens) = (TempDir::new(), Tokens::new());
    let admin = tokens.add("admin", "*", &["admin"], &[]);
    let file = tokens.args();
    let mut server = audited(&dir, &[&file[0], &file[1]]);
    let send = |by_hyper, request: &str, body: &str| {
        let status = send_by(&server, by_hyper, request, &admin, body);
        assert!(status < 300, "{request}: {status}");
    };
    send(false, "POST /v1/pools/default/keys", "{\"values\": [\"v-1\"], \"label\": \"a\\\"b\"}");
    let list = server.client().with(&admin, "GET /v1/pools/default/keys").json();
    let id = list["keys"][0]["id"].as_str().unwrap().to_owned();
    for by_hyper in [false, true] {
        send(by_hyper, "POST /v1/pools/default/leases", "{}");
        send(by_hyper, &format!("POST /v1/pools/default/keys/{id}/release"), "");
    }
    send(true, &format!("POST /v1/pools/default/keys/{id}/quarantine"), "{}");
    send(true, &format!("DELETE /v1/pools/default/keys/{id}/quarantine"), "");
    send(true, &format!("PATCH /v1/pools/default/keys/{id}"), "{\"label\": \"c\"}");
    send(true, &format!("PATCH /v1/pools/default/keys/{id}"), "{\"label\": null}");
    server.terminate();
    let log = lines(&dir.path().join("audit"));
    let labels = |operation: &str| -> Vec<_> {
        let of_operation = log.iter().filter(|line| line["operation"] == operation);
        of_operation.map(|line| (line["label"].clone(), line["key_ids"][0] == *id)).collect()
    };
    assert_eq!(labels("acquire"), [(json!("a\"b"), true), (json!("a\"b"), true)]);
    // The answer to a quarantine names no key to the log: the request does.
    for operation in ["releaseKey", "quarantineKey", "endQuarantine"] {
        let lines = labels(operation);
        let name_the_key = lines.iter().all(|(_, is_named)| *is_named);
        assert!(name_the_key && !lines.is_empty(), "{operation}: {log:?}");
    }
    let changes = log.iter().filter(|line| line["key_ids"] == json!([id]));
    let changes: Vec<_> = changes.filter(|line| line["operation"] == "changeKey").collect();
    assert_eq!(changes.len(), 2, "{log:?}");
    assert_eq!((&changes[0]["label"], changes[1].get("label")), (&json!("c"), None));
}
