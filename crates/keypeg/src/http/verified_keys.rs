//! What one core keeps of the leased keys that it has verified: the next verification of such a key
//! is answered without a call to the engine.
//!
//! Knows neither requests nor how an answer is written, and keeps no value: a keyed hash stands for pool and
//! value. Invariant: an answer is used only while the version that was read before its question is
//! current, and before its lease or its key can end by time. So it is the answer that the engine
//! would give, and no later request sees a lease whose end was answered.

use crate::clock;
use crate::memory::VERIFIED_KEYS_MAX;
use keypeg_client::Verification;
use keypeg_core::{KeyNumber, KeyView, PoolName, RandomSource, Secret};
use keypeg_store::{KeyVersion, KeyVersions};
use siphasher::sip128::{Hasher128 as _, SipHasher24};
use std::fmt;
use std::hash::Hasher as _;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The places of a set: a key can be kept in each of them.
const WAYS: usize = 4;
/// The most bytes of an answer that is kept, in both forms.
const ANSWER_MAX: usize = 1 << 10;
/// The most bytes that a place takes: an answer, its texts once more as the fields of a verification,
/// and what the structures and their allocations take.
const PLACE_BYTES: usize = 2 * ANSWER_MAX + 512;
/// The most sets of a core.
const SETS_MAX: usize = VERIFIED_KEYS_MAX / (WAYS * PLACE_BYTES);
const _: () = assert!(size_of::<Option<Place>>() + size_of::<ActiveKey>() + 128 <= 512);
/// How long an answer is kept at most, in microseconds. After it the engine is asked again, so that
/// a gateway notices soon when the engine stands still.
const KEEP_MAX_US: u64 = 2_000_000;

/// The leased keys that one core has verified.
pub(crate) struct VerifiedKeys {
    /// `None` if each verification has to ask the store.
    versions: Option<Arc<KeyVersions>>,
    hasher: SipHasher24,
    sets: usize,
    places: Mutex<Places>,
}

/// A leased key as the answers to verifications show it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ActiveKey {
    pub(crate) verification: Verification,
    /// The verification as JSON.
    pub(crate) json: Box<[u8]>,
    /// The header lines of the answer to a gateway.
    pub(crate) lines: Box<[u8]>,
}

/// A verification that the store has to answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    digest: u128,
    /// The version of the key, if this core knows its number.
    version: Option<KeyVersion>,
    asked_us: u64,
}

/// The places of all sets, one set after the other. Allocated with the first key.
#[derive(Default)]
struct Places {
    all: Vec<Option<Place>>,
    /// The way that is used next if a set has no free place.
    next_way: usize,
}

struct Place {
    digest: u128,
    number: KeyNumber,
    answer: Option<KeptAnswer>,
}

struct KeptAnswer {
    key: Arc<ActiveKey>,
    version: KeyVersion,
    until_us: u64,
}

impl VerifiedKeys {
    /// Keeps no answer without `versions`, and answers of at most `bytes`.
    pub(super) fn new(
        versions: Option<Arc<KeyVersions>>,
        bytes: u64,
        random: &mut dyn RandomSource,
    ) -> Self {
        let mut key = [0; 16];
        random.fill(&mut key);
        let hasher = SipHasher24::new_with_key(&key);
        let sets = usize::try_from(bytes).unwrap_or(usize::MAX) / (WAYS * PLACE_BYTES);
        Self { versions, hasher, sets: sets.min(SETS_MAX), places: Mutex::default() }
    }

    /// Returns the kept answer for a value, or the question for the store; `Err(None)` if the answer
    /// to it is not kept.
    pub(super) fn find(
        &self,
        pool: &PoolName,
        value: &Secret,
    ) -> Result<Arc<ActiveKey>, Option<Question>> {
        if self.versions.is_none() || self.sets == 0 {
            return Err(None);
        }
        self.find_at(pool, value, clock::boot_us()).map_err(Some)
    }

    fn find_at(
        &self,
        pool: &PoolName,
        value: &Secret,
        now_us: u64,
    ) -> Result<Arc<ActiveKey>, Question> {
        let digest = self.digest(pool, value);
        let mut question = Question { digest, version: None, asked_us: now_us };
        let Some(versions) = &self.versions else { return Err(question) };
        let places = self.places();
        let Some(place) = places.find(self.range(digest), digest) else { return Err(question) };
        if let Some(answer) = &place.answer
            && now_us < answer.until_us
            && versions.is_current(answer.version)
        {
            return Ok(Arc::clone(&answer.key));
        }
        question.version = Some(versions.of(place.number));
        Err(question)
    }

    /// Keeps the store's answer to a question, as `write` writes it. The first answer about a key shows
    /// its number, so that the next question has a version.
    pub(super) fn keep(
        &self,
        question: Question,
        view: &KeyView,
        write: impl FnOnce() -> ActiveKey,
    ) {
        let Some(stands_for_ms) = view.stands_for_ms() else { return };
        let number = view.number;
        let answer =
            question.version.filter(|version| version.key() == number).and_then(|version| {
                let kept_for_us = stands_for_ms.saturating_mul(1_000).min(KEEP_MAX_US);
                let until_us = question.asked_us.saturating_add(kept_for_us);
                let key = Arc::new(write());
                let is_small = key.json.len() + key.lines.len() <= ANSWER_MAX;
                is_small.then_some(KeptAnswer { key, version, until_us })
            });
        let mut places = self.places();
        if places.all.is_empty() {
            places.all.resize_with(self.sets * WAYS, || None);
        }
        let range = self.range(question.digest);
        places.put(range, Place { digest: question.digest, number, answer });
    }

    /// Returns the places of the set that a digest belongs to.
    #[expect(clippy::cast_possible_truncation, reason = "a part of a hash, then a number of a set")]
    fn range(&self, digest: u128) -> Range<usize> {
        let set = (digest as u64 % self.sets as u64) as usize;
        set * WAYS..(set + 1) * WAYS
    }

    fn digest(&self, pool: &PoolName, value: &Secret) -> u128 {
        let mut hasher = self.hasher;
        hasher.write(pool.as_str().as_bytes());
        // No name has this byte.
        hasher.write_u8(0);
        hasher.write(value.bytes());
        hasher.finish128().as_u128()
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        // A place is replaced as a whole: a poisoned lock is usable.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for VerifiedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedKeys").finish_non_exhaustive()
    }
}

impl Places {
    fn find(&self, range: Range<usize>, digest: u128) -> Option<&Place> {
        let set = self.all.get(range)?;
        set.iter().flatten().find(|place| place.digest == digest)
    }

    fn put(&mut self, range: Range<usize>, new: Place) {
        let set = &mut self.all[range];
        let same = set
            .iter()
            .position(|place| place.as_ref().is_some_and(|place| place.digest == new.digest));
        let way = same.or_else(|| set.iter().position(Option::is_none)).unwrap_or_else(|| {
            self.next_way = (self.next_way + 1) % WAYS;
            self.next_way
        });
        set[way] = Some(new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keypeg_core::{ChangedViews, KeyId, KeyState, LeaseId, LeaseView};
    use keypeg_testkit::SeededRandom;

    const SECOND_US: u64 = 1_000_000;

    fn view(number: u64, lease_ms: u64) -> KeyView {
        let key_id = KeyId::parse(&"1".repeat(26)).unwrap();
        let lease = LeaseView {
            id: LeaseId::parse(&"1".repeat(26)).unwrap(),
            key_id,
            token: number,
            holder: Some("job".into()),
            label: None,
            granted_at_ms: 1,
            expires_at_ms: 1_000_000 + lease_ms,
            expires_in_ms: lease_ms,
            key_expires_at_ms: None,
        };
        KeyView {
            id: key_id,
            number: KeyNumber(number),
            state: KeyState::Leased,
            label: None,
            created_at_ms: 0,
            expires_at_ms: None,
            rests_until_ms: None,
            draining: false,
            reason: None,
            keepalive: true,
            lease: Some(lease),
        }
    }

    fn written(view: &KeyView) -> ActiveKey {
        let json = format!("{:?} {:?}", view.lease, view.label).into_bytes();
        ActiveKey {
            verification: Verification::default(),
            json: json.into(),
            lines: Box::default(),
        }
    }

    struct World {
        keys: VerifiedKeys,
        versions: Arc<KeyVersions>,
        pool: PoolName,
    }

    impl World {
        fn new() -> Self {
            Self::of(VERIFIED_KEYS_MAX as u64)
        }

        fn of(bytes: u64) -> Self {
            let versions = Arc::<KeyVersions>::default();
            let keys = VerifiedKeys::new(Some(Arc::clone(&versions)), bytes, &mut SeededRandom(7));
            Self { keys, versions, pool: PoolName::parse("ci").unwrap() }
        }

        /// Returns whether an answer is kept; if not, the store gives this one.
        fn verify(&self, value: &str, now_us: u64, answer: &KeyView) -> bool {
            let value = Secret::new(value).unwrap();
            match self.keys.find_at(&self.pool, &value, now_us) {
                Ok(key) => {
                    assert_eq!(*key, written(answer));
                    true
                }
                Err(question) => {
                    self.keys.keep(question, answer, || written(answer));
                    false
                }
            }
        }
    }

    #[test]
    fn the_third_question_about_a_leased_key_needs_no_call() {
        let (world, key) = (World::new(), view(5, 60_000));
        assert!(!world.verify("a", 0, &key), "its number is not known");
        assert!(!world.verify("a", 1, &key), "its version is known now");
        assert!(world.verify("a", 2, &key) && world.verify("a", 3, &key));
        assert!(!world.verify("b", 4, &view(6, 60_000)));
        let elsewhere = PoolName::parse("other").unwrap();
        let value = Secret::new("a").unwrap();
        world.keys.find_at(&elsewhere, &value, 5).unwrap_err();
    }

    #[test]
    fn an_answer_is_kept_until_its_lease_or_its_key_can_end_and_for_two_seconds_at_most() {
        for (lease_ms, key_ms, kept_us) in [
            (60_000, None, KEEP_MAX_US),
            (1_500, None, 1_500_000),
            (60_000, Some(700), 699_000),
            (0, None, 0),
            (60_000, Some(0), 0),
        ] {
            let world = World::new();
            let mut key = view(5, lease_ms);
            key.expires_at_ms = key_ms.map(|ms| 1_000_000 + ms);
            let asked_us = 3 * SECOND_US;
            for _ in 0..2 {
                assert!(!world.verify("a", asked_us, &key));
            }
            let found = |at_us| world.keys.find_at(&world.pool, &Secret::new("a").unwrap(), at_us);
            if let Some(last_us) = kept_us.checked_sub(1) {
                found(asked_us + last_us).unwrap();
            }
            found(asked_us + kept_us).unwrap_err();
        }
    }

    #[test]
    fn no_answer_outlives_a_change_of_its_key_not_even_one_while_the_question_was_open() {
        let (world, key) = (World::new(), view(5, 60_000));
        let value = Secret::new("a").unwrap();
        let kept = |world: &World| world.keys.find_at(&world.pool, &value, 10).is_ok();
        for changed in [ChangedViews::Key(KeyNumber(5)), ChangedViews::Pool] {
            world.verify("a", 0, &key);
            world.verify("a", 0, &key);
            assert!(kept(&world));
            world.versions.raise(changed);
            assert!(!kept(&world), "{changed:?}");
            // The store answers, and the key changes before the answer arrives.
            let question = world.keys.find_at(&world.pool, &value, 0).unwrap_err();
            world.versions.raise(changed);
            world.keys.keep(question, &key, || written(&key));
            assert!(!kept(&world), "{changed:?}");
        }
        // The value belongs to another key now: the version that was read is that of the old one.
        let question = world.keys.find_at(&world.pool, &value, 0).unwrap_err();
        let other = view(6, 60_000);
        world.keys.keep(question, &other, || written(&other));
        assert!(!kept(&world));
        world.verify("a", 0, &other);
        assert!(kept(&world));
    }

    #[test]
    fn a_key_without_a_lease_and_a_large_answer_are_not_kept_and_a_core_keeps_so_many() {
        let world = World::new();
        let mut free = view(5, 60_000);
        (free.state, free.lease) = (KeyState::Available, None);
        let mut large = view(6, 60_000);
        large.label = Some("l".repeat(ANSWER_MAX).into());
        for _ in 0..5 {
            assert!(!world.verify("free", 0, &free) && !world.verify("large", 0, &large));
        }
        // A core without bytes keeps none; more bytes than a core can use are no fault.
        for (bytes, count) in [
            (0, 0),
            (WAYS as u64 * PLACE_BYTES as u64 - 1, 0),
            (1 << 20, 408),
            (VERIFIED_KEYS_MAX as u64, 4_096),
            (u64::MAX, 4_096),
        ] {
            let world = World::of(bytes);
            if count == 0 {
                let value = Secret::new("a").unwrap();
                assert_eq!(world.keys.find(&world.pool, &value).unwrap_err().map(drop), None);
                continue;
            }
            for number in 0..3 * (SETS_MAX * WAYS) as u64 {
                for _ in 0..2 {
                    world.verify(&format!("value {number}"), 0, &view(number, 60_000));
                }
                assert!(world.verify(&format!("value {number}"), 0, &view(number, 60_000)));
            }
            let places = world.keys.places();
            assert_eq!((places.all.len(), places.all.iter().flatten().count()), (count, count));
            assert!(count as u64 * PLACE_BYTES as u64 <= bytes, "{bytes}");
        }
    }
}
