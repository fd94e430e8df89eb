//! The table of routes and the router agree: each listed method reaches a handler, and any other
//! method of a listed path is rejected with an `Allow` header that lists the supported ones.

use crate::support::{Answer, Server};
use keypeg_client::routes::{PROBLEM_ROUTES, ROUTES, allow};
use std::collections::BTreeSet;

const METHODS: [&str; 9] =
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"];

/// Returns the paths of all routes as a client writes them, with and without the slash at the end.
fn paths() -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for route in ROUTES.iter().chain(PROBLEM_ROUTES) {
        let path = route.path.replace("{pool}", "default").replace("{id}", "x");
        let path = path.replace("{lease}", "x").replace("{code}", "internal");
        let path = path.replace("{shard}", "0");
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
            // One connection for each request: an event stream has no end.
            let answer = server.client().ask(&format!("{method} {path}"));
            if listed.split(", ").any(|listed| listed == method) {
                let is_unrouted = is(&answer, 404, "not_found") || answer.status == 405;
                assert!(!is_unrouted, "{method} {path} reaches no handler: {answer:?}");
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
        let other_path = if path.ends_with('/') { format!("{path}x") } else { format!("{path}//") };
        let is_route = allow(&other_path).is_some();
        let answer = server.client().ask(&format!("BREW {other_path}"));
        assert_eq!(is(&answer, 404, "not_found"), !is_route, "{other_path}");
    }
}
