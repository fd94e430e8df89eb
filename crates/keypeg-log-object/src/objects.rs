//! The operations on objects that a log needs, each within a time limit, with their errors.

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, future, stream};
use keypeg_log::LogError;
use object_store::path::Path;
use object_store::{Error, GetOptions, ObjectMeta, ObjectStore, PutMode, PutOptions, PutPayload};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// The objects that one listing returns: as many as S3 returns for one request.
pub(crate) const PAGE: usize = 1000;

/// What creating an object found.
pub(crate) enum Created {
    /// The object is new.
    New,
    /// There is one, or the store says so: it is read to find out whose it is.
    Exists,
}

/// A store with the limit of each operation.
#[derive(Clone)]
pub(crate) struct Objects {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) limit: Duration,
    /// Whether the store lists in the order of the names: all but directories do.
    pub(crate) is_sorted: bool,
}

impl Objects {
    async fn bounded<T>(
        &self,
        operation: impl Future<Output = Result<T, Error>>,
    ) -> Result<Result<T, Error>, LogError> {
        timeout(self.limit, operation)
            .await
            .map_err(|_| LogError::Unavailable(format!("no answer within {:?}", self.limit)))
    }

    /// Creates an object if there is none of this name.
    pub(crate) async fn create(&self, name: &Path, bytes: Bytes) -> Result<Created, LogError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let put = self.store.put_opts(name, PutPayload::from_bytes(bytes), options);
        match self.bounded(put).await? {
            Ok(_) => Ok(Created::New),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(Created::Exists),
            Err(error) => Err(fault(&error)),
        }
    }

    /// Writes an object, whether there is one of this name or not.
    pub(crate) async fn put(&self, name: &Path, bytes: Bytes) -> Result<(), LogError> {
        let put = self.store.put_opts(name, PutPayload::from_bytes(bytes), PutOptions::default());
        self.bounded(put).await?.map(drop).map_err(|error| fault(&error))
    }

    /// Returns an object, if there is one.
    pub(crate) async fn get(&self, name: &Path) -> Result<Option<Bytes>, LogError> {
        let get = async {
            let found = self.store.get_opts(name, GetOptions::default()).await?;
            found.bytes().await
        };
        match self.bounded(get).await? {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(fault(&error)),
        }
    }

    /// Returns the objects below a prefix whose name is above `above`, in the order of their names:
    /// at most `max`.
    pub(crate) async fn list(
        &self,
        prefix: &Path,
        above: Option<&Path>,
        max: usize,
    ) -> Result<Vec<ObjectMeta>, LogError> {
        let found = match above {
            Some(above) => self.store.list_with_offset(Some(prefix), above),
            None => self.store.list(Some(prefix)),
        };
        let listing = async {
            if self.is_sorted {
                return found.take(max).try_collect().await;
            }
            let mut all: Vec<ObjectMeta> = found.try_collect().await?;
            all.sort_unstable_by(|one, other| one.location.cmp(&other.location));
            all.truncate(max);
            Ok(all)
        };
        self.bounded(listing).await?.map_err(|error: Error| fault(&error))
    }

    /// Removes objects, in this order where the store takes them one by one. A missing one is fine.
    pub(crate) async fn remove(&self, names: Vec<Path>) -> Result<(), LogError> {
        let removed = self.store.delete_stream(stream::iter(names.into_iter().map(Ok)).boxed());
        let removal = removed.try_for_each(|_| future::ready(Ok(())));
        match self.bounded(removal).await? {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(fault(&error)),
        }
    }
}

/// Returns the error of a log for one of the store.
pub(crate) fn fault(error: &Error) -> LogError {
    if let Some(refusal) = certificate_refusal(error) {
        return LogError::Unsuitable(format!(
            "the certificate of the object store is refused: {refusal}: use a host name of the \
             certificate in endpoint, and let the operating system trust the authority that signed \
             it, or name the file of the authority in the variable SSL_CERT_FILE"
        ));
    }
    let text = chain(error);
    match error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            LogError::Unsuitable(format!(
                "the object store refuses: {text}: give the credentials of the environment the \
                 rights to read, list, create and delete objects below the prefix"
            ))
        }
        Error::NotImplemented { .. } | Error::NotSupported { .. } => LogError::Unsuitable(format!(
            "the object store cannot do what a log needs: {text}: use another store"
        )),
        Error::Generic { .. }
        | Error::NotFound { .. }
        | Error::InvalidPath { .. }
        | Error::JoinError { .. }
        | Error::AlreadyExists { .. }
        | Error::Precondition { .. }
        | Error::NotModified { .. }
        | Error::UnknownConfigurationKey { .. }
        | _ => LogError::Unavailable(text),
    }
}

/// Returns why the certificate of the store is refused, if that is the cause of an error.
fn certificate_refusal(error: &Error) -> Option<&rustls::Error> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(next) = cause {
        if let Some(refusal @ rustls::Error::InvalidCertificate(_)) = next.downcast_ref() {
            return Some(refusal);
        }
        // The source of an I/O error is that of the error in it, not that error itself.
        let inner = next.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = match inner {
            Some(inner) => Some(inner),
            None => next.source(),
        };
    }
    None
}

/// Returns the text of an error with its causes, without line breaks.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text = format!("{text}: {next_text}");
        }
        cause = next.source();
    }
    text.replace(['\n', '\r'], " ")
}
