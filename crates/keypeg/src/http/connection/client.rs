//! The client of a connection, which the layers of the connection pass on: its address and place.

use super::places::Place;
use std::net::IpAddr;
use std::sync::Arc;

/// The client of a connection.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) ip: IpAddr,
    pub(super) place: Arc<Place>,
}
