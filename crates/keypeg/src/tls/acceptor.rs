//! What new TLS connections use: the current configuration, and the bound of handshakes.
//!
//! The configuration is replaced as a whole; a connection keeps the one with which it began. Does
//! not read files, and does not know HTTP.

use super::files::{Loaded, TlsBytes, TlsFiles, TlsFilesError};
use crate::clock;
use crate::share::{Budget, CallerId, Held};
use rustls::server::ServerConfig;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// The certificate of the server, and the handshakes in progress.
pub(crate) struct TlsAcceptor {
    pub(super) files: TlsFiles,
    current: RwLock<Loaded>,
    is_broken: AtomicBool,
    reloads: AtomicU64,
    /// The handshakes in progress, shared by the addresses.
    in_progress: Arc<Budget>,
    pub(crate) handshakes: Handshakes,
}

/// How many handshakes ended in which way.
#[derive(Debug, Default)]
pub(crate) struct Handshakes {
    pub(crate) completed: AtomicU64,
    /// The client and the server did not agree, or the client is no TLS client.
    pub(crate) failed: AtomicU64,
    /// The client took too long, or waited too long for its turn.
    pub(crate) timed_out: AtomicU64,
}

/// The state for metrics.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TlsCounters {
    /// When the first certificate of the chain expires, in seconds since 1970.
    pub(crate) not_after: u64,
    pub(crate) is_broken: bool,
    pub(crate) reloads: u64,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) timed_out: u64,
}

impl std::fmt::Debug for TlsAcceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsAcceptor").field("files", &self.files).finish_non_exhaustive()
    }
}

impl TlsAcceptor {
    /// Reads the files. At most `handshakes_max` handshakes are in progress at once.
    pub(crate) fn open(files: TlsFiles, handshakes_max: usize) -> Result<Self, TlsFilesError> {
        let loaded = files.load(&files.read()?)?;
        let now = clock::wall_ms() / 1_000;
        if loaded.not_after <= now || loaded.not_before > now {
            // Clients refuse it. A start that fails would not help them, and hides the reason.
            tracing::error!(
                "--tls-cert {}: the certificate is {}: clients refuse it; replace the file",
                files.certificate.display(),
                if loaded.not_after <= now { "expired" } else { "not valid yet" }
            );
        }
        Ok(Self {
            files,
            current: RwLock::new(loaded),
            is_broken: AtomicBool::new(false),
            reloads: AtomicU64::new(0),
            in_progress: Budget::new(handshakes_max as u64),
            handshakes: Handshakes::default(),
        })
    }

    /// Returns the configuration for a new connection.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).config)
    }

    /// Admits a handshake of an address; `None` while it holds its share of those in progress.
    pub(crate) fn admit(&self, caller: &CallerId) -> Option<Held> {
        self.in_progress.admit(caller, 1).ok()
    }

    /// Returns the hash of the files that are in use.
    pub(super) fn hash(&self) -> [u8; 32] {
        self.current.read().unwrap_or_else(PoisonError::into_inner).hash
    }

    /// Replaces the configuration, and returns when it expires. After an error the old one stays;
    /// the files count as broken if the error `is_certain`.
    pub(super) fn reload(
        &self,
        bytes: Result<TlsBytes, TlsFilesError>,
        is_certain: bool,
    ) -> Result<u64, TlsFilesError> {
        let now = clock::wall_ms() / 1_000;
        let loaded = bytes.and_then(|bytes| self.files.load(&bytes)).and_then(|loaded| {
            let is_valid = |loaded: &Loaded| loaded.not_before <= now && now < loaded.not_after;
            let was_valid = is_valid(&self.current.read().unwrap_or_else(PoisonError::into_inner));
            if is_valid(&loaded) || !was_valid {
                return Ok(loaded);
            }
            Err(self.files.not_valid_now())
        });
        if loaded.is_ok() || is_certain {
            self.is_broken.store(loaded.is_err(), Ordering::Relaxed);
        }
        let loaded = loaded?;
        let not_after = loaded.not_after;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        self.reloads.fetch_add(1, Ordering::Relaxed);
        Ok(not_after)
    }

    /// Notes that the current files are unusable.
    pub(super) fn mark_broken(&self) {
        self.is_broken.store(true, Ordering::Relaxed);
    }

    /// Returns the state for metrics.
    pub(crate) fn counters(&self) -> TlsCounters {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        TlsCounters {
            not_after: self.current.read().unwrap_or_else(PoisonError::into_inner).not_after,
            is_broken: self.is_broken.load(Ordering::Relaxed),
            reloads: load(&self.reloads),
            completed: load(&self.handshakes.completed),
            failed: load(&self.handshakes.failed),
            timed_out: load(&self.handshakes.timed_out),
        }
    }
}
