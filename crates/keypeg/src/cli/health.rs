//! `keypeg health`: whether a server accepts requests, as an exit code for supervisors that have no
//! HTTP client, such as the health check of a container.

use super::server::ServerArgs;
use crate::duration::{self, HumanDuration};
use crate::failure::{Failure, exit};
use clap::Args;
use keypeg_client::Error;
use std::time::Duration;

/// The options of `keypeg health`.
#[derive(Debug, Args)]
pub struct HealthArgs {
    /// Time within which the server must answer, such as 500ms or 5s
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    timeout: HumanDuration,
    /// The server and the token; `/readyz` needs none.
    #[command(flatten)]
    server: ServerArgs,
}

impl HealthArgs {
    /// Asks the server once. Fails with [`exit::UNHEALTHY`], whatever the reason is, because
    /// supervisors give other codes other meanings.
    pub(super) async fn run(&self) -> Result<u8, Failure> {
        let client = self.server.client()?;
        let unhealthy = |message| Err(Failure::new(exit::UNHEALTHY, message));
        let time = Duration::from_millis(self.timeout.ms());
        match tokio::time::timeout(time, client.ready()).await {
            Ok(Ok(())) => Ok(0),
            Ok(Err(error @ Error::InvalidInput(_))) => Err(error.into()),
            Ok(Err(error)) => unhealthy(Failure::from(error).to_string()),
            Err(_) => {
                let (url, time) = (&self.server.connection.url, duration::shown(time));
                unhealthy(format!("no answer from {url} within {time}"))
            }
        }
    }
}
