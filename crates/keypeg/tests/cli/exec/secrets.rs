//! The access token of `exec` and what its command, which runs as the same user, can see of it.
//!
//! The command read the token from the environment of its parent, in `/proc`.

use super::url;
use crate::support::tokens::Tokens;
use crate::support::{Server, TempDir, binary, eventually, keypeg, skipped};
use rustix::process::{Pid, geteuid};
use std::fs::{File, Permissions, set_permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A user without permissions.
const OTHER_USER: u32 = 65_534;

/// Prints everything that a process can read about itself and its ancestors up to the test.
const LOOK: &str = r#"
pid=$$
while [ "$pid" -gt 1 ] && [ "$pid" != "$TEST" ]; do
    cat /proc/$pid/environ /proc/$pid/cmdline
    for file in /proc/$pid/fd/*; do
        [ -S "$file" ] || dd if="$file" iflag=nonblock bs=64k count=1 status=none
    done
    pid=$(sed -n 's/^PPid:[^0-9]*//p' /proc/$pid/status)
done
set; env
"#;

struct Case {
    _server: Server,
    token: String,
    file: PathBuf,
    dir: TempDir,
    url: String,
}

/// A server with a token that may lend and read, also in a file that only a test can read.
fn case() -> Case {
    let (tokens, dir) = (Tokens::new(), TempDir::new());
    let admin = tokens.add("admin", "*", &["admin"], &[]);
    let token = tokens.add("job", "ci", &["lend", "read"], &[]);
    let file = tokens.args();
    let server = Server::in_memory(&[&file[0], &file[1]]);
    let (bearer, body) = (format!("Bearer {admin}"), r#"{"max_hold_seconds": 600}"#);
    let headers = [("authorization", &*bearer), ("content-type", "application/json")];
    server.client().try_send("PUT /v1/pools/ci", &headers, body).unwrap();
    assert_eq!(server.client().with(&admin, "POST /v1/pools/ci/keys").status, 201);
    let file = dir.path().join("token");
    std::fs::write(&file, &token).unwrap();
    set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let url = url(&server);
    Case { _server: server, token, file, dir, url }
}

fn exec(case: &Case, args: &[&str], script: &str) -> Command {
    let mut command = Command::new(binary());
    command.args(["exec", "--pool", "ci", "--quiet"]).args(args);
    command.args(["--", "/bin/sh", "-c", script]).env_clear();
    command.env("KEYPEG_SERVER", &case.url).env("PATH", std::env::var_os("PATH").unwrap());
    command.env("TEST", std::process::id().to_string()).env("MARK", "seen").stdin(Stdio::null());
    command
}

/// Runs a command and returns all that it has printed.
#[track_caller]
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let bytes = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(text.contains("seen"), "{:?}: {text}", output.status);
    text
}

#[test]
fn a_command_cannot_read_the_access_token_of_exec() {
    let case = case();
    let own = [("KEYPEG_KEY", "outer-key"), ("KEYPEG_LEASE_ID", "outer-lease")];
    for by_file in [false, true] {
        let path = case.file.to_str().unwrap();
        let args: &[&str] = if by_file { &["--token-file", path] } else { &[] };
        let mut command = exec(&case, args, LOOK);
        // Without a file the token is in use; with one, the variable is only left over.
        command.env("KEYPEG_TOKEN", &case.token).envs(own);
        let found = output(&mut command);
        assert!(found.contains("KEYPEG_FENCING_TOKEN"), "{found}");
        for secret in [&*case.token, "outer-key", "outer-lease"] {
            assert!(!found.contains(secret), "{secret}: {found}");
        }
        assert!(!found.contains("KEYPEG_TOKEN="), "{found}");
        // As root, the command reads the environment of exec, which has no secret.
        let reads = found.matches("MARK=seen").count();
        assert!(reads >= if geteuid().is_root() { 3 } else { 2 }, "{reads}: {found}");
    }
}

/// Also the variables without a secret, which would make another `keypeg` in the command use them.
#[test]
fn a_command_gets_no_variable_about_the_token_of_exec() {
    let case = case();
    let path = case.file.to_str().unwrap();
    for variable in [("KEYPEG_TOKEN", &*case.token), ("KEYPEG_TOKEN_FILE", path)] {
        let mut command = exec(&case, &[], "env; echo seen");
        command.env(variable.0, variable.1);
        let found = output(&mut command);
        assert!(found.contains("KEYPEG_FENCING_TOKEN="), "{found}");
        assert!(!found.contains("\nKEYPEG_TOKEN"), "{found}");
    }
}

/// A shell's `<(…)` is a pipe, which exec has read to its end.
#[test]
fn a_token_from_a_descriptor_is_not_passed_on() {
    let case = case();
    let run = |redirect: &str, file: &str, script: &str| {
        let line = format!(
            "exec \"$KEYPEG\" exec --pool ci -q --token-file {file} -- /bin/sh -c \
                            \"$LOOK\" {redirect}"
        );
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &line]).env_clear().env("KEYPEG", binary()).env("LOOK", script);
        command.env("KEYPEG_SERVER", &case.url).env("FILE", &case.file).env("MARK", "seen");
        command.env("PATH", std::env::var_os("PATH").unwrap()).stdin(Stdio::null());
        command.env("TEST", std::process::id().to_string());
        command.output().unwrap()
    };
    for (redirect, file) in [("3<\"$FILE\"", "/dev/fd/3"), ("<\"$FILE\"", "/dev/stdin")] {
        let refused = run(redirect, file, "echo seen");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(64), "{said}");
        assert!(said.contains("the command would inherit") && refused.stdout.is_empty(), "{said}");
    }
    let line = "cat \"$FILE\" | (exec 3<&0 </dev/null; exec \"$KEYPEG\" exec --pool ci -q \
                --token-file /dev/fd/3 -- /bin/sh -c \"$LOOK\")";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", line]).env_clear().env("KEYPEG", binary()).env("LOOK", LOOK);
    command.env("KEYPEG_SERVER", &case.url).env("FILE", &case.file).env("MARK", "seen");
    command.env("PATH", std::env::var_os("PATH").unwrap()).stdin(Stdio::null());
    let found = output(command.env("TEST", std::process::id().to_string()));
    assert!(!found.contains(&case.token), "{found}");
}

/// The owner of `/proc/PID/environ` is root while the process is not dumpable; only root and a
/// debugger with its capability can read it.
#[test]
fn the_environment_and_memory_of_each_command_are_hidden_from_its_user() {
    if !geteuid().is_root() {
        skipped("the_environment_and_memory_of_each_command…", "needs root, to change the user");
        return;
    }
    let case = case();
    let log = File::create(case.dir.path().join("log")).unwrap();
    let of = |mut command: Command| {
        command
            .uid(OTHER_USER)
            .gid(OTHER_USER)
            .stdout(Stdio::piped())
            .stderr(log.try_clone().unwrap());
        command.spawn().unwrap()
    };
    let client = |args: &[&str]| {
        let mut command = Command::new(binary());
        command.args(args).env_clear().env("KEYPEG_SERVER", &case.url);
        command.env("KEYPEG_TOKEN", &case.token);
        command
    };
    let mut running = exec(&case, &[], "cat /proc/$PPID/environ /proc/$PPID/maps; echo seen; cat");
    running.env("KEYPEG_TOKEN", &case.token).stdin(Stdio::piped());
    let mut running = Ended(of(running));
    let mut found = String::new();
    let mut stdout = BufReader::new(running.0.stdout.take().unwrap());
    stdout.read_line(&mut found).unwrap();
    let waiting = Ended(of(client(&["acquire", "--pool", "ci", "--wait", "1m"])));
    let mut serve = keypeg(&["--ephemeral", "--listen", "127.0.0.1:0"]);
    serve.env("KEYPEG_TOKEN", &case.token);
    let serving = Ended(of(serve));
    for process in [&waiting.0, &serving.0] {
        eventually("the process is hidden", || (owner(process) == 0).then_some(()));
    }
    drop(running.0.stdin.take());
    let status = running.0.wait().unwrap();
    stdout.read_to_string(&mut found).unwrap();
    let said = std::fs::read_to_string(case.dir.path().join("log")).unwrap();
    assert_eq!((found.trim(), status.code()), ("seen", Some(0)), "{said}");
    assert!(said.contains("Permission denied"), "{said}");
}

fn owner(process: &Child) -> u32 {
    let pid = Pid::from_child(process).as_raw_pid();
    let path = format!("/proc/{pid}/environ");
    // The process has its name only after execve; before, it is this test.
    let is_started = std::fs::read_link(Path::new(&path).with_file_name("exe"))
        .is_ok_and(|program| program.file_name() == Path::new(&binary()).file_name());
    if is_started { std::fs::metadata(path).unwrap().uid() } else { u32::MAX }
}

/// A process that is killed when dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
