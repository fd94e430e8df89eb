//! What a panic tells: where it was, and of words that were made at run time no more than the invariant
//! they name, since the rest can hold what was being worked on: a key's value, a token.
//!
//! Knows nothing of what a panic ends.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};

/// Has every panic of this process told so, on stderr.
pub fn install() {
    panic::set_hook(Box::new(|info| {
        // Nobody left to tell when stderr is closed.
        let _ = tell(info, &mut io::stderr().lock());
    }));
}

/// Words that stand in the program are told. `RUST_BACKTRACE` is heeded: a backtrace names functions
/// and lines, not what was in them.
fn tell(info: &PanicHookInfo<'_>, out: &mut impl Write) -> io::Result<()> {
    let thread = std::thread::current();
    let words = match info.payload().downcast_ref::<&'static str>() {
        Some(words) => Some(*words),
        None => info.payload().downcast_ref::<String>().and_then(|made| invariant(made)),
    };
    let words = words.unwrap_or("what it was about is not told: it may hold a secret");
    write!(out, "keypeg: thread {} panicked", thread.name().unwrap_or("without a name"))?;
    if let Some(at) = info.location() {
        write!(out, " at {at}")?;
    }
    writeln!(out, ": {words}")?;
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        writeln!(out, "{backtrace}")?;
    }
    out.flush()
}

/// The invariant that words made at run time name, which stands in the program: `expect` and
/// `unreachable!` write it out again. What `expect` says of an error comes behind a colon.
fn invariant(made: &str) -> Option<&str> {
    let said = made.strip_prefix("internal error: entered unreachable code: ").unwrap_or(made);
    let named = said.strip_prefix("invariant: ")?;
    let end = named.find(": ").unwrap_or(named.len());
    said.get(..said.len() - named.len() + end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::catch_unwind;
    use std::process::Command;

    const CHILD: &str = "KEYPEG_TEST_PANICS";
    const SECRET: &str = "sécret-of-a-key";
    const WORDS: &str = "what cannot be";

    /// What the standard library says of a cut through a character is the whole text.
    fn panics() {
        let secret = std::hint::black_box(SECRET);
        let _ = catch_unwind(|| secret[..2].len());
        let refused: Result<(), &str> = std::hint::black_box(Err(secret));
        let _ = catch_unwind(|| refused.expect("invariant: an error has no secret"));
        let _ = catch_unwind(|| secret.get(99..).expect("invariant: an option is told"));
        let _ = catch_unwind(|| unreachable!("invariant: {WORDS}"));
        let _ = catch_unwind(|| panic!("of {secret}"));
        let _ = catch_unwind(|| panic::panic_any(secret.to_owned()));
        let _ = catch_unwind(|| panic!("words of the program"));
    }

    /// In a process of its own: a hook is the whole process's.
    #[test]
    fn a_panic_tells_where_and_no_secret() {
        if std::env::var_os(CHILD).is_some() {
            install();
            return panics();
        }
        let name = "panics::tests::a_panic_tells_where_and_no_secret";
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", name, "--nocapture"]).env(CHILD, "1").env("RUST_BACKTRACE", "1");
        let output = child.output().unwrap();
        assert!(output.status.success());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.matches("panicked at ").count(), 7, "{said}");
        for words in ["an error has no secret", "an option is told", WORDS] {
            assert!(said.contains(&format!(": invariant: {words}\n")), "{words}: {said}");
        }
        assert!(said.contains("src/panics.rs:") && said.contains(": words of the program\n"));
        assert!(said.contains("panics::tests"), "a backtrace, where it is asked for: {said}");
        for part in [SECRET, "cret-of-a-key"] {
            assert!(!said.contains(part), "{said}");
        }
    }
}
