//! The memory of large responses: the bytes that the server holds for all callers have a bound, and
//! each caller has a share of it.
//!
//! A handler takes room before it asks the engine, as far as it can estimate its response; what a
//! response takes in the end counts until its client has accepted it. Small responses do not count:
//! each connection has one at most.

use super::admit::RequestContext;
use super::error::Problem;
use super::message::{Body, Response};
use super::metrics::Family;
use crate::share::{Budget, Exceeded, Held};
use keypeg_client::Code;
use std::sync::Arc;

/// The largest response that does not count, in bytes.
const SMALL_MAX: u64 = 4 << 10;

/// Room for one response.
#[derive(Debug)]
pub(super) struct AnswerRoom(Option<Held>);

impl RequestContext<'_> {
    /// Takes room for a response of about `bytes`, in all forms that it has until it is sent. A
    /// response that is larger than all room must be possible too, alone.
    pub(super) fn answer_room(&self, bytes: u64) -> Result<AnswerRoom, Problem> {
        if bytes <= SMALL_MAX {
            return Ok(AnswerRoom(None));
        }
        let answers = &self.server.answers;
        let held = answers.admit(&self.caller(), bytes.min(answers.max()));
        held.map(|held| AnswerRoom(Some(held))).map_err(|exceeded| self.no_room(exceeded))
    }

    /// Takes room for a response that operators need: where other responses use the share of its
    /// caller, it takes room that only such responses have.
    pub(super) fn operator_room(&self, bytes: u64) -> Result<AnswerRoom, Problem> {
        let (server, caller) = (&self.server, self.caller());
        let admit = |budget: &Arc<Budget>| budget.admit(&caller, bytes.min(budget.max()));
        let held = admit(&server.answers).or_else(|_| admit(&server.operator_answers));
        held.map(|held| AnswerRoom(Some(held))).map_err(|exceeded| self.no_room(exceeded))
    }

    /// Counts a response whose handler has taken no room. The response to a change is sent in any
    /// case, because the change is applied; those that operators need have room of their own too.
    pub(super) fn count_answer(
        &self,
        mut response: Response,
        is_change: bool,
        family: Family,
    ) -> Result<Response, Problem> {
        let len = match response.body_mut() {
            // A text that is part of the program takes no memory.
            Body::Complete(bytes) if bytes.is_unique() => bytes.len() as u64,
            Body::Forwarded(answer) => answer.counted_bytes().unwrap_or(0),
            Body::Complete(_) | Body::Counted(..) | Body::Events(_) | Body::Backup(_) => 0,
        };
        if len <= SMALL_MAX {
            return Ok(response);
        }
        if family == Family::Ops && !is_change {
            return Ok(self.operator_room(len)?.fill(response));
        }
        let (answers, caller) = (&self.server.answers, self.caller());
        let held = match answers.admit(&caller, len) {
            Ok(held) => held,
            Err(_) if is_change => answers.charge(&caller, len),
            Err(exceeded) => return Err(self.no_room(exceeded)),
        };
        Ok(AnswerRoom(Some(held)).fill(response))
    }

    fn no_room(&self, exceeded: Exceeded) -> Problem {
        match exceeded {
            Exceeded::Bound => Problem::new(
                Code::Overloaded,
                "The memory for responses of this server is full. Try again later, or request a \
                 smaller page (limit).",
            ),
            Exceeded::Share => Problem::new(
                Code::RateLimited,
                format!(
                    "The unread responses of {} use its share of the server's memory. Read them, \
                     or request smaller pages (limit).",
                    self.caller_kind()
                ),
            ),
        }
        .retry_after_ms(1_000)
    }
}

impl AnswerRoom {
    /// Returns the response with the room that it takes.
    pub(super) fn fill(self, mut response: Response) -> Response {
        let Some(mut held) = self.0 else { return response };
        match response.body_mut() {
            Body::Complete(bytes) if bytes.len() as u64 > SMALL_MAX => {
                held.resize(bytes.len() as u64);
                *response.body_mut() = Body::Counted(std::mem::take(bytes), Box::new(held));
            }
            Body::Forwarded(answer) => answer.set_room(held),
            Body::Complete(_) | Body::Counted(..) | Body::Events(_) | Body::Backup(_) => {}
        }
        response
    }
}
