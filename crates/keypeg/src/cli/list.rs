//! `keypeg list` and `keypeg pools`: listings that are printed page by page.

use super::server::ServerArgs;
use crate::failure::Failure;
use crate::number::number;
use crate::output::{Fit, RowPrinter, printed};
use clap::Args;
use keypeg_client::{KeyFilter, KeyState};

/// The options of `keypeg list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// State of the keys to list: available, leased, resting or quarantined
    #[arg(long, value_name = "STATE", value_parser = state)]
    state: Option<KeyState>,
    /// Label of the keys to list
    #[arg(long, value_name = "LABEL")]
    label: Option<String>,
    /// Number of keys after which the list ends [default: all]
    #[arg(long, value_name = "N", value_parser = number(1..=u64::MAX))]
    limit: Option<u64>,
    /// The server, the token, the pool and the output format.
    #[command(flatten)]
    server: ServerArgs,
}

/// The options of `keypeg pools`.
#[derive(Debug, Args)]
pub struct PoolsArgs {
    /// Number of pools after which the list ends [default: all]
    #[arg(long, value_name = "N", value_parser = number(1..=u64::MAX))]
    limit: Option<u64>,
    /// The server, the token, the pool and the output format.
    #[command(flatten)]
    server: ServerArgs,
}

/// The columns of keys. The end of a lease stands beside its holder.
const KEYS: &[(&str, Fit)] = &[
    ("id", Fit::Whole),
    ("state", Fit::Whole),
    ("label", Fit::Text),
    ("lease.expires_at", Fit::Whole),
    ("lease.holder", Fit::Text),
    ("rests_until", Fit::Whole),
    ("expires_at", Fit::Whole),
    ("draining", Fit::Whole),
    ("reason", Fit::Text),
];

/// The columns of pools.
const POOLS: &[(&str, Fit)] = &[
    ("pool", Fit::Text),
    ("available", Fit::Whole),
    ("leased", Fit::Whole),
    ("resting", Fit::Whole),
    ("quarantined", Fit::Whole),
    ("total", Fit::Whole),
    ("waiting", Fit::Whole),
    ("draining", Fit::Whole),
];

impl ListArgs {
    /// Prints the keys of the pool.
    pub(super) async fn run(&self) -> Result<u8, Failure> {
        let Self { state, label, limit, server } = self;
        let mut rows = RowPrinter::new(&server.output, Some("keys"), KEYS);
        let filter = KeyFilter { state: *state, label: label.clone() };
        let pages = server.client()?.list_all_keys(&server.pool, filter);
        let mut pages = pages.with_limit(limit.unwrap_or(u64::MAX));
        while let Some(keys) = pages.next().await? {
            if let Err(error) = rows.print(&keys) {
                return printed(Err(error));
            }
        }
        printed(rows.finish())
    }
}

impl PoolsArgs {
    /// Prints the pools that the token may see.
    pub(super) async fn run(&self) -> Result<u8, Failure> {
        let Self { limit, server } = self;
        let mut rows = RowPrinter::new(&server.output, None, POOLS);
        let pages = server.client()?.list_all_pools();
        let mut pages = pages.with_limit(limit.unwrap_or(u64::MAX));
        while let Some(pools) = pages.next().await? {
            if let Err(error) = rows.print(&pools) {
                return printed(Err(error));
            }
        }
        printed(rows.finish())
    }
}

/// Parses a key's state as it is written on the wire.
fn state(word: &str) -> Result<KeyState, String> {
    let found = KeyState::ALL.into_iter().find(|state| state.as_str() == word);
    found.ok_or_else(|| "use available, leased, resting or quarantined".into())
}
