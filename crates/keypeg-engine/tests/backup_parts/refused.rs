//! Backups that are not begun.

use super::Original;
use super::support::{Driver, ManualClock, engine_config, list_pools};
use keypeg_store::{BackupRefused, Reply};

#[test]
fn a_second_backup_at_the_same_time_is_refused_and_a_later_one_is_not() {
    let mut original = Original::new(4);
    let backup = original.prepared();
    let second = original.driver.engine.begin_backup().unwrap();
    assert_eq!(second.unwrap_err(), BackupRefused::Running);
    drop(backup);
    original.back_up();
}

#[test]
fn an_engine_in_memory_has_no_backups() {
    let clock = ManualClock::new();
    let mut driver = Driver::open_with(None, &clock, 1, &engine_config()).expect("opens");
    assert!(driver.engine.begin_backup().is_none());
    assert!(matches!(driver.call(list_pools()), Reply::Pools(_)));
}
