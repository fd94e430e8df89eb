//! The proxies nginx, `HAProxy` and Caddy with the configurations of `deploy/proxies`, in front of the binary under
//! test or of a server that records what it gets; and nginx with that of `deploy/gateways`.
//!
//! Only addresses, files and certificates of a configuration are replaced, and each replacement must
//! find its text. A proxy that is not installed is a skipped test.

mod callers;
mod calls;
mod configuration;
mod failures;
mod gateway;
mod recorder;
mod tls;
mod waiting;

use crate::support::{Client, TempDir, eventually, reserve_port, skipped};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The address of the server in the configurations.
const SERVER: &str = "127.0.0.1:8000";
/// The name of the server in the configurations.
const NAME: &str = "keys.example";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Nginx,
    Haproxy,
    Caddy,
}

/// Makes each function a test of each proxy.
macro_rules! for_each_proxy {
    ($($name:ident),* $(,)?) => {
        mod nginx { $(#[test] fn $name() { super::$name($crate::deploy::proxies::Kind::Nginx); })* }
        mod haproxy { $(#[test] fn $name() { super::$name($crate::deploy::proxies::Kind::Haproxy); })* }
        mod caddy { $(#[test] fn $name() { super::$name($crate::deploy::proxies::Kind::Caddy); })* }
    };
}
use for_each_proxy;

impl Kind {
    fn program(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Caddy => "caddy",
        }
    }

    /// Returns the shipped configuration.
    fn configuration(self) -> String {
        super::text(&format!("proxies/{}", self.file()))
    }

    fn file(self) -> &'static str {
        match self {
            Self::Nginx => "nginx.conf",
            Self::Haproxy => "haproxy.cfg",
            Self::Caddy => "Caddyfile",
        }
    }

    /// Whether the program is installed. Debian has servers in `/usr/sbin`, which is not on the path
    /// of every user.
    fn is_installed(self) -> bool {
        let version = if self == Self::Caddy { "version" } else { "-v" };
        let mut command = self.command();
        command.arg(version).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    /// Returns whether the program is installed, and reports a skipped test otherwise.
    fn can_run(self) -> bool {
        let is_installed = self.is_installed();
        if !is_installed {
            let test = std::thread::current().name().unwrap_or("a test of a proxy").to_owned();
            skipped(&test, &format!("{} is not installed", self.program()));
        }
        is_installed
    }

    fn command(self) -> Command {
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin";
        let mut command = Command::new(self.program());
        command.env_clear().env("PATH", path);
        command
    }
}

/// The certificate of a proxy that speaks TLS: the files of the certificate and of its key, and one
/// with both.
struct Certificate {
    dir: TempDir,
}

impl Certificate {
    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().into()
    }
}

/// A running proxy; killed when dropped.
struct Proxy {
    kind: Kind,
    process: Child,
    addr: SocketAddr,
    dir: TempDir,
    /// Keeps the port, see [`reserve_port`].
    _port: OwnedFd,
}

impl Proxy {
    /// Starts a proxy without TLS in front of the server at `server`.
    fn start(kind: Kind, server: SocketAddr) -> Option<Self> {
        Self::with(kind, server, None, &[])
    }

    /// Starts a proxy after these replacements in its configuration; `None` if it is not installed,
    /// which is reported.
    fn with(
        kind: Kind,
        server: SocketAddr,
        certificate: Option<&Certificate>,
        changes: &[(&str, &str)],
    ) -> Option<Self> {
        if !kind.can_run() {
            return None;
        }
        Some(Self::run(kind, |dir, addr| {
            let mut text = placed(kind, dir, addr, server, certificate);
            for (from, to) in changes {
                text = replaced(&text, from, to);
            }
            text
        }))
    }

    /// Starts a proxy with a configuration for its directory and its address.
    fn run(kind: Kind, configuration: impl FnOnce(&Path, SocketAddr) -> String) -> Self {
        let dir = TempDir::new();
        let (port, addr) = reserve_port();
        let text = configuration(dir.path(), addr);
        let file = dir.path().join("configuration");
        std::fs::write(&file, text).unwrap();
        let log = File::create(dir.path().join("output")).unwrap();
        let mut command = kind.command();
        command.env("HOME", dir.path()).stdin(Stdio::null());
        match kind {
            Kind::Nginx => command.arg("-p").arg(dir.path()).args(["-e", "output", "-c"]).arg(file),
            Kind::Haproxy => command.arg("-db").arg("-f").arg(file),
            Kind::Caddy => command.args(["run", "--adapter", "caddyfile", "--config"]).arg(file),
        };
        let process = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut proxy = Self { kind, process, addr, dir, _port: port };
        proxy.until_it_listens();
        proxy
    }

    fn until_it_listens(&mut self) {
        eventually("the proxy listens", || {
            if let Some(status) = self.process.try_wait().unwrap() {
                panic!("{:?} ended with {status}: {}", self.kind, self.output());
            }
            std::net::TcpStream::connect(self.addr).ok()
        });
    }

    fn client(&self) -> Client {
        Client::new(self.addr)
    }

    fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Returns what the proxy wrote to its access log and its output.
    fn output(&self) -> String {
        let read = |name| std::fs::read(self.dir.path().join(name)).unwrap_or_default();
        let bytes = [read("access.log"), read("error.log"), read("output")].concat();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.process), Signal::KILL);
        let _ = self.process.wait();
    }
}

#[track_caller]
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "the configuration has no {from:?}:\n{text}");
    text.replace(from, to)
}

/// Returns the shipped configuration with the addresses and files of a test.
fn placed(
    kind: Kind,
    dir: &Path,
    addr: SocketAddr,
    server: SocketAddr,
    certificate: Option<&Certificate>,
) -> String {
    let text = replaced(&kind.configuration(), SERVER, &server.to_string());
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    match kind {
        Kind::Nginx => {
            let text = replaced(&text, "    listen [::]:443 ssl http2;\n", "");
            let text = replaced(&text, "/var/log/nginx/keypeg.log", &file("access.log"));
            let text = replaced(&text, "/var/log/nginx/keypeg-error.log", &file("error.log"));
            let (listen, crt, key) = match certificate {
                Some(it) => (format!("{addr} ssl http2"), it.file("cert"), it.file("key")),
                None => (addr.to_string(), "/nowhere".into(), "/nowhere".into()),
            };
            let text = replaced(&text, "443 ssl http2", &listen);
            let text = replaced(&text, "/etc/ssl/keys.example.pem", &crt);
            let text = replaced(&text, "/etc/ssl/private/keys.example.key", &key);
            let text = match certificate {
                Some(_) => text,
                None => without(&text, "    ssl_"),
            };
            of_nginx(&text, dir)
        }
        Kind::Haproxy => {
            let (bind, _) = text.split_once(" alpn").unwrap();
            let (_, bind) = bind.rsplit_once("bind ").unwrap();
            let text = if let Some(it) = certificate {
                replaced(&text, bind, &format!("{addr} ssl crt {}", it.file("both")))
            } else {
                let line = text.lines().find(|line| line.contains(bind)).unwrap();
                replaced(&text, line, &format!("    bind {addr}"))
            };
            format!("global\n    log stdout format raw local0\n{text}")
        }
        Kind::Caddy => {
            let text = replaced(&text, "/var/log/caddy/keypeg.log", &file("access.log"));
            let text = replaced(&text, "\n{\n", "\n{\n\tadmin off\n\tauto_https off\n");
            let (name, tls) = match certificate {
                Some(it) => (
                    format!("\nhttps://{NAME}:{}", addr.port()),
                    format!("\ttls {} {}\n", it.file("cert"), it.file("key")),
                ),
                None => (format!("\nhttp://:{}", addr.port()), String::new()),
            };
            let bind = format!("{name} {{\n\tbind {}\n{tls}", addr.ip());
            replaced(&text, &format!("\n{NAME} {{\n"), &bind)
        }
    }
}

/// Returns a whole configuration of nginx, with its files below `dir`.
fn of_nginx(text: &str, dir: &Path) -> String {
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|part| format!("{part}_temp_path {};\n", file(part)))
        .concat();
    format!(
        "daemon off; master_process off; pid {};\nevents {{ worker_connections 1000; }}\n\
         http {{\n{temp}{text}}}\n",
        file("pid")
    )
}

/// Returns the text without the lines that begin with `start`.
fn without(text: &str, start: &str) -> String {
    text.split_inclusive('\n').filter(|line| !line.starts_with(start)).collect()
}
