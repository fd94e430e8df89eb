//! The history that clients observe, and its check: for tests that kill servers or make them fail.
//!
//! Clients generate, acquire, release, keep alive and delete until their server has ended. The
//! history is checked over all rounds: holds of one key never overlap, fencing tokens are unique
//! and increase, keys exist until they are deleted, and a deleted key never exists again. A hold
//! counts from the arrival of its grant until its release was sent, or until its TTL after the
//! acquire was sent. The server's own lease is at least as long, so every overlap is a real one.

use super::{Answer, Client, Server, now};
pub(crate) use keypeg_testkit::{SeededRandom, env_number};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The number of concurrent clients.
const CLIENTS: u64 = 8;
/// The pool whose keys are purged within a round unless a client keeps them alive.
const SHORT_LIVED: &str = "short-lived";
const POOLS: [&str; 2] = ["default", SHORT_LIVED];
/// The number of keys of one pool at which the clients generate no more.
const KEYS_MAX: usize = 12;

/// The arguments of a server that the clients run against.
pub(crate) const SERVER_ARGS: [&str; 4] = ["--lease-ttl", "400ms", "--keepalive-ttl", "1h"];

/// Returns the number of HTTP threads in a round: two, or one, which then also runs turns of the
/// engine.
pub(crate) fn threads_of_round(round: u64) -> [&'static str; 2] {
    ["--http-threads", if round.is_multiple_of(2) { "1" } else { "2" }]
}

/// All that the clients have observed, over all rounds.
#[derive(Default)]
pub(crate) struct History {
    keys: BTreeMap<String, KeyRecord>,
    holds: Vec<Hold>,
    /// The number of acknowledged changes.
    acked: u64,
    /// The number of requests refused for a lack of capacity that may pass.
    refused: u64,
}

/// A history that several clients write at once.
pub(crate) type SharedHistory = Mutex<History>;

/// What the clients know of one key.
struct KeyRecord {
    pool: &'static str,
    /// Whether a delete was sent, so that the key may be deleted.
    deleting: bool,
    /// Whether the server has reported it as deleted or purged, which is permanent.
    gone: bool,
}

/// An interval in which one client certainly held a key.
#[derive(Debug)]
struct Hold {
    key: String,
    token: u64,
    requested_at: Instant,
    from: Instant,
    until: Instant,
}

/// A lease of this client.
struct OwnLease {
    /// Its index in [`History::holds`].
    hold: usize,
    lease: String,
    pool: &'static str,
}

/// Runs clients until `end` has ended the server, then checks their history.
pub(crate) fn run_clients(
    server: &mut Server,
    history: &SharedHistory,
    random: &mut SeededRandom,
    end: impl FnOnce(&mut Server),
) {
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let (client, random) = (server.client(), SeededRandom(random.next()));
            scope.spawn(move || Worker { client, history, random, leases: vec![] }.run());
        }
        end(server);
    });
    let history = history.lock().unwrap();
    check_holds(&history.holds);
    check_tokens(&history.holds);
}

/// Checks a server that has just started, and prepares the next round.
pub(crate) fn start_round(server: &Server, history: &SharedHistory) {
    check_keys(server, history);
    let policy = json!({ "lease_ttl_seconds": 0.4, "keepalive_ttl_seconds": 0.15 });
    let put = server.client().send(&format!("PUT /v1/pools/{SHORT_LIVED}"), &policy);
    assert!([200, 201].contains(&put.status), "{put:?}");
}

/// One client, which sends random requests until the server has ended.
struct Worker<'a> {
    client: Client,
    history: &'a SharedHistory,
    random: SeededRandom,
    leases: Vec<OwnLease>,
}

impl Worker<'_> {
    fn run(mut self) {
        while self.step().is_ok() {}
    }

    fn step(&mut self) -> io::Result<()> {
        let pool = POOLS[usize::from(self.random.below(4) == 0)];
        match self.random.below(16) {
            0..2 => self.generate(pool),
            2..8 => self.acquire(pool),
            8..12 => self.release(),
            12..15 => self.keep_alive(pool),
            _ => self.delete(pool),
        }
    }

    fn send(&mut self, request: &str, body: &Value) -> io::Result<Answer> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let json_type = [("content-type", "application/json")];
        let answer = self.client.try_send(request, &json_type, &body)?;
        let mut history = self.history.lock().unwrap();
        history.acked += u64::from(answer.status < 300);
        history.refused += u64::from(is_capacity_refusal(&answer));
        Ok(answer)
    }

    fn random_key(&mut self, pool: &str) -> Option<String> {
        let history = self.history.lock().unwrap();
        let keys: Vec<&String> =
            history.keys.iter().filter(|(_, key)| key.pool == pool).map(|(id, _)| id).collect();
        self.random.pick(&keys).map(ToString::to_string)
    }

    fn generate(&mut self, pool: &'static str) -> io::Result<()> {
        let exists = |key: &&KeyRecord| key.pool == pool && !key.gone && !key.deleting;
        if self.history.lock().unwrap().keys.values().filter(exists).count() >= KEYS_MAX {
            return Ok(());
        }
        let count = 1 + self.random.below(3);
        let answer =
            self.send(&format!("POST /v1/pools/{pool}/keys"), &json!({ "count": count }))?;
        if is_capacity_refusal(&answer) {
            return Ok(());
        }
        assert_eq!(answer.status, 201, "{answer:?}");
        let created = answer.json();
        let mut history = self.history.lock().unwrap();
        for key in created["keys"].as_array().unwrap() {
            let record = KeyRecord { pool, deleting: false, gone: false };
            let earlier = history.keys.insert(key["id"].as_str().unwrap().into(), record);
            assert!(earlier.is_none(), "created twice: {key}");
        }
        Ok(())
    }

    fn acquire(&mut self, pool: &'static str) -> io::Result<()> {
        let gone: HashSet<String> = {
            let history = self.history.lock().unwrap();
            history.keys.iter().filter(|(_, key)| key.gone).map(|(id, _)| id.clone()).collect()
        };
        let ttl_ms = 20 + self.random.below(300);
        let requested_at = now();
        let body = json!({ "ttl_seconds": Duration::from_millis(ttl_ms).as_secs_f64() });
        let answer = self.send(&format!("POST /v1/pools/{pool}/leases"), &body)?;
        let from = now();
        if answer.status == 404 || is_capacity_refusal(&answer) {
            return Ok(());
        }
        assert_eq!(answer.status, 201, "{answer:?}");
        let grant = answer.json();
        let key: String = grant["key_id"].as_str().unwrap().into();
        assert!(!gone.contains(&key), "granted after it was deleted: {grant}");
        let hold = Hold {
            key,
            token: grant["fencing_token"].as_u64().unwrap(),
            requested_at,
            from,
            until: requested_at + Duration::from_millis(ttl_ms),
        };
        let mut history = self.history.lock().unwrap();
        history.holds.push(hold);
        let lease = grant["id"].as_str().unwrap().into();
        self.leases.push(OwnLease { hold: history.holds.len() - 1, lease, pool });
        Ok(())
    }

    fn release(&mut self) -> io::Result<()> {
        let Some(own) = self.leases.pop() else { return Ok(()) };
        let sending = now();
        {
            let hold = &mut self.history.lock().unwrap().holds[own.hold];
            hold.until = hold.until.min(sending);
        }
        let path = format!("/v1/pools/{}/leases/{}/release", own.pool, own.lease);
        let answer = self.send(&format!("POST {path}"), &json!({}))?;
        assert!([204, 410].contains(&answer.status) || is_capacity_refusal(&answer), "{answer:?}");
        Ok(())
    }

    fn keep_alive(&mut self, pool: &'static str) -> io::Result<()> {
        let Some(key) = self.random_key(pool) else { return Ok(()) };
        let was_gone = self.history.lock().unwrap().keys[&key].gone;
        let answer =
            self.send(&format!("POST /v1/pools/{pool}/keys/{key}/keepalive"), &json!({}))?;
        if !is_capacity_refusal(&answer) {
            self.history.lock().unwrap().record_answer(&key, was_gone, &answer);
        }
        Ok(())
    }

    fn delete(&mut self, pool: &'static str) -> io::Result<()> {
        let Some(key) = self.random_key(pool) else { return Ok(()) };
        let was_gone = {
            let keys = &mut self.history.lock().unwrap().keys;
            let record = keys.get_mut(&key).unwrap();
            record.deleting = true;
            record.gone
        };
        let answer = self.send(&format!("DELETE /v1/pools/{pool}/keys/{key}"), &Value::Null)?;
        if is_capacity_refusal(&answer) {
            return Ok(());
        }
        let mut history = self.history.lock().unwrap();
        if answer.status == 204 {
            assert!(!was_gone, "deleted twice: {key}");
            history.keys.get_mut(&key).unwrap().gone = true;
        } else {
            history.record_answer(&key, was_gone, &answer);
        }
        Ok(())
    }
}

/// Returns whether a request was refused for lack of capacity, which changes nothing.
fn is_capacity_refusal(answer: &Answer) -> bool {
    let refused = [503, 507].contains(&answer.status);
    assert!(!refused || answer.body.contains("\"outcome\":\"not_applied\""), "{answer:?}");
    refused
}

impl History {
    /// Returns the numbers of acknowledged changes, of grants among them, and of refused requests.
    pub(crate) fn counts(&self) -> (u64, usize, u64) {
        (self.acked, self.holds.len(), self.refused)
    }

    /// Returns the number of acknowledged keys that exist for certain.
    pub(crate) fn key_count(&self) -> usize {
        self.existing().count()
    }

    fn existing(&self) -> impl Iterator<Item = &String> {
        let exists =
            |(_, key): &(&String, &KeyRecord)| key.pool == POOLS[0] && !key.gone && !key.deleting;
        self.keys.iter().filter(exists).map(|(id, _)| id)
    }

    /// Counts acknowledged keys that the server does not know, for a control that must lose some.
    pub(crate) fn lost_keys(&self, server: &Server) -> usize {
        let client = &mut server.client();
        self.existing()
            .filter(|id| client.ask(&format!("GET /v1/pools/default/keys/{id}")).status != 200)
            .count()
    }

    /// Records an answer about a key: 200, or 404, which needs a reason and is then permanent.
    fn record_answer(&mut self, key: &str, was_gone: bool, answer: &Answer) {
        let record = self.keys.get_mut(key).unwrap();
        match answer.status {
            200 => assert!(!was_gone, "exists again after it was deleted: {key}: {answer:?}"),
            404 => {
                assert!(record.deleting || record.pool == SHORT_LIVED, "lost: {key}: {answer:?}");
                record.gone = true;
            }
            _ => panic!("{answer:?}"),
        }
    }
}

/// Checks after a restart that deleted keys stay deleted and all others exist. A delete that was
/// not answered is now known to be applied or not, and that outcome is permanent.
fn check_keys(server: &Server, history: &SharedHistory) {
    let client = &mut server.client();
    let history = &mut *history.lock().unwrap();
    let keys: Vec<(String, &str, bool)> =
        history.keys.iter().map(|(id, key)| (id.clone(), key.pool, key.gone)).collect();
    for (key, pool, was_gone) in keys {
        let answer = client.ask(&format!("GET /v1/pools/{pool}/keys/{key}"));
        history.record_answer(&key, was_gone, &answer);
        let record = history.keys.get_mut(&key).unwrap();
        record.deleting = record.gone;
    }
}

fn by_key(holds: &[Hold]) -> HashMap<&str, Vec<&Hold>> {
    let mut keys: HashMap<&str, Vec<&Hold>> = HashMap::new();
    for hold in holds {
        keys.entry(&hold.key).or_default().push(hold);
    }
    keys
}

fn check_holds(holds: &[Hold]) {
    for (key, mut holds) in by_key(holds) {
        holds.retain(|hold| hold.from < hold.until);
        holds.sort_by_key(|hold| hold.from);
        for pair in holds.windows(2) {
            let overlap = pair[0].until.saturating_duration_since(pair[1].from);
            assert!(
                overlap.is_zero(),
                "two clients held {key} at once, for {overlap:?}: {:?} and {:?}",
                pair[0],
                pair[1]
            );
        }
    }
}

fn check_tokens(holds: &[Hold]) {
    let tokens: HashSet<u64> = holds.iter().map(|hold| hold.token).collect();
    assert_eq!(tokens.len(), holds.len(), "a token was used twice");
    for (key, mut holds) in by_key(holds) {
        holds.sort_by_key(|hold| hold.token);
        let mut latest = None;
        for hold in holds {
            // A grant that arrived before another was requested has the lower token.
            assert!(latest.is_none_or(|earlier| hold.from >= earlier), "tokens of {key} fell");
            latest = latest.max(Some(hold.requested_at));
        }
    }
}
