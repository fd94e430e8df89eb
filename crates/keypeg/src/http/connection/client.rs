//! The client of a connection, which the layers of the connection pass on: who it is, and its place.

use super::places::Place;
use crate::http::origin::Sender;
use std::sync::Arc;

/// The client of a connection.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) sender: Sender,
    pub(super) place: Arc<Place>,
}
