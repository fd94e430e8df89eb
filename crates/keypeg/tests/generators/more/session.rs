//! One session with the client that openapi-generator makes for Rust.

use openapi::apis::{Error, ResponseContent, configuration::Configuration};
use openapi::apis::{keys_api, leases_api, pools_api};
use openapi::models::{Code, PolicyRequest, Problem};

const POOL: &str = "generated-rust";

fn refused<T: std::fmt::Debug, E>(result: Result<T, Error<E>>) -> (u16, Problem) {
    let Err(Error::ResponseError(ResponseContent { status, content, .. })) = result else {
        panic!("not refused")
    };
    (status.as_u16(), serde_json::from_str(&content).expect("a problem"))
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let base_path = std::env::args().nth(1).expect("the URL of a server");
    let server = Configuration { base_path, ..Configuration::default() };
    let policy = PolicyRequest { lease_ttl_seconds: Some(Some(30.0)), ..PolicyRequest::default() };
    let pool = pools_api::put_pool(&server, POOL, None, None, Some(policy)).await.expect("a pool");
    assert_eq!(pool.lease_ttl_seconds, 30.0);
    let added = keys_api::add_keys(&server, POOL, None, None).await.expect("a key");
    let grant = leases_api::acquire(&server, POOL, None, None, None).await.expect("a grant");
    assert_eq!((&grant.key, &grant.key_id), (&added.keys[0].key, &added.keys[0].id));
    let (status, none) = refused(leases_api::acquire(&server, POOL, None, None, None).await);
    assert_eq!((status, none.code, none.leased), (404, Code::NoKeyAvailable, Some(1)));
    let unknown = "00000000000000000000000000";
    let (status, ended) = refused(leases_api::release(&server, POOL, unknown, None).await);
    assert_eq!((status, ended.code), (410, Code::LeaseEnded));
}
