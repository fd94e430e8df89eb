//! What `keypeg top` asks the server for, with a bound on each answer.
//!
//! Knows nothing of the terminal.

use crate::clock;
use keypeg_client::{ClientSource, Code, Error, History, Key, KeyState, Pool, UnixMs};
use std::time::Duration;
use tokio::time::timeout;

/// Seconds of history that are asked for: all that a server has.
const HISTORY_SECONDS: u32 = 900;
/// The most pools that are shown, in pages of 1000.
const POOLS_MAX: u64 = 10_000;
/// The most leases that are shown: one page.
const LEASES_MAX: u32 = 1_000;
/// The time within which the server must answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest difference of clocks that is taken for a delay.
const SKEW_MS: u64 = 3_000;

/// What the server said.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) pools: Vec<Pool>,
    /// Whether the server has more pools than `pools`.
    pub(super) has_more: bool,
    /// `None` if an earlier version of the server has no history.
    pub(super) history: Option<History>,
    /// The leased keys of one pool: those of the first page.
    pub(super) leased: Vec<Key>,
    /// The time of the server.
    pub(super) now: UnixMs,
}

impl Snapshot {
    /// Asks the server once. An answer that takes too long is an error.
    pub(super) async fn fetch(source: &ClientSource, pool: Option<&str>) -> Result<Self, Error> {
        let client = source.client();
        let asked = async {
            let (mut pools, mut leased) = (Vec::new(), Vec::new());
            if let Some(name) = pool {
                let page = client.list_keys(name, Some(KeyState::Leased), Some(LEASES_MAX), None);
                leased = page.await?.keys;
                pools.push(client.pool(name).await?);
            } else {
                let mut pages = client.list_all_pools().with_limit(POOLS_MAX);
                while let Some(page) = pages.next().await? {
                    pools.extend(page);
                }
            }
            let has_more = pools.len() as u64 >= POOLS_MAX;
            let history = match client.history(pool, HISTORY_SECONDS).await {
                Ok(history) => Some(history),
                Err(error) if code(&error) == Some(Code::NotFound) => None,
                Err(error) => return Err(error),
            };
            let now = server_time(history.as_ref(), UnixMs(clock::wall_ms()));
            Ok(Self { pools, has_more, history, leased, now })
        };
        let asked = timeout(PATIENCE, asked).await;
        let asked = asked.unwrap_or_else(|_| {
            Err(Error::InvalidInput(format!("the server did not answer within {PATIENCE:?}")))
        });
        if let Err(error) = &asked
            && code(error) == Some(Code::Unauthorized)
        {
            // The next request sends the token that the file has then.
            source.refresh(&client);
        }
        asked
    }
}

/// Returns the time of the server: that of this machine, unless the clocks differ.
fn server_time(history: Option<&History>, here: UnixMs) -> UnixMs {
    let Some(history) = history else { return here };
    let last = history.from_at.0 + 1_000 * history.available.len() as u64;
    if last.abs_diff(here.0) <= SKEW_MS { here } else { UnixMs(last) }
}

fn code(error: &Error) -> Option<Code> {
    error.problem().map(|problem| problem.code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_that_of_the_server_if_the_clocks_differ() {
        let mut history: History = serde_json::from_value(serde_json::json!({
            "pool": null, "pools": 0, "from_at": "1970-01-01T00:16:40.000Z", "available": [],
            "leased": [], "resting": [], "quarantined": [], "waiting": [], "grants": [],
            "refusals": [], "expiries": [], "purges": [], "waited_seconds": [],
        }))
        .unwrap();
        history.available = vec![None; 10];
        for (here, now) in [(1_008_000, 1_008_000), (1_013_000, 1_013_000), (0, 1_010_000)] {
            assert_eq!(server_time(Some(&history), UnixMs(here)), UnixMs(now), "{here}");
        }
        assert_eq!(server_time(None, UnixMs(7)), UnixMs(7));
    }
}
