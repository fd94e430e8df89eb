//! Request bodies: read within size, time and memory limits. The JSON in them is read by `json.rs`.
//!
//! A body has the type of JSON and no encoding. A body without bytes, or with blanks only, is read
//! as an object without fields, whatever its type. Knows no route.

use super::json;
use super::members::BodyFields;
use crate::http::admit::RequestContext;
use crate::http::body_memory::BodyMemory;
use crate::http::error::Problem;
use crate::http::message::{Request, RequestBody};
use bytes::Bytes;
use hyper::body::{Body, Frame};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use keypeg_client::Code;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;
use tokio::time::{Sleep, sleep};

/// The size up to which a body is read at once, in bytes.
const LONG_BODY: usize = 16 << 10;
/// The bytes of a body that are read for one unit of work.
const BYTES_PER_UNIT: usize = 128;
/// How often the rate of a body is checked.
const RATE_WINDOW: Duration = Duration::from_secs(5);
/// The fewest bytes that must arrive in [`RATE_WINDOW`]: 1 KiB a second.
const RATE_MIN: usize = 5 << 10;

/// Reads the body of a request, which has its memory until the request has its answer. A core reads
/// few large bodies at a time, callers in rotation.
pub(crate) async fn read<B: BodyFields>(
    context: &RequestContext<'_>,
    request: Request,
) -> Result<B, Problem> {
    let (head, body) = request.into_parts();
    if body.is_end_stream() {
        return Ok(B::default());
    }
    let (bytes, memory) = collect(body, B::BYTES_MAX).await?;
    context.hold_body(memory);
    if bytes.len() > LONG_BODY {
        let units = u32::try_from(bytes.len() / BYTES_PER_UNIT).unwrap_or(u32::MAX);
        context.begin_long_work(units).await;
    }
    parse(&head.headers, &bytes)
}

fn parse<B: BodyFields>(headers: &HeaderMap, bytes: &[u8]) -> Result<B, Problem> {
    if json::is_blank(bytes) {
        return Ok(B::default());
    }
    check_content_type(headers)?;
    json::read(bytes)
}

/// Reads a complete body, given its Content-Type; returns `None` where [`read`] would refuse it.
/// The caller has checked that there is no Content-Encoding.
pub(crate) fn of_complete_body<B: BodyFields>(
    body: &[u8],
    content_type: Option<&[u8]>,
) -> Option<B> {
    if content_type.is_some_and(is_json) || json::is_blank(body) {
        json::read(body).ok()
    } else {
        None
    }
}

/// Refuses a body that is not declared as plain JSON. An encoded body is never decoded.
fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let mut encodings = headers.get_all(CONTENT_ENCODING).iter();
    if encodings.any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        let detail = "Content-Encoding is not supported: send the body uncompressed.";
        return Err(Problem::new(Code::UnsupportedMediaType, detail));
    }
    if headers.get(CONTENT_TYPE).is_some_and(|value| is_json(value.as_bytes())) {
        return Ok(());
    }
    let detail = "A body needs `Content-Type: application/json`.";
    Err(Problem::new(Code::UnsupportedMediaType, detail))
}

/// Returns whether a Content-Type is JSON's, ignoring its parameters.
fn is_json(value: &[u8]) -> bool {
    let essence = value.split(|&byte| byte == b';').next().unwrap_or_default();
    let is_visible = |byte: &u8| *byte == b'\t' || (b' '..=b'~').contains(byte);
    value.iter().all(is_visible) && essence.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

/// Returns the refusal of a body that is not whole or not valid.
pub(crate) fn malformed() -> Problem {
    let detail = "The body is incomplete, or its chunks are malformed.";
    Problem::new(Code::Malformed, detail).closing()
}

/// Reads the bytes of a body. The second value is the memory that it takes.
async fn collect(mut body: RequestBody, max: usize) -> Result<(Vec<u8>, BodyMemory), Problem> {
    let too_large = || {
        let detail = format!("The body is larger than the {max} bytes that this route allows.");
        Problem::new(Code::TooLarge, detail).closing()
    };
    if body.size_hint().lower() > max as u64 {
        return Err(too_large());
    }
    let time = body.time();
    let reading = async {
        let len_max = body.size_hint().exact().and_then(|len| usize::try_from(len).ok());
        let mut bytes = Vec::new();
        let mut memory = BodyMemory::new(body.room());
        if let Some(len) = len_max {
            // As one amount, which a caller without another body has even beyond its share.
            memory.grow(len)?;
        }
        let len_max = len_max.unwrap_or(max);
        let mut pace = Pace::new(len_max);
        while let Some(frame) = pace.next(&mut body, bytes.len()).await? {
            let frame = frame.map_err(|_| malformed())?;
            let Ok(data) = frame.into_data() else { continue };
            let len = bytes.len() + data.len();
            if len > max {
                return Err(too_large());
            }
            if len > bytes.capacity() {
                // Doubled, so that copying stays cheap, but not beyond the end of the body.
                let capacity = len.max(len_max.min(2 * bytes.capacity()));
                memory.grow(capacity)?;
                bytes.reserve_exact(capacity - bytes.len());
            }
            bytes.extend_from_slice(&data);
        }
        Ok((bytes, memory))
    };
    tokio::time::timeout(time, reading).await.unwrap_or_else(|_| {
        let detail = format!("The body did not arrive within {} s.", time.as_secs_f64());
        Err(Problem::new(Code::Timeout, detail).closing())
    })
}

/// Watches that a large body arrives at [`RATE_MIN`] at least.
struct Pace {
    window: Pin<Box<Sleep>>,
    len_before: usize,
    /// Whether the body is larger than [`LONG_BODY`], or can be.
    is_large: bool,
}

impl Pace {
    /// `len_max` is the length of the body, or the most that it can have.
    fn new(len_max: usize) -> Self {
        let is_large = len_max > LONG_BODY;
        Self { window: Box::pin(sleep(RATE_WINDOW)), len_before: 0, is_large }
    }

    /// Returns the next frame of a body of which `len` bytes have arrived, or the problem of a body
    /// that is too slow.
    async fn next(
        &mut self,
        body: &mut RequestBody,
        len: usize,
    ) -> Result<Option<Result<Frame<Bytes>, hyper::Error>>, Problem> {
        std::future::poll_fn(|cx| {
            if let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) {
                return Poll::Ready(Ok(frame));
            }
            while self.window.as_mut().poll(cx).is_ready() {
                // A small body takes little, and a lost segment can delay it for seconds.
                if self.is_large && len - self.len_before < RATE_MIN {
                    let seconds = RATE_WINDOW.as_secs();
                    let detail = format!(
                        "The body arrived too slowly: send at least {RATE_MIN} bytes in {seconds} s."
                    );
                    let problem = Problem::new(Code::Timeout, detail).closing();
                    return Poll::Ready(Err(problem));
                }
                self.len_before = len;
                self.window.set(sleep(RATE_WINDOW));
            }
            Poll::Pending
        })
        .await
    }
}
