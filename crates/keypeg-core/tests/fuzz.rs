//! Fuzz tests with texts that resemble ids, names and values: only the canonical form parses.
//!
//! `KEYPEG_FUZZ_RUNS` sets the number of texts of each kind, `KEYPEG_SEED` repeats a run.

#[path = "support/mutate.rs"]
mod mutate;

use keypeg_core::{Cursor, KeyId, LeaseId, PoolName, Secret, VALUE_MAX};
use mutate::mutate;

/// A small seeded generator (splitmix64).
fn seeded_random(mut state: u64) -> impl FnMut(usize) -> usize {
    move |bound| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).expect("below the bound")
    }
}

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

/// Feeds mutants of `corpus`; returns a summary with the number of accepted ones.
fn feed(kind: &str, corpus: &[&str], accepts: impl Fn(&str) -> bool) -> String {
    let (runs, seed) = (variable("KEYPEG_FUZZ_RUNS", 50_000), variable("KEYPEG_SEED", 1));
    let mut below = seeded_random(seed);
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
