//! The hosts of a URL, which are tried one after another. An error names each host with its own cause:
//! PostgreSQL's client keeps only that of the last host, such as a standby behind a primary that
//! refuses the password.

use crate::fault::fault;
use keypeg_log::LogError;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;
use tokio::time::timeout;
use tokio_postgres::config::Host;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, Connection, Socket};

const DEFAULT_PORT: u16 = 5432;

/// Connects to a host that is a primary, within the time limit. The order is random: a host that was
/// primary before a failover can be the first of the list and hang every append; after some attempts
/// another one is the first.
pub(crate) async fn connect<T>(
    hosts: &[Config],
    tls: &T,
    limit: Duration,
) -> Result<(Client, Connection<Socket, T::Stream>), LogError>
where
    T: MakeTlsConnect<Socket> + Clone,
{
    let mut order: Vec<&Config> = hosts.iter().collect();
    let random = RandomState::new().hash_one(0) % hosts.len().max(1) as u64;
    order.rotate_left(usize::try_from(random).unwrap_or_default());
    let mut errors = Vec::new();
    let trying = async {
        for host in &order {
            match host.connect(tls.clone()).await {
                Ok(open) => return Some(open),
                Err(error) => errors.push((name(host), fault(&error))),
            }
        }
        None
    };
    match timeout(limit, trying).await {
        Ok(Some(open)) => return Ok(open),
        Ok(None) => {}
        Err(_) => {
            let text = format!("no connection within {limit:?}");
            let host = order.get(errors.len()).map_or_else(String::new, |host| name(host));
            errors.push((host, LogError::Unavailable(text)));
        }
    }
    if hosts.len() == 1
        && let Some((_, error)) = errors.pop()
    {
        return Err(error);
    }
    Err(together(errors))
}

/// Returns host and port as the URL has them.
fn name(config: &Config) -> String {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        Some(Host::Unix(path)) => path.display().to_string(),
        None => String::new(),
    };
    let port = config.get_ports().first().copied().unwrap_or(DEFAULT_PORT);
    format!("{host}:{port}")
}

/// Makes one error of those of all hosts, always in the same order, so that the log does not repeat it.
/// Errors that an operator must mend hide those of the other hosts.
fn together(mut errors: Vec<(String, LogError)>) -> LogError {
    errors.sort_by(|one, other| one.0.cmp(&other.0));
    let (mut to_mend, mut other) = (Vec::new(), Vec::new());
    for (host, error) in errors {
        if let LogError::Unavailable(text) = error {
            other.push(format!("{host}: {text}"));
        } else {
            to_mend.push(format!("{host}: {error}"));
        }
    }
    if to_mend.is_empty() {
        LogError::Unavailable(other.join("; "))
    } else {
        LogError::Unsuitable(to_mend.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_must_mend_hides_what_the_other_hosts_say() {
        let refused = || ("db-1:5432".to_owned(), LogError::Unsuitable("password".to_owned()));
        let standby = || ("db-2:5432".to_owned(), LogError::Unavailable("a standby".to_owned()));
        let lost = || ("db-0:5432".to_owned(), LogError::Unavailable("refused".to_owned()));
        for (errors, expected) in [
            (vec![refused(), standby()], LogError::Unsuitable("db-1:5432: password".to_owned())),
            (vec![standby(), refused()], LogError::Unsuitable("db-1:5432: password".to_owned())),
            (vec![standby()], LogError::Unavailable("db-2:5432: a standby".to_owned())),
            (
                vec![standby(), lost()],
                LogError::Unavailable("db-0:5432: refused; db-2:5432: a standby".to_owned()),
            ),
        ] {
            assert_eq!(together(errors), expected);
        }
    }
}
