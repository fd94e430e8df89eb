//! Access tokens: what a tokens' file says, and which token was shown.
//!
//! The file holds the SHA-256 of each token, never a token. A token is 256 bits of random, so its
//! plain hash cannot be turned back; where a hash is looked up is drawn anew for each run, and what
//! is found there is compared in constant time. Knows nothing of HTTP.

use super::pace::Pace;
use keypeg_client::routes::Scope;
use keypeg_engine::Caller;
use keypeg_engine::core::PoolName;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use subtle::ConstantTimeEq;

/// What a token begins with, so that whoever finds one knows what it is.
pub(crate) const PREFIX: &str = "kpt_";
/// Bytes of random in a token.
pub(crate) const TOKEN_LEN: usize = 32;
const NAME_MAX: usize = 64;
const PER_SECOND_MAX: u32 = 1_000_000;
/// The greatest bound on leases that can be told from none.
pub(crate) const LEASES_MAX: u32 = 10_000_000;
/// The longest token that is looked at.
const SHOWN_MAX: usize = 512;

/// All tokens there are.
#[derive(Debug)]
pub(crate) struct Tokens {
    by_digest: HashMap<Hash, Arc<Token>>,
}

/// A token's SHA-256.
#[derive(Clone, Copy, Eq, std::hash::Hash)]
#[expect(clippy::derived_hash_with_manual_eq, reason = "equal to the derived one, but for time")]
pub(crate) struct Hash([u8; 32]);

/// In constant time, wherever it is asked: that is how a table compares what it finds.
impl PartialEq for Hash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// A token that was shown and found.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) hash: Hash,
    pub(crate) token: Arc<Token>,
}

/// One token: who has it and what it allows.
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) name: Arc<str>,
    /// As the engine knows it, with how many leases it may have.
    pub(crate) caller: Arc<Caller>,
    pools: Vec<Bound>,
    scopes: Vec<Scope>,
    expires_at_ms: Option<u64>,
    pub(crate) pace: Option<Arc<Pace>>,
    /// Requests of it that are being answered.
    pub(crate) busy: Arc<AtomicUsize>,
}

/// Which pools: one, or those whose names begin so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    One(String),
    Begins(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    token: Vec<Stanza>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stanza {
    name: String,
    sha256: Hashes,
    pools: Vec<String>,
    scopes: Vec<String>,
    expires_at: Option<String>,
    requests_per_second: Option<u32>,
    max_leases: Option<u32>,
}

/// Two while a token is replaced by another.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Hashes {
    One(String),
    Many(Vec<String>),
}

impl Hashes {
    fn read(&self) -> Result<Vec<Hash>, String> {
        let each = match self {
            Self::One(hash) => std::slice::from_ref(hash),
            Self::Many(hashes) => hashes,
        };
        let hashes: Option<Vec<_>> = each.iter().map(|hash| Hash::parse(hash)).collect();
        let wrong = || "sha256 must be 64 hexadecimal digits, or an array of such".to_owned();
        hashes.filter(|hashes| !hashes.is_empty()).ok_or_else(wrong)
    }
}

impl Hash {
    pub(crate) fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }

    fn parse(hex: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&hex[at..at + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hash(…)")
    }
}

impl Tokens {
    /// Reads a file's text. Paces and counts go on as they were in `before`, by name.
    pub(crate) fn parse(text: &str, before: Option<&Self>) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| text[..span.start].matches('\n').count());
            format!("line {}: {}", at + 1, error.message())
        })?;
        if file.token.is_empty() {
            return Err("it holds no [[token]]".into());
        }
        let known: HashMap<_, _> = before
            .into_iter()
            .flat_map(|tokens| tokens.by_digest.values())
            .map(|token| (&*token.name, token))
            .collect();
        let (mut by_digest, mut names) = (HashMap::new(), HashSet::new());
        for stanza in file.token {
            let name = stanza.name.clone();
            let wrong = |what: String| format!("token {name:?}: {what}");
            let before = known.get(&*stanza.name).copied();
            let hashes = stanza.sha256.read().map_err(wrong)?;
            let token = Arc::new(Token::read(stanza, before).map_err(wrong)?);
            if !names.insert(Arc::clone(&token.name)) {
                return Err(wrong("another has the same name".into()));
            }
            for hash in hashes {
                if by_digest.insert(hash, Arc::clone(&token)).is_some() {
                    return Err(wrong("its sha256 comes twice".into()));
                }
            }
        }
        Ok(Self { by_digest })
    }

    pub(crate) fn len(&self) -> usize {
        self.by_digest.len()
    }

    /// Finds what was shown. Whether it has expired is the asker's to ask.
    pub(crate) fn find(&self, shown: &[u8]) -> Option<Shown> {
        if shown.len() > SHOWN_MAX {
            return None;
        }
        let hash = Hash::of(shown);
        // Its place is found by a hash of the hash, under a key of this run.
        let token = Arc::clone(self.by_digest.get(&hash)?);
        Some(Shown { hash, token })
    }

    /// Whether this token is one of them still, and may do what it could.
    pub(crate) fn still_has(&self, Shown { hash, token }: &Shown) -> bool {
        self.by_digest.get(hash).is_some_and(|now| {
            now.name == token.name && now.scopes == token.scopes && now.pools == token.pools
        })
    }
}

impl Token {
    fn read(stanza: Stanza, before: Option<&Arc<Self>>) -> Result<Self, String> {
        check_name(&stanza.name)?;
        let pools = stanza.pools.iter().map(|pool| Bound::parse(pool));
        let pools = pools.collect::<Result<Vec<_>, _>>()?;
        let scopes = stanza.scopes.iter().map(|scope| parse_scope(scope));
        let scopes = scopes.collect::<Result<Vec<_>, _>>()?;
        if pools.is_empty() || scopes.is_empty() {
            return Err("pools and scopes must name at least one each".into());
        }
        let expires_at = stanza.expires_at.as_deref().map(parse_instant).transpose()?;
        let per_second = stanza.requests_per_second;
        if per_second.is_some_and(|per_second| !(1..=PER_SECOND_MAX).contains(&per_second)) {
            return Err(format!("requests_per_second must be 1..{PER_SECOND_MAX}"));
        }
        let max_leases = stanza.max_leases;
        if max_leases.is_some_and(|max| !(1..=LEASES_MAX).contains(&max)) {
            return Err(format!("max_leases must be 1..{LEASES_MAX}"));
        }
        let paced = |per_second: u32| {
            let old = before.and_then(|token| token.pace.as_ref());
            let old = old.filter(|pace| pace.is(per_second)).map(Arc::clone);
            old.unwrap_or_else(|| Arc::new(Pace::new(per_second)))
        };
        Ok(Self {
            caller: Arc::new(Caller::new(&stanza.name, max_leases)),
            name: stanza.name.into(),
            pools,
            scopes,
            expires_at_ms: expires_at,
            pace: per_second.map(paced),
            busy: before.map_or_else(Arc::default, |token| Arc::clone(&token.busy)),
        })
    }

    /// Whether it allows this; admin allows everything.
    pub(crate) fn allows(&self, scope: Scope) -> bool {
        self.scopes.iter().any(|has| *has == scope || *has == Scope::Admin)
    }

    /// Whether it is for this pool.
    pub(crate) fn is_for(&self, pool: &str) -> bool {
        self.pools.iter().any(|bound| match bound {
            Bound::One(name) => name == pool,
            Bound::Begins(start) => pool.starts_with(&**start),
        })
    }

    /// Whether it has expired; the clock is read only where it can.
    pub(crate) fn is_over(&self, wall_ms: impl FnOnce() -> u64) -> bool {
        self.expires_at_ms.is_some_and(|end| wall_ms() >= end)
    }
}

impl Bound {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no pool's name, nor the beginning of one and a *");
        match text.strip_suffix('*') {
            Some("") => Ok(Self::Begins(String::new())),
            Some(start) => {
                PoolName::parse(start).map(|_| Self::Begins(start.into())).ok_or_else(wrong)
            }
            None => PoolName::parse(text).map(|_| Self::One(text.into())).ok_or_else(wrong),
        }
    }
}

/// A token's name is told in logs and is part of who asks.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let sign = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(sign) {
        return Ok(());
    }
    Err(format!("a token's name is 1 to {NAME_MAX} of A-Z a-z 0-9 - . _"))
}

pub(crate) fn parse_scope(word: &str) -> Result<Scope, String> {
    let found = Scope::ALL.into_iter().find(|scope| scope.as_str() == word);
    found.ok_or_else(|| {
        let all = Scope::ALL.map(Scope::as_str).join(", ");
        format!("{word:?} is no scope: they are {all}")
    })
}

/// Reads an instant such as `2027-01-01T00:00:00Z`; milliseconds since 1970.
pub(crate) fn parse_instant(text: &str) -> Result<u64, String> {
    let read = serde_json::from_value::<keypeg_client::UnixMs>(text.into());
    read.map(|instant| instant.0)
        .map_err(|_| format!("{text:?} is no instant such as 2027-01-01T00:00:00Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stanza(name: &str, token: &str, more: &str) -> String {
        let hash = Hash::of(token.as_bytes());
        format!("[[token]]\nname = \"{name}\"\nsha256 = \"{hash}\"\n{more}\n")
    }

    const CI: &str = "pools = [\"ci-*\", \"default\"]\nscopes = [\"lend\"]";

    #[test]
    fn what_is_shown_is_found_by_its_hash() {
        let text = stanza("a", "one", CI) + &stanza("b", "two", CI);
        let tokens = Tokens::parse(&text, None).unwrap();
        assert_eq!(tokens.find(b"one").unwrap().token.name.as_ref(), "a");
        assert_eq!(tokens.find(b"two").unwrap().token.name.as_ref(), "b");
        for wrong in ["", "on", "one ", "ONE", "three", &"x".repeat(SHOWN_MAX + 1)] {
            assert!(tokens.find(wrong.as_bytes()).is_none(), "{wrong}");
        }
        let hash = Hash::of(b"one").to_string();
        assert!(tokens.find(hash.as_bytes()).is_none(), "the file's own words open nothing");
        let shown = format!("{tokens:?}");
        assert!(!shown.contains(&hash), "{shown}");
    }

    #[test]
    fn a_token_allows_what_it_says() {
        let more = "pools = [\"ci-*\", \"x\"]\nscopes = [\"lend\", \"read\"]\n\
                    expires_at = \"2027-01-01T00:00:00Z\"";
        let tokens = Tokens::parse(&stanza("a", "t", more), None).unwrap();
        let token = tokens.find(b"t").unwrap().token;
        for (pool, is) in
            [("ci-1", true), ("ci-", true), ("x", true), ("ci", false), ("xy", false), ("", false)]
        {
            assert_eq!(token.is_for(pool), is, "{pool}");
        }
        let may: Vec<_> = Scope::ALL.into_iter().filter(|scope| token.allows(*scope)).collect();
        assert_eq!(may, [Scope::Read, Scope::Lend]);
        let end = 1_798_761_600_000;
        assert_eq!([end - 1, end, end + 1].map(|at| token.is_over(|| at)), [false, true, true]);
        let admin = "pools = [\"*\"]\nscopes = [\"admin\"]";
        let tokens = Tokens::parse(&stanza("a", "t", admin), None).unwrap();
        let token = tokens.find(b"t").unwrap().token;
        assert!(Scope::ALL.into_iter().all(|scope| token.allows(scope)));
        assert!(token.is_for("anything") && !token.is_over(|| u64::MAX));
    }

    #[test]
    fn a_reload_goes_on_with_what_was_counted() {
        let text = |per: u32| stanza("a", "t", &format!("{CI}\nrequests_per_second = {per}"));
        let first = Tokens::parse(&text(5), None).unwrap();
        let same = Tokens::parse(&text(5), Some(&first)).unwrap();
        let other = Tokens::parse(&text(6), Some(&first)).unwrap();
        let pace =
            |tokens: &Tokens| Arc::clone(tokens.find(b"t").unwrap().token.pace.as_ref().unwrap());
        assert!(Arc::ptr_eq(&pace(&first), &pace(&same)));
        assert!(!Arc::ptr_eq(&pace(&first), &pace(&other)));
        assert!(same.still_has(&first.find(b"t").unwrap()));
        let less = stanza("a", "t", "pools = [\"default\"]\nscopes = [\"lend\"]");
        let less = Tokens::parse(&less, Some(&first)).unwrap();
        assert!(!less.still_has(&first.find(b"t").unwrap()));
    }

    #[test]
    fn one_caller_has_two_tokens_while_they_are_replaced() {
        let (old, new) = (Hash::of(b"old"), Hash::of(b"new"));
        let text = format!("[[token]]\nname = \"a\"\nsha256 = [\"{old}\", \"{new}\"]\n{CI}");
        let tokens = Tokens::parse(&text, None).unwrap();
        let [old, new] = [b"old", b"new"].map(|shown| tokens.find(shown).unwrap());
        assert!(Arc::ptr_eq(&old.token, &new.token));
        let later = Tokens::parse(&stanza("a", "new", CI), Some(&tokens)).unwrap();
        assert!(later.still_has(&new) && !later.still_has(&old));
    }

    #[test]
    fn mistakes_are_told() {
        let (a, hash) = (stanza("a", "t", CI), Hash::of(b"u"));
        for (text, says) in [
            (String::new(), "no [[token]]"),
            (a.clone() + "colour = 1", "line 6: unknown field `colour`"),
            (a.clone() + &stanza("a", "u", CI), "same name"),
            (a.clone() + &stanza("b", "t", CI), "comes twice"),
            (stanza("a b", "t", CI), "1 to 64"),
            (stanza("a", "t", "pools = []\nscopes = [\"lend\"]"), "at least one"),
            (stanza("a", "t", "pools = [\"A\"]\nscopes = [\"lend\"]"), "\"A\" is no pool's name"),
            (stanza("a", "t", "pools = [\"*a\"]\nscopes = [\"lend\"]"), "\"*a\""),
            (stanza("a", "t", "pools = [\"*\"]\nscopes = [\"lent\"]"), "\"lent\" is no scope"),
            (stanza("a", "t", "pools = [\"*\"]"), "missing field `scopes`"),
            (a.clone() + "expires_at = \"soon\"", "\"soon\" is no instant"),
            (a.clone() + "requests_per_second = 0", "requests_per_second"),
            (a.clone() + "max_leases = 0", "max_leases must be 1..10000000"),
            (a.clone() + "max_leases = 10000001", "max_leases must be"),
            (a.clone() + "max_leases = -1", "line 6"),
            (a.replace("sha256 = \"", "sha256 = \"x"), "64 hexadecimal"),
            (format!("{a}[[token]]\nname=\"b\"\nsha256=\"{hash}"), "line 8"),
        ] {
            let wrong = Tokens::parse(&text, None).expect_err(&text);
            assert!(wrong.contains(says), "{text}: {wrong}");
        }
    }
}
