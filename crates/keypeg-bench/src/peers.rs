//! The same job on other servers, in their protocols: Redis, beanstalkd, `PostgreSQL`.
//!
//! `bench/run` starts and fills them. Each uses its most favourable form. As in Keypeg, a lease is
//! for a random free item, exclusive, under a token that a late release does not match, with a
//! deadline that is stored. The expiry of overdue leases is left out for all three; Keypeg includes
//! it.

use keypeg_bench::{ExchangeError, Protocol, Response};
use std::str::from_utf8;

/// HTTP statuses for the outcomes of the other protocols.
const SUCCESS: u16 = 200;
const NONE_AVAILABLE: u16 = 404;
const ERROR: u16 = 500;

fn line(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")?;
    Some(&bytes[..end])
}

fn number(text: &[u8]) -> Result<usize, ExchangeError> {
    from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(ExchangeError::Protocol("a length that is not a number"))
}

fn response(len: usize, status: u16) -> Response {
    Response { len, status, closes: false }
}

/// `free` is a set of keys, `leased` a sorted set by deadline, `holders` a hash of tokens.
const ACQUIRE: &str = "local k = redis.call('SPOP', 'free') if not k then return false end \
    local t = redis.call('INCR', 'token') \
    redis.call('ZADD', 'leased', redis.call('TIME')[1] + 60, k) \
    redis.call('HSET', 'holders', k, t) return {k, tostring(t)}";
const RELEASE: &str = "if redis.call('HGET', 'holders', ARGV[1]) ~= ARGV[2] then return false end \
    redis.call('ZREM', 'leased', ARGV[1]) redis.call('HDEL', 'holders', ARGV[1]) \
    redis.call('SADD', 'free', ARGV[1]) return {'1'}";

/// The content of a bulk string, `None` for a null string, and its length with prefix and line
/// ends.
type Bulk<'a> = (Option<&'a [u8]>, usize);

/// One script to acquire, one to release, each called by its digest.
#[derive(Default)]
pub(crate) struct Redis {
    scripts: Vec<Vec<u8>>,
    held: Option<(Vec<u8>, Vec<u8>)>,
}

impl Redis {
    fn command(out: &mut Vec<u8>, words: &[&[u8]]) {
        out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
        for word in words {
            out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            out.extend_from_slice(word);
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Parses a bulk string; `None` if it is incomplete.
    fn bulk(bytes: &[u8]) -> Result<Option<Bulk<'_>>, ExchangeError> {
        let Some(head) = line(bytes) else { return Ok(None) };
        let length = head
            .strip_prefix(b"$")
            .ok_or(ExchangeError::Protocol("a reply that is not a bulk string"))?;
        if length == b"-1" {
            return Ok(Some((None, head.len() + 2)));
        }
        let (start, length) = (head.len() + 2, number(length)?);
        let word = bytes.get(start..start + length + 2);
        Ok(word.map(|word| (Some(&word[..length]), start + length + 2)))
    }
}

impl Protocol for Redis {
    fn write_request(&mut self, out: &mut Vec<u8>) -> usize {
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

    fn parse_response(&mut self, bytes: &[u8]) -> Result<Option<Response>, ExchangeError> {
        let Some(head) = line(bytes) else { return Ok(None) };
        if head.first() == Some(&b'-') {
            return Ok(Some(response(head.len() + 2, ERROR)));
        }
        let (count, mut used) = match head.strip_prefix(b"*") {
            Some(count) if count != b"-1" => (number(count)?, head.len() + 2),
            Some(_) => return Ok(Some(response(head.len() + 2, NONE_AVAILABLE))),
            None => (1, 0),
        };
        let mut words = Vec::with_capacity(count);
        for _ in 0..count {
            let Some((word, more)) = Self::bulk(&bytes[used..])? else { return Ok(None) };
            used += more;
            words.extend(word);
        }
        let status = if words.is_empty() { NONE_AVAILABLE } else { SUCCESS };
        if self.handshake() {
            self.scripts.extend(words.first().map(|word| word.to_vec()));
        } else {
            self.held = match &words[..] {
                [key, token] => Some((key.to_vec(), token.to_vec())),
                _ => None,
            };
        }
        Ok(Some(response(used, status)))
    }

    fn must_release(&self) -> bool {
        self.held.is_some()
    }

    fn handshake(&self) -> bool {
        self.scripts.len() < 2
    }
}

/// Reserve and release: a job's time to run is its deadline, its connection is its holder.
#[derive(Default)]
pub(crate) struct Beanstalk {
    held: Option<Vec<u8>>,
}

impl Protocol for Beanstalk {
    fn write_request(&mut self, out: &mut Vec<u8>) -> usize {
        let Some(job) = &self.held else {
            out.extend_from_slice(b"reserve-with-timeout 0\r\n");
            return 0;
        };
        out.extend_from_slice(b"release ");
        out.extend_from_slice(job);
        out.extend_from_slice(b" 0 0\r\n");
        1
    }

    fn parse_response(&mut self, bytes: &[u8]) -> Result<Option<Response>, ExchangeError> {
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
                (used, SUCCESS)
            }
            (Some(b"RELEASED"), ..) => (head.len() + 2, SUCCESS),
            (Some(b"TIMED_OUT"), ..) => (head.len() + 2, NONE_AVAILABLE),
            _ => (head.len() + 2, ERROR),
        };
        Ok(Some(response(used, status)))
    }

    fn must_release(&self) -> bool {
        self.held.is_some()
    }
}

/// One prepared UPDATE to acquire, from a random row on and past locked ones, one to release.
pub(crate) struct Postgres {
    table: String,
    rows: u64,
    /// The state of the random generator.
    random: u64,
    has_shaken_hands: bool,
    held: Option<(Vec<u8>, Vec<u8>)>,
}

impl Postgres {
    pub(crate) fn new(table: &str, rows: u64, number: usize) -> Self {
        let random = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { table: table.into(), rows: rows.max(1), random, has_shaken_hands: false, held: None }
    }

    /// Returns a random row, with xorshift: the quality of the numbers does not matter.
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

    fn write_handshake(&self, out: &mut Vec<u8>) {
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

    /// Returns the columns of a row.
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

impl Protocol for Postgres {
    fn write_request(&mut self, out: &mut Vec<u8>) -> usize {
        if !self.has_shaken_hands {
            self.write_handshake(out);
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

    /// The handshake has two `ReadyForQuery` messages, after the startup and the statements.
    fn parse_response(&mut self, bytes: &[u8]) -> Result<Option<Response>, ExchangeError> {
        let (mut offset, mut status, mut held, mut prepared) = (0, NONE_AVAILABLE, None, 0);
        loop {
            let Some(&[kind, a, b, c, d]) = bytes[offset..].first_chunk::<5>() else {
                return Ok(None);
            };
            let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(0);
            let Some(body) = bytes.get(offset + 5..offset + 1 + length) else { return Ok(None) };
            offset += 1 + length;
            match kind {
                b'E' => status = ERROR,
                b'1' => prepared += 1,
                b'D' => {
                    status = SUCCESS;
                    if let [id, token, ..] = Self::columns(body)[..] {
                        held = Some((id.to_vec(), token.to_vec()));
                    }
                }
                b'Z' if !self.has_shaken_hands && prepared < 2 && status != ERROR => {}
                b'Z' => break,
                _ => {}
            }
        }
        if self.has_shaken_hands {
            self.held = held;
        } else {
            self.has_shaken_hands = true;
            status = if status == ERROR { ERROR } else { SUCCESS };
        }
        Ok(Some(response(offset, status)))
    }

    fn must_release(&self) -> bool {
        self.held.is_some()
    }

    fn handshake(&self) -> bool {
        !self.has_shaken_hands
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes the next request and parses its response, which may arrive in pieces.
    fn exchange(protocol: &mut impl Protocol, bytes: &[u8]) -> (usize, String, u16) {
        let mut out = Vec::new();
        let kind = protocol.write_request(&mut out);
        for cut in 0..bytes.len() {
            assert_eq!(protocol.parse_response(&bytes[..cut]), Ok(None), "{cut}");
        }
        let parsed = protocol.parse_response(bytes).unwrap().unwrap();
        assert_eq!((parsed.len, parsed.closes), (bytes.len(), false));
        (kind, String::from_utf8_lossy(&out).into_owned(), parsed.status)
    }

    #[test]
    fn a_redis_member_is_released_under_its_token() {
        let mut redis = Redis::default();
        for digest in ["aa", "bb"] {
            assert!(redis.handshake());
            let (_, command, status) =
                exchange(&mut redis, format!("$2\r\n{digest}\r\n").as_bytes());
            assert!(command.starts_with("*3\r\n$6\r\nSCRIPT\r\n$4\r\nLOAD\r\n"), "{command}");
            assert_eq!(status, SUCCESS);
        }
        assert!(!redis.handshake());
        let acquire = "*3\r\n$7\r\nEVALSHA\r\n$2\r\naa\r\n$1\r\n0\r\n".to_owned();
        let none = exchange(&mut redis, b"$-1\r\n");
        assert_eq!(none, (0, acquire.clone(), NONE_AVAILABLE));
        let acquired = exchange(&mut redis, b"*2\r\n$3\r\nk_1\r\n$1\r\n7\r\n");
        assert_eq!(acquired, (0, acquire, SUCCESS));
        assert!(redis.must_release());
        let (kind, command, status) = exchange(&mut redis, b"*1\r\n$1\r\n1\r\n");
        assert_eq!((kind, status), (1, SUCCESS));
        assert!(command.ends_with("$2\r\nbb\r\n$1\r\n0\r\n$3\r\nk_1\r\n$1\r\n7\r\n"), "{command}");
        assert!(!redis.must_release());
        assert_eq!(exchange(&mut redis, b"-ERR no\r\n").2, ERROR);
    }

    #[test]
    fn a_reserved_job_of_beanstalkd_is_released() {
        let mut beanstalk = Beanstalk::default();
        let reserve = "reserve-with-timeout 0\r\n".to_owned();
        let none = exchange(&mut beanstalk, b"TIMED_OUT\r\n");
        assert_eq!(none, (0, reserve.clone(), NONE_AVAILABLE));
        let reserved = exchange(&mut beanstalk, b"RESERVED 17 3\r\nkey\r\n");
        assert_eq!(reserved, (0, reserve, SUCCESS));
        assert!(beanstalk.must_release());
        let released = exchange(&mut beanstalk, b"RELEASED\r\n");
        assert_eq!(released, (1, "release 17 0 0\r\n".to_owned(), SUCCESS));
        assert!(!beanstalk.must_release());
    }

    #[test]
    fn a_row_of_postgresql_is_released_under_its_token() {
        let message = |kind: u8, body: &[u8]| {
            let mut bytes = Vec::new();
            Postgres::message(&mut bytes, kind, body);
            bytes
        };
        let ready = message(b'Z', b"I");
        let mut postgres = Postgres::new("items", 10, 3);
        assert!(postgres.handshake());
        // ReadyForQuery follows the startup, and again the two prepared statements.
        let prepared = [message(b'1', b""), message(b'1', b""), ready.clone()].concat();
        let (_, text, status) = exchange(&mut postgres, &[ready.clone(), prepared].concat());
        assert!(text.contains("UPDATE items SET") && status == SUCCESS, "{text}");
        assert!(!postgres.handshake());
        let row = message(b'D', b"\0\x03\0\0\0\x015\0\0\0\x0242\0\0\0\x01v");
        let (kind, text, status) = exchange(&mut postgres, &[row, ready.clone()].concat());
        assert!(text.contains("acquire"), "{text}");
        assert_eq!((kind, status), (0, SUCCESS));
        assert!(postgres.must_release());
        let (kind, text, status) = exchange(&mut postgres, &ready);
        assert!(text.contains("release") && text.contains("42"), "{text}");
        assert_eq!((kind, status), (1, NONE_AVAILABLE));
        assert!(!postgres.must_release());
    }
}
