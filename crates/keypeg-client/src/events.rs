//! The event stream of a pool: [`Client::events`] and what it returns.
//!
//! Parses the subset of server-sent events that Keypeg writes (HTML standard, 9.2). It does not
//! reconnect: the caller does, with [`Events::last_id`].

use crate::client::{Client, path_segment};
use crate::error::Error;
use crate::event::Event;
use crate::routes;
use reqwest::Response;
use std::collections::VecDeque;

/// The maximum length of a line and of an event in bytes: far above what a server writes.
const LINE_MAX: usize = 1 << 20;

/// The events of a pool on one connection.
#[derive(Debug)]
pub struct Events {
    response: Response,
    parser: Parser,
    last_id: Option<String>,
}

impl Client {
    /// Subscribes to the events of a pool. The stream resumes after the event with the id `after`
    /// if the server still has all later events; else it begins with [`Event::Resync`].
    pub async fn events(&self, pool: &str, after: Option<&str>) -> Result<Events, Error> {
        let response = self.open_stream(&routes::events(path_segment(pool)?), after).await?;
        Ok(Events { response, parser: Parser::default(), last_id: after.map(Into::into) })
    }
}

impl Events {
    /// Returns the next event; `None` when the server has ended the stream, because the pool was
    /// deleted or the server stops. Events with an unknown name are skipped. After an error the
    /// stream cannot continue: connect again. Cancel safe: dropping the future loses no event.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            while let Some(Message { id, name, data }) = self.parser.ready.pop_front() {
                let event = Event::parse(&name, &data).transpose();
                let event = event.map_err(|error| self.unexpected(error.to_string()))?;
                if !id.is_empty() {
                    self.last_id = Some(id);
                }
                if event.is_some() {
                    return Ok(event);
                }
            }
            let Some(bytes) = self.response.chunk().await.map_err(Error::Unreachable)? else {
                return Ok(None);
            };
            self.parser.feed(&bytes).map_err(|detail| self.unexpected(detail.into()))?;
        }
    }

    /// Returns the id of the last event, after which a new stream can resume.
    pub fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }

    fn unexpected(&self, detail: String) -> Error {
        Error::Unexpected { status: self.response.status().as_u16(), detail }
    }
}

/// An event before its data is parsed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Message {
    id: String,
    name: String,
    data: String,
}

/// Assembles lines from chunks, and events from lines.
#[derive(Debug, Default)]
struct Parser {
    line: Vec<u8>,
    message: Message,
    ready: VecDeque<Message>,
}

impl Parser {
    fn feed(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.len() + self.message.data.len() > LINE_MAX {
                return Err("an event line is too long");
            }
            if self.line.pop_if(|byte| *byte == b'\n').is_some() {
                self.line.pop_if(|byte| *byte == b'\r');
                let line = std::mem::take(&mut self.line);
                self.field(std::str::from_utf8(&line).map_err(|_| "an event is not UTF-8")?);
            }
        }
        Ok(())
    }

    fn field(&mut self, line: &str) {
        if line.is_empty() {
            let message = std::mem::take(&mut self.message);
            if !message.data.is_empty() {
                self.ready.push_back(message);
            }
            return;
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "id" => self.message.id = value.into(),
            "event" => self.message.name = value.into(),
            "data" => {
                if !self.message.data.is_empty() {
                    self.message.data.push('\n');
                }
                self.message.data.push_str(value);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: &str, name: &str, data: &str) -> Message {
        Message { id: id.into(), name: name.into(), data: data.into() }
    }

    #[test]
    fn messages_are_complete_wherever_the_chunks_are_cut() {
        let text = ": hello\n\nretry: 1000\nid: 1-2\nevent: granted\ndata: {\"a\":1}\n\n:\n\n\
                    id: 3\r\nevent:x\r\ndata:a\r\ndata: b\r\n\r\nid: 4\ndata: not yet\n";
        let expected = [message("1-2", "granted", "{\"a\":1}"), message("3", "x", "a\nb")];
        for cut in 0..text.len() {
            let mut parser = Parser::default();
            let (first, second) = text.as_bytes().split_at(cut);
            parser.feed(first).unwrap();
            parser.feed(second).unwrap();
            assert_eq!(parser.ready, expected, "cut at {cut}");
        }
    }

    #[test]
    fn an_endless_line_and_invalid_utf8_are_rejected() {
        let mut parser = Parser::default();
        let long = vec![b'x'; LINE_MAX];
        assert!(parser.feed(&long).is_ok());
        assert!(parser.feed(b"x").is_err());
        assert!(Parser::default().feed(b"data: \xff\n").is_err());
    }
}
