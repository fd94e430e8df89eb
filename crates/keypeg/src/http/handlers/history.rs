//! The history routes: the last minutes of one pool, and of all pools together.
//!
//! Both answer from the memory of the server. Only the existence of a pool is a question to the
//! store.

use crate::http::admit::RequestContext;
use crate::http::error::Problem;
use crate::http::message::Request;
use crate::http::parse::path::pool_name;
use crate::http::parse::query::Query;
use crate::http::respond::{HandlerResult, json_response};
use hyper::{Method, StatusCode};
use keypeg_fields::{HISTORY_SECONDS_MAX, SECONDS};
use keypeg_store::Call;

/// What one second takes in all forms that it has until it is sent: ten numbers, and their text.
const SECOND_BYTES: u64 = 320;

/// Shows the history of all pools that the token may see.
pub(crate) fn all(context: &RequestContext<'_>, request: &Request) -> HandlerResult {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Problem::unrouted(request.uri().path()));
    }
    let seconds = seconds(request.uri().query())?;
    let room = context.answer_room(seconds as u64 * SECOND_BYTES)?;
    let filter = context.listed_pools();
    let history = context.server.history.of_all(filter.as_deref(), seconds);
    Ok(room.fill(json_response(StatusCode::OK, &history)))
}

/// Shows the history of a pool.
pub(crate) async fn of_pool(
    context: &RequestContext<'_>,
    pool: &str,
    query: Option<&str>,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let seconds = context.or_unknown_pool(&pool, seconds(query)).await?;
    let room = context.answer_room(seconds as u64 * SECOND_BYTES)?;
    context.execute(Call::get_pool(pool.clone())).await?;
    let history = context.server.history.of_pool(&pool, seconds);
    Ok(room.fill(json_response(StatusCode::OK, &history)))
}

fn seconds(query: Option<&str>) -> Result<usize, Problem> {
    let most = usize::try_from(HISTORY_SECONDS_MAX).expect("invariant: 900");
    Query::read(query, &[SECONDS.name])?.integer(&SECONDS, most)
}
