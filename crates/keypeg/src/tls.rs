//! TLS: the server's certificate and key, the authority of client certificates, and their reload.
//!
//! `files` reads and checks the files, `acceptor` keeps what new connections use,
//! `reload` replaces it. Does not know HTTP; `http/connection/handshake.rs` runs the handshakes.

mod acceptor;
mod client_certificate;
mod files;
mod peers;
mod reload;

pub(crate) use acceptor::{TlsAcceptor, TlsCounters};
pub(crate) use client_certificate::ClientCertificate;
pub(crate) use files::{TlsFiles, TlsFilesError};
pub(crate) use peers::PeerTls;
pub(crate) use reload::watch;
