//! `keypeg events`: prints the events of a pool as they happen.
//!
//! A stream that was cut resumes after the last event that was printed. Where the server does not
//! have all later ones any more, its `resync` says so, and the output repeats it in plain words.

use super::server::ServerArgs;
use crate::failure::{Failure, exit};
use crate::number::number;
use crate::output::{PrintError, cell_of, plain, printed};
use crate::streams;
use clap::Args;
use keypeg_client::{ClientSource, Code, Error, Event};
use serde_json::{Map, Value};
use std::time::Duration;

/// The pauses before a new connection.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The options of `keypeg events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Connect again when the stream ends, also while the server restarts
    #[arg(short, long)]
    follow: bool,
    /// Begin after the event with this id, if the server still has all later ones
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    /// Number of events after which the output ends [default: no limit]
    #[arg(long, value_name = "N", value_parser = number(1..=u64::MAX))]
    limit: Option<u64>,
    /// The server, the token, the pool and the output format.
    #[command(flatten)]
    server: ServerArgs,
}

/// Why printing has ended.
enum Ended {
    /// The pool was deleted, the limit is reached, or the reader of stdout has ended.
    Done,
    /// The connection.
    Stream(Option<Error>),
}

impl EventsArgs {
    /// Prints the events until there can be no more.
    pub(super) async fn run(&self) -> Result<u8, Failure> {
        let source = self.server.source()?;
        let mut after = self.after.clone();
        let mut left = self.limit.unwrap_or(u64::MAX);
        let mut pause = RECONNECT.0;
        let mut is_reported = false;
        loop {
            let before = left;
            let ended = match self.stream(&source, &mut after, &mut left).await? {
                Ended::Done => return Ok(0),
                Ended::Stream(error) => error,
            };
            if !self.follow {
                let error = match ended {
                    Some(error) => Some(error),
                    None => self.refusal(&source).await,
                };
                let message = "the server ended the stream: --follow connects again";
                return Err(
                    error.map_or_else(|| Failure::new(exit::UNAVAILABLE, message), Failure::from)
                );
            }
            if left < before {
                (pause, is_reported) = (RECONNECT.0, false);
            }
            let cause = ended
                .map_or_else(|| "the server ended the stream".into(), |error| error.to_string());
            if !is_reported && !self.server.output.quiet {
                streams::print_message(&format!("{cause}; connecting again"));
                is_reported = true;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RECONNECT.1);
        }
    }

    /// Asks the server why it has ended the stream: a token that was revoked is not admitted again.
    async fn refusal(&self, source: &ClientSource) -> Option<Error> {
        let asked = source.client().pool(&self.server.pool).await;
        asked.err().filter(|error| error.problem().is_some() && !is_passing(error))
    }

    /// Prints the events of one connection. Fails if another connection would not help.
    async fn stream(
        &self,
        source: &ClientSource,
        after: &mut Option<String>,
        left: &mut u64,
    ) -> Result<Ended, Failure> {
        let client = source.client();
        let mut events = match client.events(&self.server.pool, after.as_deref()).await {
            Ok(events) => events,
            Err(error) => {
                let is_new = code(&error) == Some(Code::Unauthorized) && source.refresh(&client);
                return if is_new || is_passing(&error) {
                    Ok(Ended::Stream(Some(error)))
                } else {
                    Err(error.into())
                };
            }
        };
        loop {
            let event = match events.next().await {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(Ended::Stream(None)),
                Err(error @ Error::Unreachable(_)) => return Ok(Ended::Stream(Some(error))),
                Err(error) => return Err(error.into()),
            };
            *after = events.last_id().map(str::to_owned);
            match self.print(&event, after.as_deref()) {
                Ok(()) => {}
                Err(error) if error.is_broken_pipe() => return Ok(Ended::Done),
                Err(error) => return printed(Err(error)).map(|_| Ended::Done),
            }
            *left -= 1;
            if *left == 0 || matches!(event, Event::Dropped(_)) {
                return Ok(Ended::Done);
            }
        }
    }

    fn print(&self, event: &Event, id: Option<&str>) -> Result<(), PrintError> {
        let row = Row { event, id };
        if self.server.output.is_table() {
            return Ok(streams::print(&row.line())?);
        }
        self.server.output.try_print_fields(&row.json())
    }
}

/// An event with its name and its id.
struct Row<'a> {
    event: &'a Event,
    id: Option<&'a str>,
}

impl Row<'_> {
    /// Returns the event as one object.
    fn json(&self) -> Value {
        let mut whole = Map::new();
        whole.insert("event".into(), self.event.name().into());
        whole.insert("event_id".into(), self.id.into());
        whole.extend(self.data());
        Value::Object(whole)
    }

    fn data(&self) -> Map<String, Value> {
        match serde_json::to_value(self.event) {
            Ok(Value::Object(data)) => data,
            _ => unreachable!("invariant: an event is an object"),
        }
    }

    /// Returns the line for people: time, name, key, and what else is known. A field without a value
    /// is left out, and so is the pool, which the command names.
    fn line(&self) -> String {
        let mut data = self.data();
        data.remove("pool");
        let mut text = |name: &str| match data.remove(name) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        };
        let (at, key) = (text("at"), text("key_id"));
        let mut line = format!("{at}  {:<11}", self.event.name());
        if matches!(self.event, Event::Resync(_)) {
            line.push_str("  events before this line may be missing; the counts are now");
        }
        if !key.is_empty() {
            line.extend(["  ", &key]);
        }
        for (name, value) in data.iter().filter(|(_, value)| !value.is_null()) {
            line.extend(["  ", name, "=", &cell_of(&plain(value))]);
        }
        line.push('\n');
        line
    }
}

/// Returns whether the same request can succeed soon.
fn is_passing(error: &Error) -> bool {
    match error {
        Error::Refused(problem) => matches!(problem.status, 429 | 503),
        Error::Unreachable(_) => !error.is_tls(),
        Error::Unexpected { .. } => error.is_proxy_failure(),
        Error::WaitEnded { .. } | Error::InvalidInput(_) => false,
    }
}

fn code(error: &Error) -> Option<Code> {
    error.problem().map(|problem| problem.code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, data: &str) -> String {
        let event = Event::parse(name, data).expect(name).expect(data);
        Row { event: &event, id: Some("1-2") }.line()
    }

    #[test]
    fn an_event_is_one_line_whatever_a_holder_is_called() {
        let granted = line(
            "granted",
            r#"{"at":"2026-11-22T21:30:00.000Z","pool":"ci","key_id":"k","holder":"a\nb\u001b[2J",
                "fencing_token":7,"expires_at":"2026-11-22T21:31:00.000Z"}"#,
        );
        assert_eq!(
            granted,
            "2026-11-22T21:30:00.000Z  granted      k  expires_at=2026-11-22T21:31:00.000Z  \
             fencing_token=7  holder=a\\nb\\u{1b}[2J\n"
        );
    }

    #[test]
    fn a_resync_says_what_it_means() {
        let resync = line(
            "resync",
            r#"{"at":"2026-11-22T21:30:00.000Z","pool":"ci","available":1,"leased":2,"resting":0,
                "quarantined":0,"total":3}"#,
        );
        assert!(
            resync.contains(
                "resync       events before this line may be missing; the counts are \
                             now  available=1  draining_keys=0  leased=2"
            ),
            "{resync}"
        );
    }
}
