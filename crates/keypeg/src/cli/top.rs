//! `keypeg top`: how full the pools are and what ends next, drawn again in place on a terminal.
//!
//! A task asks the server, at most once per interval and one request at a time, so a slow server gets
//! fewer requests. Without a terminal the command prints one table and ends. Plain escape sequences
//! and termios, because ratatui would add 33 crates for one screen.

mod history;
mod screen;
mod snapshot;
mod view;

use super::server::ConnectionArgs;
use crate::duration::HumanDuration;
use crate::failure::{Failure, exit};
use crate::output::printed;
use crate::streams;
use clap::Args;
use keypeg_client::{ClientSource, Error};
use screen::{Input, Screen};
use snapshot::Snapshot;
use std::io::{self, IsTerminal};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::sleep;
use view::View;

/// The options of `keypeg top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Name of one pool, whose leases are shown [default: all pools]
    #[arg(short, long, env = "KEYPEG_POOL", value_name = "NAME")]
    pool: Option<String>,
    /// Time between two requests to the server
    #[arg(long, value_name = "DURATION", default_value = "1s")]
    every: HumanDuration<100>,
    /// The server and the token.
    #[command(flatten)]
    connection: ConnectionArgs,
}

impl TopArgs {
    /// Draws until the user ends it, or prints one table.
    pub(super) async fn run(&self) -> Result<u8, Failure> {
        let source = self.connection.source()?;
        let mut view = View::new(&self.connection.url, self.pool.clone());
        if !(io::stdout().is_terminal() && io::stdin().is_terminal()) {
            view.update(Ok(Snapshot::fetch(&source, self.pool.as_deref()).await?));
            return printed(streams::print(&view.table()).map_err(Into::into));
        }
        // A wrong address or token ends the command before the screen changes.
        view.update(Ok(Snapshot::fetch(&source, self.pool.as_deref()).await?));
        let failed = |error: io::Error| {
            Failure::new(
                exit::OS,
                format!("cannot use the terminal: {error}; check stdin and TERM"),
            )
        };
        let mut screen = Screen::enter().map_err(failed)?;
        let every = Duration::from_millis(self.every.ms());
        let mut snapshots = watch(source, self.pool.clone(), every);
        loop {
            screen.draw(|size| view.frame(size)).map_err(failed)?;
            let input = tokio::select! {
                input = screen.next() => input.map_err(failed)?,
                snapshot = snapshots.recv() => {
                    let Some(snapshot) = snapshot else { return Ok(0) };
                    view.update(snapshot.map_err(|error| Failure::from(error).to_string()));
                    continue;
                }
            };
            match input {
                Input::Scroll(lines) => view.scroll(lines),
                Input::Redraw => {}
                Input::Suspend => screen.suspend().map_err(failed)?,
                Input::End { code } => return Ok(code),
            }
        }
    }
}

/// Asks the server again and again, until the receiver is dropped.
fn watch(
    source: ClientSource,
    pool: Option<String>,
    every: Duration,
) -> mpsc::Receiver<Result<Snapshot, Error>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            sleep(every).await;
            let snapshot = Snapshot::fetch(&source, pool.as_deref()).await;
            if sender.send(snapshot).await.is_err() {
                return;
            }
        }
    });
    receiver
}
