//! The limit of a file's size (`ulimit -f`): a write beyond it is an error of the disk.

use crate::support::volume::run;
use crate::support::{Server, TempDir, eventually, keypeg_under, skipped};
use serde_json::json;
use std::path::Path;
use std::process::Command;

fn on_disk(words: &[&str], data: &Path) -> Command {
    keypeg_under(words, &["--data", data.to_str().unwrap()])
}

/// SIGXFSZ once killed the server without a word. The limit of a file's size is a full disk to it.
#[test]
fn a_limit_of_a_files_size_is_an_error_and_kills_nothing() {
    let dir = TempDir::new();
    let (data, log) = (dir.path().join("data"), dir.path().join("log"));
    // In blocks of 512 bytes: less than a segment of the journal.
    let words = ["sh", "-c", "ulimit -f 2000 && exec \"$@\"", "sh"];
    let status = Server::try_logged(&mut on_disk(&words, &data), &log).unwrap_err();
    let said = std::fs::read_to_string(&log).unwrap();
    assert_eq!(status.code(), Some(74), "{said}");
    assert!(said.contains("File too large"), "{said}");
    let place = format!(" in {} failed: ", data.display());
    assert!(said.contains(&place) && said.contains("free some MiB on the disk"), "{said}");
    // Set while the server runs, below where it writes.
    std::fs::write(&log, "").unwrap();
    let mut server = Server::logged(&mut on_disk(&["env"], &data), &log);
    let client = &mut server.client();
    client.ask("POST /v1/pools/default/keys").is(201, &json!({}));
    let pid = server.pid().as_raw_nonzero().to_string();
    if let Err(why) = run("prlimit", &["--pid", &pid, "--fsize=100000:"]) {
        return skipped("a_limit_of_a_files_size_is_an_error_and_kills_nothing", &why);
    }
    let create = "POST /v1/pools/default/keys";
    let many = json!({ "count": 1_000 }).to_string();
    let json_type = [("content-type", "application/json")];
    let last = loop {
        match client.try_send(create, &json_type, &many) {
            Ok(answer) if answer.status == 201 => {}
            last => break last,
        }
    };
    // It ends if the segment in use is beyond the limit. Otherwise it refuses new keys, because it
    // cannot make another segment, and needs no restart.
    if let Ok(refused) = last {
        refused.problem(507, "storage_full");
        run("prlimit", &["--pid", &pid, "--fsize=unlimited:"]).unwrap();
        eventually("new keys are accepted", || (client.ask(create).status == 201).then_some(()));
        assert_eq!(server.terminate().code(), Some(0));
    } else {
        let status = eventually("the server ends", || server.ended());
        assert_eq!(status.code(), Some(74));
    }
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains("File too large") && !said.contains("panicked"), "{said}");
    let server = Server::logged(&mut on_disk(&["env"], &data), &log);
    server.client().ask("GET /v1/pools/default").is(200, &json!({}));
}

/// The audit log is a file too.
#[test]
fn an_audit_log_at_the_limit_of_a_files_size_refuses_changes() {
    let dir = TempDir::new();
    let (audit, log) = (dir.path().join("audit"), dir.path().join("log"));
    // A part of the next line fits.
    let before = vec![b'\n'; 999_900];
    std::fs::write(&audit, &before).unwrap();
    let words = ["sh", "-c", "ulimit -f 1953 && exec \"$@\"", "sh"];
    let mut command = keypeg_under(&words, &["--ephemeral", "--audit", audit.to_str().unwrap()]);
    let mut server = Server::logged(&mut command, &log);
    eventually("changes are refused", || {
        (server.client().ask("POST /v1/pools/default/keys").status == 503).then_some(())
    });
    assert_eq!(server.terminate().code(), Some(0));
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(
        said.contains("cannot write the audit log") && said.contains("File too large"),
        "{said}"
    );
    assert!(std::fs::read(&audit).unwrap() == before, "no part of a line is left");
}
