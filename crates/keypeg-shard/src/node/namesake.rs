//! Whether another process runs under the name of this server.
//!
//! Heartbeats decide nothing about shards, but two servers of one name overwrite each other's, and
//! then take each other's shards. The log still fences them. A server does not start while another
//! one of its name runs, and ends when a later one runs.

use super::clock::{now, passed_since, sleep};
use super::presence::Presence;
use keypeg_log::{Heartbeat, LogError, ServerName, Shard, SharedLog};
use std::time::Duration;

/// How long the heartbeat of a server of this name must stand still: more than two heartbeats.
pub(super) const NAMESAKE_TIME: Duration = Duration::from_millis(2_500);
/// The pause between two looks, and between the first heartbeat and the look whether it has stayed.
pub(super) const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// What the heartbeats say about the name of a server that starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// No server sends heartbeats under this name; the last one has this number of its start.
    Free { last_start: u64 },
    /// A server at this address does.
    InUse { address: String },
}

/// Finds out whether the heartbeat of a server of this name changes. Returns at once if there is no
/// heartbeat, as after a clean stop.
pub(super) fn find_namesake(
    log: &dyn SharedLog,
    name: &ServerName,
    time: Duration,
) -> Result<Found, LogError> {
    let Some(found) = read(log, name)? else { return Ok(Found::Free { last_start: 0 }) };
    let began = now();
    while passed_since(began) < time {
        sleep(LOOK_PAUSE.min(time));
        match read(log, name)? {
            None => break,
            Some(next) if next.count != found.count => {
                return Ok(Found::InUse { address: Presence::read(&next.address).address });
            }
            Some(_) => {}
        }
    }
    Ok(Found::Free { last_start: Presence::read(&found.address).start })
}

/// The bits of the number of a start that are random.
const RANDOM_BITS: u32 = 20;

/// Returns the number of a start: greater than that of the last server of this name, and different
/// from that of another process which starts at the same time.
///
/// A clean stop removes the heartbeat, and a paused server of the same name may remain from before. So
/// the number is also greater than those of all starts before the newest frame, of which `frames` have
/// been appended to all shards: each start of a server that took shards over has appended some.
pub(super) fn next_start(last_start: u64, frames: u64, random: u32) -> u64 {
    let generation = (last_start >> RANDOM_BITS).saturating_add(1).max(frames);
    generation.min(u64::MAX >> RANDOM_BITS) << RANDOM_BITS
        | u64::from(random) & ((1 << RANDOM_BITS) - 1)
}

/// Returns the number of frames that have been appended to all shards.
pub(super) fn count_frames(log: &dyn SharedLog, shards: u16) -> Result<u64, LogError> {
    let position = |shard| Ok(keypeg_log::wait(log.tail(Shard::new(shard)))?.position);
    (0..shards).map(position).sum()
}

/// Returns the address of a server of this name that has started later. The heartbeat of this server
/// stood still for so long that another process could start: the machine was paused.
pub(super) fn find_later(all: &[Heartbeat], name: &ServerName, start: u64) -> Option<String> {
    let found = all.iter().find(|heartbeat| heartbeat.server == *name)?;
    let Presence { address, start: other, .. } = Presence::read(&found.address);
    (other > start).then_some(address)
}

/// Returns the address of a server of this name that has started at the same time, if its heartbeat
/// has replaced `sent`, the first one of this server. One of two such servers goes on: that of the
/// later heartbeat. A heartbeat that comes after the pause is not seen.
pub(super) fn find_successor(
    log: &dyn SharedLog,
    sent: &Heartbeat,
    pause: Duration,
) -> Result<Option<String>, LogError> {
    sleep(pause);
    let found = read(log, &sent.server)?.filter(|found| found.count != sent.count);
    Ok(found.map(|found| Presence::read(&found.address).address))
}

fn read(log: &dyn SharedLog, name: &ServerName) -> Result<Option<Heartbeat>, LogError> {
    let all = keypeg_log::wait(log.heartbeats())?;
    Ok(all.into_iter().find(|heartbeat| heartbeat.server == *name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use keypeg_log::Guarantee;
    use keypeg_log::memory::MemoryLog;

    #[test]
    fn only_a_later_start_under_the_same_name_counts() {
        let name = ServerName::new("one").expect("a name");
        let first = next_start(0, 0, u32::MAX);
        let again = next_start(first, 0, 0);
        assert!(first < again && again < next_start(u64::MAX, 0, 1));
        assert!(again < next_start(0, 3, 0), "a clean stop has removed the heartbeat");
        // An older version had 32 random bits.
        assert!(7 << 32 | 5 < next_start(7 << 32 | 5, 3, 0));
        let later = |server: &str, start| {
            let name = ServerName::new(server).expect("a name");
            let presence = Presence { address: "http://b:1".into(), start, ..Presence::default() };
            vec![Heartbeat::new(name, &presence.to_string(), 7).expect("short")]
        };
        assert_eq!(find_later(&later("one", again), &name, first), Some("http://b:1".into()));
        assert_eq!(find_later(&later("one", first), &name, again), None, "an earlier one");
        assert_eq!(find_later(&later("one", first), &name, first), None, "itself");
        assert_eq!(find_later(&later("two", again), &name, first), None, "another name");
        assert_eq!(find_later(&[], &name, first), None);
    }

    #[test]
    fn a_server_that_was_killed_starts_again_under_its_name() {
        let log = MemoryLog::new(Guarantee::Chained);
        let name = ServerName::new("one").expect("a name");
        let left = Heartbeat::new(name.clone(), "http://one:1 start=2a", 7).expect("short");
        keypeg_log::wait(log.beat(&left)).expect("the log answers");
        let found = find_namesake(&log, &name, Duration::from_millis(10));
        assert_eq!(found.expect("the log answers"), Found::Free { last_start: 42 });
    }

    #[test]
    fn only_another_heartbeat_of_the_same_name_is_a_successor() {
        let beat = |log: &MemoryLog, name: &str, count: u64| {
            let name = ServerName::new(name).expect("a name");
            let sent = Heartbeat::new(name, &format!("http://host:{count}"), count).expect("short");
            keypeg_log::wait(log.beat(&sent)).expect("the log answers");
            sent
        };
        let log = MemoryLog::new(Guarantee::Chained);
        let successor = |sent| find_successor(&log, sent, Duration::ZERO).expect("the log answers");
        beat(&log, "a", 7);
        let sent = beat(&log, "one", 7);
        beat(&log, "two", 8);
        assert_eq!(successor(&sent), None, "its own, between those of others");
        // The count of a server begins at random.
        for count in [6, 8] {
            beat(&log, "one", count);
            assert_eq!(successor(&sent), Some(format!("http://host:{count}")));
        }
        keypeg_log::wait(log.forget(&sent.server)).expect("the log answers");
        assert_eq!(successor(&sent), None, "the other one has stopped");
    }
}
