//! The Idempotency-Keys of the naive store: the stored answers of a pool, and how a repeat gets them.
//!
//! An answer is stored for an hour, and one with a lease at least while the lease runs. The number
//! of answers has no limit.

use super::pool::{NaivePool, lease_id};
use super::{CallId, Terms};
use keypeg_core::{BodyDigest, KeyId, LeaseView, NewKey, PoolName, Refusal, Secret};
use keypeg_store::{Call, Idempotency, Reply, Request};
use std::collections::HashSet;

/// How long an answer is stored.
const STORED_MS: u64 = 3_600_000;

/// The Idempotency-Key of a request, with all that distinguishes it from other requests.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct IdempotentRequest {
    pub(super) caller: Box<str>,
    pub(super) key: Box<str>,
    /// Whether it acquires a lease; else it creates keys.
    pub(super) acquires: bool,
    pub(super) body: BodyDigest,
}

pub(super) struct StoredAnswer {
    request: IdempotentRequest,
    until: u64,
    content: Content,
}

enum Content {
    Keys(Vec<NewKey>),
    Lease {
        lease: Box<LeaseView>,
        value: Secret,
        /// Whether a repeat got it: then its lease is not revoked.
        redelivered: bool,
    },
}

impl IdempotentRequest {
    /// Returns the Idempotency-Key of a request; `None` when it has none or its call takes none.
    pub(super) fn of(Request { by, idempotency, call, .. }: &Request) -> Option<Self> {
        let Idempotency { key, body, .. } = idempotency.as_deref()?;
        let acquires = matches!(call, Call::Acquire { .. });
        let takes_key = acquires || matches!(call, Call::Generate { .. } | Call::Import { .. });
        let (caller, key) = (by.name().into(), key.clone());
        takes_key.then_some(Self { caller, key, acquires, body: *body })
    }

    /// Returns whether both have the same key; refused when their bodies differ.
    fn is_repeat_of(&self, first: &Self) -> Result<bool, Refusal> {
        let id = |request: &Self| (request.caller.clone(), request.key.clone(), request.acquires);
        if id(self) != id(first) {
            return Ok(false);
        }
        if self.body == first.body { Ok(true) } else { Err(Refusal::IdempotencyMismatch) }
    }
}

impl NaivePool {
    pub(super) fn store_keys(&mut self, request: IdempotentRequest, keys: &[NewKey], now: u64) {
        let (until, content) = (now + STORED_MS, Content::Keys(keys.to_vec()));
        self.answers.push(StoredAnswer { request, until, content });
    }

    pub(super) fn store_lease(
        &mut self,
        request: IdempotentRequest,
        lease: &LeaseView,
        value: &Secret,
    ) {
        let until = lease.granted_at_ms + STORED_MS;
        let (lease, value) = (Box::new(lease.clone()), value.clone());
        let content = Content::Lease { lease, value, redelivered: false };
        self.answers.push(StoredAnswer { request, until, content });
    }

    pub(super) fn remove_expired_answers(&mut self, now: u64) {
        let running: HashSet<_> = self.keys.iter().filter_map(lease_id).collect();
        self.answers.retain(|answer| {
            let runs = |lease: &LeaseView| running.contains(&lease.id);
            let has_lease = matches!(&answer.content, Content::Lease { lease, .. } if runs(lease));
            answer.until > now || has_lease
        });
    }

    /// Returns the stored answer to a repeat; `None` when the request is the first.
    pub(super) fn redeliver(
        &mut self,
        name: &PoolName,
        request: &IdempotentRequest,
        now: u64,
    ) -> Result<Option<Reply>, Refusal> {
        let mut found = None;
        for (index, answer) in self.answers.iter().enumerate() {
            if request.is_repeat_of(&answer.request)? {
                found = Some(index);
            }
        }
        let Some(index) = found else { return Ok(None) };
        let lease = match &self.answers[index].content {
            Content::Keys(keys) => {
                let existing: HashSet<KeyId> = self.keys.iter().map(|key| key.id).collect();
                let all_exist = keys.iter().all(|key| existing.contains(&key.id));
                return if all_exist {
                    Ok(Some(Reply::Keys(keys.clone())))
                } else {
                    Err(Refusal::KeysGone)
                };
            }
            Content::Lease { lease, .. } => lease.id,
        };
        let running = self.keys[self.leased(lease)?].lease_view(now).expect("it is leased");
        let Content::Lease { lease, value, redelivered } = &mut self.answers[index].content else {
            unreachable!("it has a lease")
        };
        *redelivered = true;
        let mut view = lease.clone();
        view.expires_in_ms = running.expires_in_ms;
        if running.expires_at_ms != view.expires_at_ms {
            // It was renewed.
            view = Box::new(running);
        }
        Ok(Some(Reply::Granted {
            pool: name.clone(),
            lease: view,
            value: value.clone(),
            waited_ms: 0,
            redelivered: true,
        }))
    }

    /// Gives a repeat the position of the request that waits with the same key; returns the call
    /// that waited.
    pub(super) fn take_over(
        &mut self,
        request: &IdempotentRequest,
        slot: CallId,
        now: u64,
        wait_ms: u64,
    ) -> Result<Option<CallId>, Refusal> {
        for waiter in &mut self.waiters {
            let Terms { request: Some(first), .. } = &waiter.terms else { continue };
            if request.is_repeat_of(first)? {
                (waiter.since, waiter.until) = (now, now + wait_ms);
                return Ok(Some(std::mem::replace(&mut waiter.slot, slot)));
            }
        }
        Ok(None)
    }

    /// Forgets the answer with this lease, whose grant no client received. Returns false when a
    /// repeat received it.
    pub(super) fn revoke_answer(&mut self, id: keypeg_core::LeaseId) -> bool {
        let has_lease = |answer: &StoredAnswer| matches!(&answer.content, Content::Lease { lease, .. } if lease.id == id);
        let index = self.answers.iter().position(has_lease);
        let is_redelivered = |answer: &StoredAnswer| {
            matches!(&answer.content, Content::Lease { redelivered: true, .. })
        };
        match index {
            Some(index) if is_redelivered(&self.answers[index]) => false,
            Some(index) => {
                self.answers.remove(index);
                true
            }
            None => true,
        }
    }
}
