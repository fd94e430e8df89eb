//! Ports of the tests, and what the kernel knows about a connection: whether the server has read
//! everything.
//!
//! No event of the protocol shows that a server has read half a request.

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt,
};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;

/// Reserves a port of loopback that no other program gets: a socket that is bound but does not
/// listen. A server can listen on the port, because both allow the reuse of the address. When it has
/// ended, connections are refused, and it can be started again.
pub(crate) fn reserve_port() -> (OwnedFd, SocketAddr) {
    let flags = SocketFlags::CLOEXEC;
    let reserved = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
    sockopt::set_socket_reuseaddr(&reserved, true).unwrap();
    bind(&reserved, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let addr = SocketAddr::try_from(getsockname(&reserved).unwrap()).unwrap();
    (reserved, addr)
}

/// Returns whether the other side has read all bytes that were sent on this connection.
pub(crate) fn has_read(stream: &TcpStream) -> bool {
    let (own, peer) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the connections of this machine");
    let queues = |from: SocketAddr, to: SocketAddr| {
        let ends = [from, to].map(in_table).join(" ");
        // The ends, the state, and the lengths of the queues: sent and not acknowledged, received
        // and not read.
        let line = table.lines().find(|line| line.contains(&ends))?;
        let lengths = line.split_whitespace().nth(4)?.split_once(':')?;
        Some((lengths.0.to_owned(), lengths.1.to_owned()))
    };
    let is_empty = |length: &str| length.bytes().all(|digit| digit == b'0');
    queues(own, peer).is_some_and(|(unacknowledged, _)| is_empty(&unacknowledged))
        && queues(peer, own).is_some_and(|(_, unread)| is_empty(&unread))
}

/// Returns an address as `/proc/net/tcp` shows it, see `proc_net_tcp(5)`.
fn in_table(addr: SocketAddr) -> String {
    let SocketAddr::V4(addr) = addr else { panic!("{addr} is not of IPv4") };
    let (ip, port) = (SocketAddrV4::ip(&addr).octets(), addr.port());
    format!("{:08X}:{port:04X}", u32::from_ne_bytes(ip))
}

#[test]
fn bytes_count_as_read_once_the_other_side_has_read_them() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    sender.write_all(b"four").unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    receiver.read_exact(&mut [0; 2]).unwrap();
    assert!(!has_read(&sender), "two bytes are left");
    receiver.read_exact(&mut [0; 2]).unwrap();
    super::eventually("all is read", || has_read(&sender).then_some(()));
}
