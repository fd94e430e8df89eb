//! How often somebody may ask: a token's own pace, wrong tokens from one address, and shares when
//! there is little room.
//!
//! Time is given, memory is bounded whatever is asked, and nothing here knows of HTTP.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const SECOND_NS: u64 = 1_000_000_000;
/// Wrong tokens that an address may show at once; then one a second.
const FAILURES_AT_ONCE: u64 = 20;
/// Addresses that are remembered: sets of as many as are looked through for each.
const SETS: usize = 1_024;
const WAYS: usize = 4;

/// So many requests a second, and a second's worth of them at once.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "units are part of names")]
pub(crate) struct Pace {
    each_ns: u64,
    at_once_ns: u64,
    /// When all that was let through is paid for.
    paid_at_ns: AtomicU64,
}

impl Pace {
    pub(crate) fn new(per_second: u32) -> Self {
        let each_ns = SECOND_NS / u64::from(per_second.max(1));
        Self { each_ns, at_once_ns: SECOND_NS, paid_at_ns: AtomicU64::new(0) }
    }

    pub(crate) fn is(&self, per_second: u32) -> bool {
        self.each_ns == SECOND_NS / u64::from(per_second.max(1))
    }

    /// Lets one through, or says how long to wait.
    pub(crate) fn take(&self, now_ns: u64) -> Result<(), Duration> {
        let next = |paid_at: u64| {
            let paid_at = paid_at.max(now_ns) + self.each_ns;
            (paid_at - now_ns <= self.at_once_ns).then_some(paid_at)
        };
        let taken = self.paid_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        taken.map(drop).map_err(|paid_at| {
            Duration::from_nanos(paid_at + self.each_ns - now_ns - self.at_once_ns)
        })
    }
}

/// Who showed wrong tokens lately. An address over its bound is told to wait; who has many
/// addresses can push others out of this memory, and gains no more than a 401 by it.
#[derive(Debug)]
pub(crate) struct Failures {
    hasher: RandomState,
    sets: Mutex<Box<[[Slot; WAYS]]>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    address: u128,
    paid_at_ns: u64,
}

impl Failures {
    pub(crate) fn new() -> Self {
        let sets = vec![[Slot::default(); WAYS]; SETS].into_boxed_slice();
        Self { hasher: RandomState::new(), sets: Mutex::new(sets) }
    }

    /// KeyCounts a wrong token; over the bound it says how long to wait.
    pub(crate) fn count(&self, address: IpAddr, now_ns: u64) -> Result<(), Duration> {
        let address = network(address);
        let at = usize::try_from(self.hasher.hash_one(address) % SETS as u64)
            .expect("invariant: below the number of sets");
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        let set = &mut sets[at];
        let known = set.iter().position(|slot| slot.address == address);
        let way = known.unwrap_or_else(|| {
            let first_paid = (0..WAYS).min_by_key(|&way| set[way].paid_at_ns);
            first_paid.expect("invariant: a set has slots")
        });
        let before = if known.is_some() { set[way].paid_at_ns } else { 0 };
        let paid_at_ns = before.max(now_ns) + SECOND_NS;
        let over_ns = (paid_at_ns - now_ns).saturating_sub(FAILURES_AT_ONCE * SECOND_NS);
        if over_ns > 0 {
            return Err(Duration::from_nanos(over_ns));
        }
        set[way] = Slot { address, paid_at_ns };
        Ok(())
    }
}

/// What one caller can have many addresses of counts as one: a /64 of IPv6.
fn network(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits() >> 64 << 64,
    }
}

/// How many requests are being answered, and of how many callers. While they are few everybody may
/// have as many as he likes; over half of what there is room for, nobody may have more than his
/// share of that half.
#[derive(Debug)]
pub(crate) struct Shares {
    half: usize,
    all: AtomicUsize,
    callers: AtomicUsize,
}

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Busy {
    shares: Arc<Shares>,
    mine: Arc<AtomicUsize>,
}

impl Shares {
    pub(crate) fn new(room: usize) -> Self {
        let (all, callers) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { half: room / 2, all, callers }
    }

    /// Begins a request of the caller who counts his own in `mine`; `None` where he has his share.
    pub(crate) fn begin(self: &Arc<Self>, mine: &Arc<AtomicUsize>) -> Option<Busy> {
        let had = mine.fetch_add(1, Ordering::Relaxed);
        let all = self.all.fetch_add(1, Ordering::Relaxed);
        if had == 0 {
            self.callers.fetch_add(1, Ordering::Relaxed);
        }
        let busy = Busy { shares: Arc::clone(self), mine: Arc::clone(mine) };
        let share = self.half / self.callers.load(Ordering::Relaxed).max(1);
        (all < self.half || had < share.max(1)).then_some(busy)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.shares.all.fetch_sub(1, Ordering::Relaxed);
        if self.mine.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.shares.callers.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_lets_a_seconds_worth_through_and_then_one_at_a_time() {
        let pace = Pace::new(4);
        let at = |ms: u64| pace.take(ms * 1_000_000);
        assert_eq!([at(0), at(0), at(0), at(0)], [Ok(()); 4]);
        assert_eq!(at(0), Err(Duration::from_millis(250)));
        assert_eq!(at(249), Err(Duration::from_millis(1)), "what is refused costs nothing");
        assert_eq!(at(250), Ok(()));
        assert_eq!(at(250), Err(Duration::from_millis(250)));
        let idle = (0..9).filter(|_| at(60_000).is_ok()).count();
        assert_eq!(idle, 4, "idle time is not saved up");
    }

    #[test]
    fn an_address_that_guesses_is_told_to_wait_and_no_other_is() {
        let failures = Failures::new();
        let (one, other): (IpAddr, IpAddr) =
            ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let through = (0..100).filter(|_| failures.count(one, 0).is_ok()).count();
        assert_eq!(through as u64, FAILURES_AT_ONCE);
        assert_eq!(failures.count(one, 0), Err(Duration::from_secs(1)));
        assert!(failures.count("::ffff:192.0.2.1".parse().unwrap(), 0).is_err());
        assert_eq!(failures.count(other, 0), Ok(()));
        assert_eq!(failures.count(one, SECOND_NS), Ok(()));
        let of_one = (0..100u32)
            .filter(|n| failures.count(format!("2001:db8::{n:x}").parse().unwrap(), 0).is_ok());
        assert_eq!(of_one.count() as u64, FAILURES_AT_ONCE, "a /64 is one caller");
    }

    /// A million addresses take no more memory than one, and who guesses is found among them.
    #[test]
    fn failures_are_remembered_in_bounded_memory() {
        let failures = Failures::new();
        for n in 0..1_000_000u32 {
            let _ = failures.count(IpAddr::V4(n.into()), 0);
        }
        let sets = failures.sets.lock().unwrap();
        assert_eq!((sets.len(), size_of_val(&sets[..])), (SETS, SETS * WAYS * 32));
        drop(sets);
        let guesser: IpAddr = "192.0.2.1".parse().unwrap();
        let through = (0..1_000).filter(|_| failures.count(guesser, 0).is_ok()).count();
        assert_eq!(through as u64, FAILURES_AT_ONCE);
    }

    /// In counts: one caller with a hundred requests at a time cannot keep another from his share.
    #[test]
    fn a_noisy_caller_leaves_the_others_their_share() {
        let shares = Arc::new(Shares::new(40));
        let [noisy, calm] = [(); 2].map(|()| Arc::<AtomicUsize>::default());
        let alone: Vec<_> = (0..100).filter_map(|_| shares.begin(&noisy)).collect();
        assert_eq!(alone.len(), 20, "half of the room, and the rest is for others");
        let calms: Vec<_> = (0..15).filter_map(|_| shares.begin(&calm)).collect();
        assert_eq!(calms.len(), 10, "his half of that half");
        drop(alone);
        let late: Vec<_> = (0..100).filter_map(|_| shares.begin(&noisy)).collect();
        assert_eq!((late.len(), calms.len()), (10, 10), "now that there are two");
        drop((late, calms));
        let left = (shares.all.load(Ordering::Relaxed), shares.callers.load(Ordering::Relaxed));
        assert_eq!(left, (0, 0));
    }
}
