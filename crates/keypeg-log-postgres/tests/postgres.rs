//! The log in a real PostgreSQL: the contract, what a start refuses, and what a primary with a
//! synchronous standby does when it is restarted, lost or cancelled.

mod support;

use keypeg_log::conformance;
use keypeg_log::{Append, Frame, FrameId, FrameKind, LogError, Shard, SharedLog as _, Tail, wait};
use keypeg_log_postgres::PostgresLog;
use keypeg_testkit::TempDir;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use support::{Pooler, Server, programs, runtime};

const SHARD: Shard = Shard::FIRST;
/// For calls that succeed, however slow the machine is.
const PATIENT: &str = "timeout_s=60";
/// For appends that must end without an answer.
const HASTY: &str = "timeout_s=1";

fn turn(after: Tail, id: u64) -> Frame {
    let mut bytes = [1; 16];
    bytes[..8].copy_from_slice(&id.to_le_bytes());
    Frame::new(SHARD, after, FrameId::new(bytes), FrameKind::Turn, b"payload").expect("short")
}

fn append(log: &PostgresLog, frame: &Frame) -> Append {
    wait(log.append(frame))
}

#[track_caller]
fn appended(log: &PostgresLog, frame: &Frame) -> Tail {
    let outcome = append(log, frame);
    assert!(outcome.is_appended(), "{frame:?}: {outcome:?}");
    frame.tail()
}

#[test]
fn postgresql_keeps_the_contract() {
    let Some(programs) = programs("postgresql_keeps_the_contract") else { return };
    let (server, runtime) = (Server::start(&programs), runtime());

    // Before anything exists, a primary alone is refused, with the next step.
    let log = server.log(PATIENT, &runtime);
    let error = wait(log.probe([1; 16])).expect_err("no standby");
    assert!(error.to_string().contains("add durability=storage to the URL"), "{error}");

    let log = server.log("durability=storage&timeout_s=60", &runtime);
    let report = wait(log.probe([1; 16])).expect("storage that is replicated");
    assert!(report.store.starts_with("PostgreSQL 1"), "{report:?}");
    assert!(report.store.contains("durability=storage"), "{report:?}");
    assert_eq!(report.warnings, [""; 0]);
    assert_eq!(wait(conformance::run(&log, 100, 5)), []);
    assert_eq!(server.sql("select count(*) from keypeg.frame where shard = 65535"), "0");

    // A second installation in the same database does not see the first.
    let other = server.log("durability=storage&schema=other&timeout_s=60", &runtime);
    wait(other.probe([2; 16])).expect("tables of its own");
    assert_eq!(wait(conformance::run(&other, 100, 5)), []);
}

#[test]
fn several_servers_that_start_at_once_create_the_tables_once() {
    let Some(programs) = programs("several_servers_that_start_at_once") else { return };
    let (server, runtime) = (Server::start(&programs), runtime());
    let logs: Vec<_> =
        (0..4).map(|_| server.log("durability=storage&timeout_s=60", &runtime)).collect();
    std::thread::scope(|scope| {
        for (log, number) in logs.iter().zip(1..) {
            scope.spawn(move || wait(log.probe([number; 16])).expect("a prepared store"));
        }
    });
    let ids: Vec<_> = logs
        .iter()
        .zip(1..)
        .map(|(log, number)| wait(log.installation(&[number])).expect("an installation"))
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[test]
fn a_start_refuses_what_it_cannot_use_and_says_what_to_do() {
    let Some(programs) = programs("a_start_refuses_what_it_cannot_use") else { return };
    let (server, runtime) = (Server::start(&programs), runtime());
    let refusal = |url: &str| {
        let log = PostgresLog::new(url.parse().expect("a valid URL"), runtime.handle().clone());
        wait(log.expect("a log").probe([1; 16])).expect_err(url).to_string()
    };
    let url = server.url("durability=storage&timeout_s=60");

    wait(server.log("durability=storage&timeout_s=60", &runtime).probe([1; 16])).expect("tables");
    server.sql("update keypeg.meta set version = 9");
    let error = refusal(&url);
    assert!(error.contains("have version 9") && error.contains("use the newer server"), "{error}");

    server.sql("create role reader login");
    let error = refusal(&url.replace("postgres@", "reader@").replace('?', "?schema=theirs&"));
    assert!(error.contains("create schema theirs authorization USER"), "{error}");

    let error = refusal(&url.replace("/postgres?", "/missing?"));
    assert!(error.contains("\"missing\" does not exist"), "{error}");
    assert!(error.contains("create the database"), "{error}");

    // Whichever of two hosts comes first, the error says what an operator must mend.
    let host = server.sockets().replace('/', "%2F");
    let two = url.replace(&host, &format!("{host},%2Fnowhere")).replace("/postgres?", "/missing?");
    for _ in 0..16 {
        let error = refusal(&two);
        assert!(error.contains("create the database") && !error.contains("/nowhere"), "{error}");
    }

    let error = refusal(&url.replace(".sockets/", ".nowhere/"));
    assert!(error.contains("does not answer"), "{error}");

    server.sql("alter system set fsync = off");
    server.sql("select pg_reload_conf()");
    server.wait_for("select setting = 'off' from pg_settings where name = 'fsync'");
    let error = refusal(&url);
    assert!(error.contains("fsync is off") && error.contains("Set fsync = on"), "{error}");
}

/// A dump that was restored in part, or the tables of another program: what is missing is named, and what
/// to do. No server creates a table beside those that exist: it would be empty.
#[test]
fn a_missing_table_or_column_is_named_with_the_next_step_and_not_created() {
    let Some(programs) = programs("a_missing_table_or_column_is_named") else { return };
    let (server, runtime) = (Server::start(&programs), runtime());
    let log = |schema: &str| {
        server.log(&format!("durability=storage&schema={schema}&timeout_s=60"), &runtime)
    };
    for (schema, change, missing) in [
        ("a", "drop table a.frame", "relation \"a.frame\" does not exist (42P01)"),
        ("b", "drop table b.head", "relation \"b.head\" does not exist (42P01)"),
        ("c", "drop table c.server", "relation \"c.server\" does not exist (42P01)"),
        ("d", "alter table d.head drop column proofs", "column \"proofs\""),
        ("e", "alter table e.meta drop column version", "column \"version\""),
    ] {
        wait(log(schema).probe([1; 16])).expect("tables");
        server.sql(change);
        let log = log(schema);
        let started = wait(log.probe([2; 16])).map(drop);
        // The start needs no heartbeat.
        let error = started.and_then(|()| wait(log.heartbeats()).map(drop)).expect_err(change);
        assert!(matches!(error, LogError::Unsuitable(_)), "{change}: {error:?}");
        let error = error.to_string();
        assert!(error.contains(missing), "{change}: {error}");
        assert!(error.contains("if they were there before, restore them"), "{change}: {error}");
        assert!(error.contains("use another schema=NAME"), "{change}: {error}");
        assert!(error.contains("does not exist (42"), "{change}: {error}");
    }
    let left = "select count(*) from pg_tables where schemaname in ('a', 'b', 'c', 'd', 'e')";
    assert_eq!(server.sql(left), (5 * 6 - 3).to_string());
}

#[test]
fn tls_checks_the_certificate_and_the_name_of_the_server() {
    let Some(programs) = programs("tls_checks_the_certificate") else { return };
    let (server, runtime) = (Server::start(&programs), runtime());
    let (dir, authority, other) = (TempDir::new(), authority("ours"), authority("other"));
    let key = KeyPair::generate().expect("a key");
    let names = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let certificate = names.signed_by(&key, &authority).expect("a certificate");
    let port = server.serve_tls(&certificate.pem(), &key.serialize_pem());
    let file = |name: &str, pem: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, pem).expect("a file");
        path.display().to_string()
    };
    let (ours, others) = (file("ours.pem", authority.pem()), file("other.pem", other.pem()));
    let probe = |host: &str, parameters: &str| {
        let url = format!(
            "postgres://postgres@{host}:{port}/postgres?durability=storage&timeout_s=60&{parameters}"
        );
        let log = PostgresLog::new(url.parse().expect("a URL"), runtime.handle().clone());
        wait(log.expect("a log").probe([1; 16]))
    };
    let report = probe("localhost", &format!("sslmode=require&sslrootcert={ours}"));
    assert!(report.is_ok(), "{report:?}");
    for (host, parameters, expected) in [
        (
            "localhost",
            format!("sslmode=require&sslrootcert={others}"),
            "is refused: invalid peer certificate: UnknownIssuer: set sslrootcert=FILE",
        ),
        (
            "127.0.0.1",
            format!("sslmode=require&sslrootcert={ours}"),
            "use a host name of the certificate",
        ),
        // The server accepts TLS alone.
        (
            "localhost",
            "sslmode=disable".to_owned(),
            "check user and password in the URL, and pg_hba",
        ),
    ] {
        let error = probe(host, &parameters).expect_err(&parameters).to_string();
        assert!(error.contains(expected), "{host}, {parameters}: {error}");
    }
}

/// Makes an authority for certificates.
fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().expect("a key");
    CertifiedIssuer::self_signed(params, key).expect("an authority")
}

/// In transaction mode, `synchronous_commit = on` is set in one session, and an append runs in another.
#[test]
fn a_pooler_that_mixes_sessions_is_refused_and_one_that_keeps_them_is_used() {
    let test = "a_pooler_that_mixes_sessions_is_refused";
    let Some(programs) = programs(test) else { return };
    let (server, runtime) = (Server::start(&programs), runtime());
    let Some(pooler) = Pooler::start(&server, "transaction") else {
        let _ = writeln!(std::io::stderr(), "\nskipped test: {test}: no pgbouncer");
        return;
    };
    let error = wait(pooler.log(&runtime).probe([1; 16])).expect_err("sessions without settings");
    assert!(matches!(error, LogError::Unsuitable(_)), "{error}");
    assert!(error.to_string().contains("set pool_mode = session"), "{error}");
    drop(pooler);
    let pooler = Pooler::start(&server, "session").expect("it is installed");
    let log = pooler.log(&runtime);
    wait(log.probe([2; 16])).expect("sessions that are kept");
    assert_eq!(wait(conformance::run(&log, 20, 5)), []);
}

#[test]
fn an_append_that_hangs_on_the_row_of_another_ends_as_unknown_and_is_repeated() {
    let Some(programs) = programs("an_append_that_hangs") else { return };
    let (server, runtime) = (Server::start(&programs), runtime());
    let log = server.log("durability=storage&timeout_s=60", &runtime);
    wait(log.probe([1; 16])).expect("tables");
    let first = turn(Tail::EMPTY, 1);
    let tail = appended(&log, &first);
    let session = server.session(&runtime);
    let lock = "begin; select 1 from keypeg.head where shard = 0 for update";
    runtime.block_on(session.batch_execute(lock)).expect("the lock of the row");
    let second = turn(tail, 2);
    let hasty = server.log("durability=storage&timeout_s=1", &runtime);
    let outcome = append(&hasty, &second);
    assert!(matches!(outcome, Append::Unknown(LogError::Unavailable(_))), "{outcome:?}");
    runtime.block_on(session.batch_execute("rollback")).expect("the end of the lock");
    appended(&log, &second);
    assert_eq!(wait(log.read(SHARD, 0, 1 << 20)), Ok(vec![first, second]));
    // No session waits for the row any more.
    server.wait_for("select count(*) = 0 from pg_stat_activity where wait_event_type = 'Lock'");
}

#[test]
fn what_only_the_primary_has_is_not_acknowledged() {
    let Some(programs) = programs("what_only_the_primary_has") else { return };
    let (server, runtime) = (Server::start(&programs), runtime());
    let standby = server.add_standby();
    let (log, hasty) = (server.log(PATIENT, &runtime), server.log(HASTY, &runtime));
    let report = wait(log.probe([1; 16])).expect("a replicated store");
    assert!(report.store.contains("synchronous standbys FIRST 1 (b)"), "{report:?}");
    let first = turn(Tail::EMPTY, 1);
    let tail = appended(&log, &first);

    // The standby is away: the commit waits, and the same bytes wait for the row of the first
    // attempt.
    standby.stop("fast");
    let second = turn(tail, 2);
    // A slow machine may need several attempts until the first one is sent.
    let waits = "select exists(select from pg_stat_activity where wait_event = 'SyncRep' \
                 and query like '%keypeg.head%')";
    while server.sql(waits) != "t" {
        assert!(matches!(append(&hasty, &second), Append::Unknown(_)));
    }
    assert!(matches!(append(&hasty, &second), Append::Unknown(_)));

    // A cancel request ends the wait, and PostgreSQL reports the commit as done, with a warning: for
    // the proof of the frame that the first attempt wrote, and for the next frame.
    let third = turn(second.tail(), 3);
    let is_done = AtomicBool::new(false);
    let outcomes = std::thread::scope(|scope| {
        scope.spawn(|| {
            let cancel = "select count(pg_cancel_backend(pid)) from pg_stat_activity \
                          where wait_event = 'SyncRep' and query like '%keypeg.head%'";
            while !is_done.load(Ordering::SeqCst) {
                server.sql(cancel);
            }
        });
        let outcomes = [append(&log, &second), append(&log, &third)];
        is_done.store(true, Ordering::SeqCst);
        outcomes
    });
    for outcome in outcomes {
        let Append::Unknown(error) = outcome else { panic!("acknowledged: {outcome:?}") };
        let text = "canceling wait for synchronous replication";
        assert!(error.to_string().contains(text), "{error}");
    }

    // Both frames are visible now, which proves nothing. Nor does a crash of the primary change it.
    assert_eq!(wait(log.tail(SHARD)), Ok(third.tail()));
    assert!(matches!(append(&hasty, &third), Append::Unknown(_)));
    server.kill();
    server.up();
    assert_eq!(wait(log.tail(SHARD)), Ok(third.tail()));
    assert!(matches!(append(&hasty, &third), Append::Unknown(_)));

    // The standby returns, and the same bytes are acknowledged.
    standby.up();
    appended(&log, &third);
    let read = wait(log.read(SHARD, 0, 1 << 20)).expect("three frames");
    assert_eq!(Frame::check_chain(SHARD, Tail::EMPTY, &read), Ok(third.tail()));

    // Without its list of standbys, a primary would acknowledge at once.
    server.sql("alter system set synchronous_standby_names = ''");
    server.sql("select pg_reload_conf()");
    server.wait_for("select current_setting('synchronous_standby_names') = ''");
    let fourth = turn(third.tail(), 4);
    let outcome = append(&log, &fourth);
    let Append::Unknown(error) = outcome else { panic!("not replicated: {outcome:?}") };
    assert!(error.to_string().contains("synchronous_standby_names is empty"), "{error}");
    assert_eq!(wait(log.tail(SHARD)), Ok(third.tail()), "not written");
}

#[test]
fn what_was_acknowledged_stands_after_kill_9_and_promotion_of_the_standby() {
    let Some(programs) = programs("what_was_acknowledged_stands_after_kill_9") else { return };
    let (server, runtime) = (Server::start(&programs), runtime());
    let standby = server.add_standby();
    let log = server.log(PATIENT, &runtime);
    wait(log.probe([1; 16])).expect("a replicated store");
    let mut acknowledged = Vec::new();
    let in_flight = std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1000);
        let writer = scope.spawn(|| {
            let (log, sender, mut after) = (&log, sender, Tail::EMPTY);
            for id in 1.. {
                let frame = turn(after, id);
                if !append(log, &frame).is_appended() {
                    return frame;
                }
                after = frame.tail();
                if sender.send(frame).is_err() {
                    break;
                }
            }
            unreachable!("the receiver outlives the writer")
        });
        acknowledged.extend(receiver.iter().take(100));
        server.kill();
        acknowledged.extend(receiver.iter());
        writer.join().expect("the frame in flight")
    });
    standby.promote();
    // The promoted server has no standby of its own.
    standby.sql("alter system set synchronous_standby_names = ''");
    standby.sql("select pg_reload_conf()");
    let log = standby.log("durability=storage&timeout_s=60", &runtime);
    let last = acknowledged.last().expect("acknowledged frames").tail();
    let tail = wait(log.tail(SHARD)).expect("a tail");
    assert!(tail == last || tail == in_flight.tail(), "{tail:?}, last {last:?}");
    let (mut read, mut above) = (Vec::new(), 0);
    loop {
        let page = wait(log.read(SHARD, above, 4000)).expect("a page");
        let Some(end) = page.last() else { break };
        above = end.position();
        read.extend(page);
    }
    assert_eq!(read[..acknowledged.len()], acknowledged);
    // The writer does not know whether its last frame stands: the same bytes settle it.
    appended(&log, &in_flight);
    // The first primary comes back beside the promoted one. It answers reads, and acknowledges
    // nothing.
    server.up();
    let (stale, hasty) = (server.log(PATIENT, &runtime), server.log(HASTY, &runtime));
    let frame = turn(wait(stale.tail(SHARD)).expect("a stale tail"), 1_000_000);
    assert!(matches!(append(&hasty, &frame), Append::Unknown(_)));
}
