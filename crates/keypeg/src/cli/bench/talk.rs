//! One connection's side of a conversation, as bytes: what to ask next, what the answer was.
//!
//! Knows no sockets and no time. An answer is read as little as it takes to know where it ends,
//! whether it is good, and what the next request needs of it.

use super::Broken;
use std::fmt;
use std::str::from_utf8;
use std::sync::Arc;

/// What one connection says, request by request.
pub(super) trait Talk: Send {
    /// Writes the next request; tells its kind, an index of the scenario's names.
    fn ask(&mut self, out: &mut Vec<u8>) -> usize;
    /// Reads the answer that `bytes` begins with; `None` when more is to come.
    fn hear(&mut self, bytes: &[u8]) -> Result<Option<Heard>, Broken>;
    /// Whether something is held that is to be given back before the connection may end.
    fn owes(&self) -> bool {
        false
    }
    /// Whether what must come before the first request that counts is still to be said.
    fn greets(&self) -> bool {
        false
    }
}

impl fmt::Debug for dyn Talk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Talk")
    }
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heard {
    /// How many bytes it took.
    pub(super) used: usize,
    /// As HTTP has it.
    pub(super) status: u16,
    /// Whether nothing more may be asked here.
    pub(super) closes: bool,
}

/// The headers that requests tend to have when they come from a program, through a proxy.
pub(super) fn headers(host: &str, authorization: Option<&str>) -> String {
    let authorization =
        authorization.map(|value| format!("Authorization: {value}\r\n")).unwrap_or_default();
    format!(
        "Host: {host}\r\n\
         User-Agent: keypeg-bench/{}\r\n\
         Accept: application/json\r\n\
         Accept-Encoding: gzip, deflate, br\r\n\
         {authorization}\
         X-Forwarded-For: 203.0.113.7, 198.51.100.11\r\n\
         X-Forwarded-Proto: https\r\n\
         X-Request-Id: 0af7651916cd43dd8448eb211c80319c\r\n\
         Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// A whole request; a body is JSON.
pub(super) fn request(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = match (method, body.len()) {
        ("GET" | "HEAD" | "DELETE", 0) => String::new(),
        (_, 0) => "Content-Length: 0\r\n".into(),
        (_, length) => format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"),
    };
    format!("{method} {path} HTTP/1.1\r\n{headers}{length}\r\n{body}").into_bytes()
}

/// Takes something, gives it back, takes again.
pub(super) struct Pair {
    take: Vec<u8>,
    /// What stands before the name of what was taken, in the answer's body.
    before: &'static str,
    give: (Vec<u8>, Vec<u8>),
    held: Vec<u8>,
}

impl Pair {
    /// `give` has a `*` where the name of what was taken goes.
    pub(super) fn new(take: Vec<u8>, before: &'static str, give: &[u8]) -> Self {
        let at = give.iter().position(|&byte| byte == b'*').expect("invariant: a place for a name");
        // `Accept` of these requests names one type, so the first star is the path's.
        let give = (give[..at].to_vec(), give[at + 1..].to_vec());
        Self { take, before, give, held: Vec::new() }
    }
}

impl Talk for Pair {
    fn ask(&mut self, out: &mut Vec<u8>) -> usize {
        if self.held.is_empty() {
            out.extend_from_slice(&self.take);
            return 0;
        }
        out.extend_from_slice(&self.give.0);
        out.extend_from_slice(&self.held);
        out.extend_from_slice(&self.give.1);
        1
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<Option<Heard>, Broken> {
        let Some((heard, body)) = answer(bytes)? else { return Ok(None) };
        // What could not be given back is not asked for again: its time ends it.
        let taken = self.held.is_empty() && heard.status < 300;
        self.held.clear();
        if taken {
            let name =
                named(body, self.before).ok_or(Broken::Unclear("no name of what was lent"))?;
            self.held.extend_from_slice(name);
        }
        Ok(Some(heard))
    }

    fn owes(&self) -> bool {
        !self.held.is_empty()
    }
}

/// Asks the same, or the same of one name after the other.
pub(super) struct Same {
    around: (Vec<u8>, Vec<u8>),
    names: Arc<[String]>,
    at: usize,
}

impl Same {
    pub(super) fn new(request: Vec<u8>) -> Self {
        Self { around: (request, Vec::new()), names: Vec::new().into(), at: 0 }
    }

    /// `request` has a `*` where a name goes; begins with the name at `at`.
    pub(super) fn of_each(request: &[u8], names: Arc<[String]>, at: usize) -> Self {
        let star = request.iter().position(|&byte| byte == b'*');
        let star = star.expect("invariant: a place for a name");
        Self { around: (request[..star].to_vec(), request[star + 1..].to_vec()), names, at }
    }
}

impl Talk for Same {
    fn ask(&mut self, out: &mut Vec<u8>) -> usize {
        out.extend_from_slice(&self.around.0);
        if !self.names.is_empty() {
            out.extend_from_slice(self.names[self.at % self.names.len()].as_bytes());
            // A step without a common divisor with round numbers: neighbours come far apart.
            self.at += 7_919;
        }
        out.extend_from_slice(&self.around.1);
        0
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<Option<Heard>, Broken> {
        Ok(answer(bytes)?.map(|(heard, _)| heard))
    }
}

/// Reads an HTTP answer: how long it is, its status, and its body.
fn answer(bytes: &[u8]) -> Result<Option<(Heard, &[u8])>, Broken> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = from_utf8(&bytes[..end]).map_err(|_| Broken::Unclear("a head that is no text"))?;
    let mut lines = head.split("\r\n");
    let line = lines.next().filter(|line| line.starts_with("HTTP/1."));
    let status = line.and_then(|line| line.get(9..12)?.parse::<u16>().ok());
    let status = status.ok_or(Broken::Unclear("no status"))?;
    let (mut length, mut closes) = (None, false);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse::<usize>().ok();
        } else if name.eq_ignore_ascii_case("connection") {
            closes = value.trim().eq_ignore_ascii_case("close");
        }
    }
    let bodiless = matches!(status, 204 | 304);
    let length = length.or(bodiless.then_some(0)).ok_or(Broken::Unclear("no Content-Length"))?;
    let start = end + 4;
    let Some(body) = bytes.get(start..start + length) else { return Ok(None) };
    Ok(Some((Heard { used: start + length, status, closes }, body)))
}

/// The JSON string that follows a member's name: names and ids need no escapes.
fn named<'a>(body: &'a [u8], before: &str) -> Option<&'a [u8]> {
    let at = body.windows(before.len()).position(|found| found == before.as_bytes())?;
    let rest = body[at + before.len()..].trim_ascii_start().strip_prefix(b"\"")?;
    let end = rest.iter().position(|&byte| byte == b'"')?;
    Some(&rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(used: usize, status: u16, closes: bool) -> Heard {
        Heard { used, status, closes }
    }

    #[test]
    fn an_answer_ends_where_it_says() {
        let whole = b"HTTP/1.1 201 Created\r\ncontent-LENGTH: 4\r\nx: y\r\n\r\nbodyHTTP/1.1";
        for cut in 0..whole.len() - 8 {
            assert_eq!(answer(&whole[..cut]), Ok(None), "{cut}");
        }
        assert_eq!(answer(whole), Ok(Some((heard(53, 201, false), &b"body"[..]))));
        let none = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
        assert_eq!(answer(none), Ok(Some((heard(none.len(), 204, true), &b""[..]))));
        for unclear in [&b"HTTP/1.1 200 OK\r\n\r\n"[..], b"HTTP/2 two\r\n\r\n", b"+OK\r\n\r\n"] {
            assert!(answer(unclear).is_err(), "{unclear:?}");
        }
    }

    #[test]
    fn what_is_taken_is_given_back_and_no_more() {
        let take = request("POST", "/take", "Host: h\r\n", "");
        let give = request("POST", "/give/*/now", "Host: h\r\n", "");
        let mut pair = Pair::new(take.clone(), "\"id\":", &give);
        let mut said = Vec::new();
        let say = |pair: &mut Pair, said: &mut Vec<u8>| {
            said.clear();
            pair.ask(said)
        };
        assert_eq!(say(&mut pair, &mut said), 0);
        assert_eq!(said, take);
        let refused = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}";
        assert!(pair.hear(refused).unwrap().is_some());
        assert!(!pair.owes());
        say(&mut pair, &mut said);
        let lent = b"HTTP/1.1 201 Created\r\nContent-Length: 20\r\n\r\n{\"a\":1,\"id\": \"l_7\" }";
        assert_eq!(pair.hear(lent), Ok(Some(heard(lent.len(), 201, false))));
        assert!(pair.owes());
        assert_eq!(say(&mut pair, &mut said), 1);
        assert!(said.starts_with(b"POST /give/l_7/now HTTP/1.1\r\n"), "{said:?}");
        let ended = b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n";
        assert!(pair.hear(ended).unwrap().is_some());
        assert!(!pair.owes());
        let nameless = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}";
        assert!(pair.hear(nameless).is_err());
    }

    #[test]
    fn names_are_asked_for_one_after_the_other() {
        let names: Arc<[String]> = ["a", "b", "c"].map(String::from).into();
        let mut same = Same::of_each(b"<*>", names, 1);
        let mut out = Vec::new();
        for _ in 0..3 {
            same.ask(&mut out);
        }
        let mut parts: Vec<_> = out.chunks(3).collect();
        assert_eq!(parts[0], b"<b>");
        parts.sort_unstable();
        assert_eq!(parts, [b"<a>", b"<b>", b"<c>"]);
        let mut out = Vec::new();
        Same::new(b"all".to_vec()).ask(&mut out);
        assert_eq!(out, b"all");
    }
}
