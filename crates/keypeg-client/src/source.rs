//! The client of a long task, whose access token can be replaced while the task runs.
//!
//! After a 401 the task asks for the present token. The file knows neither files nor variables: the
//! caller reads the token.

use crate::client::Client;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Reads the present access token; `None` if it cannot be read now.
type ReadToken = dyn Fn() -> Option<String> + Send + Sync;

/// A client with the present access token. Clones share it.
#[derive(Clone)]
pub struct ClientSource {
    shared: Arc<Shared>,
}

struct Shared {
    client: Mutex<Client>,
    read_token: Option<Box<ReadToken>>,
}

impl ClientSource {
    /// Creates a source whose token never changes.
    pub fn fixed(client: Client) -> Self {
        Self { shared: Arc::new(Shared { client: Mutex::new(client), read_token: None }) }
    }

    /// Creates a source that reads its token again when the server has refused the last one.
    pub fn with_token_reader(
        client: Client,
        read_token: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        let read_token = Some(Box::new(read_token) as Box<ReadToken>);
        Self { shared: Arc::new(Shared { client: Mutex::new(client), read_token }) }
    }

    /// Returns the client with the last token that was read.
    pub fn client(&self) -> Client {
        self.shared.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the token again; returns whether it differs from the one that `refused` sent.
    pub fn refresh(&self, refused: &Client) -> bool {
        let Some(read_token) = &self.shared.read_token else { return false };
        let Some(token) = read_token() else { return false };
        let mut client = self.shared.client.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(refreshed) = client.with_token(&token) else { return false };
        let is_new = !refreshed.has_token_of(refused);
        *client = refreshed;
        is_new
    }
}

impl fmt::Debug for ClientSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientSource").field("client", &self.client()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each task compares with the token that it sent, not with the one that another task has read.
    #[test]
    fn every_task_whose_token_was_refused_learns_of_the_new_one() {
        let client = Client::new("http://127.0.0.1:1").unwrap().with_token("old").unwrap();
        let source = ClientSource::with_token_reader(client.clone(), || Some("new".into()));
        assert!(source.refresh(&client), "the first task");
        assert!(source.refresh(&client), "a task that sent the old token, too");
        assert!(!source.refresh(&source.client()), "the new token was refused");
        assert!(!ClientSource::fixed(client.clone()).refresh(&client));
        let unreadable = ClientSource::with_token_reader(client.clone(), || None);
        assert!(!unreadable.refresh(&client));
    }
}
