//! The log in an S3 server: moto, a double of S3 that enforces the condition of a creation. It is
//! installed below `target/`, once.

use keypeg_log::conformance;
use keypeg_log::{SharedLog as _, wait};
use keypeg_log_object::{ObjectLog, Settings};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tokio::runtime::Builder;

/// The version of moto, with which the test has passed.
const MOTO: &str = "moto[s3,server]==5.2.5";

/// Starts the server on a free port, makes a bucket, prints the port, and ends with its input. Moto
/// checks the condition of a PUT in one step and stores the object in a later one: without the lock,
/// two PUTs at the same time can both create one object, which the probe reports.
const SERVER: &str = "
import sys, threading, urllib.request
from moto.s3 import responses
from moto.server import ThreadedMotoServer
lock, put = threading.Lock(), responses.S3Response.put_object
def put_alone(self, *args, **kwargs):
    with lock:
        return put(self, *args, **kwargs)
responses.S3Response.put_object = put_alone
server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
server.start()
port = server.get_host_and_port()[1]
bucket = urllib.request.Request(f'http://127.0.0.1:{port}/bucket', method='PUT')
urllib.request.urlopen(bucket)
print(port, flush=True)
sys.stdin.read()
";

/// Returns a Python with moto; `None` where it cannot be installed.
fn python() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let venv = target.join("moto");
    let python = venv.join("bin/python");
    if works(Command::new(&python).args(["-c", "import moto.server"])) {
        return Some(python);
    }
    let _ = std::fs::remove_dir_all(&venv);
    let is_installed = works(Command::new("python3").args(["-m", "venv"]).arg(&venv))
        && works(Command::new(&python).args(["-m", "pip", "install", "-q", MOTO]));
    is_installed.then_some(python)
}

fn works(command: &mut Command) -> bool {
    let output = command.stdin(Stdio::null()).output();
    output.is_ok_and(|Output { status, .. }| status.success())
}

/// A running server, which ends when its input is closed.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The name of the test below, which runs itself again in a process with credentials: the log takes
/// them from the environment alone.
const TEST: &str = "the_log_in_an_s3_server_keeps_the_contract";
/// The port of the server, in that process.
const PORT: &str = "KEYPEG_TEST_S3_PORT";

#[test]
fn the_log_in_an_s3_server_keeps_the_contract() {
    if let Ok(port) = std::env::var(PORT) {
        return check(&port);
    }
    let Some(python) = python() else {
        let _ = writeln!(std::io::stderr(), "\nskipped test: {TEST}: moto cannot be installed");
        return;
    };
    let mut server = Command::new(python)
        .args(["-c", SERVER])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map(Server)
        .expect("python");
    let mut port = String::new();
    let output = server.0.stdout.take().expect("its output");
    BufReader::new(output).read_line(&mut port).expect("the port");
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", TEST])
        .env(PORT, port.trim())
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .output()
        .expect("this program");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Checks the log in the server at this port.
fn check(port: &str) {
    let url = format!(
        "s3://bucket/some/prefix?endpoint=http://127.0.0.1:{port}&allow_http=true\
         &region=us-east-1&virtual_hosted_style_request=false"
    );
    let settings: Settings = url.parse().expect("a URL");
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let log = ObjectLog::new(settings, runtime.handle().clone());
    let report = wait(log.probe([7; 16])).expect("a store that enforces the condition");
    assert_eq!(report.store, "object store s3://bucket/some/prefix");
    assert_eq!(wait(conformance::run(&log, 0, 3)), []);
}
