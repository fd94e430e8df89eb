//! The panic message: the location, and the text unless it was formatted at run time.
//!
//! Of a formatted text only the invariant that it names is printed, since the rest can contain the
//! data in use: a key's value, a token. Knows nothing of what a panic ends.

use crate::log;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};

/// Installs a panic hook that prints such messages to stderr, for the whole process.
pub fn install() {
    panic::set_hook(Box::new(|info| {
        let mut text = Vec::new();
        let _ = report(info, &mut text);
        log::report_text(text);
    }));
}

/// Prints a text that is a literal in the program. `RUST_BACKTRACE` is honoured: a backtrace names
/// functions and lines, not their data.
fn report(info: &PanicHookInfo<'_>, out: &mut impl Write) -> io::Result<()> {
    let thread = std::thread::current();
    let text = match info.payload().downcast_ref::<&'static str>() {
        Some(text) => Some(*text),
        None => info.payload().downcast_ref::<String>().and_then(|text| invariant(text)),
    };
    let text = text.unwrap_or("the message is withheld: it may contain a secret");
    write!(out, "keypeg: thread {} panicked", thread.name().unwrap_or("without a name"))?;
    if let Some(location) = info.location() {
        write!(out, " at {location}")?;
    }
    writeln!(out, ": {text}")?;
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        writeln!(out, "{backtrace}")?;
    }
    Ok(())
}

/// Returns the invariant that a formatted text names: `expect` and `unreachable!` copy it from the
/// program. `expect` adds the error after a colon, which is cut off.
fn invariant(text: &str) -> Option<&str> {
    let text = text.strip_prefix("internal error: entered unreachable code: ").unwrap_or(text);
    let after_prefix = text.strip_prefix("invariant: ")?;
    let end = after_prefix.find(": ").unwrap_or(after_prefix.len());
    text.get(..text.len() - after_prefix.len() + end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::catch_unwind;
    use std::process::Command;

    const CHILD: &str = "KEYPEG_TEST_PANICS";
    const SECRET: &str = "sécret-of-a-key";
    const FORMATTED: &str = "a case that cannot occur";

    /// For a slice that cuts through a character, the standard library's message has the whole
    /// text.
    fn panic_in_every_way() {
        let secret = std::hint::black_box(SECRET);
        let _ = catch_unwind(|| secret[..2].len());
        let refused: Result<(), &str> = std::hint::black_box(Err(secret));
        let _ = catch_unwind(|| refused.expect("invariant: an error has no secret"));
        let _ = catch_unwind(|| secret.get(99..).expect("invariant: an option has a value"));
        let _ = catch_unwind(|| unreachable!("invariant: {FORMATTED}"));
        let _ = catch_unwind(|| panic!("about {secret}"));
        let _ = catch_unwind(|| panic::panic_any(secret.to_owned()));
        let _ = catch_unwind(|| panic!("a literal of the program"));
    }

    /// Runs in a child process: a panic hook applies to the whole process.
    #[test]
    fn a_panic_message_has_the_location_and_no_secret() {
        if std::env::var_os(CHILD).is_some() {
            install();
            return panic_in_every_way();
        }
        let name = "panics::tests::a_panic_message_has_the_location_and_no_secret";
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", name, "--nocapture"]).env(CHILD, "1").env("RUST_BACKTRACE", "1");
        let output = child.output().unwrap();
        assert!(output.status.success());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr.matches("panicked at ").count(), 7, "{stderr}");
        for text in ["an error has no secret", "an option has a value", FORMATTED] {
            assert!(stderr.contains(&format!(": invariant: {text}\n")), "{text}: {stderr}");
        }
        assert!(
            stderr.contains("src/panics.rs:") && stderr.contains(": a literal of the program\n")
        );
        assert!(stderr.contains("panics::tests"), "a backtrace, if requested: {stderr}");
        for part in [SECRET, "cret-of-a-key"] {
            assert!(!stderr.contains(part), "{stderr}");
        }
    }
}
