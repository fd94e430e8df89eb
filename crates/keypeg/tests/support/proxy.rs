//! A proxy between a client and a server, for tests of a bad network.
//!
//! It delays, stalls, cuts or halves what it carries, for the requests whose first bytes contain a
//! given text. Its server can be replaced, so that a client sees a restart at one address.

use super::pause;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What happens to a request or its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The answer arrives later by this time.
    Delay(Duration),
    /// The request never reaches the server, and no answer arrives.
    StallRequest,
    /// The server gets the request, and no answer arrives.
    StallAnswer,
    /// The server gets the request, and the connection closes instead of an answer.
    Cut,
    /// Half of the answer arrives, then the connection closes.
    Half,
}

struct Rule {
    text: &'static str,
    fault: Fault,
    /// To how many requests it still applies.
    left: usize,
}

struct Shared {
    /// `None` while there is no server.
    server: Mutex<Option<SocketAddr>>,
    rules: Mutex<Vec<Rule>>,
    requests: Mutex<Vec<String>>,
    clients: Mutex<Vec<TcpStream>>,
    faults: AtomicUsize,
    stopped: AtomicBool,
}

/// A proxy on a free port of loopback.
pub(crate) struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    pub(crate) fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            server: Mutex::new(Some(server)),
            rules: Mutex::default(),
            requests: Mutex::default(),
            clients: Mutex::default(),
            faults: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if of_thread.stopped.load(Ordering::Relaxed) {
                    break;
                }
                let (Ok(client), shared) = (client, Arc::clone(&of_thread)) else { break };
                std::thread::spawn(move || carry(&client, &shared));
            }
        });
        Self { addr, shared }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Applies a fault to the next `count` requests that contain `text` in their first line.
    pub(crate) fn fail(&self, text: &'static str, fault: Fault, count: usize) {
        self.shared.rules.lock().unwrap().push(Rule { text, fault, left: count });
    }

    /// Closes all connections that are open now.
    pub(crate) fn cut_all(&self) {
        for client in self.shared.clients.lock().unwrap().drain(..) {
            let _ = client.shutdown(Shutdown::Both);
        }
    }

    /// Removes all rules.
    pub(crate) fn heal(&self) {
        self.shared.rules.lock().unwrap().clear();
    }

    /// Returns the number of requests to which a fault was applied.
    pub(crate) fn faults(&self) -> usize {
        self.shared.faults.load(Ordering::Relaxed)
    }

    /// Returns the number of requests with this text in their first line.
    pub(crate) fn requests(&self, text: &str) -> usize {
        let requests = self.shared.requests.lock().unwrap();
        requests.iter().filter(|line| line.contains(text)).count()
    }

    /// Refuses further connections: the server is about to end, and a server of another test can get
    /// its port.
    pub(crate) fn remove_server(&self) {
        *self.shared.server.lock().unwrap() = None;
    }

    /// Sends further connections to another server.
    pub(crate) fn replace_server(&self, server: SocketAddr) {
        *self.shared.server.lock().unwrap() = Some(server);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.addr);
    }
}

/// Carries one connection. The server's side is carried by a second thread, which knows the fault of
/// the last request.
fn carry(client: &TcpStream, shared: &Arc<Shared>) {
    let Some(server) = *shared.server.lock().unwrap() else { return };
    let Ok(server) = TcpStream::connect(server) else { return };
    shared.clients.lock().unwrap().push(client.try_clone().unwrap());
    let fault: Arc<Mutex<Option<Fault>>> = Arc::default();
    let answers = {
        let (mut server, mut client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        let fault = Arc::clone(&fault);
        std::thread::spawn(move || carry_answers(&mut server, &mut client, &fault))
    };
    let (mut reader, mut writer) = (client, &server);
    let mut buffer = [0; 8_192];
    while let Ok(length @ 1..) = reader.read(&mut buffer) {
        let bytes = &buffer[..length];
        let line = String::from_utf8_lossy(bytes);
        let line = line.lines().next().unwrap_or_default().to_owned();
        if line.contains(" HTTP/1.1") {
            *fault.lock().unwrap() = shared.fault_of(&line);
            shared.requests.lock().unwrap().push(line);
        }
        if *fault.lock().unwrap() == Some(Fault::StallRequest) {
            continue;
        }
        if writer.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Write);
    let _ = answers.join();
}

impl Shared {
    fn fault_of(&self, line: &str) -> Option<Fault> {
        let mut rules = self.rules.lock().unwrap();
        let rule = rules.iter_mut().find(|rule| rule.left > 0 && line.contains(rule.text))?;
        rule.left -= 1;
        self.faults.fetch_add(1, Ordering::Relaxed);
        Some(rule.fault)
    }
}

fn carry_answers(server: &mut TcpStream, client: &mut TcpStream, fault: &Mutex<Option<Fault>>) {
    let mut buffer = [0; 8_192];
    while let Ok(length @ 1..) = server.read(&mut buffer) {
        let bytes = &buffer[..length];
        let present = *fault.lock().unwrap();
        match present {
            Some(Fault::StallRequest | Fault::StallAnswer) => continue,
            Some(Fault::Cut) => break,
            Some(Fault::Half) => {
                let _ = client.write_all(&bytes[..length / 2]);
                break;
            }
            Some(Fault::Delay(time)) => pause(time),
            None => {}
        }
        if client.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}
