//! What clients were told, and whether it still holds: for tests that end servers in bad ways.
//!
//! Clients generate, acquire, release, keep alive and delete until their server is gone. What they
//! were told is checked over all rounds: holds of one key never overlap, tokens are never used
//! twice and grow, keys are there until deleted, and what is gone stays gone. A hold is counted
//! from its grant's arrival until its release was sent, or until its length after the acquire was
//! sent: an overlap of two such is a true one.

use super::{Answer, Client, Server, now};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Clients that play at once.
const CLIENTS: u64 = 8;
/// The pool whose keys are purged within a round unless somebody keeps them alive.
const BRIEF: &str = "brief";
const POOLS: [&str; 2] = ["default", BRIEF];
/// Keys of one pool that the clients do not go beyond.
const KEYS_MAX: usize = 12;

/// The arguments of a server that a story is told on.
pub(crate) const ARGS: [&str; 4] = ["--lease-ttl", "400ms", "--keepalive-ttl", "1h"];

/// What the clients know, over all rounds.
#[derive(Default)]
pub(crate) struct Story {
    keys: BTreeMap<String, Told>,
    holds: Vec<Hold>,
    /// Changes that were acknowledged.
    acked: u64,
    /// Requests that were refused for a lack that may pass.
    refused: u64,
}

/// A story, told by several clients at once.
pub(crate) type Shared = Mutex<Story>;

/// What was told of one key.
struct Told {
    pool: &'static str,
    /// A delete was sent, so the key may be gone.
    deleting: bool,
    /// The server said that it is gone: for ever.
    gone: bool,
}

/// A time in which one client certainly had a key to itself.
#[derive(Debug)]
struct Hold {
    key: String,
    token: u64,
    asked: Instant,
    from: Instant,
    until: Instant,
}

/// A client's own lease.
struct Mine {
    hold: usize,
    lease: String,
    pool: &'static str,
}

/// Numbers from a seed (splitmix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        let bound = u64::try_from(of.len()).unwrap();
        (bound > 0).then(|| &of[usize::try_from(self.below(bound)).unwrap()])
    }
}

/// A number that the environment may give.
pub(crate) fn given(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Lets clients play until `end` has ended the server, then checks what they were told.
pub(crate) fn play(
    server: &mut Server,
    story: &Shared,
    dice: &mut Dice,
    end: impl FnOnce(&mut Server),
) {
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let (client, seed) = (server.client(), dice.next());
            scope.spawn(move || Play { client, story, dice: Dice(seed), mine: vec![] }.run());
        }
        end(server);
    });
    let told = story.lock().unwrap();
    check_holds(&told.holds);
    check_tokens(&told.holds);
}

/// Checks a server that was just started, and makes ready for the next round.
pub(crate) fn begin(server: &Server, story: &Shared) {
    check_keys(server, story);
    let brief = json!({ "lease_ttl_seconds": 0.4, "keepalive_ttl_seconds": 0.15 });
    let put = server.client().send(&format!("PUT /v1/pools/{BRIEF}"), &brief);
    assert!([200, 201].contains(&put.status), "{put:?}");
}

/// One client's play, until the server is gone.
struct Play<'a> {
    client: Client,
    story: &'a Mutex<Story>,
    dice: Dice,
    mine: Vec<Mine>,
}

impl Play<'_> {
    fn run(mut self) {
        while self.step().is_ok() {}
    }

    fn step(&mut self) -> io::Result<()> {
        let pool = POOLS[usize::from(self.dice.below(4) == 0)];
        match self.dice.below(16) {
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
        let mut story = self.story.lock().unwrap();
        story.acked += u64::from(answer.status < 300);
        story.refused += u64::from(is_lack(&answer));
        Ok(answer)
    }

    fn a_key(&mut self, pool: &str) -> Option<String> {
        let story = self.story.lock().unwrap();
        let keys: Vec<&String> =
            story.keys.iter().filter(|(_, told)| told.pool == pool).map(|(id, _)| id).collect();
        self.dice.pick(&keys).map(ToString::to_string)
    }

    fn generate(&mut self, pool: &'static str) -> io::Result<()> {
        let there = |told: &&Told| told.pool == pool && !told.gone && !told.deleting;
        if self.story.lock().unwrap().keys.values().filter(there).count() >= KEYS_MAX {
            return Ok(());
        }
        let count = 1 + self.dice.below(3);
        let answer =
            self.send(&format!("POST /v1/pools/{pool}/keys"), &json!({ "count": count }))?;
        if is_lack(&answer) {
            return Ok(());
        }
        assert_eq!(answer.status, 201, "{answer:?}");
        let made = answer.json();
        let mut story = self.story.lock().unwrap();
        for key in made["keys"].as_array().unwrap() {
            let told = Told { pool, deleting: false, gone: false };
            let twice = story.keys.insert(key["id"].as_str().unwrap().into(), told);
            assert!(twice.is_none(), "made twice: {key}");
        }
        Ok(())
    }

    fn acquire(&mut self, pool: &'static str) -> io::Result<()> {
        let gone: HashSet<String> = {
            let story = self.story.lock().unwrap();
            story.keys.iter().filter(|(_, told)| told.gone).map(|(id, _)| id.clone()).collect()
        };
        let ttl_ms = 20 + self.dice.below(300);
        let asked = now();
        let body = json!({ "ttl_seconds": Duration::from_millis(ttl_ms).as_secs_f64() });
        let answer = self.send(&format!("POST /v1/pools/{pool}/leases"), &body)?;
        let from = now();
        if answer.status == 404 || is_lack(&answer) {
            return Ok(());
        }
        assert_eq!(answer.status, 201, "{answer:?}");
        let grant = answer.json();
        let key: String = grant["key_id"].as_str().unwrap().into();
        assert!(!gone.contains(&key), "lent after it was gone: {grant}");
        let hold = Hold {
            key,
            token: grant["fencing_token"].as_u64().unwrap(),
            asked,
            from,
            until: asked + Duration::from_millis(ttl_ms),
        };
        let mut story = self.story.lock().unwrap();
        story.holds.push(hold);
        let lease = grant["id"].as_str().unwrap().into();
        self.mine.push(Mine { hold: story.holds.len() - 1, lease, pool });
        Ok(())
    }

    fn release(&mut self) -> io::Result<()> {
        let Some(mine) = self.mine.pop() else { return Ok(()) };
        let sending = now();
        {
            let hold = &mut self.story.lock().unwrap().holds[mine.hold];
            hold.until = hold.until.min(sending);
        }
        let path = format!("/v1/pools/{}/leases/{}/release", mine.pool, mine.lease);
        let answer = self.send(&format!("POST {path}"), &json!({}))?;
        assert!([204, 410].contains(&answer.status) || is_lack(&answer), "{answer:?}");
        Ok(())
    }

    fn keep_alive(&mut self, pool: &'static str) -> io::Result<()> {
        let Some(key) = self.a_key(pool) else { return Ok(()) };
        let was_gone = self.story.lock().unwrap().keys[&key].gone;
        let answer =
            self.send(&format!("POST /v1/pools/{pool}/keys/{key}/keepalive"), &json!({}))?;
        if !is_lack(&answer) {
            self.story.lock().unwrap().heard_of(&key, was_gone, &answer);
        }
        Ok(())
    }

    fn delete(&mut self, pool: &'static str) -> io::Result<()> {
        let Some(key) = self.a_key(pool) else { return Ok(()) };
        let was_gone = {
            let told = &mut self.story.lock().unwrap().keys;
            let told = told.get_mut(&key).unwrap();
            told.deleting = true;
            told.gone
        };
        let answer = self.send(&format!("DELETE /v1/pools/{pool}/keys/{key}"), &Value::Null)?;
        if is_lack(&answer) {
            return Ok(());
        }
        let mut story = self.story.lock().unwrap();
        if answer.status == 204 {
            assert!(!was_gone, "deleted after it was gone: {key}");
            story.keys.get_mut(&key).unwrap().gone = true;
        } else {
            story.heard_of(&key, was_gone, &answer);
        }
        Ok(())
    }
}

/// A refusal for want of room or time, after which nothing is changed.
fn is_lack(answer: &Answer) -> bool {
    let lack = [503, 507].contains(&answer.status);
    assert!(!lack || answer.body.contains("\"outcome\":\"not_applied\""), "{answer:?}");
    lack
}

impl Story {
    /// Acknowledged changes, grants among them, and requests refused for a lack.
    pub(crate) fn counts(&self) -> (u64, usize, u64) {
        (self.acked, self.holds.len(), self.refused)
    }

    /// Keys that were acknowledged and that the server does not know: for rigs that must lose some.
    pub(crate) fn lost(&self, server: &Server) -> usize {
        let client = &mut server.client();
        let there =
            |(_, told): &(&String, &Told)| told.pool == POOLS[0] && !told.gone && !told.deleting;
        let kept = self.keys.iter().filter(there);
        kept.filter(|(id, _)| client.ask(&format!("GET /v1/pools/default/keys/{id}")).status != 200)
            .count()
    }

    /// Takes what was heard of a key: 200, or 404 with a reason and then for ever.
    fn heard_of(&mut self, key: &str, was_gone: bool, answer: &Answer) {
        let told = self.keys.get_mut(key).unwrap();
        match answer.status {
            200 => assert!(!was_gone, "back after it was gone: {key}: {answer:?}"),
            404 => {
                assert!(told.deleting || told.pool == BRIEF, "lost: {key}: {answer:?}");
                told.gone = true;
            }
            _ => panic!("{answer:?}"),
        }
    }
}

/// After a restart: what is gone is gone, and what nobody deleted is there. Whether a delete that
/// was not answered was made is decided by now, for ever.
fn check_keys(server: &Server, story: &Mutex<Story>) {
    let client = &mut server.client();
    let story = &mut *story.lock().unwrap();
    let keys: Vec<(String, &str, bool)> =
        story.keys.iter().map(|(id, told)| (id.clone(), told.pool, told.gone)).collect();
    for (key, pool, was_gone) in keys {
        let answer = client.ask(&format!("GET /v1/pools/{pool}/keys/{key}"));
        story.heard_of(&key, was_gone, &answer);
        let told = story.keys.get_mut(&key).unwrap();
        told.deleting = told.gone;
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
                "two held {key} at once, for {overlap:?}: {:?} and {:?}",
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
            // A grant that was there before another was asked for has the lower token.
            assert!(latest.is_none_or(|asked| hold.from >= asked), "tokens of {key} fell");
            latest = latest.max(Some(hold.asked));
        }
    }
}
