//! Fuzz tests with texts that resemble ids, names and values: only the canonical form parses.
//!
//! `KEYPEG_FUZZ_RUNS` sets the number of texts of each kind, `KEYPEG_SEED` repeats a run.

use keypeg_core::{Cursor, KeyId, LeaseId, PoolName, Secret, VALUE_MAX};
use keypeg_testkit::{SeededRandom, env_number, mutate};

/// Feeds mutants of `corpus`; returns a summary with the number of accepted ones.
fn feed(kind: &str, corpus: &[&str], accepts: impl Fn(&str) -> bool) -> String {
    let runs = env_number("KEYPEG_FUZZ_RUNS").unwrap_or(50_000);
    let seed = env_number("KEYPEG_SEED").unwrap_or(1);
    let mut random = SeededRandom(seed);
    let mut below = |bound| random.index_below(bound);
    let mut accepted = 0;
    for run in 0..runs {
        let mut bytes = corpus[below(corpus.len())].as_bytes().to_vec();
        if run > 0 {
            mutate(&mut bytes, &mut below);
        }
        let text = String::from_utf8_lossy(&bytes);
        accepted += u64::from(accepts(&text));
    }
    let some = accepted > 0 && accepted < runs;
    assert!(some, "{kind}: {accepted} of {runs} accepted, KEYPEG_SEED={seed}");
    format!("{kind}: {runs} runs, {accepted} accepted, KEYPEG_SEED={seed}")
}

const ID: &str = "2ej19pm89nq3c7q0s7a70bh303";

#[test]
fn an_id_has_one_written_form() {
    let corpus = [ID, "00000000000000000000000000", "7vvvvvvvvvvvvvvvvvvvvvvvvv"];
    let summary = feed("ids", &corpus, |text| {
        let key = KeyId::parse(text).map(|id| id.to_string());
        let lease = LeaseId::parse(text).map(|id| id.to_string());
        let cursor = Cursor::parse(text).map(|id| id.to_string());
        for parsed in [&key, &lease, &cursor] {
            let same = parsed.as_deref().is_none_or(|parsed| parsed == text);
            assert!(same, "{text:?} parsed as {parsed:?}");
        }
        assert!(key == lease && key == cursor, "{text:?}");
        key.is_some()
    });
    println!("{summary}");
}

#[test]
fn a_pool_name_consists_of_few_characters() {
    let summary = feed("names", &["default", "ci-2.prod_x", "0", &"a".repeat(64)], |text| {
        let name = PoolName::parse(text);
        let characters = "abcdefghijklmnopqrstuvwxyz0123456789_.-";
        let is_plain = text.len() <= 64 && text.chars().all(|c| characters.contains(c));
        let is_valid = is_plain && text.chars().next().is_some_and(|first| !"_.-".contains(first));
        assert_eq!(name.is_some(), is_valid, "{text:?}");
        assert!(name.is_none_or(|name| name.as_str() == text), "{text:?}");
        is_valid
    });
    println!("{summary}");
}

#[test]
fn a_value_is_any_text_that_is_not_too_long() {
    let corpus = ["", "12NOPlOE6IhXch6y9A3k", "ä", &"x".repeat(VALUE_MAX - 8)];
    let summary = feed("values", &corpus, |text| {
        let value = Secret::new(text);
        assert_eq!(value.is_some(), (1..=VALUE_MAX).contains(&text.len()), "{} bytes", text.len());
        assert!(value.is_none_or(|value| value.reveal() == text));
        !text.is_empty()
    });
    println!("{summary}");
}
