//! The choice of the store: the only file of the server that names the embedded engine as one.
//!
//! All other files know a store by its lanes, its metrics and its start report (keypeg-store).

use crate::clock::SystemClock;
use crate::config::Config;
use crate::failure::{Failure, exit};
use crate::random::SystemRandom;
use keypeg_engine::{Engine, EngineConfig, StartError};
use keypeg_store::{OpenedStore, StartReport};
use std::path::Path;

/// Opens the store that the configuration names, with this number of lanes. O(keys).
pub fn open(config: &Config, lanes: usize) -> Result<OpenedStore, Failure> {
    let engine_config = EngineConfig {
        data: config.data.clone(),
        lanes,
        default_policy: config.default_policy.clone(),
        max_keys: config.max_keys,
        must_exist: config.existing,
    };
    let (clock, random) = (Box::new(SystemClock::new()?), Box::new(SystemRandom::new()));
    let (engine, lanes, report) = Engine::start(&engine_config, clock, random)?;
    Ok(OpenedStore { store: Box::new(engine), lanes, report })
}

/// Returns what a start would find in a data directory of the embedded engine, and changes nothing
/// in it. O(keys).
pub(crate) fn check(data: &Path) -> Result<StartReport, Failure> {
    let (clock, random) = (Box::new(SystemClock::new()?), Box::new(SystemRandom::new()));
    Ok(keypeg_engine::check_data_dir(data, clock, random)?)
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let exit = match &error {
            StartError::InUse { .. } => exit::TEMPORARY,
            StartError::NotFound { .. } => exit::NO_INPUT,
            StartError::Corrupt(_) => exit::DATA,
            StartError::Io { .. } => exit::IO,
        };
        Self::new(exit, error.to_string())
    }
}
