//! Follows a chunked body to its end (RFC 9112, 7.1), in the states of hyper's decoder.
//!
//! Knows the lengths of chunks, not their content. It is as strict as hyper: a line of the framing
//! ends in CR LF, and a size is hexadecimal digits.

/// The position within a chunked body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Chunks {
    state: State,
    /// The size of the chunk, or how many of its bytes are still to come.
    size: u64,
}

/// The result of following some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChunkStep {
    /// The body continues.
    Inside,
    /// The body has ended.
    End,
    /// The bytes are no chunk.
    Invalid,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    FirstDigit,
    Size,
    SizeSpace,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// The start of a line behind the last chunk: a trailer field, or the empty line.
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
}

impl Chunks {
    /// Follows bytes up to the end of the body; returns those behind it.
    pub(super) fn follow<'a>(&mut self, mut bytes: &'a [u8]) -> (ChunkStep, &'a [u8]) {
        while let [first, rest @ ..] = bytes {
            if self.state == State::Data {
                let len = bytes.len().min(usize::try_from(self.size).unwrap_or(usize::MAX));
                self.size -= len as u64;
                bytes = &bytes[len..];
                if self.size == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            bytes = rest;
            if (self.state, *first) == (State::EndLf, b'\n') {
                return (ChunkStep::End, bytes);
            }
            let Some(state) = self.next(*first) else { return (ChunkStep::Invalid, bytes) };
            self.state = state;
        }
        (ChunkStep::Inside, bytes)
    }

    fn next(&mut self, byte: u8) -> Option<State> {
        Some(match (self.state, byte) {
            (State::FirstDigit | State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = u64::from(char::from(byte).to_digit(16)?);
                self.size = self.size.checked_mul(16)?.checked_add(digit)?;
                State::Size
            }
            (State::Size | State::SizeSpace, b'\t' | b' ') => State::SizeSpace,
            (State::Size | State::SizeSpace | State::Extension, b'\r') => State::SizeLf,
            (State::Extension, b'\n') => return None,
            (State::Size | State::SizeSpace, b';') | (State::Extension, _) => State::Extension,
            (State::SizeLf, b'\n') if self.size == 0 => State::TrailerStart,
            (State::SizeLf, b'\n') => State::Data,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::FirstDigit,
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::TrailerStart | State::Trailer, _) => State::Trailer,
            (State::TrailerLf, b'\n') => State::TrailerStart,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follows `bytes`, split at every position; returns the step and the bytes behind the body.
    fn follow(bytes: &str) -> (ChunkStep, String) {
        let mut all = Vec::new();
        for cut in 0..=bytes.len() {
            let mut chunks = Chunks::default();
            let (first, second) = bytes.as_bytes().split_at(cut);
            let (step, rest) = chunks.follow(first);
            let mut behind = rest.to_vec();
            let step = if step == ChunkStep::Inside {
                let (step, rest) = chunks.follow(second);
                behind.extend_from_slice(rest);
                step
            } else {
                behind.extend_from_slice(second);
                step
            };
            all.push((step, String::from_utf8(behind).unwrap()));
        }
        all.dedup();
        assert_eq!(all.len(), 1, "{bytes:?}: {all:?}");
        all.remove(0)
    }

    #[test]
    fn a_body_ends_with_its_empty_last_chunk_and_its_trailers() {
        for body in [
            "0\r\n\r\n",
            "00;a=b\r\n\r\n",
            "2\r\n{}\r\n0\r\n\r\n",
            "1 \t\r\n{\r\n1;x\r\n}\r\n0\r\n\r\n",
            "a\r\n0\r\n\r\n12345\r\n0\r\nX: y\r\nZ:\r\n\r\n",
            "A\r\n0123456789\r\n0\r\n\r\n",
        ] {
            assert_eq!(follow(body), (ChunkStep::End, String::new()), "{body:?}");
            assert_eq!(follow(&format!("{body}GET")), (ChunkStep::End, "GET".into()), "{body:?}");
            for cut in 0..body.len() {
                assert_eq!(follow(&body[..cut]).0, ChunkStep::Inside, "{body:?} up to {cut}");
            }
        }
    }

    #[test]
    fn what_hyper_refuses_is_invalid() {
        for body in [
            "\r\n",
            "x",
            "-1",
            "+1",
            " 1",
            "1\n",
            "1\rx",
            "1 1",
            "1;\n",
            "1\r\n{x",
            "1\r\n{\rx",
            "1\r\n{\n",
            "0\r\n\rx",
            "0\r\nX: y\rz",
            "10000000000000000\r\n",
        ] {
            assert_eq!(follow(body).0, ChunkStep::Invalid, "{body:?}");
        }
        assert_eq!(follow("0\r\n\nX: a\r\n\r\n").0, ChunkStep::End, "hyper takes it for a trailer");
    }
}
