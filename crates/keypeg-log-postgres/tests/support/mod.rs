//! A PostgreSQL of the test's own: in a temporary directory, reached by a Unix socket, so no port is
//! needed. Runs as user 65534 if the test runs as root, because PostgreSQL refuses root.

use keypeg_log_postgres::PostgresLog;
use keypeg_testkit::TempDir;
use std::fs::Permissions;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, NoTls};

/// The user and group that own nothing else.
const UNPRIVILEGED: u32 = 65534;

/// The programs of PostgreSQL; `None` where it is not installed.
pub(crate) fn programs(test: &str) -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = versions
        .map(|version| version.path().join("bin"))
        .filter(|bin| bin.join("initdb").exists() && bin.join("pg_basebackup").exists());
    let newest = found.max();
    if newest.is_none() {
        let _ = writeln!(std::io::stderr(), "\nskipped test: {test}: no postgresql package");
    }
    newest
}

/// A `PgBouncer` in front of a server, stopped when dropped.
pub(crate) struct Pooler {
    process: Child,
    sockets: TempDir,
}

impl Pooler {
    /// Starts a pooler with a `pool_mode`; `None` where `PgBouncer` is not installed.
    pub(crate) fn start(server: &Server, pool_mode: &str) -> Option<Self> {
        let sockets = TempDir::new();
        let (dir, upstream) = (sockets.path().display(), server.sockets());
        let settings = format!(
            "[databases]\npostgres = host={upstream} port=5432 user=postgres\n[pgbouncer]\n\
             unix_socket_dir = {dir}\nlisten_port = 5432\nauth_type = any\npool_mode = {pool_mode}\n"
        );
        let file = sockets.path().join("pgbouncer.ini");
        std::fs::write(&file, settings).expect("a file of settings");
        let mut command = Command::new("pgbouncer");
        if is_root() {
            chown(sockets.path(), Some(UNPRIVILEGED), Some(UNPRIVILEGED)).expect("its directory");
            std::fs::set_permissions(&file, Permissions::from_mode(0o644)).expect("its mode");
            command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "pgbouncer"]);
        }
        let is_installed = Command::new("pgbouncer").arg("-V").output().is_ok();
        let started = command.arg("-q").arg(file).current_dir("/").stderr(Stdio::null()).spawn();
        let process = started.ok().filter(|_| is_installed)?;
        let pooler = Self { process, sockets };
        while !pooler.sockets.path().join(".s.PGSQL.5432").exists() {
            std::thread::yield_now();
        }
        Some(pooler)
    }

    /// Returns a log through the pooler.
    pub(crate) fn log(&self, runtime: &Runtime) -> PostgresLog {
        let host = self.sockets.path().display().to_string().replace('/', "%2F");
        let url = format!("postgres://postgres@{host}/postgres?durability=storage&timeout_s=60");
        PostgresLog::new(url.parse().expect("a valid URL"), runtime.handle().clone())
            .expect("a log")
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A runtime for the log and for the sessions of the test.
pub(crate) fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// A server in a directory, stopped when dropped.
pub(crate) struct Server {
    programs: PathBuf,
    dir: PathBuf,
    /// Removed when dropped; a standby has none.
    _parent: Option<TempDir>,
}

impl Server {
    /// Creates and starts a server without a standby.
    pub(crate) fn start(programs: &Path) -> Self {
        let parent = TempDir::new();
        if is_root() {
            chown(parent.path(), Some(UNPRIVILEGED), Some(UNPRIVILEGED))
                .expect("a directory of that user");
        }
        let dir = parent.path().join("a");
        let server = Self { programs: programs.to_owned(), dir, _parent: Some(parent) };
        let data = server.data();
        server.run("initdb", &["-D", &data, "-A", "trust", "-U", "postgres", "--no-sync"]);
        server.configure("wal_level = replica\nmax_wal_senders = 4\nhot_standby = on\n");
        server.up();
        server
    }

    /// Adds a synchronous standby to a running server, and waits until it is one.
    pub(crate) fn add_standby(&self) -> Self {
        let dir = self.dir.with_file_name("b");
        let standby = Self { programs: self.programs.clone(), dir, _parent: None };
        let (host, data) = (self.sockets(), standby.data());
        self.run(
            "pg_basebackup",
            &["-h", &host, "-U", "postgres", "-D", &data, "-c", "fast", "-R"],
        );
        // The name under which the primary lists it.
        standby.configure("cluster_name = 'b'\n");
        standby.up();
        self.sql("alter system set synchronous_standby_names = 'FIRST 1 (b)'");
        self.sql("select pg_reload_conf()");
        self.wait_for("select count(*) = 1 from pg_stat_replication where sync_state = 'sync'");
        standby
    }

    pub(crate) fn up(&self) {
        let log = self.dir.with_extension("log").display().to_string();
        self.run("pg_ctl", &["-D", &self.data(), "-s", "-w", "-t", "60", "-l", &log, "start"]);
    }

    /// Starts again with TLS alone, on a port of the loopback address, and returns the port.
    pub(crate) fn serve_tls(&self, certificate: &str, key: &str) -> u16 {
        self.stop("fast");
        self.write("server.crt", certificate);
        self.write("server.key", key);
        self.write("pg_hba.conf", "hostssl all all 127.0.0.1/32 trust\n");
        let tls = "ssl = on\nlisten_addresses = '127.0.0.1'\n";
        for _ in 0..10 {
            // PostgreSQL cannot choose a port itself: another process may take this one first.
            let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
            let port = free.expect("a free port").port();
            self.append_settings(&format!("{tls}port = {port}\n"));
            let log = self.dir.with_extension("log").display().to_string();
            let start = ["-D", &self.data(), "-s", "-w", "-t", "60", "-l", &log, "start"];
            if self.output("pg_ctl", &start).status.success() {
                return port;
            }
        }
        panic!("no port was free");
    }

    /// Writes a file of the data directory, which only the server's user may read.
    fn write(&self, name: &str, text: &str) {
        let path = self.dir.join(name);
        std::fs::write(&path, text).expect("a file");
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("its mode");
        if is_root() {
            chown(&path, Some(UNPRIVILEGED), Some(UNPRIVILEGED)).expect("a file of that user");
        }
    }

    /// Stops the server, in the mode `fast` or `immediate`.
    pub(crate) fn stop(&self, mode: &str) {
        self.run("pg_ctl", &["-D", &self.data(), "-s", "-w", "-t", "60", "-m", mode, "stop"]);
    }

    pub(crate) fn promote(&self) {
        self.run("pg_ctl", &["-D", &self.data(), "-s", "-w", "-t", "60", "promote"]);
    }

    /// Kills all processes of the server, as the loss of the machine does.
    pub(crate) fn kill(&self) {
        let pid_file = self.dir.join("postmaster.pid");
        let text = std::fs::read_to_string(&pid_file).expect("a running server");
        let postmaster = text.lines().next().expect("a process id").to_owned();
        // The postmaster stops first, so that it starts no process between.
        signal("-STOP", std::slice::from_ref(&postmaster));
        let mut all = children(&postmaster);
        all.push(postmaster);
        signal("-KILL", &all);
        while all.iter().any(|pid| is_alive(pid)) {
            std::thread::yield_now();
        }
        // Its parent may not have reaped it, and PostgreSQL takes a zombie for a running server.
        let lock = Path::new(&self.sockets()).join(".s.PGSQL.5432.lock");
        for file in [pid_file, lock] {
            std::fs::remove_file(file).expect("a file of the killed server");
        }
    }

    /// Returns a URL of the server, with these parameters.
    pub(crate) fn url(&self, parameters: &str) -> String {
        let host = self.sockets().replace('/', "%2F");
        format!("postgres://postgres@{host}/postgres?{parameters}")
    }

    /// Returns a log on the server.
    pub(crate) fn log(&self, parameters: &str, runtime: &Runtime) -> PostgresLog {
        let settings = self.url(parameters).parse().expect("a valid URL");
        PostgresLog::new(settings, runtime.handle().clone()).expect("a log")
    }

    /// Opens a session of the test.
    pub(crate) fn session(&self, runtime: &Runtime) -> Client {
        let config = self.url("").parse::<tokio_postgres::Config>().expect("a valid URL");
        let connect = async { config.connect(NoTls).await.expect("a session") };
        let (client, connection) = runtime.block_on(connect);
        runtime.spawn(connection);
        client
    }

    /// Runs a statement with psql, and returns its rows as text.
    pub(crate) fn sql(&self, sql: &str) -> String {
        let host = self.sockets();
        self.run("psql", &["-h", &host, "-U", "postgres", "-d", "postgres", "-XAtc", sql])
    }

    /// Waits until a query returns true.
    pub(crate) fn wait_for(&self, sql: &str) {
        for _ in 0..1000 {
            if self.sql(sql) == "t" {
                return;
            }
        }
        panic!("never true: {sql}\n{}", self.sql("select * from pg_stat_replication"));
    }

    fn data(&self) -> String {
        self.dir.display().to_string()
    }

    pub(crate) fn sockets(&self) -> String {
        self.dir.with_extension("sockets").display().to_string()
    }

    fn configure(&self, lines: &str) {
        let sockets = self.sockets();
        // Not in the data directory: a copy of it would have the lock of the socket.
        std::fs::create_dir(&sockets).expect("a directory of sockets");
        if is_root() {
            chown(&sockets, Some(UNPRIVILEGED), Some(UNPRIVILEGED))
                .expect("a directory of that user");
        }
        self.append_settings(&format!(
            "listen_addresses = ''\nunix_socket_directories = '{sockets}'\n\
             max_connections = 50\nshared_buffers = 16MB\nautovacuum = off\n{lines}"
        ));
    }

    fn append_settings(&self, lines: &str) {
        let file = self.dir.join("postgresql.conf");
        let mut file = std::fs::File::options().append(true).open(file).expect("its settings");
        file.write_all(lines.as_bytes()).expect("written settings");
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.output(program, arguments);
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let log = std::fs::read_to_string(self.dir.with_extension("log")).unwrap_or_default();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {text}{stderr}\n{log}");
        text
    }

    fn output(&self, program: &str, arguments: &[&str]) -> Output {
        let program = self.programs.join(program);
        let mut command = Command::new(&program);
        if is_root() {
            command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
        }
        // pg_ctl leaves a server behind that would keep a pipe open.
        let is_daemon = arguments.contains(&"start");
        let out = if is_daemon { Stdio::null() } else { Stdio::piped() };
        let err = if is_daemon { Stdio::null() } else { Stdio::piped() };
        command
            .args(arguments)
            .current_dir("/")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .output()
            .expect("a program of PostgreSQL")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.dir.join("postmaster.pid").exists() {
            let mut command = Command::new(self.programs.join("pg_ctl"));
            if is_root() {
                command = Command::new("setpriv");
                command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
                command.arg(self.programs.join("pg_ctl"));
            }
            let data = self.data();
            let stop = ["-D", &data, "-s", "-w", "-m", "immediate", "stop"];
            let _ = command.args(stop).current_dir("/").output();
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn signal(signal: &str, pids: &[String]) {
    let status = Command::new("kill").arg(signal).args(pids).status().expect("kill");
    assert!(status.success(), "kill {signal} {pids:?}");
}

/// Returns the process ids of a process's children.
fn children(parent: &str) -> Vec<String> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let text = std::fs::read_to_string(path).expect("the children of a process");
    text.split_whitespace().map(str::to_owned).collect()
}

/// Returns whether a process runs: a zombie does not.
fn is_alive(pid: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}
