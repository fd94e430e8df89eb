//! Waiting for a future on a plain thread, such as the engine's, which has no runtime.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

/// Unparks the thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls a future until it ends, and parks this thread while there is nothing to do. Not for a
/// thread of a runtime, whose other tasks would stand still.
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::sync::{Mutex, mpsc};

    #[test]
    fn a_thread_without_a_runtime_waits_for_another_one() {
        let answer = Arc::new(Mutex::new(None));
        let (sender, receiver) = mpsc::sync_channel::<Waker>(1);
        let other = thread::spawn({
            let answer = Arc::clone(&answer);
            move || {
                let waker = receiver.recv().unwrap();
                *answer.lock().unwrap() = Some(7);
                waker.wake();
            }
        });
        let mut sender = Some(sender);
        let found = wait(poll_fn(|context| {
            if let Some(sender) = sender.take() {
                sender.send(context.waker().clone()).unwrap();
            }
            answer.lock().unwrap().take().map_or(Poll::Pending, Poll::Ready)
        }));
        assert_eq!(found, 7);
        other.join().unwrap();
    }
}
