//! TLS: which connections the server accepts, its certificate and the reload of it, and the clients
//! that speak https.

mod certificate;
#[cfg(feature = "cli")]
mod clients;
mod connections;
mod http2;
mod mutual;
