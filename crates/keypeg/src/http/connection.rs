//! Connections: accepted, encrypted or not, served by the fast path, then by hyper.

pub(crate) mod accept;
mod client;
pub(super) mod descriptors;
mod fast_path;
mod framing;
mod handshake;
mod http2;
mod hyper_errors;
mod peer;
pub(super) mod places;
pub(super) mod request_peer;
mod serve;
mod stream;
mod wire;
mod write_watch;

pub(crate) use stream::bound_kernel_buffers;
