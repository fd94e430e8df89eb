//! Object stores that misbehave: each wraps the store in memory and changes its creations.

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt as _, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How a store misbehaves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// It ignores the condition of a creation, as Garage and s3rver do.
    IgnoresCondition,
    /// It checks the condition, and writes later, as s3s-fs does.
    ChecksBeforeWriting,
    /// Of its creations, some answer 503 after they have written, 409 before they write, or never.
    LosesAnswers,
}

/// A store in memory with a fault.
#[derive(Debug)]
pub(crate) struct Faulty {
    store: InMemory,
    fault: Fault,
    creations: AtomicUsize,
}

impl Faulty {
    pub(crate) fn new(fault: Fault) -> Self {
        Self { store: InMemory::new(), fault, creations: AtomicUsize::new(0) }
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.fault, f)
    }
}

fn failed(text: &str) -> Error {
    Error::Generic { store: "faulty", source: text.into() }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        name: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        if !matches!(options.mode, PutMode::Create) {
            return self.store.put_opts(name, payload, options).await;
        }
        match self.fault {
            Fault::IgnoresCondition => self.store.put(name, payload).await,
            Fault::ChecksBeforeWriting => {
                let exists = self.store.head(name).await.is_ok();
                // Another creation, if there is one, checks in the meantime.
                let checks = self.creations.fetch_add(1, Ordering::SeqCst) + 1;
                for _ in 0..10_000 {
                    if self.creations.load(Ordering::SeqCst) > checks {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                if exists {
                    let (path, source) = (name.to_string(), "exists".into());
                    return Err(Error::AlreadyExists { path, source });
                }
                self.store.put(name, payload).await
            }
            Fault::LosesAnswers => {
                let number = self.creations.fetch_add(1, Ordering::SeqCst);
                match number % 7 {
                    2 => {
                        let _ = self.store.put_opts(name, payload, options).await;
                        Err(failed("503 SlowDown"))
                    }
                    4 => Err(Error::AlreadyExists {
                        path: name.to_string(),
                        source: "409 ConditionalRequestConflict".into(),
                    }),
                    5 => Err(failed("the connection was closed")),
                    _ => self.store.put_opts(name, payload, options).await,
                }
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        name: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(name, options).await
    }

    async fn get_opts(&self, name: &Path, options: GetOptions) -> Result<GetResult> {
        self.store.get_opts(name, options).await
    }

    fn delete_stream(
        &self,
        names: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(names)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}
