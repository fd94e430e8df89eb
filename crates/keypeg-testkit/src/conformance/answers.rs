//! The answers of a store as the text that scripts expect.

use super::{Answer, Suite};
use crate::script::Line;
use crate::script::words::{
    duration, form_text, idempotency_key_of, import_options_of, label_text, life_text,
    refused_text, view_text, without_idempotency_key,
};
use keypeg_core::{LeaseView, NewKey, PoolListOptions, Secret};
use keypeg_store::{Answer as _, Call, PoolPage, PoolView, Reply, RequestError};

impl Suite {
    /// Returns the text of a reply, and records the names of its keys and its lease.
    pub(super) fn text(&mut self, verb: &str, args: &[&str], reply: Reply) -> Answer {
        let now_ms = self.store.now_ms();
        Ok(match reply {
            Reply::Released { .. } if verb == "delete" => "deleted".into(),
            Reply::Released { .. } => "released".into(),
            Reply::Done => match verb {
                "revoke" => "revoked",
                _ => "done",
            }
            .into(),
            Reply::Keys(keys) => self.new_keys_text(verb, args, &keys),
            Reply::Granted { lease, value, redelivered: true, .. } => {
                self.redelivered_text(args[0], *lease, &value)
            }
            Reply::Granted { lease, value, waited_ms, .. } => {
                let text = self.granted_text(args[0], *lease, &value);
                format!("{text} waited={}", duration(waited_ms))
            }
            Reply::Renewed(lease) => format!("renewed ttl={}", duration(lease.expires_in_ms)),
            Reply::Revealed { id, value } => {
                let known = &self.keys[self.name_of(id)].1;
                format!("revealed key={} same={}", self.name_of(id), *known == value)
            }
            Reply::KeyReleased { released, .. } => {
                if released { "freed" } else { "already_available" }.into()
            }
            Reply::KeptAlive { expires_at_ms, .. } => {
                format!("kept life={}", life_text(now_ms, expires_at_ms))
            }
            Reply::KeptAliveMany { kept, missing } => {
                let missing: Vec<&str> = missing.iter().map(|id| self.name_of(*id)).collect();
                format!("kept count={kept} missing={}", missing.join(","))
            }
            Reply::Pool { created: true, .. } => "created".into(),
            Reply::Pool { .. } if verb == "pool" => "changed".into(),
            Reply::Pool { .. } => "done".into(),
            Reply::KeyQuarantined { key, .. } => view_text(now_ms, &key, |token| token.to_string()),
            Reply::Key(view) => view_text(now_ms, &view, |token| token.to_string()),
            Reply::Refused(refusal) => return Err(self.refusal_text(&refusal)),
            other @ (Reply::Pools(_) | Reply::Page(_) | Reply::Subscription(_)) => {
                panic!("the answer of another call: {other:?}")
            }
        })
    }

    pub(super) fn refusal_text(&self, refusal: &RequestError) -> String {
        match refusal {
            RequestError::Refused(refusal) => refused_text(self.store.now_ms(), refusal),
            RequestError::KeysExist(known) => format!("key_exists at={}", known.indices[0]),
            // A shard that stops leaves its callers to the next owner.
            RequestError::ShuttingDown | RequestError::NotOwner => "shutting_down".into(),
            RequestError::Overloaded => "overloaded".into(),
            RequestError::StorageFull => "storage_full".into(),
            RequestError::OutcomeUnknown => "outcome_unknown".into(),
        }
    }

    fn new_keys_text(&mut self, verb: &str, args: &[&str], keys: &[NewKey]) -> String {
        let (names, _) = import_options_of(&without_idempotency_key(args));
        let life = life_text(self.store.now_ms(), keys[0].expires_at_ms);
        let known: Option<Vec<_>> = names.iter().map(|name| self.keys.get(*name)).collect();
        if idempotency_key_of(args).is_some()
            && let Some(known) = known
        {
            let received = keys.iter().map(|key| (key.id, key.value.clone()));
            let same = known.into_iter().cloned().eq(received);
            return format!("{} life={life}", if same { "same" } else { "others" });
        }
        if verb == "import" {
            let sent = names.iter().map(|word| self.value(word));
            assert!(sent.eq(keys.iter().map(|key| key.value.clone())), "values are in order");
        }
        if names[0].parse::<u32>().is_err() {
            for (name, key) in names.iter().zip(keys) {
                self.keys.insert((*name).into(), (key.id, key.value.clone()));
            }
        }
        format!("created life={life} {}", form_text(&keys[0]))
    }

    fn granted_text(&mut self, name: &str, lease: LeaseView, value: &Secret) -> String {
        let named = self.keys.iter().find(|(_, (id, _))| *id == lease.key_id);
        let key = named.map_or("?", |(name, (_, known))| {
            assert_eq!(known, value, "the value of the leased key");
            name
        });
        let text = format!(
            "granted key={key} token={} ttl={} life={}{}",
            lease.token,
            duration(lease.expires_in_ms),
            life_text(self.store.now_ms(), lease.key_expires_at_ms),
            label_text(lease.label.as_deref()),
        );
        self.leases.insert(name.into(), lease);
        text
    }

    /// A redelivered lease: equal to the one delivered before, except for the time left.
    fn redelivered_text(&mut self, name: &str, lease: LeaseView, value: &Secret) -> String {
        let mut same = self.leases.values().filter(|before| before.token == lease.token);
        let before = same.next().expect("delivered before").clone();
        let as_delivered = LeaseView { expires_in_ms: before.expires_in_ms, ..lease.clone() };
        let change = if as_delivered == before { "same" } else { "changed" };
        let (_, known) = self.keys.values().find(|(id, _)| *id == lease.key_id).expect("named");
        assert_eq!(known, value, "the value of the leased key");
        let text = format!("redelivered {change} ttl={}", duration(lease.expires_in_ms));
        self.leases.insert(name.into(), lease);
        text
    }

    pub(super) fn counts(&mut self) -> Answer {
        let pool = self.pool.clone();
        let view = Box::<PoolView>::of(self.call(&Call::GetPool { pool }));
        let view = *view.map_err(|refusal| self.refusal_text(&refusal))?;
        let all = Call::list_pools(PoolListOptions::default()).into_call();
        let Ok(PoolPage { pools, .. }) = PoolPage::of(self.call(&all)) else { panic!("a page") };
        let now_ms = self.store.now_ms();
        let PoolView { counts, waiting, next_hold_end_at_ms, next_purge_at_ms, .. } = view;
        Ok(format!(
            "counts available={} leased={} resting={} quarantined={} draining={} \
             total={} server={} waiting={waiting} hold_end={} purge={}",
            counts.available,
            counts.leased,
            counts.resting,
            counts.quarantined,
            counts.draining,
            counts.total(),
            pools.iter().map(|pool| pool.counts.total()).sum::<u64>(),
            life_text(now_ms, next_hold_end_at_ms),
            life_text(now_ms, next_purge_at_ms),
        ))
    }

    /// Checks the tokens of an answer. A script numbers them: the same number is the same token, and
    /// a greater number is a greater token.
    pub(super) fn check_tokens(&mut self, line: &Line<'_>, answer: &Answer) -> bool {
        let token_of = |words: &[&str]| {
            words.iter().find_map(|fact| fact.strip_prefix("token=")?.parse::<u64>().ok())
        };
        let Some(number) = token_of(&line.expected) else { return true };
        let words: Vec<&str> = answer.iter().flat_map(|text| text.split_whitespace()).collect();
        let Some(token) = token_of(&words) else { return false };
        *self.tokens.entry(number).or_insert(token) == token
            && self.tokens.range(..number).all(|(_, below)| *below < token)
            && self.tokens.range(number + 1..).all(|(_, above)| *above > token)
    }
}
