//! Constant answers, for `bench/run` alone: what this server's HTTP costs without its engine.
//!
//! Behind the feature `bench-constant`. The pool of that name lends always the same and takes
//! anything back, over the same accept loop, routes, reading of bodies and way out as acquire and
//! release, with an answer as long as theirs.

use super::body::{Fields, Known};
use super::{Answered, Request, no_content};
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};

const KNOWN: Known = &["ttl_seconds", "wait_seconds", "holder"];
const GRANT: &str = r#"{"id":"6674ecnpkeibtvvpj0t7ngvphl","pool":"bench-constant","key_id":"3e19ob8uiq8ulb0e3v7o7kaciu","key":"EP4EHmEDGjNsr9emT5fE","fencing_token":1795407714706997,"holder":"bench-17","granted_at":"2026-11-23T04:21:55.745Z","waited_seconds":0,"expires_at":"2026-11-23T04:22:55.745Z","expires_in_seconds":60,"key_expires_at":"2026-11-23T04:26:55.733Z"}"#;

pub(super) async fn grant(request: Request) -> Answered {
    Fields::read(request, KNOWN).await?;
    let mut response = super::Response::new(GRANT.as_bytes().to_vec().into());
    *response.status_mut() = StatusCode::CREATED;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

pub(super) async fn released(request: Request) -> Answered {
    Fields::read(request, KNOWN).await?;
    Ok(no_content())
}
