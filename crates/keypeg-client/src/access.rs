//! What an access token allows, on the wire.
//!
//! A client asks to show what it can do. The server decides by the token of each request.

use crate::time::UnixMs;
use serde::{Deserialize, Serialize};

/// What the access token of a request allows. A server without access tokens allows everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct Access {
    /// The name of the token; null on a server without access tokens.
    pub token: Option<String>,
    /// The scopes that the token has. `admin` includes all others, which are listed too.
    pub scopes: Vec<String>,
    /// The pools that the token is for: names, and prefixes that end in `*`.
    pub pools: Vec<String>,
    /// When the token expires; null: never.
    pub expires_at: Option<UnixMs>,
}
