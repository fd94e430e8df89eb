//! SIGKILL under load, again and again on one directory, and what clients were told still holds.
//!
//! `KEYPEG_KILL_ROUNDS` sets the rounds, `KEYPEG_KILL_SEED` repeats a run's choices.

use crate::support::story::{ARGS, Dice, Shared, begin, given, play};
use crate::support::{Server, TempDir, pause};
use std::time::Duration;

#[test]
fn what_was_told_holds_over_kills() {
    let rounds = given("KEYPEG_KILL_ROUNDS").unwrap_or(6);
    let seed = given("KEYPEG_KILL_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("KEYPEG_KILL_SEED={seed} KEYPEG_KILL_ROUNDS={rounds}");
    let dir = TempDir::new();
    let dice = &mut Dice(seed);
    let story = Shared::default();
    for _ in 0..rounds {
        let mut server = Server::on(&dir, &ARGS);
        begin(&server, &story);
        let wait = Duration::from_millis(50 + dice.below(350));
        play(&mut server, &story, dice, |server| {
            pause(wait);
            server.kill();
        });
    }
    let (acked, grants, _) = story.lock().unwrap().counts();
    println!("{rounds} kills, {acked} changes acknowledged, {grants} grants among them");
    assert!(grants > 0, "the clients did something");
}
