//! The metrics of a server that shares its pools: the shards as it sees them, the other servers, and
//! what it has forwarded to them.
//!
//! Each shard has a fixed number of series, and there are at most 128 shards. Knows the shards by
//! their status only.

use super::counts::FORWARD_OUTCOMES;
use keypeg_store::{ClusterStatus, ShardRole, ShardStatus};
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::fmt;
use std::time::Duration;

/// The roles, as values of the label `role`.
const ROLES: [(ShardRole, &str); 3] = [
    (ShardRole::Loading, "loading"),
    (ShardRole::Following, "following"),
    (ShardRole::Owner, "owner"),
];

/// The values of one scrape.
#[derive(Debug)]
pub(super) struct ClusterScrape {
    pub(super) status: ClusterStatus,
    /// Attempts to have another server answer, by how they ended.
    pub(super) forwarded: [u64; FORWARD_OUTCOMES.len()],
    pub(super) append_retries: u64,
}

impl ClusterScrape {
    pub(super) fn encode(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "1 for what this server does with the shard, else 0";
        let mut family = to.encode_descriptor("shard_role", help, None, MetricType::Gauge)?;
        for (number, shard) in self.status.shards.iter().enumerate() {
            for (role, word) in ROLES {
                let labels = [("shard", number.to_string()), ("role", word.into())];
                let value = u64::from(shard.role == role);
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "1 while a live server serves the shard, as far as this one knows, else 0";
        self.gauges(to, "shard_owned", help, |shard| u64::from(shard.owner.is_some()))?;
        let help =
            "Position of the last frame of the shard that this server has appended or applied";
        self.gauges(to, "shard_position", help, |shard| shard.position)?;
        let help = "Frames of the shard that this server knows of and has not applied";
        self.gauges(to, "shard_behind_frames", help, |shard| shard.behind_frames)?;
        let help =
            "Time since this server has read the log of the shard to its end; 0 as the owner";
        let mut family =
            to.encode_descriptor("shard_behind_seconds", help, None, MetricType::Gauge)?;
        for (number, shard) in self.status.shards.iter().enumerate() {
            let labels = [("shard", number.to_string())];
            let value = Duration::from_millis(shard.behind_ms).as_secs_f64();
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        let help = "Takeovers of the shard by any server that this one has seen";
        let mut family =
            to.encode_descriptor("shard_takeovers", help, None, MetricType::Counter)?;
        for (number, shard) in self.status.shards.iter().enumerate() {
            let labels = [("shard", number.to_string())];
            ConstCounter::new(shard.takeovers).encode(family.encode_family(&labels)?)?;
        }
        self.encode_servers(to)
    }

    fn encode_servers(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Servers of the installation, by whether their heartbeats change";
        let mut family = to.encode_descriptor("servers", help, None, MetricType::Gauge)?;
        let servers = &self.status.servers;
        let live = servers.iter().filter(|server| server.is_live).count();
        for (state, count) in [("live", live), ("silent", servers.len() - live)] {
            let labels = [("state", state)];
            ConstGauge::new(count as u64).encode(family.encode_family(&labels)?)?;
        }
        let help = "Time since the store has answered a heartbeat of this server";
        let encoder =
            to.encode_descriptor("store_silent_seconds", help, None, MetricType::Gauge)?;
        let silent = Duration::from_millis(self.status.store_silent_ms);
        ConstGauge::new(silent.as_secs_f64()).encode(encoder)?;
        let help = "Appends to the store that were repeated because their outcome was unknown";
        let encoder = to.encode_descriptor("append_retries", help, None, MetricType::Counter)?;
        ConstCounter::new(self.append_retries).encode(encoder)?;
        let help = "Attempts to have another server answer a request, by how they ended";
        let mut family =
            to.encode_descriptor("forwarded_requests", help, None, MetricType::Counter)?;
        for (outcome, &count) in FORWARD_OUTCOMES.iter().zip(&self.forwarded) {
            let labels = [("outcome", *outcome)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn gauges(
        &self,
        to: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        value: impl Fn(&ShardStatus) -> u64,
    ) -> fmt::Result {
        let mut family = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (number, shard) in self.status.shards.iter().enumerate() {
            let labels = [("shard", number.to_string())];
            ConstGauge::new(value(shard)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
