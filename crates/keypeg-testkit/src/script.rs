//! The language of scripts: tables of calls and their answers, with ticks of the clock between.
//!
//! A line is `call -> answer`. An answer is a first word and facts; a line states the first word and
//! any of the facts. A line without an answer must not be refused. `#` begins a comment. The scripts
//! themselves are in `keypeg-testkit/scripts`: the pools run them (`keypeg-core/tests/support/world.rs`
//! documents the calls), and every store runs them on requests (`conformance.rs`).

pub mod words;

/// A line of a script.
#[derive(Debug)]
pub struct Line<'a> {
    /// Its number in the script.
    pub number: usize,
    /// The whole line, for messages.
    pub text: &'a str,
    /// The first word of the call.
    pub verb: &'a str,
    /// The other words of the call.
    pub args: Vec<&'a str>,
    /// The words of the expected answer.
    pub expected: Vec<&'a str>,
}

/// Returns the lines of a script that are not empty.
pub fn lines(script: &str) -> impl Iterator<Item = Line<'_>> {
    script.lines().zip(1..).filter_map(|(line, number)| {
        let text = line.split('#').next().unwrap_or_default().trim();
        let (call, expected) = text.split_once("->").unwrap_or((text, ""));
        let mut words = call.split_whitespace();
        let verb = words.next()?;
        let expected = expected.split_whitespace().collect();
        Some(Line { number, text, verb, args: words.collect(), expected })
    })
}

impl Line<'_> {
    /// Returns whether an answer fits: its first word and each fact of the line that `is_checked`.
    pub fn accepts(
        &self,
        answer: &Result<String, String>,
        is_checked: impl Fn(&str) -> bool,
    ) -> bool {
        let text = answer.as_ref().unwrap_or_else(|refusal| refusal);
        let actual: Vec<&str> = text.split_whitespace().collect();
        match &self.expected[..] {
            [] => answer.is_ok(),
            [first, facts @ ..] => {
                let mut checked = facts.iter().filter(|fact| is_checked(fact));
                actual.first() == Some(first) && checked.all(|fact| actual.contains(fact))
            }
        }
    }
}
