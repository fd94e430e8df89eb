//! The boundary between the server and a store: the server sends requests through lanes, and a
//! store answers them.
//!
//! A store keeps the pools: the embedded engine (keypeg-engine) is one. This crate knows no
//! journal, no network and no HTTP. A store takes requests from its [`EngineLane`]s in bulk,
//! answers each exactly once, and only after all that the reply reports is durable.

mod answer;
mod backup;
mod cluster;
mod cost;
mod key_versions;
mod lanes;
mod metrics;
mod request;
mod store;
mod subscription;
mod wakeup;

pub use answer::{AcquireTerms, Answer, LeaseGrant, PoolChange, Revealed, TypedCall};
pub use backup::{BackupRefused, BackupSource, BackupStream};
pub use cluster::{
    Cluster, ClusterStatus, MoveError, Peer, Place, ServerStatus, ShardRole, ShardStatus,
};
pub use cost::{KEEP_ALIVE_MAX, SHORT_UNITS_MAX};
pub use key_versions::{KeyVersion, KeyVersions};
pub use lanes::{
    CallSlot, EngineLane, LANE_MAX, LANE_RESERVE, Lane, LaneItem, PendingReply, lane,
    undo_undelivered,
};
pub use metrics::{
    ANSWERS_PER_TURN_BUCKETS, COMMIT_BUCKETS_BYTES, COMMIT_BUCKETS_US, Histogram,
    LATENESS_BUCKETS_US, StoreMetrics,
};
pub use request::{
    Call, Caller, CallerNumber, GENERATE_MAX, Idempotency, PAGE_MAX, PoolPage, PoolView, Principal,
    Reply, Request, RequestError, WAIT_MAX_MS,
};
pub use store::{CoreLanes, CoreTurn, CoreTurns, OpenedStore, StartReport, Store};
pub use subscription::{
    FeedBatch, FeedEvent, FeedEventKind, Subscriber, Subscription, TooManySubscribers,
};
pub use wakeup::Wakeup;
