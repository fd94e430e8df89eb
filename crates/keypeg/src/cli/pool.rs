//! `keypeg pool`: creates, changes, drains and deletes pools.
//!
//! `create` refuses a pool that exists, and `set` and `drain` one that does not, so that a typing error changes
//! nothing. The ranges of single values are those of the server's fields; the server compares values with each other.

use super::confirm::confirm;
use super::new_keys::count;
use super::server::ConnectionArgs;
use crate::duration::HumanDuration;
use crate::failure::{Failure, exit};
use crate::number::number;
use crate::output::OutputArgs;
use clap::{Args, Subcommand};
use keypeg_client::{Code, Error, Existence, PolicyRequest, Pool, Seconds};
use keypeg_fields::{KEY_LENGTH, MAX_KEYS};
use std::str::FromStr;

/// A command on one pool.
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Create a pool; it must not exist yet
    Create {
        /// The pool and its server.
        #[command(flatten)]
        place: PoolPlace,
        /// The fields of the policy.
        #[command(flatten)]
        policy: PolicyArgs,
    },
    /// Change the policy of a pool; what no option names stays
    Set {
        /// The pool and its server.
        #[command(flatten)]
        place: PoolPlace,
        /// The fields of the policy.
        #[command(flatten)]
        policy: PolicyArgs,
    },
    /// Let a pool grant no key until --undo; leases run on, waiting requests are refused
    Drain {
        /// The pool and its server.
        #[command(flatten)]
        place: PoolPlace,
        /// Grant keys again
        #[arg(long)]
        undo: bool,
    },
    /// Delete a pool with all its keys, also those that clients hold
    Delete {
        /// The pool and its server.
        #[command(flatten)]
        place: PoolPlace,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
}

/// The pool, its server, and how the result is printed.
#[derive(Debug, Args)]
pub struct PoolPlace {
    /// Name of the pool
    #[arg(value_name = "POOL")]
    name: String,
    #[command(flatten)]
    connection: ConnectionArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// The policy of a pool. A field without an option keeps its value.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// Longest time of a lease, and its TTL if an acquire names none; 60s in a new pool
    #[arg(long, value_name = "DURATION")]
    lease_ttl: Option<HumanDuration>,
    /// Longest time of a renewed lease from its grant, or none: the lease TTL; none in a new pool
    #[arg(long, value_name = "DURATION|none")]
    max_hold: Option<OrNone<HumanDuration>>,
    /// Time after which a key without keep-alive is purged, or none: never; 5m in a new pool
    #[arg(long, value_name = "DURATION|none")]
    keepalive_ttl: Option<OrNone<HumanDuration>>,
    /// Rest of a key after each lease; 0s in a new pool
    #[arg(long, value_name = "DURATION")]
    rest: Option<HumanDuration<0>>,
    /// Number of symbols in a generated value after its prefix, 20 to 128; 20 in a new pool
    #[arg(long, value_name = "N", value_parser = key_length)]
    key_length: Option<u16>,
    /// Prefix of a generated value, at most 32 of A-Z, a-z, 0-9, _ and -; none in a new pool
    #[arg(long, value_name = "TEXT")]
    key_prefix: Option<String>,
    /// Largest number of keys, or none: the limit of the server; none in a new pool
    #[arg(long, value_name = "N|none", value_parser = max_keys)]
    max_keys: Option<OrNone<u64>>,
    /// Whether the pool is draining, which grants no key: true or false; false in a new pool
    #[arg(long, value_name = "BOOL")]
    draining: Option<bool>,
}

/// A value, or the word `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OrNone<T>(Option<T>);

impl<T> OrNone<T> {
    fn read(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            _ => parse(text)
                .map(|value| Self(Some(value)))
                .map_err(|allowed| format!("{allowed}, or none")),
        }
    }
}

impl FromStr for OrNone<HumanDuration> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::read(text, str::parse)
    }
}

fn max_keys(text: &str) -> Result<OrNone<u64>, String> {
    OrNone::read(text, number(MAX_KEYS.least..=MAX_KEYS.most))
}

fn key_length(text: &str) -> Result<u16, String> {
    let length = number(KEY_LENGTH.least..=KEY_LENGTH.most)(text)?;
    Ok(u16::try_from(length).expect("invariant: at most 128"))
}

impl PolicyArgs {
    fn request(&self) -> PolicyRequest {
        let or_none = |length: OrNone<HumanDuration>| length.0.map(seconds);
        PolicyRequest {
            lease_ttl_seconds: self.lease_ttl.map(seconds),
            max_hold_seconds: self.max_hold.map(or_none),
            keepalive_ttl_seconds: self.keepalive_ttl.map(or_none),
            rest_seconds: self.rest.map(seconds),
            key_length: self.key_length,
            key_prefix: self.key_prefix.clone(),
            max_keys: self.max_keys.map(|max| max.0),
            draining: self.draining,
        }
    }
}

impl PoolCommand {
    /// Makes the change and prints the pool.
    pub(super) async fn run(&self) -> Result<u8, Failure> {
        match self {
            Self::Create { place, policy } => {
                place.put(&policy.request(), Existence::Missing).await
            }
            Self::Set { place, policy } => {
                let request = policy.request();
                if request == PolicyRequest::default() {
                    let message = "nothing to set: name a field of the policy, such as --lease-ttl \
                                   1m; \"keypeg pool set --help\" lists them";
                    return Err(Failure::new(exit::USAGE, message));
                }
                place.put(&request, Existence::Present).await
            }
            Self::Drain { place, undo } => {
                let request = PolicyRequest { draining: Some(!undo), ..PolicyRequest::default() };
                place.put(&request, Existence::Present).await
            }
            Self::Delete { place, yes } => place.delete(*yes).await,
        }
    }
}

impl PoolPlace {
    async fn put(&self, request: &PolicyRequest, existence: Existence) -> Result<u8, Failure> {
        let (client, name) = (self.connection.client()?, &self.name);
        let pool = client.put_pool_if(name, request, existence).await;
        let pool = pool.map_err(|error| match (code(&error), existence) {
            (Some(Code::PreconditionFailed), Existence::Missing) => {
                let message = format!(
                    "the pool {name:?} exists already: \"keypeg pool set {name}\" changes its policy"
                );
                Failure::new(exit::CANNOT_CREATE, message)
            }
            (Some(Code::PreconditionFailed), Existence::Present) => no_pool(name),
            _ => error.into(),
        })?;
        self.output.print_fields(&pool)
    }

    async fn delete(&self, has_yes: bool) -> Result<u8, Failure> {
        let (client, name) = (self.connection.client()?, &self.name);
        let named = |error: Error| match code(&error) {
            Some(Code::UnknownPool) => no_pool(name),
            _ => error.into(),
        };
        if !has_yes {
            let Pool { total, leased, .. } = client.pool(name).await.map_err(named)?;
            let change =
                format!("the pool {name:?} with {}, {leased} of them leased", count(total));
            confirm(&change, false)?;
        }
        client.delete_pool(name).await.map_err(named)?;
        Ok(0)
    }
}

fn no_pool(name: &str) -> Failure {
    let message = format!("no pool {name:?}: create it with \"keypeg pool create {name}\"");
    Failure::new(exit::NO_INPUT, message)
}

fn code(error: &Error) -> Option<Code> {
    error.problem().map(|problem| problem.code)
}

fn seconds<const MIN_MS: u64>(length: HumanDuration<MIN_MS>) -> Seconds {
    Seconds::from_ms(length.ms())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_or_none_names_both_when_it_is_wrong() {
        assert_eq!(max_keys("none"), Ok(OrNone(None)));
        assert_eq!(max_keys("7"), Ok(OrNone(Some(7))));
        for bad in ["", "None", "seven", "-1", "0", "1000000001"] {
            let error = max_keys(bad).unwrap_err();
            assert_eq!(error, "must be a whole number from 1 to 1000000000, or none", "{bad}");
            let error = bad.parse::<OrNone<HumanDuration>>().unwrap_err();
            assert!(error.contains("500ms") && error.ends_with(", or none"), "{bad}: {error}");
        }
    }
}
