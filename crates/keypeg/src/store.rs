//! The choice of the store: the embedded engine, or one that several servers share.
//!
//! All other files know a store by its lanes, its metrics and its start report (keypeg-store).

mod exposed;
mod moving;
mod node;
mod shared;

use crate::clock::SystemClock;
use crate::config::{ClusterSettings, Config, SHARDS};
use crate::failure::{Failure, exit, is_full};
use crate::log;
use crate::options::value::StoreUrl;
use crate::random::SystemRandom;
use crate::seal::{self, SealSettings, read_seal_keys};
use exposed::refuse_exposed;
#[cfg(feature = "cli")]
pub(crate) use keypeg_engine::BackupCheck;
pub(crate) use keypeg_engine::RestoreReport;
use keypeg_engine::backup::BackupError;
use keypeg_engine::{
    Clock, Engine, EngineConfig, RestoreError, RestoreOptions, SealKeys, SealOptions, StartError,
};
use keypeg_store::{OpenedStore, StartReport};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::time::Duration;

/// Opens the store that the configuration names, with this number of lanes. O(keys).
pub fn open(config: &Config, lanes: usize) -> Result<OpenedStore, Failure> {
    if let Some(data) = &config.data {
        refuse_exposed(data)?;
    }
    keypeg_engine::set_exit_hook(log::flush_streams);
    if let Some(settings) = &config.cluster {
        return open_shared(config, settings, lanes);
    }
    let engine_config = EngineConfig {
        data: config.data.clone(),
        lanes,
        core_turns: config.has_reserve(),
        default_policy: config.default_policy.clone(),
        max_keys: config.max_keys,
        memory: config.memory.keys,
        memory_max: config.memory.total,
        cache: config.memory.database_cache(),
        must_exist: config.existing,
        seal: config.data.as_ref().and(config.seal.as_ref()).map(seal_options).transpose()?,
    };
    let (clock, random) = (Box::new(SystemClock::new()?), Box::new(SystemRandom::new()));
    let started = Engine::start(&engine_config, clock, random);
    let (engine, lanes, report) = started.map_err(|error| {
        if let StartError::NotFound { .. } = &error {
            let message = format!("{error}, or omit --existing to create it");
            return Failure::new(exit::NO_INPUT, message);
        }
        error.into()
    })?;
    if let (Some(control), Some(settings)) = (engine.seal(), &config.seal) {
        tracing::info!(key = %control.key(), "the values of keys are sealed on the disk");
        seal::watch(&control, settings.path.clone())?;
    }
    let lanes = lanes.into_iter().map(Into::into).collect();
    Ok(OpenedStore { store: Box::new(engine), lanes, report, cluster: None })
}

/// Opens a store that several servers share.
fn open_shared(
    config: &Config,
    settings: &ClusterSettings,
    lanes: usize,
) -> Result<OpenedStore, Failure> {
    let seal = config.seal.as_ref().map(seal_options).transpose()?;
    let opened = shared::open_for(config, settings, seal.as_ref())?;
    let key = opened.0.identity.seal_key();
    if let (Some(key), Some(options), Some(file)) = (key, &seal, &config.seal) {
        tracing::info!(%key, "the values of keys are sealed in the store");
        seal::watch_store(key, &options.keys, file.path.clone())?;
    }
    node::start(config, settings, opened, seal, lanes)
}

fn seal_options(settings: &SealSettings) -> Result<SealOptions, Failure> {
    let keys = read_seal_keys("--seal-key", &settings.path)?;
    Ok(SealOptions { keys, seals_existing: settings.seals_existing })
}

/// Returns what a start would find in a data directory of the embedded engine, and changes nothing
/// in it. O(keys).
pub(crate) fn check(data: &Path, seal_key: Option<&Path>) -> Result<StartReport, Failure> {
    let keys = seal_key.map(|path| read_seal_keys("--seal-key", path)).transpose()?;
    let seal = keys.map(|keys| SealOptions { keys, seals_existing: false });
    let (clock, random) = (Box::new(SystemClock::new()?), Box::new(SystemRandom::new()));
    keypeg_engine::check_data_dir(data, seal, clock, random).map_err(|error| {
        if let StartError::InUse { dir } = error {
            let message = format!(
                "{dir} is in use by another process, such as a server: stop that process, or check a \
                 copy of the directory"
            );
            return Failure::new(exit::TEMPORARY, message);
        }
        error.into()
    })
}

/// How a restored store continues.
#[derive(Clone, Debug, Default)]
pub(crate) struct RestoreTerms {
    /// How long each key is held; `None` is the longest that a lease of its pool can run.
    pub(crate) hold: Option<Duration>,
    /// The first token; `None` computes it.
    pub(crate) token_floor: Option<u64>,
    /// The seal keys of a sealed backup.
    pub(crate) seal: Option<SealKeys>,
}

impl RestoreTerms {
    fn options(self) -> Result<RestoreOptions, Failure> {
        let hold = |hold: Duration| u64::try_from(hold.as_micros()).unwrap_or(u64::MAX);
        Ok(RestoreOptions {
            hold_us: self.hold.map(hold),
            token_floor: self.token_floor,
            wall_ms: SystemClock::new()?.read().wall_us / 1_000,
            seal: self.seal,
        })
    }
}

/// Restores a backup into a data directory that is empty or does not exist. O(keys).
pub(crate) fn restore(
    backup: &mut dyn Read,
    data: &Path,
    terms: RestoreTerms,
) -> Result<RestoreReport, Failure> {
    refuse_exposed(data)?;
    let restored = keypeg_engine::restore(backup, data, terms.options()?, &mut SystemRandom::new());
    Ok(restored?)
}

/// Restores a backup into an empty store that several servers share, with this number of shards, or
/// the default. O(keys).
pub(crate) fn restore_shared(
    backup: &mut dyn Read,
    store: &StoreUrl,
    shards: Option<u16>,
    terms: RestoreTerms,
) -> Result<RestoreReport, Failure> {
    moving::restore_shared(backup, store, shards.unwrap_or(SHARDS), terms.options()?)
}

/// Checks a backup, and returns what a restore would make of it. O(keys). An empty file without a
/// name, `scratch`, gets what a restore would write, encrypted.
pub(crate) fn check_backup(
    backup: &mut dyn Read,
    scratch: File,
    terms: RestoreTerms,
) -> Result<RestoreReport, Failure> {
    Ok(keypeg_engine::check_backup_in(backup, scratch, terms.options()?, &mut SystemRandom::new())?)
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Self {
        let message = error.to_string();
        match error {
            RestoreError::Backup(BackupError::Io(_)) => Self::new(exit::IO, message),
            RestoreError::Backup(_) => Self::new(exit::DATA, message),
            RestoreError::NotEmpty(_) => Self::new(exit::CANNOT_CREATE, message),
            RestoreError::Tokens(_) => Self::new(exit::CONFIG, message),
            RestoreError::Directory(error) => error.into(),
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let exit = match &error {
            StartError::InUse { .. } => exit::TEMPORARY,
            StartError::NotFound { .. } => exit::NO_INPUT,
            StartError::Corrupt(_) => exit::DATA,
            StartError::Exposed(_) | StartError::Seal(_) | StartError::TooLarge { .. } => {
                exit::CONFIG
            }
            StartError::Io { error: cause, .. } if cause.kind() == ErrorKind::PermissionDenied => {
                let message = format!(
                    "{error}: run the command as the owner of the data directory, or give the \
                     directory and its files to this user with chown -R"
                );
                return Self::new(exit::PERMISSION, message);
            }
            StartError::Io { error: cause, .. } if is_path_error(cause.kind()) => {
                return Self::new(exit::IO, format!("{error}; check the path of --data"));
            }
            // A thread that the system does not start is no fault of a disk.
            StartError::Io { error: cause, .. }
                if !is_full(cause) && cause.kind() != ErrorKind::WouldBlock =>
            {
                let message = format!("{error}; check the disk, then run the command again");
                return Self::new(exit::IO, message);
            }
            StartError::Io { .. } => exit::IO,
        };
        Self::new(exit, error.to_string())
    }
}

/// Returns whether an error is about the path of the data directory rather than about its disk.
fn is_path_error(kind: ErrorKind) -> bool {
    [
        ErrorKind::NotFound,
        ErrorKind::NotADirectory,
        ErrorKind::AlreadyExists,
        ErrorKind::ReadOnlyFilesystem,
        ErrorKind::InvalidFilename,
    ]
    .contains(&kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_beyond_the_memory_is_a_fault_of_the_configuration_and_names_the_option() {
        let failure =
            Failure::from(StartError::TooLarge { needed: (100 << 20) + 1, given: 64 << 20 });
        assert_eq!(failure.exit, exit::CONFIG);
        let message = "the data needs about 101 MiB of memory, and the server may take 64 MiB: raise \
                       --memory above 101 MiB; no data was changed";
        assert_eq!(failure.to_string(), message);
    }
}
