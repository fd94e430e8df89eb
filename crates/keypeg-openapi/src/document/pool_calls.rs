//! The part of the document about pools, their history and their events.

use super::call::{Call, no_content, plain_text, referenced};
use super::examples;
use super::parameters::{history_seconds, last_event_id, pages, pool_condition};
use keypeg_client::Code;
use keypeg_fields::PAGE_MAX;

/// Returns the specific part of an operation on pools; `None` for any other one.
pub(super) fn pools(operation: &str) -> Option<Call> {
    Some(match operation {
        "listPools" => Call::new(
            "Pools are sorted by name. With an access token, the list has only the pools of the \
             token. The cost does not depend on the pools that are not on the page. A page can have fewer than `limit` \
             pools, even none, although `next_cursor` is set. On the last page `next_cursor` is \
             null. A pool that exists during the whole listing is on exactly one page.",
            vec![referenced(200, "A page of pools.", "Pools", examples::pools())],
            &[Code::BadCursor, Code::Invalid],
        )
        .with_parameters(pages("pools", PAGE_MAX)),
        "showPool" => Call::new(
            "The counts are kept as counters, so the cost does not depend on the size of the pool.",
            vec![referenced(200, "The pool.", "Pool", examples::pool())],
            &[],
        ),
        "putPool" => Call::new(
            "A field that is left out gets its default in a new pool, and keeps its value in an \
             existing pool. A change applies to later grants and keep-alives, not to running \
             leases. A pool with `draining` grants no key and refuses requests that wait.",
            vec![
                referenced(200, "The policy is changed.", "Pool", examples::pool()),
                referenced(201, "The pool is created.", "Pool", examples::pool()),
            ],
            &[Code::TooManyPools, Code::StorageFull],
        )
        .with_optional_body("PolicyRequest", examples::policies())
        .with_parameters(pool_condition(true)),
        "showPoolHistory" => Call::new(
            "The server reads the pool once a second, and keeps the last 15 minutes in memory, for \
             the 1 000 busiest pools, or fewer on a server with little memory. Another pool, and a second before \
             the server had a record, has null. A start begins an empty history.",
            vec![referenced(200, "The history.", "History", examples::history(Some("ci")))],
            &[Code::Invalid],
        )
        .with_parameters(vec![history_seconds()]),
        "showHistory" => Call::new(
            "The sums of all pools. With an access token for certain pools, the sums of those of \
             its pools that have a history.",
            vec![referenced(200, "The history.", "History", examples::history(None))],
            &[Code::Invalid],
        )
        .with_parameters(vec![history_seconds()]),
        "followEvents" => Call::new(
            "Server-sent events. An event is sent when the change is durable; a lease or key that \
             ends by time is an event too. A stream begins with one `resync`, which has the \
             counts, unless `Last-Event-ID` names an event and the server still has all later \
             ones. The events are `resync`, `generated`, `imported`, `labelled`, `granted`, `renewed`, \
             `released`, `expired`, `quarantined`, `draining`, `drain_cancelled`, `restored`, \
             `deleted`, `purged`, `policy` and `dropped`. After `dropped` the stream ends. Ignore events with an unknown name. No \
             event contains the value of a key or the id of a lease. If nothing happens for 15 s, \
             the server sends a comment.",
            vec![plain_text("text/event-stream", "The stream; it has no end.", examples::EVENT)],
            &[],
        )
        .with_parameters(vec![last_event_id()]),
        "deletePool" => Call::new(
            "The keys are purged in the background. The pool's list of retired values is deleted \
             too, so those values can be imported again.",
            vec![no_content("The pool is deleted.")],
            &[Code::DefaultPool, Code::StorageFull],
        )
        .with_parameters(pool_condition(false)),
        _ => return None,
    })
}
