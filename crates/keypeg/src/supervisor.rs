//! Messages to the supervisor of the process, such as systemd, by the protocol of `sd_notify(3)`:
//! ready, reloading, stopping, alive.
//!
//! A separate thread sends them, so that a supervisor that does not read blocks nothing. Without
//! `NOTIFY_SOCKET` in the environment it sends nothing. Does not know what makes a server alive.

use crate::clock;
use crate::failure::{Failure, exit};
use crate::vital;
use sd_notify::NotifyState;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Messages that may wait for the thread; a supervisor that has not read so many is stuck itself.
const QUEUED_MAX: usize = 64;
/// How long the end of the process waits for the messages before it.
const FLUSH_TIME: Duration = Duration::from_secs(1);

static MESSAGES: OnceLock<SyncSender<Queued>> = OnceLock::new();

/// What the thread gets.
enum Queued {
    Message(Message),
    /// Answered when the messages before it were sent.
    Flush(SyncSender<()>),
}

/// What the supervisor learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// What a start or a stop is doing.
    Status(String),
    /// The server accepts connections, with its line for people.
    Ready(String),
    /// A reload begins, at this monotonic time in microseconds.
    Reloading(u64),
    /// A reload has ended.
    Reloaded,
    /// The server stops; it answers the requests in progress.
    Stopping,
    /// Every part of the server works.
    Alive,
}

/// Starts the thread, if there is a supervisor that reads messages. To be called once.
pub(crate) fn start() -> Result<(), Failure> {
    if std::env::var_os("NOTIFY_SOCKET").is_none_or(|path| path.is_empty()) {
        return Ok(());
    }
    let (sender, messages) = sync_channel(QUEUED_MAX);
    vital::spawn("keypeg-notify", move || send_all(&messages)).map_err(|error| {
        Failure::new(exit::OS, format!("cannot start the supervisor's thread: {error}"))
    })?;
    // It is set once, at the start.
    let _ = MESSAGES.set(sender);
    Ok(())
}

/// Sends a message. Never blocks: it is lost if the supervisor does not read.
pub(crate) fn notify(message: Message) {
    if let Some(messages) = MESSAGES.get() {
        let _ = messages.try_send(Queued::Message(message));
    }
}

/// Waits briefly until all messages are sent, before the process ends.
pub(crate) fn flush() {
    let (sent, is_sent) = sync_channel(1);
    if let Some(messages) = MESSAGES.get()
        && messages.try_send(Queued::Flush(sent)).is_ok()
    {
        let _ = is_sent.recv_timeout(FLUSH_TIME);
    }
}

/// Reports that a reload begins.
pub(crate) fn notify_reloading() {
    notify(Message::Reloading(clock::monotonic_us()));
}

/// Returns the time without [`Message::Alive`] after which the supervisor ends the process; `None`
/// if it does not.
pub(crate) fn watchdog_time() -> Option<Duration> {
    MESSAGES.get()?;
    sd_notify::watchdog_enabled().filter(|time| !time.is_zero())
}

fn send_all(messages: &Receiver<Queued>) {
    let mut is_failing = false;
    for queued in messages {
        let message = match queued {
            Queued::Message(message) => message,
            Queued::Flush(sent) => {
                let _ = sent.try_send(());
                continue;
            }
        };
        let sent = send(&message);
        if let (Err(error), false) = (&sent, is_failing) {
            tracing::warn!(
                "cannot send a message to the supervisor: {error}; check the socket that \
                 NOTIFY_SOCKET names"
            );
        }
        is_failing = sent.is_err();
    }
}

fn send(message: &Message) -> std::io::Result<()> {
    // The protocol has one assignment per line.
    let line = |text: &str| text.replace('\n', " ");
    match message {
        Message::Status(text) => sd_notify::notify(&[NotifyState::Status(&line(text))]),
        Message::Ready(text) => {
            sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&line(text))])
        }
        Message::Reloading(at_us) => sd_notify::notify(&[
            NotifyState::Reloading,
            NotifyState::MonotonicUsec(i128::from(*at_us)),
        ]),
        Message::Reloaded => sd_notify::notify(&[NotifyState::Ready]),
        Message::Stopping => sd_notify::notify(&[
            NotifyState::Stopping,
            NotifyState::Status("stopping: the requests in progress are answered"),
        ]),
        Message::Alive => sd_notify::notify(&[NotifyState::Watchdog]),
    }
}
