//! Servers reach each other by HTTPS, and trust only the authority that `--cluster-ca` names.
//!
//! Real processes, whose store is a directory.

use crate::bad_input::assert_explained;
use crate::support::certificates::{Authority, TlsClient, VALID};
use crate::support::{Server, TempDir, eventually, exit_of, keypeg};
use rustix::process::{Signal, kill_process};
use rustls::version::TLS13;
use serde_json::Value;
use std::path::PathBuf;

/// A server, its log, and an authority that issued its certificate.
struct HttpsServer<'a> {
    server: Server,
    log: PathBuf,
    authority: &'a Authority,
}

impl<'a> HttpsServer<'a> {
    /// Starts a server that trusts the servers whose certificates `trusted` has issued.
    fn start(dir: &TempDir, name: &str, authority: &'a Authority, trusted: &Authority) -> Self {
        let store = dir.path().join("store");
        std::fs::create_dir_all(&store).unwrap();
        let mut logs = (1..).map(|number| dir.path().join(format!("{name}-{number}.log")));
        let log = logs.find(|log| !log.exists()).unwrap();
        let ca = trusted.write("ca.pem", &trusted.pem());
        let mut command = keypeg(&["--advertise", "https://localhost:0", "--server-name", name]);
        command.args(authority.args(&authority.server(VALID)));
        command.args(["--cluster-ca", &ca, "--shards", "2", "--memory", "256MiB"]);
        command.env("KEYPEG_STORE", format!("file://{}", store.display()));
        Self { server: Server::logged(&mut command, &log), log, authority }
    }

    fn client(&self) -> TlsClient {
        let config = self.authority.client(&[&TLS13], None);
        TlsClient::connect(self.server.addr(), config).unwrap()
    }

    /// Returns whether a line of the log has all of these words.
    fn has_logged(&self, words: &[&str]) -> bool {
        let log = std::fs::read_to_string(&self.log).unwrap();
        log.lines().any(|line| words.iter().all(|word| line.contains(word)))
    }
}

/// The heartbeat of the first one changes while the second one starts.
#[test]
fn a_second_server_of_one_name_ends_and_the_first_goes_on() {
    let (dir, authority) = (TempDir::new(), Authority::new());
    let first = HttpsServer::start(&dir, "a", &authority, &authority);
    let store = format!("file://{}", dir.path().join("store").display());
    let args = ["--advertise", "http://127.0.0.1:0", "--server-name", "a"];
    let mut second = keypeg(&args);
    second.args(["--listen", "127.0.0.1:0", "--memory", "256MiB"]).env("KEYPEG_STORE", store);
    let (code, said) = exit_of(&mut second);
    assert_eq!(code, 75, "{said}");
    assert_explained(code, &said);
    assert!(
        said.contains("the server name a is in use by a server at https://localhost"),
        "{said}"
    );
    let mut client = first.client();
    eventually("all shards are served", || (client.ask("GET /readyz").status == 200).then_some(()));
}

/// Both ran, and took each other's shards. Only the first one can end: the second cannot know of it.
#[test]
fn a_server_that_stood_still_while_another_started_under_its_name_ends() {
    let (dir, authority) = (TempDir::new(), Authority::new());
    let mut paused = HttpsServer::start(&dir, "a", &authority, &authority);
    kill_process(paused.server.pid(), Signal::STOP).unwrap();
    let later = HttpsServer::start(&dir, "a", &authority, &authority);
    kill_process(paused.server.pid(), Signal::CONT).unwrap();
    let status = eventually("the end of the first server", || paused.server.ended());
    assert_eq!(status.code(), Some(75), "{status}");
    // The last line of the log is written before the process ends.
    assert!(paused.has_logged(&["ERROR", "https://localhost", "has the name a too"]));
    let mut client = later.client();
    eventually("all shards are served", || (client.ask("GET /readyz").status == 200).then_some(()));
}

#[test]
fn servers_forward_by_https_and_refuse_a_server_of_another_authority_with_the_reason() {
    let (dir, right, wrong) = (TempDir::new(), Authority::new(), Authority::new());
    let owner = HttpsServer::start(&dir, "a", &right, &right);
    let mut client = owner.client();
    eventually("all shards are served", || (client.ask("GET /readyz").status == 200).then_some(()));
    // The shards stay here, wherever they should be when the other servers have started.
    for shard in 0..2 {
        let path = format!("POST /v1/cluster/shards/{shard}/move");
        assert_eq!(client.try_send(&path, &[], r#"{"server":"a"}"#).unwrap().status, 200);
    }
    let other = HttpsServer::start(&dir, "b", &right, &right);
    let stranger = HttpsServer::start(&dir, "c", &right, &wrong);
    let mut client = other.client();
    let mut names = (0..).map(|number| format!("pool-{number}"));
    eventually("a forwarded request", || {
        let created = client.try_send(&format!("PUT /v1/pools/{}", names.next()?), &[], "{}");
        assert_eq!(created.unwrap().status, 201);
        let metrics = client.ask("GET /metrics?pools=0").body;
        let line = "keypeg_forwarded_requests_total{outcome=\"answered\"} ";
        let count = metrics.lines().find_map(|it| it.strip_prefix(line)?.parse::<f64>().ok());
        (count.unwrap() > 0.0).then_some(())
    });
    // Nothing answers before the search ends: the log says why.
    let mut clients = Vec::new();
    eventually("the reason in the log", || {
        let mut client = stranger.client();
        let path = format!("GET /v1/pools/{}", names.next()?);
        client.write(format!("{path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).unwrap();
        clients.push(client);
        stranger.has_logged(&["cannot be reached", "UnknownIssuer", "--cluster-ca"]).then_some(())
    });
    assert!(!other.has_logged(&["cannot be reached"]));
    // It stays ready for its own pools, and names the servers that it cannot reach.
    let mut client = stranger.client();
    eventually("readiness", || (client.ask("GET /readyz").status == 200).then_some(()));
    let shown = client.ask("GET /v1/cluster").body;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let reason = |server: &&Value| {
        let reason = server["unreachable"].as_str().unwrap_or_default();
        reason.contains("UnknownIssuer") && reason.contains("--cluster-ca")
    };
    assert!(shown["servers"].as_array().unwrap().iter().any(|server| reason(&server)), "{shown}");
    let refused = eventually("a pool of another server", || {
        let answer = client.ask(&format!("GET /v1/pools/{}", names.next()?));
        (answer.status == 503).then_some(answer.body)
    });
    assert!(
        refused.contains("\"no_owner\"") && refused.contains("cannot reach the server"),
        "{refused}"
    );
    // The file of --cluster-ca is reread at SIGHUP. One that is unusable changes nothing.
    let hang_up = || kill_process(stranger.server.pid(), Signal::HUP).unwrap();
    wrong.write("ca.pem", "");
    hang_up();
    eventually("the error", || {
        stranger.has_logged(&["ERROR", "--cluster-ca", "loaded before stay in use"]).then_some(())
    });
    wrong.write("ca.pem", &right.pem());
    hang_up();
    eventually("the other servers", || {
        client.ask(&format!("GET /v1/pools/{}", names.next()?));
        stranger.has_logged(&["another server is reached again"]).then_some(())
    });
}
