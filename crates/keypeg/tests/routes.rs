//! The table of routes beside the router: what the table lists reaches a handler, and whatever
//! else is asked of its paths is refused with the methods it lists.

use crate::support::{Answer, Server};
use keypeg_client::routes::{ROUTES, allow};
use std::collections::BTreeSet;

const METHODS: [&str; 9] =
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"];

/// Paths as a client would write them: each route's, and the slash at its end left out.
fn paths() -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for route in ROUTES {
        let path = route.path.replace("{pool}", "default").replace("{id}", "x");
        let path = path.replace("{lease}", "x");
        if path != "/" {
            paths.insert(path.trim_end_matches('/').to_owned());
        }
        paths.insert(path);
    }
    paths
}

fn is(answer: &Answer, status: u16, code: &str) -> bool {
    answer.status == status && answer.body.contains(&format!("\"code\":\"{code}\""))
}

#[test]
fn the_table_and_the_router_agree() {
    let server = Server::in_memory(&[]);
    let paths = paths();
    let mut reached = 0;
    for path in &paths {
        let listed = allow(path).unwrap();
        for method in METHODS {
            // A connection each: a stream of events has no end.
            let answer = server.client().ask(&format!("{method} {path}"));
            if listed.split(", ").any(|listed| listed == method) {
                let refused = is(&answer, 404, "not_found") || answer.status == 405;
                assert!(!refused, "{method} {path} reaches no handler: {answer:?}");
                reached += 1;
            } else {
                assert_eq!(answer.header("allow"), Some(&*listed), "{method} {path}");
                assert_eq!(answer.status, 405, "{method} {path}");
                if method != "HEAD" {
                    answer.problem(405, "method_not_allowed");
                }
            }
        }
    }
    assert!(reached >= ROUTES.len(), "{reached} of {} routes", ROUTES.len());
    for path in paths {
        let beside = if path.ends_with('/') { format!("{path}x") } else { format!("{path}//") };
        let there = allow(&beside).is_some();
        let answer = server.client().ask(&format!("BREW {beside}"));
        assert_eq!(is(&answer, 404, "not_found"), !there, "{beside}");
    }
}
