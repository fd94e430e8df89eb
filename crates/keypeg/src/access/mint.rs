//! `keypeg token new`: draws a token, shows it once, and keeps its hash alone.

use super::tokens::{self, Bound, Hash, PREFIX, TOKEN_LEN};
use crate::SystemChance;
use crate::failure::{Failure, exit};
use clap::{Args, Subcommand};
use keypeg_engine::RandomSource;
use rustix::fs::{Mode, OFlags, fsync, open};
use rustix::io::Errno;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What can be done with access tokens.
#[derive(Debug, Subcommand)]
pub enum Mint {
    /// Makes a token: prints it, and the stanza for the tokens' file, which holds only its hash
    ///
    /// The token is shown this once.
    New(New),
}

/// What the token allows.
#[derive(Debug, Args)]
pub struct New {
    /// Who will have it: 1 to 64 of A-Z a-z 0-9 - . _
    #[arg(long, value_name = "NAME")]
    name: String,
    /// A pool it is for, or the beginning of pools' names and a *; may be said again
    #[arg(long = "pool", value_name = "POOL", required = true)]
    pools: Vec<String>,
    /// What it allows: read, lend, keys, force, reveal, metrics or admin; may be said again
    #[arg(long = "scope", value_name = "SCOPE", required = true)]
    scopes: Vec<String>,
    /// When it ends, such as 2027-01-01T00:00:00Z [default: never]
    #[arg(long, value_name = "INSTANT")]
    expires_at: Option<String>,
    /// How many requests a second it may make [default: any]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    requests_per_second: Option<u32>,
    /// How many leases it may have at once, those it waits for among them [default: any]
    #[arg(long, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(tokens::LEASES_MAX)))]
    max_leases: Option<u32>,
    /// Adds the stanza to this file, made where it is not there, and prints the token alone
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
}

impl Mint {
    /// Does it, and tells on stdout.
    pub fn run(&self) -> Result<(), Failure> {
        let Self::New(new) = self;
        let mut bytes = [0; TOKEN_LEN];
        SystemChance::new().fill(&mut bytes);
        let mut token = PREFIX.to_owned();
        for byte in bytes {
            write!(token, "{byte:02x}").expect("invariant: writing to a string never fails");
        }
        let stanza = new.stanza(&token)?;
        let told = match &new.tokens {
            None => format!("{token}\n\n{stanza}"),
            Some(path) => {
                add(path, &stanza)?;
                format!("{token}\n")
            }
        };
        let mut out = std::io::stdout().lock();
        let written = out.write_all(told.as_bytes()).and_then(|()| out.flush());
        written.map_err(|error| Failure::new(exit::IO, format!("writing to stdout: {error}")))
    }
}

impl New {
    fn stanza(&self, token: &str) -> Result<String, Failure> {
        let wrong = |message| Failure::new(exit::USAGE, message);
        tokens::check_name(&self.name).map_err(wrong)?;
        for pool in &self.pools {
            Bound::parse(pool).map_err(wrong)?;
        }
        for scope in &self.scopes {
            tokens::parse_scope(scope).map_err(wrong)?;
        }
        if let Some(end) = &self.expires_at {
            tokens::parse_instant(end).map_err(wrong)?;
        }
        // None of these has a sign that TOML would have escaped.
        let list = |all: &[String]| {
            let all: Vec<_> = all.iter().map(|each| format!("\"{each}\"")).collect();
            all.join(", ")
        };
        let mut stanza = format!(
            "[[token]]\nname = \"{}\"\nsha256 = \"{}\"\npools = [{}]\nscopes = [{}]\n",
            self.name,
            Hash::of(token.as_bytes()),
            list(&self.pools),
            list(&self.scopes),
        );
        if let Some(end) = &self.expires_at {
            stanza.extend(["expires_at = \"", end, "\"\n"]);
        }
        if let Some(per_second) = self.requests_per_second {
            stanza.extend(["requests_per_second = ", &per_second.to_string(), "\n"]);
        }
        if let Some(max) = self.max_leases {
            stanza.extend(["max_leases = ", &max.to_string(), "\n"]);
        }
        Ok(stanza)
    }
}

/// Adds to the file what leaves it whole: a name that is there already is refused.
fn add(path: &Path, stanza: &str) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(exit::CANNOT_CREATE, format!("adding to {}: {error}", path.display()))
    };
    let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let made = open(path, flags | OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR);
    let is_new = made.is_ok();
    let file = match made {
        Err(Errno::EXIST) => open(path, flags, Mode::empty()),
        made => made,
    };
    let file = file.map_err(|error| failed(&error))?;
    let before = super::read(path).map_err(|unread| {
        if is_new {
            // Not left behind in a directory where it must not be.
            let _ = std::fs::remove_file(path);
        }
        unread.failure(path)
    });
    let before = before?.text;
    let parted = if before.is_empty() { stanza.to_owned() } else { format!("\n{stanza}") };
    if let Err(wrong) = tokens::Tokens::parse(&format!("{before}{parted}"), None) {
        return Err(Failure::new(exit::CONFIG, format!("{}: {wrong}", path.display())));
    }
    // In one write, so that a server that watches the file sees all of it or nothing.
    let mut file = File::from(file);
    file.write_all(parted.as_bytes()).map_err(|error| failed(&error))?;
    fsync(&file).map_err(|error| failed(&error))
}
