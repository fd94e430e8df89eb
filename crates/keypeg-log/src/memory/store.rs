//! The store behind the in-memory log: two replicas, the requests and answers under way, and time.
//!
//! It does not know what a call means. Invariant: a call is answered at most once, and a change is
//! acknowledged only after both replicas have it.

use super::contents::{Change, Contents};
use super::rules::{Faults, Rules};
use crate::error::LogError;
use crate::frame::Frame;
use crate::shard::Shard;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;

/// What happens at a time.
type Event = Box<dyn FnOnce(&mut Store) + Send>;

/// The place of a call's answer.
pub(super) struct Slot<T> {
    state: Mutex<SlotState<T>>,
    /// Makes the answer of a call whose answer is lost.
    lost: fn(LogError) -> T,
}

struct SlotState<T> {
    answer: Option<T>,
    waker: Option<Waker>,
    is_answered: bool,
}

impl<T> Slot<T> {
    pub(super) fn new(lost: fn(LogError) -> T) -> Self {
        let state = SlotState { answer: None, waker: None, is_answered: false };
        Self { state: Mutex::new(state), lost }
    }

    fn state(&self) -> MutexGuard<'_, SlotState<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the answer, or leaves a waker.
    pub(super) fn take(&self, waker: &Waker) -> Option<T> {
        let mut state = self.state();
        if state.answer.is_none() {
            state.waker = Some(waker.clone());
        }
        state.answer.take()
    }

    fn answer(&self, answer: T) {
        let mut state = self.state();
        if state.is_answered {
            return;
        }
        state.is_answered = true;
        state.answer = Some(answer);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

/// A call that can lose its answer.
trait Lose: Send + Sync {
    fn lose(&self, what: &str);
    fn is_answered(&self) -> bool;
}

impl<T: Send> Lose for Slot<T> {
    fn lose(&self, what: &str) {
        self.answer((self.lost)(LogError::Unavailable(what.to_owned())));
    }

    fn is_answered(&self) -> bool {
        self.state().is_answered
    }
}

/// A change that is visible and not yet replicated.
struct Unreplicated {
    due_us: u64,
    change: Change,
    rules: Rules,
    /// Answers the call.
    then: Event,
}

pub(super) struct Store {
    faults: Faults,
    random: u64,
    now_us: u64,
    /// The events by time and number.
    events: BTreeMap<(u64, u64), Event>,
    last_event: u64,
    visible: Contents,
    replicated: Contents,
    unreplicated: VecDeque<Unreplicated>,
    is_held: bool,
    in_progress: Vec<Weak<dyn Lose>>,
}

impl Store {
    pub(super) fn new(faults: Faults, seed: u64) -> Self {
        Self {
            faults,
            random: seed,
            now_us: 0,
            events: BTreeMap::new(),
            last_event: 0,
            visible: Contents::default(),
            replicated: Contents::default(),
            unreplicated: VecDeque::new(),
            is_held: false,
            in_progress: Vec::new(),
        }
    }

    /// Sends a request. `apply` runs when it arrives: it returns the answer, and a change if there
    /// is one.
    pub(super) fn send<T, A>(&mut self, slot: &Arc<Slot<T>>, rules: Rules, apply: A)
    where
        T: Send + 'static,
        A: Fn(&Contents) -> (T, Option<Change>) + Clone + Send + 'static,
    {
        let is_lost = self.happens(self.faults.lost_requests);
        let is_doubled = self.happens(self.faults.late_duplicates);
        if !is_lost {
            let delay_us = self.up_to(self.faults.delay_max_us);
            self.arrive_after(delay_us, Some(Arc::clone(slot)), rules, apply.clone());
        }
        if is_doubled {
            let delay_us = self.up_to(self.faults.late_max_us);
            self.arrive_after(delay_us, None, rules, apply);
        }
        self.advance_to(self.now_us);
        if !slot.is_answered() {
            let waiting: Arc<dyn Lose> = Arc::<Slot<T>>::clone(slot);
            self.in_progress.retain(|call| call.strong_count() > 0);
            self.in_progress.push(Arc::downgrade(&waiting));
            let timeout_us = self.faults.timeout_us.max(1);
            self.after(timeout_us, Box::new(move |_| waiting.lose("no answer in time")));
        }
    }

    fn arrive_after<T, A>(
        &mut self,
        delay_us: u64,
        slot: Option<Arc<Slot<T>>>,
        rules: Rules,
        apply: A,
    ) where
        T: Send + 'static,
        A: Fn(&Contents) -> (T, Option<Change>) + Send + 'static,
    {
        let arrive = move |store: &mut Self| {
            let (answer, change) = apply(&store.visible);
            let is_lost = store.happens(store.faults.lost_answers);
            let delay_us = store.up_to(store.faults.delay_max_us);
            let then: Event = Box::new(move |store| {
                if let Some(slot) = slot.filter(|_| !is_lost) {
                    store.after(delay_us, Box::new(move |_| slot.answer(answer)));
                }
            });
            match change {
                None => then(store),
                Some(change) => store.replicate(change, rules, then),
            }
        };
        self.after(delay_us, Box::new(arrive));
    }

    /// Applies a change to what is visible, and to the other replica later.
    fn replicate(&mut self, change: Change, rules: Rules, then: Event) {
        self.visible.apply(change.clone(), rules);
        let delay_us = self.up_to(self.faults.replication_max_us);
        let before_us = self.unreplicated.back().map_or(0, |change| change.due_us);
        let due_us = before_us.max(self.now_us + delay_us);
        self.unreplicated.push_back(Unreplicated { due_us, change, rules, then });
        self.after(due_us - self.now_us, Box::new(Self::replicate_due));
    }

    fn replicate_due(&mut self) {
        let now_us = self.now_us;
        while let Some(next) =
            self.unreplicated.pop_front_if(|next| !self.is_held && next.due_us <= now_us)
        {
            self.replicated.apply(next.change, next.rules);
            (next.then)(self);
        }
    }

    fn after(&mut self, delay_us: u64, event: Event) {
        self.last_event += 1;
        self.events.insert((self.now_us + delay_us, self.last_event), event);
    }

    pub(super) fn advance_to(&mut self, now_us: u64) {
        while let Some(entry) = self.events.first_entry() {
            let due_us = entry.key().0;
            if due_us > now_us {
                break;
            }
            let event = entry.remove();
            self.now_us = self.now_us.max(due_us);
            event(self);
        }
        self.now_us = self.now_us.max(now_us);
    }

    pub(super) fn now_us(&self) -> u64 {
        self.now_us
    }

    pub(super) fn next_event_us(&self) -> Option<u64> {
        self.events.first_key_value().map(|((due_us, _), _)| *due_us)
    }

    pub(super) fn restart(&mut self) {
        for call in std::mem::take(&mut self.in_progress) {
            if let Some(call) = call.upgrade() {
                call.lose("the connection was lost");
            }
        }
    }

    pub(super) fn fail_over(&mut self) {
        self.restart();
        self.unreplicated.clear();
        self.visible = self.replicated.clone();
    }

    pub(super) fn hold_replication(&mut self, is_held: bool) {
        self.is_held = is_held;
        self.replicate_due();
        self.advance_to(self.now_us);
    }

    pub(super) fn remove_frame(&mut self, shard: Shard, position: u64) {
        self.visible.remove_frame(shard, position);
        self.replicated.remove_frame(shard, position);
    }

    pub(super) fn replicated(&self, shard: Shard) -> Vec<Frame> {
        self.replicated.frames(shard)
    }

    pub(super) fn visible(&self, shard: Shard) -> Vec<Frame> {
        self.visible.frames(shard)
    }

    /// Returns whether something happens that happens `per_mille` of a thousand times.
    fn happens(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.next_random() % 1000 < u64::from(per_mille)
    }

    /// Returns a random time up to `max_us`.
    fn up_to(&mut self, max_us: u64) -> u64 {
        if max_us == 0 { 0 } else { self.next_random() % (max_us + 1) }
    }

    /// Returns the next 64 bits of the seed (splitmix64).
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
