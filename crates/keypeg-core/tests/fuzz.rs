//! Texts that are nearly ids, names and values: read only where they are written the one way.
//!
//! `KEYPEG_FUZZ_RUNS` sets the texts of each kind, `KEYPEG_SEED` repeats a run.

use keypeg_core::{Cursor, KeyId, LeaseId, PoolName, Secret, VALUE_MAX};
use keypeg_testkit::{SeededRandom, env_number, mutate};

/// Feeds mutants of `corpus`; tells how many were taken.
fn feed(kind: &str, corpus: &[&str], take: impl Fn(&str) -> bool) -> String {
    let runs = env_number("KEYPEG_FUZZ_RUNS").unwrap_or(50_000);
    let seed = env_number("KEYPEG_SEED").unwrap_or(1);
    let mut random = SeededRandom(seed);
    let mut below = |bound| random.index_below(bound);
    let mut taken = 0;
    for run in 0..runs {
        let mut bytes = corpus[below(corpus.len())].as_bytes().to_vec();
        if run > 0 {
            mutate(&mut bytes, &mut below);
        }
        let text = String::from_utf8_lossy(&bytes);
        taken += u64::from(take(&text));
    }
    assert!(taken > 0 && taken < runs, "{kind}: {taken} of {runs} taken, KEYPEG_SEED={seed}");
    format!("{kind}: {runs} runs, {taken} taken, KEYPEG_SEED={seed}")
}

const ID: &str = "2ej19pm89nq3c7q0s7a70bh303";

#[test]
fn an_id_has_one_written_form() {
    let corpus = [ID, "00000000000000000000000000", "7vvvvvvvvvvvvvvvvvvvvvvvvv"];
    let told = feed("ids", &corpus, |text| {
        let key = KeyId::parse(text).map(|id| id.to_string());
        let lease = LeaseId::parse(text).map(|id| id.to_string());
        let cursor = Cursor::parse(text).map(|id| id.to_string());
        for read in [&key, &lease, &cursor] {
            assert!(read.as_deref().is_none_or(|read| read == text), "{text:?} read as {read:?}");
        }
        assert!(key == lease && key == cursor, "{text:?}");
        key.is_some()
    });
    println!("{told}");
}

#[test]
fn a_pools_name_is_of_few_signs() {
    let told = feed("names", &["default", "ci-2.prod_x", "0", &"a".repeat(64)], |text| {
        let name = PoolName::parse(text);
        let signs = "abcdefghijklmnopqrstuvwxyz0123456789_.-";
        let plain = text.len() <= 64 && text.chars().all(|c| signs.contains(c));
        let right = plain && text.chars().next().is_some_and(|first| !"_.-".contains(first));
        assert_eq!(name.is_some(), right, "{text:?}");
        assert!(name.is_none_or(|name| name.as_str() == text), "{text:?}");
        right
    });
    println!("{told}");
}

#[test]
fn a_value_is_anything_that_is_not_too_long() {
    let corpus = ["", "12NOPlOE6IhXch6y9A3k", "ä", &"x".repeat(VALUE_MAX - 8)];
    let told = feed("values", &corpus, |text| {
        let value = Secret::new(text);
        assert_eq!(value.is_some(), (1..=VALUE_MAX).contains(&text.len()), "{} bytes", text.len());
        assert!(value.is_none_or(|value| value.reveal() == text));
        !text.is_empty()
    });
    println!("{told}");
}
