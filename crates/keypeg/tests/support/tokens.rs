//! A tokens' file of a test's own, made with the command that people make theirs with.

use super::TempDir;
use std::path::PathBuf;
use std::process::Command;

/// Tokens and the file that knows their hashes.
pub(crate) struct Tokens {
    dir: TempDir,
}

/// Draws a token: what is printed, and the stanza.
pub(crate) fn draw(name: &str, pool: &str, scopes: &[&str], more: &[&str]) -> (String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keypeg"));
    command.args(["token", "new", "--name", name, "--pool", pool]).env_clear();
    for scope in scopes {
        command.args(["--scope", scope]);
    }
    let output = command.args(more).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stdout).unwrap();
    let (token, stanza) = told.split_once("\n\n").unwrap_or((told.trim_end(), ""));
    (token.into(), stanza.into())
}

impl Tokens {
    pub(crate) fn new() -> Self {
        Self { dir: TempDir::new() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("tokens.toml")
    }

    /// What starts a server with them.
    pub(crate) fn args(&self) -> [String; 2] {
        ["--tokens".into(), self.path().to_str().unwrap().into()]
    }

    /// Adds one to the file, and gives it.
    pub(crate) fn add(&self, name: &str, pool: &str, scopes: &[&str], more: &[&str]) -> String {
        let path = self.path();
        let file = ["--tokens", path.to_str().unwrap()];
        draw(name, pool, scopes, &[&file, more].concat()).0
    }

    /// Adds one to the file whatever is wrong with that.
    pub(crate) fn add_unchecked(&self, name: &str, scopes: &[&str]) -> String {
        let (token, stanza) = draw(name, "*", scopes, &[]);
        std::fs::write(self.path(), self.text() + &stanza).unwrap();
        token
    }

    pub(crate) fn text(&self) -> String {
        std::fs::read_to_string(self.path()).unwrap()
    }

    /// Puts another text in its place, at once.
    pub(crate) fn replace(&self, text: &str) {
        let beside = self.dir.path().join("new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, self.path()).unwrap();
    }

    /// Takes one out by its name.
    pub(crate) fn revoke(&self, name: &str) {
        let named = format!("name = \"{name}\"");
        let text = self.text();
        let left: Vec<_> =
            text.split("[[token]]\n").filter(|stanza| !stanza.starts_with(&named)).collect();
        self.replace(&left.join("[[token]]\n"));
    }
}
