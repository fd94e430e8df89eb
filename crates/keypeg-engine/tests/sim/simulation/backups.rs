//! Backups of the simulated server: turns, checkpoints and ends of the process go on while one is
//! created. At the end, and after some crashes, a second server is restored from the last one.
//!
//! It draws from a source of its own. It knows of each lease what the replies to clients said, and of
//! those before the backup which of them ran at the backup.

use super::Simulation;
use crate::model::{Checked, Model, State};
use crate::support::SeededRandom;
use keypeg_core::{KeyId, Policy};
use keypeg_engine::SealKeys;
use keypeg_engine::backup::Backup;
use keypeg_store::{BackupRefused, Call, Reply};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// The backups of one simulation.
pub(super) struct Backups {
    /// `None` if this simulation creates none.
    random: Option<SeededRandom>,
    running: Option<Backup>,
    saved: Option<SavedBackup>,
    /// The token of the last lease of each key, and the latest true time at which it can end, by the
    /// replies to clients.
    lent_until_ms: BTreeMap<KeyId, (u64, u64)>,
    /// The longest time of a lease that a client asked a pool for since the saved backup.
    longest_ms: u64,
}

/// A complete backup, and what is known of the data at its position.
pub(super) struct SavedBackup {
    pub(super) bytes: Vec<u8>,
    /// The models that can be true.
    pub(super) models: Vec<Model>,
    /// The keys of the seal; `None` if it has none.
    pub(super) seal: Option<SealKeys>,
}

/// How long a lease of a pool can run.
pub(super) fn hold_ms(policy: &Policy) -> u64 {
    policy.max_hold_ms.unwrap_or(policy.lease_ttl_ms)
}

impl Backups {
    /// Half of all seeds have backups, with and without a seal.
    pub(super) fn of(seed: u64) -> Self {
        let random = (seed / 4).is_multiple_of(2).then_some(SeededRandom(seed ^ 0xbac1));
        let (running, saved, lent_until_ms) = (None, None, BTreeMap::new());
        Self { random, running, saved, lent_until_ms, longest_ms: 0 }
    }

    fn one_in(&mut self, one_in: u64) -> bool {
        self.random.as_mut().is_some_and(|random| random.below(one_in) == 0)
    }

    /// Notes a call that is sent: it can let leases run longer than they did at the backup.
    pub(super) fn send(&mut self, call: &Call) {
        if let Call::PutPool { patch, .. } = call {
            let lengths = [patch.lease_ttl_ms, patch.max_hold_ms.flatten()];
            self.longest_ms = lengths.into_iter().flatten().fold(self.longest_ms, u64::max);
        }
    }

    /// Notes replies of a turn that ended at `now_ms`, delivered or not.
    pub(super) fn receive<'a>(&mut self, replies: impl Iterator<Item = &'a Reply>, now_ms: u64) {
        for reply in replies {
            if let Reply::Granted { lease, .. } | Reply::Renewed(lease) = reply {
                let until_ms = now_ms + lease.expires_in_ms;
                let known = self.lent_until_ms.entry(lease.key_id).or_default();
                *known = match lease.token.cmp(&known.0) {
                    Ordering::Greater => (lease.token, until_ms),
                    Ordering::Equal => (lease.token, until_ms.max(known.1)),
                    Ordering::Less => *known,
                };
            }
        }
    }

    /// Forgets the leases that no model has when a backup is taken: each was released, or ended by time
    /// or with its key. The policy may have become shorter since, and with it the hold of the restore.
    fn forget_ended(&mut self, models: &[Model]) {
        self.lent_until_ms.retain(|id, _| {
            let keys = || {
                let pools = models.iter().flat_map(|model| model.pools.values());
                pools.flat_map(|pool| &pool.keys).filter(|key| key.id == Some(*id))
            };
            keys().next().is_none() || keys().any(|key| matches!(key.state, State::Leased(_)))
        });
    }

    /// Returns until when the server that was backed up may have lent a key, in true time.
    pub(super) fn lent_until_ms(&self, key: KeyId) -> u64 {
        self.lent_until_ms.get(&key).map(|(_, until_ms)| *until_ms).unwrap_or_default()
    }
}

impl Simulation {
    /// Begins a backup, or goes on with the one that runs.
    pub(super) fn step_backup(&mut self) -> Checked {
        if !self.backups.one_in(if self.backups.running.is_some() { 5 } else { 25 }) {
            return Ok(());
        }
        let Some(backup) = &mut self.backups.running else {
            let engine = self.engine.as_ref().expect("the engine runs");
            let begun = engine.begin_backup().expect("the engine has a disk");
            let backup = begun.map_err(|why| format!("a backup is refused: {why}"))?;
            self.backups.running = Some(backup);
            self.note("a backup begins");
            return Ok(());
        };
        if let Some(checkpointer) = &*self.faults.checkpointer.lock().unwrap() {
            checkpointer.serve_backup();
        }
        match backup.prepare() {
            Ok(true) => self.write_backup(),
            Ok(false) => Ok(()),
            Err(why) => self.backup_failed(&why),
        }
    }

    /// Takes a backup at once, for a story.
    pub(super) fn back_up(&mut self) -> Checked {
        let engine = self.engine.as_ref().expect("the engine runs");
        let begun = engine.begin_backup().expect("the engine has a disk");
        self.backups.running = Some(begun.map_err(|why| format!("a backup is refused: {why}"))?);
        loop {
            if let Some(checkpointer) = &*self.faults.checkpointer.lock().unwrap() {
                checkpointer.serve_backup();
            }
            let backup = self.backups.running.as_mut().expect("begun");
            if backup.prepare().map_err(|why| format!("a backup failed: {why}"))? {
                return self.write_backup();
            }
            self.turn(Vec::new())?;
        }
    }

    /// Copies the data of this moment, while clients go on.
    fn write_backup(&mut self) -> Checked {
        let backup = self.backups.running.take().expect("a backup runs");
        let models: Vec<_> = self.models.iter().map(|of| of.model.clone()).collect();
        let (seal, process) = (self.sealing.keys(), self.sealing.starts());
        (self.backups.saved, self.backups.longest_ms) = (None, 0);
        self.backups.forget_ended(&models);
        let (mut bytes, mut outcome, mut has_ended) = (Vec::new(), Ok(()), false);
        let written = backup.write(|piece| {
            bytes.extend(piece);
            if self.backups.one_in(3) {
                outcome = self.step_within_backup();
                has_ended = self.sealing.starts() != process;
            }
            let goes_on = outcome.is_ok() && !has_ended;
            goes_on.then_some(()).ok_or(BackupRefused::ShuttingDown)
        });
        outcome?;
        match written {
            Ok(()) => {
                self.note("a backup is complete");
                self.coverage.count("a backup was completed");
                self.backups.saved = Some(SavedBackup { bytes, models, seal });
                Ok(())
            }
            Err(_) if has_ended => {
                self.coverage.count("the process ended while a backup was written");
                Ok(())
            }
            Err(why) => self.backup_failed(&why),
        }
    }

    /// Plays a turn, and perhaps a checkpoint, between two pieces of a backup.
    fn step_within_backup(&mut self) -> Checked {
        self.coverage.count("a turn ran while a backup was written");
        let ms = self.draw_elapsed_ms();
        self.advance(ms);
        self.schedule_fault();
        let actions = self.draw_actions();
        self.turn(actions)?;
        if self.one_in(2) {
            self.faults.step_checkpointer();
            self.check_checkpointer()?;
        }
        self.faults.schedule(None);
        Ok(())
    }

    fn backup_failed(&mut self, why: &BackupRefused) -> Checked {
        self.end_running_backup();
        self.note(&format!("the backup ends: {why}"));
        let is_slow = matches!(why, BackupRefused::Failed(why) if why.contains("more slowly"));
        if is_slow {
            self.coverage.count("a backup was slower than the journal grew");
        } else if *why == BackupRefused::StorageFull && self.plan.rules.disk_can_fill {
            self.coverage.count("a backup met a full disk");
        } else {
            return Err(format!("a backup failed: {why}"));
        }
        Ok(())
    }

    /// Ends a backup that is not complete: its process has ended, or no faults follow.
    pub(super) fn end_running_backup(&mut self) {
        self.backups.running = None;
    }

    /// Ends the backup that runs, and restores the last one.
    pub(super) fn end_backups(&mut self) -> Checked {
        self.end_running_backup();
        self.restore_saved()
    }

    /// Restores the last backup after some ends of the process, before the next start.
    pub(super) fn restore_sometimes(&mut self) -> Checked {
        if self.backups.one_in(20) { self.restore_saved() } else { Ok(()) }
    }

    fn restore_saved(&mut self) -> Checked {
        let Some(saved) = self.backups.saved.take() else { return Ok(()) };
        let random = self.backups.random.as_mut().expect("a backup was drawn").next();
        let longest_ms = self.backups.longest_ms;
        let checked = self.restore(&saved, longest_ms, SeededRandom(random));
        self.backups.saved = Some(saved);
        checked.map_err(|why| format!("restored: {why}"))
    }
}
