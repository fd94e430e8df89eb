//! HTTP to an object store: rustls with ring, and no second attempt.

use object_store::ClientConfigKey;
use object_store::ClientOptions;
use object_store::client::{HttpClient, HttpConnector};
use rustls::ClientConfig;
use rustls::crypto::ring;
use rustls_platform_verifier::BuilderVerifierExt as _;
use std::sync::Arc;
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes the HTTP clients of a store and of its credentials.
#[derive(Debug)]
pub(crate) struct Connector {
    tls: ClientConfig,
    limit: Duration,
}

impl Connector {
    /// Trusts the authorities that the operating system trusts.
    pub(crate) fn new(limit: Duration) -> Result<Self, rustls::Error> {
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_platform_verifier()?
            .with_no_client_auth();
        Ok(Self { tls, limit })
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let allows_http = options.get_config_value(&ClientConfigKey::AllowHttp);
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(self.tls.clone())
            .https_only(allows_http.as_deref() != Some("true"))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(self.limit)
            .build()
            .map_err(|error| object_store::Error::Generic {
                store: "HTTP",
                source: Box::new(error),
            })?;
        Ok(HttpClient::new(client))
    }
}
