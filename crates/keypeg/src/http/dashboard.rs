//! The dashboard: a page for browsers at `/`, and the files that it loads.
//!
//! The files are embedded as `ui/` builds them. The name of a file contains a digest of its content,
//! so a browser keeps it, and reads only the page again. The page loads nothing from other hosts and
//! has no script and no style of its own. Knows no pool.

use super::embedded::EmbeddedFile;
use super::error::Problem;
use super::message::{Request, Response};
use super::respond::HandlerResult;
use hyper::Method;
use hyper::header::{ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderValue, VARY};
use std::sync::LazyLock;

/// What the page may do: load from this server, and nothing else.
const POLICY: &str = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";
/// A file with a digest in its name never changes.
const IMMUTABLE: &str = "public, max-age=31536000, immutable";

/// A file that the page loads.
struct Asset {
    /// Its name without the digest, and its ending.
    name: (&'static str, &'static str),
    file: EmbeddedFile,
}

static PAGE: LazyLock<EmbeddedFile> = LazyLock::new(|| {
    let content = include_str!("../../ui/dashboard/index.html");
    EmbeddedFile::new("text/html; charset=utf-8", content)
});

static ASSETS: LazyLock<[Asset; 3]> = LazyLock::new(|| {
    let script = include_str!("../../ui/dashboard/app.js");
    let style = include_str!("../../ui/dashboard/app.css");
    let icon = include_str!("../../ui/dashboard/icon.svg");
    [
        Asset {
            name: ("app", "js"),
            file: EmbeddedFile::new("text/javascript; charset=utf-8", script)
                .with_gzip(include_bytes!("../../ui/dashboard/app.js.gz")),
        },
        Asset {
            name: ("app", "css"),
            file: EmbeddedFile::new("text/css; charset=utf-8", style)
                .with_gzip(include_bytes!("../../ui/dashboard/app.css.gz")),
        },
        Asset { name: ("icon", "svg"), file: EmbeddedFile::new("image/svg+xml", icon) },
    ]
});

impl Asset {
    /// Returns whether a request for this name is for the file as it is.
    fn is_named(&self, asset: &str) -> bool {
        let (name, ending) = self.name;
        let digest = asset.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
        let digest = digest.and_then(|rest| rest.strip_suffix(ending)?.strip_suffix('.'));
        digest == Some(self.file.digest())
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
    let asset = ASSETS.iter().find(|file| file.is_named(asset)).ok_or_else(Problem::not_found)?;
    Ok(answer(request, &asset.file, IMMUTABLE))
}

fn require_read(request: &Request) -> Result<(), Problem> {
    match *request.method() {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(Problem::unrouted(request.uri().path())),
    }
}

fn answer(request: &Request, file: &EmbeddedFile, cache: &'static str) -> Response {
    let mut response = file.answer(request);
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(cache));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    response
}
