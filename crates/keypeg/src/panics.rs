//! What a panic tells: where it was, and no words that were made at run time, since those can hold
//! what was being worked on: a key's value, a token.
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
    let words = info.payload().downcast_ref::<&'static str>();
    let words = words.copied().unwrap_or("what it was about is not told: it may hold a secret");
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::catch_unwind;
    use std::process::Command;

    const CHILD: &str = "KEYPEG_TEST_PANICS";
    const SECRET: &str = "sécret-of-a-key";

    /// What the standard library says of a cut through a character is the whole text.
    fn panics() {
        let secret = std::hint::black_box(SECRET);
        let _ = catch_unwind(|| secret[..2].len());
        let refused: Result<(), &str> = std::hint::black_box(Err(secret));
        let _ = catch_unwind(|| refused.expect("invariant: none"));
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
        assert_eq!(said.matches("panicked at ").count(), 5, "{said}");
        assert!(said.contains("src/panics.rs:") && said.contains(": words of the program\n"));
        assert!(said.contains("panics::tests"), "a backtrace, where it is asked for: {said}");
        for part in [SECRET, "cret-of-a-key"] {
            assert!(!said.contains(part), "{said}");
        }
    }
}
