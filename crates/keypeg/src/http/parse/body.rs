//! Request bodies: read within size, time and memory limits. The JSON in them is read by `json.rs`.
//!
//! A body has the type of JSON and no encoding. A body without bytes, or with blanks only, is read
//! as an object without fields, whatever its type. Knows no route.

use super::json;
use super::members::BodyFields;
use crate::http::admit::RequestContext;
use crate::http::error::Problem;
use crate::http::message::{Request, RequestBody};
use http_body_util::BodyExt;
use hyper::body::Body;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use keypeg_client::Code;
use keypeg_store::RequestError;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The memory that all arriving bodies may use together, in bytes, beyond [`BODY_FREE`] of each.
const BODIES_MAX: usize = 128 << 20;
/// The first bytes of a body, which are always accepted; most bodies are not longer.
const BODY_FREE: usize = 16 << 10;
/// The size up to which a body is read at once, in bytes.
const LONG_BODY: usize = 16 << 10;
/// The bytes of a body that are read for one unit of work.
const BYTES_PER_UNIT: usize = 128;

/// Reads the body of a request.
pub(crate) async fn read<B: BodyFields>(request: Request) -> Result<B, Problem> {
    let (head, body) = request.into_parts();
    if body.is_end_stream() {
        return Ok(B::default());
    }
    let bytes = collect(body, B::BYTES_MAX).await?;
    parse(&head.headers, &bytes)
}

/// Reads a body that can be large: a core reads one large body at a time, callers in rotation.
pub(crate) async fn read_long<B: BodyFields>(
    context: &RequestContext<'_>,
    request: Request,
) -> Result<B, Problem> {
    let (head, body) = request.into_parts();
    if body.is_end_stream() {
        return Ok(B::default());
    }
    let bytes = collect(body, B::BYTES_MAX).await?;
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

async fn collect(mut body: RequestBody, max: usize) -> Result<Vec<u8>, Problem> {
    let too_large = || {
        let detail = format!("The body is larger than the {max} bytes that this route allows.");
        Problem::new(Code::TooLarge, detail).closing()
    };
    let malformed = || {
        let detail = "The body is incomplete, or its chunks are malformed.";
        Problem::new(Code::Malformed, detail).closing()
    };
    if body.size_hint().lower() > max as u64 {
        return Err(too_large());
    }
    let time = body.time();
    let reading = async {
        let len_max = body.size_hint().exact().and_then(|len| usize::try_from(len).ok());
        let len_max = len_max.unwrap_or(max);
        let mut bytes = Vec::new();
        let mut reserved = Reservation::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| malformed())?;
            let Ok(data) = frame.into_data() else { continue };
            let len = bytes.len() + data.len();
            if len > max {
                return Err(too_large());
            }
            if len > bytes.capacity() {
                // Doubled, so that copying stays cheap, but not beyond the end of the body.
                let capacity = len.max(len_max.min(2 * bytes.capacity()));
                reserved.grow(capacity)?;
                bytes.reserve_exact(capacity - bytes.len());
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    };
    tokio::time::timeout(time, reading).await.unwrap_or_else(|_| {
        let detail = format!("The body did not arrive within {} s.", time.as_secs_f64());
        Err(Problem::new(Code::Timeout, detail).closing())
    })
}

/// The bytes of [`BODIES_MAX`] that are reserved now.
static RESERVED: AtomicUsize = AtomicUsize::new(0);

/// One body's share of [`BODIES_MAX`], returned on drop.
#[derive(Default)]
struct Reservation {
    bytes: usize,
}

impl Reservation {
    /// Reserves memory for a body that takes `capacity` bytes.
    fn grow(&mut self, capacity: usize) -> Result<(), Problem> {
        let more = capacity.saturating_sub(BODY_FREE).saturating_sub(self.bytes);
        self.bytes += more;
        if RESERVED.fetch_add(more, Ordering::Relaxed) + more > BODIES_MAX && more > 0 {
            return Err(Problem::refused(&RequestError::Overloaded).closing());
        }
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        RESERVED.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A body grows in steps, and each byte counts once. What was refused or has ended counts no
    /// more, or the server would refuse bodies until its next start.
    #[test]
    fn the_memory_of_all_bodies_is_bounded_and_returned() {
        let mut one = Reservation::default();
        for capacity in [BODY_FREE, 1 << 20, 1 << 20, 4 << 20] {
            one.grow(capacity).unwrap();
            assert_eq!(RESERVED.load(Ordering::Relaxed), capacity - BODY_FREE);
        }
        let whole = BODIES_MAX - one.bytes + BODY_FREE;
        let mut refused = Reservation::default();
        assert!(refused.grow(whole + 1).is_err());
        drop(refused);
        let mut rest = Reservation::default();
        rest.grow(whole).unwrap();
        Reservation::default().grow(BODY_FREE).unwrap();
        assert!(Reservation::default().grow(BODY_FREE + 1).is_err(), "nothing is left");
        drop((one, rest));
        assert_eq!(RESERVED.load(Ordering::Relaxed), 0);
    }
}
