//! Limits on requests: the rate of a token, and invalid tokens and unknown keys from one address.
//!
//! Time is an argument, and memory is bounded whatever clients send. Knows nothing of HTTP.

use crate::share::network;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const SECOND_NS: u64 = 1_000_000_000;
/// Invalid tokens that an address may send in a burst; after it, one per second.
const FAILURE_BURST: u64 = 20;
/// Unknown keys that an address may have verified in a burst; after it, 100 per second. A gateway
/// that the server does not name as a proxy is one address for many clients, so both are large.
const UNKNOWN_KEY_BURST: u64 = 1_000;
const UNKNOWN_KEY_INTERVAL_NS: u64 = SECOND_NS / 100;
/// The table of addresses is set-associative: an address can be in any of the `WAYS` slots of its
/// set.
const SETS: usize = 1_024;
const WAYS: usize = 4;

/// A rate limit by GCRA (generic cell rate algorithm), with a burst of one second's requests.
///
/// Each admitted request moves the theoretical arrival time (TAT) one interval ahead; a request
/// that would move it further ahead than the burst is refused.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "units are part of names")]
pub(crate) struct RateLimit {
    interval_ns: u64,
    burst_ns: u64,
    /// The theoretical arrival time (TAT).
    tat_ns: AtomicU64,
}

impl RateLimit {
    pub(crate) fn new(per_second: u32) -> Self {
        let interval_ns = SECOND_NS / u64::from(per_second.max(1));
        Self { interval_ns, burst_ns: SECOND_NS, tat_ns: AtomicU64::new(0) }
    }

    /// Returns whether this limit has the given rate.
    pub(crate) fn has_rate(&self, per_second: u32) -> bool {
        self.interval_ns == SECOND_NS / u64::from(per_second.max(1))
    }

    /// Admits a request, or returns the time to wait. A refusal does not count against the limit.
    pub(crate) fn admit(&self, now_ns: u64) -> Result<(), Duration> {
        let next = |tat_ns: u64| {
            let tat_ns = tat_ns.max(now_ns) + self.interval_ns;
            (tat_ns - now_ns <= self.burst_ns).then_some(tat_ns)
        };
        let updated = self.tat_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        updated.map(drop).map_err(|tat_ns| {
            Duration::from_nanos(tat_ns + self.interval_ns - now_ns - self.burst_ns)
        })
    }
}

/// Counts failed attempts by client address, with GCRA in a table of fixed size.
///
/// An address over its limit has to wait. A client with many addresses can evict others from the
/// table, and gains no more than a refusal from it.
#[derive(Debug)]
pub(crate) struct FailedAttempts {
    interval_ns: u64,
    burst_ns: u64,
    hasher: RandomState,
    sets: Mutex<Box<[[Slot; WAYS]]>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    address: u128,
    /// The theoretical arrival time (TAT) of the address.
    tat_ns: u64,
}

impl FailedAttempts {
    /// Counts invalid tokens.
    pub(crate) fn of_tokens() -> Self {
        Self::new(SECOND_NS, FAILURE_BURST)
    }

    fn new(interval_ns: u64, burst: u64) -> Self {
        let sets = vec![[Slot::default(); WAYS]; SETS].into_boxed_slice();
        let burst_ns = burst * interval_ns;
        Self { interval_ns, burst_ns, hasher: RandomState::new(), sets: Mutex::new(sets) }
    }

    /// Counts a failed attempt; over the limit, returns the time to wait.
    pub(crate) fn count(&self, address: IpAddr, now_ns: u64) -> Result<(), Duration> {
        self.next(address, now_ns, true)
    }

    /// Like [`count`](Self::count), without counting an attempt.
    fn check(&self, address: IpAddr, now_ns: u64) -> Result<(), Duration> {
        self.next(address, now_ns, false)
    }

    /// Moves the TAT of an address one interval ahead, if `counts`; over the limit, returns the time
    /// to wait.
    fn next(&self, address: IpAddr, now_ns: u64, counts: bool) -> Result<(), Duration> {
        let address = network(address);
        let set_index = usize::try_from(self.hasher.hash_one(address) % SETS as u64)
            .expect("invariant: below the number of sets");
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        let set = &mut sets[set_index];
        let known = set.iter().position(|slot| slot.address == address);
        let way = known.unwrap_or_else(|| {
            let earliest = (0..WAYS).min_by_key(|&way| set[way].tat_ns);
            earliest.expect("invariant: a set has slots")
        });
        let before_ns = if known.is_some() { set[way].tat_ns } else { 0 };
        let tat_ns = before_ns.max(now_ns) + self.interval_ns;
        let over_ns = (tat_ns - now_ns).saturating_sub(self.burst_ns);
        if over_ns > 0 {
            return Err(Duration::from_nanos(over_ns));
        }
        if counts {
            set[way] = Slot { address, tat_ns };
        }
        Ok(())
    }
}

/// Counts by client address the verified values that no key has, so that guessing takes long.
#[derive(Debug)]
pub(crate) struct UnknownKeys {
    attempts: FailedAttempts,
    /// The origin of the times.
    started: Instant,
}

impl UnknownKeys {
    pub(crate) fn new(started: Instant) -> Self {
        let attempts = FailedAttempts::new(UNKNOWN_KEY_INTERVAL_NS, UNKNOWN_KEY_BURST);
        Self { attempts, started }
    }

    /// Refuses an address that has sent too many unknown values; returns the time to wait.
    pub(crate) fn check(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        self.attempts.check(address, self.since_start_ns(now))
    }

    /// Counts an unknown value.
    pub(crate) fn count(&self, address: IpAddr, now: Instant) {
        // Requests that were checked at the same time can be over the limit together.
        let _ = self.attempts.count(address, self.since_start_ns(now));
    }

    fn since_start_ns(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.started);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_limit_admits_a_burst_of_one_second_and_then_one_per_interval() {
        let rate_limit = RateLimit::new(4);
        let admit_at = |ms: u64| rate_limit.admit(ms * 1_000_000);
        assert_eq!([admit_at(0), admit_at(0), admit_at(0), admit_at(0)], [Ok(()); 4]);
        assert_eq!(admit_at(0), Err(Duration::from_millis(250)));
        assert_eq!(admit_at(249), Err(Duration::from_millis(1)), "a refusal does not count");
        assert_eq!(admit_at(250), Ok(()));
        assert_eq!(admit_at(250), Err(Duration::from_millis(250)));
        let idle = (0..9).filter(|_| admit_at(60_000).is_ok()).count();
        assert_eq!(idle, 4, "the burst does not grow with idle time");
    }

    #[test]
    fn an_address_with_many_invalid_tokens_has_to_wait_and_no_other_does() {
        let failures = FailedAttempts::of_tokens();
        let (one, other): (IpAddr, IpAddr) =
            ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let admitted = (0..100).filter(|_| failures.count(one, 0).is_ok()).count();
        assert_eq!(admitted as u64, FAILURE_BURST);
        assert_eq!(failures.count(one, 0), Err(Duration::from_secs(1)));
        assert!(failures.count("::ffff:192.0.2.1".parse().unwrap(), 0).is_err());
        assert_eq!(failures.count(other, 0), Ok(()));
        assert_eq!(failures.count(one, SECOND_NS), Ok(()));
        let of_one_network = (0..100u32)
            .filter(|n| failures.count(format!("2001:db8::{n:x}").parse().unwrap(), 0).is_ok());
        assert_eq!(of_one_network.count() as u64, FAILURE_BURST, "a /64 counts as one address");
    }

    /// A million addresses take no more memory than one, and a guessing address is still counted.
    #[test]
    fn failed_attempts_are_counted_in_bounded_memory() {
        let failures = FailedAttempts::of_tokens();
        for n in 0..1_000_000u32 {
            let _ = failures.count(IpAddr::V4(n.into()), 0);
        }
        let sets = failures.sets.lock().unwrap();
        assert_eq!((sets.len(), size_of_val(&sets[..])), (SETS, SETS * WAYS * 32));
        drop(sets);
        let guesser: IpAddr = "192.0.2.1".parse().unwrap();
        let admitted = (0..1_000).filter(|_| failures.count(guesser, 0).is_ok()).count();
        assert_eq!(admitted as u64, FAILURE_BURST);
    }

    #[test]
    fn an_address_with_many_unknown_keys_has_to_wait_and_known_keys_do_not_count() {
        let started = crate::clock::stopwatch();
        let keys = UnknownKeys::new(started);
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let at = |ms: u64| started + Duration::from_millis(ms);
        for _ in 0..10 * UNKNOWN_KEY_BURST {
            assert_eq!(keys.check(address, at(0)), Ok(()), "a check does not count");
        }
        (0..UNKNOWN_KEY_BURST).for_each(|_| keys.count(address, at(0)));
        assert_eq!(keys.check(address, at(0)), Err(Duration::from_millis(10)));
        assert_eq!(keys.check("192.0.2.2".parse().unwrap(), at(0)), Ok(()));
        assert_eq!(keys.check(address, at(10)), Ok(()));
        keys.count(address, at(10));
        assert_eq!(keys.check(address, at(10)), Err(Duration::from_millis(10)));
    }
}
