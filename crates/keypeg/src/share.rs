//! Bounds that callers share: bytes of answers and bodies, connections, event streams, requests in
//! flight.
//!
//! Of a [`Budget`], a caller may hold at most as much as stays free for all others: alone half of it.
//! So callers never keep a further one from its share, however many they are. Memory is bounded: a caller has an entry only while it holds something. Knows
//! nothing of what the amounts mean.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The owner of a share: one token, or one network where the server has no tokens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum CallerId {
    /// A token by its name, which stays the same when the token file changes.
    Token(Arc<str>),
    /// The network of an address, see [`network`].
    Network(u128),
}

impl CallerId {
    /// Returns the caller of an address; all connections without an address are one caller.
    pub(crate) fn of_address(address: Option<IpAddr>) -> Self {
        Self::Network(address.map_or(0, network))
    }
}

/// Returns the network that counts as one client: a /64 of IPv6, since one client can use all of
/// it.
pub(crate) fn network(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits() >> 64 << 64,
    }
}

/// The limit that an admission would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exceeded {
    /// The bound of all callers together.
    Bound,
    /// The share of this caller.
    Share,
}

/// A bound of some unit that callers share.
#[derive(Debug)]
pub(crate) struct Budget {
    /// The bound of all callers together.
    max: u64,
    total: AtomicU64,
    /// Callers that hold something.
    active_callers: AtomicU64,
    /// The accounts of the callers that hold something and have no account of their own.
    accounts: Mutex<HashMap<CallerId, Arc<Account>>>,
}

/// What one caller holds of one budget.
#[derive(Debug, Default)]
pub(crate) struct Account {
    held: AtomicU64,
    /// Set if the account is in the table of its budget.
    caller: Option<CallerId>,
}

/// An admitted amount; its budget gets it back when this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    budget: Arc<Budget>,
    account: Arc<Account>,
    amount: u64,
}

impl Budget {
    pub(crate) fn new(max: u64) -> Arc<Self> {
        let (total, active_callers) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { max, total, active_callers, accounts: Mutex::default() })
    }

    /// Returns the bound of all callers together.
    pub(crate) fn max(&self) -> u64 {
        self.max
    }

    /// Returns what all callers hold together.
    pub(crate) fn held(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Returns the number of callers that hold something.
    pub(crate) fn active_callers(&self) -> u64 {
        self.active_callers.load(Ordering::Relaxed)
    }

    /// Admits an amount for a caller. Takes one lock, and one table entry while the caller holds
    /// something.
    pub(crate) fn admit(
        self: &Arc<Self>,
        caller: &CallerId,
        amount: u64,
    ) -> Result<Held, Exceeded> {
        let mut accounts = self.accounts();
        let of_caller = accounts.get(caller).map_or(0, |account| account.held());
        let active = self.active_callers() + u64::from(of_caller == 0);
        self.check(Load { total: self.held(), of_caller, active }, amount)?;
        Ok(self.hold(Account::of(caller, &mut accounts), amount).0)
    }

    /// Admits an amount for the owner of `account`, without a lock. A concurrent request counts
    /// until it is refused.
    pub(crate) fn admit_account(
        self: &Arc<Self>,
        account: &Arc<Account>,
        amount: u64,
    ) -> Result<Held, Exceeded> {
        // Held before the decision, so that a refusal is subtracted again by its drop.
        let (held, load) = self.hold(Arc::clone(account), amount);
        self.check(load, amount).map(|()| held)
    }

    /// Counts an amount that is in use already, also beyond the bound: then the next admissions are
    /// refused.
    pub(crate) fn charge(self: &Arc<Self>, caller: &CallerId, amount: u64) -> Held {
        let mut accounts = self.accounts();
        self.hold(Account::of(caller, &mut accounts), amount).0
    }

    /// Adds an amount without a decision, and returns the load before it.
    fn hold(self: &Arc<Self>, account: Arc<Account>, amount: u64) -> (Held, Load) {
        // Nothing at all would leave a caller active without an end.
        let amount = amount.max(1);
        let of_caller = account.held.fetch_add(amount, Ordering::Relaxed);
        let total = self.total.fetch_add(amount, Ordering::Relaxed);
        if of_caller == 0 {
            self.active_callers.fetch_add(1, Ordering::Relaxed);
        }
        let load = Load { total, of_caller, active: self.active_callers().max(1) };
        (Held { budget: Arc::clone(self), account, amount }, load)
    }

    /// Decides about an amount. A caller may hold at most what stays free for all others, so every
    /// further caller finds room. One that holds nothing may hold one amount beyond that.
    fn check(&self, load: Load, amount: u64) -> Result<(), Exceeded> {
        let total = load.total.saturating_add(amount);
        let of_caller = load.of_caller.saturating_add(amount);
        let free = self.max.saturating_sub(total);
        if load.of_caller > 0 && of_caller > free {
            // Where nothing is free, who holds less than an equal part is not the cause.
            let is_cause = of_caller > self.max / load.active.saturating_add(1);
            Err(if total <= self.max || is_cause { Exceeded::Share } else { Exceeded::Bound })
        } else if total > self.max {
            Err(Exceeded::Bound)
        } else {
            Ok(())
        }
    }

    fn accounts(&self) -> MutexGuard<'_, HashMap<CallerId, Arc<Account>>> {
        // A poisoned lock is usable: a panic interrupts no change of more than one entry.
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    /// Returns the account of a caller, which becomes an entry of the table.
    fn of(caller: &CallerId, accounts: &mut HashMap<CallerId, Arc<Self>>) -> Arc<Self> {
        let account = accounts.entry(caller.clone()).or_insert_with(|| {
            let caller = Some(caller.clone());
            Arc::new(Self { held: AtomicU64::new(0), caller })
        });
        Arc::clone(account)
    }

    fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }
}

/// What a budget holds at the moment of a decision.
#[derive(Clone, Copy, Debug)]
struct Load {
    total: u64,
    of_caller: u64,
    /// Active callers, with the one that the decision is about.
    active: u64,
}

impl Held {
    /// Changes the amount to the one in use, which is known only later. It may exceed the bound:
    /// then the next admissions are refused.
    pub(crate) fn resize(&mut self, amount: u64) {
        let amount = amount.max(1);
        if amount > self.amount {
            let more = amount - self.amount;
            self.account.held.fetch_add(more, Ordering::Relaxed);
            self.budget.total.fetch_add(more, Ordering::Relaxed);
        } else {
            let less = self.amount - amount;
            self.account.held.fetch_sub(less, Ordering::Relaxed);
            self.budget.total.fetch_sub(less, Ordering::Relaxed);
        }
        self.amount = amount;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Self { budget, account, amount } = self;
        let mut accounts = account.caller.is_some().then(|| budget.accounts());
        budget.total.fetch_sub(*amount, Ordering::Relaxed);
        if account.held.fetch_sub(*amount, Ordering::Relaxed) > *amount {
            return;
        }
        budget.active_callers.fetch_sub(1, Ordering::Relaxed);
        if let (Some(accounts), Some(caller)) = (&mut accounts, &account.caller) {
            accounts.remove(caller);
        }
    }
}

/// A budget with a part that only urgent requests may use: keep-alives and releases, which must
/// succeed while everything else waits.
#[derive(Debug)]
pub(crate) struct ReservedBudget {
    ordinary: Arc<Budget>,
    reserve: Arc<Budget>,
}

impl ReservedBudget {
    /// Divides `max` into the part for all requests, and `reserve` for urgent ones only.
    pub(crate) fn new(max: u64, reserve: u64) -> Self {
        Self {
            ordinary: Budget::new(max.saturating_sub(reserve)),
            reserve: Budget::new(reserve.min(max)),
        }
    }

    /// Returns the part that all requests may use.
    #[cfg(test)]
    pub(crate) fn ordinary(&self) -> &Arc<Budget> {
        &self.ordinary
    }

    /// Admits an amount for an ordinary request.
    pub(crate) fn admit(&self, caller: &CallerId, amount: u64) -> Result<Held, Exceeded> {
        self.ordinary.admit(caller, amount)
    }

    /// Admits an amount for an urgent request: from the reserve if the ordinary part has no room
    /// for this caller. The reserve has shares of its own.
    pub(crate) fn admit_urgent(&self, caller: &CallerId, amount: u64) -> Result<Held, Exceeded> {
        self.ordinary.admit(caller, amount).or_else(|_| self.reserve.admit(caller, amount))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(name: &str) -> CallerId {
        CallerId::Token(name.into())
    }

    /// Admits as many amounts as the budget allows.
    fn fill(budget: &Arc<Budget>, caller: &CallerId, amount: u64) -> Vec<Held> {
        std::iter::from_fn(|| budget.admit(caller, amount).ok()).take(1_000).collect()
    }

    /// One caller with a hundred simultaneous requests cannot keep another from its share.
    #[test]
    fn a_caller_with_many_requests_leaves_the_others_their_share() {
        let budget = Budget::new(40);
        let (noisy, calm) = (token("noisy"), token("calm"));
        let alone = fill(&budget, &noisy, 1);
        assert_eq!(alone.len(), 20, "half of the bound; the rest is for other callers");
        assert_eq!(budget.admit(&noisy, 1).unwrap_err(), Exceeded::Share);
        let of_calm: Vec<_> = (0..15).filter_map(|_| budget.admit(&calm, 1).ok()).collect();
        assert_eq!(of_calm.len(), 10, "half of that half");
        drop(alone);
        let late = fill(&budget, &noisy, 1);
        assert_eq!((late.len(), of_calm.len()), (15, 10), "as much as stays free");
        drop((late, of_calm));
        assert_eq!((budget.held(), budget.active_callers()), (0, 0));
    }

    /// A token has an account of its own, which takes no lock and no table entry.
    #[test]
    fn an_account_of_its_own_follows_the_same_rule() {
        let budget = Budget::new(40);
        let [noisy, calm] = [(); 2].map(|()| Arc::<Account>::default());
        let take = |account, count: usize| -> Vec<_> {
            (0..count).filter_map(|_| budget.admit_account(account, 1).ok()).collect()
        };
        let alone = take(&noisy, 100);
        assert_eq!(alone.len(), 20);
        let of_calm = take(&calm, 15);
        assert_eq!(of_calm.len(), 10);
        assert!(budget.accounts().is_empty());
        drop((alone, of_calm));
        assert_eq!((budget.held(), budget.active_callers()), (0, 0));
    }

    #[test]
    fn amounts_count_and_not_their_number() {
        let budget = Budget::new(1_000);
        let (large, small) = (token("large"), token("small"));
        let of_large = fill(&budget, &large, 200);
        assert_eq!(of_large.len(), 2, "400 of 500; the next would cross the half");
        let of_small = fill(&budget, &small, 10);
        assert_eq!(of_small.len(), 30, "300, half of what the other caller leaves");
        drop(of_large);
        let first = budget.admit(&large, 700).unwrap();
        assert_eq!(budget.held(), 1_000, "one amount of an idle caller may exceed its share");
        assert_eq!(budget.admit(&token("third"), 100).unwrap_err(), Exceeded::Bound);
        assert_eq!(budget.admit(&large, 1).unwrap_err(), Exceeded::Share);
        drop(first);
    }

    #[test]
    fn all_callers_together_never_exceed_the_bound() {
        let budget = Budget::new(100);
        let held: Vec<_> =
            (0..1_000u128).filter_map(|n| budget.admit(&CallerId::Network(n), 7).ok()).collect();
        assert_eq!((held.len(), budget.held(), budget.max()), (14, 98, 100));
        assert_eq!(budget.admit(&token("late"), u64::MAX).unwrap_err(), Exceeded::Bound);
    }

    /// Streams have no end: four callers once took all places, each within its share.
    #[test]
    fn a_further_caller_finds_room_however_many_callers_take_all_they_may() {
        let budget = Budget::new(1_000);
        let mut held = Vec::new();
        for n in 0..8 {
            let of_caller = fill(&budget, &CallerId::Network(n), 1);
            assert!(!of_caller.is_empty(), "caller {n}");
            held.extend(of_caller);
        }
        assert!(budget.held() < budget.max());
    }

    /// A million callers that come and go leave nothing behind.
    #[test]
    fn a_caller_has_an_entry_only_while_it_holds_something() {
        let budget = Budget::new(10);
        for n in 0..1_000_000 {
            drop(budget.admit(&CallerId::Network(n), 1).unwrap());
        }
        let two = [(); 2].map(|()| budget.admit(&token("a"), 1).unwrap());
        assert_eq!(budget.accounts().len(), 1);
        drop(two);
        assert!(budget.accounts().is_empty() && budget.accounts().capacity() < 100);
    }

    #[test]
    fn a_held_amount_can_change() {
        let budget = Budget::new(100);
        let mut held = budget.admit(&token("a"), 50).unwrap();
        held.resize(5);
        assert_eq!(budget.held(), 5);
        held.resize(500);
        assert_eq!(budget.held(), 500, "memory in use counts, also beyond the bound");
        assert_eq!(budget.admit(&token("b"), 1).unwrap_err(), Exceeded::Bound);
        held.resize(0);
        drop(held);
        assert_eq!((budget.held(), budget.active_callers()), (0, 0));
        assert!(budget.accounts().is_empty());
    }

    #[test]
    fn an_urgent_request_has_room_when_ordinary_ones_have_none() {
        let budget = ReservedBudget::new(100, 20);
        let noisy: Vec<_> =
            (0..100u128).filter_map(|n| budget.admit(&CallerId::Network(n), 8).ok()).collect();
        assert_eq!(noisy.len(), 10);
        assert_eq!(budget.admit(&token("calm"), 2).unwrap_err(), Exceeded::Bound);
        let urgent = std::iter::from_fn(|| budget.admit_urgent(&token("calm"), 2).ok());
        let urgent: Vec<_> = urgent.collect();
        assert_eq!(urgent.len(), 5, "half of the reserve");
        assert!(budget.admit_urgent(&token("other"), 2).is_ok(), "the other half is for others");
        assert_eq!(budget.ordinary().held(), 80);
    }

    #[test]
    fn a_network_of_ipv6_is_one_caller() {
        let of = |text: &str| CallerId::of_address(Some(text.parse().unwrap()));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    /// Concurrent admissions and drops leave the counts exact.
    #[test]
    fn counts_are_exact_after_concurrent_use() {
        let budget = Budget::new(1_000);
        let own = Arc::<Account>::default();
        std::thread::scope(|scope| {
            for n in 0..4u64 {
                let (budget, own) = (&budget, &own);
                scope.spawn(move || {
                    for round in 0..20_000u64 {
                        let mut held = budget.admit(&CallerId::Network((round % 3).into()), n);
                        if let Ok(held) = &mut held {
                            held.resize(round % 7);
                        }
                        drop((budget.admit_account(own, 1), held));
                    }
                });
            }
        });
        assert_eq!((budget.held(), budget.active_callers()), (0, 0));
        assert!(budget.accounts().is_empty());
    }
}
