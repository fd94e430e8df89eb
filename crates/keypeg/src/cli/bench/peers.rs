//! What others do for the same job, in their own words: Redis, beanstalkd, `PostgreSQL`.
//!
//! Only for `bench/run`, which starts and fills them; each in the form that is kindest to it. Lent
//! and returned as Keypeg does it: a random free one, exclusively, under a token that a late return
//! does not match, with a deadline that is kept. What moves back what is overdue is left out for all
//! three: for Keypeg it is not.

use super::Broken;
use super::talk::{Heard, Talk};
use std::str::from_utf8;

const GOOD: u16 = 200;
const NONE: u16 = 404;
const WRONG: u16 = 500;

fn line(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")?;
    Some(&bytes[..end])
}

fn number(text: &[u8]) -> Result<usize, Broken> {
    from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(Broken::Unclear("no number"))
}

fn heard(used: usize, status: u16) -> Heard {
    Heard { used, status, closes: false }
}

/// `free` is a set of keys; `leased` a sorted set by deadline, `holders` a hash of tokens.
const ACQUIRE: &str = "local k = redis.call('SPOP', 'free') if not k then return false end \
    local t = redis.call('INCR', 'token') \
    redis.call('ZADD', 'leased', redis.call('TIME')[1] + 60, k) \
    redis.call('HSET', 'holders', k, t) return {k, tostring(t)}";
const RELEASE: &str = "if redis.call('HGET', 'holders', ARGV[1]) ~= ARGV[2] then return false end \
    redis.call('ZREM', 'leased', ARGV[1]) redis.call('HDEL', 'holders', ARGV[1]) \
    redis.call('SADD', 'free', ARGV[1]) return {'1'}";

/// What a bulk string holds, `None` for none, and its length with all that is around it.
type Bulk<'a> = (Option<&'a [u8]>, usize);

/// One script to lend, one to take back, each called by its digest.
#[derive(Default)]
pub(super) struct Redis {
    scripts: Vec<Vec<u8>>,
    held: Option<(Vec<u8>, Vec<u8>)>,
}

impl Redis {
    pub(super) fn new(_: usize) -> Self {
        Self::default()
    }

    fn command(out: &mut Vec<u8>, words: &[&[u8]]) {
        out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
        for word in words {
            out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            out.extend_from_slice(word);
            out.extend_from_slice(b"\r\n");
        }
    }

    /// A bulk string and what it took; `None` when more is to come.
    fn bulk(bytes: &[u8]) -> Result<Option<Bulk<'_>>, Broken> {
        let Some(head) = line(bytes) else { return Ok(None) };
        let length = head.strip_prefix(b"$").ok_or(Broken::Unclear("no bulk string"))?;
        if length == b"-1" {
            return Ok(Some((None, head.len() + 2)));
        }
        let (start, length) = (head.len() + 2, number(length)?);
        let word = bytes.get(start..start + length + 2);
        Ok(word.map(|word| (Some(&word[..length]), start + length + 2)))
    }
}

impl Talk for Redis {
    fn ask(&mut self, out: &mut Vec<u8>) -> usize {
        match (&self.scripts[..], &self.held) {
            ([acquire, _], None) => Self::command(out, &[b"EVALSHA", acquire, b"0"]),
            ([_, release], Some((key, token))) => {
                Self::command(out, &[b"EVALSHA", release, b"0", key, token]);
                return 1;
            }
            (loaded, _) => {
                let script = if loaded.is_empty() { ACQUIRE } else { RELEASE };
                Self::command(out, &[b"SCRIPT", b"LOAD", script.as_bytes()]);
            }
        }
        0
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<Option<Heard>, Broken> {
        let Some(head) = line(bytes) else { return Ok(None) };
        if head.first() == Some(&b'-') {
            return Ok(Some(heard(head.len() + 2, WRONG)));
        }
        let (count, mut used) = match head.strip_prefix(b"*") {
            Some(count) if count != b"-1" => (number(count)?, head.len() + 2),
            Some(_) => return Ok(Some(heard(head.len() + 2, NONE))),
            None => (1, 0),
        };
        let mut words = Vec::with_capacity(count);
        for _ in 0..count {
            let Some((word, more)) = Self::bulk(&bytes[used..])? else { return Ok(None) };
            used += more;
            words.extend(word);
        }
        let status = if words.is_empty() { NONE } else { GOOD };
        if self.greets() {
            self.scripts.extend(words.first().map(|word| word.to_vec()));
        } else {
            self.held = match &words[..] {
                [key, token] => Some((key.to_vec(), token.to_vec())),
                _ => None,
            };
        }
        Ok(Some(heard(used, status)))
    }

    fn owes(&self) -> bool {
        self.held.is_some()
    }

    fn greets(&self) -> bool {
        self.scripts.len() < 2
    }
}

/// Reserve and release; a job's time to run is its deadline, its connection its holder.
#[derive(Default)]
pub(super) struct Beanstalk {
    held: Option<Vec<u8>>,
}

impl Talk for Beanstalk {
    fn ask(&mut self, out: &mut Vec<u8>) -> usize {
        let Some(job) = &self.held else {
            out.extend_from_slice(b"reserve-with-timeout 0\r\n");
            return 0;
        };
        out.extend_from_slice(b"release ");
        out.extend_from_slice(job);
        out.extend_from_slice(b" 0 0\r\n");
        1
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<Option<Heard>, Broken> {
        let Some(head) = line(bytes) else { return Ok(None) };
        self.held = None;
        let mut words = head.split(|&byte| byte == b' ');
        let (used, status) = match (words.next(), words.next(), words.next()) {
            (Some(b"RESERVED"), Some(job), Some(length)) => {
                let used = head.len() + 2 + number(length)? + 2;
                if bytes.len() < used {
                    return Ok(None);
                }
                self.held = Some(job.to_vec());
                (used, GOOD)
            }
            (Some(b"RELEASED"), ..) => (head.len() + 2, GOOD),
            (Some(b"TIMED_OUT"), ..) => (head.len() + 2, NONE),
            _ => (head.len() + 2, WRONG),
        };
        Ok(Some(heard(used, status)))
    }

    fn owes(&self) -> bool {
        self.held.is_some()
    }
}

/// One prepared UPDATE to lend, from a random row on and past locked ones, one to take back.
pub(super) struct Postgres {
    table: String,
    rows: u64,
    random: u64,
    greeted: bool,
    held: Option<(Vec<u8>, Vec<u8>)>,
}

impl Postgres {
    pub(super) fn new(table: &str, rows: u64, number: usize) -> Self {
        let random = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { table: table.into(), rows: rows.max(1), random, greeted: false, held: None }
    }

    /// xorshift: any row will do.
    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % self.rows + 1
    }

    fn message(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
        out.push(kind);
        let length = u32::try_from(body.len() + 4).expect("invariant: messages are short");
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(body);
    }

    fn prepare(out: &mut Vec<u8>, name: &str, text: &str) {
        Self::message(out, b'P', format!("{name}\0{text}\0\0\0").as_bytes());
    }

    /// Binds and runs a prepared statement.
    fn execute(out: &mut Vec<u8>, name: &str, values: &[&[u8]]) {
        let count = u8::try_from(values.len()).expect("invariant: one value or two");
        let mut bind = format!("\0{name}\0\0\0\0").into_bytes();
        bind.push(count);
        for value in values {
            let length = u32::try_from(value.len()).expect("invariant: values are short");
            bind.extend_from_slice(&length.to_be_bytes());
            bind.extend_from_slice(value);
        }
        bind.extend_from_slice(&[0, 0]);
        Self::message(out, b'B', &bind);
        Self::message(out, b'E', b"\0\0\0\0\0");
        Self::message(out, b'S', b"");
    }

    fn greeting(&self, out: &mut Vec<u8>) {
        let body = b"\0\x03\0\0user\0bench\0database\0bench\0\0";
        out.extend_from_slice(&(u32::try_from(body.len() + 4).unwrap_or(0)).to_be_bytes());
        out.extend_from_slice(body);
        let table = &self.table;
        let acquire = format!(
            "UPDATE {table} SET held_until = clock_timestamp() + interval '60 s', \
             token = nextval('token') WHERE id = (SELECT id FROM {table} WHERE id >= $1::int \
             AND held_until < clock_timestamp() ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) \
             RETURNING id, token, value"
        );
        let release = format!(
            "UPDATE {table} SET held_until = '-infinity' WHERE id = $1::int AND token = $2::bigint \
             RETURNING id"
        );
        Self::prepare(out, "acquire", &acquire);
        Self::prepare(out, "release", &release);
        Self::message(out, b'S', b"");
    }

    /// The columns of a row.
    fn columns(mut row: &[u8]) -> Vec<&[u8]> {
        let mut columns = Vec::new();
        row = row.get(2..).unwrap_or_default();
        while let Some((length, rest)) = row.split_first_chunk::<4>() {
            let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(0).min(rest.len());
            columns.push(&rest[..length]);
            row = &rest[length..];
        }
        columns
    }
}

impl Talk for Postgres {
    fn ask(&mut self, out: &mut Vec<u8>) -> usize {
        if !self.greeted {
            self.greeting(out);
            return 0;
        }
        if let Some((id, token)) = &self.held {
            Self::execute(out, "release", &[id, token]);
            return 1;
        }
        let from = self.draw().to_string();
        Self::execute(out, "acquire", &[from.as_bytes()]);
        0
    }

    /// Ready comes once after the start and once after what was prepared.
    fn hear(&mut self, bytes: &[u8]) -> Result<Option<Heard>, Broken> {
        let (mut at, mut status, mut held, mut prepared) = (0, NONE, None, 0);
        loop {
            let Some(&[kind, a, b, c, d]) = bytes[at..].first_chunk::<5>() else { return Ok(None) };
            let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(0);
            let Some(body) = bytes.get(at + 5..at + 1 + length) else { return Ok(None) };
            at += 1 + length;
            match kind {
                b'E' => status = WRONG,
                b'1' => prepared += 1,
                b'D' => {
                    status = GOOD;
                    if let [id, token, ..] = Self::columns(body)[..] {
                        held = Some((id.to_vec(), token.to_vec()));
                    }
                }
                b'Z' if !self.greeted && prepared < 2 && status != WRONG => {}
                b'Z' => break,
                _ => {}
            }
        }
        if self.greeted {
            self.held = held;
        } else {
            self.greeted = true;
            status = if status == WRONG { WRONG } else { GOOD };
        }
        Ok(Some(heard(at, status)))
    }

    fn owes(&self) -> bool {
        self.held.is_some()
    }

    fn greets(&self) -> bool {
        !self.greeted
    }
}
