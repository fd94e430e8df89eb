//! Reloads: the request of a SIGHUP to each part of the server that rereads a file, and the moment
//! when all parts have done so.
//!
//! Does not know the parts. A signal concerns the process, so this state is global. Several
//! requests may become one for a part; each request still ends only after a reload that began
//! after it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use tokio::sync::{Notify, watch};

/// The number of requests so far.
static REQUESTS: LazyLock<watch::Sender<u64>> = LazyLock::new(|| watch::Sender::new(0));
/// The number of the last request that each part has completed.
static PARTS: Mutex<Vec<Weak<AtomicU64>>> = Mutex::new(Vec::new());
/// Notified when a part has completed a request, or has ended.
static PROGRESS: Notify = Notify::const_new();

/// A part that rereads its files. A part that is dropped delays no reload.
#[derive(Debug)]
pub(crate) struct Reloads {
    requests: watch::Receiver<u64>,
    /// The number of the last request that [`Self::requested`] returned.
    seen: u64,
    met: Arc<AtomicU64>,
}

impl Reloads {
    /// Adds a part. It has met all earlier requests.
    pub(crate) fn join() -> Self {
        let requests = REQUESTS.subscribe();
        let seen = *requests.borrow();
        let met = Arc::new(AtomicU64::new(seen));
        parts().push(Arc::downgrade(&met));
        Self { requests, seen, met }
    }

    /// Waits for a request. To be followed by [`Self::done`]; may be dropped at any time.
    pub(crate) async fn requested(&mut self) {
        // The sender is a static: it is never dropped.
        let _ = self.requests.changed().await;
        self.seen = *self.requests.borrow_and_update();
    }

    /// Reports that the part has reread its files, after the last [`Self::requested`].
    pub(crate) fn done(&self) {
        self.met.store(self.seen, Ordering::Release);
        PROGRESS.notify_waiters();
    }
}

impl Drop for Reloads {
    fn drop(&mut self) {
        // Released before the notification, so that the waiter does not find it.
        self.met = Arc::default();
        PROGRESS.notify_waiters();
    }
}

/// Requests a reload of every part, and returns when all have done it.
pub(crate) async fn request() {
    let mut number = 0;
    REQUESTS.send_modify(|requests| {
        *requests += 1;
        number = *requests;
    });
    loop {
        let progress = PROGRESS.notified();
        tokio::pin!(progress);
        // From here on no notification is missed.
        progress.as_mut().enable();
        if have_met(number) {
            return;
        }
        progress.await;
    }
}

fn have_met(number: u64) -> bool {
    let mut parts = parts();
    parts.retain(|part| part.strong_count() > 0);
    let met = |part: &Weak<AtomicU64>| part.upgrade().map(|met| met.load(Ordering::Acquire));
    parts.iter().filter_map(met).all(|met| met >= number)
}

fn parts() -> std::sync::MutexGuard<'static, Vec<Weak<AtomicU64>>> {
    PARTS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    /// Polls once: every waiter polls again after a notification, so no waker is needed.
    fn is_ready(future: std::pin::Pin<&mut impl Future>) -> bool {
        matches!(future.poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(_))
    }

    /// One test, because the state is that of the process.
    #[test]
    fn a_reload_ends_when_each_part_has_reread_its_files_since_the_request() {
        let (mut first, mut second) = (Reloads::join(), Reloads::join());
        let mut request = pin!(request());
        assert!(!is_ready(request.as_mut()));
        assert!(is_ready(pin!(first.requested())) && is_ready(pin!(second.requested())));
        first.done();
        assert!(!is_ready(request.as_mut()), "the second part has not reread its files");
        second.done();
        assert!(is_ready(request.as_mut()));

        // A request during a reload is met by the next reload only.
        let mut earlier = pin!(super::request());
        assert!(!is_ready(earlier.as_mut()));
        assert!(is_ready(pin!(first.requested())));
        let mut later = pin!(super::request());
        assert!(!is_ready(later.as_mut()));
        first.done();
        drop(second);
        assert!(is_ready(earlier.as_mut()), "a part that has ended delays no reload");
        assert!(!is_ready(later.as_mut()));
        assert!(is_ready(pin!(first.requested())));
        first.done();
        assert!(is_ready(later.as_mut()));
        assert!(!is_ready(pin!(first.requested())), "each request is returned once");
        drop(first);
        assert!(is_ready(pin!(super::request())));
    }
}
