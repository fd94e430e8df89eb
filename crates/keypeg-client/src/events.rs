//! A pool's events as they come: the stream of [`Client::events`](crate::Client::events).
//!
//! Reads server-sent events as far as Keypeg writes them; see the HTML standard, 9.2. It does not
//! connect again: whoever holds it does, with [`Events::last_id`].

use crate::client::Error;
use crate::event::Event;
use reqwest::Response;
use std::collections::VecDeque;

/// The longest line, and the longest event, taken: far above what a server writes.
const LINE_MAX: usize = 1 << 20;

/// A pool's events, as long as the connection lasts.
#[derive(Debug)]
pub struct Events {
    response: Response,
    parser: Parser,
    last_id: Option<String>,
}

impl Events {
    pub(crate) fn new(response: Response, last_id: Option<&str>) -> Self {
        Self { response, parser: Parser::default(), last_id: last_id.map(Into::into) }
    }

    /// The next event; `None` when the server ended the stream, because the pool was removed or
    /// the server stops. Those of a name not known here are passed over. After an error nothing
    /// more comes: connect again. Can be dropped and called anew without losing anything.
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
            self.parser.take(&bytes).map_err(|detail| self.unexpected(detail.into()))?;
        }
    }

    /// The id of the last event given: what to resume after.
    pub fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }

    fn unexpected(&self, detail: String) -> Error {
        Error::Unexpected { status: self.response.status().as_u16(), detail }
    }
}

/// An event before its data is read.
#[derive(Debug, Default, PartialEq, Eq)]
struct Message {
    id: String,
    name: String,
    data: String,
}

/// Puts lines together, and events of them.
#[derive(Debug, Default)]
struct Parser {
    line: Vec<u8>,
    message: Message,
    ready: VecDeque<Message>,
}

impl Parser {
    fn take(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.len() + self.message.data.len() > LINE_MAX {
                return Err("a line without an end");
            }
            if self.line.pop_if(|byte| *byte == b'\n').is_some() {
                self.line.pop_if(|byte| *byte == b'\r');
                let line = std::mem::take(&mut self.line);
                self.field(std::str::from_utf8(&line).map_err(|_| "events that are not UTF-8")?);
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
    fn messages_are_read_whole_however_they_are_cut() {
        let text = ": hello\n\nretry: 1000\nid: 1-2\nevent: granted\ndata: {\"a\":1}\n\n:\n\n\
                    id: 3\r\nevent:x\r\ndata:a\r\ndata: b\r\n\r\nid: 4\ndata: not yet\n";
        let expected = [message("1-2", "granted", "{\"a\":1}"), message("3", "x", "a\nb")];
        for cut in 0..text.len() {
            let mut parser = Parser::default();
            let (first, second) = text.as_bytes().split_at(cut);
            parser.take(first).unwrap();
            parser.take(second).unwrap();
            assert_eq!(parser.ready, expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_line_without_an_end_and_bytes_that_are_no_text_are_refused() {
        let mut parser = Parser::default();
        let long = vec![b'x'; LINE_MAX];
        assert!(parser.take(&long).is_ok());
        assert!(parser.take(b"x").is_err());
        assert!(Parser::default().take(b"data: \xff\n").is_err());
    }
}
