//! A token file for one test, written with `keypeg token new` as an operator would.

use super::{TempDir, binary};
use std::path::PathBuf;
use std::process::Command;

/// Tokens and the file that contains their hashes.
pub(crate) struct Tokens {
    dir: TempDir,
}

/// Creates a token; returns it and its stanza for the file, empty if the command wrote that itself.
pub(crate) fn create(name: &str, pool: &str, scopes: &[&str], more: &[&str]) -> (String, String) {
    let mut command = Command::new(binary());
    command.args(["token", "new", "--name", name, "--pool", pool]).env_clear();
    for scope in scopes {
        command.args(["--scope", scope]);
    }
    let output = command.args(more).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let (token, stanza) = stdout.split_once("\n\n").unwrap_or((stdout.trim_end(), ""));
    (token.into(), stanza.into())
}

impl Tokens {
    pub(crate) fn new() -> Self {
        Self { dir: TempDir::new() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("tokens.toml")
    }

    /// Returns the arguments that start a server with these tokens.
    pub(crate) fn args(&self) -> [String; 2] {
        ["--tokens".into(), self.path().to_str().unwrap().into()]
    }

    /// Creates a token in the file and returns it.
    pub(crate) fn add(&self, name: &str, pool: &str, scopes: &[&str], more: &[&str]) -> String {
        let path = self.path();
        let file = ["--tokens", path.to_str().unwrap()];
        create(name, pool, scopes, &[&file, more].concat()).0
    }

    /// Appends a token to the file without the command's checks of the file and its directory.
    pub(crate) fn add_unchecked(&self, name: &str, scopes: &[&str]) -> String {
        let (token, stanza) = create(name, "*", scopes, &[]);
        std::fs::write(self.path(), self.text() + &stanza).unwrap();
        token
    }

    pub(crate) fn text(&self) -> String {
        std::fs::read_to_string(self.path()).unwrap()
    }

    /// Replaces the file's text atomically.
    pub(crate) fn replace(&self, text: &str) {
        let temporary = self.dir.path().join("new");
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, self.path()).unwrap();
    }

    /// Removes the token with this name from the file.
    pub(crate) fn revoke(&self, name: &str) {
        let name_line = format!("name = \"{name}\"");
        let text = self.text();
        let left: Vec<_> =
            text.split("[[token]]\n").filter(|stanza| !stanza.starts_with(&name_line)).collect();
        self.replace(&left.join("[[token]]\n"));
    }
}
