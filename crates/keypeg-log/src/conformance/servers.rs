//! Cases about what all servers share: the probe, the installation, heartbeats.

use super::case::{Case, Outcome, ensure};
use super::steps::{Steps, surely};
use crate::heartbeat::{Heartbeat, ServerName};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "the probe accepts the store, twice",
        only: None,
        run: |steps| Box::pin(probe(steps)),
    },
    Case {
        name: "the installation is made once",
        only: None,
        run: |steps| Box::pin(installation(steps)),
    },
    Case {
        name: "heartbeats change, and a server that stopped is no longer listed",
        only: None,
        run: |steps| Box::pin(heartbeats(steps)),
    },
];

async fn probe(steps: &mut Steps<'_>) -> Outcome {
    for attempt in 1..=2 {
        let nonce = *steps.id().bytes();
        let report = surely(|| steps.log.probe(nonce)).await;
        let is_named = report.as_ref().is_ok_and(|report| !report.store.is_empty());
        ensure!(is_named, "probe {attempt}: {report:?}");
    }
    Ok(())
}

async fn installation(steps: &mut Steps<'_>) -> Outcome {
    let first = surely(|| steps.log.installation(b"an installation")).await;
    for proposed in [b"another one".as_slice(), b""] {
        let found = surely(|| steps.log.installation(proposed)).await;
        ensure!(found.is_ok() && found == first, "first {first:?}, then {found:?}");
    }
    Ok(())
}

fn name(server: &str) -> ServerName {
    ServerName::new(server).expect("invariant: a valid name")
}

async fn heartbeats(steps: &mut Steps<'_>) -> Outcome {
    let beat = |server: &str, count| {
        Heartbeat::new(name(server), &format!("https://{server}:8080"), count)
            .expect("invariant: a short address")
    };
    let (mut seen, other) = (Vec::new(), beat("conformance-b", 7));
    for count in 1..=5 {
        let own = beat("conformance-a", count);
        for heartbeat in [&own, &other] {
            let sent = surely(|| steps.log.beat(heartbeat)).await;
            ensure!(sent == Ok(()), "{sent:?}");
        }
        let all = surely(|| steps.log.heartbeats()).await.map_err(|error| error.to_string())?;
        ensure!(all.contains(&other), "{other:?} is not in {all:?}");
        let is_sorted = all.is_sorted_by_key(|heartbeat| &heartbeat.server);
        ensure!(is_sorted, "not sorted by name: {all:?}");
        let found = all.iter().find(|heartbeat| heartbeat.server == own.server);
        let found = found.ok_or_else(|| format!("{own:?} is not in {all:?}"))?;
        seen.push(found.count);
    }
    seen.dedup();
    ensure!(seen.len() > 1, "the count stays at {seen:?}");
    let stopped = name("conformance-a");
    for _ in 0..2 {
        let forgotten = surely(|| steps.log.forget(&stopped)).await;
        ensure!(forgotten == Ok(()), "{forgotten:?}");
    }
    let all = surely(|| steps.log.heartbeats()).await.map_err(|error| error.to_string())?;
    ensure!(all.contains(&other), "{other:?} is not in {all:?}");
    ensure!(all.iter().all(|heartbeat| heartbeat.server != stopped), "still listed: {all:?}");
    surely(|| steps.log.forget(&other.server)).await.map_err(|error| error.to_string())
}
