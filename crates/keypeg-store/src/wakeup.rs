//! Wakes the store's end of the lanes: a thread that sleeps, or an async task.
//!
//! Any number of notifications before the listener takes them wake it once. It knows nothing of
//! what the listener does. No notification is lost: one that arrives before a listener is
//! registered is kept.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

/// Wakes one listener. Clones wake the same listener.
#[derive(Clone, Debug, Default)]
pub struct Wakeup {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    notified: AtomicBool,
    listener: Mutex<Option<Waker>>,
}

impl Inner {
    fn listener(&self) -> MutexGuard<'_, Option<Waker>> {
        // The value is replaced as a whole: a poisoned lock is safe to use.
        self.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Unparks a thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

impl Wakeup {
    /// Registers the current thread as the one to unpark. The thread calls [`Wakeup::take`] before
    /// it parks.
    pub fn listen(&self) {
        self.register(&Waker::from(Arc::new(Unpark(std::thread::current()))));
    }

    /// Polls for a notification, for a listener that is an async task. Takes all notifications so
    /// far.
    pub fn poll_notified(&self, context: &Context<'_>) -> Poll<()> {
        self.register(context.waker());
        if self.take() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn register(&self, waker: &Waker) {
        let mut listener = self.inner.listener();
        if !listener.as_ref().is_some_and(|old| old.will_wake(waker)) {
            *listener = Some(waker.clone());
        }
    }

    /// Polls for a notification, for a listener that is an async task, and leaves all to be taken.
    pub fn poll_is_notified(&self, context: &Context<'_>) -> Poll<()> {
        self.register(context.waker());
        if self.is_notified() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Wakes the listener, which is registered, whether or not it has taken earlier notifications.
    pub fn wake(&self) {
        // The lock is released before the wake: a waker may run code of its executor.
        let listener = self.inner.listener().clone();
        if let Some(listener) = listener {
            listener.wake();
        }
    }

    /// Wakes the listener, unless an earlier notification that it has not taken did so.
    pub fn notify(&self) {
        if !self.inner.notified.swap(true, Ordering::AcqRel) {
            self.wake();
        }
    }

    /// Returns whether there was a notification since it was last taken.
    pub fn is_notified(&self) -> bool {
        self.inner.notified.load(Ordering::Acquire)
    }

    /// Returns whether there was a notification since the last call, and resets it.
    pub fn take(&self) -> bool {
        self.inner.notified.swap(false, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct CountedWakes(AtomicUsize);

    impl Wake for CountedWakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_task_is_woken_once_for_all_notifications_that_it_has_not_taken() {
        let wakeup = Wakeup::default();
        wakeup.notify();
        let counted = Arc::<CountedWakes>::default();
        let waker = Waker::from(Arc::clone(&counted));
        let context = Context::from_waker(&waker);
        assert!(wakeup.poll_notified(&context).is_ready(), "an early notification is kept");
        assert!(wakeup.poll_notified(&context).is_pending());
        wakeup.notify();
        wakeup.notify();
        assert_eq!(counted.0.load(Ordering::Relaxed), 1);
        assert!(wakeup.poll_notified(&context).is_ready());
        assert!(wakeup.poll_notified(&context).is_pending());
    }

    #[test]
    fn a_notification_unparks_the_listening_thread() {
        let wakeup = Wakeup::default();
        wakeup.listen();
        let clone = wakeup.clone();
        let notifier = std::thread::spawn(move || clone.notify());
        while !wakeup.take() {
            std::thread::park();
        }
        notifier.join().unwrap();
    }
}
