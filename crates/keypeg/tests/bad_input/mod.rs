//! The catalogue of bad input: TOML files of cases with the expected result of each. This file
//! reads them; the modules run them against the real binary.
//!
//! For every request, command line and damaged file: the result is the one in the case, no state
//! changes, nothing panics, and the server continues to serve.

mod http;
mod refusals;
mod start;

pub(crate) use refusals::assert_explained;

use crate::support::TempDir;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// A file of cases.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cases<T> {
    case: Vec<T>,
}

/// Bytes of a connection or of a command-line argument.
#[derive(Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Piece {
    Text(String),
    Repeat { repeat: String, times: usize },
    Hex { hex: String },
}

impl Piece {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Text(text) => text.clone().into_bytes(),
            Self::Repeat { repeat, times } => repeat.repeat(*times).into_bytes(),
            Self::Hex { hex } => unhex(hex),
        }
    }
}

fn unhex(hex: &str) -> Vec<u8> {
    let pairs = (0..hex.len()).step_by(2).map(|index| &hex[index..index + 2]);
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

/// Reads a file of this catalogue after replacing each `{name}` by its value.
fn read<T: DeserializeOwned>(file: &str, names: &[(&str, String)]) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad_input").join(file);
    let mut text = std::fs::read_to_string(path).unwrap();
    for (name, value) in names {
        text = text.replace(&format!("{{{name}}}"), value);
    }
    toml::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn cases<T: DeserializeOwned>(file: &str, names: &[(&str, String)]) -> Vec<T> {
    let Cases { case } = read(file, names);
    case
}

/// Runs every case, also those after one that fails; fails at the end with the names of all failed
/// ones.
#[track_caller]
fn each<T>(cases: &[T], name: impl Fn(&T) -> String, mut run: impl FnMut(&T)) {
    let mut failed = Vec::new();
    for case in cases {
        if catch_unwind(AssertUnwindSafe(|| run(case))).is_err() {
            failed.push(name(case));
        }
    }
    assert!(failed.is_empty(), "{} of {} cases: {failed:#?}", failed.len(), cases.len());
}

/// Returns placeholders, with their values, for text that is too long for a case file.
fn long_values() -> Vec<(&'static str, String)> {
    let mut names: Vec<(&'static str, String)> =
        [("32", 32), ("33", 33), ("128", 128), ("129", 129), ("256", 256), ("257", 257)]
            .into_iter()
            .chain([("4097", 4097), ("long", 10_000)])
            .map(|(name, times)| (name, "x".repeat(times)))
            .collect();
    let values: Vec<String> = (0..10_001).map(|number| format!("\"v{number}\"")).collect();
    names.extend([
        ("10001 values", values.join(",")),
        ("deep", "[".repeat(100_000)),
        ("dots", "a.".repeat(100_000)),
        ("2 MiB of comment", format!("# {}", "x".repeat(2 << 20))),
    ]);
    names
}

/// A server log that must contain no panic, no error and none of the given secrets.
struct Log {
    path: PathBuf,
    _dir: TempDir,
}

impl Log {
    fn new() -> Self {
        let dir = TempDir::new();
        Self { path: dir.path().join("log"), _dir: dir }
    }

    fn path(&self) -> &Path {
        &self.path
    }

    #[track_caller]
    fn assert_clean(&self, secrets: &[&str]) {
        let log = std::fs::read_to_string(&self.path).unwrap();
        for word in ["panicked", "RUST_BACKTRACE", " ERROR "].iter().chain(secrets) {
            assert!(!log.contains(word), "{word} in the log: {log}");
        }
    }
}
