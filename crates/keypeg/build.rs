//! Gives the crate the commit, the date and the target of its build, as variables of the compiler.
//!
//! Reads no clock, so that two builds of one commit are equal. A build without git, or of an
//! unpacked archive, succeeds: what is not known is missing. `KEYPEG_BUILD_COMMIT` and
//! `SOURCE_DATE_EPOCH` name both, for builds of a package.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let given = |name: &str| {
        println!("cargo::rerun-if-env-changed={name}");
        std::env::var(name).ok().filter(|value| !value.is_empty())
    };
    let repository = Repository::of(&root);
    if let Some(repository) = &repository {
        repository.watch();
    }
    let read = |args: &[&str]| repository.as_ref().and_then(|repository| repository.git(args));
    let commit = given("KEYPEG_BUILD_COMMIT").or_else(|| read(&["rev-parse", "HEAD"]));
    let date = given("SOURCE_DATE_EPOCH").or_else(|| read(&["show", "-s", "--format=%ct", "HEAD"]));
    for (name, value) in [
        ("KEYPEG_BUILD_COMMIT", commit),
        ("KEYPEG_BUILD_EPOCH", date),
        ("KEYPEG_BUILD_TARGET", std::env::var("TARGET").ok()),
    ] {
        // An unset variable would keep the value of the environment.
        println!("cargo::rustc-env={name}={}", value.unwrap_or_default());
    }
    println!("cargo::rerun-if-changed=build.rs");
}

/// The repository of this workspace.
struct Repository {
    root: PathBuf,
}

impl Repository {
    /// Returns the repository if `root` is the top of one: an archive that is unpacked within
    /// another repository has not the commit of that one.
    fn of(root: &Path) -> Option<Self> {
        let root = root.canonicalize().ok()?;
        let found = Self { root };
        let top = found.git(&["rev-parse", "--show-toplevel"])?;
        (Path::new(&top).canonicalize().ok()? == found.root).then_some(found)
    }

    fn git(&self, args: &[&str]) -> Option<String> {
        let output = Command::new("git").arg("-C").arg(&self.root).args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    }

    /// Runs this program again after each commit and checkout: git appends to the log of HEAD.
    fn watch(&self) {
        for name in ["HEAD", "logs/HEAD"] {
            if let Some(path) = self.git(&["rev-parse", "--git-path", name]) {
                let path = self.root.join(path);
                if path.exists() {
                    println!("cargo::rerun-if-changed={}", path.display());
                }
            }
        }
    }
}
