//! The in-memory log keeps the contract, also with faults; and the suite detects each defect.

use keypeg_log::conformance::{self, Failure};
use keypeg_log::memory::{Defect, Faults, MemoryLog};
use keypeg_log::{Append, Frame, FrameId, FrameKind, Guarantee, LogError, Shard, SharedLog, Tail};

const GUARANTEES: [Guarantee; 2] = [Guarantee::Chained, Guarantee::Created];

const FAULTS: Faults = Faults {
    lost_requests: 50,
    lost_answers: 50,
    late_duplicates: 0,
    delay_max_us: 2_000,
    late_max_us: 0,
    replication_max_us: 3_000,
    timeout_us: 6_000,
};

fn failures(log: &MemoryLog) -> Vec<Failure> {
    log.run(conformance::run(log, 0, 7))
}

fn frame(after: Tail, id: u8, kind: FrameKind) -> Frame {
    Frame::new(Shard::FIRST, after, FrameId::new([id; 16]), kind, &[id]).expect("a short payload")
}

fn turn(after: Tail, id: u8) -> Frame {
    frame(after, id, FrameKind::Turn)
}

fn append(log: &MemoryLog, frame: &Frame) -> Append {
    log.run(log.append(frame))
}

#[test]
fn the_log_in_memory_keeps_the_contract() {
    for guarantee in GUARANTEES {
        assert_eq!(failures(&MemoryLog::new(guarantee)), [], "{guarantee:?}");
    }
}

#[test]
fn the_log_in_memory_keeps_the_contract_with_lost_and_late_messages() {
    for seed in 0..8 {
        for guarantee in GUARANTEES {
            let log = MemoryLog::with_faults(guarantee, FAULTS, seed);
            assert_eq!(failures(&log), [], "{guarantee:?}, seed {seed}");
        }
    }
}

#[test]
fn a_probe_refuses_a_log_that_ignores_the_condition_of_an_append() {
    for guarantee in GUARANTEES {
        let log = MemoryLog::new(guarantee);
        assert!(log.run(log.probe([3; 16])).is_ok(), "{guarantee:?}");
        let log = MemoryLog::new(guarantee).with_defect(Defect::IgnoreCondition);
        let error = log.run(log.probe([3; 16])).unwrap_err();
        assert!(error.to_string().contains("two frames at position 1"), "{error}");
    }
}

#[test]
fn the_suite_detects_each_defect() {
    for defect in Defect::ALL {
        for guarantee in GUARANTEES.into_iter().filter(|it| defect.applies_to(*it)) {
            let failures = failures(&MemoryLog::new(guarantee).with_defect(defect));
            assert!(!failures.is_empty(), "{guarantee:?} with {defect:?} passes");
        }
    }
}

#[test]
fn the_case_of_a_defect_is_the_one_that_names_it() {
    for (defect, case) in [
        (Defect::IgnoreCondition, "of two frames at one position"),
        (Defect::IgnorePredecessor, "a frame after another predecessor"),
        (Defect::ForgetOwnFrames, "a frame that is appended again"),
        (Defect::SkipHoles, "a read below a trimmed position"),
        (Defect::HideTrimmedEnd, "a read below a log whose frames are all trimmed"),
        (Defect::ReplaceSnapshots, "a complete snapshot is never replaced"),
        (Defect::ListIncompleteSnapshots, "a snapshot is listed when it is complete"),
        (Defect::MixAttempts, "a complete snapshot is never replaced, and attempts do not mix"),
        (Defect::TrimWithoutSnapshot, "a trim above the newest snapshot"),
        (Defect::TrimNewestSnapshot, "a trim removes older snapshots and parts, and keeps"),
        (Defect::FreezeHeartbeats, "heartbeats change"),
        (Defect::ReplaceInstallation, "the installation is made once"),
    ] {
        let failures = failures(&MemoryLog::new(Guarantee::Chained).with_defect(defect));
        let found = failures.iter().any(|failure| failure.case.starts_with(case));
        assert!(found, "{defect:?}: {failures:?}");
    }
    let paused = MemoryLog::new(Guarantee::Created).with_defect(Defect::TrimTakeoverFrames);
    assert!(failures(&paused).iter().any(|it| it.case.starts_with("a server that was paused")));
}

#[test]
fn a_frame_that_was_visible_and_not_replicated_is_gone_after_a_failover() {
    let log = MemoryLog::with_faults(Guarantee::Chained, FAULTS_WITHOUT_LOSS, 1);
    let first = turn(Tail::EMPTY, 1);
    assert!(append(&log, &first).is_appended());
    log.hold_replication(true);
    let second = turn(first.tail(), 2);
    assert!(matches!(append(&log, &second), Append::Unknown(_)));
    assert_eq!(log.run(log.tail(Shard::FIRST)), Ok(second.tail()), "a read shows it");
    assert!(matches!(append(&log, &second), Append::Unknown(_)), "a repetition proves nothing");
    log.fail_over();
    assert_eq!(log.run(log.tail(Shard::FIRST)), Ok(first.tail()));
    // Both the same bytes and the frame of another server can follow now; a frame that chains to
    // the lost one cannot.
    let third = turn(second.tail(), 3);
    log.hold_replication(false);
    assert!(append(&log, &third).is_taken());
    assert!(append(&log, &second).is_appended());
    assert!(append(&log, &third).is_appended());
}

#[test]
fn a_frame_that_a_restart_left_visible_stands_after_the_next_append_of_its_writer() {
    let log = MemoryLog::with_faults(Guarantee::Chained, FAULTS_WITHOUT_LOSS, 1);
    log.hold_replication(true);
    let first = turn(Tail::EMPTY, 1);
    assert!(matches!(append(&log, &first), Append::Unknown(_)));
    log.restart();
    assert_eq!(log.visible(Shard::FIRST), std::slice::from_ref(&first));
    assert_eq!(log.replicated(Shard::FIRST), []);
    log.hold_replication(false);
    assert!(append(&log, &first).is_appended(), "the same bytes, after replication continues");
    assert_eq!(log.replicated(Shard::FIRST), [first]);
}

#[test]
fn without_a_chain_a_failover_can_leave_a_gap_which_a_read_reports() {
    let log = MemoryLog::with_faults(Guarantee::Created, FAULTS_WITHOUT_LOSS, 1);
    log.hold_replication(true);
    let first = turn(Tail::EMPTY, 1);
    assert!(matches!(append(&log, &first), Append::Unknown(_)));
    log.fail_over();
    log.hold_replication(false);
    let second = frame(first.tail(), 2, FrameKind::Takeover);
    assert!(append(&log, &second).is_appended(), "no chain: nothing checks the predecessor");
    let read = log.run(log.read(Shard::FIRST, 0, 1000));
    assert_eq!(read, Err(LogError::Hole { shard: Shard::FIRST, missing: 1, found: 2 }));
}

#[test]
fn a_lost_frame_is_a_hole_for_a_reader() {
    let log = MemoryLog::new(Guarantee::Chained);
    let mut after = Tail::EMPTY;
    for id in 1..=3 {
        let frame = turn(after, id);
        assert!(append(&log, &frame).is_appended());
        after = frame.tail();
    }
    log.remove_frame(Shard::FIRST, 2);
    let first = log.run(log.read(Shard::FIRST, 0, 1 << 20)).unwrap();
    assert_eq!(first.len(), 1);
    let read = log.run(log.read(Shard::FIRST, 1, 1 << 20));
    assert_eq!(read, Err(LogError::Hole { shard: Shard::FIRST, missing: 2, found: 3 }));
}

const FAULTS_WITHOUT_LOSS: Faults = Faults {
    lost_requests: 0,
    lost_answers: 0,
    late_duplicates: 0,
    delay_max_us: 100,
    late_max_us: 0,
    replication_max_us: 100,
    timeout_us: 1_000,
};

/// A server of the simulation below: what it believes to be the end of the log, and the frame whose
/// outcome it does not know yet.
struct Writer {
    after: Option<Tail>,
    unknown: Option<Frame>,
}

/// Three servers take the shard from each other, over lost and late messages, restarts and
/// failovers. Everything acknowledged must stand, in one chain, to the end.
#[test]
fn what_was_acknowledged_stands_over_failovers_and_late_duplicates() {
    let (mut acknowledged_in_all, mut takeovers, mut fenced) = (0, 0, 0);
    for seed in 0..150 {
        let faults = Faults { late_duplicates: 100, late_max_us: 50_000, ..FAULTS };
        let log = MemoryLog::with_faults(Guarantee::Chained, faults, seed);
        let mut random = Random(seed);
        let mut writers = [const { Writer { after: None, unknown: None } }; 3];
        let mut acknowledged: Vec<Frame> = Vec::new();
        for step in 0..200_u32 {
            match random.below(60) {
                0 => log.fail_over(),
                1 => log.restart(),
                2 => log.hold_replication(true),
                3..=8 => log.hold_replication(false),
                _ => {}
            }
            let writer = &mut writers[random.below(3)];
            if random.below(10) == 0 {
                *writer = Writer { after: None, unknown: None };
            }
            let frame = match (writer.unknown.take(), writer.after) {
                (Some(frame), _) => frame,
                (None, Some(after)) => new_frame(after, seed, step, FrameKind::Turn),
                (None, None) => {
                    let Ok(after) = log.run(log.tail(Shard::FIRST)) else { continue };
                    takeovers += 1;
                    new_frame(after, seed, step, FrameKind::Takeover)
                }
            };
            match append(&log, &frame) {
                Append::Appended => {
                    writer.after = Some(frame.tail());
                    acknowledged.push(frame);
                }
                Append::Taken => {
                    fenced += 1;
                    writer.after = None;
                }
                Append::Unknown(_) => writer.unknown = Some(frame),
            }
        }
        log.fail_over();
        log.hold_replication(false);
        let standing = log.replicated(Shard::FIRST);
        assert!(Frame::check_chain(Shard::FIRST, Tail::EMPTY, &standing).is_ok(), "seed {seed}");
        for frame in &acknowledged {
            assert!(standing.contains(frame), "seed {seed}: {frame:?} is lost");
        }
        acknowledged_in_all += acknowledged.len();
    }
    assert!(acknowledged_in_all > 1000 && takeovers > 1000 && fenced > 1000);
}

fn new_frame(after: Tail, seed: u64, step: u32, kind: FrameKind) -> Frame {
    let mut id = [1; 16];
    id[..8].copy_from_slice(&seed.to_le_bytes());
    id[8..12].copy_from_slice(&step.to_le_bytes());
    Frame::new(Shard::FIRST, after, FrameId::new(id), kind, b"").expect("a short payload")
}

/// Random numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % bound).expect("below the bound")
    }
}
