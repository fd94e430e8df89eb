//! An S3 server of the test's own: moto, a double of S3 that enforces the condition of a creation. It
//! is installed below `target/`, once, and serves on a free port of the loopback address.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

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

/// Returns a Python with moto; `None` where it cannot be installed. Several test programs run at a time,
/// and one of them installs it, while the others wait.
fn python() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let lock = File::create(target.join("moto.lock")).expect("a lock file");
    lock.lock().expect("the lock"); // until the file is dropped
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

/// A running server with the bucket `bucket`. It ends when it is dropped.
pub(crate) struct Server {
    process: Child,
    port: String,
}

impl Server {
    /// Starts a server; `None` where moto cannot be installed.
    pub(crate) fn start() -> Option<Self> {
        let mut process = Command::new(python()?)
            .args(["-c", SERVER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python");
        let output = process.stdout.take().expect("its output");
        let mut server = Self { process, port: String::new() };
        BufReader::new(output).read_line(&mut server.port).expect("the port");
        Some(server)
    }

    /// Returns the URL of a prefix of the bucket.
    pub(crate) fn url(&self, prefix: &str) -> String {
        format!(
            "s3://bucket/{prefix}?endpoint=http://127.0.0.1:{}&allow_http=true\
             &region=us-east-1&virtual_hosted_style_request=false",
            self.port.trim()
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
