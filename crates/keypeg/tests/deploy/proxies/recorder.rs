//! A server that records the requests that a proxy sends to it, as bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

#[derive(Default)]
struct Seen {
    heads: Vec<String>,
    connections: usize,
}

/// A server on a free port of loopback.
pub(super) struct Recorder {
    addr: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

impl Recorder {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Seen>>::default();
        let of_thread = Arc::clone(&seen);
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let (Ok(socket), seen) = (socket, Arc::clone(&of_thread)) else { break };
                std::thread::spawn(move || serve(socket, &seen));
            }
        });
        Self { addr, seen }
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns the heads of all requests, without those of health checks.
    pub(super) fn heads(&self) -> Vec<String> {
        self.seen.lock().unwrap().heads.clone()
    }

    /// Returns the number of connections that brought such a request.
    pub(super) fn connections(&self) -> usize {
        self.seen.lock().unwrap().connections
    }
}

/// Answers requests without bodies; closes the connection instead if the path has `lost`.
fn serve(mut socket: TcpStream, seen: &Mutex<Seen>) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    let mut requests = 0;
    loop {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            match socket.read(&mut buffer) {
                Ok(length @ 1..) => bytes.extend(&buffer[..length]),
                _ => return,
            }
            continue;
        };
        let head: Vec<u8> = bytes.drain(..end + 4).collect();
        let head = String::from_utf8(head).unwrap();
        let is_lost = head.contains(" /lost");
        if !head.starts_with("GET /readyz ") {
            requests += 1;
            let mut seen = seen.lock().unwrap();
            seen.connections += usize::from(requests == 1);
            seen.heads.push(head);
        }
        if is_lost {
            return;
        }
        let answer = "HTTP/1.1 200 OK\r\nx-request-id: r\r\ncontent-length: 2\r\n\r\n{}";
        if socket.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}
