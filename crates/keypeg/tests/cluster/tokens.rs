//! Servers of one installation, of which only some require access tokens: each logs a warning, because
//! a client of an open server reaches the pools of all.
//!
//! Real processes, whose store is a directory.

use crate::support::tokens::Tokens;
use crate::support::{Server, TempDir, eventually, keypeg};
use serde_json::Value;
use std::path::PathBuf;

/// A server and its log.
struct Logged {
    server: Server,
    log: PathBuf,
}

impl Logged {
    fn start(dir: &TempDir, name: &str, args: &[String]) -> Self {
        let (store, log) = (dir.path().join("store"), dir.path().join(format!("{name}.log")));
        std::fs::create_dir_all(&store).unwrap();
        let mut command = keypeg(&["--advertise", "http://127.0.0.1:0", "--server-name", name]);
        command.args(["--shards", "2", "--memory", "256MiB"]).args(args);
        command.env("KEYPEG_STORE", format!("file://{}", store.display()));
        Self { server: Server::logged(&mut command, &log), log }
    }

    /// Returns the warnings about access tokens.
    fn warnings(&self) -> Vec<String> {
        let log = std::fs::read_to_string(&self.log).unwrap();
        let is_warning = |line: &&str| line.contains("requires no access tokens");
        log.lines().filter(is_warning).map(str::to_owned).collect()
    }

    /// Returns the names of the live servers, as this one sees them.
    fn live(&self) -> Vec<String> {
        let shown = self.server.client().ask("GET /v1/cluster").json();
        let servers = shown["servers"].as_array().unwrap().iter();
        let live = servers.filter(|server| server["live"] == true);
        live.map(|server| server["server"].as_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn a_server_without_tokens_beside_one_with_tokens_is_named_once_in_the_log_of_both() {
    let (dir, tokens) = (TempDir::new(), Tokens::new());
    tokens.add("all", "*", &["admin"], &[]);
    let open = Logged::start(&dir, "open", &[]);
    let mut closed = Logged::start(&dir, "closed", &tokens.args());
    let expected = "the server open requires no access tokens, and the server closed does: every client \
                    that connects to open may ";
    for server in [&open, &closed] {
        let line = eventually("a warning", || server.warnings().pop());
        assert!(line.contains("WARN") && line.contains(expected), "{line}");
        assert!(line.ends_with("Start it with the same --tokens"), "{line}");
    }
    let shown = open.server.client().ask("GET /v1/cluster").json();
    let has_tokens = |name: &str| {
        let mut servers = shown["servers"].as_array().unwrap().iter();
        servers.find(|server| server["server"] == name).map(|server| &server["access_tokens"])
    };
    assert_eq!(has_tokens("open"), Some(&Value::Bool(false)), "{shown}");
    assert_eq!(has_tokens("closed"), Some(&Value::Bool(true)), "{shown}");
    // The servers compare after each heartbeat: at least once between what these two waits see.
    let mut second = Logged::start(&dir, "second", &[]);
    let live = |names: &[&str]| {
        eventually("the live servers", || (open.live() == names).then_some(()));
    };
    live(&["closed", "open", "second"]);
    second.server.terminate();
    live(&["closed", "open"]);
    for server in [&open, &closed] {
        assert_eq!(server.warnings().len(), 1, "{:?}", server.warnings());
    }
    // The next one is another reason.
    closed.server.terminate();
    live(&["open"]);
    let _third = Logged::start(&dir, "third", &tokens.args());
    eventually("a second warning", || (open.warnings().len() == 2).then_some(()));
}
