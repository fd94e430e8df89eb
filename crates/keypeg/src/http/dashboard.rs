//! The dashboard: a page for browsers at `/`, and the files that it loads.
//!
//! The files are embedded as `ui/` builds them. The name of a file contains a digest of its content,
//! so a browser keeps it, and reads only the page again. The script and the style sheet are embedded
//! as gzip too, so the server compresses nothing. The page loads nothing from other hosts and has no
//! script and no style of its own. Knows no pool.

use super::error::Problem;
use super::message::{Body, Request, Response};
use super::respond::HandlerResult;
use bytes::Bytes;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY,
    CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, REFERRER_POLICY, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, StatusCode};
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use std::sync::LazyLock;

/// What the page may do: load from this server, and nothing else.
const POLICY: &str = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";
/// A file with a digest in its name never changes.
const IMMUTABLE: &str = "public, max-age=31536000, immutable";
/// The bytes of a digest in the name of a file.
const DIGEST_BYTES: usize = 8;

/// One embedded file.
struct File {
    /// Its name without the digest, and its ending.
    name: (&'static str, &'static str),
    content_type: &'static str,
    content: &'static str,
    /// The content as gzip, of a file that is large enough.
    gzip: Option<&'static [u8]>,
    digest: String,
}

static PAGE: LazyLock<File> = LazyLock::new(|| {
    let content = include_str!("../../ui/dashboard/index.html");
    File::new(("index", "html"), "text/html; charset=utf-8", content)
});

static ASSETS: LazyLock<[File; 3]> = LazyLock::new(|| {
    [
        File::new(
            ("app", "js"),
            "text/javascript; charset=utf-8",
            include_str!("../../ui/dashboard/app.js"),
        )
        .with_gzip(include_bytes!("../../ui/dashboard/app.js.gz")),
        File::new(
            ("app", "css"),
            "text/css; charset=utf-8",
            include_str!("../../ui/dashboard/app.css"),
        )
        .with_gzip(include_bytes!("../../ui/dashboard/app.css.gz")),
        File::new(("icon", "svg"), "image/svg+xml", include_str!("../../ui/dashboard/icon.svg")),
    ]
});

impl File {
    fn new(
        name: (&'static str, &'static str),
        content_type: &'static str,
        content: &'static str,
    ) -> Self {
        let mut digest = String::new();
        for byte in &Sha256::digest(content)[..DIGEST_BYTES] {
            write!(digest, "{byte:02x}").expect("invariant: writing to a string never fails");
        }
        Self { name, content_type, content, gzip: None, digest }
    }

    fn with_gzip(self, gzip: &'static [u8]) -> Self {
        Self { gzip: Some(gzip), ..self }
    }

    /// Returns whether a request for this name is for the file as it is.
    fn is_named(&self, asset: &str) -> bool {
        let (name, ending) = self.name;
        let digest = asset.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
        let digest = digest.and_then(|rest| rest.strip_suffix(ending)?.strip_suffix('.'));
        digest == Some(&self.digest)
    }
}

/// Returns whether the client asks for a page: it accepts HTML, and names it before JSON.
pub(super) fn is_for_browser(request: &Request) -> bool {
    let accepted = request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut ranges = accepted
        .flat_map(|text| text.split(','))
        .map(|range| range.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    ranges.find(|range| matches!(range.as_str(), "text/html" | "application/json"))
        == Some("text/html".into())
}

/// Answers with the page.
pub(super) fn page(request: &Request) -> HandlerResult {
    require_read(request)?;
    let mut response = answer(request, &PAGE, "no-cache");
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

/// Answers with a file of the page. A name with another digest is that of another version.
pub(super) fn asset(request: &Request, asset: &str) -> HandlerResult {
    require_read(request)?;
    let file = ASSETS.iter().find(|file| file.is_named(asset)).ok_or_else(Problem::not_found)?;
    Ok(answer(request, file, IMMUTABLE))
}

fn require_read(request: &Request) -> Result<(), Problem> {
    match *request.method() {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(Problem::unrouted(request.uri().path())),
    }
}

fn answer(request: &Request, file: &File, cache: &'static str) -> Response {
    let gzip = file.gzip.filter(|_| accepts_gzip(request.headers()));
    // The two forms of a file have different bytes, so each has its own tag.
    let etag = format!("\"{}{}\"", file.digest, if gzip.is_some() { "-gzip" } else { "" });
    let is_known = has_tag(request.headers(), &etag);
    let content = gzip.unwrap_or(file.content.as_bytes());
    let body = if is_known { Body::default() } else { Bytes::from_static(content).into() };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    let mut insert = |name: HeaderName, value| {
        headers.insert(name, HeaderValue::from_static(value));
    };
    insert(CACHE_CONTROL, cache);
    insert(CONTENT_SECURITY_POLICY, POLICY);
    insert(X_CONTENT_TYPE_OPTIONS, "nosniff");
    insert(REFERRER_POLICY, "no-referrer");
    if !is_known {
        insert(CONTENT_TYPE, file.content_type);
    }
    if file.gzip.is_some() {
        insert(VARY, "accept-encoding");
    }
    if gzip.is_some() && !is_known {
        insert(CONTENT_ENCODING, "gzip");
    }
    headers.insert(ETAG, HeaderValue::try_from(etag).expect("invariant: hexadecimal digits"));
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    response
}

/// Returns whether the client accepts gzip by name, with a weight above 0 (RFC 9110, 12.5.3). A `*`
/// alone gets the plain file, which every client can read.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|text| text.split(',')).any(|coding| {
        let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = parameters.trim().strip_prefix(['q', 'Q']).map(str::trim_start);
        let weight = weight.and_then(|rest| rest.strip_prefix('='));
        let is_refused = weight.is_some_and(|weight| weight.trim().parse() == Ok(0.0_f32));
        name.trim().eq_ignore_ascii_case("gzip") && !is_refused
    })
}

/// Returns whether the client has this version already (RFC 9110, 13.1.2).
fn has_tag(headers: &HeaderMap, etag: &str) -> bool {
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    known.flat_map(|text| text.split(',')).any(|tag| {
        let tag = tag.trim();
        tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag
    })
}
