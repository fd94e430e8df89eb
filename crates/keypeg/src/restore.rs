//! `keypeg restore` and the check of a backup: their options, and what they print.
//!
//! What a restore does is the store's concern. This file opens the backup and names what was found.

use crate::config::DATA;
use crate::duration::{self, HumanDuration};
use crate::failure::{Failure, exit};
use crate::number::number;
use crate::options::value::{Bounded, SHARDS_MAX, StoreUrl};
use crate::seal::read_seal_keys;
use crate::store;
use crate::store::{RestoreReport, RestoreTerms};
use clap::Args;
use keypeg_client::UnixMs;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The options of `keypeg restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// File of the backup; - is stdin
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Data directory to create: it must be empty, or not exist
    #[arg(long, env = "KEYPEG_DATA", value_name = "DIR", default_value = DATA)]
    pub data: PathBuf,
    /// URL of an empty store that several servers share, in place of a data directory
    ///
    /// As for `keypeg serve`. Temporary files are in TMPDIR, by default /var/tmp.
    #[arg(long, env = "KEYPEG_STORE", value_name = "URL", hide_env_values = true)]
    pub(crate) store: Option<StoreUrl>,
    /// Number of shards in the store, 1 to 128 [default: 16]
    #[arg(long, env = "KEYPEG_SHARDS", value_name = "N", requires = "store")]
    pub(crate) shards: Option<Bounded<1, SHARDS_MAX>>,
    /// How the restored server continues.
    #[command(flatten)]
    pub how: ContinueArgs,
}

/// How a restored server continues.
#[derive(Clone, Debug, Args)]
pub struct ContinueArgs {
    /// How long each key counts as leased from the first start on, such as 10m [default: the
    /// longest that a lease of its pool can run]
    #[arg(long, value_name = "DURATION")]
    pub hold: Option<HumanDuration<0>>,
    /// First fencing token that is granted [default: above all that the original server can have
    /// granted since the backup]
    #[arg(long, value_name = "N", value_parser = number(1..=u64::MAX))]
    pub token_floor: Option<u64>,
    /// Seal key file, if the data is sealed; a restore seals with its first key
    #[arg(long, env = "KEYPEG_SEAL_KEY", value_name = "FILE")]
    pub seal_key: Option<PathBuf>,
}

impl RestoreArgs {
    /// Restores the backup.
    pub fn run(&self) -> Result<String, Failure> {
        let mut backup = open(&self.file)?;
        if let Some(store) = &self.store {
            // The range is that of the option.
            let shards = self.shards.and_then(|shards| u16::try_from(shards.0).ok());
            let report = store::restore_shared(&mut *backup, store, shards, self.how.terms()?)?;
            let Summary { found, result } = Summary::of(&report);
            return Ok(format!(
                "restored into the store: {found}. {result}. Start servers with --store and \
                 --advertise."
            ));
        }
        let report = store::restore(&mut *backup, &self.data, self.how.terms()?)?;
        let data = self.data.display();
        let Summary { found, result } = Summary::of(&report);
        Ok(format!("restored into {data}: {found}. {result}. Start the server with --data {data}."))
    }
}

impl ContinueArgs {
    fn terms(&self) -> Result<RestoreTerms, Failure> {
        let hold = self.hold.map(|hold| Duration::from_millis(hold.ms()));
        let seal_key = self.seal_key.as_deref();
        let seal = seal_key.map(|path| read_seal_keys("--seal-key", path)).transpose()?;
        Ok(RestoreTerms { hold, token_floor: self.token_floor, seal })
    }
}

/// Checks a backup, and returns what it contains and what a restore would make of it.
pub fn check_backup(file: &Path, how: &ContinueArgs) -> Result<String, Failure> {
    let mut backup = open(file)?;
    let report = store::check_backup(&mut *backup, scratch()?, how.terms()?)?;
    let Summary { found, result } = Summary::of(&report);
    Ok(format!("{} is complete: {found}. After a restore now: {result}.", file.display()))
}

/// Creates a file without a name. Not in `/tmp`, which is memory on many systems.
fn scratch() -> Result<File, Failure> {
    let named = std::env::var_os("TMPDIR").filter(|name| !name.is_empty());
    let dir = named.map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    tempfile::tempfile_in(&dir).map_err(|error| {
        let message = format!(
            "cannot create a temporary file in {}: {error}; name a directory for it with TMPDIR",
            dir.display()
        );
        Failure::new(exit::CANNOT_CREATE, message)
    })
}

/// Opens a backup; `-` is stdin.
fn open(path: &Path) -> Result<Box<dyn Read>, Failure> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin().lock()));
    }
    let shown = path.display();
    let failed = |error: io::Error| {
        let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
        let code = if is_denied { exit::PERMISSION } else { exit::NO_INPUT };
        Failure::new(code, format!("cannot open the backup {shown}: {error}; check its name"))
    };
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        let message = format!(
            "{shown} is a directory, not a backup: \"keypeg check --data {shown}\" checks a data \
             directory"
        );
        return Err(Failure::new(exit::NO_INPUT, message));
    }
    Ok(Box::new(file))
}

/// What a report says, in two parts.
struct Summary {
    found: String,
    result: String,
}

impl Summary {
    fn of(report: &RestoreReport) -> Self {
        let RestoreReport { version, created_at_ms, pools, keys, held, .. } = report;
        let found = format!(
            "{} in {}, backed up at {} by keypeg {version}",
            Count(*keys, "key"),
            Count(*pools, "pool"),
            UnixMs(*created_at_ms),
        );
        let hold = duration::shown(Duration::from_millis(report.hold_us.div_ceil(1_000)));
        let result = format!(
            "{} count{} as leased to \"(restored)\" for up to {hold} from the first start, {} rest \
             for longer, {} stay quarantined, and the first token is {}",
            Count(*held, "key"),
            if *held == 1 { "s" } else { "" },
            report.resting,
            report.quarantined,
            report.first_token,
        );
        Self { found, result }
    }
}

/// A number and the singular noun it counts.
struct Count(u64, &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0 == 1 { "" } else { "s" };
        write!(f, "{} {}{plural}", self.0, self.1)
    }
}
