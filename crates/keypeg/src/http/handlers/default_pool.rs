//! What the two compatibility APIs share: calls on the default pool, and the response that an API has
//! of its own instead of a problem.

use crate::http::admit::RequestContext;
use crate::http::checks::refuse_cross_site;
use crate::http::error::Problem;
use crate::http::message::{Request, Response};
use crate::http::respond::{HandlerResult, json_response};
use hyper::StatusCode;
use keypeg_client::Code;
use keypeg_core::{KeyRef, NewKey, PoolName};
use keypeg_store::{AcquireTerms, Answer, Call, LeaseGrant, TypedCall};
use serde_json::Value;

/// The response of a compatibility API instead of the problem with this code.
#[derive(Clone, Copy)]
pub(super) struct OwnRefusal {
    pub(super) code: Code,
    pub(super) response: fn() -> Response,
}

impl OwnRefusal {
    /// Responds with the JSON of an answer, with this refusal, or with another problem.
    pub(super) fn or_json<A>(
        self,
        answer: Result<A, Problem>,
        body: impl FnOnce(A) -> Value,
    ) -> HandlerResult {
        match answer {
            Ok(answer) => Ok(json_response(StatusCode::OK, &body(answer))),
            Err(problem) => problem.instead_of(self.code, self.response),
        }
    }
}

/// Creates one key, by a call that creates as many.
pub(super) async fn create(
    context: &RequestContext<'_>,
    call: TypedCall<Vec<NewKey>>,
) -> Result<NewKey, Problem> {
    let mut keys = context.execute(call).await?;
    Ok(keys.pop().expect("invariant: the call created one key"))
}

/// Acquires a key. Both APIs do it by GET, which a page of another site could send.
pub(super) async fn acquire(
    context: &RequestContext<'_>,
    request: &Request,
) -> Result<LeaseGrant, Problem> {
    refuse_cross_site(&context.server.access.hosts, request).map_err(Problem::of_grant)?;
    let call = Call::acquire(PoolName::default_pool(), AcquireTerms::default());
    context.execute(call).await.map_err(Problem::of_grant)
}

/// Runs a call on one key.
pub(super) async fn on_key<A: Answer>(
    context: &RequestContext<'_>,
    key: KeyRef,
    call: fn(PoolName, KeyRef) -> TypedCall<A>,
) -> Result<A, Problem> {
    context.execute(call(PoolName::default_pool(), key)).await
}
