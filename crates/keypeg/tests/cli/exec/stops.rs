//! Stopping and continuing a command of `exec`: by a shell with job control, and by accident.

use super::{Kind, LATE, Run, is_available, key, server, url, words};
use crate::support::late::unless_late;
use crate::support::{Server, TempDir, binary, eventually, skipped};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A shell on a terminal, as a person uses it.
#[test]
fn ctrl_z_stops_the_command_and_exec_and_fg_continues_both() {
    let server = server(&[], 600.0);
    let dir = TempDir::new();
    let output = dir.path().join("output");
    let mut command = words(&["script", "-qefc", "bash --norc --noprofile -i", "/dev/null"]);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("PS1", "prompt> ")
        .env("KEYPEG", binary())
        .env("KEYPEG_SERVER", url(&server))
        .stdin(Stdio::piped())
        .stdout(File::create(&output).unwrap());
    let Ok(mut shell) = command.spawn() else {
        return skipped("cli::exec::stops", "there is no script");
    };
    let typed = |text: &str| shell.stdin.as_ref().unwrap().write_all(text.as_bytes()).unwrap();
    let seen = |text: &str| {
        let shown = std::fs::read(&output).unwrap();
        String::from_utf8_lossy(&shown).contains(text)
    };
    let shows = |text: &str| {
        eventually(&format!("{text:?} in {:?}", std::fs::read_to_string(&output)), || {
            seen(text).then_some(())
        });
    };
    shows("prompt> ");
    // The command reads from the terminal, so it needs it.
    let line = "\"$KEYPEG\" exec --pool ci -- sh -c 'echo be\"\"gin; while read -r x; do echo got-$x; done; exit 9'";
    typed(&format!("{line}\n"));
    shows("begin");
    typed("one\n");
    shows("got-one");
    typed("\x1a");
    shows("Stopped");
    typed("echo shell-$((40+2))\n");
    shows("shell-42");
    typed("fg\n");
    typed("two\n");
    shows("got-two");
    typed("\x04");
    typed("echo code-$?\n");
    shows("code-9");
    // Ctrl-C ends the command and not the shell.
    typed("\"$KEYPEG\" exec --pool ci -- sh -c 'echo ag\"\"ain; exec sleep 1000'\n");
    shows("again");
    typed("\x03");
    typed("echo code-$?\n");
    shows("code-130");
    typed("exit\n");
    eventually("the shell ends", || shell.try_wait().unwrap());
    assert_eq!(key(&server)["state"], "available");
}

/// A shell without job control does not take the terminal back from a command.
#[test]
fn a_script_reads_from_the_terminal_after_its_command() {
    if !is_available(Kind::Terminal) {
        return;
    }
    let server = server(&[], 600.0);
    let script = "\"$KEYPEG\" exec --pool ci -- true; read -r line; echo \"code-$? got-$line\"";
    let mut command = words(&["script", "-qefc", script, "/dev/null"]);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("KEYPEG", binary());
    command.env("KEYPEG_SERVER", url(&server)).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut shell = command.spawn().unwrap();
    // Open until the shell ends: the terminal would pass its end on.
    let mut typed = shell.stdin.take().unwrap();
    typed.write_all(b"one\n").unwrap();
    let mut shown = String::new();
    shell.stdout.take().unwrap().read_to_string(&mut shown).unwrap();
    shell.wait().unwrap();
    assert!(shown.contains("code-0 got-one"), "{shown}");
}

/// exec that does not run cannot see the end of the lease; the watchdog does. The command stops exec,
/// at once or after the lease was extended. If this machine cannot renew the lease in time, exec ends
/// the command, with the same result. Regression: an exec that was stopped as soon as its command
/// ran had not yet passed the end of the lease to the watchdog, so the command outlived the lease.
#[test]
fn a_command_ends_with_its_lease_also_while_exec_is_stopped() {
    let server = server(&[], 2.0);
    for seconds in [0, 3] {
        eventually("the key is free", || (key(&server)["state"] == "available").then_some(()));
        let script = format!("sleep {seconds}; kill -STOP $PPID; while :; do sleep 0.02; done");
        let mut run = Run::spawn(Kind::Plain, &url(&server), "", &script).unwrap();
        eventually("the command ends while exec is stopped, or exec ends", || {
            let is_alone = run.is_stopped() && run.processes().len() == 1;
            (is_alone || run.process.try_wait().unwrap().is_some()).then_some(())
        });
        let _ = kill_process(run.exec, Signal::CONT);
        run.ends(75, "the lease has ended");
    }
}

/// Starts an internal command of exec.
fn internal(args: &[&str], stdin: Stdio) -> Child {
    let mut command = Command::new(binary());
    command.args(args).env_clear().stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

#[test]
fn a_command_does_not_run_before_exec_lets_it() {
    for is_let in [false, true] {
        // The test's end is not inherited, so that no other process keeps it open.
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        fcntl_setfd(&read, FdFlags::empty()).unwrap();
        let (parent, gate) = (std::process::id().to_string(), read.as_raw_fd().to_string());
        let args = ["exec-launcher", "--parent", &parent, "--gate", &gate, "--", "echo", "it runs"];
        let launcher = internal(&args, Stdio::null());
        if is_let {
            File::from(write).write_all(b"\n").unwrap();
        } else {
            drop(write);
        }
        let output = launcher.wait_with_output().unwrap();
        let code = if is_let { 0 } else { 71 };
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert_eq!(output.stdout == b"it runs\n", is_let, "{output:?}");
    }
}

/// Starts a watchdog of a process group and of the lease `k`, 7.
fn watchdog(group: &str, stdin: Stdio) -> Child {
    let lease = ["--key-id=k", "--fencing-token=7"];
    let group = ["exec-watchdog", "--group", group, "--grace-ms", "3600000"];
    internal(&[&group[..], &lease].concat(), stdin)
}

/// Starts a process in a group of its own, with the variables that `exec` sets.
fn outside(key_id: &str, fencing_token: &str) -> Child {
    let mut command = words(&["sleep", "1000"]);
    command.env("KEYPEG_KEY_ID", key_id).env("KEYPEG_FENCING_TOKEN", fencing_token);
    command.process_group(0).spawn().unwrap()
}

/// Regression: a process in a session of its own outlived an exec that was killed, and used the key
/// after the end of the lease, while another client had it.
#[test]
fn a_watchdog_ends_the_processes_outside_the_group_that_have_the_lease_and_no_others() {
    for is_exec_killed in [true, false] {
        let mut command = words(&["sleep", "1000"]).process_group(0).spawn().unwrap();
        let mut own = outside("k", "7");
        let mut others = [outside("k", "8"), outside("k", "77"), outside("other", "7")];
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut write = File::from(write);
        // Far in the future, or one second after the machine has started.
        let end: &[u8] = if is_exec_killed { b"900000000000000\n" } else { b"1000000\n" };
        write.write_all(end).unwrap();
        let mut watchdog = watchdog(&command.id().to_string(), read.into());
        let pipe = (!is_exec_killed).then_some(write);
        let signal = if is_exec_killed { 15 } else { 9 };
        for process in [&mut command, &mut own] {
            assert_eq!(process.wait().unwrap().signal(), Some(signal), "{is_exec_killed}");
        }
        if is_exec_killed {
            // It waits for the grace.
            watchdog.kill().unwrap();
        }
        watchdog.wait().unwrap();
        drop(pipe);
        for process in &mut others {
            assert_eq!(process.try_wait().unwrap(), None, "of another lease");
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

/// Regression: the watchdog got the time that remained, and counted it from when it read that. On a
/// busy machine, a command whose exec was stopped outlived the lease by the delay.
#[test]
fn a_watchdog_is_ready_once_it_knows_the_end_and_counts_no_delay_of_its_own() {
    let mut command = words(&["sleep", "1000"]).process_group(0).spawn().unwrap();
    let group = command.id().to_string();
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    // One second after the machine has started: long ago.
    let mut write = File::from(write);
    write.write_all(b"1000000\n").unwrap();
    let mut watchdog = watchdog(&group, read.into());
    let mut ready = String::new();
    watchdog.stdout.take().unwrap().read_to_string(&mut ready).unwrap();
    assert_eq!((&*ready, watchdog.wait().unwrap().code()), ("ready\n", Some(0)));
    assert_eq!(command.wait().unwrap().signal(), Some(9));
    // The pipe was open until the end, so the watchdog saw no death of exec.
    drop(write);
}

#[test]
fn a_stopped_command_is_continued_to_end() {
    let server = server(&[], 600.0);
    let mut run = Run::start(Kind::Children, &url(&server), "").unwrap();
    let stopped =
        run.processes().into_iter().find(|(_, line)| line.starts_with("/bin/sh\0-c\0\nfor"));
    kill_process(Pid::from_raw(stopped.unwrap().0).unwrap(), Signal::STOP).unwrap();
    let release =
        format!("POST /v1/pools/ci/keys/{}/release", key(&server)["id"].as_str().unwrap());
    server.client().ask(&release).is(200, &json!({ "released": true }));
    run.ends(75, "another client released it");
    assert_eq!(run.count("TERM"), 1, "it could clean up");
}

/// Starts a command that ignores SIGTERM under `exec`; returns the process of exec, and the id of
/// the command.
fn deaf(url: &str, grace: &str) -> (Child, i32) {
    let script = "trap '' TERM; echo $$; while :; do sleep 0.02; done";
    let mut command = Command::new(binary());
    command.args(["exec", "--pool", "ci", "--grace", grace, "--", "/bin/sh", "-c", script]);
    command.env_clear().env("KEYPEG_SERVER", url).stdin(Stdio::null()).stderr(Stdio::null());
    let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut id = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut id).unwrap();
    (process, id.trim().parse().unwrap())
}

#[test]
fn a_repeated_sigterm_does_not_extend_the_grace() {
    let server = server(&[], 3600.0);
    let (mut process, _) = deaf(&url(&server), "300ms");
    let exec = Pid::from_child(&process);
    let status = eventually("the command is killed", || {
        let _ = kill_process(exec, Signal::TERM);
        process.try_wait().unwrap()
    });
    assert_eq!(status.code(), Some(128 + 9));
    assert_eq!(key(&server)["state"], "available");
}

/// Starts a shell script under `exec`, which writes to the file in `$LOG`; returns the process of exec.
fn start_script(server: &Server, grace: &str, script: &str, log: &Path) -> Child {
    let mut command = Command::new(binary());
    command.args(["exec", "--pool", "ci", "--grace", grace, "--", "/bin/sh", "-c", script]);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("LOG", log);
    command.env("KEYPEG_SERVER", url(server)).stdin(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Regression: SIGTERM for exec reached the process group only. A process in a session of its own got
/// no SIGTERM, and after the whole grace SIGKILL. In the group a process that cleans up must not get
/// a second one. `inside` ends only after its own: `exec` sends them one after the other.
#[test]
fn after_a_sigterm_each_process_that_is_left_gets_sigterm_once() {
    let server = server(&[], 3600.0);
    let dir = TempDir::new();
    let script = r#"
        trap 'exit 43' TERM
        setsid sh -c 'trap "echo outside >>\"$LOG\"; exit" TERM; echo up >>"$LOG"
                      while :; do sleep 0.02; done' &
        sh -c 'trap "echo inside >>\"$LOG\"" TERM; echo up >>"$LOG"
               until grep -q outside "$LOG" && grep -q inside "$LOG"; do sleep 0.02; done' &
        while :; do sleep 0.02; done"#;
    let log = dir.path().join("log");
    let mut process = start_script(&server, "1h", script, &log);
    let lines = || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    eventually("both run", || (lines() == ["up", "up"]).then_some(()));
    kill_process(Pid::from_child(&process), Signal::TERM).unwrap();
    let status = eventually("all processes end", || process.try_wait().unwrap());
    assert_eq!(status.code(), Some(43));
    assert_eq!(lines(), ["inside", "outside", "up", "up"]);
    assert_eq!(key(&server)["state"], "available");
}

/// Regression: under a command that ignores SIGTERM, a process in a session of its own got SIGKILL
/// at the end of the grace, and no SIGTERM. A stopped one is continued, so that it can clean up.
#[test]
fn a_process_outside_the_group_gets_sigterm_also_under_a_command_that_ignores_it() {
    let server = server(&[], 3600.0);
    let dir = TempDir::new();
    let script = r#"
        setsid sh -c 'trap "echo outside >>\"$LOG\"; exit" TERM; echo $$ >>"$LOG"
                      while :; do sleep 0.02; done' &
        trap '' TERM
        until grep -q outside "$LOG"; do sleep 0.02; done
        exit 43"#;
    let log = dir.path().join("log");
    let mut process = start_script(&server, "2m", script, &log);
    let text = || std::fs::read_to_string(&log).unwrap_or_default();
    let outside: i32 = eventually("it runs", || text().strip_suffix('\n')?.parse().ok());
    kill_process(Pid::from_raw(outside).unwrap(), Signal::STOP).unwrap();
    let stat = format!("/proc/{outside}/stat");
    eventually("it is stopped", || {
        std::fs::read_to_string(&stat).unwrap().contains(") T ").then_some(())
    });
    kill_process(Pid::from_child(&process), Signal::TERM).unwrap();
    let status = eventually("the command ends", || process.try_wait().unwrap());
    assert_eq!((status.code(), &*text()), (Some(43), &*format!("{outside}\noutside\n")));
}

/// A process can start another one while it ends, which has got no SIGTERM yet: without one, `exec`
/// waits for it until the end of the grace.
#[test]
fn a_process_that_a_command_starts_while_it_ends_gets_sigterm_too() {
    let server = server(&[], 3600.0);
    let dir = TempDir::new();
    let script = r#"
        trap 'setsid sleep 1000 & exit 43' TERM
        echo up >"$LOG"
        sleep 1000 & wait"#;
    let log = dir.path().join("log");
    let mut process = start_script(&server, "1h", script, &log);
    eventually("it runs", || std::fs::read(&log).ok().filter(|text| text.ends_with(b"\n")));
    kill_process(Pid::from_child(&process), Signal::TERM).unwrap();
    let status = eventually("all processes end", || process.try_wait().unwrap());
    assert_eq!(status.code(), Some(43));
}

/// The grace is for a command that cleans up; behind the lease another client uses the key.
#[test]
fn a_command_whose_exec_was_killed_has_its_grace_within_the_lease_only() {
    unless_late(LATE, its_grace_ends_with_the_lease);
}

fn its_grace_ends_with_the_lease() {
    let server = server(&[], 2.0);
    let (mut process, command) = deaf(&url(&server), "1h");
    process.kill().unwrap();
    process.wait().unwrap();
    let command = format!("/proc/{command}");
    eventually("the command ends", || (!Path::new(&command).exists()).then_some(()));
}
