//! Access tokens: parses the token file, and finds the token that a request sent.
//!
//! The file contains the SHA-256 of each token, never a token. A token is 256 random bits, so its
//! plain hash cannot be reversed. The hash table uses a random key per run, and hashes are compared
//! in constant time. Knows nothing of HTTP.

use super::limits::RateLimit;
use super::token_entry::{self, Entry};
use crate::share::Account;
use crate::tls::ClientCertificate;
use keypeg_client::routes::Scope;
use keypeg_core::{PoolFilter, PoolPattern};
use keypeg_store::Caller;
use sha2::{Digest as _, Sha256};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// The prefix of a token, by which people and secret scanners recognise a leaked one.
pub(crate) const PREFIX: &str = "kpt_";
/// Random bytes in a token.
pub(crate) const TOKEN_LEN: usize = 32;
const NAME_MAX: usize = 64;
pub(crate) const PER_SECOND_MAX: u32 = 1_000_000;
/// The largest `max_leases`.
pub(crate) const LEASES_MAX: u32 = 10_000_000;
/// The longest token that is looked up, in bytes.
const SHOWN_MAX: usize = 512;
/// The longest name of a certificate, in bytes.
const CERTIFICATE_NAME_MAX: usize = 512;

/// The tokens of a token file.
#[derive(Debug)]
pub(crate) struct Tokens {
    by_hash: HashMap<TokenHash, Arc<Token>>,
    by_certificate: HashMap<Box<str>, Arc<Token>>,
}

/// A token's SHA-256.
#[derive(Clone, Copy, Eq, std::hash::Hash)]
#[expect(
    clippy::derived_hash_with_manual_eq,
    reason = "equal to the derived one, except for timing"
)]
pub(crate) struct TokenHash([u8; 32]);

/// Compares in constant time; the hash table uses it for every candidate.
impl PartialEq for TokenHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// A known token that a request sent.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    credential: Credential,
    pub(crate) token: Arc<Token>,
}

/// What a request proves its token with.
#[derive(Clone, Debug)]
enum Credential {
    Hash(TokenHash),
    /// A client certificate with this name.
    Certificate {
        name: Box<str>,
        /// When it expires, in milliseconds since 1970: a connection can outlive it.
        not_after_ms: u64,
    },
}

impl Shown {
    /// Returns whether the token or its certificate has expired; reads the clock only for what can
    /// expire.
    pub(crate) fn is_expired(&self, wall_ms: impl Fn() -> u64) -> bool {
        let certificate = match self.credential {
            Credential::Hash(_) => false,
            Credential::Certificate { not_after_ms, .. } => wall_ms() >= not_after_ms,
        };
        certificate || self.token.is_expired(wall_ms)
    }
}

/// The name, permissions and limits of one token.
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) name: Arc<str>,
    /// The caller as the engine knows it, with its limit on leases.
    pub(crate) caller: Arc<Caller>,
    pub(crate) pools: Arc<PoolFilter>,
    scopes: Vec<Scope>,
    expires_at_ms: Option<u64>,
    pub(crate) rate_limit: Option<Arc<RateLimit>>,
    /// Its requests in flight.
    pub(crate) in_flight: Arc<Account>,
}

impl TokenHash {
    pub(crate) fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }

    fn parse_all(hashes: &[String]) -> Result<Vec<Self>, String> {
        let hashes: Option<Vec<_>> = hashes.iter().map(|hash| Self::parse(hash)).collect();
        let invalid =
            || "sha256 must be 64 hexadecimal digits, or an array of such strings".to_owned();
        hashes.filter(|hashes| !hashes.is_empty()).ok_or_else(invalid)
    }

    /// Returns the hashes of an empty text, of an empty line and of a bare prefix: what a script
    /// makes from a variable that is not set.
    fn of_no_token() -> [Self; 6] {
        ["", "\n", "\r\n", " ", PREFIX, "kpt_\n"].map(|text| Self::of(text.as_bytes()))
    }

    fn parse(hex: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (byte, start) in bytes.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&hex[start..start + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl std::fmt::Display for TokenHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenHash(…)")
    }
}

impl Tokens {
    /// Parses the text of a token file. A token keeps the rate limit, unless its rate changed, and
    /// the count of requests in flight that its name has in `before`.
    pub(crate) fn parse(text: &str, before: Option<&Self>) -> Result<Self, String> {
        let entries = token_entry::entries(text)?;
        if entries.is_empty() {
            return Err("the file has no [[token]] entry; add one with \"keypeg token new\"".into());
        }
        let known: HashMap<_, _> = before
            .into_iter()
            .flat_map(|tokens| tokens.by_hash.values().chain(tokens.by_certificate.values()))
            .map(|token| (&*token.name, token))
            .collect();
        let of_no_token = TokenHash::of_no_token();
        let (mut by_hash, mut by_certificate) = (HashMap::new(), HashMap::new());
        let mut names = HashSet::new();
        for entry in entries {
            let name = entry.name.clone();
            let invalid = |what: String| format!("token {name:?}: {what}");
            let before = known.get(&*entry.name).copied();
            let hashes = entry.sha256.as_deref().map(TokenHash::parse_all).transpose();
            let hashes = hashes.map_err(invalid)?.unwrap_or_default();
            let certificates = entry.certificates.as_deref().map(certificate_names).transpose();
            let certificates = certificates.map_err(invalid)?.unwrap_or_default();
            if hashes.iter().any(|hash| of_no_token.contains(hash)) {
                return Err(invalid(
                    "its sha256 is the hash of an empty text, which every client could send: \
                     create the token with \"keypeg token new\""
                        .into(),
                ));
            }
            let token = Arc::new(Token::new(entry, before).map_err(invalid)?);
            if !names.insert(Arc::clone(&token.name)) {
                return Err(invalid("another token has the same name: rename one".into()));
            }
            for hash in hashes {
                if by_hash.insert(hash, Arc::clone(&token)).is_some() {
                    return Err(invalid(
                        "its sha256 occurs twice: each needs its own token".into(),
                    ));
                }
            }
            for name in certificates {
                if by_certificate.insert(name.clone(), Arc::clone(&token)).is_some() {
                    let twice = format!("its certificate {name:?} occurs twice: remove one");
                    return Err(invalid(twice));
                }
            }
        }
        Ok(Self { by_hash, by_certificate })
    }

    pub(crate) fn len(&self) -> usize {
        self.by_hash.len() + self.by_certificate.len()
    }

    /// Finds the token of a client certificate: that of its first name that a token has.
    pub(crate) fn find_certificate(&self, certificate: &ClientCertificate) -> Option<Shown> {
        let ClientCertificate { names, not_after_ms } = certificate;
        let found = names.iter().find_map(|name| self.by_certificate.get_key_value(name));
        found.map(|(name, token)| {
            let (name, not_after_ms) = (name.clone(), *not_after_ms);
            let credential = Credential::Certificate { name, not_after_ms };
            Shown { credential, token: Arc::clone(token) }
        })
    }

    /// Finds the token a request sent; the caller checks whether it has expired.
    pub(crate) fn find(&self, shown: &[u8]) -> Option<Shown> {
        if shown.is_empty() || shown.len() > SHOWN_MAX {
            return None;
        }
        let hash = TokenHash::of(shown);
        // The table hashes this hash under a random key of this run, so timing reveals nothing.
        let token = Arc::clone(self.by_hash.get(&hash)?);
        Some(Shown { credential: Credential::Hash(hash), token })
    }

    /// Returns whether the token still exists with the same permissions.
    pub(crate) fn still_has(&self, Shown { credential, token }: &Shown) -> bool {
        let now = match credential {
            Credential::Hash(hash) => self.by_hash.get(hash),
            Credential::Certificate { name, .. } => self.by_certificate.get(name),
        };
        now.is_some_and(|now| {
            now.name == token.name && now.scopes == token.scopes && now.pools == token.pools
        })
    }
}

impl Token {
    fn new(entry: Entry, before: Option<&Arc<Self>>) -> Result<Self, String> {
        check_name(&entry.name)?;
        let pools = entry.pools.iter().map(|pool| parse_pools(pool));
        let pools = pools.collect::<Result<Vec<_>, _>>()?;
        let scopes = entry.scopes.iter().map(|scope| parse_scope(scope));
        let scopes = scopes.collect::<Result<Vec<_>, _>>()?;
        if pools.is_empty() || scopes.is_empty() {
            return Err("pools and scopes must each contain at least one name".into());
        }
        let per_second = entry.requests_per_second;
        if per_second.is_some_and(|per_second| !(1..=PER_SECOND_MAX).contains(&per_second)) {
            return Err(format!("requests_per_second must be 1 to {PER_SECOND_MAX}"));
        }
        let max_leases = entry.max_leases;
        if max_leases.is_some_and(|max| !(1..=LEASES_MAX).contains(&max)) {
            return Err(format!("max_leases must be 1 to {LEASES_MAX}"));
        }
        let rate_limit = |per_second: u32| {
            let old = before.and_then(|token| token.rate_limit.as_ref());
            let old = old.filter(|limit| limit.has_rate(per_second)).map(Arc::clone);
            old.unwrap_or_else(|| Arc::new(RateLimit::new(per_second)))
        };
        Ok(Self {
            caller: Arc::new(Caller::new(&entry.name, max_leases)),
            name: entry.name.into(),
            pools: Arc::new(PoolFilter::new(pools)),
            scopes,
            expires_at_ms: entry.expires_at,
            rate_limit: per_second.map(rate_limit),
            in_flight: before.map_or_else(Arc::default, |token| Arc::clone(&token.in_flight)),
        })
    }

    /// Returns whether the token has this scope; `admin` includes all scopes.
    pub(crate) fn allows(&self, scope: Scope) -> bool {
        self.scopes.iter().any(|has| *has == scope || *has == Scope::Admin)
    }

    /// Returns whether the token is for this pool.
    pub(crate) fn is_for(&self, pool: &str) -> bool {
        self.pools.allows(pool)
    }

    /// Returns when the token expires, in milliseconds since 1970.
    pub(crate) fn expires_at_ms(&self) -> Option<u64> {
        self.expires_at_ms
    }

    /// Returns whether the token has expired; reads the clock only for a token that can expire.
    pub(crate) fn is_expired(&self, wall_ms: impl FnOnce() -> u64) -> bool {
        self.expires_at_ms.is_some_and(|end| wall_ms() >= end)
    }
}

/// Checks the names of client certificates; DNS names become lower case, as in certificates.
pub(crate) fn certificate_names(names: &[String]) -> Result<Vec<Box<str>>, String> {
    if names.is_empty() {
        return Err("certificate must contain at least one name".into());
    }
    let check = |name: &String| {
        let is_visible = !name.is_empty() && !name.chars().any(char::is_control);
        if !is_visible || name.contains('*') || name.len() > CERTIFICATE_NAME_MAX {
            return Err(format!(
                "{name:?} is not the name of a certificate: use one DNS name, URI or common name, \
                 without *, of at most {CERTIFICATE_NAME_MAX} bytes"
            ));
        }
        let is_dns =
            name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        Ok(if is_dns { name.to_ascii_lowercase().into() } else { name.as_str().into() })
    };
    names.iter().map(check).collect()
}

/// Parses the pools that a token is for: one by its name, or all whose names have a prefix.
pub(crate) fn parse_pools(text: &str) -> Result<PoolPattern, String> {
    PoolPattern::parse(text).ok_or_else(|| {
        format!("{text:?} is not a pool name: use a name such as ci, or a prefix such as ci-*")
    })
}

/// Checks a token's name, which appears in logs and identifies the caller.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(is_valid) {
        return Ok(());
    }
    Err(format!(
        "{name:?} is not a token name: use 1 to {NAME_MAX} characters of A-Z a-z 0-9 - . _"
    ))
}

pub(crate) fn parse_scope(word: &str) -> Result<Scope, String> {
    let found = Scope::ALL.into_iter().find(|scope| scope.as_str() == word);
    found.ok_or_else(|| {
        let all = Scope::ALL.map(Scope::as_str).join(", ");
        format!("{word:?} is not a scope: use one of {all}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, token: &str, more: &str) -> String {
        let hash = TokenHash::of(token.as_bytes());
        format!("[[token]]\nname = \"{name}\"\nsha256 = \"{hash}\"\n{more}\n")
    }

    const CI: &str = "pools = [\"ci-*\", \"default\"]\nscopes = [\"lend\"]";

    #[test]
    fn a_certificate_has_rights_until_it_expires_or_its_entry_is_removed() {
        let entry = |name| format!("[[token]]\nname = \"a\"\ncertificate = \"{name}\"\n{CI}\n");
        let tokens = Tokens::parse(&entry("ci.example"), None).unwrap();
        let certificate = ClientCertificate { names: vec!["ci.example".into()], not_after_ms: 100 };
        let shown = tokens.find_certificate(&certificate).unwrap();
        assert!(!shown.is_expired(|| 99) && shown.is_expired(|| 100));
        assert!(tokens.still_has(&shown));
        assert!(!Tokens::parse(&entry("other.example"), None).unwrap().still_has(&shown));
    }

    #[test]
    fn a_token_is_found_by_its_hash() {
        let text = entry("a", "one", CI) + &entry("b", "two", CI);
        let tokens = Tokens::parse(&text, None).unwrap();
        assert_eq!(tokens.find(b"one").unwrap().token.name.as_ref(), "a");
        assert_eq!(tokens.find(b"two").unwrap().token.name.as_ref(), "b");
        for wrong in ["", "on", "one ", "ONE", "three", &"x".repeat(SHOWN_MAX + 1)] {
            assert!(tokens.find(wrong.as_bytes()).is_none(), "{wrong}");
        }
        let hash = TokenHash::of(b"one").to_string();
        assert!(tokens.find(hash.as_bytes()).is_none(), "the hash in the file is not a token");
        let shown = format!("{tokens:?}");
        assert!(!shown.contains(&hash), "{shown}");
    }

    #[test]
    fn a_token_allows_its_pools_and_scopes_until_it_expires() {
        let more = "pools = [\"ci-*\", \"x\"]\nscopes = [\"lend\", \"read\"]\n\
                    expires_at = \"2027-01-01T00:00:00Z\"";
        let tokens = Tokens::parse(&entry("a", "t", more), None).unwrap();
        let token = tokens.find(b"t").unwrap().token;
        for (pool, expected) in
            [("ci-1", true), ("ci-", true), ("x", true), ("ci", false), ("xy", false), ("", false)]
        {
            assert_eq!(token.is_for(pool), expected, "{pool}");
        }
        let allowed: Vec<_> = Scope::ALL.into_iter().filter(|scope| token.allows(*scope)).collect();
        assert_eq!(allowed, [Scope::Read, Scope::Lend]);
        let end = 1_798_761_600_000;
        assert_eq!(
            [end - 1, end, end + 1].map(|now| token.is_expired(|| now)),
            [false, true, true]
        );
        let admin = "pools = [\"*\"]\nscopes = [\"admin\"]";
        let tokens = Tokens::parse(&entry("a", "t", admin), None).unwrap();
        let token = tokens.find(b"t").unwrap().token;
        assert!(Scope::ALL.into_iter().all(|scope| token.allows(scope)));
        assert!(token.is_for("anything") && !token.is_expired(|| u64::MAX));
    }

    #[test]
    fn a_reload_keeps_the_rate_limit_and_the_requests_in_flight_of_a_token() {
        let text = |per: u32| entry("a", "t", &format!("{CI}\nrequests_per_second = {per}"));
        let first = Tokens::parse(&text(5), None).unwrap();
        let same = Tokens::parse(&text(5), Some(&first)).unwrap();
        let other = Tokens::parse(&text(6), Some(&first)).unwrap();
        let limit = |tokens: &Tokens| {
            Arc::clone(tokens.find(b"t").unwrap().token.rate_limit.as_ref().unwrap())
        };
        assert!(Arc::ptr_eq(&limit(&first), &limit(&same)));
        assert!(!Arc::ptr_eq(&limit(&first), &limit(&other)));
        // Requests in flight would be free after each reload.
        let in_flight = |tokens: &Tokens| Arc::clone(&tokens.find(b"t").unwrap().token.in_flight);
        assert!(Arc::ptr_eq(&in_flight(&first), &in_flight(&same)));
        assert!(Arc::ptr_eq(&in_flight(&first), &in_flight(&other)));
        assert!(same.still_has(&first.find(b"t").unwrap()));
        let less = entry("a", "t", "pools = [\"default\"]\nscopes = [\"lend\"]");
        let less = Tokens::parse(&less, Some(&first)).unwrap();
        assert!(!less.still_has(&first.find(b"t").unwrap()));
    }

    #[test]
    fn one_caller_has_two_tokens_during_a_rotation() {
        let (old, new) = (TokenHash::of(b"old"), TokenHash::of(b"new"));
        let text = format!("[[token]]\nname = \"a\"\nsha256 = [\"{old}\", \"{new}\"]\n{CI}");
        let tokens = Tokens::parse(&text, None).unwrap();
        let [old, new] = [b"old", b"new"].map(|shown| tokens.find(shown).unwrap());
        assert!(Arc::ptr_eq(&old.token, &new.token));
        let later = Tokens::parse(&entry("a", "new", CI), Some(&tokens)).unwrap();
        assert!(later.still_has(&new) && !later.still_has(&old));
    }

    #[test]
    fn a_list_of_one_and_a_timestamp_need_no_brackets_and_no_quotes() {
        let end = 1_798_761_600_000;
        for (more, expires) in [
            ("expires_at = \"2027-01-01T00:00:00Z\"", Some(end)),
            ("expires_at = 2027-01-01T00:00:00Z", Some(end)),
            ("expires_at = 2027-01-01 00:00:00Z", Some(end)),
            ("expires_at = 2027-01-01T01:00:00+01:00", Some(end)),
            ("expires_at = 2027-01-01", Some(end)),
            ("expires_at = \"2027-01-01\"", Some(end)),
            ("max_leases = 0x1_0", None),
        ] {
            let more = format!("pools = \"ci-*\"\nscopes = \"lend\"\n{more}");
            let tokens = Tokens::parse(&entry("a", "t", &more), None).expect(&more);
            let token = tokens.find(b"t").unwrap().token;
            assert!(token.is_for("ci-1") && token.allows(Scope::Lend), "{more}");
            assert_eq!(token.expires_at_ms, expires, "{more}");
        }
        let one = entry("a", "t", CI).replace("[[token]]", "[token]");
        assert_eq!(Tokens::parse(&one, None).unwrap().len(), 1);
    }

    #[test]
    fn mistakes_in_the_file_are_reported() {
        let (a, hash) = (entry("a", "t", CI), TokenHash::of(b"u"));
        let none = "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855";
        for (text, says) in [
            (String::new(), "no [[token]]"),
            (a.clone() + "colour = 1", "line 6: unknown field `colour`"),
            (a.clone() + "expire_at = 1", "unknown field `expire_at`: write `expires_at`"),
            ("name = \"a\"".into(), "line 1: field `name` is not in an entry: write [[token]]"),
            ("[[tokens]]\nname = \"a\"".into(), "line 1: unknown field `tokens`: write `token`"),
            ("token = 1".into(), "line 1: write each token as an entry"),
            ("[[token]]\nname = 1".into(), "line 2: name: must be a string, in quotes"),
            ("[[token]]\nname = a".into(), "line 2 is not valid TOML"),
            (entry("a", "t", "pools = 1\nscopes = [\"lend\"]"), "line 4: pools: must be a list"),
            (entry("a", "t", "pools = [1]\nscopes = [\"lend\"]"), "line 4: pools: must be a list"),
            (
                entry("a", "t", "pools = \"*\"\nscopes = { a = 1 }"),
                "line 5: scopes: must be a list",
            ),
            (a.clone() + "expires_at = 2027-01-01T00:00:00", "no time zone: add Z"),
            (a.clone() + "expires_at = 00:00:00", "is not a timestamp"),
            (a.clone() + "expires_at = 30", "line 6: expires_at: must be a timestamp"),
            (a.clone() + "max_leases = \"5\"", "line 6: max_leases: must be a whole number"),
            (a.clone() + "max_leases = 99999999999", "max_leases must be 1 to 10000000"),
            (a.clone() + &entry("a", "u", CI), "same name"),
            (a.clone() + &entry("b", "t", CI), "occurs twice"),
            (entry("a b", "t", CI), "1 to 64"),
            (entry("a", "t", "pools = []\nscopes = [\"lend\"]"), "at least one"),
            (entry("a", "t", "pools = [\"A\"]\nscopes = [\"lend\"]"), "\"A\" is not a pool name"),
            (entry("a", "t", "pools = [\"*a\"]\nscopes = [\"lend\"]"), "\"*a\""),
            (entry("a", "t", "pools = [\"*\"]\nscopes = [\"lent\"]"), "\"lent\" is not a scope"),
            (entry("a", "t", "pools = [\"*\"]"), "missing field `scopes`"),
            (a.clone() + "expires_at = \"soon\"", "\"soon\" is not a timestamp"),
            (a.clone() + "requests_per_second = 0", "requests_per_second"),
            (a.clone() + "max_leases = 0", "max_leases must be 1 to 10000000"),
            (a.clone() + "max_leases = 10000001", "max_leases must be"),
            (a.clone() + "max_leases = -1", "line 6"),
            (a.replace("sha256 = \"", "sha256 = \"x"), "64 hexadecimal"),
            (entry("a", "", CI), "token \"a\": its sha256 is the hash of an empty text"),
            (entry("a", "\n", CI), "the hash of an empty text, which every client could send"),
            (entry("a", PREFIX, CI), "create the token with \"keypeg token new\""),
            (
                format!("[[token]]\nname=\"b\"\nsha256=[\"{hash}\", \"{none}\"]\n{CI}"),
                "the hash of an empty text",
            ),
            (format!("{a}[[token]]\nname=\"b\"\nsha256=\"{hash}"), "line 8"),
        ] {
            let error = Tokens::parse(&text, None).expect_err(&text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
