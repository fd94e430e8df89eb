//! The terms of a restore: what an operator gives, and the first token, above all that the original
//! server can have granted.
//!
//! It reads and writes nothing.

use super::error::RestoreError;
use crate::record::REPLAYED_TOKEN_MAX;
use crate::seal::SealKeys;
use crate::state::FIRST_TOKEN_MAX;
use keypeg_core::sabotage::{Sabotage, enabled};

/// The most tokens that a server grants in a second: far more than a machine can.
const TOKENS_PER_S: u64 = 1 << 20;
/// By how much the clocks of two machines may differ: the first token accounts for it.
const CLOCK_ERROR_MS: u64 = 24 * 3_600 * 1_000;

/// The options of a restore.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    /// How long each key is held, in microseconds; `None` is the longest that a lease of its pool
    /// can run.
    pub hold_us: Option<u64>,
    /// The first token that the restored server grants; `None` computes it.
    pub token_floor: Option<u64>,
    /// The time of the restore, wall time in milliseconds.
    pub wall_ms: u64,
    /// The seal keys of a sealed backup: the first one seals the new directory.
    pub seal: Option<SealKeys>,
}

/// Chooses the first token: above all that the original server can have granted until now.
pub(super) fn first_token(
    reserved: u64,
    backup_wall_ms: u64,
    options: &RestoreOptions,
) -> Result<u64, RestoreError> {
    if let Some(floor) = options.token_floor {
        if floor < reserved {
            let message = format!(
                "the token {floor} of --token-floor is too low: the server of the backup may have \
                 granted every token below {reserved}"
            );
            return Err(RestoreError::Tokens(message));
        }
        return Ok(floor);
    }
    let behind_ms = backup_wall_ms.saturating_sub(options.wall_ms);
    if behind_ms > CLOCK_ERROR_MS {
        let message = format!(
            "the clock of this machine is {} hours behind the backup: correct the clock, or name \
             the first token with --token-floor",
            behind_ms / 3_600_000
        );
        return Err(RestoreError::Tokens(message));
    }
    if enabled(Sabotage::KeepTokensAtRestore) {
        return Ok(reserved);
    }
    let elapsed_ms = options.wall_ms.saturating_sub(backup_wall_ms) + CLOCK_ERROR_MS;
    let granted = u128::from(elapsed_ms) * u128::from(TOKENS_PER_S) / 1_000;
    // A backup of an early version, before its first grant: tokens begin at the wall time in
    // microseconds, which grows more slowly than `granted`.
    let begins_at = backup_wall_ms.saturating_mul(1_000).min(FIRST_TOKEN_MAX);
    let reserved = if reserved > 1 { reserved } else { begins_at };
    Ok(reserved.saturating_add(u64::try_from(granted).unwrap_or(u64::MAX)))
}

/// Returns the refusal of a first token that leaves no room for others.
pub(super) fn too_high(first_token: u64) -> RestoreError {
    let message = format!(
        "the first token {first_token} is too high: name one below {REPLAYED_TOKEN_MAX} with \
         --token-floor"
    );
    RestoreError::Tokens(message)
}
