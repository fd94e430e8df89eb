//! The server's metrics, for `/metrics`: the sources of a scrape, and its text.
//!
//! A scrape reads all pools once; scrapes that arrive at the same time share one reading and its
//! text. No label comes from client input but the names of pools, whose number is bounded, which
//! bounds the number of series. Knows no metric by its name.

mod cluster;
mod counts;
pub(super) mod exposition;
mod pool_text;
mod pools;
mod process;
mod server;
mod shared;

use super::backup::LastBackup;
use super::connection::descriptors::DescriptorNeeds;
use super::connection::places::Places;
use super::lanes::Lanes;
use crate::access::Access;
use crate::audit::Audit;
use crate::clock;
use crate::http::error::Problem;
use crate::memory::MemoryPlan;
use crate::proxies::Proxies;
use crate::tls::{PeerTls, TlsAcceptor};
use bytes::Bytes;
pub(super) use counts::{CoreCounts, Family, ForwardOutcome};
use exposition::Format;
use keypeg_core::PoolFilter;
use keypeg_store::{BackupSource, CoreTurns, KeyVersions, StartReport, StoreMetrics};
use pools::{PoolPlaces, PoolReading, PoolRow};
use shared::Shared;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OnceCell;

/// About the bytes of the text of the server alone.
const SERVER_BYTES: usize = 24 << 10;

/// What the server gets from its start: the store's report and the shared parts.
#[derive(Debug)]
pub(crate) struct StartInfo {
    /// What the store found when it opened.
    pub(crate) recovery: StartReport,
    /// The access rules.
    pub(crate) access: Arc<Access>,
    /// The audit log, if there is one.
    pub(crate) audit: Option<Arc<Audit>>,
    /// The certificate of the server, if it speaks HTTPS.
    pub(crate) tls: Option<Arc<TlsAcceptor>>,
    /// How the certificates of the other servers are checked; `None` if the server is alone.
    pub(crate) peer_tls: Option<Arc<PeerTls>>,
    /// The proxies in front of the server.
    pub(crate) proxies: Proxies,
    /// How long the store took to open.
    pub(crate) recovery_time: Duration,
    /// The most pools with series of their own in the metrics.
    pub(crate) metrics_pools: usize,
    /// The bounds of the server's memory.
    pub(crate) memory: MemoryPlan,
    /// What takes file descriptors beside connections.
    pub(crate) descriptors: DescriptorNeeds,
    /// The store's metrics.
    pub(crate) store_metrics: Arc<StoreMetrics>,
    /// The source of backups.
    pub(crate) backups: Option<Arc<dyn BackupSource>>,
    /// The versions of the store's keys, if it has them.
    pub(crate) key_versions: Option<Arc<KeyVersions>>,
    pub(crate) core_turns: Option<Arc<dyn CoreTurns>>,
}

/// The sources of a scrape.
#[derive(Debug)]
pub(super) struct Metrics {
    start_info: StartInfo,
    started_ms: u64,
    cores: Vec<Arc<CoreCounts>>,
    /// The lanes of each core.
    lanes: Vec<Lanes>,
    places: Arc<Places>,
    pool_places: PoolPlaces,
    readings: Shared<Reading>,
    last_backup: Arc<LastBackup>,
}

/// The pools whose series a scrape gets.
#[derive(Clone, Copy, Debug)]
pub(super) enum ScrapedPools<'a> {
    /// Those that have a place, and the sum of all others.
    All,
    /// Of those that have a place, the ones that a token may see.
    Allowed(&'a PoolFilter),
    /// None.
    None,
}

/// All values at one instant.
#[derive(Debug)]
pub(super) struct Reading {
    /// The values of the server, as `OpenMetrics` text without its end mark.
    server: String,
    pools: PoolReading,
    /// The text with all pools, in each format that a scrape has asked for.
    texts: [OnceCell<Bytes>; 2],
}

impl Metrics {
    pub(super) fn new(
        start_info: StartInfo,
        cores: Vec<Arc<CoreCounts>>,
        lanes: Vec<Lanes>,
        places: Arc<Places>,
    ) -> Self {
        let pool_places = PoolPlaces::new(start_info.metrics_pools);
        let (started_ms, readings) = (clock::wall_ms(), Shared::default());
        let last_backup = Arc::default();
        Self { start_info, started_ms, cores, lanes, places, pool_places, readings, last_backup }
    }

    /// Returns the time of the last complete backup, which its sender sets.
    pub(super) fn last_backup(&self) -> &Arc<LastBackup> {
        &self.last_backup
    }

    /// Reads all values; reads the pools through `lanes`. O(pools) for all simultaneous scrapes
    /// together.
    pub(super) async fn read(&self, lanes: &Lanes) -> Result<Arc<Reading>, Problem> {
        let read = async {
            // Before the reading of the pools, which is a request itself.
            let depths = self.lanes.iter().map(Lanes::depth).collect();
            let process = tokio::task::spawn_blocking(process::read).await.unwrap_or_default();
            let pools = self.pool_places.read(lanes).await?;
            let server = self.server_text(depths, process, &pools);
            Ok(Reading { server, pools, texts: Default::default() })
        };
        self.readings.read(read).await
    }
}

impl Reading {
    /// Returns about how many bytes [`Reading::text`] has.
    pub(super) fn text_bytes(&self, pools: ScrapedPools<'_>) -> u64 {
        let rows = match pools {
            ScrapedPools::All | ScrapedPools::Allowed(_) => self.pools.rows.len() + 1,
            ScrapedPools::None => 0,
        };
        (self.server.len().max(SERVER_BYTES) + rows * pool_text::POOL_BYTES) as u64
    }

    /// Returns the text in a format. All scrapes that get all pools share one.
    pub(super) async fn text(&self, format: Format, pools: ScrapedPools<'_>) -> Bytes {
        let rows = self.pools.rows.iter();
        match pools {
            ScrapedPools::All => {
                let rows = rows.chain(&self.pools.other).collect();
                let text = &self.texts[format as usize];
                text.get_or_init(|| self.write(format, rows)).await.clone()
            }
            ScrapedPools::Allowed(filter) => {
                let rows = rows.filter(|row| filter.allows(&row.name)).collect();
                self.write(format, rows).await
            }
            ScrapedPools::None => self.write(format, Vec::new()).await,
        }
    }

    async fn write(&self, format: Format, rows: Vec<&PoolRow>) -> Bytes {
        let mut text = format.of_open_metrics(&self.server);
        if !rows.is_empty() {
            text.push_str(&pool_text::text(&rows, format).await);
        }
        text.push_str(format.end_mark());
        text.into()
    }
}
