//! A log that cannot be written ends nothing: each kind of bad stderr, in each situation in which
//! the server logs something.
//!
//! Regression: the log layer reported its own failure on stderr, which panicked. So the thread of
//! the signals ended, and the server could not be stopped; a revoked token stayed valid; a full disk
//! aborted the process; the audit log refused changes for good.

use crate::support::stderr::BadStderr;
use crate::support::tokens::Tokens;
use crate::support::volume::Volume;
use crate::support::{Client, Server, TempDir, eventually, keypeg, keypeg_under, skipped};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Stdio};

/// A server with a bad stderr. The field order ends the server before its pipe.
struct Muted {
    server: Server,
    _reader: Option<OwnedFd>,
}

impl Muted {
    fn start(stderr: BadStderr, args: &[&str]) -> Self {
        let (stream, reader) = stderr.open();
        let mut command = keypeg_under(stderr.words(), args);
        command.env("KEYPEG_LOG", "debug");
        Self { server: Server::with_stderr(&mut command, stream), _reader: reader }
    }

    fn is_live(&self) {
        assert_eq!(self.server.client().ask("GET /livez").status, 200);
    }

    /// Stops the server, which must end with 0.
    fn stop(mut self, stderr: BadStderr) {
        kill_process(self.server.pid(), Signal::TERM).unwrap();
        let status = eventually("the server stops", || self.server.ended());
        assert_eq!(status.code(), Some(0), "{stderr:?}");
    }

    fn lost(&self) -> u64 {
        let metrics = self.server.client().ask("GET /metrics").body;
        let line =
            metrics.lines().find_map(|line| line.strip_prefix("keypeg_log_lines_lost_total "));
        line.unwrap_or_else(|| panic!("{metrics}")).parse().unwrap()
    }
}

/// A process that ends with its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `--lease-ttl` that differs from the stored policy logs a warning at the start.
#[test]
fn a_start_that_warns_needs_no_stderr() {
    let dir = TempDir::new();
    drop(Server::on(&dir, &[]));
    let data = dir.path().join("data");
    for stderr in BadStderr::ALL {
        let args = ["--data", data.to_str().unwrap(), "--lease-ttl", "7s"];
        let muted = Muted::start(stderr, &args);
        muted.is_live();
        if stderr == BadStderr::DevFull {
            eventually("lost lines are counted", || (muted.lost() >= 2).then_some(()));
        }
        muted.stop(stderr);
    }
}

/// An error at the start ends it with its own code, and waits for no reader.
#[test]
fn a_failed_start_needs_no_stderr() {
    for stderr in BadStderr::ALL {
        for (args, code) in [(["--lease-ttl", "soon"], 64), (["--config", "/nonexistent"], 66)] {
            let (stream, _reader) = stderr.open();
            let mut command = keypeg_under(stderr.words(), &args);
            let mut process = Process(command.stderr(stream).spawn().unwrap());
            let status = eventually("the start ends", || process.0.try_wait().unwrap());
            assert_eq!(status.code(), Some(code), "{stderr:?} {args:?}");
        }
    }
}

/// The other format of the log has the same queue.
#[test]
fn a_log_of_json_needs_no_stderr_either() {
    for stderr in BadStderr::ALL {
        let muted = Muted::start(stderr, &["--ephemeral", "--log-format", "json"]);
        for _ in 0..3 {
            muted.is_live();
        }
        if stderr == BadStderr::DevFull {
            eventually("lost lines are counted", || (muted.lost() >= 3).then_some(()));
        }
        muted.stop(stderr);
    }
}

#[test]
fn signals_work_without_a_stderr() {
    for stderr in BadStderr::ALL {
        let muted = Muted::start(stderr, &["--ephemeral"]);
        for _ in 0..3 {
            kill_process(muted.server.pid(), Signal::HUP).unwrap();
        }
        muted.is_live();
        muted.stop(stderr);
    }
}

/// A request in progress delays the stop for 10 s; the second signal does not wait for it.
#[test]
fn a_second_signal_ends_the_process_at_once_without_a_stderr() {
    for stderr in BadStderr::ALL {
        for second in [Signal::TERM, Signal::INT] {
            let mut muted = Muted::start(stderr, &["--ephemeral"]);
            let mut slow = muted.server.client();
            let head = "POST /v1/pools/default/keys HTTP/1.1\r\nhost: localhost\r\n\
                        content-type: application/json\r\ncontent-length: 99\r\n\r\n";
            slow.write(head.as_bytes()).unwrap();
            let id = "GET /v1/pools/default";
            muted.server.client().ask(id).is(200, &json!({}));
            kill_process(muted.server.pid(), Signal::TERM).unwrap();
            eventually("the server stops accepting", || {
                muted.server.client().try_send(id, &[], "").is_err().then_some(())
            });
            kill_process(muted.server.pid(), second).unwrap();
            let status = eventually("the process ends", || muted.server.ended());
            let code = if second == Signal::TERM { 143 } else { 130 };
            assert_eq!(status.code(), Some(code), "{stderr:?}");
        }
    }
}

/// Each reload logs a line; the second one once never happened.
#[test]
fn tokens_are_revoked_without_a_stderr() {
    for stderr in BadStderr::ALL {
        let tokens = Tokens::new();
        let kept = tokens.add("kept", "*", &["read"], &[]);
        let revoked = ["a", "b", "c"].map(|name| (name, tokens.add(name, "*", &["read"], &[])));
        let file = tokens.args();
        let muted = Muted::start(stderr, &["--ephemeral", &file[0], &file[1]]);
        let status =
            |token: &str| muted.server.client().with(token, "GET /v1/pools/default").status;
        for (name, token) in &revoked {
            assert_eq!(status(token), 200, "{stderr:?}");
            // An invalid file, whose error is logged, and then the next valid one.
            let text = tokens.text();
            tokens.replace("[[token]]\nname = \"half");
            kill_process(muted.server.pid(), Signal::HUP).unwrap();
            tokens.replace(&text);
            tokens.revoke(name);
            eventually("revoked", || (status(token) == 401).then_some(()));
        }
        assert_eq!(status(&kept), 200, "{stderr:?}");
        muted.stop(stderr);
    }
}

/// Fills the file system of a directory up to its last byte.
fn fill(dir: &Path) {
    let mut filler = File::create(dir.join("filler")).unwrap();
    for len in [1 << 20, 4096, 1] {
        while filler.write_all(&vec![1; len]).is_ok() {}
    }
    // Writes are accepted before they have their blocks.
    let _ = filler.sync_all();
}

fn empty(dir: &Path) {
    std::fs::remove_file(dir.join("filler")).unwrap();
}

/// A full disk logs warnings on the threads of the engine, the preallocator and the checkpointer.
#[test]
fn a_full_disk_refuses_and_recovers_without_a_stderr() {
    let test = "a_full_disk_refuses_and_recovers_without_a_stderr";
    for stderr in BadStderr::ALL {
        let volume = match Volume::new(160) {
            Ok(volume) => volume,
            Err(why) => return skipped(test, &why),
        };
        // Room for the segment in use and for one or two of the three to preallocate.
        fill(&volume.path());
        let filler = File::options().write(true).open(volume.path().join("filler")).unwrap();
        filler.set_len(filler.metadata().unwrap().len() - (50 << 20)).unwrap();
        drop(filler);
        let data = volume.path().join("data");
        let muted = Muted::start(stderr, &["--data", data.to_str().unwrap()]);
        let client = &mut muted.server.client();
        let generate = "POST /v1/pools/default/keys";
        let refused = eventually("the disk is full", || {
            let answer = client.ask(generate);
            (answer.status != 201).then_some(answer)
        });
        refused.problem(507, "storage_full");
        muted.is_live();
        empty(&volume.path());
        eventually("the disk has space again", || {
            (client.ask(generate).status == 201).then_some(())
        });
        muted.stop(stderr);
    }
}

/// The audit log on a full disk refuses changes until there is space, not for good.
#[test]
fn an_audit_log_on_a_full_disk_recovers_without_a_stderr() {
    let test = "an_audit_log_on_a_full_disk_recovers_without_a_stderr";
    for stderr in BadStderr::ALL {
        let volume = match Volume::new(16) {
            Ok(volume) => volume,
            Err(why) => return skipped(test, &why),
        };
        let audit = volume.path().join("audit");
        let muted = Muted::start(stderr, &["--ephemeral", "--audit", audit.to_str().unwrap()]);
        let client = &mut muted.server.client();
        let change = "POST /v1/pools/default/keys";
        fill(&volume.path());
        let mut applied = 0;
        let refused = eventually("a change is refused", || {
            let answer = client.ask(change);
            applied += u32::from(answer.status == 201);
            (answer.status != 201).then_some(answer)
        });
        refused.problem(503, "overloaded");
        let metrics = client.ask("GET /metrics").body;
        assert!(metrics.contains("\nkeypeg_audit_failing 1\n"), "{metrics}");
        empty(&volume.path());
        eventually("changes resume", || {
            let answer = client.ask(change);
            applied += u32::from(answer.status == 201);
            (answer.status == 201).then_some(())
        });
        muted.stop(stderr);
        let logged = std::fs::read_to_string(&audit).unwrap();
        let lines = logged.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let lines = lines.filter(|line| line["outcome"] == "applied").count();
        assert_eq!(
            lines, applied as usize,
            "{stderr:?}: a line for each change, and each is whole"
        );
    }
}

/// Nothing reads stdout, and its pipe is full: the server serves, though nothing gets its ready line.
#[test]
fn a_full_stdout_delays_no_start() {
    let args = ["--ephemeral", "--listen", "127.0.0.1:0"];
    for stdout in BadStderr::ALL.into_iter().filter(|stdout| *stdout != BadStderr::Closed) {
        let (stream, _reader) = stdout.open();
        let mut command = keypeg(&args);
        let mut process = Process(command.stdout(stream).stderr(Stdio::null()).spawn().unwrap());
        let port = eventually("the server listens", || listening_port(process.0.id()));
        let mut client = Client::new(SocketAddr::from(([127, 0, 0, 1], port)));
        client.ask("POST /v1/pools/default/keys").is(201, &json!({}));
        kill_process(Pid::from_child(&process.0), Signal::TERM).unwrap();
        let status = eventually("the server stops", || process.0.try_wait().unwrap());
        assert_eq!(status.code(), Some(0), "{stdout:?}");
    }
}

/// Returns the port on which a process listens, from `/proc`.
fn listening_port(pid: u32) -> Option<u16> {
    let sockets = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).ok()?;
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let links: Vec<_> =
        links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok()).collect();
    sockets.lines().skip(1).find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let is_listening = fields.get(3) == Some(&"0A");
        let name = format!("socket:[{}]", fields.get(9)?);
        let is_ours = links.iter().any(|link| link.to_str() == Some(&name));
        let port = u16::from_str_radix(fields.get(1)?.split_once(':')?.1, 16).ok()?;
        (is_listening && is_ours).then_some(port)
    })
}
