//! `import`: one credential becomes one key, however its file was written, and a file whose values
//! are known in part is not a puzzle.
//!
//! A byte order mark made a second key of the first value of a file, invisible characters and
//! blanks at the ends did so too. One known value refused a whole batch.

use super::tool::{assert_counts, check, json_of, tool, utf8};
use crate::support::{Server, TempDir};
use serde_json::{Value, json};

struct File {
    dir: TempDir,
}

impl File {
    fn new(bytes: impl AsRef<[u8]>) -> Self {
        let file = Self { dir: TempDir::new() };
        file.write(bytes);
        file
    }

    fn write(&self, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(), bytes).unwrap();
    }

    fn path(&self) -> String {
        self.dir.path().join("values").to_str().unwrap().to_owned()
    }
}

fn values(imported: &Value) -> Vec<&str> {
    imported["keys"].as_array().unwrap().iter().map(|key| key["key"].as_str().unwrap()).collect()
}

/// Returns a server whose pool never purges keys, so that an import gives no warning.
fn server_without_purges() -> Server {
    let server = Server::in_memory(&[]);
    let policy = json!({ "keepalive_ttl_seconds": null });
    server.client().send("PUT /v1/pools/default", &policy).is(200, &json!({}));
    server
}

#[test]
fn a_credential_becomes_one_key_however_its_file_was_written() {
    let server = server_without_purges();
    let file = File::new(b"\xef\xbb\xbfkey-aaa\r\nkey-bbb\r\n");
    let imported = json_of(&server, &["import", &file.path(), "--show-keys", "--no-keepalive"]);
    assert_eq!(values(&imported), ["key-aaa", "key-bbb"]);
    for text in ["key-aaa\n", "\u{feff}key-bbb", "key-aaa\r\n"] {
        file.write(text);
        check(tool(&server, &["import", &file.path()]), 65, "values:1: the value is in the pool");
    }
    for text in
        ["key-aaa ", "\tkey-aaa", "key-aaa\u{200b}", "key-aaa\u{a0}", "\u{feff}\u{feff}key-aaa"]
    {
        file.write(text);
        check(tool(&server, &["import", &file.path()]), 65, "values:1: ");
    }
    assert_counts(&server, "default", &json!({ "total": 2 }));
}

#[test]
fn blanks_and_comments_are_imported_or_skipped_on_request() {
    let server = server_without_purges();
    let file = File::new("# accounts\n a \n#b\n");
    let import = ["import", &file.path(), "--show-keys", "--raw", "--no-keepalive"];
    let skipping = [&import[..], &["--skip-comments"]].concat();
    assert_eq!(values(&json_of(&server, &skipping)), [" a "]);
    file.write("#b\nc\n");
    assert_eq!(values(&json_of(&server, &import)), ["#b", "c"]);
}

#[test]
fn the_values_of_new_keys_are_printed_only_on_request() {
    let server = server_without_purges();
    let file = File::new("secret-1\nsecret-2\n");
    let imported =
        check(tool(&server, &["import", &file.path()]), 0, "2 keys imported; --show-keys");
    assert!(!utf8(&imported.stdout).contains("secret"), "{}", utf8(&imported.stdout));
    assert_eq!(utf8(&imported.stdout).lines().count(), 3, "a header and two ids");
    file.write("secret-3\n");
    let imported = json_of(&server, &["import", &file.path(), "--no-keepalive"]);
    assert_eq!(imported["keys"][0].get("key"), None, "{imported}");
    assert_eq!(imported["keys"][0]["state"], "available");
    let generated =
        check(tool(&server, &["generate", "-n", "3"]), 0, "3 keys generated; --show-keys");
    assert!(utf8(&generated.stdout).starts_with("ID  "), "{}", utf8(&generated.stdout));
    assert_eq!(json_of(&server, &["generate"])["keys"][0].get("key"), None);
    let shown = check(tool(&server, &["generate", "--show-keys"]), 0, "1 key generated\n");
    assert!(utf8(&shown.stdout).contains("KEY"), "{}", utf8(&shown.stdout));
}

#[test]
fn known_values_are_named_by_their_line_or_skipped() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let known: Vec<_> = (0..3_000).filter(|n| n % 500 == 7 || n / 40 == 20).collect();
    let existing: Vec<_> = known.iter().map(|n| format!("v-{n}")).collect();
    client.send("POST /v1/pools/default/keys", &json!({ "values": existing })).is(201, &json!({}));
    // A deleted value is known too, and stays deleted.
    client
        .send("POST /v1/pools/default/keys", &json!({ "values": ["v-2999"] }))
        .is(201, &json!({}));
    let gone = client.ask("GET /v1/pools/default/keys?limit=1000").json();
    let ids: Vec<_> = gone["keys"].as_array().unwrap().iter().map(|key| &key["id"]).collect();
    let last = ids.iter().find(|id| {
        let reveal = format!("POST /v1/pools/default/keys/{}/reveal", id.as_str().unwrap());
        client.ask(&reveal).json()["key"] == "v-2999"
    });
    let delete = format!("DELETE /v1/pools/default/keys/{}", last.unwrap().as_str().unwrap());
    client.ask(&delete).is(204, &Value::Null);
    let lines: Vec<_> = (0..3_000).map(|n| format!("v-{n}\n")).collect();
    let file = File::new(lines.concat());
    let import = ["import", &file.path(), "--output", "json", "--show-keys"];
    let output = check(tool(&server, &import), 65, "values:8: the value is in the pool");
    let stderr = utf8(&output.stderr);
    assert!(stderr.contains("--skip-existing"), "{stderr}");
    assert!(stderr.contains("--allow-retired if its key was deleted or purged"), "{stderr}");
    assert!(stderr.contains("Lines 1 to 3000 were not imported"), "{stderr}");
    let skipping = [&import[..], &["--skip-existing"]].concat();
    let new = 3_000 - known.len() - 1;
    let says = format!("{new} keys imported; {} values were skipped", known.len() + 1);
    let imported = check(tool(&server, &skipping), 0, &says);
    let imported: Value = serde_json::from_slice(&imported.stdout).unwrap();
    assert_eq!(values(&imported).len(), new);
    assert_counts(&server, "default", &json!({ "total": 2_999 }));
    let again = check(tool(&server, &skipping), 0, "0 keys imported; 3000 values were skipped");
    assert_eq!(utf8(&again.stdout), "{\"keys\":[]}\n");
    // The message names this option, and with it the deleted value comes back.
    let retired = [&skipping[..], &["--allow-retired"]].concat();
    check(tool(&server, &retired), 0, "1 key imported; 2999 values were skipped");
}
