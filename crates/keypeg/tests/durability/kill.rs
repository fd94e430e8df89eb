//! Repeated SIGKILL under load on one data directory: every acknowledged change survives.
//!
//! `KEYPEG_KILL_ROUNDS` sets the number of rounds, `KEYPEG_KILL_SEED` repeats a run's random
//! choices.

use crate::support::history::{
    SERVER_ARGS, SeededRandom, SharedHistory, env_number, run_clients, start_round,
    threads_of_round,
};
use crate::support::{Server, TempDir, pause};
use std::time::Duration;

#[test]
fn acknowledged_changes_survive_sigkill() {
    let rounds = env_number("KEYPEG_KILL_ROUNDS").unwrap_or(6);
    let seed = env_number("KEYPEG_KILL_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("KEYPEG_KILL_SEED={seed} KEYPEG_KILL_ROUNDS={rounds}");
    let dir = TempDir::new();
    let random = &mut SeededRandom(seed);
    let history = SharedHistory::default();
    for round in 0..rounds {
        let args = [&SERVER_ARGS[..], &threads_of_round(round)].concat();
        let mut server = Server::on(&dir, &args);
        start_round(&server, &history);
        let wait = Duration::from_millis(50 + random.below(350));
        run_clients(&mut server, &history, random, |server| {
            pause(wait);
            server.kill();
        });
    }
    let (acked, grants, _) = history.lock().unwrap().counts();
    println!("{rounds} kills, {acked} changes acknowledged, {grants} grants among them");
    assert!(grants > 0, "the clients acquired keys");
}
