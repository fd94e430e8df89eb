//! Whether another process runs under the name of a server that starts.
//!
//! Heartbeats decide nothing about shards, but two servers of one name overwrite each other's, and
//! then take each other's shards. The log still fences them.

use super::clock::{now, passed_since, sleep};
use super::presence::Presence;
use keypeg_log::{Heartbeat, LogError, ServerName, SharedLog};
use std::time::Duration;

/// How long the heartbeat of a server of this name must stand still: more than two heartbeats.
pub(super) const NAMESAKE_TIME: Duration = Duration::from_millis(2_500);
/// The pause between two looks, and between the first heartbeat and the look whether it has stayed.
pub(super) const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// Returns the address of a server of this name, if its heartbeat changes. Returns at once if there is
/// no heartbeat, as after a clean stop.
pub(super) fn find_namesake(
    log: &dyn SharedLog,
    name: &ServerName,
    time: Duration,
) -> Result<Option<String>, LogError> {
    let Some(found) = read(log, name)? else { return Ok(None) };
    let began = now();
    while passed_since(began) < time {
        sleep(LOOK_PAUSE.min(time));
        match read(log, name)? {
            None => return Ok(None),
            Some(next) if next.count != found.count => {
                return Ok(Some(Presence::read(&next.address).address));
            }
            Some(_) => {}
        }
    }
    Ok(None)
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
    fn a_server_that_was_killed_starts_again_under_its_name() {
        let log = MemoryLog::new(Guarantee::Chained);
        let name = ServerName::new("one").expect("a name");
        let left = Heartbeat::new(name.clone(), "http://one:1", 7).expect("short");
        keypeg_log::wait(log.beat(&left)).expect("the log answers");
        let found = find_namesake(&log, &name, Duration::from_millis(10));
        assert_eq!(found.expect("the log answers"), None);
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
