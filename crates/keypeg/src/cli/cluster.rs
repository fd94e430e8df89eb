//! `keypeg cluster`: the servers and shards of an installation, and moving a shard.
//!
//! Shows what the server that is asked knows. The server owns all rules about moves.

use super::server::ConnectionArgs;
use crate::failure::Failure;
use crate::number::number;
use crate::options::value::SHARDS_MAX;
use crate::output::{Fit, OutputArgs, RowPrinter, printed};
use crate::streams;
use clap::{Args, Subcommand};
use keypeg_client::{Cluster, ClusterServer, Seconds};
use serde::Serialize;

/// A command on the servers that share their pools.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show the servers and shards, as the server that is asked sees them
    Status {
        /// The server, and how the result is printed.
        #[command(flatten)]
        place: ClusterPlace,
    },
    /// Move a shard to another server, which keeps it until it stops
    ///
    /// Ends when that server owns the shard, after about 3 seconds. Requests for its pools wait
    /// meanwhile.
    Move {
        /// Number of the shard
        #[arg(value_name = "SHARD", value_parser = number(0..=SHARDS_MAX - 1))]
        shard: u32,
        /// Name of the server that is to own it
        #[arg(value_name = "NAME")]
        to: String,
        /// The server, and how the result is printed.
        #[command(flatten)]
        place: ClusterPlace,
    },
}

/// The server that is asked, and how the result is printed.
#[derive(Debug, Args)]
pub struct ClusterPlace {
    #[command(flatten)]
    connection: ConnectionArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// The columns of the servers.
const SERVERS: &[(&str, Fit)] = &[
    ("server", Fit::Whole),
    ("live", Fit::Whole),
    ("silent_seconds", Fit::Whole),
    ("owns", Fit::Text),
    ("follows", Fit::Text),
    ("address", Fit::Text),
    ("access_tokens", Fit::Whole),
    ("unreachable", Fit::Text),
];

/// The columns of the shards.
const SHARDS: &[(&str, Fit)] = &[
    ("shard", Fit::Whole),
    ("owner", Fit::Whole),
    ("role", Fit::Whole),
    ("position", Fit::Whole),
    ("behind_frames", Fit::Whole),
    ("behind_seconds", Fit::Whole),
    ("takeovers", Fit::Whole),
    ("pinned", Fit::Whole),
    ("unowned_seconds", Fit::Whole),
    ("snapshot_position", Fit::Whole),
    ("preferred", Fit::Whole),
    ("error", Fit::Text),
];

/// The fields of a shard, for the check of a field before the change.
const SHARD_FIELDS: [&str; 12] = [
    "shard",
    "owner",
    "unowned_seconds",
    "role",
    "preferred",
    "pinned",
    "position",
    "behind_frames",
    "behind_seconds",
    "snapshot_position",
    "takeovers",
    "error",
];

/// A server as a row: its shards as text.
#[derive(Serialize)]
struct ServerRow {
    server: String,
    live: bool,
    silent_seconds: Seconds,
    owns: Option<String>,
    follows: Option<String>,
    address: String,
    access_tokens: Option<bool>,
    unreachable: Option<String>,
}

/// What stands above the tables.
#[derive(Serialize)]
struct Asked<'a> {
    server: &'a str,
    store: &'a str,
    store_silent_seconds: Seconds,
    store_error: Option<&'a str>,
}

impl ClusterCommand {
    /// Asks the server, and prints its answer.
    pub(super) async fn run(&self) -> Result<u8, Failure> {
        match self {
            Self::Status { place } => {
                let cluster = place.connection.client()?.cluster().await?;
                if place.output.is_table() {
                    return print_tables(&place.output, cluster);
                }
                place.output.print_fields(&cluster)
            }
            Self::Move { shard, to, place } => {
                place.output.require_field(&SHARD_FIELDS)?;
                let moved = place.connection.client()?.move_shard(*shard, to).await?;
                place.output.print_fields(&moved)
            }
        }
    }
}

fn print_tables(output: &OutputArgs, cluster: Cluster) -> Result<u8, Failure> {
    let Cluster { server, store, store_silent_seconds, store_error, servers, shards } = cluster;
    let store_error = store_error.as_deref();
    let asked = Asked { server: &server, store: &store, store_silent_seconds, store_error };
    let print = || {
        output.try_print_fields(&asked)?;
        streams::print("\n")?;
        let servers: Vec<_> = servers.into_iter().map(ServerRow::of).collect();
        let mut rows = RowPrinter::new(output, None, SERVERS);
        rows.print(&servers)?;
        rows.finish()?;
        streams::print("\n")?;
        let mut rows = RowPrinter::new(output, None, SHARDS);
        rows.print(&shards)?;
        rows.finish()
    };
    printed(print())
}

impl ServerRow {
    fn of(server: ClusterServer) -> Self {
        let (owns, follows) = (ranges(&server.owns), ranges(&server.follows));
        let unreachable = server.unreachable;
        let ClusterServer { server, address, live, silent_seconds, access_tokens, .. } = server;
        Self { server, live, silent_seconds, owns, follows, address, access_tokens, unreachable }
    }
}

/// Writes numbers in ascending order as ranges: `0-3,5`. `None` without any.
fn ranges(numbers: &[u32]) -> Option<String> {
    let runs = numbers.chunk_by(|one, next| one + 1 == *next);
    let texts: Vec<_> = runs
        .map(|run| match run {
            [one] => one.to_string(),
            _ => format!("{}-{}", run[0], run[run.len() - 1]),
        })
        .collect();
    (!texts.is_empty()).then(|| texts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_written_as_ranges() {
        for (numbers, text) in
            [(&[][..], None), (&[4], Some("4")), (&[0, 1, 2, 3, 5, 7, 8], Some("0-3,5,7-8"))]
        {
            assert_eq!(ranges(numbers).as_deref(), text);
        }
    }
}
