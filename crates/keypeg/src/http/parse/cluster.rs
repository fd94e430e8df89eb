//! The body of a request that moves a shard.

use super::members::{BodyFields, Member};
use crate::http::error::Problem;
use keypeg_fields::{Field, SERVER};

/// The body of a request that moves a shard.
#[derive(Debug, Default)]
pub(crate) struct MoveShardBody {
    server: Option<Box<str>>,
}

impl BodyFields for MoveShardBody {
    const MEMBERS: &'static [Member<Self>] = &[Member::Text(&SERVER, |body| &mut body.server)];
}

impl MoveShardBody {
    /// Returns the name of the server.
    pub(crate) fn server(self) -> Result<Box<str>, Problem> {
        self.server.ok_or_else(|| Problem::not_allowed(Field::Text(&SERVER)))
    }
}
