//! The client of a connection, as the layers of the connection pass it on: its address and its place.

use super::places::Place;
use std::net::IpAddr;
use std::sync::Arc;

/// The client of a connection.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) ip: IpAddr,
    pub(super) place: Arc<Place>,
}
