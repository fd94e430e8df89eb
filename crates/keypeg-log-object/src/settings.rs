//! The URL of the store, and the store that it opens.

use crate::http::Connector;
use keypeg_log::LogError;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, RetryConfig};
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// The parameters that a URL can have beside those of the store.
pub const PARAMETERS: &str = "timeout_s=1..300";
/// The allowed values of `timeout_s`.
pub const TIMEOUT_S: RangeInclusive<u64> = 1..=300;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// The settings of a log in an object store, with the store itself.
#[derive(Clone)]
pub struct Settings {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) prefix: Path,
    /// The store and its bucket, for people.
    pub(crate) name: String,
    /// After this time an operation ends.
    pub(crate) timeout: Duration,
    pub(crate) warnings: Vec<String>,
    /// Whether the store lists in the order of the names.
    pub(crate) is_sorted: bool,
}

impl Settings {
    /// Settings for an open store, which lists objects in the order of their names.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: &str, timeout: Duration) -> Self {
        let name = store.to_string();
        Self { store, prefix: Path::from(prefix), name, timeout, warnings: vec![], is_sorted: true }
    }
}

impl FromStr for Settings {
    type Err = LogError;

    /// Reads `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` or
    /// `file:///DIRECTORY`, with parameters. Credentials come from the environment.
    fn from_str(text: &str) -> Result<Self, LogError> {
        let url = Url::parse(text).map_err(|error| invalid(&error.to_string()))?;
        let (mut timeout, mut options) = (DEFAULT_TIMEOUT, Vec::new());
        for (name, value) in url.query_pairs() {
            if name == "timeout_s" {
                let seconds = value.parse().ok().filter(|seconds| TIMEOUT_S.contains(seconds));
                let allowed = "use a whole number of seconds from 1 to 300";
                timeout = seconds.map(Duration::from_secs).ok_or_else(|| {
                    invalid(&format!("timeout_s={value} is not allowed: {allowed}"))
                })?;
            } else if is_secret(&name) {
                return Err(invalid(&format!(
                    "{name} is a secret, which other users of the machine could read: set it in \
                     the environment, such as AWS_SECRET_ACCESS_KEY"
                )));
            } else {
                options.push((name.into_owned(), value.into_owned()));
            }
        }
        if url.scheme() == "file" {
            return directory(&url, &options, timeout);
        }
        let bucket = url.host_str().filter(|bucket| !bucket.is_empty());
        let bucket = bucket.ok_or_else(|| invalid("it names no bucket"))?;
        let connector = Connector::new(timeout)
            .map_err(|error| LogError::Unsuitable(format!("TLS cannot be set up: {error}")))?;
        let store = match url.scheme() {
            "s3" => s3(bucket, &options, connector)?,
            "gs" => gcs(bucket, &options, connector)?,
            "az" => azure(bucket, &options, connector)?,
            scheme => return Err(invalid(&format!("{scheme}:// is unknown"))),
        };
        let prefix =
            Path::from_url_path(url.path()).map_err(|error| invalid(&error.to_string()))?;
        let name = format!("{}://{bucket}/{prefix}", url.scheme());
        Ok(Self { store, prefix, name, timeout, warnings: vec![], is_sorted: true })
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["secret", "token", "password", "access_key", "account_key", "sas", "service_account_key"]
        .iter()
        .any(|part| name.contains(part))
        && !name.ends_with("_file")
        && !name.ends_with("_path")
        && !name.ends_with("access_key_id")
}

/// No second attempt: the store could have created the object in the first one.
fn retry() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

fn s3(
    bucket: &str,
    options: &[(String, String)],
    connector: Connector,
) -> Result<Arc<dyn ObjectStore>, LogError> {
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    for (name, value) in options {
        let key: AmazonS3ConfigKey = parse(name)?;
        builder = builder.with_config(key, value);
    }
    let store = builder
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_http_connector(connector)
        .with_retry(retry())
        .build();
    Ok(Arc::new(store.map_err(|error| invalid(&error.to_string()))?))
}

fn gcs(
    bucket: &str,
    options: &[(String, String)],
    connector: Connector,
) -> Result<Arc<dyn ObjectStore>, LogError> {
    let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
    for (name, value) in options {
        let key: GoogleConfigKey = parse(name)?;
        builder = builder.with_config(key, value);
    }
    let store = builder.with_http_connector(connector).with_retry(retry()).build();
    Ok(Arc::new(store.map_err(|error| invalid(&error.to_string()))?))
}

fn azure(
    container: &str,
    options: &[(String, String)],
    connector: Connector,
) -> Result<Arc<dyn ObjectStore>, LogError> {
    let mut builder = MicrosoftAzureBuilder::from_env().with_container_name(container);
    for (name, value) in options {
        let key: AzureConfigKey = parse(name)?;
        builder = builder.with_config(key, value);
    }
    let store = builder.with_http_connector(connector).with_retry(retry()).build();
    Ok(Arc::new(store.map_err(|error| invalid(&error.to_string()))?))
}

fn directory(
    url: &Url,
    options: &[(String, String)],
    timeout: Duration,
) -> Result<Settings, LogError> {
    if let Some((name, _)) = options.first() {
        return Err(invalid(&format!("{name} is not known for file://")));
    }
    let path = url.to_file_path().map_err(|()| invalid("file:// needs an absolute path"))?;
    let store = LocalFileSystem::new_with_prefix(&path).map_err(|error| {
        invalid(&format!("{}: {error}: create the directory first", path.display()))
    })?;
    let mut settings = Settings::new(Arc::new(store.with_fsync(true)), "", timeout);
    settings.name = format!("file://{}", path.display());
    settings.is_sorted = false;
    let text =
        "a directory is on one machine: use it to try several servers out, not for their data";
    settings.warnings.push(text.to_owned());
    Ok(settings)
}

fn parse<K: FromStr>(name: &str) -> Result<K, LogError> {
    name.parse().map_err(|_| invalid(&format!("the parameter {name} is not known")))
}

/// The URL itself is not shown: it can have a secret.
fn invalid(what: &str) -> LogError {
    LogError::Unsuitable(format!(
        "the URL of the store is not valid: {what}. Use s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, \
         az://CONTAINER/PREFIX or, for servers on one machine, file:///DIRECTORY, with {PARAMETERS} and settings of the store such as region=NAME or \
         endpoint=URL; credentials come from the environment"
    ))
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_the_bucket_the_prefix_and_the_settings_of_the_store() {
        let url = "s3://bucket/a/b?region=eu-west-1&timeout_s=4&endpoint=http://127.0.0.1:1&allow_http=true";
        let settings: Settings = url.parse().unwrap();
        assert_eq!(settings.prefix.as_ref(), "a/b");
        assert_eq!((settings.name.as_str(), settings.timeout.as_secs()), ("s3://bucket/a/b", 4));
        assert!("az://container/x?account_name=a&use_emulator=true".parse::<Settings>().is_ok());
        let directory: Settings = "file:///tmp".parse().unwrap();
        assert_eq!(directory.warnings.len(), 1);
    }

    #[test]
    fn an_invalid_url_names_what_is_wrong_and_what_is_allowed() {
        for (url, expected) in [
            ("bucket", "relative URL"),
            ("ftp://bucket/a", "ftp:// is unknown"),
            ("s3:///a", "names no bucket"),
            ("s3://b/a?timeout_s=0", "from 1 to 300"),
            ("s3://b/a?timeout_s=301", "from 1 to 300"),
            ("s3://b/a?regoin=x", "regoin is not known"),
            ("s3://b/a?secret_access_key=hidden", "set it in the environment"),
            ("s3://b/a?aws_session_token=hidden", "set it in the environment"),
            ("az://b/a?azure_storage_account_key=hidden", "set it in the environment"),
            ("gs://b/a?google_service_account_key=hidden", "set it in the environment"),
            ("file:///does/not/exist", "create the directory first"),
            ("file:///tmp?region=x", "region is not known for file://"),
        ] {
            let error = url.parse::<Settings>().unwrap_err().to_string();
            assert!(error.contains(expected), "{url}: {error}");
            assert!(error.contains("Use s3://BUCKET/PREFIX"), "{error}");
            assert!(!error.contains("hidden"), "{error}");
        }
    }
}
