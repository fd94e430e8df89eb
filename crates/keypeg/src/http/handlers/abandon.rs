//! When a call whose client has closed its sending side is abandoned: only while it waits in a wait
//! queue. Any other call is answered, because such a client can still read.
//!
//! Knows neither connections nor hyper.

use keypeg_core::PoolName;
use keypeg_store::{Call, Lane, PendingReply, Principal, Request};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Decides whether a call that can wait is abandoned. To be polled after the call's own future.
///
/// The store executes the requests of a lane in their order. So once it has answered a request that
/// was submitted after the client closed, it has also answered the call, unless the call waits.
#[derive(Debug, Default)]
pub(crate) struct Abandoning {
    /// The later request. Boxed, because few calls need it.
    later: Option<Box<PendingReply>>,
}

impl Abandoning {
    /// Becomes ready when the call must be abandoned, with the reason. `closed` becomes ready when
    /// the client has closed its sending side, or with the error of a broken connection.
    pub(crate) fn poll(
        &mut self,
        lane: &Lane,
        closed: impl FnOnce(&mut Context<'_>) -> Poll<io::Result<()>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Error> {
        let later = match &mut self.later {
            Some(later) => later,
            later => {
                if let Err(error) = ready!(closed(cx)) {
                    return Poll::Ready(error);
                }
                let call = Call::GetPool { pool: PoolName::default_pool() };
                let request = Request::new(Principal::Server, call);
                later.insert(Box::new(lane.submit(request)))
            }
        };
        let _ = ready!(Pin::new(&mut **later).poll(cx));
        Poll::Ready(io::ErrorKind::ConnectionAborted.into())
    }
}
