//! The state that requests share: one [`App`] per core, and one [`Server`] for all cores.
//!
//! Does not know connections, routes or handlers.

use super::error::Problem;
use super::forward::{LinkPlaces, Links, PeerFaults};
use super::history::History;
use super::lanes::Lanes;
use super::long_work::LongWork;
use super::message::Response;
use super::metrics::{CoreCounts, Metrics};
use super::origin::RequestId;
use super::timeouts::Timeouts;
use super::verified_keys::VerifiedKeys;
use crate::access::Access;
use crate::audit::Audit;
use crate::proxies::Proxies;
use crate::random::SystemRandom;
use crate::share::{Budget, ReservedBudget};
use crate::tls::{PeerTls, TlsAcceptor};
use keypeg_store::{BackupSource, KeyVersions};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// One core's share of the server.
#[derive(Debug)]
pub(super) struct App {
    pub(super) lanes: Lanes,
    pub(super) server: Arc<Server>,
    /// Whether only the operations endpoints are served.
    pub(super) is_for_ops: bool,
    core: usize,
    /// The next request's number on this core.
    requests: AtomicU64,
    pub(super) counts: Arc<CoreCounts>,
    /// The connections to the other servers.
    pub(super) links: Links,
    /// The permits of this core's long work.
    pub(super) long_work: LongWork,
    /// The leased keys that this core has verified.
    pub(super) verified_keys: VerifiedKeys,
}

/// State that all cores share.
#[derive(Debug)]
pub(super) struct Server {
    /// Set when the server starts to shut down.
    pub(super) stopping: AtomicBool,
    /// Whether a probe has found an owner for each shard since the start.
    pub(super) was_ready: AtomicBool,
    /// A random number that keeps request ids of different runs apart.
    pub(super) run_id: u64,
    /// The access rules.
    pub(super) access: Arc<Access>,
    /// The audit log, if there is one.
    pub(super) audit: Option<Arc<Audit>>,
    /// The certificate of the server; `None` is plain HTTP.
    pub(super) tls: Option<Arc<TlsAcceptor>>,
    /// How the certificates of the other servers are checked; `None` if this server is alone.
    pub(super) peer_tls: Option<Arc<PeerTls>>,
    /// Why other servers could not be reached.
    pub(super) peer_faults: Arc<PeerFaults>,
    /// The places of connections to other servers.
    pub(super) link_places: Arc<LinkPlaces>,
    /// The proxies in front of the server.
    pub(super) proxies: Proxies,
    /// The time limits of connections.
    pub(super) timeouts: Timeouts,
    /// The bytes of bodies that arrive, shared by the callers.
    pub(super) bodies: Arc<ReservedBudget>,
    /// The bytes of large heads that arrive, shared by the addresses.
    pub(super) heads: Arc<Budget>,
    /// The bytes of large responses that are built or sent, shared by the callers.
    pub(super) answers: Arc<Budget>,
    /// Further bytes of responses that operators need, shared by the callers.
    pub(super) operator_answers: Arc<Budget>,
    /// The versions of the store's keys, if cores may keep answers by them.
    pub(super) key_versions: Option<Arc<KeyVersions>>,
    /// The places of event streams, shared by the callers.
    pub(super) streams: Arc<Budget>,
    /// The source of backups, if the store has one.
    pub(super) backups: Option<Arc<dyn BackupSource>>,
    /// The requests in progress on connections that carry many at once, shared by the addresses.
    pub(super) streamed_requests: Arc<Budget>,
    /// The last minutes of the pools.
    pub(super) history: History,
    /// The bytes of the verified keys that a core may keep.
    pub(super) verified_keys_of_core: u64,
    /// The source of `/metrics`.
    pub(super) metrics: Metrics,
}

impl App {
    pub(super) fn new(
        lanes: Lanes,
        server: Arc<Server>,
        core: usize,
        counts: Arc<CoreCounts>,
    ) -> Self {
        let (requests, long_work) = (AtomicU64::new(0), LongWork::new());
        let (faults, places) = (Arc::clone(&server.peer_faults), Arc::clone(&server.link_places));
        let links = Links::new(server.peer_tls.clone(), faults, places);
        let bytes = server.verified_keys_of_core;
        let verified_keys =
            VerifiedKeys::new(server.key_versions.clone(), bytes, &mut SystemRandom::new());
        Self {
            links,
            lanes,
            server,
            is_for_ops: false,
            core,
            requests,
            counts,
            long_work,
            verified_keys,
        }
    }

    /// Returns this core's part for the listener for operations.
    pub(super) fn for_ops(self) -> Self {
        Self { is_for_ops: true, ..self }
    }

    /// Counts a problem and returns its response.
    pub(super) fn refuse(
        &self,
        problem: Problem,
        request_id: RequestId,
        is_change: bool,
    ) -> Response {
        self.counts.refused(problem.code());
        problem.into_response(request_id, is_change)
    }

    pub(super) fn next_request_id(&self) -> RequestId {
        let sequence = self.requests.fetch_add(1, Ordering::Relaxed);
        RequestId { run_id: self.server.run_id, core: self.core, sequence }
    }
}
