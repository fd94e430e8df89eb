//! Requests whose path, origin or precondition decides whether they are accepted: the fast path and
//! hyper decide equally.

use super::Servers;
use super::calls::{CALLS, Case, case, run_all, with_success_status};

#[test]
fn paths_origins_and_preconditions_are_read_equally() {
    let mut cases: Vec<Case> = Vec::new();
    for (line, _) in CALLS {
        for (from, to) in [("pools/", "p%6Fols/"), ("v1", "%76%31"), ("POST /v1", "POST /v%31")] {
            cases.push(case(&line.replace(from, to), "", "", "20"));
        }
        for end in ["%", "%4", "%zz", "%2Fx", "/%2f"] {
            cases.push(case(&format!("{line}{end}"), "", "", "400"));
        }
        for (origin, status) in [
            ("http://localhost", "20"),
            ("HTTP://LOCALHOST:80", "20"),
            ("https://localhost", "20"),
            ("http://localhost:8000", "403"),
            ("http://127.0.0.1", "403"),
            ("https://evil.example", "403"),
            ("https://localhost.evil.example", "403"),
            ("null", "403"),
            ("", "403"),
        ] {
            cases.push(case(line, &format!("Origin: {origin}\r\n"), "{}", status));
        }
        let both = "Origin: http://localhost\r\nOrigin: https://evil.example\r\n";
        cases.push(case(line, both, "", "403"));
        let forwarded = "Origin: https://evil.example\r\nX-Forwarded-Host: evil.example\r\n";
        cases.push(case(line, forwarded, "", "403"));
        let fetched = "Origin: https://evil.example\r\nSec-Fetch-Site: same-origin\r\n";
        cases.push(case(line, fetched, "", "20"));
        let unknown = "Origin: https://evil.example\r\nSec-Fetch-Site: x\r\n";
        cases.push(case(line, unknown, "", "403"));
        for name in ["If-Match", "If-None-Match", "If-Unmodified-Since"] {
            cases.push(case(line, &format!("{name}: *\r\n"), "", "412"));
        }
    }
    println!("{} cases", run_all(&Servers::new(&[]), &with_success_status(cases)));
}

/// A proxy may replace the Host; the configured name is the origin of the server's own pages.
#[test]
fn a_configured_name_is_an_own_origin_at_its_usual_port() {
    let mut cases: Vec<Case> = Vec::new();
    for (line, _) in CALLS {
        for (origin, status) in [
            ("https://keys.example", "20"),
            ("https://KEYS.example:443", "20"),
            ("http://keys.example", "20"),
            ("https://keys.example:8443", "403"),
            ("https://evil.keys.example", "403"),
        ] {
            cases.push(case(line, &format!("Origin: {origin}\r\n"), "", status));
        }
    }
    let servers = Servers::new(&["--allow-host", "keys.example"]);
    println!("{} cases", run_all(&servers, &with_success_status(cases)));
}
