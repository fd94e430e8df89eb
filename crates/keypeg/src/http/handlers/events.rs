//! The event route: opens the stream of a pool's events.

use crate::http::admit::RequestContext;
use crate::http::error::Problem;
use crate::http::event_stream::EventStream;
use crate::http::message::{Body, Request, Response};
use crate::http::parse::path::pool_name;
use crate::http::respond::HandlerResult;
use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use keypeg_store::Call;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Disables response buffering in nginx and compatible proxies.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Opens the event stream of a pool. HEAD only checks that the pool exists.
pub(crate) async fn subscribe(
    context: &RequestContext<'_>,
    pool: &str,
    request: Request,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let body = if request.method() == Method::HEAD {
        context.execute(Call::get_pool(pool)).await?;
        Body::default()
    } else {
        let place = context.stream_place()?;
        let subscription = context.execute(Call::subscribe(pool)).await?;
        // An unreadable id counts as unknown: the stream starts with the counts.
        let last = request.headers().get(LAST_EVENT_ID).map(|id| id.to_str().unwrap_or_default());
        let subscriber = subscription.subscribe(last);
        let subscriber = subscriber.map_err(|refused| Problem::too_many_streams(refused.max))?;
        let peer = request.body().peer().clone();
        Body::Events(Box::new(EventStream::new(subscriber, context.stream_permit(), place, peer)))
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}
