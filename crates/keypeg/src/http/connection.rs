//! Connections: accepted, encrypted or not, served by the fast path, then by hyper.

pub(crate) mod accept;
mod client;
mod fast_path;
mod framing;
mod handshake;
mod hyper_errors;
pub(super) mod peer;
pub(super) mod places;
mod serve;
mod stream;
mod wire;
mod write_watch;

pub(crate) use stream::bound_kernel_buffers;
