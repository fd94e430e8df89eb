//! The backup route: streams a backup of all data.

use crate::http::admit::RequestContext;
use crate::http::backup::BackupBody;
use crate::http::checks::refuse_cross_site;
use crate::http::error::Problem;
use crate::http::message::{Body, Request, Response};
use crate::http::parse::query::Query;
use crate::http::respond::HandlerResult;
use hyper::Method;
use hyper::header::{CONTENT_DISPOSITION, CONTENT_TYPE, HeaderName, HeaderValue};
use std::sync::Arc;

/// Disables response buffering in nginx and compatible proxies.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Streams a backup. HEAD only checks that the caller may create one.
pub(crate) async fn create(context: &RequestContext<'_>, request: &Request) -> HandlerResult {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Problem::unrouted(request.uri().path()));
    }
    Query::read(request.uri().query(), &[])?;
    // A page of another site cannot read the answer, but must not make the server work either.
    refuse_cross_site(&context.server.access.hosts, request)?;
    let source = context.server.backups.as_ref().ok_or_else(Problem::backup_unsupported)?;
    let body = if request.method() == Method::HEAD {
        Body::default()
    } else {
        let stream = source.begin().map_err(|refused| Problem::backup_refused(&refused))?;
        let last_backup = Arc::clone(context.server.metrics.last_backup());
        let begun = BackupBody::begin(stream, last_backup).await;
        Body::Backup(Box::new(begun.map_err(|refused| Problem::backup_refused(&refused))?))
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    let name = HeaderValue::from_static("attachment; filename=\"keypeg.backup\"");
    headers.insert(CONTENT_DISPOSITION, name);
    headers.insert(BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}
