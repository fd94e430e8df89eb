//! Calls on keys in the model: keep-alives, force-release, quarantine, deletion, reading.
//!
//! It knows keys by the ids and values of replies; deadlines and leases change in `expiry.rs` and
//! `leases.rs`.

use super::{Checked, Ended, Instant, Key, Lease, Model, Observation, State, ensure, is_holder};
use keypeg_core::{KeyId, KeyRef, QuarantineOptions, Refusal};
use keypeg_store::{Call, Reply};
use std::collections::BTreeSet;

impl Model {
    pub(super) fn keep_alive_many(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        ids: &[KeyId],
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let pool = self.pools.get_mut(name).expect("an existing pool");
        let (mut found, mut not_found) = (BTreeSet::new(), BTreeSet::new());
        for id in ids {
            match pool.keys.iter_mut().find(|key| key.id == Some(*id)) {
                Some(key) => {
                    key.keep_alive(now, &pool.policy);
                    found.insert(*id);
                }
                None => drop(not_found.insert(*id)),
            }
        }
        observed.check(slot, |reply| {
            let Reply::KeptAliveMany { kept, missing } = reply else {
                return Err("expected `KeptAliveMany`".into());
            };
            let reported: BTreeSet<_> = missing.iter().copied().collect();
            ensure!(*kept == found.len() as u64, "{} keys exist", found.len());
            ensure!(
                reported == not_found && reported.len() == missing.len(),
                "missing keys: {not_found:?}"
            );
            Ok(())
        })
    }

    pub(super) fn keep_alive_all(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let pool = self.pools.get_mut(name).expect("an existing pool");
        for key in &mut pool.keys {
            key.keep_alive(now, &pool.policy);
        }
        let total = pool.keys.len() as u64;
        observed.check(slot, |reply| match reply {
            Reply::KeptAliveMany { kept, missing } if *kept == total && missing.is_empty() => {
                Ok(())
            }
            _ => Err(format!("all {total} keys are kept alive")),
        })
    }

    pub(super) fn apply_key_call(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        (call, key): (&Call, &KeyRef),
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let named = |known: &Key| match key {
            KeyRef::Id(id) => known.id == Some(*id),
            KeyRef::Value(value) => known.value.as_deref() == Some(value.reveal()),
        };
        let pool = self.pools.get_mut(name).expect("an existing pool");
        let Some(index) = pool.keys.iter().position(named) else {
            return observed.refusal(slot, &Refusal::UnknownKey);
        };
        match call {
            Call::GetKey { .. } => {
                let key = &pool.keys[index];
                observed.check(slot, |reply| match reply {
                    Reply::Key(view) => crate::views::key(view, key, now),
                    _ => Err("the key exists".into()),
                })
            }
            Call::SetLabel { label, .. } => {
                let key = &mut pool.keys[index];
                let label = label.as_deref().filter(|label| !label.is_empty());
                if key.label.as_deref() != label {
                    key.label = label.map(Into::into);
                    self.durable = now.lease;
                }
                let key = &pool.keys[index];
                observed.check(slot, |reply| match reply {
                    Reply::Key(view) => crate::views::key(view, key, now),
                    _ => Err("the key exists".into()),
                })
            }
            Call::QuarantineKey { options, .. } => {
                let before = pool.keys[index].state.clone();
                let ends = !options.when_free && before.lease().is_some();
                self.quarantine(now, (name, index), options);
                let key = &self.pools[name].keys[index];
                observed.check(slot, |reply| match reply {
                    Reply::KeyQuarantined { key: view, holder } => {
                        is_holder(holder.as_deref(), before.lease().filter(|_| ends))?;
                        crate::views::key(view, key, now)
                    }
                    _ => Err("the key exists".into()),
                })
            }
            Call::EndQuarantine { .. } => {
                let key = &mut pool.keys[index];
                let was_draining = key.drain.take().is_some();
                if was_draining {
                    self.durable = now.lease;
                } else if let State::Quarantined { .. } = key.state {
                    self.end_hold(now, (name, index), State::Available);
                }
                let key = &self.pools[name].keys[index];
                observed.check(slot, |reply| match reply {
                    Reply::Key(view) => crate::views::key(view, key, now),
                    _ => Err("the key exists".into()),
                })
            }
            Call::Reveal { .. } => {
                let key = &pool.keys[index];
                observed.check(slot, |reply| match reply {
                    Reply::Revealed { id, value } => {
                        ensure!(Some(*id) == key.id, "another key");
                        let known = key.value.as_deref();
                        ensure!(known.is_none_or(|known| known == value.reveal()), "another value");
                        Ok(())
                    }
                    _ => Err("the key exists".into()),
                })
            }
            Call::KeepAlive { .. } => {
                let key = &mut pool.keys[index];
                key.keep_alive(now, &pool.policy);
                observed.check(slot, |reply| match reply {
                    Reply::KeptAlive { id, expires_at_ms } => {
                        ensure!(Some(*id) == key.id, "another key");
                        crate::views::purge_time(*expires_at_ms, key.purge_at, now)
                    }
                    _ => Err("the key exists".into()),
                })
            }
            Call::DeleteKey { .. } => {
                let key = pool.keys.remove(index);
                pool.removed_guesses.extend(key.guessed);
                pool.retired.extend(key.value.map(|value| (value, key.id)));
                self.removed_keys.extend(key.id);
                if let State::Leased(Lease { id: Some(id), .. }) = key.state {
                    self.ended.insert(id.0, Ended { serial: key.serial, by_call: true });
                }
                self.durable = now.lease;
                observed.released(slot, key.state.lease())
            }
            Call::ForceRelease { .. } => {
                let before = pool.keys[index].state.clone();
                let released = before != State::Available;
                match &pool.keys[index].state {
                    State::Available => {}
                    State::Leased(_) => self.release_lease(now, (name, index), None, None),
                    State::Resting { .. } | State::Quarantined { .. } => {
                        self.end_hold(now, (name, index), State::Available);
                    }
                }
                observed.check(slot, |reply| match reply {
                    Reply::KeyReleased { released: actual, holder } if *actual == released => {
                        is_holder(holder.as_deref(), before.lease())
                    }
                    _ => Err(format!("expected released = {released}")),
                })
            }
            _ => unreachable!("all other calls name a key"),
        }
    }

    /// Quarantines a key, or lets it drain.
    fn quarantine(
        &mut self,
        now: Instant,
        (name, index): (&str, usize),
        options: &QuarantineOptions,
    ) {
        let key = &mut self.pools.get_mut(name).expect("an existing pool").keys[index];
        let before = match &key.state {
            State::Quarantined { reason } => Some(reason.clone()),
            State::Available | State::Leased(_) | State::Resting { .. } => key.drain.clone(),
        };
        let given = options.reason.as_deref().filter(|reason| !reason.is_empty());
        let reason = given.map(Into::into).or_else(|| before.clone().flatten());
        let is_leased = key.state.lease().is_some();
        if is_leased && !options.when_free {
            self.end_hold(now, (name, index), State::Quarantined { reason });
        } else if before.as_ref() == Some(&reason) {
            // Nothing changes.
        } else if is_leased {
            key.drain = Some(reason);
            self.durable = now.lease;
        } else {
            self.end_hold(now, (name, index), State::Quarantined { reason });
        }
    }
}
