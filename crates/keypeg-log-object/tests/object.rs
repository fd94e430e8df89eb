//! The log in object stores: the contract in memory, in a directory and in an S3 server, and stores
//! that misbehave.

mod support;

use keypeg_log::conformance;
use keypeg_log::{
    Append, Frame, FrameId, FrameKind, LogError, Shard, SharedLog as _, Snapshot, SnapshotId, Tail,
    wait,
};
use keypeg_log_object::{ObjectLog, Settings};
use keypeg_testkit::TempDir;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;
use support::{Fault, Faulty};
use tokio::runtime::{Builder, Runtime};

const LIMIT: Duration = Duration::from_secs(30);
const SHARD: Shard = Shard::FIRST;

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

fn log_of(store: Arc<dyn ObjectStore>, runtime: &Runtime) -> ObjectLog {
    ObjectLog::new(Settings::new(store, "some/prefix", LIMIT), runtime.handle().clone())
}

fn frame(after: Tail, id: u8, kind: FrameKind) -> Frame {
    Frame::new(SHARD, after, FrameId::new([id; 16]), kind, b"payload").expect("short")
}

#[track_caller]
fn appended(log: &ObjectLog, frame: &Frame) -> Tail {
    let outcome = wait(log.append(frame));
    assert!(outcome.is_appended(), "{frame:?}: {outcome:?}");
    frame.tail()
}

#[test]
fn the_log_in_a_store_in_memory_keeps_the_contract() {
    let (runtime, store) = (runtime(), Arc::new(InMemory::new()));
    let log = log_of(Arc::<InMemory>::clone(&store), &runtime);
    assert_eq!(wait(conformance::run(&log, 0, 3)), []);
    let prefix = Path::from("some/prefix/probe");
    let probes = runtime.block_on(store.list_with_delimiter(Some(&prefix))).expect("a listing");
    assert!(probes.common_prefixes.is_empty(), "the probe leaves nothing: {probes:?}");
}

#[test]
fn the_log_in_a_directory_keeps_the_contract() {
    let (runtime, dir) = (runtime(), TempDir::new());
    let settings = format!("file://{}", dir.path().display()).parse().expect("a URL");
    let log = ObjectLog::new(settings, runtime.handle().clone());
    assert_eq!(wait(conformance::run(&log, 0, 3)), []);
    let report = wait(log.probe([1; 16])).expect("a probed directory");
    assert!(report.warnings[0].contains("on one machine"), "{report:?}");
}

#[test]
fn the_contract_holds_although_answers_are_lost_and_conflicts_are_reported() {
    let runtime = runtime();
    let log = log_of(Arc::new(Faulty::new(Fault::LosesAnswers)), &runtime);
    assert_eq!(wait(conformance::run(&log, 0, 3)), []);
}

#[test]
fn a_store_that_does_not_enforce_the_condition_is_refused() {
    for fault in [Fault::IgnoresCondition, Fault::ChecksBeforeWriting] {
        let runtime = runtime();
        let log = log_of(Arc::new(Faulty::new(fault)), &runtime);
        let error = wait(log.probe([1; 16])).expect_err("two frames at one position");
        assert!(error.to_string().contains("keys could be lent twice"), "{fault:?}: {error}");
    }
}

#[test]
fn a_creation_without_an_answer_is_settled_by_the_same_bytes() {
    let runtime = runtime();
    let log = log_of(Arc::new(Faulty::new(Fault::LosesAnswers)), &runtime);
    let (mut after, mut unknown) = (Tail::EMPTY, 0);
    for id in 1..=50 {
        let frame = frame(after, id, FrameKind::Turn);
        loop {
            match wait(log.append(&frame)) {
                Append::Appended => break,
                Append::Taken => panic!("no other server appends: {frame:?}"),
                Append::Unknown(_) => unknown += 1,
            }
        }
        after = frame.tail();
    }
    assert!(unknown > 10, "{unknown} unknown");
    assert_eq!(wait(log.tail(SHARD)), Ok(after));
}

#[test]
fn a_crash_after_the_mark_of_a_takeover_leaves_a_log_that_goes_on() {
    let (runtime, store) = (runtime(), Arc::new(InMemory::new()));
    let log = log_of(Arc::<InMemory>::clone(&store), &runtime);
    let first = appended(&log, &frame(Tail::EMPTY, 1, FrameKind::Turn));
    // The server that wrote the mark of position 2 never wrote its frame.
    let mark = Path::from("some/prefix/shards/00000/takeovers/00000000000000000002");
    runtime.block_on(store.put(&mark, "".into())).expect("a mark");
    let second = appended(&log, &frame(first, 2, FrameKind::Turn));
    let third = appended(&log, &frame(second, 3, FrameKind::Turn));
    let id = SnapshotId { shard: SHARD, at: third, attempt: FrameId::new([9; 16]) };
    wait(log.complete(Snapshot { id, parts: 0, bytes: 0 })).expect("a snapshot");
    wait(log.trim(SHARD, 3)).expect("a trim");
    // The marked frame is kept, which does no harm.
    assert!(matches!(wait(log.read(SHARD, 0, 1)), Err(LogError::Hole { missing: 1, .. })));
    assert_eq!(wait(log.tail(SHARD)), Ok(third));
}

#[test]
fn a_takeover_after_a_frame_that_is_gone_is_taken() {
    let (runtime, store) = (runtime(), Arc::new(InMemory::new()));
    let log = log_of(Arc::<InMemory>::clone(&store), &runtime);
    let first = appended(&log, &frame(Tail::EMPTY, 1, FrameKind::Turn));
    let second = frame(first, 2, FrameKind::Turn);
    appended(&log, &second);
    let name = Path::from("some/prefix/shards/00000/frames/00000000000000000002");
    runtime.block_on(store.delete(&name)).expect("a lost frame");
    let takeover = frame(second.tail(), 3, FrameKind::Takeover);
    assert!(wait(log.append(&takeover)).is_taken(), "its predecessor is gone");
    // A takeover in the gap is taken too: a frame beyond it does not follow.
    let other = frame(first, 4, FrameKind::Takeover);
    assert!(wait(log.append(&other)).is_taken());
}

#[test]
fn a_damaged_frame_is_named_with_its_position() {
    let (runtime, store) = (runtime(), Arc::new(InMemory::new()));
    let log = log_of(Arc::<InMemory>::clone(&store), &runtime);
    let first = appended(&log, &frame(Tail::EMPTY, 1, FrameKind::Turn));
    appended(&log, &frame(first, 2, FrameKind::Turn));
    let name = Path::from("some/prefix/shards/00000/frames/00000000000000000002");
    runtime.block_on(store.put(&name, "damage".into())).expect("an object");
    let error = wait(log.read(SHARD, 1, 1 << 20)).expect_err("damage");
    assert!(matches!(error, LogError::Damaged { position: 2, .. }), "{error}");
}

/// The error said "the store does not answer", although it had answered.
#[test]
fn a_certificate_that_is_refused_is_named_with_the_next_step() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = stream.unwrap();
            while connection.is_handshaking() && connection.complete_io(&mut stream).is_ok() {}
        }
    });
    let url = format!("s3://b/p?endpoint=https://localhost:{port}&region=r&skip_signature=true");
    let runtime = runtime();
    let log = ObjectLog::new(url.parse().unwrap(), runtime.handle().clone());
    let error = wait(log.probe([1; 16])).unwrap_err();
    assert!(matches!(error, LogError::Unsuitable(_)), "{error}");
    for says in ["the certificate of the object store is refused", "SSL_CERT_FILE"] {
        assert!(error.to_string().contains(says), "{error}");
    }
}
