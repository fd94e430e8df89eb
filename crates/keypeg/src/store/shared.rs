//! Opens a store that several servers share: its log, the installation in it, the directory for
//! temporary files.
//!
//! It does not know which server serves what. Invariant: no message contains the URL of the store,
//! which can have a password.

use super::exposed::refuse_exposed;
use crate::clock::SystemClock;
use crate::config::{ClusterSettings, Config};
use crate::failure::{Failure, exit};
use crate::options::value::StoreUrl;
use crate::random::SystemRandom;
use keypeg_core::RandomSource as _;
use keypeg_engine::{Clock as _, Scratch, SealOptions, ShardIdentity};
use keypeg_log::{LogError, Shard, SharedLog, Tail, wait};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::num::NonZero;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::runtime::{Builder, Handle, Runtime};

/// The meaning of `--data` with `--store`, in the words of an error.
const SCRATCH: &str = "with --store, --data is a directory for temporary files";

/// A shared store whose installation is known.
#[derive(Debug)]
pub(super) struct Installation {
    pub(super) log: Arc<dyn SharedLog>,
    pub(super) identity: ShardIdentity,
    /// The store in words.
    pub(super) store: String,
    /// Whether this call has created it.
    pub(super) is_new: bool,
    /// Runs the calls of the log.
    pub(super) runtime: Runtime,
}

/// What a call expects of the installation in a store.
pub(super) struct Expected<'a> {
    /// The number of shards, if an option gives one.
    pub(super) shards: Option<u16>,
    /// The number of shards of a new installation.
    pub(super) new_shards: u16,
    pub(super) seal: Option<&'a SealOptions>,
    /// Whether there must be one already.
    pub(super) must_exist: bool,
}

/// A log whose store keeps what it acknowledges.
#[derive(Debug)]
pub(super) struct OpenedLog {
    pub(super) log: Arc<dyn SharedLog>,
    /// The store in words.
    store: String,
    /// Runs the calls of the log.
    runtime: Runtime,
}

/// Opens the log of a URL, and checks its store.
pub(super) fn open_log(url: &StoreUrl) -> Result<OpenedLog, Failure> {
    warn_of_visible_password(url);
    let runtime = runtime()?;
    let log = connect(url, runtime.handle())?;
    let mut random = SystemRandom::new();
    let mut nonce = [0; 16];
    random.fill(&mut nonce);
    let report = wait(log.probe(nonce)).map_err(|error| unusable(&error))?;
    for warning in &report.warnings {
        tracing::warn!("--store: {warning}");
    }
    Ok(OpenedLog { log, store: report.store, runtime })
}

/// Opens the log of a URL, and creates the installation if there is none.
pub(super) fn open(url: &StoreUrl, expected: &Expected<'_>) -> Result<Installation, Failure> {
    let OpenedLog { log, store, runtime } = open_log(url)?;
    let mut random = SystemRandom::new();
    if expected.must_exist {
        refuse_empty(&*log)?;
    }
    let wall_us = SystemClock::new()?.read().wall_us;
    let proposed =
        ShardIdentity::create(expected.new_shards, expected.seal, wall_us, &mut random).bytes();
    let stored = wait(log.installation(&proposed)).map_err(|error| unusable(&error))?;
    let is_new = *stored == *proposed;
    if is_new && expected.must_exist {
        let message = "the store has all shards of a restore, but the restore ended before it stored \
                       the installation: remove what is in the schema, bucket or prefix, and \
                       restore again";
        return Err(Failure::new(exit::NO_INPUT, message));
    }
    let identity = ShardIdentity::read(&stored)?;
    let found = identity.shards();
    if let Some(given) = expected.shards.filter(|given| *given != found) {
        let message = format!(
            "--shards {given}: the installation in the store has {found} shards, and their number \
             is fixed: use --shards {found} or omit it"
        );
        return Err(Failure::new(exit::CONFIG, message));
    }
    identity.check_seal(expected.seal, &mut random)?;
    Ok(Installation { log, identity, store, is_new, runtime })
}

/// Refuses a store whose first shard no server has ever served: a mistake in the URL would otherwise
/// create a second installation.
fn refuse_empty(log: &dyn SharedLog) -> Result<(), Failure> {
    let tail = wait(log.tail(Shard::FIRST)).map_err(|error| unusable(&error))?;
    let snapshots = wait(log.snapshots(Shard::FIRST)).map_err(|error| unusable(&error))?;
    if tail != Tail::EMPTY || !snapshots.is_empty() {
        return Ok(());
    }
    let message = "the store has no installation: check database, schema, bucket and prefix in \
                   --store, or omit --existing to create one";
    Err(Failure::new(exit::NO_INPUT, message))
}

/// Makes the runtime of the log's calls. They wait for a network most of the time.
fn runtime() -> Result<Runtime, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let built = Builder::new_multi_thread()
        .worker_threads((cores / 4).clamp(1, 4))
        .thread_name("keypeg-log")
        .enable_all()
        .build();
    built.map_err(|error| Failure::new(exit::OS, format!("cannot start threads: {error}")))
}

/// Opens the log that the scheme of the URL selects. Connects to nothing yet.
fn connect(url: &StoreUrl, runtime: &Handle) -> Result<Arc<dyn SharedLog>, Failure> {
    let scheme = url.0.split("://").next().unwrap_or_default();
    match scheme {
        "postgres" | "postgresql" => postgres(url, runtime),
        "s3" | "gs" | "az" | "file" => object(url, runtime),
        _ => {
            let message = "--store: the scheme of the URL is unknown: use \
                           postgres://USER@HOST/DATABASE, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or \
                           az://CONTAINER/PREFIX";
            Err(Failure::new(exit::CONFIG, message))
        }
    }
}

#[cfg(feature = "store-postgres")]
fn postgres(url: &StoreUrl, runtime: &Handle) -> Result<Arc<dyn SharedLog>, Failure> {
    use keypeg_log_postgres::PostgresLog;
    let settings = url.0.parse().map_err(|error| unusable(&error))?;
    Ok(Arc::new(PostgresLog::new(settings, runtime.clone()).map_err(|error| unusable(&error))?))
}

#[cfg(feature = "store-object")]
fn object(url: &StoreUrl, runtime: &Handle) -> Result<Arc<dyn SharedLog>, Failure> {
    use keypeg_log_object::ObjectLog;
    let settings = url.0.parse().map_err(|error| unusable(&error))?;
    Ok(Arc::new(ObjectLog::new(settings, runtime.clone())))
}

#[cfg(not(feature = "store-postgres"))]
fn postgres(_: &StoreUrl, _: &Handle) -> Result<Arc<dyn SharedLog>, Failure> {
    Err(not_built("store-postgres"))
}

#[cfg(not(feature = "store-object"))]
fn object(_: &StoreUrl, _: &Handle) -> Result<Arc<dyn SharedLog>, Failure> {
    Err(not_built("store-object"))
}

#[cfg(not(all(feature = "store-postgres", feature = "store-object")))]
fn not_built(feature: &str) -> Failure {
    let message = format!(
        "--store: this program was built without the client of that store: build it with \
         --features {feature}"
    );
    Failure::new(exit::CONFIG, message)
}

/// Returns the failure of a start for an error of the store.
pub(super) fn unusable(error: &LogError) -> Failure {
    let code = match error {
        LogError::Unavailable(_) => {
            let message = format!("--store: {error}; check the URL, and that the store runs");
            return Failure::new(exit::UNAVAILABLE, message);
        }
        LogError::Damaged { .. } | LogError::Hole { .. } => exit::DATA,
        LogError::Unsuitable(_)
        | LogError::Gone { .. }
        | LogError::NotInSnapshot { .. }
        | LogError::TooLarge { .. } => exit::CONFIG,
    };
    Failure::new(code, format!("--store: {error}"))
}

/// Warns if a password is on the command line of this process.
fn warn_of_visible_password(url: &StoreUrl) {
    let (base, query) = url.0.split_once('?').unwrap_or((&url.0, ""));
    let authority = base.split("://").nth(1).and_then(|rest| rest.split('/').next());
    let user = authority.and_then(|authority| authority.rsplit_once('@')).map(|(user, _)| user);
    let has_password = user.is_some_and(|user| user.contains(':')) || query.contains("password=");
    let is_argument = |argument: OsString| argument.to_string_lossy().contains(&url.0);
    if has_password && std::env::args_os().any(is_argument) {
        tracing::warn!(
            "other users of this machine can read the password in --store: give the URL by the \
             variable KEYPEG_STORE or in the file of --config"
        );
    }
}

/// The directory for temporary files, of `--data` or created for this run.
#[derive(Debug)]
pub(super) struct ScratchDirectory {
    pub(super) scratch: Scratch,
    /// Removed at the end.
    _created: Option<TempDir>,
}

impl ScratchDirectory {
    /// Opens the directory of `--data`, or creates one.
    pub(super) fn open(settings: &ClusterSettings) -> Result<Self, Failure> {
        if let Some(path) = &settings.scratch {
            refuse_exposed(path)?;
            refuse_data_directory(path)?;
            return Ok(Self { scratch: open_scratch(path)?, _created: None });
        }
        let private = std::fs::Permissions::from_mode(0o700);
        let created = tempfile::Builder::new().prefix("keypeg-").permissions(private).tempdir();
        let created = created.map_err(|error| {
            let message = format!(
                "cannot create a directory for temporary files: {error}; name one with --data"
            );
            Failure::new(exit::CANNOT_CREATE, message)
        })?;
        Ok(Self { scratch: open_scratch(created.path())?, _created: Some(created) })
    }
}

fn open_scratch(path: &Path) -> Result<Scratch, Failure> {
    Scratch::open(path).map_err(|error| {
        let shown = path.display();
        let kind = error.kind();
        if kind == ErrorKind::WouldBlock {
            let message = format!(
                "--data {shown} is in use by another process: {SCRATCH}, and each server needs its own"
            );
            return Failure::new(exit::TEMPORARY, message);
        }
        let is_denied = kind == ErrorKind::PermissionDenied;
        let code = if is_denied { exit::PERMISSION } else { exit::IO };
        Failure::new(code, format!("--data {shown}: {error}: {SCRATCH}; check the path and its owner"))
    })
}

/// Refuses the directory of a server without `--store`, whose pools this server would not have.
fn refuse_data_directory(path: &Path) -> Result<(), Failure> {
    if !path.join("meta").exists() {
        return Ok(());
    }
    let shown = path.display();
    let message = format!(
        "--data {shown} has the data of a server without --store: {SCRATCH}. Name another \
         directory; to move the data into the store, restore a backup of that server with \
         \"keypeg restore FILE --store URL\""
    );
    Err(Failure::new(exit::CONFIG, message))
}

/// Opens what a server of the configuration needs, the node excepted.
pub(super) fn open_for(
    config: &Config,
    settings: &ClusterSettings,
    seal: Option<&SealOptions>,
) -> Result<(Installation, ScratchDirectory), Failure> {
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    let scratch = ScratchDirectory::open(settings)?;
    let expected = Expected {
        shards: settings.shards,
        new_shards: settings.new_shards(),
        seal,
        must_exist: config.existing,
    };
    let installation = open(&settings.store, &expected)?;
    tracing::info!(
        server = %settings.server,
        address = %settings.advertise,
        shards = installation.identity.shards(),
        temporary_files = %scratch.scratch.path().display(),
        "{} the installation in {}",
        if installation.is_new { "created" } else { "found" },
        installation.store,
    );
    Ok((installation, scratch))
}
