//! Faults of the disk, memory, descriptors and clocks, injected into the real binary under load.
//!
//! The server ends with a reason, or continues to serve; after the next start every acknowledged
//! change still holds. `KEYPEG_FAULT_POINTS` sets how many system calls of each kind fail, one a
//! round; `KEYPEG_FAULT_SEED` repeats a run's random choices.

use crate::support::history::{
    SERVER_ARGS, SeededRandom, SharedHistory, env_number, run_clients, start_round,
    threads_of_round,
};
use crate::support::tokens::Tokens;
use crate::support::volume::{Volume, run};
use crate::support::{
    Server, TempDir, eventually, http_threads, keypeg, keypeg_under, now, pause, skipped,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

fn serve(under: &[&str], data: &Path) -> Command {
    let mut command =
        if under.is_empty() { keypeg(&SERVER_ARGS) } else { keypeg_under(under, &SERVER_ARGS) };
    command.arg("--data").arg(data).env("KEYPEG_LOG", "info");
    command
}

/// The path of the library on Debian.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

fn has(tool: &str, test: &str) -> bool {
    run(tool, &["--version"]).map_err(|why| skipped(test, &why)).is_ok()
}

/// Waits for a server to end by itself, for at most `time`.
fn ends_within(server: &mut Server, time: Duration) -> Option<ExitStatus> {
    let begun = now();
    while begun.elapsed() < time {
        if let Some(status) = server.ended() {
            return Some(status);
        }
        pause(Duration::from_millis(5));
    }
    None
}

/// Each of the first system calls of a kind fails, one a round, at a start or under load.
#[test]
fn a_failed_system_call_ends_the_server_or_loses_nothing() {
    if !has("strace", "a_failed_system_call_ends_the_server_or_loses_nothing") {
        return;
    }
    let points = env_number("KEYPEG_FAULT_POINTS").unwrap_or(3);
    let seed = env_number("KEYPEG_FAULT_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("KEYPEG_FAULT_SEED={seed} KEYPEG_FAULT_POINTS={points}");
    let (dir, random, history) =
        (TempDir::new(), &mut SeededRandom(seed), SharedHistory::default());
    let (data, log) = (dir.path().join("data"), dir.path().join("log"));
    start_round(&Server::logged(&mut serve(&[], &data), &log), &history);
    let (mut ended, mut continued) = (0, 0);
    // The dynamic loader makes the first openat calls; a start makes some 20 syncs and 20 writes.
    for (call, error, first, step) in [
        ("fdatasync", "EIO", 1, 7),
        ("fsync", "EIO", 1, 2),
        ("pwrite64", "EIO", 1, 9),
        ("pwrite64", "ENOSPC", 3, 11),
        ("openat", "EMFILE", 14, 3),
        ("renameat", "EIO", 1, 1),
        ("renameat2", "EIO", 1, 1),
        ("unlinkat", "EIO", 1, 1),
        ("ftruncate", "EIO", 1, 1),
        ("flock", "EIO", 1, 1),
    ] {
        for point in 0..points {
            let when = first + point * step;
            let inject = format!("--inject={call}:error={error}:when={when}");
            println!("{inject}");
            let trace = format!("trace={call}");
            let words = ["strace", "-D", "-f", "-q", "-o", "/dev/null", "-e", &trace, &inject];
            std::fs::write(&log, "").unwrap();
            let mut command = serve(&words, &data);
            let started = Server::try_logged(command.args(threads_of_round(point)), &log);
            let status = match started {
                Err(status) => Some(status),
                Ok(mut server) => {
                    let mut status = None;
                    run_clients(&mut server, &history, random, |server| {
                        status = ends_within(server, Duration::from_millis(150));
                        server.kill();
                    });
                    status
                }
            };
            let said = std::fs::read_to_string(&log).unwrap();
            assert!(!said.contains("panicked"), "{inject}: {said}");
            if let Some(status) = status {
                ended += 1;
                let codes = [66, 71, 74];
                assert!(
                    status.code().is_some_and(|code| codes.contains(&code)),
                    "{status}: {said}"
                );
                assert!(
                    said.contains("keypeg: ") || said.contains(" ERROR "),
                    "{inject}: {status} without a reason: {said}"
                );
            } else {
                continued += 1;
            }
            start_round(&Server::logged(&mut serve(&[], &data), &log), &history);
        }
    }
    let (acked, grants, _) = history.lock().unwrap().counts();
    println!("{ended} ended, {continued} continued; {acked} acknowledged, {grants} grants");
    assert!(ended > 0 && continued > 0 && grants > 0);
}

/// The kernel accepts each write and cannot write it back, which only a sync reports.
#[test]
fn a_real_sync_failure_ends_the_server_or_counts_as_a_full_disk() {
    let test = "a_real_sync_failure_ends_the_server_or_counts_as_a_full_disk";
    let mut volume = match Volume::new(400) {
        Ok(volume) => volume,
        Err(why) => return skipped(test, &why),
    };
    let (random, history) =
        (&mut SeededRandom(u64::from(std::process::id())), SharedHistory::default());
    let (logs, data) = (TempDir::new(), volume.path().join("data"));
    let log = logs.path().join("log");
    let mut server = Server::logged(&mut serve(&[], &data), &log);
    start_round(&server, &history);
    let mut status = None;
    run_clients(&mut server, &history, random, |server| {
        let mut client = server.client();
        eventually("a grant", || (history.lock().unwrap().counts().1 > 0).then_some(()));
        // From now on the image file cannot grow, although the file system has free space.
        volume.stop_growth();
        let body = json!({ "count": 10_000 }).to_string();
        let json_type = [("content-type", "application/json")];
        let generate = "POST /v1/pools/bulk/keys";
        let _ = client.try_send("PUT /v1/pools/bulk", &json_type, "{\"key_length\":128}");
        for _ in 0..60 {
            match client.try_send(generate, &json_type, &body) {
                Ok(answer) if answer.status == 201 => {}
                Ok(answer) => {
                    assert!([503, 507].contains(&answer.status), "{answer:?}");
                    break;
                }
                Err(_) => break,
            }
        }
        eventually("the server ends, or its disk is full", || {
            status = server.ended();
            let said = std::fs::read_to_string(&log).unwrap();
            (status.is_some() || said.contains("the disk is full")).then_some(())
        });
        server.kill();
    });
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(!said.contains("panicked"), "{said}");
    if let Some(status) = status {
        assert_eq!(status.code(), Some(74), "{said}");
    }
    println!("{status:?}: {said}");
    volume.unmount();
    volume.allow_growth();
    volume.mount().unwrap();
    start_round(&Server::logged(&mut serve(&[], &data), &log), &history);
}

#[test]
fn a_read_only_disk_ends_the_server_and_loses_nothing() {
    let test = "a_read_only_disk_ends_the_server_and_loses_nothing";
    let mut volume = match Volume::new(400) {
        Ok(volume) => volume,
        Err(why) => return skipped(test, &why),
    };
    let (random, history) =
        (&mut SeededRandom(u64::from(std::process::id())), SharedHistory::default());
    let (logs, data) = (TempDir::new(), volume.path().join("data"));
    let log = logs.path().join("log");
    for _ in 0..2 {
        let mut server = Server::logged(&mut serve(&[], &data), &log);
        start_round(&server, &history);
        run_clients(&mut server, &history, random, |server| {
            pause(Duration::from_millis(150));
            volume.make_read_only();
            let status = ends_within(server, Duration::from_mins(1));
            assert_eq!(status.and_then(|status| status.code()), Some(74));
        });
        volume.unmount();
        volume.mount().unwrap();
    }
    start_round(&Server::logged(&mut serve(&[], &data), &log), &history);
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains("Read-only file system") && !said.contains("panicked"), "{said}");
}

/// An allocation that fails aborts the process, which is no worse than a crash.
#[test]
fn out_of_memory_is_no_worse_than_a_crash() {
    if !has("prlimit", "out_of_memory_is_no_worse_than_a_crash") {
        return;
    }
    let (dir, history) = (TempDir::new(), SharedHistory::default());
    let (data, log) = (dir.path().join("data"), dir.path().join("log"));
    let random = &mut SeededRandom(u64::from(std::process::id()));
    let mut server = Server::logged(&mut serve(&[], &data), &log);
    start_round(&server, &history);
    run_clients(&mut server, &history, random, |server| {
        pause(Duration::from_millis(100));
        let pid = server.pid().as_raw_nonzero().to_string();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmSize:")).unwrap();
        let size_kb: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        let limit = format!("--as={}", (size_kb + 4096) * 1024);
        run("prlimit", &["--pid", &pid, &limit]).unwrap();
        let mut client = server.client();
        let body = json!({ "count": 10_000 }).to_string();
        let json_type = [("content-type", "application/json")];
        let _ = client.try_send("PUT /v1/pools/bulk", &json_type, "{\"key_length\":128}");
        let mut calls = 0;
        while client.try_send("POST /v1/pools/bulk/keys", &json_type, &body).is_ok() {
            calls += 1;
            assert!(calls < 400, "four million keys in 4 MiB");
        }
        assert!(ends_within(server, Duration::from_mins(1)).is_some());
    });
    start_round(&Server::logged(&mut serve(&[], &data), &log), &history);
    assert!(history.lock().unwrap().counts().1 > 0);
}

#[test]
fn only_one_of_many_concurrent_starts_on_a_directory_serves() {
    let dir = TempDir::new();
    let (data, log) = (dir.path().join("data"), dir.path().join("log"));
    let start = || Server::try_logged(&mut serve(&[], &data), &log);
    let mut started: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..12).map(|_| scope.spawn(start)).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    let refused = started.iter().filter_map(|start| start.as_ref().err());
    assert!(refused.clone().all(|status| status.code() == Some(75)), "{started:?}");
    assert_eq!(refused.count(), 11);
    let server = started.iter_mut().find_map(|start| start.as_mut().ok()).unwrap();
    server.client().ask("POST /v1/pools/default/keys").is(201, &json!({}));
}

/// While the process is stopped it cannot receive keep-alives, so keys do not expire by that time;
/// leases do.
#[test]
fn a_pause_longer_than_the_keep_alive_ttl_purges_nothing() {
    let dir = TempDir::new();
    let (data, log) = (dir.path().join("data"), dir.path().join("log"));
    let server = Server::logged(&mut serve(&[], &data), &log);
    let client = &mut server.client();
    let policy = json!({ "lease_ttl_seconds": 1, "keepalive_ttl_seconds": 5 });
    client.send("PUT /v1/pools/ci", &policy).is(201, &json!({}));
    let keys = client.send("POST /v1/pools/ci/keys", &json!({ "count": 3 })).json();
    let lease = client.ask("POST /v1/pools/ci/leases").json();
    let pid: Pid = server.pid();
    kill_process(pid, Signal::STOP).unwrap();
    pause(Duration::from_secs(7));
    kill_process(pid, Signal::CONT).unwrap();
    for key in keys["keys"].as_array().unwrap() {
        let id = key["id"].as_str().unwrap();
        client.ask(&format!("POST /v1/pools/ci/keys/{id}/keepalive")).is(200, &json!({}));
    }
    let release = format!("POST /v1/pools/ci/leases/{}/release", lease["id"].as_str().unwrap());
    client.ask(&release).problem(410, "lease_ended");
    client.ask("GET /v1/pools/ci").is(200, &json!({ "available": 3, "leased": 0 }));
    // The clock runs again: without keep-alives the keys are purged.
    eventually("purged", || (client.ask("GET /v1/pools/ci").json()["total"] == 0).then_some(()));
    client.ask(&release).problem(410, "lease_ended");
}

/// Steps the wall clock by ten years forwards and back, while the server runs and over restarts.
#[test]
fn steps_of_the_wall_clock_change_nothing() {
    let library = Path::new(FAKETIME);
    if !library.exists() {
        return skipped("steps_of_the_wall_clock_change_nothing", "no libfaketime");
    }
    let dir = TempDir::new();
    let (data, log, wall) =
        (dir.path().join("data"), dir.path().join("log"), dir.path().join("wall"));
    let step = |offset: &str| std::fs::write(&wall, format!("{offset}\n")).unwrap();
    let start = || {
        let mut command = serve(&[], &data);
        command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", &wall);
        command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        Server::logged(&mut command, &log)
    };
    step("+0");
    let mut server = start();
    let client = &mut server.client();
    let policy = json!({ "lease_ttl_seconds": 60, "keepalive_ttl_seconds": 60 });
    client.send("PUT /v1/pools/default", &policy).is(200, &json!({}));
    client.send("POST /v1/pools/default/keys", &json!({ "count": 8 })).is(201, &json!({}));
    let first = client.ask("POST /v1/pools/default/leases").json();
    let year = |grant: &Value| grant["granted_at"].as_str().unwrap()[..4].parse::<i32>().unwrap();
    let (mut held, mut token, mut years) = (1, first["fencing_token"].as_u64(), vec![]);
    for (index, offset) in ["+3650d", "-3650d", "+0", "-3650d", "+3650d"].into_iter().enumerate() {
        step(offset);
        if index >= 2 {
            server.kill();
            server = start();
        }
        let client = &mut server.client();
        let counts = json!({ "leased": held, "available": 8 - held, "total": 8 });
        client.ask("GET /v1/pools/default").is(200, &counts);
        let grant = client.ask("POST /v1/pools/default/leases").is(201, &json!({}));
        assert!(grant["fencing_token"].as_u64() > token, "{grant}");
        (held, token) = (held + 1, grant["fencing_token"].as_u64());
        years.push(year(&grant) - year(&first));
        let id = grant["id"].as_str().unwrap();
        client.ask(&format!("POST /v1/pools/default/leases/{id}/release")).is(204, &Value::Null);
        held -= 1;
    }
    assert!(
        years[0] >= 9 && years[1] <= -9 && years[3] <= -9,
        "libfaketime did not step the clock: {years:?}"
    );
}

/// Regression: a directory created under a clock of the year 2326 began with a fencing token beyond
/// the maximum, and the first acquire ended the server.
#[test]
fn a_clock_that_is_centuries_ahead_leaves_fencing_tokens() {
    let library = Path::new(FAKETIME);
    if !library.exists() {
        return skipped("a_clock_that_is_centuries_ahead_leaves_fencing_tokens", "no libfaketime");
    }
    let dir = TempDir::new();
    let (data, log) = (dir.path().join("data"), dir.path().join("log"));
    let mut token = 0;
    for _ in 0..2 {
        let mut command = serve(&[], &data);
        command.env("LD_PRELOAD", library).env("FAKETIME", "+109500d");
        command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let mut server = Server::logged(&mut command, &log);
        let client = &mut server.client();
        client.ask("POST /v1/pools/default/keys").is(201, &json!({}));
        let grant = client.ask("POST /v1/pools/default/leases").is(201, &json!({}));
        assert!(grant["granted_at"].as_str().unwrap().starts_with("23"), "{grant}");
        let found = grant["fencing_token"].as_u64().unwrap();
        assert!(found > token && found < 1 << 53, "{grant}");
        token = found;
        server.kill();
    }
}

/// A reboot is a new boot id, or a boot time that went back: a lease keeps its remaining time.
/// A boot time that advanced under the same boot id is downtime, which counts.
#[test]
fn a_lease_keeps_its_time_over_a_reboot_but_not_over_downtime() {
    let test = "a_lease_keeps_its_time_over_a_reboot_but_not_over_downtime";
    let ns = ["unshare", "--mount", "--time", "--boottime"];
    if let Err(why) = run(ns[0], &["--mount", "--time", "--boottime", "1", "--fork", "true"]) {
        return skipped(test, &why);
    }
    let dir = TempDir::new();
    let (data, log) = (dir.path().join("data"), dir.path().join("log"));
    let boot = dir.path().join("boot_id");
    let bind =
        "[ -z \"$BOOT\" ] || mount --bind \"$BOOT\" /proc/sys/kernel/random/boot_id; exec \"$@\"";
    let start = |boottime: &str, boot_id: &str| {
        let words =
            [&ns[..], &[boottime, "--fork", "--kill-child", "sh", "-c", bind, "sh"]].concat();
        // `unshare` of the last server has ended; that server may need a moment to end too.
        eventually("started", || {
            let mut command = keypeg_under(&words, &["--lease-ttl", "1h", "--data"]);
            command.arg(&data).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
            if !boot_id.is_empty() {
                std::fs::write(&boot, format!("{boot_id}\n")).unwrap();
                command.env("BOOT", &boot);
            }
            Server::try_logged(&mut command, &log).ok()
        })
    };
    let leased = |server: &Server| {
        let pool = server.client().ask("GET /v1/pools/default").json();
        pool["leased"].as_u64().unwrap()
    };
    let mut server = start("1000000", "");
    let client = &mut server.client();
    client.ask("POST /v1/pools/default/keys").is(201, &json!({}));
    let token = client.ask("POST /v1/pools/default/leases").json()["fencing_token"].as_u64();
    server.kill();
    for (boottime, boot_id, leases) in [
        // The boot time went back.
        ("500000", "", 1),
        // Another boot, whose boot time happens to be days ahead.
        ("2000000", "6a4f5c2e-0000-4000-8000-000000000001", 1),
        // The same boot, ten minutes later, then days later.
        ("2000600", "6a4f5c2e-0000-4000-8000-000000000001", 1),
        ("4000000", "6a4f5c2e-0000-4000-8000-000000000001", 0),
    ] {
        let mut server = start(boottime, boot_id);
        assert_eq!(leased(&server), leases, "{boottime} {boot_id}");
        if leases == 0 {
            let again = server.client().ask("POST /v1/pools/default/leases").is(201, &json!({}));
            assert!(again["fencing_token"].as_u64() > token);
        }
        server.kill();
    }
}

/// Before 1970 the Date header once panicked, so that no request was answered.
#[test]
fn a_wall_clock_before_1970_refuses_a_start_and_ends_no_request() {
    let library = Path::new(FAKETIME);
    if !library.exists() {
        let test = "a_wall_clock_before_1970_refuses_a_start_and_ends_no_request";
        return skipped(test, "no libfaketime");
    }
    let (dir, tokens) = (TempDir::new(), Tokens::new());
    let token = tokens.add("admin", "*", &["admin"], &[]);
    let (data, log, wall) =
        (dir.path().join("data"), dir.path().join("log"), dir.path().join("wall"));
    let step = |offset: &str| std::fs::write(&wall, format!("{offset}\n")).unwrap();
    let audit = dir.path().join("audit");
    let start = || {
        let mut command = serve(&[], &data);
        command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", &wall);
        command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        command.arg("--audit").arg(&audit).args(tokens.args());
        Server::try_logged(&mut command, &log)
    };
    for year in ["-80y", "+8000y"] {
        step(year);
        let status = start().unwrap_err();
        let said = std::fs::read_to_string(&log).unwrap();
        assert_eq!(status.code(), Some(71), "{said}");
        assert!(said.contains("the system clock is before the year 1970"), "{said}");
    }
    step("+0");
    let mut server = start().unwrap();
    // Each core has begun to serve: connections are distributed round-robin.
    for _ in 0..2 * http_threads() {
        assert_eq!(server.client().with(&token, "GET /version").status, 200);
    }
    step("-80y");
    for _ in 0..4 {
        // On the fast path and by hyper, each on several cores.
        for request in [
            "POST /v1/pools/default/keys",
            "POST /v1/pools/default/leases",
            "GET /v1/pools/default",
            "GET /metrics",
            "GET /version",
        ] {
            let answer = server.client().with(&token, request);
            assert_eq!(answer.header("date"), Some("Thu, 01 Jan 1970 00:00:00 GMT"), "{answer:?}");
            assert!(answer.status < 300, "{request}: {answer:?}");
        }
        // A refusal that hyper writes.
        let answer = server.client().raw(b"\x00\x01 / HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(answer.header("date"), Some("Thu, 01 Jan 1970 00:00:00 GMT"), "{answer:?}");
    }
    assert_eq!(server.terminate().code(), Some(0));
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(std::fs::read_to_string(&audit).unwrap().lines().count(), 8);
}
