//! `keypeg delete`: deletes keys by their ids.
//!
//! One key is deleted at once, as its id was typed. Several need a confirmation, because they often
//! come from a list. A key that does not exist does not keep the others.

use super::confirm::confirm;
use super::new_keys::count;
use super::server::ServerArgs;
use crate::failure::{Failure, exit};
use crate::streams;
use clap::Args;
use keypeg_client::Code;

/// The options of `keypeg delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Ids of the keys
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<String>,
    /// Delete several keys without asking
    #[arg(short, long)]
    yes: bool,
    /// The server, the token, the pool and the output format.
    #[command(flatten)]
    server: ServerArgs,
}

impl DeleteArgs {
    /// Deletes the keys.
    pub(super) async fn run(&self) -> Result<u8, Failure> {
        let Self { keys, yes, server } = self;
        let (client, pool) = (server.client()?, &server.pool);
        if let [key] = &**keys {
            client.delete_key(pool, key).await?;
            return Ok(0);
        }
        let wanted = keys.len() as u64;
        confirm(&format!("{} of the pool {pool:?}", count(wanted)), *yes)?;
        let (mut deleted, mut missing) = (0, 0);
        for key in keys {
            match client.delete_key(pool, key).await {
                Ok(()) => deleted += 1,
                Err(error) if error.problem().is_some_and(|it| it.code == Code::UnknownKey) => {
                    streams::print_message(&format!("no key {key} in the pool {pool:?}"));
                    missing += 1;
                }
                Err(error) => {
                    let cause = Failure::from(error);
                    let message =
                        format!("{cause}; {deleted} of {wanted} keys were deleted before");
                    return Err(Failure::new(cause.exit, message));
                }
            }
        }
        if missing > 0 {
            let message =
                format!("{deleted} of {wanted} keys were deleted, {missing} do not exist");
            return Err(Failure::new(exit::NO_INPUT, message));
        }
        if !server.output.quiet {
            streams::print_message(&format!("{} deleted", count(deleted)));
        }
        Ok(0)
    }
}
