//! Seeds that once failed, as lists of calls, which stay when the calls of a seed change. In each of
//! them the model was wrong, not the engine.

use super::Simulation;
use crate::clients::Action;
use crate::faults::Fault;
use crate::model::{Checked, Rules, ensure};
use crate::simulation::Plan;
use crate::support::{SentCall, list_pools};
use keypeg_core::{
    BodyDigest, ImportOptions, KeyRef, KeyState, KeyView, NewLabels, Policy, PolicyPatch, PoolName,
    ReleaseOptions, Secret,
};
use keypeg_engine::state::JournalSizes;
use keypeg_store::{Call, Reply};

fn pool() -> PoolName {
    PoolName::default_pool()
}

fn generate(count: u32) -> SentCall {
    Call::Generate { pool: pool(), count, labels: NewLabels::None }.into()
}

fn acquire(holder: &str, wait_ms: u64) -> SentCall {
    Call::Acquire { pool: pool(), ttl_ms: None, holder: Some(holder.into()), wait_ms }.into()
}

fn once(key: &str, sent: SentCall) -> SentCall {
    SentCall::with_key(key, BodyDigest(1), sent.call)
}

/// Starts a simulation whose only faults are those of `send_and_lose`.
fn started(seed: u64) -> Simulation {
    started_with(seed, Policy { keepalive_ttl_ms: None, ..Policy::default() })
}

fn started_with(seed: u64, policy: Policy) -> Simulation {
    let segment = 4_096 + 768;
    let plan = Plan {
        steps: 0,
        rules: Rules { waiters_max: 100_000, ..Rules::default() },
        sizes: JournalSizes { segment, journal: 4 * segment },
        limits: Vec::new(),
        sector: 512,
        policy,
        fault_one_in: 0,
        fails: false,
        power_cuts: false,
        stops: false,
        slow_one_in: 0,
        checkpoint_in_turn_one_in: 0,
        checkpoint_between_turns_one_in: 0,
        pauses: false,
        wall_steps: false,
        lost_replies: false,
    };
    let mut simulation = Simulation::new(plan, seed);
    simulation.start(None).expect("starts");
    simulation
}

impl Simulation {
    fn send(&mut self, calls: Vec<SentCall>) -> Checked {
        self.turn(calls.into_iter().map(Action::Call).collect())
    }

    /// Sends a turn whose process ends after the sync of its batch: it takes effect, and its replies
    /// are lost.
    fn send_and_lose(&mut self, calls: Vec<SentCall>) -> Checked {
        self.faults.schedule(Some((1, Fault::Crash { after: true })));
        self.send(calls)?;
        let lost = self.coverage().of("a lost turn had taken effect");
        ensure!(lost > 0, "the turn was not lost");
        Ok(())
    }

    fn keys(&mut self) -> Checked<Vec<KeyView>> {
        let list =
            Call::ListKeys { pool: pool(), state: None, limit: 1_000, cursor: None, label: None };
        let Some(Reply::Page(page)) = self.query(vec![list])?.pop() else {
            return Err("expected a page".into());
        };
        Ok(page.keys)
    }

    fn value(&mut self, key: &KeyView) -> Checked<Secret> {
        let call = Call::Reveal { pool: pool(), key: KeyRef::Id(key.id) };
        let Some(Reply::Revealed { value, .. }) = self.query(vec![call])?.pop() else {
            return Err("expected a value".into());
        };
        Ok(value)
    }
}

/// One turn returned a lease again, released it, and granted its key to a waiter: the two grants in
/// one turn looked like two holders.
#[test]
fn a_lease_can_be_redelivered_and_released_in_the_turn_that_grants_its_key_again() -> Checked {
    let mut simulation = started(1);
    simulation.send(vec![generate(1), once("i", acquire("first", 0))])?;
    simulation.send(vec![acquire("second", 10_000)])?;
    let lease = simulation.keys()?[0].lease.clone().ok_or("leased")?.id;
    let options = ReleaseOptions::default();
    let release = Call::Release { pool: pool(), lease, options };
    simulation.send(vec![once("i", acquire("first", 0)), release.into()])?;
    let holder = simulation.keys()?[0].lease.clone().ok_or("leased")?.holder;
    ensure!(holder.as_deref() == Some("second"), "{holder:?}");
    Ok(())
}

/// A lost turn granted a key, force-released it, and granted it to a waiter: no key seemed to be
/// left for the first grant.
#[test]
fn a_lost_turn_can_grant_a_key_twice_with_a_force_release_between() -> Checked {
    let mut simulation = started(1);
    simulation.send(vec![generate(1)])?;
    let view = simulation.keys()?.remove(0);
    let by_value = KeyRef::Value(simulation.value(&view)?);
    for key in [by_value, KeyRef::Id(view.id)] {
        let take_away = Call::ForceRelease { pool: pool(), key: key.clone() };
        let calls = vec![acquire("first", 0), acquire("second", 10_000), take_away.into()];
        simulation.send_and_lose(calls)?;
        simulation.send(vec![Call::ForceRelease { pool: pool(), key }.into()])?;
    }
    Ok(())
}

/// A key whose creation was lost was shown by a repeated grant: it has a known value from then on.
#[test]
fn a_redelivered_lease_shows_the_value_of_a_key_whose_creation_was_lost() -> Checked {
    let mut simulation = started(1);
    simulation.send(vec![once("i", acquire("waits", 10_000))])?;
    simulation.send_and_lose(vec![generate(1)])?;
    simulation.send(vec![once("i", acquire("waits", 10_000))])?;
    let view = simulation.keys()?.remove(0);
    let key = KeyRef::Value(simulation.value(&view)?);
    simulation.send(vec![Call::GetKey { pool: pool(), key }.into()])
}

/// A lost turn created keys by two calls and granted one of them. Which call had created which key
/// was a guess, which a later reply contradicts, also after a key was deleted.
#[test]
fn a_stored_answer_distinguishes_the_keys_of_a_lost_turn() -> Checked {
    for seed in 0..12 {
        for deletes in [false, true] {
            let mut simulation = started(seed);
            let first = || once("first", generate(2));
            simulation.send_and_lose(vec![first(), generate(2), acquire("holder", 0)])?;
            let keys = simulation.keys()?;
            // Every value is shown before the answer is.
            simulation.send((0..3).map(|n| acquire(&format!("next-{n}"), 0)).collect())?;
            if deletes {
                let index = usize::try_from(seed % 4).expect("small");
                let key = KeyRef::Id(keys[index].id);
                simulation.send(vec![Call::DeleteKey { pool: pool(), key }.into()])?;
            }
            simulation.send(vec![first()])?;
            simulation.send(vec![first(), list_pools().into()])?;
        }
    }
    Ok(())
}

/// A lost turn imported a value that had been deleted, and deleted it again by its id. The model did
/// not know the id of the value that came back, and expected the key.
#[test]
fn a_lost_turn_can_import_a_value_again_and_delete_it_by_its_id() -> Checked {
    let import = |allow_retired| -> SentCall {
        let values = vec![Secret::new("comes back").expect("a value")];
        let options = ImportOptions { allow_retired, keepalive: true };
        Call::Import { pool: pool(), values, options, labels: NewLabels::None }.into()
    };
    let mut simulation = started(1);
    simulation.send(vec![import(false)])?;
    let key = KeyRef::Id(simulation.keys()?.remove(0).id);
    let delete = || SentCall::from(Call::DeleteKey { pool: pool(), key: key.clone() });
    simulation.send(vec![delete()])?;
    simulation.send_and_lose(vec![generate(1), import(true), delete()])?;
    let count = simulation.keys()?.len();
    ensure!(count <= 1, "{count} keys");
    Ok(())
}

/// A lost turn generated keys and leased one of them; when the next start succeeded, the lease had
/// ended and its key rested. Only keys that were known before were tried for the lease.
#[test]
fn a_key_that_a_lost_turn_generated_and_leased_can_rest_at_the_next_start() -> Checked {
    let mut resting = 0;
    for seed in 0..40 {
        let policy = Policy {
            lease_ttl_ms: 1_900,
            rest_ms: 1_000,
            keepalive_ttl_ms: None,
            ..Policy::default()
        };
        let mut simulation = started_with(seed, policy);
        simulation.send(vec![generate(1)])?;
        simulation.send_and_lose(vec![generate(2), acquire("holder", 0)])?;
        let keys = simulation.keys()?;
        resting += keys[1..].iter().filter(|key| key.state == KeyState::Resting).count();
    }
    ensure!(resting > 2, "a new key rested {resting} times");
    Ok(())
}

/// A lease of a minute was released, and the policy became shorter before the backup. The checker
/// counted the lease to its end, so it expected that the restored server lends the key a minute later.
#[test]
fn a_lease_that_was_released_before_a_backup_is_not_held_after_its_restore() -> Checked {
    for seed in [0, 1, 2, 3, 8, 9] {
        let policy = Policy { lease_ttl_ms: 60_000, keepalive_ttl_ms: None, ..Policy::default() };
        let mut simulation = started_with(seed, policy);
        simulation.send(vec![generate(1), acquire("holder", 0)])?;
        let key = KeyRef::Id(simulation.keys()?.remove(0).id);
        simulation.send(vec![Call::ForceRelease { pool: pool(), key }.into()])?;
        let patch = PolicyPatch { lease_ttl_ms: Some(1_000), ..PolicyPatch::default() };
        simulation.send(vec![Call::PutPool { pool: pool(), patch: Box::new(patch) }.into()])?;
        simulation.back_up()?;
        simulation.end_backups()?;
    }
    Ok(())
}
